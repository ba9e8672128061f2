"""Composition, sampling and groups: closed forms by hand, and the accountant where it is installed."""

from __future__ import annotations

import builtins
import importlib.util
import math

import pytest

from facezoo.errors import FacezooError, InputError
from facezoo.privacy.accounting import (
    Cost,
    Release,
    account,
    advanced_composition,
    amplified_by_poisson_sampling,
    basic_composition,
    group_cost,
)

with_accountant = pytest.mark.skipif(
    importlib.util.find_spec("dp_accounting") is None, reason="needs the extra 'privacy' (dp-accounting)"
)


def test_basic_composition_adds():
    assert basic_composition([Cost(0.5), Cost(1.0, 1e-6), Cost(0.25, 1e-6)]) == Cost(1.75, 2e-6)


def test_advanced_composition_by_hand_and_never_worse_than_the_sum():
    found = advanced_composition(Cost(0.1), 100, 1e-6)
    assert found.epsilon == pytest.approx(0.1 * math.sqrt(200 * math.log(1e6)) + 10 * (math.e**0.1 - 1))
    assert found.delta == 1e-6
    assert advanced_composition(Cost(2.0), 5, 1e-6) == Cost(10.0)


def test_poisson_sampling_amplifies():
    cost = amplified_by_poisson_sampling(Cost(1.0, 1e-6), 0.05)
    assert cost.epsilon == pytest.approx(math.log(1 + 0.05 * (math.e - 1)))
    assert cost.delta == pytest.approx(5e-8)
    assert amplified_by_poisson_sampling(Cost(0.3), 1.0).epsilon == pytest.approx(0.3)
    # Small epsilon: the book's O(gamma epsilon).
    assert amplified_by_poisson_sampling(Cost(1e-4), 0.05).epsilon == pytest.approx(5e-6, rel=1e-4)
    assert amplified_by_poisson_sampling(Cost(800.0), 0.5).epsilon == pytest.approx(800 - math.log(2))


def test_groups():
    assert group_cost(Cost(0.5), 4) == Cost(2.0)
    cost = group_cost(Cost(0.5, 1e-8), 3)
    # By steps: delta (1 + e^eps + e^2eps).
    assert cost.delta == pytest.approx(1e-8 * (1 + math.exp(0.5) + math.exp(1.0)))
    assert group_cost(Cost(0.0, 0.1), 3).delta == pytest.approx(0.3)
    with pytest.raises(InputError, match="no guarantee left"):
        group_cost(Cost(5.0, 1e-3), 10)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Cost(-1.0),
        lambda: Cost(1.0, 1.0),
        lambda: amplified_by_poisson_sampling(Cost(1.0), 0.0),
        lambda: amplified_by_poisson_sampling(Cost(1.0), 1.1),
        lambda: group_cost(Cost(1.0), 0),
        lambda: advanced_composition(Cost(1.0), 0, 1e-6),
        lambda: advanced_composition(Cost(1.0), 1, 0.0),
        lambda: Release("laplace", 0.0),
        lambda: Release("uniform", 1.0),
        lambda: account([], 1e-5),
        lambda: account([Release("laplace", 1.0)], 0.0),
    ],
)
def test_what_cannot_be_accounted_for_is_refused(make):
    with pytest.raises(InputError):
        make()


def test_without_the_accountant_the_message_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def missing(name, *rest, **more):
        if name.startswith("dp_accounting"):
            raise ImportError("No module named 'dp_accounting'")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(FacezooError, match=r"facezoo\[privacy\]"):
        account([Release("laplace", 1.0)], 1e-5)


@with_accountant
def test_accountant_agrees_with_closed_forms():
    one = account([Release("laplace", 2.0)], 1e-9)
    assert one.epsilon == pytest.approx(0.5, abs=1e-3)
    # Pure epsilon for add-or-remove under Poisson sampling: the closed form is exact.
    sampled = account([Release("laplace", 1.0, sampling=0.05)], 1e-9)
    assert sampled.epsilon == pytest.approx(amplified_by_poisson_sampling(Cost(1.0), 0.05).epsilon, abs=1e-3)


@with_accountant
def test_tight_accounting_of_a_gaussian_is_the_analytic_one_and_composition_is_below_the_closed_forms():
    from facezoo.privacy.mechanisms import analytic_gaussian_deviation

    deviation = analytic_gaussian_deviation(1.0, 1e-5)
    tight = account([Release("gaussian", deviation)], 1e-5)
    assert tight.epsilon == pytest.approx(1.0, abs=2e-3)
    many = account([Release("laplace", 10.0, count=100)], 1e-6)
    loose = account([Release("laplace", 10.0, count=100)], 1e-6, method="rdp")
    assert many.epsilon <= loose.epsilon <= advanced_composition(Cost(0.1), 100, 1e-6).epsilon
