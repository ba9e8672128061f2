"""Mechanisms: their laws against closed forms, and an audit that a noise of half the scale does not pass."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from facezoo.errors import InputError
from facezoo.privacy.audit import privacy_loss
from facezoo.privacy.mechanisms import (
    ExponentialMechanism,
    GaussianMechanism,
    LaplaceMechanism,
    RandomizedResponse,
    analytic_gaussian_delta,
    analytic_gaussian_deviation,
)
from facezoo.privacy.randomness import (
    SecureBits,
    SeededBits,
    bernoulli_exp,
    choose_by_log_weights,
    discrete_laplace,
    rounded_normal,
)
from facezoo.privacy.sensitivity import (
    Sensitivity,
    ball,
    box,
    clip_to_ball,
    greatest_seen,
    project_to_l1_ball,
    unit_sphere,
    unit_vectors,
)

ONE = Sensitivity(1.0, "l1", True, "a test")
ONE_L2 = Sensitivity(1.0, "l2", True, "a test")


def drawn(make, value: float, count: int, seed: int) -> np.ndarray:
    """Many draws at once: coordinates of one release, each at the scale of the whole."""
    return make(count).release(torch.full((count,), value, dtype=torch.float64), SeededBits(seed)).numpy()


def laplace(epsilon: float, kind: type[LaplaceMechanism] = LaplaceMechanism):
    return lambda dim: kind(epsilon, ONE, dim)


def gauss(epsilon: float, delta: float, kind: type[GaussianMechanism] = GaussianMechanism):
    return lambda dim: kind(epsilon, delta, ONE_L2, dim)


def within(hits: float, count: int, probability: float) -> bool:
    """Five standard deviations."""
    return abs(hits / count - probability) < 5 * math.sqrt(probability * (1 - probability) / count)


# Samplers


@pytest.mark.parametrize("exponent", [Fraction(0), Fraction(1, 3), Fraction(1), Fraction(5, 2)])
def test_bernoulli_exp(exponent):
    source = SeededBits(1)
    hits = sum(bernoulli_exp(source, exponent) for _ in range(8000))
    assert hits == 8000 if exponent == 0 else within(hits, 8000, math.exp(-exponent))


def test_discrete_laplace_has_the_two_sided_geometric_law():
    source, scale, count = SeededBits(2), Fraction(3, 2), 12000
    values = np.array([discrete_laplace(source, scale) for _ in range(count)])
    r = math.exp(-1 / 1.5)
    for n in (-3, -1, 0, 1, 2):
        assert within((values == n).sum(), count, (1 - r) / (1 + r) * r ** abs(n)), n


def test_rounded_normal_has_the_law_of_a_rounded_gaussian():
    source, count = SeededBits(3), 8000
    values = np.array([rounded_normal(source, Fraction(2)) for _ in range(count)])
    for n in (-4, -1, 0, 2, 3):
        probability = 0.5 * (math.erf((n + 0.5) / 2 / math.sqrt(2)) - math.erf((n - 0.5) / 2 / math.sqrt(2)))
        assert within((values == n).sum(), count, probability), n


def test_choice_by_weights():
    source, count = SeededBits(4), 9000
    values = [choose_by_log_weights(source, [Fraction(0), Fraction(1), Fraction(-1, 2)]) for _ in range(count)]
    weights = np.exp([0.0, 1.0, -0.5])
    for index in range(3):
        assert within(values.count(index), count, weights[index] / weights.sum())


def test_sources():
    assert SeededBits(5).bits(64) == SeededBits(5).bits(64) != SeededBits(6).bits(64)
    assert SecureBits().bits(128) != SecureBits().bits(128)
    assert SecureBits().secure
    assert not SeededBits(5).secure
    source = SeededBits(7)
    assert all(0 <= source.below(5) < 5 for _ in range(500))
    assert source.below(1) == 0
    with pytest.raises(ValueError, match="positive"):
        source.below(0)


def test_a_forked_process_does_not_repeat_the_noise():
    source = SecureBits()
    source.bits(8)
    mine = source._buffer
    source._process += 1  # what a child of fork() sees: the parent's buffer under another process number
    source.bits(64)
    assert source._buffer != mine


# Laws of the mechanisms


def test_laplace_scale_is_sensitivity_over_epsilon():
    mechanism = LaplaceMechanism(0.5, ONE, 1)
    values = drawn(laplace(0.5), 3.0, 6000, 8) - 3.0
    assert mechanism.scale == 2.0
    # Mean absolute value b, with standard deviation b / sqrt(n).
    assert abs(np.abs(values).mean() - 2.0) < 5 * 2.0 / math.sqrt(6000)
    assert abs(np.median(values)) < 5 * 2.0 / math.sqrt(6000)


def test_output_lies_on_a_lattice_that_does_not_know_the_input():
    mechanism = LaplaceMechanism(1.0, ONE, 1)
    for value in (0.1, 1 / 3, 1e-9):
        released = mechanism.release(torch.tensor([value], dtype=torch.float64), SeededBits(9))
        outputs = released.numpy() / mechanism.step
        assert np.array_equal(outputs, np.round(outputs))
    assert mechanism.step <= 2.0**-20
    assert math.log2(mechanism.step).is_integer()
    assert float(mechanism.lattice_scale) * mechanism.step == pytest.approx(mechanism.scale, rel=1e-5)
    assert float(mechanism.lattice_scale) * mechanism.step > mechanism.scale, "rounding is paid for"


def test_gaussian_deviation():
    mechanism = GaussianMechanism(1.0, 1e-5, ONE_L2, 1)
    values = drawn(gauss(1.0, 1e-5), -2.0, 3000, 10) + 2.0
    assert values.std() == pytest.approx(mechanism.deviation, rel=5 / math.sqrt(2 * 3000))
    # Balle & Wang: below the textbook's sigma, which holds for epsilon up to 1 only.
    assert mechanism.deviation < math.sqrt(2 * math.log(1.25e5))
    assert mechanism.deviation == pytest.approx(3.73063, abs=1e-4)  # from their published code


@pytest.mark.parametrize(("epsilon", "delta"), [(0.01, 1e-5), (1.0, 1e-6), (20.0, 1e-9), (800.0, 1e-5)])
def test_analytic_calibration_is_tight_and_errs_on_the_private_side(epsilon, delta):
    deviation = analytic_gaussian_deviation(epsilon, delta)
    assert analytic_gaussian_delta(deviation, epsilon) <= delta
    assert analytic_gaussian_delta(deviation * 0.999, epsilon) > delta
    assert analytic_gaussian_deviation(epsilon, delta, 3.0) == pytest.approx(3 * deviation)


def test_analytic_delta_against_numerical_integration():
    grid = np.linspace(-30, 30, 600_001)
    for deviation, epsilon in ((1.0, 0.5), (2.0, 1.0), (0.7, 3.0)):
        density = [np.exp(-((grid - m) ** 2) / 2 / deviation**2) / deviation / math.sqrt(2 * math.pi) for m in (1, 0)]
        excess = np.clip(density[0] - math.exp(epsilon) * density[1], 0, None).sum() * (grid[1] - grid[0])
        assert analytic_gaussian_delta(deviation, epsilon) == pytest.approx(excess, rel=1e-3)


def test_exponential_mechanism_law_and_epsilon_zero():
    utilities = torch.tensor([5.0, 3.0, 0.0])
    mechanism = ExponentialMechanism(1.0, 2.0)
    count = 9000
    chosen = mechanism.choose(utilities.expand(count, 3), SeededBits(11))
    wanted = np.exp(np.array([5, 3, 0]) / 4)
    for index in range(3):
        assert within(int((chosen == index).sum()), count, wanted[index] / wanted.sum())
    assert torch.allclose(mechanism.probabilities(utilities), torch.tensor(wanted / wanted.sum()))
    blind = ExponentialMechanism(0.0, 1.0).choose(utilities.expand(count, 3), SeededBits(12))
    assert within(int((blind == 0).sum()), count, 1 / 3)


@pytest.mark.parametrize("choices", [2, 5])
def test_randomised_response_law(choices):
    mechanism, count = RandomizedResponse(1.0, choices), 9000
    told = mechanism.release(torch.ones(count, dtype=torch.int64), SeededBits(13))
    truth = math.e / (math.e + choices - 1)
    assert mechanism.truth == pytest.approx(truth)
    assert within(int((told == 1).sum()), count, truth)
    assert within(int((told == 0).sum()), count, (1 - truth) / (choices - 1))


# The audit: right scales pass, wrong ones fail


class HalfNoise(LaplaceMechanism):
    """The classic mistake: half the noise."""

    @property
    def lattice_scale(self):
        return super().lattice_scale / 2


class HalfGauss(GaussianMechanism):
    """The same with a Gaussian."""

    @property
    def lattice_deviation(self):
        return super().lattice_deviation / 2


@pytest.mark.parametrize(("mechanism", "passes"), [(LaplaceMechanism, True), (HalfNoise, False)])
def test_laplace_audit(mechanism, passes):
    audit = privacy_loss(*(drawn(laplace(1.0, mechanism), value, 12000, 14 + i) for i, value in enumerate((1.0, 0.0))))
    assert audit.allows(1.0) is passes
    assert audit.epsilon_at_least > (0.8 if passes else 1.5)
    losses = audit.losses[np.isfinite(audit.losses)]
    assert np.abs(losses).max() < (1.3 if passes else 3)


@pytest.mark.parametrize(("mechanism", "passes"), [(GaussianMechanism, True), (HalfGauss, False)])
def test_gaussian_audit(mechanism, passes):
    samples = [drawn(gauss(1.0, 0.01, mechanism), value, 6000, 16 + i) for i, value in enumerate((1.0, 0.0))]
    audit = privacy_loss(*samples, delta=0.01)
    assert audit.allows(1.0) is passes


def test_vector_audit_by_the_likelihood_ratio():
    """The worst neighbours of a vector mechanism: opposite corners of the cube on the unit sphere."""
    dim = 2
    corner = torch.full((dim,), dim**-0.5, dtype=torch.float64)
    for factor, passes in ((1, True), (2, False)):
        noisy = LaplaceMechanism(1.0 * factor, unit_sphere(dim, "l1"), dim)
        source = SeededBits(18)
        statistic = [
            [float((y + corner).abs().sum() - (y - corner).abs().sum())]
            for sign in (1, -1)
            for y in (noisy.release(sign * corner, source) for _ in range(5000))
        ]
        audit = privacy_loss(np.array(statistic[:5000]), np.array(statistic[5000:]))
        assert audit.allows(1.0) is passes, "noise for epsilon 2 that is sold as epsilon 1 is caught"


def test_exponential_audit_catches_a_sensitivity_that_is_too_small():
    for sensitivity, passes in ((1.0, True), (0.25, False)):
        mechanism = ExponentialMechanism(1.0, sensitivity)
        outputs = [
            mechanism.choose(torch.tensor(u).expand(6000, 2), SeededBits(19 + i)).double().numpy()
            for i, u in enumerate(([1.0, 0.0], [0.0, 1.0]))
        ]
        assert privacy_loss(*outputs).allows(1.0) is passes


@pytest.mark.parametrize("choices", [2, 4])
def test_randomised_response_audit_catches_too_much_truth(choices):
    """Sold as epsilon 1; the mutant tells the truth as often as epsilon 2 would."""
    for loss, passes in ((1.0, True), (2.0, False)):
        mechanism = RandomizedResponse(loss, choices)
        outputs = [
            mechanism.release(torch.full((6000,), answer), SeededBits(21 + answer)).double().numpy()
            for answer in (0, 1)
        ]
        assert privacy_loss(*outputs).allows(1.0) is passes


def test_audit_refuses_what_says_nothing():
    with pytest.raises(InputError, match="at least 200"):
        privacy_loss([1.0] * 10, [2.0] * 10)


# Sensitivities are bounds


def test_unit_sphere_bound_is_reached_and_never_passed():
    dim = 128
    bound = unit_sphere(dim, "l1")
    assert bound.value == pytest.approx(22.6274, abs=1e-4)
    corner = unit_vectors(torch.ones(1, dim))
    assert float((corner - -corner).abs().sum()) == pytest.approx(bound.value)
    random = unit_vectors(torch.randn(300, dim, generator=torch.Generator().manual_seed(0)))
    seen = greatest_seen(random, "l1")
    assert not seen.sound
    assert seen.value < bound.value
    assert float((random[:, None] - random[None]).abs().sum(-1).max()) == pytest.approx(seen.value)
    assert unit_sphere(dim, "l2").value == 2


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_clipping_and_projection_stay_in_the_ball(norm):
    values = 5 * torch.randn(200, 9, generator=torch.Generator().manual_seed(1))
    values[0] = 0.01
    clipped = clip_to_ball(values, 2.0, norm)
    assert float(clipped.norm(p=1 if norm == "l1" else 2, dim=1).max()) <= 2.0 * (1 + 1e-12)
    assert torch.allclose(clipped[0], values[0].double())
    assert ball(2.0, norm).value == 4.0
    projected = project_to_l1_ball(values, 2.0)
    assert float(projected.abs().sum(1).max()) <= 2.0 * (1 + 1e-12)
    assert torch.allclose(projected[0], values[0].double())
    # It is the nearest point: nearer than the scaled one.
    scaled = clip_to_ball(values, 2.0, "l1")
    assert bool(((projected - values).norm(dim=1) <= (scaled - values).norm(dim=1) + 1e-9).all())


def test_projection_by_hand():
    # (3, 1) onto the ball of radius 2: take 1 from each coordinate.
    assert project_to_l1_ball(torch.tensor([[3.0, 1.0]]), 2.0).tolist() == [[2.0, 0.0]]
    assert project_to_l1_ball(torch.tensor([[-2.0, 1.0]]), 2.0).tolist() == [[-1.5, 0.5]]


def test_box():
    assert box(4, 0, 255, "l1").value == 1020
    assert box(4, 0, 255, "l2").value == 510


# What is refused


@pytest.mark.parametrize("epsilon", [0.0, -1.0, math.inf, math.nan])
def test_epsilon_that_is_none(epsilon):
    for make in (
        lambda: LaplaceMechanism(epsilon, ONE, 1),
        lambda: GaussianMechanism(epsilon, 1e-5, ONE_L2, 1),
        lambda: RandomizedResponse(epsilon),
    ):
        with pytest.raises(InputError, match="epsilon must be"):
            make()
    if epsilon != 0:
        with pytest.raises(InputError, match="epsilon must be"):
            ExponentialMechanism(epsilon, 1.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LaplaceMechanism(1.0, ONE_L2, 1), "in l1"),
        (lambda: GaussianMechanism(1.0, 1e-5, ONE, 1), "in l2"),
        (lambda: GaussianMechanism(1.0, 0.0, ONE_L2, 1), "delta above 0"),
        (lambda: GaussianMechanism(1.0, 1.0, ONE_L2, 1), "delta must be"),
        (lambda: ExponentialMechanism(1.0, 0.0), "sensitivity must be"),
        (lambda: RandomizedResponse(1.0, 1), "two answers"),
        (lambda: LaplaceMechanism(1.0, ONE, 2).release(torch.zeros(3)), "2 coordinates, not 3"),
        (lambda: LaplaceMechanism(1.0, ONE, 1).release(torch.tensor([math.nan])), "not finite"),
        (lambda: LaplaceMechanism(1.0, ONE, 1).release(torch.tensor([1e30])), "clip them first"),
        (lambda: ExponentialMechanism(1.0, 1.0).choose(torch.zeros(2, 0)), "at least one choice"),
        (lambda: RandomizedResponse(1.0).release(torch.tensor([2])), "from 0 to 1"),
        (lambda: Sensitivity(0.0, "l1", True, ""), "above 0"),
        (lambda: unit_vectors(torch.zeros(1, 3)), "no direction"),
        (lambda: clip_to_ball(torch.zeros(1, 3), 0.0, "l1"), "radius above 0"),
        (lambda: greatest_seen(torch.zeros(1, 3), "l1"), "two vectors"),
    ],
)
def test_what_has_no_guarantee_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()
