"""Whether a face can be published: how it looks beside the original, as ``torchmetrics.Metric``.

Pictures are aligned crops (B, 3, 128, 128) in [-1, 1]: the original, and the result as it was saved and decoded again.
The oval is ``((x - 64) / 40)^2 + ((y - 73) / 50)^2 < .92^2``; what lies beyond 1.25^2 is surroundings, which no method
should touch. Mesh points and irises are those of ``facezoo.mesh``, in pixels of the crop, found once by the caller. A
face without a figure (the method failed, or no mesh is found in the result) is given as NaN and counts in ``missing``.

A figure of likeness says nothing about privacy: the original itself has the best ones. Together with a recogniser's
rates they show who hides by ruining the picture.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Final, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional
from torchmetrics import Metric

from facezoo.errors import InputError
from facezoo.mesh.geometry import eye_distance
from facezoo.mesh.topology import EYE_CORNERS
from facezoo.metrics.cases import MeanMetric, check_pairs, collected
from facezoo.metrics.frechet import gaussian_distance, moments
from facezoo.metrics.images import PSNR_CEILING
from facezoo.metrics.intervals import Interval, bootstrap_correlation
from facezoo.nets.lpips import LPIPS

__all__ = [
    "CROP",
    "OVAL_FEATURES",
    "DetailRatio",
    "Expression",
    "ExpressionKept",
    "GazeError",
    "GrainOutside",
    "HalvesFrechet",
    "MeshError",
    "SeamStep",
    "ToneShift",
    "expression_values",
    "oval_features",
    "oval_radius",
]

#: Side of the crops that these figures are defined on.
CROP: Final = 128

#: Numbers that ``oval_features`` gives.
OVAL_FEATURES: Final = 256

Expression = Literal["mouth", "eyes", "smile"]

_INSIDE: Final = 0.92
_OUTSIDE: Final = 1.25
_RINGS: Final = ((0.86, 0.96), (1.04, 1.14))
_SECTORS: Final = 36
#: Pairs of mesh points whose distances are summed: lips apart, lids apart, mouth corners apart.
_GAPS: Final[dict[str, tuple[tuple[int, int], ...]]] = {
    "mouth": ((13, 14),),
    "eyes": ((159, 145), (386, 374)),
    "smile": ((61, 291),),
}
#: Places of AlexNet's fifth layer in the crop: 16 k + 15 (strides of 4, 2 and 2; k from 0 to 6).
_CONV5_FIRST, _CONV5_STEP, _CONV5_SIDE = 15, 16, 7

Floats = npt.NDArray[np.float64]


def oval_radius(x: npt.ArrayLike, y: npt.ArrayLike) -> Floats:
    """Distance from the middle of the oval, 1 on the ellipse with the semi-axes 40 and 50 about (64, 73)."""
    return np.hypot((np.asarray(x, np.float64) - 64.0) / 40.0, (np.asarray(y, np.float64) - 73.0) / 50.0)


@lru_cache(maxsize=1)
def _radius() -> Floats:
    y, x = np.mgrid[0:CROP, 0:CROP]
    return oval_radius(x, y)


@lru_cache(maxsize=1)
def _inside() -> Floats:
    """(CROP^2,) weights of the mean inside the oval."""
    inside = (_radius() < _INSIDE).reshape(-1).astype(np.float64)
    return inside / inside.sum()


@lru_cache(maxsize=1)
def _outside() -> Floats:
    """(CROP^2,) weights of the mean over the surroundings."""
    outside = (_radius() > _OUTSIDE).reshape(-1).astype(np.float64)
    return outside / outside.sum()


@lru_cache(maxsize=1)
def _across() -> Floats:
    """(CROP^2, sectors): mean of the inner ring minus mean of the outer one, in each sector of 10 degrees."""
    y, x = np.mgrid[0:CROP, 0:CROP]
    angle = np.arctan2((y - 73.0) / 50.0, (x - 64.0) / 40.0)
    sector = np.floor((angle + np.pi) / (2 * np.pi) * _SECTORS).astype(int) % _SECTORS
    steps = np.zeros((CROP * CROP, _SECTORS))
    for sign, (low, high) in zip((1.0, -1.0), _RINGS, strict=True):
        ring = (_radius() >= low) & (_radius() <= high)
        for number in range(_SECTORS):
            chosen = (ring & (sector == number)).reshape(-1)
            steps[chosen, number] = sign / chosen.sum()
    return steps


def _levels(pictures: Tensor) -> Tensor:
    """(B, 3, 128, 128) in [-1, 1] -> (B, 3, 128^2) float64 in levels of 0 to 255."""
    return (pictures.detach().double().flatten(2) + 1.0) * 127.5


def _check(results: Tensor, originals: Tensor) -> None:
    check_pairs(results, originals, 4, "pictures")
    if results.shape[1:] != (3, CROP, CROP):
        raise InputError(f"looks are defined on aligned crops (B, 3, {CROP}, {CROP}), not {tuple(results.shape)}")


def _detail(pictures: Tensor) -> Tensor:
    """Mean absolute Laplacian of the luma inside the oval, in levels: (B,)."""
    rgb = _levels(pictures)
    luma = (rgb * rgb.new_tensor([0.299, 0.587, 0.114])[:, None]).sum(dim=1).view(-1, 1, CROP, CROP)
    kernel = luma.new_tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]])[None, None]
    edges = functional.conv2d(luma, kernel, padding=1).abs().flatten(1)
    return edges @ edges.new_tensor(_inside())


class DetailRatio(MeanMetric):
    """Mean over faces of detail in the result over detail in the original: 1 as sharp, below soft, above grainy.

    Detail is the mean absolute Laplacian (4-neighbour, 3 x 3) of the luma (Rec. 601) inside the oval.
    """

    def update(self, results: Tensor, originals: Tensor) -> None:
        """Adds pairs of pictures.

        Raises:
            InputError: other shapes.
        """
        _check(results, originals)
        self.keep(_detail(results) / _detail(originals))


class GrainOutside(MeanMetric):
    """Mean over faces of the PSNR outside the oval, in dB, each at most 100: what must not change there."""

    higher_is_better = True

    def update(self, results: Tensor, originals: Tensor) -> None:
        """Adds pairs of pictures.

        Raises:
            InputError: other shapes.
        """
        _check(results, originals)
        squared = (_levels(results) - _levels(originals)).square().mean(dim=1)
        error = squared @ squared.new_tensor(_outside())
        decibels = 10 * torch.log10(255.0**2 / error.clamp(min=1e-30))
        self.keep(torch.where(error.isfinite(), decibels.clamp(max=PSNR_CEILING), math.nan))


class SeamStep(MeanMetric):
    """Mean over faces of the colour step across the oval's border in the result, minus that in the original, levels.

    The step: mean over 36 sectors and 3 colours of the absolute difference between the mean colour of the ring from .86
    to .96 and that of the ring from 1.04 to 1.14.
    """

    def update(self, results: Tensor, originals: Tensor) -> None:
        """Adds pairs of pictures.

        Raises:
            InputError: other shapes.
        """
        _check(results, originals)
        first, second = ((_levels(p) @ _levels(p).new_tensor(_across())).abs() for p in (results, originals))
        self.keep((first - second).mean(dim=(1, 2)))


class ToneShift(MeanMetric):
    """Mean over faces of the absolute difference of the mean colour inside the oval, mean of 3 colours, levels."""

    higher_is_better = False

    def update(self, results: Tensor, originals: Tensor) -> None:
        """Adds pairs of pictures.

        Raises:
            InputError: other shapes.
        """
        _check(results, originals)
        first, second = (_levels(p) @ _levels(p).new_tensor(_inside()) for p in (results, originals))
        self.keep((first - second).abs().mean(dim=1))


class MeshError(MeanMetric):
    """Mean over faces of the mean distance of the 468 points, percent of the original's outer eye corners' distance."""

    higher_is_better = False

    def update(self, results: Tensor, originals: Tensor) -> None:
        """Adds pairs of meshes: (B, 468, 2) each.

        Raises:
            InputError: other shapes.
        """
        check_pairs(results, originals, 3, "mesh points")
        moved = (results.double() - originals.double()).norm(dim=2).mean(dim=1)
        self.keep(100.0 * moved / eye_distance(originals.double()))


class GazeError(MeanMetric):
    """Mean over faces and both eyes of how far the iris moved in its eye, percent of the eye's width.

    An iris's place is that of its centre, seen from the middle between the eye's corners, along the line through them
    and across it, in widths of the eye.
    """

    higher_is_better = False

    def update(self, results: Tensor, result_irises: Tensor, originals: Tensor, original_irises: Tensor) -> None:
        """Adds pairs of faces: mesh points (B, 468, 2) and irises (B, 2, 5, 2) each.

        Raises:
            InputError: other shapes.
        """
        check_pairs(results, originals, 3, "mesh points")
        check_pairs(result_irises, original_irises, 4, "irises")
        first, second = _gaze(results, result_irises), _gaze(originals, original_irises)
        self.keep(100.0 * (first - second).norm(dim=2).mean(dim=1))


def _gaze(points: Tensor, irises: Tensor) -> Tensor:
    """Places of the irises' centres in their eyes: (B, 2, 2), float64."""
    corners = points.double()[:, torch.tensor(EYE_CORNERS, device=points.device)]
    across = corners[:, :, 1] - corners[:, :, 0]
    offset = irises[:, :, 0].double() - corners.mean(dim=2)
    # (offset / across) as complex numbers: turned and scaled into the eye's own frame.
    along = (offset * across).sum(dim=2)
    beside = across[..., 0] * offset[..., 1] - across[..., 1] * offset[..., 0]
    return torch.stack([along, beside], dim=2) / across.square().sum(dim=2, keepdim=True)


