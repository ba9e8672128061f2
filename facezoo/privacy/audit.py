"""Statistical checks of a mechanism: they cannot prove a guarantee, they catch one that is not kept.

`privacy_loss` runs a mechanism on two neighbours, makes a histogram of one number of each output, looks in one half of
the sample for the event that tells the neighbours apart best, and measures that event on the other half. From it
follows, with the confidence asked for, an epsilon that the mechanism exceeds. A noise scale that is half of what it
should be (the classic mistake: a sensitivity of 1 where replacing one value by another gives 2) shows at once.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from facezoo.errors import InputError
from facezoo.privacy.accounting import check_delta

__all__ = ["LossAudit", "privacy_loss"]

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class LossAudit:
    """What an audit found.

    Attributes:
        epsilon_at_least: the mechanism's epsilon is at least this (at the audit's delta), with the confidence.
        event: the event that shows it, in words.
        first: probability of the event under one neighbour, estimated.
        second: under the other.
        edges: (bins + 1,) of the histogram.
        losses: (bins,) log of the ratio of the two histograms; NaN where a bin is empty.
    """

    epsilon_at_least: float
    event: str
    first: float
    second: float
    edges: Floats
    losses: Floats

    def allows(self, epsilon: float) -> bool:
        """Whether the claim of this epsilon survives."""
        return self.epsilon_at_least <= epsilon


def _bound(hits: int, total: int, log_inverse_alpha: float, *, upper: bool) -> float:
    """Chernoff's confidence limit of a probability: where ``total KL(hits / total, p)`` reaches log(1 / alpha)."""
    rate = hits / total

    def divergence(p: float) -> float:
        first = rate * math.log(rate / p) if rate > 0 else 0.0
        return first + ((1 - rate) * math.log((1 - rate) / (1 - p)) if rate < 1 else 0.0)

    inner, outer = rate, 1.0 if upper else 0.0
    for _ in range(60):
        middle = (inner + outer) / 2
        if middle in (0.0, 1.0) or total * divergence(middle) > log_inverse_alpha:
            outer = middle
        else:
            inner = middle
    return outer


def privacy_loss(
    first: npt.ArrayLike, second: npt.ArrayLike, *, delta: float = 0.0, bins: int = 40, alpha: float = 1e-3
) -> LossAudit:
    """Audit a mechanism by samples of its output on two neighbours.

    Args:
        first: (N,) one number of each output on one input (the output itself, or a log-likelihood ratio).
        second: (M,) the same on a neighbour.
        delta: of the guarantee that is audited.
        bins: of the histogram, equally full.
        alpha: probability of accusing a mechanism that keeps its promise.

    Raises:
        InputError: fewer than 200 samples of either, or values that are not finite.
    """
    check_delta(delta)
    a, b = (np.asarray(values, dtype=np.float64).ravel() for values in (first, second))
    if min(len(a), len(b)) < 200 or not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise InputError("an audit needs at least 200 finite samples of each neighbour")
    search_a, test_a, search_b, test_b = a[::2], a[1::2], b[::2], b[1::2]
    pooled = np.concatenate([search_a, search_b])
    edges = np.unique(np.quantile(pooled, np.linspace(0, 1, bins + 1)))
    inner = edges[1:]  # every event but the whole; an output of few values keeps all of them apart
    # Events: each bin, and everything below or above each edge; on either neighbour's side.
    events: list[tuple[str, float, float]] = [(f"below {edge:.4g}", -math.inf, float(edge)) for edge in inner]
    events += [(f"at least {edge:.4g}", float(edge), math.inf) for edge in inner]
    limits = [-math.inf, *inner.tolist(), math.inf]
    events += [(f"in [{low:.4g}, {high:.4g})", low, high) for low, high in itertools.pairwise(limits)]

    def rate(values: Floats, low: float, high: float) -> float:
        return float(((values >= low) & (values < high)).mean())

    log_inverse_alpha = math.log(2 / alpha)
    best, chosen = -math.inf, (events[0], False)
    for event in events:
        p, q = rate(search_a, *event[1:]), rate(search_b, *event[1:])
        for over, under, swapped in ((p, q, False), (q, p, True)):
            # What the event would prove if the other half agreed: a rare one has a great ratio and proves little.
            low_over = over - math.sqrt(2 * over * (1 - over) * log_inverse_alpha / len(test_a)) - delta
            high_under = under + math.sqrt(2 * under * (1 - under) * log_inverse_alpha / len(test_b))
            score = low_over / (high_under + log_inverse_alpha / len(test_b))
            if score > best:
                best, chosen = score, (event, swapped)
    (name, low, high), swapped = chosen
    likely, rare = (test_b, test_a) if swapped else (test_a, test_b)
    hits_over, hits_under = (int(((values >= low) & (values < high)).sum()) for values in (likely, rare))
    sure_over = _bound(hits_over, len(likely), log_inverse_alpha, upper=False) - delta
    sure_under = _bound(hits_under, len(rare), log_inverse_alpha, upper=True)
    found = max(0.0, math.log(sure_over / sure_under)) if sure_over > 0 else 0.0

    count_a, count_b = (np.histogram(values, limits)[0].astype(np.float64) for values in (a, b))
    with np.errstate(divide="ignore", invalid="ignore"):
        losses = np.log((count_a / len(a)) / (count_b / len(b)))
    losses[~np.isfinite(losses)] = np.nan
    return LossAudit(found, name, hits_over / len(likely), hits_under / len(rare), edges, losses)
