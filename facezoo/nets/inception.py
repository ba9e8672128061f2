"""Inception-v3 as FID defines it: features of the 2015 graph that TensorFlow's FID reads, in PyTorch.

Layout: Szegedy et al., "Rethinking the Inception Architecture", CVPR 2016. The graph of 2015-12-05 differs from the
published layers in three places: average pools inside the blocks leave the border out of the mean, the last block
takes a maximum instead of an average, and there are 1,008 classes and no auxiliary head. Names are those of the file
``pt_inception-2015-12-05-6726825d.pth`` (pytorch-fid).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

FEATURES = 2048
_SIDE = 299
_CLASSES = 1008


class _Conv(nn.Module):
    """Convolution without bias, batch normalisation, ReLU."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int | tuple[int, int], stride: int = 1, pad: int | tuple[int, int] = 0
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, pad, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        """One layer."""
        return functional.relu(self.bn(self.conv(x)))


def _average(x: Tensor) -> Tensor:
    """3 x 3 mean of the pixels that lie inside."""
    return functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


class _Block35(nn.Module):
    """Mixed_5b, 5c, 5d: 35 x 35."""

    def __init__(self, inputs: int, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = _Conv(inputs, 64, 1)
        self.branch5x5_1 = _Conv(inputs, 48, 1)
        self.branch5x5_2 = _Conv(48, 64, 5, pad=2)
        self.branch3x3dbl_1 = _Conv(inputs, 64, 1)
        self.branch3x3dbl_2 = _Conv(64, 96, 3, pad=1)
        self.branch3x3dbl_3 = _Conv(96, 96, 3, pad=1)
        self.branch_pool = _Conv(inputs, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        """All branches side by side."""
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        five = self.branch5x5_2(self.branch5x5_1(x))
        return torch.cat((self.branch1x1(x), five, double, self.branch_pool(_average(x))), 1)


class _Reduce35(nn.Module):
    """Mixed_6a: 35 x 35 -> 17 x 17."""

    def __init__(self) -> None:
        super().__init__()
        self.branch3x3 = _Conv(288, 384, 3, 2)
        self.branch3x3dbl_1 = _Conv(288, 64, 1)
        self.branch3x3dbl_2 = _Conv(64, 96, 3, pad=1)
        self.branch3x3dbl_3 = _Conv(96, 96, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        """All branches side by side."""
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat((self.branch3x3(x), double, functional.max_pool2d(x, 3, 2)), 1)


class _Block17(nn.Module):
    """Mixed_6b to 6e: 17 x 17, factorised sevens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch1x1 = _Conv(768, 192, 1)
        self.branch7x7_1 = _Conv(768, width, 1)
        self.branch7x7_2 = _Conv(width, width, (1, 7), pad=(0, 3))
        self.branch7x7_3 = _Conv(width, 192, (7, 1), pad=(3, 0))
        self.branch7x7dbl_1 = _Conv(768, width, 1)
        self.branch7x7dbl_2 = _Conv(width, width, (7, 1), pad=(3, 0))
        self.branch7x7dbl_3 = _Conv(width, width, (1, 7), pad=(0, 3))
        self.branch7x7dbl_4 = _Conv(width, width, (7, 1), pad=(3, 0))
        self.branch7x7dbl_5 = _Conv(width, 192, (1, 7), pad=(0, 3))
        self.branch_pool = _Conv(768, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        """All branches side by side."""
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = x
        for number in range(1, 6):
            double = self.get_submodule(f"branch7x7dbl_{number}")(double)
        return torch.cat((self.branch1x1(x), seven, double, self.branch_pool(_average(x))), 1)


class _Reduce17(nn.Module):
    """Mixed_7a: 17 x 17 -> 8 x 8."""

    def __init__(self) -> None:
        super().__init__()
        self.branch3x3_1 = _Conv(768, 192, 1)
        self.branch3x3_2 = _Conv(192, 320, 3, 2)
        self.branch7x7x3_1 = _Conv(768, 192, 1)
        self.branch7x7x3_2 = _Conv(192, 192, (1, 7), pad=(0, 3))
        self.branch7x7x3_3 = _Conv(192, 192, (7, 1), pad=(3, 0))
        self.branch7x7x3_4 = _Conv(192, 192, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        """All branches side by side."""
        seven = x
        for number in range(1, 5):
            seven = self.get_submodule(f"branch7x7x3_{number}")(seven)
        return torch.cat((self.branch3x3_2(self.branch3x3_1(x)), seven, functional.max_pool2d(x, 3, 2)), 1)


class _Block8(nn.Module):
    """Mixed_7b, 7c: 8 x 8."""

    def __init__(self, inputs: int, *, maximum: bool) -> None:
        super().__init__()
        self.maximum = maximum
        self.branch1x1 = _Conv(inputs, 320, 1)
        self.branch3x3_1 = _Conv(inputs, 384, 1)
        self.branch3x3_2a = _Conv(384, 384, (1, 3), pad=(0, 1))
        self.branch3x3_2b = _Conv(384, 384, (3, 1), pad=(1, 0))
        self.branch3x3dbl_1 = _Conv(inputs, 448, 1)
        self.branch3x3dbl_2 = _Conv(448, 384, 3, pad=1)
        self.branch3x3dbl_3a = _Conv(384, 384, (1, 3), pad=(0, 1))
        self.branch3x3dbl_3b = _Conv(384, 384, (3, 1), pad=(1, 0))
        self.branch_pool = _Conv(inputs, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        """All branches side by side."""
        three = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = functional.max_pool2d(x, 3, 1, 1) if self.maximum else _average(x)
        return torch.cat(
            (
                self.branch1x1(x),
                self.branch3x3_2a(three),
                self.branch3x3_2b(three),
                self.branch3x3dbl_3a(double),
                self.branch3x3dbl_3b(double),
                self.branch_pool(pooled),
            ),
            1,
        )


class InceptionFeatures(nn.Module):
    """Pictures -> the 2,048 numbers of pool3; frozen, and in evaluation mode always."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Conv(3, 32, 3, 2)
        self.Conv2d_2a_3x3 = _Conv(32, 32, 3)
        self.Conv2d_2b_3x3 = _Conv(32, 64, 3, pad=1)
        self.Conv2d_3b_1x1 = _Conv(64, 80, 1)
        self.Conv2d_4a_3x3 = _Conv(80, 192, 3)
        self.Mixed_5b = _Block35(192, 32)
        self.Mixed_5c = _Block35(256, 64)
        self.Mixed_5d = _Block35(288, 64)
        self.Mixed_6a = _Reduce35()
        self.Mixed_6b = _Block17(128)
        self.Mixed_6c = _Block17(160)
        self.Mixed_6d = _Block17(160)
        self.Mixed_6e = _Block17(192)
        self.Mixed_7a = _Reduce17()
        self.Mixed_7b = _Block8(1280, maximum=False)
        self.Mixed_7c = _Block8(FEATURES, maximum=True)
        self.fc = nn.Linear(FEATURES, _CLASSES)  # in the file; FID does not use it
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> InceptionFeatures:
        """Stays in evaluation mode."""
        del mode
        super().train(False)
        return self

    def forward(self, pictures: Tensor) -> Tensor:
        """``(B, 3, H, W)`` RGB in [-1, 1] -> ``(B, 2048)``; resized to 299 pixels, bilinear, as pytorch-fid does."""
        x = functional.interpolate(pictures, size=(_SIDE, _SIDE), mode="bilinear", align_corners=False)
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(functional.max_pool2d(x, 3, 2)))
        x = functional.max_pool2d(x, 3, 2)
        for name, block in self.named_children():
            if name.startswith("Mixed_"):
                x = block(x)
        return x.mean((2, 3))
