"""Adaptive attentional denormalisation: the disentangling generator of the book's chapters 5, 6 and 8 (table 8.3).

The attribute encoder is a U-Net whose decoder gives one feature map a level; the generator is a cascade of AAD residual
blocks, one a level, each of which mixes the attribute map of its level with the identity vector.

Deviations from the book, and why:

* Normalisation is by groups of channels, not by the batch. Batch statistics are never synchronised between processes in
  manual optimisation, and a group norm is defined on the 1x1 level that a 128-pixel picture has.
* Eight levels start at ``size / 128`` pixels: 2x2 for 256 as in the book, 1x1 for 128. At 64 there are seven.
* The up-path of the encoder uses bilinear upsampling and a 3x3 convolution instead of a 4x4 transposed convolution
  (no checkerboard); the last level of the book (plain bilinear upsampling of the concatenated map) is kept.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

LEAKY_SLOPE = 0.1  # table 8.3: LeakyReLU alpha = 0.1


def group_norm(channels: int, *, affine: bool = True) -> nn.GroupNorm:
    """Group normalisation with at most 8 groups that divide ``channels``."""
    groups = next(g for g in (8, 4, 2, 1) if channels % g == 0)
    return nn.GroupNorm(groups, channels, affine=affine)


def level_resolutions(size: int, levels: int) -> list[int]:
    """Resolutions of the levels from the coarsest to the finest, e.g. ``(256, 8) -> [2, 4, ..., 256]``.

    Raises:
        ValueError: ``size`` is not a multiple of ``2 ** (levels - 1)``.
    """
    step = 2 ** (levels - 1)
    if size % step:
        raise ValueError(f"a picture of {size} pixels cannot be halved {levels - 1} times; use fewer levels")
    return [size // step * 2**i for i in range(levels)]


class AttributeEncoder(nn.Module):
    """U-Net that turns a picture into one attribute map a level (book, equation 6.8).

    Args:
        channels: Width of the down-path at each level, coarsest first; ``channels[-1]`` is the width at full size.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        fine_to_coarse = list(channels)[::-1]
        self.stem = nn.Conv2d(3, fine_to_coarse[0], 3, padding=1)
        self.down = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(c_in, c_out, 4, stride=2, padding=1, bias=False),
                group_norm(c_out),
                nn.LeakyReLU(LEAKY_SLOPE, inplace=True),
            )
            for c_in, c_out in itertools.pairwise(fine_to_coarse)
        )
        coarse_to_fine = list(channels)
        up_inputs = [coarse_to_fine[0]] + [2 * c for c in coarse_to_fine[1:-1]]
        self.up = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(c_in, c_out, 3, padding=1, bias=False),
                group_norm(c_out),
                nn.LeakyReLU(LEAKY_SLOPE, inplace=True),
            )
            for c_in, c_out in zip(up_inputs[:-1], coarse_to_fine[1:-1], strict=True)
        )
        # What the generator receives: bottleneck, concatenated up-levels, and the stem beside the last upsampling.
        self.out_channels = [
            coarse_to_fine[0],
            *(2 * c for c in coarse_to_fine[1:-1]),
            2 * coarse_to_fine[-2] + coarse_to_fine[-1],
        ]

    def forward(self, faces: Tensor) -> list[Tensor]:
        """``(B, 3, S, S)`` in [-1, 1] -> attribute maps, coarsest first; the last has the size of the picture."""
        skips = [self.stem(faces)]
        for down in self.down:
            skips.append(down(skips[-1]))
        maps = [skips[-1]]
        for up, skip in zip(self.up, skips[-2:0:-1], strict=True):
            grown = functional.interpolate(maps[-1], scale_factor=2, mode="bilinear", align_corners=False)
            maps.append(torch.cat([up(grown), skip], dim=1))
        grown = functional.interpolate(maps[-1], scale_factor=2, mode="bilinear", align_corners=False)
        maps.append(torch.cat([grown, skips[0]], dim=1))
        return maps


