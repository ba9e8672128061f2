"""Random numbers for privacy: exact samplers over integers, out of the operating system's generator.

Why not ``torch.distributions.Laplace``: a floating-point sample ``f(x) + noise`` lands on different sets of numbers for
different ``x``, so a single output can rule one input out whatever epsilon is (Mironov, "On significance of the least
significant bits for differential privacy", CCS 2012). Here nothing is sampled in floating point. A
mechanism rounds its input to a grid whose step depends on public numbers only, adds *integer* noise of exactly the
distribution that the proof wants, and multiplies by the step: what leaves is a lattice point whichever the input was.

Sources for the samplers: Canonne, Kamath, Steinke, "The discrete Gaussian for differential privacy", NeurIPS 2020,
algorithms 1 and 2 (Bernoulli(exp(-x)) and the discrete Laplace from rationals); Karney, "Sampling exactly from the
normal distribution", ACM TOMS 2016, algorithm N (with 96-bit uniforms in the place of lazily extended ones).

How long a sample takes depends on its value; nobody outside should be able to time single draws.
"""

from __future__ import annotations

import abc
import os
import secrets
from collections.abc import Sequence
from fractions import Fraction
from typing import Final

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

from facezoo.errors import InputError
from facezoo.files import sha256_bytes

__all__ = [
    "NORMAL_BITS",
    "BitSource",
    "SecureBits",
    "SeededBits",
    "bernoulli",
    "bernoulli_exp",
    "choose_by_log_weights",
    "discrete_laplace",
    "rounded_normal",
]

_BUFFER: Final = 4096

NORMAL_BITS: Final = 96
"""Bits of the uniform inside `rounded_normal`: its law is within about 2**-90 of the exact one."""


class BitSource(abc.ABC):
    """A stream of random bits, read in buffers."""

    def __init__(self) -> None:
        self._buffer = b""
        self._position = 0
        self._process = os.getpid()

    @abc.abstractmethod
    def _more(self, count: int) -> bytes:
        """The next ``count`` bytes of the stream."""

    @property
    @abc.abstractmethod
    def secure(self) -> bool:
        """Whether nobody can predict or repeat the stream: only then does a guarantee hold."""

    def bits(self, count: int) -> int:
        """A uniform integer of ``count`` bits."""
        if self.secure and os.getpid() != self._process:
            # After a fork parent and child hold the same buffer: the same noise twice would cancel out.
            self._buffer, self._position, self._process = b"", 0, os.getpid()
        size = (count + 7) // 8
        if self._position + size > len(self._buffer):
            self._buffer = self._more(max(_BUFFER, size))
            self._position = 0
        chunk = self._buffer[self._position : self._position + size]
        self._position += size
        return int.from_bytes(chunk, "little") >> (8 * size - count)

    def below(self, bound: int) -> int:
        """A uniform integer from 0 to ``bound - 1``, by rejection (exactly uniform).

        Raises:
            ValueError: ``bound`` is not positive.
        """
        if bound < 1:
            raise ValueError(f"bound must be positive, not {bound}")
        size = (bound - 1).bit_length()
        if size == 0:
            return 0
        while True:
            value = self.bits(size)
            if value < bound:
                return value


class SecureBits(BitSource):
    """The operating system's cryptographic generator (``secrets``). The only source that a release may use."""

    @property
    def secure(self) -> bool:
        """True."""
        return True

    def _more(self, count: int) -> bytes:
        return secrets.token_bytes(count)


class SeededBits(BitSource):
    """A ChaCha20 stream that a seed decides: for tests and for figures that must be repeatable, never for a release.

    Args:
        seed: an integer, or bytes.
    """

    def __init__(self, seed: int | bytes) -> None:
        super().__init__()
        content = seed if isinstance(seed, bytes) else f"{seed}".encode()
        key = bytes.fromhex(sha256_bytes(b"facezoo privacy, seeded:" + content))
        self._stream = Cipher(ChaCha20(key, bytes(16)), mode=None).encryptor()

    @property
    def secure(self) -> bool:
        """False: whoever knows the seed takes the noise off again."""
        return False

    def _more(self, count: int) -> bytes:
        return self._stream.update(bytes(count))


