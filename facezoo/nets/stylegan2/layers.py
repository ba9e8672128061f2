"""Layers with an equalized learning rate, and the modulated convolution.

Equalized learning rate (Karras et al. 2018): weights are drawn from N(0, 1) and multiplied by He's constant when they
are used, so that Adam moves every layer at the same relative speed.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from facezoo.nets.stylegan2.resampling import blur, downsample

_GAIN = math.sqrt(2)
_TINY = 1e-8


def leaky(maps: Tensor, gain: float = _GAIN) -> Tensor:
    """Leaky ReLU of slope .2, times ``gain`` so that the second moment of N(0, 1) is about kept."""
    return functional.leaky_relu(maps, 0.2) * gain


class EqualLinear(nn.Module):
    """Fully connected layer with an equalized learning rate.

    Args:
        inputs: Length of the input.
        outputs: Length of the output.
        bias: Value that the bias has at the start.
        activate: Whether a leaky ReLU follows.
        learning_rate_multiplier: Relative speed of this layer.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        bias: float = 0.0,
        activate: bool = False,
        learning_rate_multiplier: float = 1.0,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / learning_rate_multiplier)
        self.bias = nn.Parameter(torch.full((outputs,), bias / learning_rate_multiplier))
        self.activate = activate
        self.scale = learning_rate_multiplier / math.sqrt(inputs)
        self.learning_rate_multiplier = learning_rate_multiplier

    def forward(self, vectors: Tensor) -> Tensor:
        """``(B, inputs)`` -> ``(B, outputs)``."""
        result = functional.linear(vectors, self.weight * self.scale, self.bias * self.learning_rate_multiplier)
        return leaky(result) if self.activate else result


class EqualConv(nn.Module):
    """Convolution of the discriminator; the input may be blurred and halved on the way.

    Args:
        inputs: Input channels.
        outputs: Output channels.
        kernel: Side of the kernel, 1 or 3.
        down: Whether height and width are halved.
        bias: Whether there is a bias.
        activate: Whether a leaky ReLU follows.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int, down: bool = False, bias: bool = True, activate: bool = True
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.down, self.activate = down, activate
        self.scale = 1 / math.sqrt(inputs * kernel**2)

    def forward(self, maps: Tensor, gain: float = 1.0) -> Tensor:
        """``(B, inputs, H, W)`` -> ``(B, outputs, H, W)``, or half of that size; times ``gain``."""
        kernel = self.weight.shape[-1]
        weight = self.weight * self.scale
        bias: Tensor | None = self.bias
        stride, padding = 1, kernel // 2
        if self.down and kernel == 1:
            maps = downsample(maps)  # a 1 x 1 convolution and the filter commute; this order is cheaper
        elif self.down:
            maps, stride, padding = blur(maps, padding=2), 2, 0
        if not self.activate:  # the gain goes into the small weight and not over the large map
            bias = None if bias is None else bias * gain
            return functional.conv2d(maps, weight * gain, bias, stride, padding)
        return leaky(functional.conv2d(maps, weight, bias, stride, padding), _GAIN * gain)


class ModulatedConv(nn.Module):
    """Convolution whose kernels each picture's style scales (Karras et al. 2020, section 2.2).

    The paper scales the weights by the style s, w' = s_i w_oik (equation 1), and divides by their norm (equation 3).
    The same comes out of scaling the *input* by s, convolving all pictures with one weight, and scaling the *output* by
    the reciprocal norm, which is several times faster on a CPU than one group of weights a picture.

    Args:
        inputs: Input channels.
        outputs: Output channels.
        kernel: Side of the kernel, 1 or 3.
        w_dim: Length of w.
        up: Whether height and width are doubled (transposed convolution, then the filter).
        demodulate: Whether the outputs are brought to unit variance.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int, w_dim: int, up: bool = False, demodulate: bool = True
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.style = EqualLinear(w_dim, inputs, bias=1.0)
        self.up, self.demodulate = up, demodulate
        self.scale = 1 / math.sqrt(inputs * kernel**2)

    def forward(self, maps: Tensor, w: Tensor) -> Tensor:
        """``(B, inputs, H, W)`` and ``(B, w_dim)`` -> ``(B, outputs, H, W)``, or twice that size."""
        style = self.style(w)
        weight = self.weight * self.scale
        maps = maps * style[:, :, None, None]
        if self.up:
            maps = functional.conv_transpose2d(maps, weight.transpose(0, 1), stride=2)
            maps = blur(maps, padding=1)
        else:
            maps = functional.conv2d(maps, weight, padding=weight.shape[-1] // 2)
        # Zeros between the pixels of an enlarged map divide its mean by four.
        gain = 4.0 if self.up else 1.0
        if self.demodulate:
            norm = functional.linear(style.square(), weight.square().sum((2, 3)))
            return maps * (gain * torch.rsqrt(norm + _TINY))[:, :, None, None]
        return maps if gain == 1.0 else maps * gain


class StyledLayer(nn.Module):
    """Modulated 3 x 3 convolution, noise of a learned strength, bias, leaky ReLU.

    Args:
        inputs: Input channels.
        outputs: Output channels.
        w_dim: Length of w.
        resolution: Side of the *output* in pixels.
        up: Whether the input has half of that side.
    """

    noise_const: Tensor

    def __init__(self, inputs: int, outputs: int, w_dim: int, resolution: int, up: bool = False) -> None:
        super().__init__()
        self.conv = ModulatedConv(inputs, outputs, 3, w_dim, up=up)
        self.noise_strength = nn.Parameter(torch.zeros(()))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.register_buffer("noise_const", torch.randn(resolution, resolution))

    def forward(self, maps: Tensor, w: Tensor, noise: Tensor | None) -> Tensor:
        """Maps ``(B, C, H, W)``, w ``(B, w_dim)``, noise ``(B, 1, R, R)``, ``(R, R)`` or None -> ``(B, C', R, R)``."""
        maps = self.conv(maps, w)
        if noise is not None:
            maps = maps + noise * self.noise_strength
        return leaky(maps + self.bias[:, None, None])


class ToRGB(nn.Module):
    """Modulated 1 x 1 convolution to colours, without demodulation.

    Args:
        inputs: Input channels.
        w_dim: Length of w.
    """

    def __init__(self, inputs: int, w_dim: int) -> None:
        super().__init__()
        self.conv = ModulatedConv(inputs, 3, 1, w_dim, demodulate=False)
        self.bias = nn.Parameter(torch.zeros(3))

    def forward(self, maps: Tensor, w: Tensor) -> Tensor:
        """``(B, C, R, R)`` and ``(B, w_dim)`` -> ``(B, 3, R, R)``."""
        colours: Tensor = self.conv(maps, w)
        return colours + self.bias[:, None, None]
