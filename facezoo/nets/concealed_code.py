"""Networks that hide a code in a picture and read it back from the saved file.

The code is a field of phasors: unit complex numbers, ``channels`` of them in each cell of 4x4 pixels, whose angles the
code encoder chooses. Between encoder and picture every angle is turned by an angle of the key's stream
(``facezoo.concealment.phase_code``), so what the embedder sees is uniformly random and independent of the face,
whatever the networks learn.

All of it works on 4x4-pixel cells (pixel-unshuffle), which keeps the convolutions small.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

CELL = 4
"""Pixels of a code cell's side."""

_CARRIER_AMPLITUDE = 0.06
"""Start of the code's strength, of the [-1, 1] range: about 4 of 255 levels at a pixel for 4 phasors a cell."""

_CARRIERS = ((1, 1), (0, 2), (2, 0), (1, 2), (2, 1), (0, 3), (3, 0), (2, 2), (1, 3), (3, 1), (2, 3), (3, 2))
"""Cosine patterns of a 4x4 cell (horizontal, vertical frequency) that carry the code at first: little of a smooth
picture lies there, and JPEG of good quality keeps them."""


def carrier_patterns(count: int) -> Tensor:
    """``(count, 48)`` brightness patterns of a cell, orthonormal, in the channel order of pixel-unshuffle.

    Raises:
        ValueError: More patterns than there are.
    """
    if count > len(_CARRIERS):
        raise ValueError(f"at most {len(_CARRIERS) // 2} code channels fit a cell of {CELL}x{CELL} pixels")
    places = (torch.arange(CELL) + 0.5) * math.pi / CELL
    rows = []
    for horizontal, vertical in _CARRIERS[:count]:
        pattern = torch.cos(vertical * places)[:, None] * torch.cos(horizontal * places)[None, :]
        rows.append((pattern / pattern.norm()).flatten().repeat(3) / 3**0.5)
    return torch.stack(rows)


