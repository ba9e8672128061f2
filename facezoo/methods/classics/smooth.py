"""Gaussian blur, low resolution and pixelation: linear maps along rows and columns.

Each of them is ``left @ picture @ left.T`` with a small matrix, so a batch costs a few matrix products whatever the
strength: a blur of 40 pixels takes no longer than one of 4.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from facezoo.methods.base import REFERENCE_SIZE, ClassicMethod, FaceContext
from facezoo.methods.classics.config import GaussianBlurOptions, LowResolutionOptions, PixelationOptions

__all__ = ["GaussianBlur", "LowResolution", "Pixelation", "area_matrix", "gaussian_matrix", "linear_matrix"]

Matrix = npt.NDArray[np.float64]

_REDUCED_SIGMA = 3.0
"""A wide Gaussian is computed on a shrunk crop where its deviation is still at least this many (small) pixels.

The error against the exact blur is then below half an 8-bit level (tests/methods/test_classics.py), the cost a third.
"""


def area_matrix(size: int, cells: int) -> Matrix:
    """Averaging of ``size`` pixels into ``cells`` equal parts, with fractional coverage at their edges.

    Args:
        size: pixels, at least 1.
        cells: parts, 1..size.

    Returns:
        (cells, size); rows sum to 1.
    """
    edges = np.arange(cells + 1, dtype=np.float64) * (size / cells)
    pixels = np.arange(size, dtype=np.float64)
    covered = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    matrix: Matrix = np.clip(covered, 0, None) * (cells / size)
    return matrix


def linear_matrix(size: int, cells: int) -> Matrix:
    """Linear interpolation from the centres of ``cells`` equal parts to ``size`` pixels, constant beyond the ends.

    Returns:
        (size, cells); rows sum to 1.
    """
    position = np.clip((np.arange(size) + 0.5) * (cells / size) - 0.5, 0, cells - 1)
    left = np.minimum(np.floor(position).astype(int), cells - 1)
    right = np.minimum(left + 1, cells - 1)
    share = position - left
    matrix = np.zeros((size, cells))
    rows = np.arange(size)
    np.add.at(matrix, (rows, left), 1 - share)
    np.add.at(matrix, (rows, right), share)
    return matrix


def gaussian_matrix(size: int, sigma: float) -> Matrix:
    """Gaussian blur of ``size`` pixels whose picture goes on mirrored beyond the border.

    Args:
        size: pixels.
        sigma: standard deviation in pixels, above 0.

    Returns:
        (size, size); rows sum to 1. Tails beyond four deviations are cut.
    """
    reach = max(1, math.ceil(4 * sigma))
    offsets = np.arange(-reach, reach + 1)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    weights /= weights.sum()
    # Mirrored with the border pixel repeated (period 2 * size): also right when the tail is longer than the crop.
    place = (np.arange(size)[:, None] + offsets) % (2 * size)
    place = np.where(place >= size, 2 * size - 1 - place, place)
    matrix = np.zeros((size, size))
    np.add.at(matrix, (np.arange(size)[:, None], place), weights)
    return matrix


@functools.lru_cache(maxsize=32)
def _gaussian_factors(size: int, sigma: float) -> tuple[Tensor, ...]:
    """Factors whose product (left to right) is the blur of ``size`` pixels: one, or enlarge and (blur and shrink)."""
    cells = max(1, math.ceil(size * _REDUCED_SIGMA / sigma))
    if cells > size // 2:
        return (torch.from_numpy(gaussian_matrix(size, sigma)),)
    factor = size / cells
    # Averaging over a cell and linear interpolation blur too (by 1/12 and 1/6 cells squared): taken off the Gaussian.
    inner = math.sqrt((sigma / factor) ** 2 - 1 / 12 - 1 / 6)
    return (
        torch.from_numpy(linear_matrix(size, cells)),
        torch.from_numpy(gaussian_matrix(cells, inner) @ area_matrix(size, cells)),
    )


@functools.lru_cache(maxsize=32)
def _low_resolution_factors(size: int, cells: int) -> tuple[Tensor, ...]:
    cells = min(cells, size)
    return torch.from_numpy(linear_matrix(size, cells)), torch.from_numpy(area_matrix(size, cells))


@functools.lru_cache(maxsize=32)
def _pixelation_factors(size: int, cells: int) -> tuple[Tensor, ...]:
    # Whole pixels only: a pixel shared between two cells would carry detail of one into the other.
    owner = np.arange(size) * cells // size
    member = (owner[None, :] == np.arange(cells)[:, None]).astype(np.float64)
    return torch.from_numpy(member.T.copy()), torch.from_numpy(member / member.sum(1, keepdims=True))


def _apply(faces: Tensor, factors: tuple[Tensor, ...]) -> Tensor:
    """Apply the product of ``factors`` to the columns and rows of every channel; smallest intermediate first."""
    result = faces
    for factor in reversed(factors):
        matrix = factor.to(device=faces.device, dtype=faces.dtype)
        result = matrix @ result @ matrix.T
    return result


class GaussianBlur(ClassicMethod[GaussianBlurOptions]):
    """Gaussian blur (book, section 3.1.1); the crop is taken to go on mirrored beyond its border."""

    name = "gaussian_blur"
    options_class = GaussianBlurOptions

    def change(self, faces: Tensor, context: FaceContext, options: GaussianBlurOptions) -> Tensor:
        """Blur; see `ClassicMethod.change`."""
        size = faces.shape[-1]
        return _apply(faces, _gaussian_factors(size, options.sigma * size / REFERENCE_SIZE))


class LowResolution(ClassicMethod[LowResolutionOptions]):
    """Average down to a few cells, enlarge linearly (book, sections 3.1.1 and 5.4.5, after Ryoo et al.)."""

    name = "low_resolution"
    options_class = LowResolutionOptions

    def change(self, faces: Tensor, context: FaceContext, options: LowResolutionOptions) -> Tensor:
        """Shrink and enlarge; see `ClassicMethod.change`."""
        return _apply(faces, _low_resolution_factors(faces.shape[-1], options.cells))


class Pixelation(ClassicMethod[PixelationOptions]):
    """Square cells of one colour, their mean (book, section 3.1.1)."""

    name = "pixelation"
    options_class = PixelationOptions

    def change(self, faces: Tensor, context: FaceContext, options: PixelationOptions) -> Tensor:
        """Average cells; see `ClassicMethod.change`.

        The number of cells is 128 / block, rounded, whatever the crop's size, and a cell has at least two pixels a
        side unless a block of one pixel was asked for: a tiny crop is never handed back unchanged.
        """
        size = faces.shape[-1]
        cells = max(1, round(REFERENCE_SIZE / options.block))
        if options.block >= 2:
            cells = min(cells, max(1, size // 2))
        return _apply(faces, _pixelation_factors(size, min(cells, size)))
