"""From the project's face crop to the picture that a recogniser was trained on.

Every crop in facezoo is aligned to one template (see ``docs/contracts.md``), so what a recogniser wants to see is a
fixed upright window of that crop: a scale and a shift, without rotation. Such a map is separable, therefore it is done
as two small matrix products instead of ``grid_sample``: the values are the same as those of
``grid_sample(mode="bilinear", align_corners=False)`` where the window enlarges (a test holds this), but shrinking is
anti-aliased, the gradient is deterministic on a GPU, and it is several times faster on a CPU.

Coordinates are pixel centres at whole numbers (OpenCV's habit), as in the template: the point (64, 76) of a crop of 128
is the point (128, 152) of a crop of 256.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from facezoo.errors import InputError

__all__ = ["Border", "TemplateWindow"]

Border = Literal["replicate", "reflect"]

#: The size in which windows are written down (the crop of the contracts).
_TEMPLATE_SIZE = 128.0


class TemplateWindow(nn.Module):
    """Cuts a fixed window out of an aligned crop of any size and resamples it to a fixed size.

    Output pixel ``i`` is taken at ``start + step * i`` of the crop of 128, for each axis.

    Args:
        size: side of the output in pixels.
        step: distance of two output pixels, in pixels of the crop of 128.
        start_x: position of the first output column in the crop of 128, in pixels.
        start_y: position of the first output row in the crop of 128, in pixels.
        border: what stands outside the crop: its outermost pixel (``replicate``) or its mirror image (``reflect``).
    """

    def __init__(self, size: int, step: float, start_x: float, start_y: float, border: Border = "replicate") -> None:
        super().__init__()
        if size < 1 or step <= 0:
            raise ValueError(f"A window needs a positive size and step, not {size} and {step}.")
        self.size = size
        self.step = step
        self.start_x = start_x
        self.start_y = start_y
        self.border: Border = border

    def weights(self, start: float, length: int, device: torch.device) -> Tensor:
        """Resampling weights of one axis.

        Args:
            start: position of the first output pixel in the crop of 128.
            length: side of the crop that comes in, in pixels.
            device: where the weights are wanted.

        Returns:
            (size, length) float32; rows sum to 1. Built on the fly: it costs microseconds, and a cache would be a
            hidden state to move between devices and to keep away from ``torch.compile``.
        """
        scale = length / _TEMPLATE_SIZE
        centres = (start + self.step * torch.arange(self.size, device=device, dtype=torch.float64)) * scale
        if self.border == "reflect":
            # Mirror about the outer edge of the outermost pixel (-0.5), so that no pixel is doubled or lost.
            period = 2.0 * length
            centres = torch.remainder(centres + 0.5, period)
            centres = torch.where(centres < length, centres, period - centres) - 0.5
        centres = centres.clamp(0.0, length - 1.0)
        # A triangle of half width 1 is bilinear interpolation; a wider one averages when the window shrinks the crop.
        half_width = max(1.0, self.step * scale)
        columns = torch.arange(length, device=device, dtype=torch.float64)
        weights = (1.0 - (columns[None] - centres[:, None]).abs() / half_width).clamp(min=0.0)
        return (weights / weights.sum(dim=1, keepdim=True)).float()

    def forward(self, faces: Tensor) -> Tensor:
        """Resamples.

        Args:
            faces: (B, C, S, S), aligned to the template, any range, any S.

        Returns:
            (B, C, size, size) float32 in the same range.

        Raises:
            InputError: if the faces are not square pictures in a batch.
        """
        if faces.ndim != 4 or faces.shape[2] != faces.shape[3]:
            raise InputError(
                f"Expected aligned square faces (B, 3, S, S), got the shape {tuple(faces.shape)}: align them first."
            )
        # Half precision would move the sampling positions, so the two products stay in float32 under autocast.
        with torch.autocast(device_type=faces.device.type, enabled=False):
            rows = self.weights(self.start_y, faces.shape[2], faces.device)
            columns = self.weights(self.start_x, faces.shape[3], faces.device)
            return rows @ (faces.float() @ columns.T)
