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


def gaussian_matrix(targets: Matrix, sources: Matrix, size: float, sigma: float) -> Matrix:
    """Gaussian weights from places to places, on a line whose picture goes on mirrored beyond 0 and ``size``.

    Args:
        targets: (T,) where values are wanted, within 0..size; pixel i has its centre at i + 0.5.
        sources: (N,) where values are, evenly spaced over 0..size.
        size: length of the line.
        sigma: standard deviation, above 0, in the same unit.

    Returns:
        (T, N); rows sum to 1.
    """
    matrix = np.zeros((len(targets), len(sources)))
    # Mirror images repeat with the period 2 * size; those further away than six deviations weigh nothing.
    turns = math.ceil(3 * sigma / size) + 1
    for turn in range(-turns, turns + 1):
        for image in (sources, -sources):
            distance = targets[:, None] - (image[None, :] + 2 * size * turn)
            matrix += np.exp(-0.5 * (distance / sigma) ** 2)
    normalised: Matrix = matrix / matrix.sum(1, keepdims=True)
    return normalised


@functools.lru_cache(maxsize=32)
def _gaussian_factors(size: int, sigma: float) -> tuple[Tensor, ...]:
    """Factors whose product (left to right) is the blur of ``size`` pixels by ``sigma`` pixels.

    A wide blur is done as two narrower ones of sigma / sqrt(2) each, the first from pixels to a few places, the second
    from there back to pixels. A Gaussian that is sampled once a deviation is known exactly for every practical
    purpose (the error falls with exp(-2 pi^2)), so the few places are as good as all pixels.
    """
    pixels: Matrix = np.arange(size, dtype=np.float64) + 0.5
    cells = math.ceil(size * math.sqrt(2) / sigma)
    if cells > size // 2:
        return (torch.from_numpy(gaussian_matrix(pixels, pixels, size, sigma)),)
    half = sigma / math.sqrt(2)
    places: Matrix = (np.arange(cells, dtype=np.float64) + 0.5) * (size / cells)
    return (
        torch.from_numpy(gaussian_matrix(pixels, places, size, half)),
        torch.from_numpy(gaussian_matrix(places, pixels, size, half)),
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
    cover = "sharp"  # a mosaic that fades out would show the face between its cells
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
