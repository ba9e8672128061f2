"""A code of numbers in a picture that nobody sees, without a network: quantisation index modulation.

Source: Chen, Wornell, "Quantization index modulation", IEEE Trans. Information Theory 47(4), 2001 (dither modulation).

The brightness of the crop is cut into cells of 8x8 pixels. Each of the 16 lowest frequencies of a cell (but its mean)
is moved to the nearest place whose remainder modulo a step is an *angle* of the code. The picture itself is therefore
no noise to the reader, as it is where a pattern is added: what disturbs is only rounding, JPEG and resampling. A
change is at most half a step; on average it is ``step / 12 ** .5`` in a quarter of the cell's frequencies.

What is told are a few hundred numbers, standard normal, of which several angles each tell one: some plainly, the others
finer by a factor, as on a vernier. The reader takes the mean of what is likely given all of them and how noisy the
pilots are, so that a damaged file gives a vaguer number and not a wild one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from facezoo.concealment.phase_code import CodeLayout
from facezoo.nets.concealed_code import PHASE_LIMIT

__all__ = ["LATTICE_CELL", "Lattice", "LatticeLayout"]

LATTICE_CELL = 8
"""Pixels of a cell's side."""
_FREQUENCIES = (
    (0, 1), (1, 0), (2, 0), (0, 2), (0, 3), (1, 2), (2, 1), (3, 0), (4, 0), (3, 1), (2, 2), (1, 3), (0, 4), (0, 5),
    (1, 4), (1, 1),
)  # fmt: skip
"""(vertical, horizontal) frequency of each channel; the last one carries the pilots."""
_MARGIN = 1
"""Cells at the border of the crop that carry nothing: a change fades out there."""
_PILOTS = 96
_REPEATS = 6
_FINER = 3
"""How much finer the later angles of a number tell it."""
_PLAIN = 0.6
"""Part of the angles of a number that tell it plainly."""
_RANGE = 3.0
"""Numbers are told within this many deviations."""
_GRID = 241
_LUMA = (0.299, 0.587, 0.114)


class LatticeLayout(CodeLayout):
    """Which angle carries what: pilots in the last channel; nonce, tag and numbers scattered over all others.

    Args:
        side: cells of a side of the crop.
        purpose: the method's own purpose for the key's expansions.

    Raises:
        ValueError: the crop is too small for pilots, nonce and tag.
    """

    nonce_bits = 64
    tag_bits = 32

    def __init__(self, side: int, purpose: str) -> None:
        self.channels, self.side, self.purpose = len(_FREQUENCIES), side, purpose
        row, column = np.mgrid[0:side, 0:side]
        inner = np.minimum(np.minimum(row, column), np.minimum(side - 1 - row, side - 1 - column)) >= _MARGIN
        cells = torch.from_numpy(np.flatnonzero(inner.ravel()))
        rng = torch.Generator().manual_seed(20263)
        last = (self.channels - 1) * side * side
        shuffled = cells[torch.randperm(len(cells), generator=rng)]
        if len(shuffled) < _PILOTS:
            raise ValueError(f"a code of {side}x{side} cells has no room for {_PILOTS} pilots")
        self.pilots = last + shuffled[:_PILOTS]
        others = torch.cat([*(channel * side * side + cells for channel in range(self.channels - 1))])
        places = torch.cat([others, last + shuffled[_PILOTS:]])
        places = places[torch.randperm(len(places), generator=rng)]
        bits = self.nonce_bits + self.tag_bits
        self.repeats = _REPEATS
        if len(places) < 2 * bits * _REPEATS:
            raise ValueError(f"a code of {side}x{side} cells has no room for nonce and tag")
        self.nonce = places[: self.nonce_bits * _REPEATS].view(-1, self.nonce_bits)
        self.tag = places[self.nonce_bits * _REPEATS : bits * _REPEATS].view(-1, self.tag_bits)
        self.numbers = places[bits * _REPEATS :]
        self.pilot_angles = torch.rand(_PILOTS, generator=rng) * 2 * math.pi
        payload = torch.zeros(self.channels * side * side)
        payload[self.numbers] = 1
        self.payload_mask = payload.view(self.channels, side, side)


