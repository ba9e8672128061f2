"""Layout and encryption of the concealed code.

The code is ``(C, H, W)`` phasors. Three public, fixed sets of positions are taken from the last channel:

* pilots: known phasors, the same in every picture, which let a recovery without a record find the exact position;
* nonce: 32 bits that make the key's stream different for every face;
* tag: 24 bits of an HMAC of the nonce, which tell whether the key is right.

Everything else carries the face. Nonce and tag are turned by a stream that depends on the key alone, the face by a
stream that depends on key and nonce. Turning a unit phasor by a uniformly random angle gives a uniformly random phasor,
whatever it was before: a stream cipher on the circle. So the picture with the code is a function of the cover and of
numbers that look random to anyone without the key, and of nothing else of the original.

The nonce is an HMAC of the original crop under the key (as in SIV mode): the same face under the same key gives the
same picture, two different faces practically never share a stream (32 bits: a chance of 1e-6 among about 90 faces, .5
among 77,000 under one key; a collision would show an attacker the difference of two codes).
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from facezoo.nets.concealed_code import to_phasors, turn

if TYPE_CHECKING:
    from facezoo.keys import Key

PILOTS = 64
NONCE_BITS = 32
TAG_BITS = 24
MOST_REPEATS = 16
FEWEST_REPEATS = 3
"""Each bit stands at so many positions: as many as fit, which is 16 in crops of 128 pixels and 3 in crops of 64."""
TAG_ERRORS_ALLOWED = 2
"""Of 24 tag bits, for the nonce as read: a wrong key passes with probability 301 / 2^24, about 2e-5."""
DOUBTFUL_BITS = 8
"""Where the nonce as read does not fit, one or two of so many least certain bits are turned; with 36 such guesses and
one tag error allowed a wrong key passes with probability 36 * 25 / 2^24, about 5e-5."""


class CodeLayout:
    """Which position of the code carries what.

    Args:
        channels: Phasor channels C.
        side: Cells of a side, S / 4.
        purpose: The method's own purpose for the key's expansions, e.g. "identity_rotation/code".

    Raises:
        ValueError: The last channel is too small for the reserved positions.
    """

    nonce_bits = NONCE_BITS
    tag_bits = TAG_BITS

    def __init__(self, channels: int, side: int, purpose: str) -> None:
        bits = NONCE_BITS + TAG_BITS
        self.repeats = min(MOST_REPEATS, (side * side - PILOTS) // bits)
        if self.repeats < FEWEST_REPEATS:
            raise ValueError(f"a code of {side}x{side} cells has no room for pilots, nonce and tag")
        self.channels, self.side, self.purpose = channels, side, purpose
        # A fixed public shuffle spreads each bit's repeats over the picture: a local fault costs a repeat, not a bit.
        order = torch.randperm(side * side, generator=torch.Generator().manual_seed(20260))
        base = (channels - 1) * side * side
        reserved = order[: PILOTS + bits * self.repeats] + base
        self.pilots = reserved[:PILOTS]
        self.nonce = reserved[PILOTS : PILOTS + NONCE_BITS * self.repeats].view(-1, NONCE_BITS)
        self.tag = reserved[PILOTS + NONCE_BITS * self.repeats :].view(-1, TAG_BITS)
        angles = torch.rand(PILOTS, generator=torch.Generator().manual_seed(20261)) * 2 * math.pi
        self.pilot_angles = angles
        payload = torch.ones(channels * side * side)
        payload[reserved] = 0
        self.payload_mask = payload.view(channels, side, side)
        """1 where a phasor carries the face, 0 at reserved positions; ``(C, H, W)``."""

    # ------------------------------------------------------------------ writing
    def encrypt(self, angles: Tensor, keys: list[Key], nonces: list[bytes], context: bytes = b"") -> Tensor:
        """Angles of the face -> encrypted phasors with pilots, nonce and tag.

        Args:
            angles: ``(B, C, H, W)`` radians.
            keys: One key a face.
            nonces: One 4-byte nonce a face.
            context: What else must be known to read the face, besides the key: attributes, say. The tag tells.

        Returns:
            ``(B, 2C, H, W)``: real parts, then imaginary parts.
        """
        flat = angles.flatten(1).clone()
        for row, key, nonce in zip(flat, keys, nonces, strict=True):
            head_stream = self._head_stream(key)
            row += self._stream(key, nonce, context).to(row)
            bits = _to_bits(nonce)
            tag = _to_bits(self._tag(key, nonce, context))
            row[self.nonce] = math.pi * bits.to(row) + head_stream[: self.nonce.numel()].view_as(self.nonce).to(row)
            row[self.tag] = math.pi * tag.to(row) + head_stream[self.nonce.numel() :].view_as(self.tag).to(row)
            row[self.pilots] = self.pilot_angles.to(row)
        return to_phasors(flat.view_as(angles))

    # ------------------------------------------------------------------ reading
    def read_header(self, phasors: Tensor, key: Key, context: bytes = b"") -> tuple[bytes, bool]:
        """Nonce of one face, and whether the tag fits the key.

        Args:
            phasors: ``(2C, H, W)`` as extracted from the picture.
            key: The key to try.
            context: As in ``encrypt``.
        """
        real, imaginary = phasors.flatten().double().cpu().chunk(2)
        # One wildly wrong position must not outvote the others.
        length = (real**2 + imaginary**2).sqrt().clamp_min(1.0)
        real, imaginary = real / length, imaginary / length
        head_stream = self._head_stream(key).double()

        def soft_bits(positions: Tensor, stream: Tensor) -> Tensor:
            angle = stream.view_as(positions)
            return (real[positions] * torch.cos(angle) + imaginary[positions] * torch.sin(angle)).sum(0)

        nonce_soft = soft_bits(self.nonce, head_stream[: self.nonce.numel()])
        tag_soft = soft_bits(self.tag, head_stream[self.nonce.numel() :])
        as_read = (nonce_soft < 0).numpy()
        read_tag = tag_soft < 0

        def tag_errors(bits: np.ndarray[Any, np.dtype[np.bool_]]) -> tuple[bytes, int]:
            nonce = np.packbits(bits).tobytes()
            return nonce, int((read_tag != _to_bits(self._tag(key, nonce, context)).bool()).sum())

        nonce, errors = tag_errors(as_read)
        if errors <= TAG_ERRORS_ALLOWED:
            return nonce, True
        doubtful = nonce_soft.abs().argsort()[:DOUBTFUL_BITS].tolist()
        for count in (1, 2):
            for turned in itertools.combinations(doubtful, count):
                guess = as_read.copy()
                guess[list(turned)] ^= True
                guessed, errors = tag_errors(guess)
                if errors < TAG_ERRORS_ALLOWED:
                    return guessed, True
        return nonce, False

    def decrypt(self, phasors: Tensor, key: Key, nonce: bytes, context: bytes = b"") -> Tensor:
        """Turns the phasors of one face back, ``(2C, H, W)`` -> ``(2C, H, W)``, zero at reserved positions."""
        angles = self._stream(key, nonce, context).view(self.channels, self.side, self.side)
        return turn(phasors[None], -angles[None].to(phasors))[0] * self.payload_mask.repeat(2, 1, 1).to(phasors)

    def pilot_search(self, phasors: Tensor, reach: int) -> tuple[Tensor, Tensor]:
        """How far, in whole cells, each crop lies off the one that carries the pilots.

        Args:
            phasors: ``(B, 2C, H, W)`` as extracted.
            reach: Cells to search to each side.

        Returns:
            Score of the best shift of each crop, ``(B,)``: sum of the cosines between read and known pilots, in
            standard deviations of what random phases give. And that shift, ``(B, 2)`` in cells: the content of the crop
            lies so far to the right of and below where it belongs.
        """
        side = self.side
        real, imaginary = phasors[:, self.channels - 1], phasors[:, -1]
        length = (real**2 + imaginary**2).sqrt().clamp_min(1e-6)
        place = self.pilots - (self.channels - 1) * side * side
        row, column = place // side, place % side
        steps = torch.arange(-reach, reach + 1)
        down, right = (grid.flatten()[:, None] for grid in torch.meshgrid(steps, steps, indexing="ij"))
        rows, columns = row[None] + down, column[None] + right
        inside = ((rows >= 0) & (rows < side) & (columns >= 0) & (columns < side)).to(phasors)
        rows, columns = rows.clamp(0, side - 1), columns.clamp(0, side - 1)
        angles = self.pilot_angles.to(phasors)
        cosines = (real / length)[:, rows, columns] * torch.cos(angles) + (imaginary / length)[
            :, rows, columns
        ] * torch.sin(angles)
        scores = (cosines * inside).sum(-1) / (inside.sum(-1).clamp_min(1) / 2).sqrt()
        best, index = scores.max(dim=1)
        shift = torch.cat([right, down], dim=1)[index]
        return best, shift

    # ------------------------------------------------------------------ streams
    def face_nonce(self, key: Key, crop: Tensor) -> bytes:
        """Nonce of a face: HMAC of its 8-bit pixels under the key; ``crop`` is ``(3, S, S)`` in [-1, 1]."""
        pixels = ((crop.detach().cpu().float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        return key.tag(f"{self.purpose}/nonce", pixels.numpy().tobytes(), self.nonce_bits // 8)

    def _stream(self, key: Key, nonce: bytes, context: bytes) -> Tensor:
        size = self.channels * self.side * self.side
        uniform = key.uniform(f"{self.purpose}/face", size, context=nonce + context)
        return torch.from_numpy(uniform) * math.pi

    def _head_stream(self, key: Key) -> Tensor:
        size = self.nonce.numel() + self.tag.numel()
        return torch.from_numpy(key.uniform(f"{self.purpose}/header", size)) * math.pi

    def _tag(self, key: Key, nonce: bytes, context: bytes) -> bytes:
        return key.tag(f"{self.purpose}/tag", nonce + context, self.tag_bits // 8)


def _to_bits(data: bytes) -> Tensor:
    return torch.from_numpy(np.unpackbits(np.frombuffer(data, dtype=np.uint8)).astype(np.float32))
