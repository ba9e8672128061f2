"""Networks of iFADIT that no other method has: attribute encoder, mapping M, identity compensation C, coarse view.

Sources: Yuan et al., iFADIT, section 3; Richardson et al., "Encoding in Style" (pSp), CVPR 2021, for the attribute
encoder. Batch normalisation is replaced by group normalisation: its statistics drift apart between processes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

_SLOPE = 0.2


def _norm(channels: int) -> nn.GroupNorm:
    """Group normalisation with groups of at least four channels where there are that many."""
    return nn.GroupNorm(math.gcd(channels, max(1, min(32, channels // 4))), channels)


class SqueezeBlock(nn.Module):
    """Residual block with squeeze and excitation, as of ArcFace's IR-SE networks, which pSp takes its features from.

    Args:
        inputs: Channels in.
        outputs: Channels out.
        stride: 1 or 2.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _norm(inputs),
            nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False),
            nn.PReLU(outputs),
            nn.Conv2d(outputs, outputs, 3, stride, 1, bias=False),
            _norm(outputs),
        )
        squeezed = max(4, outputs // 16)
        self.excite = nn.Sequential(
            nn.Conv2d(outputs, squeezed, 1), nn.ReLU(), nn.Conv2d(squeezed, outputs, 1), nn.Sigmoid()
        )
        # pSp takes every second pixel. The mean of four is smoother, and a strided convolution of one pixel corrupted
        # memory in its backward pass (torch 2.13 on a CPU, 4 channels to 8, channels last).
        shortcut: list[nn.Module] = [nn.AvgPool2d(stride)] if stride != 1 else []
        if inputs != outputs:
            shortcut.append(nn.Conv2d(inputs, outputs, 1, bias=False))
        self.shortcut = nn.Sequential(*shortcut)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, inputs, H, W)`` -> ``(B, outputs, H / stride, W / stride)``."""
        y = self.body(x)
        result: Tensor = y * self.excite(y.mean((2, 3), keepdim=True)) + self.shortcut(x)
        return result


class MapToStyle(nn.Module):
    """pSp's map2style: strided convolutions down to one pixel, then a linear layer.

    Args:
        channels: Channels of the map.
        side: Its side, a power of two of at least 2.
        width: Channels of the convolutions.
        style: Length of the latent.
    """

    def __init__(self, channels: int, side: int, width: int, style: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for number in range(side.bit_length() - 1):
            layers += [nn.Conv2d(channels if number == 0 else width, width, 3, 2, 1), nn.LeakyReLU(0.01)]
        self.convolutions = nn.Sequential(*layers)
        self.linear = nn.Linear(width, style)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, channels, side, side)`` -> ``(B, style)``."""
        styles: Tensor = self.linear(self.convolutions(x).flatten(1))
        return styles


