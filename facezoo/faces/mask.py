"""The fixed soft masks of the aligned template: where a face is replaced, and where a change fades out.

Crops are aligned, so a mask that is fixed in template coordinates sits on every face alike; it needs no network, costs
nothing and, above all, is the same when a picture is anonymized and when it is recovered. (A mask that is computed from
the pixels would come out differently on the anonymized picture.)
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]

#: Centre (x, y) of the face ellipse in pixels of the 128 template: between the eyes (y 57) and the mouth (y 95).
FACE_CENTRE_128 = (64.0, 70.0)
#: Semi-axes (x, y) of the ellipse on which the mask is one half: hairline (y 17) to chin (y 123), cheek to cheek.
FACE_SEMI_AXES_128 = (42.0, 53.0)
#: Width of the soft edge, in pixels of the 128 template.
SOFT_EDGE_128 = 6.0
#: Width of the band along the crop border over which a change outside the mask fades to nothing.
BORDER_TAPER_128 = 5.0


def _smoothstep(value: FloatArray) -> FloatArray:
    """Ramp from 0 (value <= 0) to 1 (value >= 1) with flat ends."""
    clipped = np.clip(value, 0.0, 1.0)
    return (clipped * clipped * (3.0 - 2.0 * clipped)).astype(np.float32)


@lru_cache(maxsize=16)
def face_mask(size: int = 128) -> FloatArray:
    """Soft mask of the face in an aligned crop: forehead and brows to chin, cheek to cheek.

    Args:
        size: side of the square crop in pixels, at least 8.

    Returns:
        (size, size) float32 in [0, 1], read-only; 1 inside the face, exactly 0 on the outermost pixels of the crop.

    Raises:
        ValueError: `size` is below 8.
    """
    if size < 8:
        raise ValueError(f"a face mask needs a crop of at least 8 pixels, got {size}")
    unit = 128.0 / size
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) * np.float32(unit)
    dx, dy = x - FACE_CENTRE_128[0], y - FACE_CENTRE_128[1]
    a, b = FACE_SEMI_AXES_128
    radius = np.sqrt((dx / a) ** 2 + (dy / b) ** 2)
    # Distance to the ellipse along the ray from its centre: good to a few per cent for axes this similar.
    distance = (1.0 - radius) * np.hypot(dx, dy) / np.maximum(radius, 1e-3)
    distance = np.where(radius < 1e-2, min(a, b), distance).astype(np.float32)
    # The soft edge must not be thinner than two pixels of a small crop, or the pasted edge would alias.
    edge = max(SOFT_EDGE_128, 2.0 * unit)
    mask = _smoothstep((distance / np.float32(edge) + np.float32(0.5)).astype(np.float32))
    mask[[0, -1], :] = 0.0
    mask[:, [0, -1]] = 0.0
    mask.setflags(write=False)
    return mask


@lru_cache(maxsize=16)
def border_taper(size: int = 128) -> FloatArray:
    """Weight of a change outside the mask: 1 inside the crop, falling to exactly 0 on its outermost pixels.

    Args:
        size: side of the square crop in pixels, at least 8.

    Returns:
        (size, size) float32 in [0, 1], read-only.

    Raises:
        ValueError: `size` is below 8.
    """
    if size < 8:
        raise ValueError(f"a border taper needs a crop of at least 8 pixels, got {size}")
    width = max(2.0, BORDER_TAPER_128 * size / 128.0)
    index = np.arange(size, dtype=np.float32)
    ramp = _smoothstep((np.minimum(index, size - 1 - index) / width).astype(np.float32))
    taper = np.minimum(ramp[:, None], ramp[None, :]).astype(np.float32)
    taper.setflags(write=False)
    return taper
