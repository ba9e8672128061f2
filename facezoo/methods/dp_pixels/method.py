"""DP-Pix, DP-Blur and DP-SVD (Fan, DBSec 2018; PETS workshop / ICME 2019; book, sections 3.1.1 and 5.2.3).

The book names no neighbourhood and no sensitivity. Here they are, for a crop of 128 x 128 pixels and three channels:

* DP-Pix, DP-Blur: two crops are neighbours when they differ in at most m pixels (Fan's m-neighbourhood). A pixel moves
  the mean of its cell by at most the range over the cell's area, in each of three channels.
* DP-SVD: metric privacy. Two crops *with the same singular vectors* at l1 distance d between their kept singular values
  give results whose probabilities differ by at most e^(epsilon d). Nothing is promised for crops with other singular
  vectors: these are published as they are.

Deviations: colour instead of grey; noise from a lattice (see `facezoo.privacy.randomness`); DP-SVD draws independent
Laplace noise (metric l1) where Fan draws a multivariate one (metric l2): by |d|_2 <= |d|_1 <= sqrt(k) |d|_2 the promise
in l2 is sqrt(k) epsilon with k kept values in all.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from facezoo.errors import InputError
from facezoo.methods.base import ClassicMethod, FaceContext
from facezoo.methods.dp_pixels.config import DPBlurOptions, DPPixOptions, DPSvdOptions
from facezoo.methods.options import Options
from facezoo.privacy.accounting import Cost
from facezoo.privacy.guarantee import Guarantee
from facezoo.privacy.mechanisms import GaussianMechanism, LaplaceMechanism
from facezoo.privacy.randomness import BitSource
from facezoo.privacy.release import SEEDED_REASON, source_for
from facezoo.privacy.sensitivity import Norm, Sensitivity

__all__ = ["DPBlur", "DPPix", "DPSvd", "cell_means", "cell_sensitivity", "gaussian_blurred"]

_SIZE = 128
_RANGE = 2.0
_CHANNELS = 3
AnyOptions = TypeVar("AnyOptions", bound=Options)


def _owners(block: int) -> Tensor:
    """(S,) the cell of each pixel along a side; cells are whole pixels, and equal where the block divides the side."""
    cells = math.ceil(_SIZE / block)
    return torch.arange(_SIZE) * cells // _SIZE


def cell_means(face: Tensor, block: int) -> Tensor:
    """(3, S, S) -> (3, C, C), the mean of each cell, in float64."""
    owner = _owners(block)
    member = torch.nn.functional.one_hot(owner).T.double()
    member = member / member.sum(1, keepdim=True)
    return member @ face.double().cpu() @ member.T


def cell_sensitivity(block: int, pixels: int, norm: Norm) -> Sensitivity:
    """How far all cell means together move when at most this many pixels change, for values in [-1, 1].

    A cell's mean moves by at most 2 and all of them together by at most 2 pixels / (area of the smallest cell) = T in
    each channel. In l1 that is min(T, 2 cells); in l2 it is greatest with the changes in as few cells as possible.
    """
    counts = torch.bincount(_owners(block))
    area, cells = int(counts.min()) ** 2, len(counts) ** 2
    total = min(_RANGE * pixels / area, _RANGE * cells)
    if norm == "l1":
        value = _CHANNELS * total
    else:
        whole = math.floor(total / _RANGE)
        value = math.sqrt(_CHANNELS * (whole * _RANGE**2 + (total - whole * _RANGE) ** 2))
    return Sensitivity(value, norm, True, f"{pixels} pixels change, cells of at least {area} pixels, three channels")


def gaussian_blurred(face: Tensor, sigma: float) -> Tensor:
    """(3, S, S) blurred along rows and columns, mirrored at the border."""
    radius = min(math.ceil(3 * sigma), _SIZE - 1)
    places = torch.arange(-radius, radius + 1, dtype=face.dtype)
    kernel = torch.exp(-0.5 * (places / sigma) ** 2)
    kernel = (kernel / kernel.sum()).view(1, 1, -1, 1)
    for _ in range(2):
        padded = torch.nn.functional.pad(face[:, None], (0, 0, radius, radius), mode="reflect")
        face = torch.nn.functional.conv2d(padded, kernel)[:, 0].transpose(1, 2)
    return face


class _PrivatePixels(ClassicMethod[AnyOptions]):
    """What the three share: crops of 128, one face after another, and the promise in the record."""

    cover = "sharp"
    crop_size = _SIZE

    def change(self, faces: Tensor, context: FaceContext, options: AnyOptions) -> Tensor:
        """Each face on its own; see `ClassicMethod.change`."""
        results = []
        for face in faces:
            pixels = np.ascontiguousarray(face.contiguous().float().cpu().numpy()).tobytes()
            source = source_for(str(vars(options)["randomness"]), context.seed, pixels)
            results.append(self.private(face.double().cpu(), options, source))
        return torch.stack(results).to(faces)

    def private(self, face: Tensor, options: AnyOptions, source: BitSource) -> Tensor:
        """(3, 128, 128) float64 in [-1, 1] -> the same shape, with noise."""
        raise InputError(f"{self.name} is not a method")

    def options_record(self, context: FaceContext) -> dict[str, object]:
        """Options, and the guarantee in words."""
        promise = self.guarantee(context)
        return {**super().options_record(context), **(promise.to_record() if promise else {})}


def _promise(
    options: Any, cost: Cost, protects: str, neighbours: str, reason: str, *, countable: bool = True
) -> Guarantee:
    secure = options.randomness == "secure"
    return Guarantee(
        cost=cost,
        protects=protects,
        neighbours=neighbours,
        leaks="the person: two pictures of two people differ in far more than the neighbours do",
        holds=secure,
        reason=reason if secure else SEEDED_REASON,
        countable=countable,
    )


class DPPix(_PrivatePixels[DPPixOptions]):
    """Cell means with Laplace noise: epsilon-differentially private for crops that differ in m pixels."""

    name: ClassVar[str] = "dp_pix"
    options_class = DPPixOptions

    def guarantee(self, context: FaceContext) -> Guarantee:
        """See ``Method.guarantee``."""
        options = cast(DPPixOptions, self.resolve_options(context))
        return _promise(
            options,
            Cost(options.epsilon),
            "single pixels of the crop",
            f"two crops that differ in at most {options.pixels} of {_SIZE * _SIZE} pixels",
            f"sensitivity: {cell_sensitivity(options.block, options.pixels, 'l1').reason}",
        )

    def private(self, face: Tensor, options: DPPixOptions, source: BitSource) -> Tensor:
        """See `_PrivatePixels.private`."""
        means = cell_means(face.clamp(-1, 1), options.block)
        bound = cell_sensitivity(options.block, options.pixels, "l1")
        noisy = LaplaceMechanism(options.epsilon, bound, means.numel()).release(means, source)
        owner = _owners(options.block)
        return noisy.clamp(-1, 1)[:, owner][:, :, owner]


class DPBlur(_PrivatePixels[DPBlurOptions]):
    """Cell means with Gaussian noise, enlarged and blurred: (epsilon, delta) for crops that differ in m pixels."""

    name: ClassVar[str] = "dp_blur"
    options_class = DPBlurOptions

    def guarantee(self, context: FaceContext) -> Guarantee:
        """See ``Method.guarantee``."""
        options = cast(DPBlurOptions, self.resolve_options(context))
        return _promise(
            options,
            Cost(options.epsilon, options.delta),
            "single pixels of the crop",
            f"two crops that differ in at most {options.pixels} of {_SIZE * _SIZE} pixels",
            f"sensitivity: {cell_sensitivity(options.block, options.pixels, 'l2').reason}",
        )

    def private(self, face: Tensor, options: DPBlurOptions, source: BitSource) -> Tensor:
        """See `_PrivatePixels.private`."""
        means = cell_means(face.clamp(-1, 1), options.block)
        bound = cell_sensitivity(options.block, options.pixels, "l2")
        noisy = GaussianMechanism(options.epsilon, options.delta, bound, means.numel()).release(means, source)
        owner = _owners(options.block)
        return gaussian_blurred(noisy.clamp(-1, 1)[:, owner][:, :, owner], options.sigma)


class DPSvd(_PrivatePixels[DPSvdOptions]):
    """The first singular values with Laplace noise, the singular vectors as they are: metric privacy."""

    name: ClassVar[str] = "dp_svd"
    options_class = DPSvdOptions

    def guarantee(self, context: FaceContext) -> Guarantee:
        """See ``Method.guarantee``; its epsilon is for singular values one 8-bit level apart, so no budget uses it."""
        options = cast(DPSvdOptions, self.resolve_options(context))
        return _promise(
            options,
            Cost(options.epsilon),
            f"the first {options.rank} singular values of each channel; not the singular vectors, which draw the face",
            "two crops with the same singular vectors, for each 8-bit level of l1 distance between the values",
            "metric privacy: the loss grows with the distance",
            countable=False,
        )

    def private(self, face: Tensor, options: DPSvdOptions, source: BitSource) -> Tensor:
        """See `_PrivatePixels.private`."""
        left, values, right = torch.linalg.svd((face + 1) * 127.5, full_matrices=False)
        kept = values[:, : options.rank]
        unit = Sensitivity(1.0, "l1", True, "one 8-bit level of distance")
        noisy = LaplaceMechanism(options.epsilon, unit, kept.numel()).release(kept, source).clamp(min=0)
        picture = (left[:, :, : options.rank] * noisy[:, None]) @ right[:, : options.rank]
        return picture / 127.5 - 1
