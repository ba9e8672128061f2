"""What several releases cost together, what sampling saves, and what a group of people pays.

Closed forms are written out here. Tight numbers for mixtures come from an established accountant, Google's
dp-accounting (maintained; plain numpy and scipy), which the extra ``privacy`` installs:
``pip install 'facezoo[privacy]'``. Without it `account` says so; the closed forms, which are upper bounds, always work.

Imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from facezoo.errors import FacezooError, InputError

__all__ = [
    "Cost",
    "Release",
    "account",
    "advanced_composition",
    "amplified_by_poisson_sampling",
    "basic_composition",
    "check_delta",
    "check_epsilon",
    "group_cost",
]


@dataclass(frozen=True)
class Cost:
    """An (epsilon, delta) guarantee.

    Attributes:
        epsilon: at least 0.
        delta: from 0 to below 1.
    """

    epsilon: float
    delta: float = 0.0

    def __post_init__(self) -> None:
        """Refuse numbers that are no guarantee.

        Raises:
            InputError: out of range.
        """
        if not (math.isfinite(self.epsilon) and self.epsilon >= 0):
            raise InputError(f"epsilon must be finite and at least 0, not {self.epsilon}")
        check_delta(self.delta)


def check_epsilon(epsilon: float) -> float:
    """The epsilon of a mechanism.

    Raises:
        InputError: not finite, or not above 0.
    """
    if not (math.isfinite(epsilon) and epsilon > 0):
        raise InputError(f"epsilon must be a finite number above 0, not {epsilon:g}; smaller is more private")
    return epsilon


def check_delta(delta: float) -> float:
    """A delta.

    Raises:
        InputError: not from 0 to below 1.
    """
    if not 0 <= delta < 1:
        raise InputError(f"delta must be from 0 to below 1, not {delta:g}")
    return delta


def basic_composition(costs: Sequence[Cost]) -> Cost:
    """Of releases about the same person: the sums (Dwork et al. 2006).

    Raises:
        InputError: the deltas reach 1: nothing is guaranteed any more.
    """
    return Cost(math.fsum(c.epsilon for c in costs), math.fsum(c.delta for c in costs))


def advanced_composition(cost: Cost, count: int, slack: float) -> Cost:
    """Of ``count`` releases of the same cost: smaller than the sum for many small ones (Dwork, Rothblum, Vadhan 2010).

    ``epsilon sqrt(2 count log(1 / slack)) + count epsilon (e^epsilon - 1)``, delta ``count delta + slack``. The sum is
    returned where it is smaller.

    Args:
        cost: of one release.
        count: how many.
        slack: additional delta, above 0.

    Raises:
        InputError: a count below 1, or a slack not between 0 and 1.
    """
    if count < 1:
        raise InputError(f"a composition is of at least one release, not {count}")
    if check_delta(slack) <= 0:
        raise InputError("advanced composition needs a slack (additional delta) above 0, e.g. 1e-6")
    epsilon = cost.epsilon
    grown = epsilon * math.sqrt(2 * count * math.log(1 / slack)) + count * epsilon * math.expm1(min(epsilon, 700.0))
    if grown >= count * epsilon:
        return Cost(count * epsilon, count * cost.delta)
    return Cost(grown, count * cost.delta + slack)


def amplified_by_poisson_sampling(cost: Cost, probability: float) -> Cost:
    """Of a release on a sample that holds each record with this probability, independently and secretly.

    ``log(1 + gamma (e^epsilon - 1))`` and ``gamma delta``: exact for adding or removing a record (Balle, Barthe,
    Gaboardi 2018). The book's "O(gamma epsilon)" is its limit for small epsilon.

    Raises:
        InputError: a probability that is not above 0 and at most 1.
    """
    if not 0 < probability <= 1:
        raise InputError(f"a sampling probability must be above 0 and at most 1, not {probability:g}")
    if cost.epsilon > 700:
        return Cost(cost.epsilon + math.log(probability), probability * cost.delta)
    return Cost(math.log1p(probability * math.expm1(cost.epsilon)), probability * cost.delta)


def group_cost(cost: Cost, size: int) -> Cost:
    """Of the same release for ``size`` people (or pictures of one person) together.

    ``size epsilon`` and ``delta (e^(size epsilon) - 1) / (e^epsilon - 1)`` (Vadhan 2017, lemma 2.2).

    Raises:
        InputError: a size below 1, or a delta that reaches 1.
    """
    if size < 1:
        raise InputError(f"a group has at least one member, not {size}")
    if cost.delta == 0:
        return Cost(size * cost.epsilon)
    if cost.epsilon == 0:
        return Cost(0.0, min(size * cost.delta, math.nextafter(1, 0)))
    growth = (size - 1) * cost.epsilon + math.log(-math.expm1(-size * cost.epsilon) / -math.expm1(-cost.epsilon))
    log_delta = math.log(cost.delta) + growth
    if log_delta >= 0:
        raise InputError(f"a group of {size} has no guarantee left at this delta; use a smaller delta or epsilon")
    return Cost(size * cost.epsilon, math.exp(log_delta))


@dataclass(frozen=True)
class Release:
    """Some releases of one kind, for `account`.

    Attributes:
        mechanism: "laplace" or "gaussian".
        noise: Laplace scale or standard deviation, divided by the sensitivity.
        count: how many times.
        sampling: probability of Poisson sampling; 1: none.
    """

    mechanism: Literal["laplace", "gaussian"]
    noise: float
    count: int = 1
    sampling: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what cannot be accounted for.

        Raises:
            InputError: an unknown mechanism, or a number out of range.
        """
        if self.mechanism not in ("laplace", "gaussian"):
            raise InputError(f"account knows laplace and gaussian, not {self.mechanism!r}")
        if not (math.isfinite(self.noise) and self.noise > 0) or self.count < 1 or not 0 < self.sampling <= 1:
            raise InputError("a release needs noise above 0, a count of at least 1 and sampling in (0, 1]")