def bernoulli(source: BitSource, probability: Fraction) -> bool:
    """True with exactly this probability (0 to 1)."""
    return source.below(probability.denominator) < probability.numerator


def bernoulli_exp(source: BitSource, exponent: Fraction) -> bool:
    """True with probability ``exp(-exponent)``, exactly (Canonne et al., algorithm 1).

    Raises:
        InputError: ``exponent`` is negative.
    """
    if exponent < 0:
        raise InputError(f"exp(-x) is a probability for x of at least 0 only, not {exponent}")
    return _bernoulli_exp(source, exponent.numerator, exponent.denominator)


def _bernoulli_exp(source: BitSource, numerator: int, denominator: int) -> bool:
    """As `bernoulli_exp`; plain integers, for the samplers live in this loop."""
    below = source.below
    while numerator > denominator:
        count = 1
        while below(count) < 1:  # exp(-1)
            count += 1
        if count % 2 == 0:
            return False
        numerator -= denominator
    count, range_ = 1, denominator
    while below(range_) < numerator:
        count += 1
        range_ += denominator
    return count % 2 == 1


def discrete_laplace(source: BitSource, scale: Fraction) -> int:
    """An integer n with probability proportional to ``exp(-|n| / scale)``, exactly (Canonne et al., algorithm 2).

    Raises:
        InputError: ``scale`` is not positive.
    """
    if scale <= 0:
        raise InputError(f"the scale of Laplace noise must be above 0, not {scale}")
    t, s = scale.numerator, scale.denominator
    while True:
        rest = source.below(t)
        if not _bernoulli_exp(source, rest, t):
            continue
        whole = 0
        while _bernoulli_exp(source, 1, 1):
            whole += 1
        magnitude = (rest + t * whole) // s
        negative = source.bits(1) == 1
        if negative and magnitude == 0:
            continue  # else 0 would come twice as often as it should
        return -magnitude if negative else magnitude


def _half_normal(source: BitSource) -> int:
    """``|N(0, 1)|`` in units of 2**-96 (Karney, algorithm N)."""
    while True:
        whole = 0
        while _bernoulli_exp(source, 1, 2):
            whole += 1
        if not _bernoulli_exp(source, whole * (whole - 1), 2):
            continue
        part = source.bits(NORMAL_BITS)
        # x (2 k + x) / 2 with x = part / 2**bits, kept as integers.
        if _bernoulli_exp(source, part * ((whole << (NORMAL_BITS + 1)) + part), 1 << (2 * NORMAL_BITS + 1)):
            return (whole << NORMAL_BITS) + part


def rounded_normal(source: BitSource, deviation: Fraction) -> int:
    """``round(N(0, deviation**2))``: a continuous Gaussian, rounded to an integer afterwards.

    Rounding is post-processing, so a mechanism that adds this to integers has the privacy of the continuous Gaussian
    mechanism (up to the 2**-90 of `NORMAL_BITS`), which is what the analytic calibration is about.

    Raises:
        InputError: ``deviation`` is not positive.
    """
    if deviation <= 0:
        raise InputError(f"the standard deviation of Gaussian noise must be above 0, not {deviation}")
    numerator = deviation.numerator * _half_normal(source)
    denominator = deviation.denominator << NORMAL_BITS
    magnitude = (2 * numerator + denominator) // (2 * denominator)  # halves go up; they have no weight
    return -magnitude if source.bits(1) else magnitude


def choose_by_log_weights(source: BitSource, log_weights: Sequence[Fraction]) -> int:
    """An index with probability proportional to ``exp(log_weights[i])``, exactly, by rejection.

    Raises:
        InputError: nothing to choose from.
    """
    if not log_weights:
        raise InputError("there is nothing to choose from")
    greatest = max(log_weights)
    while True:
        index = source.below(len(log_weights))
        if bernoulli_exp(source, greatest - log_weights[index]):
            return index
