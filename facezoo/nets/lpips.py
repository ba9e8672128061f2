"""LPIPS with AlexNet (Zhang et al., "The Unreasonable Effectiveness of Deep Features", CVPR 2018, version 0.1).

The distance of two pictures is the weighted squared difference of their normalised features, averaged over places and
summed over five layers. The state dict is ``features.<0..4>.{weight,bias}`` (torchvision's AlexNet) and
``heads.<0..4>.weight``; ``facezoo.frozen`` reads it from the packages that hold the weights.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

_LAYERS = ((3, 64, 11, 4, 2), (64, 192, 5, 1, 2), (192, 384, 3, 1, 1), (384, 256, 3, 1, 1), (256, 256, 3, 1, 1))
"""Inputs, outputs, kernel, stride and padding of each convolution; a maximum pool follows the first two."""


class LPIPS(nn.Module):
    """Perceptual distance; frozen, and in evaluation mode always."""

    mean: Tensor
    deviation: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.ModuleList(nn.Conv2d(a, b, k, stride, pad) for a, b, k, stride, pad in _LAYERS)
        self.heads = nn.ModuleList(nn.Conv2d(layer[1], 1, 1, bias=False) for layer in _LAYERS)
        # ImageNet's mean and deviation, for pictures in [-1, 1].
        self.register_buffer("mean", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1), persistent=False)
        self.channels = tuple(layer[1] for layer in _LAYERS)
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> LPIPS:
        """Stays in evaluation mode."""
        del mode
        super().train(False)
        return self

    def activations(self, pictures: Tensor) -> list[Tensor]:
        """AlexNet's features after each rectifier, of ``(B, 3, H, W)`` in [-1, 1], H and W at least 32."""
        x = (pictures - self.mean) / self.deviation
        found = []
        for number, layer in enumerate(self.features):
            x = functional.relu(layer(x))
            found.append(x)
            if number < 2:
                x = functional.max_pool2d(x, 3, 2)
        return found

    def maps(self, pictures: Tensor) -> list[Tensor]:
        """The same, each place's features divided by their norm, as LPIPS compares them."""
        return [x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10) for x in self.activations(pictures)]

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Distance of each pair: two times ``(B, 3, H, W)`` in [-1, 1] -> ``(B,)``; 0 for equal ones."""
        total = torch.zeros(len(first), device=first.device)
        for a, b, head in zip(self.maps(first), self.maps(second), self.heads, strict=True):
            total = total + head((a - b).square()).mean((1, 2, 3))
        return total