class AttributeEncoder(nn.Module):
    """E_Attr: a picture to latents of W+, as the difference from the generator's mean latent.

    A residual network gives three maps (an 16th, an 8th and a 4th of the side); a feature pyramid adds the coarser to
    the finer; each latent has a head of its own, the first ones on the coarsest map.

    Args:
        resolution: Side of the pictures.
        widths: Channels of the four stages.
        blocks: Residual blocks of each stage.
        counts: Latents made from the coarsest, middle and finest map.
        head_width: Channels of the heads.
        style: Length of a latent.
    """

    def __init__(
        self,
        resolution: int,
        widths: Sequence[int],
        blocks: Sequence[int],
        counts: tuple[int, int, int],
        head_width: int,
        style: int,
    ) -> None:
        super().__init__()
        self.entry = nn.Sequential(nn.Conv2d(3, widths[0], 3, 1, 1, bias=False), _norm(widths[0]), nn.PReLU(widths[0]))
        stages, inputs = [], widths[0]
        for width, count in zip(widths, blocks, strict=True):
            stages.append(
                nn.Sequential(*(SqueezeBlock(inputs if i == 0 else width, width, 2 if i == 0 else 1)
                                for i in range(count)))
            )  # fmt: skip
            inputs = width
        self.stages = nn.ModuleList(stages)
        channels = widths[3]
        self.lateral_medium = nn.Conv2d(widths[2], channels, 1)
        self.lateral_fine = nn.Conv2d(widths[1], channels, 1)
        coarse, medium, fine = counts
        sides = (resolution // 16,) * coarse + (resolution // 8,) * medium + (resolution // 4,) * fine
        self.counts = counts
        self.heads = nn.ModuleList(MapToStyle(channels, side, head_width, style) for side in sides)

    def forward(self, pictures: Tensor) -> Tensor:
        """``(B, 3, R, R)`` in [-1, 1] -> ``(B, num_ws, style)``, to be added to the mean latent."""
        x = self.stages[0](self.entry(pictures))
        quarter = self.stages[1](x)
        eighth = self.stages[2](quarter)
        coarse = self.stages[3](eighth)
        medium = functional.interpolate(coarse, scale_factor=2.0, mode="bilinear", align_corners=False)
        medium = medium + self.lateral_medium(eighth)
        fine = functional.interpolate(medium, scale_factor=2.0, mode="bilinear", align_corners=False)
        fine = fine + self.lateral_fine(quarter)
        maps = [coarse] * self.counts[0] + [medium] * self.counts[1] + [fine] * self.counts[2]
        return torch.stack([head(m) for head, m in zip(self.heads, maps, strict=True)], 1)


class LayerwiseLinear(nn.Module):
    """A linear layer of its own for each latent, or one for all.

    Args:
        layers: Number of latents; 1 for one matrix for all.
        inputs: Length in.
        outputs: Length out.
    """

    def __init__(self, layers: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(layers, inputs, outputs) / math.sqrt(inputs))
        self.bias = nn.Parameter(torch.zeros(layers, 1, outputs))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, num_ws, inputs)`` -> ``(B, num_ws, outputs)``."""
        return (torch.matmul(x.transpose(0, 1), self.weight) + self.bias).transpose(0, 1)


class IdentityMapper(nn.Module):
    """M(z, a) = MLP2([R(z), a]), paper equation (2), as the difference from the generator's mean latent.

    Args:
        identity_dim: Length of z.
        style: Length of a latent.
        layers: Number of latents.
        hidden: Width.
        by_layer: Weights of its own for each latent.
        residual: Add to ``a`` instead of replacing it.
    """

    def __init__(self, identity_dim: int, style: int, layers: int, hidden: int, by_layer: bool, residual: bool) -> None:
        super().__init__()
        count = layers if by_layer else 1
        self.first = LayerwiseLinear(count, identity_dim + style, hidden)
        self.second = LayerwiseLinear(count, hidden, style)
        self.residual = residual
        with torch.no_grad():
            self.second.weight.mul_(0.1)  # begin near the mean face, where the generator draws faces

    def forward(self, identity: Tensor, attributes: Tensor) -> Tensor:
        """Identity ``(B, D)`` (components of about unit size) and attributes ``(B, num_ws, style)`` -> the latter's."""
        repeated = identity[:, None].expand(-1, attributes.shape[1], -1)
        x = functional.leaky_relu(self.first(torch.cat([repeated, attributes], -1)), _SLOPE)
        x = self.second(x)
        return x + attributes if self.residual else x


class IdentityCompensation(nn.Module):
    """C: a four-layer network that corrects an identity read off a picture towards the one that was drawn.

    It begins as the identity function: its last layer is 0 and it adds to its input.

    Args:
        dim: Length of the identity.
        hidden: Width of the three hidden layers.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(dim, hidden),
            nn.LeakyReLU(_SLOPE),
            nn.Linear(hidden, hidden),
            nn.LeakyReLU(_SLOPE),
            nn.Linear(hidden, hidden),
            nn.LeakyReLU(_SLOPE),
            nn.Linear(hidden, dim),
        )
        last = self.layers[-1]
        nn.init.zeros_(last.weight)  # type: ignore[arg-type]
        nn.init.zeros_(last.bias)  # type: ignore[arg-type]

    def forward(self, identity: Tensor) -> Tensor:
        """``(B, D)``, components of about unit size -> the same."""
        corrected: Tensor = identity + self.layers(identity)
        return corrected


def coarse_inside(faces: Tensor, mask: Tensor, grid: int) -> Tensor:
    """Faces whose inside is shown with ``grid`` x ``grid`` pixels only.

    Args:
        faces: ``(B, 3, R, R)``.
        mask: ``(R, R)``, 1 inside.
        grid: Pixels across; 0 leaves the faces as they are.
    """
    if not grid:
        return faces
    small = functional.adaptive_avg_pool2d(faces, grid)
    blurred = functional.interpolate(small, size=faces.shape[-2:], mode="bicubic", align_corners=False)
    return torch.lerp(faces, blurred.clamp(-1, 1), mask)
