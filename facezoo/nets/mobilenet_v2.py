"""MobileNetV2 (Sandler et al., CVPR 2018) as a feature network: 1,280 numbers before the classifier.

Names are those of torchvision's ImageNet state dict (``mobilenet_v2-b0353104.pth``), whose classifier is not used.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

FEATURES = 1280
_SIDE = 224
_STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""Expansion, width, blocks and first stride of each stage (paper, Table 2)."""


def _layer(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU6())


class _InvertedResidual(nn.Module):
    """Expand, filter each channel, project; added to the input where the shapes are the same."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.shortcut = stride == 1 and inputs == outputs
        layers: list[nn.Module] = [] if expansion == 1 else [_layer(inputs, hidden, 1)]
        layers += [_layer(hidden, hidden, 3, stride, hidden), nn.Conv2d(hidden, outputs, 1, bias=False)]
        self.conv = nn.Sequential(*layers, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """One block."""
        result: Tensor = self.conv(x)
        return x + result if self.shortcut else result


class MobileNetV2Features(nn.Module):
    """Pictures -> 1,280 numbers; frozen, and in evaluation mode always."""

    mean: Tensor
    deviation: Tensor

    def __init__(self) -> None:
        super().__init__()
        blocks: list[nn.Module] = [_layer(3, 32, 3, 2)]
        inputs = 32
        for expansion, width, count, stride in _STAGES:
            for number in range(count):
                blocks.append(_InvertedResidual(inputs, width, stride if number == 0 else 1, expansion))
                inputs = width
        self.features = nn.Sequential(*blocks, _layer(inputs, FEATURES, 1))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(FEATURES, 1000))  # in the file; not used
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> MobileNetV2Features:
        """Stays in evaluation mode."""
        del mode
        super().train(False)
        return self

    def forward(self, pictures: Tensor) -> Tensor:
        """``(B, 3, H, W)`` RGB in [-1, 1] -> ``(B, 1280)``; resized to 224 pixels, bilinear, anti-aliased."""
        x = functional.interpolate(pictures, size=(_SIDE, _SIDE), mode="bilinear", align_corners=False, antialias=True)
        maps: Tensor = self.features(((x + 1) / 2 - self.mean) / self.deviation)
        return maps.mean((2, 3))
