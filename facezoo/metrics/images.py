"""How near two pictures are: PSNR and SSIM, one number a picture."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from facezoo.errors import InputError

__all__ = ["PSNR_CEILING", "psnr", "ssim"]

#: PSNR of equal pictures, in dB. It would be infinite, and a mean with it meaningless; 8-bit pictures that differ in
#: one value of a 128 x 128 picture have 95.
PSNR_CEILING = 100.0


def _checked(first: Tensor, second: Tensor) -> None:
    if first.ndim != 4 or first.shape != second.shape:
        raise InputError(
            f"Pictures must be two batches of one shape, not {tuple(first.shape)} and {tuple(second.shape)}."
        )


def psnr(first: Tensor, second: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each pair.

    Args:
        first: (B, C, H, W) in [-1, 1].
        second: the same shape and range.

    Returns:
        (B,) in dB; 10 log10(2^2 / mean squared error), at most ``PSNR_CEILING``.

    Raises:
        InputError: other shapes.
    """
    _checked(first, second)
    error = (first.double() - second.double()).square().mean((1, 2, 3))
    return (10 * torch.log10(4.0 / error.clamp(min=1e-30))).clamp(max=PSNR_CEILING)


def ssim(first: Tensor, second: Tensor) -> Tensor:
    """Structural similarity of each pair (Wang et al. 2004): Gaussian window of 11 pixels, sigma 1.5.

    Pictures are mirrored at their border, as torchmetrics does; the paper and scikit-image leave the border out, which
    gives slightly other values.

    Args:
        first: (B, C, H, W) in [-1, 1]; H, W >= 11.
        second: the same shape and range.

    Returns:
        (B,), at most 1.

    Raises:
        InputError: other shapes, or pictures smaller than the window.
    """
    _checked(first, second)
    if min(first.shape[2:]) < 11:
        raise InputError(f"SSIM needs pictures of at least 11 pixels, not {tuple(first.shape[2:])}.")
    result = structural_similarity_index_measure(first.float(), second.float(), data_range=2.0, reduction="none")
    if not isinstance(result, Tensor):
        raise InputError("SSIM gave more than the similarity: unexpected version of torchmetrics.")
    return result.reshape(-1)
