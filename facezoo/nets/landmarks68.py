"""68 facial landmarks by a slim chain of depthwise convolutions; state dict of the published ``peppa_slim160_68``.

Source of layout and weights: Peppa_Pig_Face_Landmark (Apache-2.0). The network is differentiable, so that it can be
part of a loss; its weights are not shipped with facezoo.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

POINTS = 68
_INPUT = 160
_MARGIN = 1 / 16
"""Part of the aligned crop left out on each side: the network knows faces that fill its picture. (Measured on 20 faces:
eyes, nose and mouth corners 2.4 to 2.6 of 128 pixels from the detector's, for margins from 0 to 1/8 and for each of the
usual scalings of the colours.)"""

_WIDTHS = (16, 32, 32, 32, 64, 64, 64, 64, 128, 128, 128, 256, 256)
_STRIDES = (2, 1, 2, 1, 2, 1, 1, 1, 2, 1, 1, 2, 1)
_POOLED = (8, 11, 13)
"""Layers (counted from 1) whose mean goes to the last, linear one."""


class SlimLandmarks(nn.Module):
    """Aligned faces -> 68 points in the parts of the crop's side.

    Frozen, and in evaluation mode always.
    """

    def __init__(self) -> None:
        super().__init__()
        inputs = 3
        for number, (width, stride) in enumerate(zip(_WIDTHS, _STRIDES, strict=True), start=1):
            layers: list[nn.Module]
            if number == 1:
                layers = [nn.Conv2d(3, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            else:
                layers = [
                    nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False),
                    nn.BatchNorm2d(inputs),
                    nn.ReLU(),
                    nn.Conv2d(inputs, width, 1, bias=False),
                    nn.BatchNorm2d(width),
                    nn.ReLU(),
                ]
            self.add_module(f"conv{number}", nn.Sequential(*layers))
            inputs = width
        # 136 coordinates; then head pose (3) and open eyes and mouth (4), which are not used here.
        self.fc = nn.Linear(sum(_WIDTHS[number - 1] for number in _POOLED), 2 * POINTS + 7)
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> SlimLandmarks:
        """Stays in evaluation mode."""
        del mode
        super().train(False)
        return self

    def forward(self, faces: Tensor) -> Tensor:
        """``(B, 3, S, S)`` aligned, RGB, in [-1, 1] -> ``(B, 68, 2)`` x and y as parts of S."""
        margin = round(faces.shape[-1] * _MARGIN)
        inner = faces[..., margin : faces.shape[-1] - margin, margin : faces.shape[-1] - margin]
        scaled = functional.interpolate(
            inner, size=(_INPUT, _INPUT), mode="bilinear", antialias=inner.shape[-1] > _INPUT, align_corners=False
        )
        points = self.raw(scaled.flip(1))[:, : 2 * POINTS].reshape(-1, POINTS, 2)
        return (points * inner.shape[-1] + margin) / faces.shape[-1]

    def raw(self, pictures: Tensor) -> Tensor:
        """The network itself: ``(B, 3, 160, 160)`` BGR in [-1, 1] -> ``(B, 143)``."""
        pooled = []
        for number in range(1, len(_WIDTHS) + 1):
            pictures = self.get_submodule(f"conv{number}")(pictures)
            if number in _POOLED:
                pooled.append(pictures.mean((2, 3)))
        answer: Tensor = self.fc(torch.cat(pooled, 1))
        return answer
