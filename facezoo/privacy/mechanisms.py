"""Mechanisms over tensors. Each states its guarantee, its sensitivity is a `Sensitivity`, its noise is exact.

Numeric mechanisms work on a lattice (see `randomness`): the input is rounded to multiples of ``step``, a power of two
that depends on epsilon, sensitivity and dimension only; rounding may move each coordinate of either neighbour by half
a step, which is added to the sensitivity; the noise is an integer. The lattice is so fine (about 2**-20 of the noise)
that the cost is invisible.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

import torch
from torch import Tensor

from facezoo.errors import InputError
from facezoo.privacy.accounting import check_delta, check_epsilon
from facezoo.privacy.randomness import (
    BitSource,
    SecureBits,
    choose_by_log_weights,
    discrete_laplace,
    rounded_normal,
)
from facezoo.privacy.sensitivity import Sensitivity

__all__ = [
    "ExponentialMechanism",
    "GaussianMechanism",
    "LaplaceMechanism",
    "RandomizedResponse",
    "analytic_gaussian_delta",
    "analytic_gaussian_deviation",
]

_FINENESS: Final = 20
"""The lattice's step is at most 2**-20 of the noise's scale and of the sensitivity's share of a coordinate."""

_SLACK: Final = Fraction(1, 2**30)
"""Added to every sensitivity, as a part of it: float64 rounding where the caller clipped or normalised."""


def _step(scale: float, sensitivity: float, dim: int) -> float:
    """Lattice step: a power of two, fine against both the noise and the sensitivity of one coordinate."""
    return float(2.0 ** (math.floor(math.log2(min(scale, sensitivity / dim))) - _FINENESS))


def _on_lattice(values: Tensor, step: float) -> list[int]:
    """Coordinates as multiples of the step, nearest first (ties to even); exact, for the step is a power of two."""
    if not bool(torch.isfinite(values).all()):
        raise InputError("values that are not finite cannot be released")
    scaled = values.detach().double().cpu().flatten() / step
    if scaled.numel() and float(scaled.abs().max()) >= 2.0**62:
        raise InputError("values are too great for this sensitivity; clip them first")
    return [int(value) for value in scaled.round().tolist()]


def _off_lattice(numbers: Sequence[int], step: float, like: Tensor) -> Tensor:
    exact = torch.tensor([number * step for number in numbers], dtype=torch.float64)
    return exact.view(like.shape).to(like.device)


@dataclass(frozen=True)
class LaplaceMechanism:
    """Laplace noise on each coordinate: epsilon-differentially private (Dwork et al. 2006; book, equation 5.4).

    The density is the discrete one (two-sided geometric) on the lattice, for which the proof of the continuous one
    holds word for word.

    Attributes:
        epsilon: privacy loss, above 0.
        sensitivity: in l1; of the *whole* tensor that `release` gets for one input.
        dim: number of coordinates of one input.
    """

    epsilon: float
    sensitivity: Sensitivity
    dim: int

    def __post_init__(self) -> None:
        """Refuse what has no guarantee.

        Raises:
            InputError: epsilon not above 0, a sensitivity in another norm, or no coordinates.
        """
        check_epsilon(self.epsilon)
        if self.sensitivity.norm != "l1":
            raise InputError(f"Laplace noise needs a sensitivity in l1, not {self.sensitivity.norm}")
        if self.dim < 1:
            raise InputError(f"a mechanism works on at least one coordinate, not {self.dim}")

    @property
    def scale(self) -> float:
        """Parameter b of the noise's density exp(-|n| / b) / 2b, without the lattice's share."""
        return self.sensitivity.value / self.epsilon

    @property
    def step(self) -> float:
        """Step of the lattice."""
        return _step(self.scale, self.sensitivity.value, self.dim)

    @property
    def lattice_scale(self) -> Fraction:
        """Parameter b of the integer noise: (sensitivity in steps + one a coordinate for the rounding) / epsilon."""
        moved = Fraction(self.sensitivity.value) * (1 + _SLACK) / Fraction(self.step) + self.dim
        return Fraction(math.ceil(moved)) / Fraction(self.epsilon)

    def release(self, values: Tensor, source: BitSource | None = None) -> Tensor:
        """Noisy values of **one** input.

        Args:
            values: any shape with `dim` elements, already within the set that the sensitivity is of.
            source: of randomness; None: `SecureBits`.

        Returns:
            Float64, the same shape and device.

        Raises:
            InputError: another number of elements, or values that are not finite.
        """
        if values.numel() != self.dim:
            raise InputError(f"the mechanism was made for {self.dim} coordinates, not {values.numel()}")
        source = source or SecureBits()
        scale = self.lattice_scale
        noisy = [number + discrete_laplace(source, scale) for number in _on_lattice(values, self.step)]
        return _off_lattice(noisy, self.step, values)


