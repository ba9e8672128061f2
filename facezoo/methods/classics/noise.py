"""Pixel noise that can be repeated: from the key, or from a seed."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from facezoo.methods.base import REFERENCE_SIZE, ClassicMethod, FaceContext
from facezoo.methods.classics.config import PixelNoiseOptions

__all__ = ["PixelNoise"]

_PURPOSE = "pixel_noise/noise"


class PixelNoise(ClassicMethod[PixelNoiseOptions]):
    """Gaussian noise on every channel (book, section 3.1.1), clipped to the range of a picture.

    The noise of a face is drawn from the key (or the seed) *and a hash of the face itself*. So it does not depend on
    the rest of the batch; the same picture gives the same result; and two pictures never share their noise, which
    could otherwise be taken off by whoever has one of them in the clear, or who knows the seed.
    """

    name = "pixel_noise"
    cover = "sharp"
    uses_key = True
    options_class = PixelNoiseOptions

    def change(self, faces: Tensor, context: FaceContext, options: PixelNoiseOptions) -> Tensor:
        """Add noise; see `ClassicMethod.change`."""
        size = faces.shape[-1]
        cells = min(size, max(1, round(REFERENCE_SIZE / options.grain)))
        # The book's noise has one value a pixel; a crop larger than the reference keeps the grain of the reference,
        # because finer noise on a larger face is easier to smooth away.
        owner = torch.arange(size, device=faces.device) * cells // size
        levels = ((faces + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu()
        grains = [
            _gaussian(context, hashlib.sha256(level.numpy().tobytes()).digest(), (3, cells, cells)) for level in levels
        ]
        noise = torch.from_numpy(np.stack(grains)).to(device=faces.device, dtype=faces.dtype)
        return faces + noise[:, :, owner][..., owner] * (options.sigma / 127.5)


def _gaussian(context: FaceContext, digest: bytes, shape: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Standard normal numbers that only this key (or seed) and this face give."""
    if context.key is not None:
        uniform = context.key.uniform(_PURPOSE, (2, *shape), context=digest).astype(np.float64)
        # Box and Muller. (0, 1] for the radius: the logarithm of 0 would be infinite noise.
        radius = np.sqrt(-2 * np.log(1 - (uniform[0] + 1) / 2))
        normal: np.ndarray[Any, np.dtype[np.float64]] = radius * np.cos(np.pi * uniform[1])
        return normal
    seed = hashlib.sha256(f"{_PURPOSE}:{int(context.seed)}:".encode() + digest).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(seed[:16], "little"))).standard_normal(shape)
