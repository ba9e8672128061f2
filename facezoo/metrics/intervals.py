"""Every figure with its n and a 95 % interval."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from facezoo.errors import InputError

__all__ = ["Interval", "bootstrap_correlation", "bootstrap_mean", "wilson"]

#: Two-sided 95 % quantile of the normal distribution.
_Z_95 = 1.959963984540054

#: Resamples drawn at a time: bounds the memory of the bootstrap.
_CHUNK = 100


@dataclass(frozen=True)
class Interval:
    """A figure, the interval it lies in with 95 % confidence, and the number of cases behind it.

    Attributes:
        value: the figure; NaN when there are no cases.
        low: lower end.
        high: upper end.
        n: number of cases, failures included.
    """

    value: float
    low: float
    high: float
    n: int

    def to_dict(self) -> dict[str, float | int | None]:
        """Plain dict for JSON, which has no NaN: None stands for it."""
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in asdict(self).items()
        }


def wilson(successes: int, n: int) -> Interval:
    """Wilson's score interval (95 %) of a rate (Wilson 1927): sound near 0 and 1, where the usual one is not.

    Args:
        successes: how many of the cases; 0 <= successes <= n.
        n: number of cases. With 0 cases the rate is NaN, anywhere in [0, 1].

    Returns:
        The rate with its interval, each in [0, 1].

    Raises:
        InputError: if the numbers do not fit together.
    """
    if not 0 <= successes <= n:
        raise InputError(f"{successes} successes among {n} cases: give 0 <= successes <= n.")
    if n == 0:
        return Interval(math.nan, 0.0, 1.0, 0)
    rate = successes / n
    spread = _Z_95**2 / n
    centre = (rate + spread / 2) / (1 + spread)
    half = _Z_95 * math.sqrt(rate * (1 - rate) / n + spread / (4 * n)) / (1 + spread)
    # At the ends rounding would otherwise give -1e-17.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return Interval(rate, low, high, n)


def bootstrap_mean(values: npt.ArrayLike, seed: int = 0, rounds: int = 1000) -> Interval:
    """Mean with its 95 % percentile bootstrap interval.

    Args:
        values: (n,) finite numbers. With none of them the mean is NaN.
        seed: of the resampling; the same seed gives the same interval.
        rounds: number of resamples.

    Returns:
        The mean with its interval.

    Raises:
        InputError: if a value is not finite (a failed case must be given a value, not left out in silence).
    """
    sample = np.asarray(values, dtype=np.float64).reshape(-1)
    if not np.isfinite(sample).all():
        raise InputError("A mean over values that are not finite: give failed cases a value of their own.")
    if len(sample) == 0:
        return Interval(math.nan, math.nan, math.nan, 0)
    random = np.random.default_rng(seed)
    means = [
        sample[random.integers(0, len(sample), (min(_CHUNK, rounds - start), len(sample)))].mean(axis=1)
        for start in range(0, rounds, _CHUNK)
    ]
    low, high = np.quantile(np.concatenate(means), (0.025, 0.975))
    return Interval(float(sample.mean()), float(low), float(high), len(sample))


def bootstrap_correlation(pairs: npt.ArrayLike, seed: int = 0, rounds: int = 1000) -> Interval:
    """Pearson's correlation of pairs with its 95 % percentile bootstrap interval.

    Args:
        pairs: (n, 2) finite numbers. With fewer than 3 pairs, or a side that is constant, the correlation is NaN.
        seed: of the resampling; the same seed gives the same interval.
        rounds: number of resamples; those with a constant side say nothing and are left out.

    Returns:
        The correlation with its interval.

    Raises:
        InputError: another shape, or a value that is not finite.
    """
    sample = np.asarray(pairs, dtype=np.float64)
    if sample.ndim != 2 or sample.shape[1] != 2 or not np.isfinite(sample).all():
        raise InputError(f"a correlation needs finite pairs (n, 2), not the shape {sample.shape}")
    if len(sample) < 3:
        return Interval(math.nan, math.nan, math.nan, len(sample))
    value = float(_correlations(sample[None])[0])
    if math.isnan(value):
        return Interval(math.nan, math.nan, math.nan, len(sample))
    random = np.random.default_rng(seed)
    found = [
        _correlations(sample[random.integers(0, len(sample), (min(_CHUNK, rounds - start), len(sample)))])
        for start in range(0, rounds, _CHUNK)
    ]
    low, high = np.nanquantile(np.concatenate(found), (0.025, 0.975))
    return Interval(value, float(low), float(high), len(sample))


def _correlations(samples: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Pearson's correlation of each of (R, n, 2): (R,); NaN where a side is constant (but for rounding)."""
    centred = samples - samples.mean(axis=1, keepdims=True)
    spread = np.sqrt(np.square(centred).sum(axis=1))
    least = 1e-9 * np.abs(samples).max(axis=1) * math.sqrt(samples.shape[1])
    constant = (spread <= least).any(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        values = centred.prod(axis=2).sum(axis=1) / spread.prod(axis=1)
    return np.where(constant, np.nan, values)