def _log_normal_tail(x: float) -> float:
    """Logarithm of P(N(0, 1) < x), also far below 0 where the probability itself underflows."""
    if x > -20:
        return math.log(0.5 * math.erfc(-x / math.sqrt(2)))
    square = x * x
    series = 1 - 1 / square + 3 / square**2 - 15 / square**3
    return -square / 2 - math.log(-x) - 0.5 * math.log(2 * math.pi) + math.log(series)


def analytic_gaussian_delta(deviation: float, epsilon: float, sensitivity: float = 1.0) -> float:
    """Smallest delta for which Gaussian noise is (epsilon, delta)-private (Balle & Wang, ICML 2018, theorem 8).

    Args:
        deviation: standard deviation of the noise.
        epsilon: at least 0.
        sensitivity: in l2.
    """
    half, ratio = sensitivity / (2 * deviation), epsilon * deviation / sensitivity
    first = math.exp(_log_normal_tail(half - ratio))
    log_second = epsilon + _log_normal_tail(-half - ratio)
    return max(0.0, first - math.exp(min(log_second, 0.0)))


def analytic_gaussian_deviation(epsilon: float, delta: float, sensitivity: float = 1.0) -> float:
    """Smallest standard deviation for (epsilon, delta): Balle & Wang's analytic calibration, by bisection.

    Valid for every epsilon above 0, where the textbook's ``sqrt(2 log(1.25 / delta)) / epsilon`` holds up to 1 only,
    and smaller than that. The upper end of the last interval is returned, so rounding errs on the private side.

    Raises:
        InputError: epsilon not above 0, or delta not between 0 and 1.
    """
    check_epsilon(epsilon)
    if check_delta(delta) <= 0:
        raise InputError("Gaussian noise has a guarantee with a delta above 0 only, e.g. 1e-5")
    low, high = 0.0, 1.0
    while analytic_gaussian_delta(high, epsilon) > delta:
        low, high = high, 2 * high
    for _ in range(80):
        middle = (low + high) / 2
        if middle <= low or middle >= high:
            break
        if analytic_gaussian_delta(middle, epsilon) > delta:
            low = middle
        else:
            high = middle
    return high * (1 + 1e-9) * sensitivity


@dataclass(frozen=True)
class GaussianMechanism:
    """Gaussian noise: (epsilon, delta)-differentially private, calibrated analytically.

    Attributes:
        epsilon: above 0.
        delta: above 0, below 1; well below one over the number of people.
        sensitivity: in l2, of the whole tensor of one input.
        dim: number of coordinates of one input.
    """

    epsilon: float
    delta: float
    sensitivity: Sensitivity
    dim: int

    def __post_init__(self) -> None:
        """Refuse what has no guarantee.

        Raises:
            InputError: epsilon or delta out of range, a sensitivity in another norm, or no coordinates.
        """
        if self.sensitivity.norm != "l2":
            raise InputError(f"Gaussian noise needs a sensitivity in l2, not {self.sensitivity.norm}")
        if self.dim < 1:
            raise InputError(f"a mechanism works on at least one coordinate, not {self.dim}")
        analytic_gaussian_deviation(self.epsilon, self.delta)

    @property
    def deviation(self) -> float:
        """Standard deviation of the noise, without the lattice's share."""
        return analytic_gaussian_deviation(self.epsilon, self.delta, self.sensitivity.value)

    @property
    def step(self) -> float:
        """Step of the lattice."""
        return _step(self.deviation, self.sensitivity.value, self.dim)

    @property
    def lattice_deviation(self) -> Fraction:
        """Standard deviation in steps, for the sensitivity in steps plus the rounding of every coordinate."""
        unit = Fraction(analytic_gaussian_deviation(self.epsilon, self.delta))
        moved = Fraction(self.sensitivity.value) * (1 + _SLACK) / Fraction(self.step) + math.isqrt(self.dim) + 1
        return unit * math.ceil(moved)

    def release(self, values: Tensor, source: BitSource | None = None) -> Tensor:
        """Noisy values of **one** input; see `LaplaceMechanism.release`."""
        if values.numel() != self.dim:
            raise InputError(f"the mechanism was made for {self.dim} coordinates, not {values.numel()}")
        source = source or SecureBits()
        deviation = self.lattice_deviation
        noisy = [number + rounded_normal(source, deviation) for number in _on_lattice(values, self.step)]
        return _off_lattice(noisy, self.step, values)