class Lattice:
    """Writes numbers into crops and reads them back.

    Args:
        size: side of the crop in pixels, a multiple of 8.
        repeats: for each number of a face, how many angles tell it.
        step_inside: step on the face, in levels of 255.
        step_outside: step elsewhere.
        face: ``(S, S)`` where the face is, in [0, 1].
        purpose: the method's own purpose for the key's expansions.

    Raises:
        ValueError: the crop is too small for so many numbers, or its side is no multiple of 8.
    """

    def __init__(
        self, size: int, repeats: Sequence[int], step_inside: float, step_outside: float, face: Tensor, purpose: str
    ) -> None:
        if size % LATTICE_CELL:
            raise ValueError(f"the side of a crop with a code is a multiple of {LATTICE_CELL}, not {size}")
        self.side, self.count = size // LATTICE_CELL, len(repeats)
        self.layout = LatticeLayout(self.side, purpose)
        if len(self.layout.numbers) < sum(repeats):
            raise ValueError(f"a crop of {size} pixels has no room for {sum(repeats)} angles")
        cells = torch.nn.functional.avg_pool2d(face[None, None].float(), LATTICE_CELL)[0, 0]
        self.step = torch.where(cells > 0.5, step_inside, step_outside)
        self.basis = self._cosines()
        told = torch.tensor(list(repeats))
        self.number = torch.arange(len(told)).repeat_interleave(told)
        turn = torch.cat([torch.arange(r) for r in repeats])
        plain = (told * _PLAIN).ceil().clamp_min(1)[self.number]
        self.factor = torch.where(turn < plain, 1, _FINER)
        self.places = self.layout.numbers[: len(self.number)]

    @staticmethod
    def _cosines() -> Tensor:
        """``(C, 8, 8)`` orthonormal patterns."""
        place = (torch.arange(LATTICE_CELL, dtype=torch.float64) + 0.5) * math.pi / LATTICE_CELL
        rows = [torch.cos(v * place)[:, None] * torch.cos(h * place)[None] for v, h in _FREQUENCIES]
        return torch.stack([row / row.norm() for row in rows]).float()

    # ------------------------------------------------------------------ numbers and angles
    def angles(self, numbers: Tensor) -> Tensor:
        """``(B, N)`` standard normal numbers -> angles ``(B, C, H, W)``; 0 where no number is told."""
        scaled = (numbers / _RANGE).clamp(-1, 1) * (PHASE_LIMIT * math.pi)
        flat = scaled.new_zeros(len(scaled), self.layout.channels * self.side * self.side)
        flat[:, self.places] = scaled[:, self.number] * self.factor
        return flat.view(-1, self.layout.channels, self.side, self.side)

    def numbers(self, phasors: Tensor, coherence: float) -> Tensor:
        """Numbers as they are read: the posterior mean under a standard normal prior and von Mises noise.

        Args:
            phasors: ``(2C, H, W)`` decrypted.
            coherence: mean cosine of the pilots' errors, which tells how noisy the angles are.

        Returns:
            ``(N,)``.
        """
        real, imaginary = phasors.reshape(2, -1)[:, self.places].double()
        grid = torch.linspace(-_RANGE, _RANGE, _GRID, dtype=torch.float64)
        angle = grid / _RANGE * (PHASE_LIMIT * math.pi)
        turned = self.factor[:, None] * angle[None]
        fit = real[:, None] * torch.cos(turned) + imaginary[:, None] * torch.sin(turned)
        r = min(max(coherence, 0.0), 0.995)
        kappa = r * (2 - r * r) / (1 - r * r)  # of a von Mises distribution with this mean resultant length
        log = torch.zeros(self.count, _GRID, dtype=torch.float64).index_add_(0, self.number, kappa * fit)
        weight = torch.softmax(log - grid.square() / 2, dim=1)
        return (weight @ grid).float()

    # ------------------------------------------------------------------ angles and pictures
    def _coefficients(self, faces: Tensor) -> Tensor:
        """``(B, 3, S, S)`` in [-1, 1] -> ``(B, C, H, W)`` in levels."""
        luma = (faces * faces.new_tensor(_LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True) * 127.5 + 127.5
        return torch.nn.functional.conv2d(luma, self.basis[:, None].to(faces), stride=LATTICE_CELL)

    def write(self, covers: Tensor, phasors: Tensor) -> Tensor:
        """Moves the frequencies of ``covers (B, 3, S, S)`` to the angles of ``phasors (B, 2C, H, W)``; unclipped."""
        real, imaginary = phasors.chunk(2, 1)
        step = self.step.to(covers)
        wanted = torch.atan2(imaginary, real) / (2 * math.pi) * step
        inner = torch.zeros(self.side, self.side, device=covers.device, dtype=covers.dtype)
        inner[_MARGIN:-_MARGIN, _MARGIN:-_MARGIN] = 1
        # A clipped pixel cannot be moved: leave it a little room where something is written.
        written = inner.repeat_interleave(LATTICE_CELL, 0).repeat_interleave(LATTICE_CELL, 1) > 0
        room = torch.where(written, covers.clamp(-126.5 / 127.5, 126.5 / 127.5), covers)
        change = wanted - self._coefficients(room)
        change = change - torch.round(change / step) * step
        basis = self.basis[:, None].to(covers)
        pixels = torch.nn.functional.conv_transpose2d(change * inner, basis, stride=LATTICE_CELL)
        return room + pixels / 127.5

    def read(self, saved: Tensor) -> Tensor:
        """Phasors of length 1, ``(B, 2C, H, W)``, of pictures ``(B, 3, S, S)``; still encrypted."""
        angle = self._coefficients(saved) / self.step.to(saved) * (2 * math.pi)
        return torch.cat([torch.cos(angle), torch.sin(angle)], 1)

    def coherence(self, phasors: Tensor) -> float:
        """Mean cosine between read and known pilots of one face, ``(2C, H, W)``."""
        real, imaginary = phasors.reshape(2, -1)[:, self.layout.pilots].cpu()
        known = self.layout.pilot_angles
        return float((real * torch.cos(known) + imaginary * torch.sin(known)).mean())
