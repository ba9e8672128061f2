"""The refiner: a small U-Net that turns the linear guess into a photograph, under the identity's eye."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Refiner"]

_CHANGE = 0.8
"""Largest change to the guess, of the [-1, 1] range."""
_GROUP = 16


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(max(1, width // _GROUP), width)


class _Block(nn.Module):
    """Residual block; with ``condition`` its second normalisation is scaled and shifted by the identity."""

    def __init__(self, width_in: int, width: int, condition: int = 0) -> None:
        super().__init__()
        self.norm1, self.norm2 = _norm(width_in), _norm(width)
        self.conv1 = nn.Conv2d(width_in, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.skip: nn.Module = nn.Conv2d(width_in, width, 1) if width_in != width else nn.Identity()
        self.style = nn.Linear(condition, 2 * width) if condition else None

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        y = self.conv1(functional.silu(self.norm1(x)))
        y = self.norm2(y)
        if self.style is not None and condition is not None:
            scale, shift = self.style(condition)[:, :, None, None].chunk(2, 1)
            y = y * (1 + scale) + shift
        result: Tensor = self.skip(x) + self.conv2(functional.silu(y))
        return result


class Refiner(nn.Module):
    """U-Net on the picture folded by two; identity by scale and shift in the way up; a residual that starts at zero.

    Args:
        widths: channels at half the picture's size, a quarter, and so on.
        condition: length of the vector that tells who is painted.
    """

    def __init__(self, widths: Sequence[int], condition: int) -> None:
        super().__init__()
        widths = list(widths)
        self.embed = nn.Sequential(nn.Linear(condition, 128), nn.SiLU())
        self.stem = nn.Conv2d(6 * 4, widths[0], 3, padding=1)
        self.down = nn.ModuleList(_Block(w, w) for w in widths)
        self.shrink = nn.ModuleList(nn.Conv2d(a, b, 4, stride=2, padding=1) for a, b in itertools.pairwise(widths))
        self.middle = _Block(widths[-1], widths[-1], 128)
        self.up = nn.ModuleList(_Block(2 * w, w, 128) for w in reversed(widths))
        self.grow = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in reversed(list(itertools.pairwise(widths))))
        self.head = nn.Conv2d(widths[0], 3 * 4, 3, padding=1)
        for parameter in self.head.parameters():
            nn.init.zeros_(parameter)

    def forward(self, guess: Tensor, places: Tensor, mask: Tensor, condition: Tensor) -> Tensor:
        """Refines the inside of a mask.

        Args:
            guess: ``(B, 3, S, S)`` in [-1, 1], the linear guess in its surroundings; S a multiple of 2^(levels).
            places: ``(B, 2, S, S)`` where each pixel lies in the frame, in [-1, 1].
            mask: ``(B, 1, S, S)`` in [0, 1].
            condition: ``(B, C)``.

        Returns:
            ``(B, 3, S, S)`` in [-1, 1]; outside the mask exactly ``guess``.
        """
        style = self.embed(condition)
        x = self.stem(functional.pixel_unshuffle(torch.cat([guess, places, mask * 2 - 1], 1), 2))
        kept = []
        for level, block in enumerate(self.down):
            x = block(x)
            kept.append(x)
            if level < len(self.shrink):
                x = self.shrink[level](x)
        x = self.middle(x, style)
        for level, block in enumerate(self.up):
            x = block(torch.cat([x, kept.pop()], 1), style)
            if level < len(self.grow):
                x = self.grow[level](functional.interpolate(x, scale_factor=2, mode="nearest"))
        change = functional.pixel_shuffle(self.head(functional.silu(x)), 2)
        refined = (guess + _CHANGE * torch.tanh(change.float())).clamp(-1, 1)
        return torch.lerp(guess, refined, mask)
