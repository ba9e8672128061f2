"""Black box and eye bar: opaque colour over the face or over the eyes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from facezoo.errors import InputError
from facezoo.methods.base import REFERENCE_SIZE, ClassicMethod, FaceContext
from facezoo.methods.classics.config import BlackBoxOptions, EyeBarOptions

__all__ = ["TEMPLATE_EYES", "BlackBox", "EyeBar"]

TEMPLATE_EYES = np.array([[47.2684, 56.8130], [80.5676, 56.6289]])
"""Where the eyes lie in an aligned crop of 128, x and y: (ArcFace's 112 template - (56, 72)) * 0.945 + (64, 76)."""

_TEMPLATE_DISTANCE = float(np.hypot(*(TEMPLATE_EYES[1] - TEMPLATE_EYES[0])))


def _color_tensor(color: tuple[int, int, int], faces: Tensor) -> Tensor:
    """(1, 3, 1, 1) in [-1, 1] on the faces' device."""
    return (torch.tensor(color, device=faces.device, dtype=faces.dtype) / 127.5 - 1).view(1, 3, 1, 1)


class BlackBox(ClassicMethod[BlackBoxOptions]):
    """One colour over the whole crop; nothing of the face is left (book, section 3.1.1)."""

    name = "black_box"
    cover = "square"
    options_class = BlackBoxOptions

    def change(self, faces: Tensor, context: FaceContext, options: BlackBoxOptions) -> Tensor:
        """Cover; see `ClassicMethod.change`."""
        return _color_tensor(options.color, faces).expand_as(faces).clone()


class EyeBar(ClassicMethod[EyeBarOptions]):
    """A bar along the line through the eyes.

    Source: one of the obfuscations in the book's section 3.1.4.2. The newspaper's classic, and no protection: the rest
    of the face is enough for a recogniser.
    """

    name = "eye_bar"
    cover = "changed"
    options_class = EyeBarOptions

    def change(self, faces: Tensor, context: FaceContext, options: EyeBarOptions) -> Tensor:
        """Cover the eyes; see `ClassicMethod.change`.

        The eyes are taken from ``context.points``, or from the template when there are none. The bar is never smaller
        than for a frontal face of the crop's scale: in a turned head the eyes are close together, the face is not
        smaller.

        Raises:
            InputError: points of another shape, not finite, with both eyes in one place or outside the crop.
        """
        batch, _, size, _ = faces.shape
        eyes = _eyes(context.points, batch, size)
        along = eyes[:, 1] - eyes[:, 0]
        distance = np.hypot(along[:, 0], along[:, 1])
        along = along / distance[:, None]
        distance = np.maximum(distance, _TEMPLATE_DISTANCE * size / REFERENCE_SIZE)
        center = eyes.mean(1)

        def column(values: np.ndarray[Any, np.dtype[Any]]) -> Tensor:
            return torch.as_tensor(values, device=faces.device, dtype=faces.dtype).view(batch, 1, 1)

        pixel = torch.arange(size, device=faces.device, dtype=faces.dtype)
        x = pixel.view(1, 1, size) - column(center[:, 0])
        y = pixel.view(1, size, 1) - column(center[:, 1])
        length = x * column(along[:, 0]) + y * column(along[:, 1])
        height = y * column(along[:, 0]) - x * column(along[:, 1])
        # Half a pixel more on each side: a pixel that the bar touches is covered whole.
        inside = (length.abs() <= column(distance * (options.length / 2)) + 0.5) & (
            height.abs() <= column(distance * (options.height / 2)) + 0.5
        )
        return torch.where(inside.unsqueeze(1), _color_tensor(options.color, faces), faces)


def _eyes(
    points: np.ndarray[Any, np.dtype[Any]] | None, batch: int, size: int
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """(B, 2, 2) positions of the eyes in pixels of the crop, checked."""
    if points is None:
        return np.broadcast_to(TEMPLATE_EYES * (size / REFERENCE_SIZE), (batch, 2, 2))
    points = np.asarray(points, dtype=np.float64)
    if points.shape != (batch, 5, 2):
        raise InputError(f"eye_bar: points must have the shape ({batch}, 5, 2), not {points.shape}")
    eyes = points[:, :2]
    if not np.isfinite(eyes).all():
        raise InputError(
            "eye_bar: the points of a face are not finite numbers; detect it again or leave the points out"
        )
    apart = np.hypot(*(eyes[:, 1] - eyes[:, 0]).T)
    middle = eyes.mean(1)
    # A bar somewhere else would leave the face open: better no picture than an unprotected one.
    if (apart < size * 0.01).any() or (middle < 0).any() or (middle > size - 1).any():
        raise InputError(
            "eye_bar: the eyes' points lie in one place or outside the crop, so a bar would miss them; "
            "give points in pixels of the crop, or use black_box"
        )
    return eyes