class PointwiseLinear(nn.Linear):
    """A 1x1 convolution as a matrix product.

    With channels_last memory it needs no copy, and on a CPU 1x1 convolutions of few channels take a slow path.
    """

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C_in, H, W)`` -> ``(B, C_out, H, W)``."""
        return functional.linear(x.permute(0, 2, 3, 1), self.weight, self.bias).permute(0, 3, 1, 2)


class AADLayer(nn.Module):
    """Adaptive attentional denormalisation: ``(1 - m) * attributes + m * identity`` on a normalised activation."""

    def __init__(self, channels: int, attribute_channels: int, identity_dim: int) -> None:
        super().__init__()
        self.norm = group_norm(channels, affine=False)
        self.attribute = PointwiseLinear(attribute_channels, 2 * channels)
        self.identity = nn.Linear(identity_dim, 2 * channels)
        self.attention = PointwiseLinear(channels, 1)

    def forward(self, hidden: Tensor, attribute_map: Tensor, identity: Tensor) -> Tensor:
        """``(B, C, H, W)``, ``(B, A, H, W)``, ``(B, D)`` -> ``(B, C, H, W)``."""
        normal = self.norm(hidden)
        gain_a, bias_a = self.attribute(attribute_map).chunk(2, dim=1)
        gain_i, bias_i = self.identity(identity)[:, :, None, None].chunk(2, dim=1)
        mask = torch.sigmoid(self.attention(normal))
        # (1-m)*(n*ga+ba) + m*(n*gi+bi), regrouped so that the activation is multiplied once.
        gain = torch.lerp(gain_a, gain_i.expand_as(gain_a), mask)
        bias = torch.lerp(bias_a, bias_i.expand_as(bias_a), mask)
        return torch.addcmul(bias, normal, 1 + gain)


class AADResBlock(nn.Module):
    """AAD, activation, 3x3 convolution, twice, with an AAD shortcut where the width changes (FaceShifter)."""

    def __init__(self, c_in: int, c_out: int, attribute_channels: int, identity_dim: int) -> None:
        super().__init__()
        self.aad1 = AADLayer(c_in, attribute_channels, identity_dim)
        self.conv1 = nn.Conv2d(c_in, c_in, 3, padding=1)
        self.aad2 = AADLayer(c_in, attribute_channels, identity_dim)
        self.conv2 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.aad_shortcut = AADLayer(c_in, attribute_channels, identity_dim) if c_in != c_out else None
        self.conv_shortcut = nn.Conv2d(c_in, c_out, 3, padding=1) if c_in != c_out else None

    def forward(self, hidden: Tensor, attribute_map: Tensor, identity: Tensor) -> Tensor:
        """``(B, c_in, H, W)`` -> ``(B, c_out, H, W)``."""
        y = self.conv1(functional.leaky_relu(self.aad1(hidden, attribute_map, identity), LEAKY_SLOPE))
        y = self.conv2(functional.leaky_relu(self.aad2(y, attribute_map, identity), LEAKY_SLOPE))
        if self.aad_shortcut is None or self.conv_shortcut is None:
            return y + hidden
        shortcut = functional.leaky_relu(self.aad_shortcut(hidden, attribute_map, identity), LEAKY_SLOPE)
        return y + self.conv_shortcut(shortcut)


class AADGenerator(nn.Module):
    """Cascade of AAD residual blocks from an identity vector to a picture (book, equations 5.9 and 6.18).

    Args:
        widths: Input width of each block, coarsest first (book at 256: 1024, 1024, 1024, 1024, 512, 256, 128, 64).
        attribute_channels: ``AttributeEncoder.out_channels``.
        identity_dim: Length of the identity vector.
        start: Resolution of the coarsest level (1 or 2).
        constants: Adds a learned constant map at each level. The faces are aligned, so eyes and mouth have fixed
            places; a generator whose attribute maps are blurred inside the face has otherwise only the zero padding to
            tell it where it paints, and learned no eyes in 900 batches.
    """

    def __init__(
        self,
        widths: Sequence[int],
        attribute_channels: Sequence[int],
        identity_dim: int,
        start: int,
        *,
        constants: bool = False,
    ) -> None:
        super().__init__()
        if len(widths) != len(attribute_channels):
            raise ValueError(f"{len(widths)} blocks but {len(attribute_channels)} attribute maps")
        # A transposed convolution of a 1x1 input to start x start pixels (book: 4x4, stride 2, pad 1 gives 2x2).
        self.start = nn.ConvTranspose2d(identity_dim, widths[0], start)
        outs = [*widths[1:], 3]
        self.blocks = nn.ModuleList(
            AADResBlock(c_in, c_out, a, identity_dim)
            for c_in, c_out, a in zip(widths, outs, attribute_channels, strict=True)
        )

        sides = [start * 2**i for i in range(len(widths))] if constants else []
        self.constants = nn.ParameterList(
            nn.Parameter(0.02 * torch.randn(1, c, side, side)) for c, side in zip(widths, sides, strict=False)
        )

    def forward(self, identity: Tensor, attribute_maps: Sequence[Tensor]) -> Tensor:
        """``(B, D)`` and the attribute maps -> ``(B, 3, S, S)`` in (-1, 1).

        The identity vector is expected at unit length; it is scaled here by sqrt(D) so that its entries have unit
        variance, which is what the linear layers are initialised for.
        """
        scaled = identity * identity.shape[1] ** 0.5
        hidden = self.start(scaled[:, :, None, None])
        for i, (block, attribute_map) in enumerate(zip(self.blocks, attribute_maps, strict=True)):
            if i:
                hidden = functional.interpolate(hidden, scale_factor=2, mode="bilinear", align_corners=False)
            if len(self.constants):
                hidden = hidden + self.constants[i]
            hidden = block(hidden, attribute_map, scaled)
        return torch.tanh(hidden)
