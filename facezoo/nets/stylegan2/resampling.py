"""Resampling with the binomial filter [1, 3, 3, 1] and zeros beyond the border (Karras et al. 2020, section B).

The filter is [1, 1] convolved three times with itself, so each pass is an average over 2 x 2 pixels, and enlarging by
two with it is bilinear interpolation. Both are several times faster on a CPU than the depthwise convolution that the
formula suggests, have second derivatives, and need no filter in the checkpoint.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def blur(maps: Tensor, padding: int, gain: float = 1.0) -> Tensor:
    """Filters with the outer product of [1, 3, 3, 1] / 8 with itself.

    Args:
        maps: ``(B, C, H, W)``.
        padding: Zeros on each side, 1 or 2.
        gain: Factor of the result.

    Returns:
        ``(B, C, H + 2 padding - 3, W + 2 padding - 3)``.
    """
    maps = functional.avg_pool2d(maps, 2, stride=1, padding=1)
    # Zeros around a map average to zeros, so padding between the passes equals padding before them.
    maps = functional.avg_pool2d(maps, 2, stride=1, padding=padding - 1)
    maps = functional.avg_pool2d(maps, 2, stride=1)
    return maps if gain == 1.0 else maps * gain


def downsample(maps: Tensor) -> Tensor:
    """Halves height and width: ``(B, C, H, W)`` -> ``(B, C, H / 2, W / 2)``; H and W even."""
    maps = functional.avg_pool2d(maps, 2, stride=1, padding=1)
    return functional.avg_pool2d(functional.avg_pool2d(maps, 2, stride=1), 2)


def upsample(maps: Tensor) -> Tensor:
    """Doubles height and width: ``(B, C, H, W)`` -> ``(B, C, 2 H, 2 W)``."""
    padded = functional.pad(maps, (1, 1, 1, 1))
    return functional.interpolate(padded, scale_factor=2, mode="bilinear", align_corners=False)[:, :, 2:-2, 2:-2]


def binomial_kernel(dtype: torch.dtype = torch.float32) -> Tensor:
    """The filter itself, ``(4, 4)`` with sum 1: published checkpoints store it beside the weights."""
    line = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=dtype)
    return torch.outer(line, line) / 64