PHASE_LIMIT = 0.85
"""Angles of the code stay within this part of a half turn, so that noise seldom carries one over the seam at pi."""


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a LeakyReLU, added to the input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        # Small, not zero: the block starts near the identity map and still learns from the first step.
        with torch.no_grad():
            self.conv2.weight.mul_(0.2)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` -> the same shape."""
        y: Tensor = self.conv2(functional.leaky_relu(self.conv1(functional.leaky_relu(x, 0.1)), 0.1))
        return x + y


def _trunk(c_in: int, width: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(c_in, width, 3, padding=1), *(ResidualBlock(width) for _ in range(blocks)))


class CodeEncoder(nn.Module):
    """Original face -> angles of the code."""

    def __init__(self, channels: int, width: int, blocks: int) -> None:
        super().__init__()
        self.trunk = _trunk(3 * CELL * CELL, width, blocks)
        self.head = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, faces: Tensor) -> Tensor:
        """``(B, 3, S, S)`` in [-1, 1] -> angles ``(B, C, S/4, S/4)`` in radians, within +-0.85 pi."""
        raw = self.head(functional.leaky_relu(self.trunk(functional.pixel_unshuffle(faces, CELL)), 0.1))
        return PHASE_LIMIT * math.pi * torch.tanh(raw.to(faces.dtype))


class CodeEmbedder(nn.Module):
    """Cover picture and (encrypted) phasors -> the change of pixels that carries them."""

    def __init__(self, channels: int, width: int, blocks: int, limit: float) -> None:
        super().__init__()
        self.limit = limit
        self.trunk = _trunk(3 * CELL * CELL + 2 * channels, width, blocks)
        self.head = nn.Conv2d(width, 3 * CELL * CELL, 3, padding=1)
        # Starts as plain modulation of cosine patterns: the reader finds something from the first batch on. Without it
        # neither side learned anything in 300 batches, each waiting for the other.
        self.carrier = nn.Conv2d(2 * channels, 3 * CELL * CELL, 1, bias=False)
        with torch.no_grad():
            self.carrier.weight.copy_(_CARRIER_AMPLITUDE * carrier_patterns(2 * channels).T[:, :, None, None])
            self.head.weight.mul_(0.01)

    def forward(self, cover: Tensor, phasors: Tensor) -> Tensor:
        """``(B, 3, S, S)`` in [-1, 1] and ``(B, 2C, S/4, S/4)`` -> residual ``(B, 3, S, S)``, at most ``limit``."""
        cells = torch.cat([functional.pixel_unshuffle(cover, CELL), phasors], dim=1)
        raw = (self.head(functional.leaky_relu(self.trunk(cells), 0.1)) + self.carrier(phasors)).to(cover.dtype)
        return self.limit * torch.tanh(functional.pixel_shuffle(raw, CELL) / self.limit)


class CodeExtractor(nn.Module):
    """Saved picture -> (encrypted) phasors; their length says how sure the network is."""

    def __init__(self, channels: int, width: int, blocks: int) -> None:
        super().__init__()
        self.trunk = _trunk(3 * CELL * CELL, width, blocks)
        self.head = nn.Conv2d(width, 2 * channels, 3, padding=1)
        # The matched filter of the embedder's starting carrier.
        self.matched = nn.Conv2d(3 * CELL * CELL, 2 * channels, 1, bias=False)
        with torch.no_grad():
            self.matched.weight.copy_(carrier_patterns(2 * channels)[:, :, None, None] / _CARRIER_AMPLITUDE)
            self.head.weight.mul_(0.01)

    def forward(self, saved: Tensor) -> Tensor:
        """``(B, 3, S, S)`` in [-1, 1] -> ``(B, 2C, S/4, S/4)``: real parts, then imaginary parts."""
        cells = functional.pixel_unshuffle(saved, CELL)
        phasors: Tensor = self.head(functional.leaky_relu(self.trunk(cells), 0.1)) + self.matched(cells)
        return phasors.to(saved.dtype)


class Revealer(nn.Module):
    """Saved picture and decrypted phasors -> the original face."""

    def __init__(self, channels: int, width: int, blocks: int) -> None:
        super().__init__()
        self.trunk = _trunk(3 * CELL * CELL + 2 * channels, width, blocks)
        half = width // 4
        self.grow = nn.Conv2d(width, 4 * half, 3, padding=1)
        self.fine = nn.Sequential(nn.Conv2d(half + 12, half, 3, padding=1), ResidualBlock(half))
        self.head = nn.Conv2d(half, 12, 3, padding=1)

    def forward(self, saved: Tensor, phasors: Tensor) -> Tensor:
        """``(B, 3, S, S)`` in [-1, 1] and ``(B, 2C, S/4, S/4)`` -> ``(B, 3, S, S)`` in [-1, 1]."""
        cells = torch.cat([functional.pixel_unshuffle(saved, CELL), phasors], dim=1)
        grown = functional.pixel_shuffle(self.grow(functional.leaky_relu(self.trunk(cells), 0.1)), 2)
        fine = self.fine(torch.cat([grown, functional.pixel_unshuffle(saved, 2)], dim=1))
        raw = functional.pixel_shuffle(self.head(functional.leaky_relu(fine, 0.1)), 2)
        return torch.tanh(raw.to(saved.dtype))


def to_phasors(angles: Tensor) -> Tensor:
    """``(B, C, H, W)`` radians -> ``(B, 2C, H, W)`` cosines, then sines."""
    return torch.cat([torch.cos(angles), torch.sin(angles)], dim=1)


def turn(phasors: Tensor, angles: Tensor) -> Tensor:
    """Complex product of ``(B, 2C, H, W)`` phasors with ``exp(i angles)``, ``(B, C, H, W)``."""
    real, imaginary = phasors.chunk(2, dim=1)
    cosine, sine = torch.cos(angles), torch.sin(angles)
    return torch.cat([real * cosine - imaginary * sine, real * sine + imaginary * cosine], dim=1)
