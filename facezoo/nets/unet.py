"""A small U-Net (Ronneberger et al., MICCAI 2015) from pictures to pictures of the same size."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional


def _block(inputs: int, outputs: int) -> nn.Sequential:
    """Two convolutions; normalised over groups, so that a picture's result does not depend on the batch."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1),
        nn.GroupNorm(min(8, outputs), outputs),
        nn.SiLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1),
        nn.GroupNorm(min(8, outputs), outputs),
        nn.SiLU(),
    )


class UNet(nn.Module):
    """Adds what it has learned to its input; untrained it gives the input back.

    Args:
        width: channels at full size; a multiple of 8 or below 8. Doubled at each halving, at most to four times.
        depth: how often the picture is halved.
    """

    def __init__(self, width: int = 32, depth: int = 4) -> None:
        super().__init__()
        widths = [min(width * 2**level, width * 4) for level in range(depth + 1)]
        self.entry = _block(3, widths[0])
        self.down = nn.ModuleList(_block(a, b) for a, b in itertools.pairwise(widths))
        self.up = nn.ModuleList(
            _block(a + b, b) for a, b in zip(reversed(widths[1:]), reversed(widths[:-1]), strict=True)
        )
        self.exit = nn.Conv2d(widths[0], 3, 1)
        with torch.no_grad():
            for parameter in self.exit.parameters():
                parameter.zero_()

    def forward(self, pictures: Tensor) -> Tensor:
        """``(B, 3, H, W)`` -> the same shape, unbounded; any H and W."""
        x = self.entry(pictures)
        kept = []
        for block in self.down:
            kept.append(x)
            x = block(functional.avg_pool2d(x, 2, ceil_mode=True))
        for block, side in zip(self.up, reversed(kept), strict=True):
            grown = functional.interpolate(x, size=side.shape[2:], mode="bilinear", align_corners=False)
            x = block(torch.cat((grown, side), 1))
        return pictures + self.exit(x)
