"""The fixed masks of the aligned template: where a face is replaced, and where a change fades out.

Crops are aligned, so a mask that is fixed in template coordinates sits on every face alike; it needs no network, costs
nothing and, above all, is the same when a picture is anonymized and when it is recovered. (A mask that is computed from
the pixels would come out differently on the anonymized picture.)
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
Edge = Literal["soft", "sharp", "square"]

#: Centre (x, y) of the face ellipse in pixels of the 128 template: between the eyes (y 57) and the mouth (y 95).
FACE_CENTRE_128 = (64.0, 70.0)
#: Semi-axes (x, y) of the ellipse on which the mask is one half: hairline (y 17) to chin (y 123), cheek to cheek.
FACE_SEMI_AXES_128 = (42.0, 53.0)
#: Width of the soft edge, in pixels of the 128 template.
SOFT_EDGE_128 = 6.0
#: Centre and semi-axes of the wider region that blur and the like replace, and the exponent of its outline (2 would be
#: an ellipse): hair above the forehead to below the chin, ear to ear, the corners of the jaw too.
COVER_CENTRE_128 = (64.0, 66.0)
COVER_SEMI_AXES_128 = (57.0, 58.0)
COVER_EXPONENT = 2.5
#: Width of the soft edge of that region, and of the sharp one (which is only kept from being jagged).
COVER_SOFT_EDGE_128 = 6.0
COVER_SHARP_EDGE_128 = 1.5
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
    distance = _depth(size, FACE_CENTRE_128, FACE_SEMI_AXES_128, 2.0)
    # The soft edge must not be thinner than two pixels of a small crop, or the pasted edge would alias.
    edge = max(SOFT_EDGE_128, 2.0 * unit)
    return _finished(_smoothstep((distance / np.float32(edge) + np.float32(0.5)).astype(np.float32)))


@lru_cache(maxsize=32)
def cover_mask(size: int = 128, edge: Edge = "soft") -> FloatArray:
    """Mask of a method that hides the face and does not blend it in: all of the head that the crop holds.

    It is wider than `face_mask`, and 1 wherever that is above 0 but for a few pixels below the chin: no soft edge lies
    on the inner face.

    Args:
        size: side of the square crop in pixels, at least 8.
        edge: "soft" for blur-like methods, "sharp" for the same region with a clean edge, "square" for the whole crop.

    Returns:
        (size, size) float32 in [0, 1], read-only; exactly 0 on the outermost pixels of the crop.

    Raises:
        ValueError: `size` is below 8, or an edge of another name.
    """
    if size < 8:
        raise ValueError(f"a cover mask needs a crop of at least 8 pixels, got {size}")
    if edge == "square":
        return _finished(np.ones((size, size), dtype=np.float32))
    if edge not in ("soft", "sharp"):
        raise ValueError(f"a cover's edge is soft, sharp or square, not {edge!r}")
    distance = _depth(size, COVER_CENTRE_128, COVER_SEMI_AXES_128, COVER_EXPONENT)
    unit = 128.0 / size
    outer = np.float32(COVER_SOFT_EDGE_128 / 2)  # both kinds reach 0 on the same outline
    width = COVER_SOFT_EDGE_128 if edge == "soft" else COVER_SHARP_EDGE_128
    return _finished(_smoothstep(((distance + outer) / np.float32(max(width, 1.5 * unit))).astype(np.float32)))


def _depth(size: int, centre: tuple[float, float], axes: tuple[float, float], exponent: float) -> FloatArray:
    """How deep each pixel of a crop lies inside a (super)ellipse, in pixels of the 128 template; below 0 outside.

    Measured along the ray from the centre: good to a few per cent for axes as similar as these.
    """
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) * np.float32(128.0 / size)
    dx, dy = x - centre[0], y - centre[1]
    radius = ((np.abs(dx) / axes[0]) ** exponent + (np.abs(dy) / axes[1]) ** exponent) ** (1.0 / exponent)
    distance = (1.0 - radius) * np.hypot(dx, dy) / np.maximum(radius, 1e-3)
    return np.where(radius < 1e-2, min(axes), distance).astype(np.float32)


def _finished(mask: FloatArray) -> FloatArray:
    """The mask with its outermost pixels set to 0, read-only: nothing is ever written on the border of a crop."""
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
