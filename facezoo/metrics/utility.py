"""What is left for other uses: detection, places, head pose, expression, attributes; as ``torchmetrics.Metric``.

Each compares the result with the *original*. A face that is not found in the result is given as NaN: the distance
counts it in ``missing`` (there is no distance), and `DetectionRate` beside it as a failure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

import torch
from torch import Tensor
from torchmetrics import Metric

from facezoo.errors import InputError
from facezoo.metrics.cases import MeanMetric, RateMetric, check_pairs
from facezoo.metrics.intervals import Interval, wilson

__all__ = [
    "EXPRESSION_FEATURES",
    "SUBSETS_68",
    "AttributeAccuracy",
    "BoxDistance",
    "DetectionRate",
    "ExpressionDistance",
    "LandmarkDistance",
    "PoseDistance",
    "landmark_expression",
]

SUBSETS_68: Final[dict[str, tuple[int, ...]]] = {
    "all": tuple(range(68)),
    "contour": tuple(range(17)),
    "brows": tuple(range(17, 27)),
    "nose": tuple(range(27, 36)),
    "eyes": tuple(range(36, 48)),
    "mouth": tuple(range(48, 68)),
}
"""Indices of the 68 points (iBUG's order), as the book's chapter 6 groups them."""

EXPRESSION_FEATURES: Final = (
    "left eye open",
    "right eye open",
    "left brow raised",
    "right brow raised",
    "brows apart",
    "mouth open",
    "mouth wide",
    "lips pressed",
    "left mouth corner raised",
    "right mouth corner raised",
)
"""Names of the numbers of `landmark_expression`."""


class DetectionRate(RateMetric):
    """Part of the pictures in which a face is found (FDR, DR; book, Eq 6.24)."""

    higher_is_better = True

    def update(self, found: Tensor) -> None:
        """Adds pictures: (B,) bool. A face for which the method failed is not found.

        Raises:
            InputError: another shape.
        """
        if found.ndim != 1:
            raise InputError(f"one flag a picture is needed, not {tuple(found.shape)}")
        self.count(found.bool())


class BoxDistance(MeanMetric):
    """Mean absolute difference of the four coordinates of the face's box, in pixels (iFADIT paper, Table 2)."""

    higher_is_better = False

    def update(self, results: Tensor, originals: Tensor) -> None:
        """Adds boxes: two times (B, 4) as x0, y0, x1, y1; NaN where no face was found.

        Raises:
            InputError: other shapes.
        """
        check_pairs(results, originals, 2, "boxes")
        self.keep((results.double() - originals.double()).abs().mean(1))


class LandmarkDistance(MeanMetric):
    """Mean distance between the same points of two faces, in pixels.

    Args:
        norm: ``l2``: Euclidean distance of the points (AKD, Pixel-dis; book, 8.6.1 and 6.4.1); ``l1``: mean absolute
            difference of their coordinates (iFADIT paper, Table 2).
        points: indices of the points that count; None: all of them. See `SUBSETS_68`.

    Raises:
        InputError: unknown norm, or an empty choice.
    """

    higher_is_better = False

    def __init__(self, norm: Literal["l1", "l2"] = "l2", points: Sequence[int] | None = None) -> None:
        super().__init__()
        if norm not in ("l1", "l2"):
            raise InputError(f"the norm must be 'l1' or 'l2', not {norm!r}")
        if points is not None and not points:
            raise InputError("a landmark distance needs at least one point")
        self.norm = norm
        self.points = None if points is None else tuple(points)

    def update(self, results: Tensor, originals: Tensor) -> None:
        """Adds faces: two times (B, P, 2); NaN where no face was found.

        Raises:
            InputError: other shapes, or a chosen point that is not there.
        """
        check_pairs(results, originals, 3, "landmarks")
        if results.shape[2] != 2:
            raise InputError(f"landmarks need (B, P, 2), not {tuple(results.shape)}")
        difference = results.double() - originals.double()
        if self.points is not None:
            if max(self.points) >= results.shape[1]:
                raise InputError(f"point {max(self.points)} is asked for, and there are {results.shape[1]}")
            difference = difference[:, list(self.points)]
        self.keep(difference.norm(dim=2).mean(1) if self.norm == "l2" else difference.abs().mean((1, 2)))


class PoseDistance(MeanMetric):
    """Distance of two head poses, in degrees.

    Args:
        norm: ``l1``: mean absolute difference of yaw, pitch and roll; ``l2``: Euclidean norm (POSE; book, 7.4.1).

    Raises:
        InputError: unknown norm.
    """

    higher_is_better = False

    def __init__(self, norm: Literal["l1", "l2"] = "l1") -> None:
        super().__init__()
        if norm not in ("l1", "l2"):
            raise InputError(f"the norm must be 'l1' or 'l2', not {norm!r}")
        self.norm = norm

    def update(self, results: Tensor, originals: Tensor) -> None:
        """Adds heads: two times (B, 3), degrees; NaN where there is none. Angles are compared round the circle.

        Raises:
            InputError: other shapes.
        """
        check_pairs(results, originals, 2, "poses")
        difference = results.double() - originals.double()
        difference = torch.remainder(difference + 180, 360) - 180
        self.keep(difference.abs().mean(1) if self.norm == "l1" else difference.norm(dim=1))


class ExpressionDistance(MeanMetric):
    """Euclidean distance of two expression vectors (EXP; book, 7.4.1), of whatever features: name them beside it.

    The book takes DECA's expression code, whose weights may not be passed on. `landmark_expression` gives vectors
    without it: lengths between landmarks in parts of the distance of the eyes.
    """

    higher_is_better = False

    def update(self, results: Tensor, originals: Tensor) -> None:
        """Adds faces: two times (B, D); NaN where there is none.

        Raises:
            InputError: other shapes.
        """
        check_pairs(results, originals, 2, "expression vectors")
        self.keep((results.double() - originals.double()).norm(dim=1))


def landmark_expression(points: Tensor) -> Tensor:
    """How eyes, brows and mouth stand, from 68 landmarks: `EXPRESSION_FEATURES`.

    Lengths are in parts of the distance between the eyes' centres and along the face's own axes (the line of the eyes
    and its normal), so that place, size and roll of the face do not count.

    Args:
        points: (B, 68, 2) in any unit, iBUG's order, y downwards.

    Returns:
        (B, 10), float64. "Raised" grows upwards.

    Raises:
        InputError: another shape.
    """
    if points.ndim != 3 or points.shape[1:] != (68, 2):
        raise InputError(f"an expression needs (B, 68, 2) landmarks, not {tuple(points.shape)}")
    p = points.double()
    left, right = p[:, 36:42].mean(1), p[:, 42:48].mean(1)
    across = right - left
    unit = across.norm(dim=1, keepdim=True).clamp(min=1e-9)
    across = across / unit
    down = torch.stack((-across[:, 1], across[:, 0]), 1)
    local = p - ((left + right) / 2)[:, None]
    x, y = (torch.einsum("bpi,bi->bp", local, axis) / unit for axis in (across, down))

    def opened(upper: Sequence[int], lower: Sequence[int]) -> Tensor:
        return y[:, list(lower)].mean(1) - y[:, list(upper)].mean(1)

    lips = y[:, [51, 57, 62, 66]].mean(1)
    return torch.stack(
        (
            opened((37, 38), (40, 41)),
            opened((43, 44), (46, 47)),
            opened((17, 18, 19, 20, 21), (36, 39)),
            opened((22, 23, 24, 25, 26), (42, 45)),
            x[:, 22] - x[:, 21],
            opened((61, 62, 63), (65, 66, 67)),
            x[:, 54] - x[:, 48],
            opened((50, 51, 52), (61, 62, 63)) + opened((65, 66, 67), (56, 57, 58)),
            lips - y[:, 48],
            lips - y[:, 54],
        ),
        1,
    )


class AttributeAccuracy(Metric):
    """Part of the faces whose attribute is read from the result as it is from the original (book, Eq 4.14).

    Each attribute has its own rate; `compute` gives their mean. A label of -1 (unknown) is left out; a prediction of
    -1 for a known label (no face was found, say) is wrong.

    Args:
        names: of the attributes, in the order of the columns.

    Raises:
        InputError: no names, or one twice.
    """

    full_state_update = False
    higher_is_better = True

    hits: Tensor
    totals: Tensor

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        if not names or len(set(names)) != len(names):
            raise InputError(f"attributes need different names, not {list(names)}")
        self.names = tuple(names)
        self.add_state("hits", torch.zeros(len(names), dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("totals", torch.zeros(len(names), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, predicted: Tensor, labels: Tensor) -> None:
        """Adds faces: two times (B, A), whole numbers.

        Raises:
            InputError: other shapes.
        """
        check_pairs(predicted, labels, 2, "attributes")
        if labels.shape[1] != len(self.names):
            raise InputError(f"{len(self.names)} attributes are measured, not {labels.shape[1]}")
        known = labels >= 0
        self.hits += ((predicted == labels) & known).sum(0).to(self.hits)
        self.totals += known.sum(0).to(self.totals)

    def compute(self) -> Tensor:
        """Mean of the attributes' rates, float64; attributes without a label are left out, NaN without any."""
        known = self.totals > 0
        return (self.hits[known].double() / self.totals[known]).mean()

    def intervals(self) -> dict[str, Interval]:
        """Each attribute's rate with Wilson's interval, over all processes."""
        with self.sync_context(should_sync=self._to_sync):
            pairs = zip(self.names, self.hits.tolist(), self.totals.tolist(), strict=True)
            return {name: wilson(hits, total) for name, hits, total in pairs}