def expression_values(points: Tensor, what: Expression) -> Tensor:
    """How far the mouth or the eyes are open, or how wide the mouth is, in distances of the outer eye corners.

    Args:
        points: (B, 468, 2).
        what: "mouth": lips apart (13, 14); "eyes": lids apart (159, 145 and 386, 374, summed); "smile": width of the
            mouth (61, 291).

    Returns:
        (B,) float64.
    """
    places = points.double()
    gaps = [(places[:, first] - places[:, second]).norm(dim=1) for first, second in _GAPS[what]]
    return torch.stack(gaps).sum(dim=0) / eye_distance(places)


class ExpressionKept(Metric):
    """Correlation over faces of an expression's measure in the original and in the result.

    Args:
        what: "mouth", "eyes" or "smile"; see ``expression_values``.

    Raises:
        InputError: another name.
    """

    full_state_update = False
    higher_is_better = True

    originals: list[Tensor] | Tensor
    results: list[Tensor] | Tensor
    missing: Tensor

    def __init__(self, what: Expression) -> None:
        super().__init__()
        if what not in get_args(Expression):
            raise InputError(f"there is no measure {what!r}; choose one of: {', '.join(get_args(Expression))}")
        self.what = what
        self.set_dtype(torch.float64)
        self.add_state("originals", [], dist_reduce_fx="cat")
        self.add_state("results", [], dist_reduce_fx="cat")
        self.add_state("missing", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, results: Tensor, originals: Tensor) -> None:
        """Adds pairs of meshes: (B, 468, 2) each.

        Raises:
            InputError: other shapes.
        """
        check_pairs(results, originals, 3, "mesh points")
        if not isinstance(self.originals, list) or not isinstance(self.results, list):
            raise InputError("this metric's processes are summed already: reset it before it is fed again")
        first, second = expression_values(originals, self.what), expression_values(results, self.what)
        known = first.isfinite() & second.isfinite()
        self.missing += int((~known).sum())
        self.originals.append(first[known])
        self.results.append(second[known])

    def _pairs(self) -> Floats:
        """(N, 2), sorted, so that neither chunks nor processes change the interval."""
        pairs = np.stack([collected(self.originals).cpu().numpy(), collected(self.results).cpu().numpy()], axis=1)
        return pairs[np.lexsort(pairs.T)]

    def compute(self) -> Tensor:
        """The correlation, float64; NaN with fewer than 3 faces, or where all are alike."""
        return torch.tensor(bootstrap_correlation(self._pairs(), rounds=1).value, dtype=torch.float64)

    def interval(self, seed: int = 0) -> Interval:
        """The correlation with its bootstrap interval, over all processes."""
        with self.sync_context(should_sync=self._to_sync):
            return bootstrap_correlation(self._pairs(), seed)


