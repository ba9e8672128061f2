"""BiSeNet, a parser of faces into 19 regions; state dict of the published CelebAMask-HQ weights.

Yu et al., "BiSeNet: Bilateral Segmentation Network for Real-time Semantic Segmentation", ECCV 2018, in the form that is
common for faces: ResNet-18 as context path, its map at an eighth of the size in the place of the spatial path. A user's
weight file plugs in; none is shipped.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

CLASSES = 19
FACE_CLASSES = (1, 2, 3, 4, 5, 6, 10, 11, 12, 13)
"""Skin, brows, eyes, glasses, nose, inner mouth, lips: what is replaced. Ears, neck, hair, hat and clothes are not."""


class _Convolution(nn.Module):
    """Convolution, batch normalisation, rectifier."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.bn(self.conv(x)))


class _Residual(nn.Module):
    """ResNet-18's block."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module | None = None
        if inputs != outputs or stride != 1:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        return functional.relu(y + (x if self.downsample is None else self.downsample(x)))


class _ResNet18(nn.Module):
    """Maps at 1/8, 1/16 and 1/32 of the size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        inputs = 64
        for number, (outputs, stride) in enumerate(((64, 1), (128, 2), (256, 2), (512, 2)), start=1):
            layers = nn.Sequential(_Residual(inputs, outputs, stride), _Residual(outputs, outputs, 1))
            self.add_module(f"layer{number}", layers)
            inputs = outputs

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = functional.max_pool2d(functional.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        eighth = self.get_submodule("layer2")(self.get_submodule("layer1")(x))
        sixteenth = self.get_submodule("layer3")(eighth)
        return eighth, sixteenth, self.get_submodule("layer4")(sixteenth)


class _Attention(nn.Module):
    """Attention refinement: channels weighted by their global mean."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = _Convolution(inputs, outputs, 3)
        self.conv_atten = nn.Conv2d(outputs, outputs, 1, bias=False)
        self.bn_atten = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x * torch.sigmoid(self.bn_atten(self.conv_atten(x.mean((2, 3), keepdim=True))))


class _ContextPath(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.resnet = _ResNet18()
        self.arm16 = _Attention(256, 128)
        self.arm32 = _Attention(512, 128)
        self.conv_head32 = _Convolution(128, 128, 3)
        self.conv_head16 = _Convolution(128, 128, 3)
        self.conv_avg = _Convolution(512, 128, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        eighth, sixteenth, last = self.resnet(x)
        coarse = self.arm32(last) + self.conv_avg(last.mean((2, 3), keepdim=True))
        coarse = self.conv_head32(functional.interpolate(coarse, size=sixteenth.shape[-2:]))
        fine = functional.interpolate(self.arm16(sixteenth) + coarse, size=eighth.shape[-2:])
        return eighth, self.conv_head16(fine), coarse


class _Fusion(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convblk = _Convolution(256, 256, 1)
        self.conv1 = nn.Conv2d(256, 64, 1, bias=False)
        self.conv2 = nn.Conv2d(64, 256, 1, bias=False)

    def forward(self, spatial: Tensor, context: Tensor) -> Tensor:
        x = self.convblk(torch.cat([spatial, context], 1))
        weight = torch.sigmoid(self.conv2(functional.relu(self.conv1(x.mean((2, 3), keepdim=True)))))
        return x * weight + x


class _Output(nn.Module):
    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.conv = _Convolution(inputs, width, 3)
        self.conv_out = nn.Conv2d(width, CLASSES, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.conv_out(self.conv(x))
        return logits


class BiSeNet(nn.Module):
    """Faces -> logits of 19 regions; frozen, and in evaluation mode always.

    The outputs at a 16th and a 32nd, which only its training uses, are part of the state dict and are not computed.

    Args:
        side: Pictures are resized to this side first (512 in the published use).
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, side: int = 512) -> None:
        super().__init__()
        self.side = side
        self.cp = _ContextPath()
        self.ffm = _Fusion()
        self.conv_out = _Output(256, 256)
        self.conv_out16 = _Output(128, 64)
        self.conv_out32 = _Output(128, 64)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> BiSeNet:
        """Stays in evaluation mode."""
        del mode
        super().train(False)
        return self

    def forward(self, faces: Tensor) -> Tensor:
        """``(B, 3, S, S)`` in [-1, 1] -> logits ``(B, 19, side / 8, side / 8)``."""
        x = functional.interpolate(
            (faces + 1) / 2, size=(self.side, self.side), mode="bilinear", align_corners=False,
            antialias=faces.shape[-1] > self.side,
        )  # fmt: skip
        eighth, context, _ = self.cp((x - self.mean) / self.deviation)
        logits: Tensor = self.conv_out(self.ffm(eighth, context))
        return logits

    def face_probability(self, faces: Tensor) -> Tensor:
        """Probability that a pixel is inner face: ``(B, 3, S, S)`` -> ``(B, 1, S, S)``."""
        share = self.forward(faces).softmax(1)[:, list(FACE_CLASSES)].sum(1, keepdim=True)
        return functional.interpolate(share, size=faces.shape[-2:], mode="bilinear", align_corners=False)
