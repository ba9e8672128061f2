"""MobileFaceNet as trained by foamliu: an independent judge that is never shipped.

Source: github.com/foamliu/MobileFaceNet (Apache-2.0), 112 x 112 RGB scaled to [0, 1] and normalised with ImageNet's
mean and deviation, 128 numbers. The module names are those of the published state dict, so that it loads strictly.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from facezoo.recognition.base import Recogniser
from facezoo.recognition.sface import arcface_window

__all__ = ["MobileFaceNet", "build_mobilefacenet"]

#: (expansion in channels, channels out, stride) of the inverted residual blocks.
_BLOCKS = (
    (128, 64, 2), *[(128, 64, 1)] * 4,
    (256, 128, 2), *[(256, 128, 1)] * 6,
    (512, 128, 2), *[(256, 128, 1)] * 2,
)  # fmt: skip

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_DEVIATION = (0.229, 0.224, 0.225)


def _conv_norm(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, batch normalisation, ReLU6."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU6(),
    )


class _SeparableStem(nn.Module):
    """Depthwise and pointwise convolution, each with batch normalisation and ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.pointwise = nn.Conv2d(channels, channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        features = functional.relu(self.bn1(self.depthwise(features)))
        return functional.relu(self.bn2(self.pointwise(features)))


class _GlobalDepthwise(nn.Module):
    """One 7 x 7 depthwise convolution over the whole map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, groups=channels, bias=False)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, 7, 7) -> (B, C, 1, 1)."""
        result: Tensor = self.bn(self.depthwise(features))
        return result


class _InvertedResidual(nn.Module):
    """Expand, filter, project; with a shortcut where the shape stays."""

    def __init__(self, inputs: int, hidden: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.shortcut = stride == 1 and inputs == outputs
        self.conv = nn.Sequential(
            _conv_norm(inputs, hidden, 1),
            _conv_norm(hidden, hidden, 3, stride, groups=hidden),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, features: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H / stride, W / stride)."""
        result: Tensor = self.conv(features)
        return features + result if self.shortcut else result


class MobileFaceNet(nn.Module):
    """The network: 112 x 112 RGB in [-1, 1] -> 128 numbers, not normalised."""

    mean: Tensor
    deviation: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = _conv_norm(3, 64, 3, 2)
        self.dw_conv = _SeparableStem(64)
        channels = 64
        blocks = []
        for hidden, outputs, stride in _BLOCKS:
            blocks.append(_InvertedResidual(channels, hidden, outputs, stride))
            channels = outputs
        self.features = nn.Sequential(*blocks)
        self.conv2 = _conv_norm(channels, 512, 1)
        self.gdconv = _GlobalDepthwise(512)
        self.conv3 = nn.Conv2d(512, 128, 1)
        self.bn = nn.BatchNorm1d(128)
        self.register_buffer("mean", torch.tensor(_IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(_IMAGENET_DEVIATION).view(1, 3, 1, 1), persistent=False)

    def forward(self, pictures: Tensor) -> Tensor:
        """(B, 3, 112, 112) in [-1, 1], RGB -> (B, 128)."""
        features = ((pictures + 1) / 2 - self.mean) / self.deviation
        features = self.conv1(features.contiguous(memory_format=torch.channels_last))
        features = self.conv2(self.features(self.dw_conv(features)))
        embeddings: Tensor = self.bn(self.conv3(self.gdconv(features)).flatten(1))
        return embeddings


def build_mobilefacenet(state: Mapping[str, Tensor]) -> Recogniser:
    """Builds the recogniser from the published state dict."""
    network = MobileFaceNet()
    network.load_state_dict(dict(state), strict=True)
    network = network.to(memory_format=torch.channels_last)
    return Recogniser("foamliu", network, arcface_window(), dim=128, licence="Apache-2.0")