def oval_features(network: LPIPS, pictures: Tensor) -> Tensor:
    """What AlexNet sees in the oval: its fifth layer, averaged over the places whose middle lies inside.

    Args:
        network: holds AlexNet's weights (``facezoo.frozen.load_lpips``).
        pictures: (B, 3, 128, 128) in [-1, 1].

    Returns:
        (B, 256) float32.

    Raises:
        InputError: other shapes.
    """
    _check(pictures, pictures)
    places = _CONV5_FIRST + _CONV5_STEP * np.arange(_CONV5_SIDE)
    inside = oval_radius(places[None, :], places[:, None]) < _INSIDE
    features = network.activations(pictures.float())[4]
    weights = features.new_tensor(inside / inside.sum())
    return (features * weights).sum(dim=(2, 3))


class HalvesFrechet(Metric):
    """Frechet distance of one half's results and the other half's originals, mean of both ways.

    Nobody's original is compared with their own result, so a method gains nothing by changing little. ``real`` is the
    distance of the two halves' originals, which is what perfect results would have. Sums are kept as in
    ``FrechetDistance``.

    Args:
        size: numbers a face.
    """

    full_state_update = False
    higher_is_better = False

    sums: Tensor
    products: Tensor
    counts: Tensor
    missing: Tensor

    def __init__(self, size: int = OVAL_FEATURES) -> None:
        super().__init__()
        self.size = size
        self.set_dtype(torch.float64)
        # Rows: results of the first and of the second half, then originals of both.
        self.add_state("sums", torch.zeros(4, size, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("products", torch.zeros(4, size, size, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(4, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("missing", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, results: Tensor, originals: Tensor, second_half: Tensor) -> None:
        """Adds faces.

        Args:
            results: (B, size) features; a row with a value that is not finite counts in ``missing``.
            originals: (B, size), all finite.
            second_half: (B,) bool, which half a face belongs to: all pictures of a person to one.

        Raises:
            InputError: other shapes, or originals that are not finite.
        """
        check_pairs(results, originals, 2, "features")
        if results.shape[1] != self.size or second_half.shape != results.shape[:1]:
            raise InputError(f"features must be (B, {self.size}) with one half each, not {tuple(results.shape)}")
        if not originals.isfinite().all():
            raise InputError("the originals' features hold values that are not finite")
        known = results.isfinite().all(dim=1)
        self.missing += int((~known).sum())
        for row, (vectors, chosen) in enumerate(
            (vectors, (second_half == bool(half)) & here)
            for vectors, here in ((results, known), (originals, torch.ones_like(known)))
            for half in (0, 1)
        ):
            rows = vectors[chosen].detach().to(self.sums)
            self.sums[row] += rows.sum(0)
            self.products[row] += rows.T @ rows
            self.counts[row] += len(rows)

    def compute(self) -> Tensor:
        """The distance, float64; NaN with fewer than two faces in a half."""
        return torch.tensor(sum(self._distance(*rows) for rows in ((0, 3), (1, 2))) / 2, dtype=torch.float64)

    def real(self) -> float:
        """The distance of the two halves' originals, over all processes; NaN with fewer than two faces in one."""
        with self.sync_context(should_sync=self._to_sync):
            return self._distance(2, 3)

    def _distance(self, first: int, second: int) -> float:
        if int(self.counts[[first, second]].min()) < 2:
            return math.nan
        found = (moments(self.sums[row], self.products[row], int(self.counts[row])) for row in (first, second))
        (mean1, covariance1), (mean2, covariance2) = found
        return gaussian_distance(mean1, covariance1, mean2, covariance2)