@dataclass(frozen=True)
class ExponentialMechanism:
    """Chooses r with probability proportional to ``exp(epsilon q(r) / (2 sensitivity))`` (book, equation 4.2).

    epsilon-differentially private. Sampled by rejection from rationals: no ``exp`` of a float decides.

    Attributes:
        epsilon: at least 0; 0 chooses blindly (the book's curves begin there).
        sensitivity: greatest change of one utility between neighbours, above 0.
    """

    epsilon: float
    sensitivity: float

    def __post_init__(self) -> None:
        """Refuse what has no guarantee.

        Raises:
            InputError: epsilon negative or not finite, or a sensitivity not above 0.
        """
        if self.epsilon != 0:
            check_epsilon(self.epsilon)
        if not (math.isfinite(self.sensitivity) and self.sensitivity > 0):
            raise InputError(f"a utility's sensitivity must be finite and above 0, not {self.sensitivity}")

    def probabilities(self, utilities: Tensor) -> Tensor:
        """What `choose` draws from, for reports: ``(..., R)`` -> ``(..., R)``, float64."""
        return torch.softmax(utilities.double() * (self.epsilon / (2 * self.sensitivity)), dim=-1)

    def choose(self, utilities: Tensor, source: BitSource | None = None) -> Tensor:
        """One choice a row.

        Args:
            utilities: ``(..., R)``, finite.
            source: of randomness; None: `SecureBits`.

        Returns:
            ``(...)`` int64, from 0 to R - 1.

        Raises:
            InputError: no choices, or utilities that are not finite.
        """
        if utilities.ndim < 1 or utilities.shape[-1] < 1 or not bool(torch.isfinite(utilities).all()):
            raise InputError("the exponential mechanism needs finite utilities (..., R) of at least one choice")
        source = source or SecureBits()
        factor = Fraction(self.epsilon) / (2 * Fraction(self.sensitivity))
        rows = utilities.detach().double().cpu().reshape(-1, utilities.shape[-1]).tolist()
        chosen = [choose_by_log_weights(source, [factor * Fraction(value) for value in row]) for row in rows]
        return torch.tensor(chosen, dtype=torch.int64, device=utilities.device).view(utilities.shape[:-1])


@dataclass(frozen=True)
class RandomizedResponse:
    """Tells the truth with probability ``e^epsilon / (e^epsilon + c - 1)``, else one of the other answers (Warner).

    epsilon-locally differentially private.

    Attributes:
        epsilon: above 0.
        choices: number of answers c, at least 2.
    """

    epsilon: float
    choices: int = 2

    def __post_init__(self) -> None:
        """Refuse what has no guarantee.

        Raises:
            InputError: epsilon not above 0, or fewer than two answers.
        """
        check_epsilon(self.epsilon)
        if self.choices < 2:
            raise InputError(f"randomised response needs at least two answers, not {self.choices}")

    @property
    def truth(self) -> float:
        """Probability of the true answer."""
        return 1 / (1 + (self.choices - 1) * math.exp(-self.epsilon))

    def release(self, answers: Tensor, source: BitSource | None = None) -> Tensor:
        """A noisy answer for each; every element spends epsilon on its own.

        Args:
            answers: integers from 0 to ``choices - 1``, any shape.
            source: of randomness; None: `SecureBits`.

        Raises:
            InputError: an answer out of range.
        """
        if answers.is_floating_point() or (
            answers.numel() and not (int(answers.min()) >= 0 and int(answers.max()) < self.choices)
        ):
            raise InputError(f"answers must be integers from 0 to {self.choices - 1}")
        source = source or SecureBits()
        loss = Fraction(self.epsilon)
        told = []
        for answer in answers.flatten().tolist():
            weights = [loss if other == answer else Fraction(0) for other in range(self.choices)]
            told.append(choose_by_log_weights(source, weights))
        return torch.tensor(told, dtype=answers.dtype, device=answers.device).view(answers.shape)
