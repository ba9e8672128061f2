"""Differentiable stand-ins for what a saved file does to a picture, and the loss of a picture read back from it.

Where a mixed-precision run would round to bfloat16 what must be exact (a variance as a difference of large numbers, the
place that a pixel is read from, the transform of a JPEG file) it is switched off.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional
from torchmetrics.functional.image import structural_similarity_index_measure

from facezoo.errors import InputError


def reveal_loss(result: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Mean absolute error and ``1 - SSIM`` over the batch, pictures in [-1, 1]."""
    with torch.autocast(result.device.type, enabled=False):
        ssim = structural_similarity_index_measure(result, target, data_range=2.0, sigma=0.8)
    return functional.l1_loss(result, target), 1 - cast(Tensor, ssim)


def jitter(faces: Tensor, offsets: Tensor) -> Tensor:
    """Shifts each face by ``offsets``, ``(B, 2)`` as parts of the size, with bilinear resampling and edge padding."""
    theta = torch.zeros(len(faces), 2, 3, dtype=faces.dtype, device=faces.device)
    theta[:, 0, 0] = theta[:, 1, 1] = 1
    theta[:, :, 2] = 2 * offsets
    with torch.autocast(faces.device.type, enabled=False):
        grid = functional.affine_grid(theta, list(faces.shape), align_corners=False)
        return functional.grid_sample(faces, grid, padding_mode="border", align_corners=False)


def to_8_bit(faces: Tensor) -> Tensor:
    """Clips to [-1, 1] and rounds to 256 levels; the gradient passes the rounding unchanged."""
    clipped = faces.clamp(-1, 1)
    rounded = ((clipped + 1) * 127.5).round() / 127.5 - 1
    return clipped + (rounded - clipped).detach()


def jpeg_codec() -> Callable[[Tensor, Tensor], Tensor]:
    """Kornia's differentiable JPEG: pictures ``(B, 3, H, W)`` in [0, 1] and qualities ``(B,)`` -> pictures.

    Raises:
        InputError: kornia is not installed.
    """
    try:
        from kornia.enhance import jpeg_codec_differentiable
    except ImportError as error:
        raise InputError(
            "simulating JPEG needs kornia: pip install 'facezoo[train]', or set config.jpeg_share=0"
        ) from error
    return cast(Callable[[Tensor, Tensor], Tensor], jpeg_codec_differentiable)


def through_jpeg(faces: Tensor, quality: Tensor) -> Tensor:
    """A JPEG file of ``quality`` (``(B,)``, 1..100; 4:2:0 colour), differentiable (kornia).

    Raises:
        InputError: kornia is not installed.
    """
    jpeg_codec_differentiable = jpeg_codec()
    with torch.autocast(faces.device.type, enabled=False):
        decoded: Tensor = jpeg_codec_differentiable((faces.clamp(-1, 1) + 1) / 2, quality)
    return decoded * 2 - 1


def through_resize(faces: Tensor, side: int) -> Tensor:
    """Resizes to ``side`` pixels and back, bicubic, anti-aliased when shrinking."""
    size = faces.shape[-1]
    other = functional.interpolate(faces, size=(side, side), mode="bicubic", antialias=side < size, align_corners=False)
    return functional.interpolate(other, size=(size, size), mode="bicubic", antialias=side > size, align_corners=False)
