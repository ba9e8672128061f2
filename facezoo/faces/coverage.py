"""Whether a face is hidden: where it lies, what the processed faces cover, and what really changed.

A face counts as hidden when all five of its points and most of it are; a box on a nose hides nobody. What lies beyond
the picture's border need not be hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from facezoo.faces.align import apply_transform, invert_transform, similarity
from facezoo.faces.detect import Face
from facezoo.faces.mask import FACE_CENTRE_128, FACE_SEMI_AXES_128, FloatArray

__all__ = ["changed_enough", "is_covered"]

_MOST: Final = 0.6
"""Part of a face that has to be covered. Two detectors' boxes of one face differ by up to a third of their area."""

_CHANGED: Final = 0.5
"""Part of a processed face that has to differ: what was black or white before may be so afterwards."""

_NEAR: Final = 2
"""Pixels around each of the five points among which one has to differ."""

_STEPS: Final = np.linspace(-1.0, 1.0, 9)
_DISC: Final = np.array([(x, y) for x in _STEPS for y in _STEPS if x * x + y * y <= 1.0])
"""Places spread over the unit disc, (N, 2)."""


def is_covered(face: Face, processed: Sequence[npt.ArrayLike], mask: FloatArray, shape: tuple[int, ...]) -> bool:
    """Whether the masks of the processed faces hide a face together.

    Args:
        face: to be hidden.
        processed: (5, 2) points of each processed face, in picture pixels.
        mask: (S, S) in [0, 1], where in an aligned crop a processed face is covered (`face_mask`, `cover_mask`).
        shape: (height, width, ...) of the picture.

    Returns:
        True when all five points and most of the face lie in what is covered.
    """
    x0, y0, x1, y1 = face.box
    # The middle of the box: its corners show hair and background.
    disc = _DISC * (0.4 * (x1 - x0), 0.4 * (y1 - y0)) + ((x0 + x1) / 2, (y0 + y1) / 2)
    spots = np.concatenate([face.points.astype(np.float64), disc])
    height, width = shape[:2]
    inside = np.all((spots >= -0.5) & (spots < (width - 0.5, height - 0.5)), axis=1)
    covered = ~inside
    size = len(mask)
    for points in processed:
        places = np.rint(apply_transform(similarity(points, size), spots)).astype(int)
        within = np.all((places >= 0) & (places < size), axis=1)
        column, row = np.clip(places, 0, size - 1).T
        covered |= within & (mask[row, column] > 0.5)
    return bool(covered[:5].all() and (not inside[5:].any() or covered[5:][inside[5:]].mean() >= _MOST))


def changed_enough(points: npt.ArrayLike, changed: npt.NDArray[np.bool_]) -> bool:
    """Whether a processed face differs in the finished picture: around each of its points, and in most of it.

    Args:
        points: (5, 2) in picture pixels.
        changed: (height, width), which pixels differ.

    Returns:
        True when it does, or when the face lies outside the picture altogether.
    """
    height, width = changed.shape
    five = np.asarray(points, dtype=np.float64)
    disc = _DISC * np.array(FACE_SEMI_AXES_128) * 0.8 + FACE_CENTRE_128
    spots = np.rint(np.concatenate([five, apply_transform(invert_transform(similarity(five, 128)), disc)])).astype(int)
    inside = np.all((spots >= 0) & (spots < (width, height)), axis=1)
    for x, y in spots[:5][inside[:5]]:
        if not changed[max(0, y - _NEAR) : y + _NEAR + 1, max(0, x - _NEAR) : x + _NEAR + 1].any():
            return False
    column, row = spots[5:][inside[5:]].T
    return len(row) == 0 or bool(changed[row, column].mean() >= _CHANGED)