def account(releases: Sequence[Release], delta: float, *, method: Literal["pld", "rdp"] = "pld") -> Cost:
    """What releases about one record cost together, by privacy-loss distributions or Renyi divergences.

    Neighbours differ by adding or removing one record (that is what Poisson sampling is analysed for).

    Args:
        releases: what was released.
        delta: for which epsilon is wanted.
        method: "pld" (tight) or "rdp" (looser; quick for very many releases).

    Raises:
        InputError: no releases, or a delta out of range.
        FacezooError: dp-accounting is not installed.
    """
    if not releases:
        raise InputError("there is nothing to account for")
    if method not in ("pld", "rdp"):
        raise InputError(f"account works by pld or rdp, not {method!r}")
    if check_delta(delta) <= 0:
        raise InputError("tight accounting needs a delta above 0, e.g. 1e-6; for pure epsilon use basic_composition")
    try:
        import dp_accounting
        from dp_accounting.pld import pld_privacy_accountant
        from dp_accounting.rdp import rdp_privacy_accountant
    except ImportError as error:
        raise FacezooError(
            f"tight accounting needs dp-accounting ({error}): pip install 'facezoo[privacy]'; "
            "basic_composition gives an upper bound without it"
        ) from error
    accountant: Any = (
        pld_privacy_accountant.PLDAccountant() if method == "pld" else rdp_privacy_accountant.RdpAccountant()
    )
    for release in releases:
        kind = dp_accounting.LaplaceDpEvent if release.mechanism == "laplace" else dp_accounting.GaussianDpEvent
        event = kind(release.noise)
        if release.sampling < 1:
            event = dp_accounting.PoissonSampledDpEvent(release.sampling, event)
        accountant.compose(event, release.count)
    return Cost(float(accountant.get_epsilon(delta)), delta)
