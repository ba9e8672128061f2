"""Metrics against values worked out by hand."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
import torch
from torch.nn import functional

from facezoo.errors import InputError
from facezoo.metrics import (
    PSNR_CEILING,
    RankOneRate,
    VerifiedRate,
    bootstrap_mean,
    pairwise_similarity,
    psnr,
    rank_one,
    rank_one_hits,
    similarity,
    ssim,
    thresholds_from_impostors,
    verified_rate,
    wilson,
)
from facezoo.metrics.frechet import frechet_distance


def unit(*degrees: float) -> np.ndarray:
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def test_similarity_by_hand():
    first, second = np.array([[3.0, 4.0], [1.0, 0.0]]), np.array([[8.0, 6.0], [0.0, 0.0]])
    # (3 * 8 + 4 * 6) / (5 * 10) = 0.96; a vector of length 0 is similar to nothing.
    assert similarity(first, second).tolist() == pytest.approx([0.96, 0.0])
    # Distances: (5, 2) has length sqrt(29); (1, 0) has length 1.
    assert similarity(first, second, "euclidean").tolist() == pytest.approx([-math.sqrt(29), -1.0])
    assert pairwise_similarity(first, second, "euclidean") == pytest.approx(
        -np.array([[math.sqrt(29), 5.0], [math.hypot(7, 6), 1.0]])
    )


def test_similarity_refuses_what_it_cannot_compare():
    with pytest.raises(InputError, match="not finite"):
        similarity([[1.0, math.nan]], [[1.0, 0.0]])
    with pytest.raises(InputError, match="paired"):
        similarity([[1.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]])
    with pytest.raises(InputError, match="metric"):
        similarity([[1.0]], [[1.0]], "manhattan")


def test_thresholds_by_hand():
    # Four people at 0, 10, 30 and 70 degrees, the first with a second picture at 1 degree, which is no impostor.
    vectors, people = unit(0, 1, 10, 30, 70), np.array([0, 0, 1, 2, 3])
    # Impostor angles: 10 30 70 | 9 29 69 | 20 60 | 40: nine pairs; sorted 9 10 20 29 30 40 60 69 70.
    found = thresholds_from_impostors(vectors, people, far=(0.12, 0.25, 0.5))
    cosine = {degrees: math.cos(math.radians(degrees)) for degrees in (9, 10, 20, 29, 30, 40)}
    # Allowed: floor(9 * .12) = 1, floor(9 * .25) = 2, floor(9 * .5) = 4 pairs.
    for rate, last_in, first_out in ((0.12, 9, 10), (0.25, 10, 20), (0.5, 29, 30)):
        assert cosine[first_out] < found[rate] <= cosine[last_in]
    matrix = pairwise_similarity(vectors, vectors)
    impostors = matrix[np.triu(people[:, None] != people[None])]
    assert (impostors >= found[0.25]).sum() == 2


def test_thresholds_of_distances_are_negative():
    vectors = np.array([[0.0], [1.0], [3.0], [7.0]])
    found = thresholds_from_impostors(vectors, np.arange(4), far=(0.4,), metric="euclidean")
    # Distances 1 2 3 4 6 7: two of six may be accepted, so distances below 3 are.
    assert -3 < found[0.4] <= -2


def test_equal_impostors_are_refused_together():
    found = thresholds_from_impostors(np.ones((5, 2)), np.arange(5), far=(0.5,))
    assert found[0.5] > similarity([[1.0, 1.0]], [[1.0, 1.0]])[0]


def test_thresholds_need_enough_pairs():
    with pytest.raises(InputError, match="at least 1000 are needed"):
        thresholds_from_impostors(unit(0, 10, 20), np.arange(3), far=(1e-3,))
    with pytest.raises(InputError, match="identities"):
        thresholds_from_impostors(unit(0, 10, 20), np.arange(2))


def test_thresholds_do_not_depend_on_the_block(monkeypatch):
    from facezoo.metrics import verification

    random = np.random.default_rng(0)
    vectors, people = random.normal(size=(40, 8)), random.integers(0, 9, 40)
    whole = thresholds_from_impostors(vectors, people, far=(0.01, 0.1))
    monkeypatch.setattr(verification, "_BLOCK", 7)
    assert thresholds_from_impostors(vectors, people, far=(0.01, 0.1)) == pytest.approx(whole)


def test_verified_rate_and_its_torchmetrics_twin():
    first, second = unit(0, 0, 0, 0), unit(10, 20, 30, 90)
    threshold = math.cos(math.radians(25))
    rate = verified_rate(first, second, threshold)
    assert (rate.value, rate.n) == (0.5, 4)
    metric = VerifiedRate(threshold)
    for rows in (slice(0, 1), slice(1, 4)):
        metric.update(torch.tensor(first[rows]), torch.tensor(second[rows]))
    assert metric.compute().item() == 0.5
    # A failed face is not accepted, and counts.
    metric.update(torch.full((1, 2), torch.nan), torch.ones(1, 2))
    assert metric.compute().item() == pytest.approx(0.4)
    assert pickle.loads(pickle.dumps(metric)).compute().item() == pytest.approx(0.4)
    metric.reset()
    assert metric.compute().isnan()
    near = VerifiedRate(-0.6, "euclidean")
    near.update(torch.tensor([[0.0], [0.0]]), torch.tensor([[0.59], [0.61]]))
    assert near.compute().item() == 0.5


def test_rank_one_by_hand():
    gallery, people = unit(0, 5, 50, 90), np.array([0, 1, 1, 2])
    probes, shown = unit(1, 40, 89, 10), np.array([0, 1, 0, 7])
    # 1 -> 0 degrees (person 0, right); 40 -> 50 (person 1, right); 89 -> 90 (person 2, wrong); person 7 is not there.
    assert rank_one_hits(probes, shown, gallery, people).tolist() == [True, True, False]
    assert rank_one(probes, shown, gallery, people).value == pytest.approx(2 / 3)
    # Without its own picture (index 0) person 0 cannot be found at all, person 1 is found by its other picture.
    hits = rank_one_hits(unit(0, 5), np.array([0, 1]), gallery, people, excluded=np.array([0, 1]))
    assert hits.tolist() == [False]  # 5 degrees: the nearest that is left is 0 degrees, person 0
    metric = RankOneRate(torch.tensor(gallery), torch.tensor(people))
    metric.update(torch.tensor(probes[:3]), torch.tensor(shown[:3]))
    assert metric.compute().item() == pytest.approx(2 / 3)


def test_wilson_by_hand():
    # Newcombe (1998), table I: 81 of 263 gives 0.2553 to 0.3662; 0 of 20 gives 0 to 0.1611.
    rate = wilson(81, 263)
    assert (rate.low, rate.high) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert (wilson(0, 20).low, wilson(0, 20).high) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert wilson(20, 20).high == 1.0
    assert wilson(0, 0).to_dict() == {"value": None, "low": 0.0, "high": 1.0, "n": 0}
    with pytest.raises(InputError):
        wilson(3, 2)


def test_bootstrap_covers_the_mean_of_a_known_distribution():
    values = np.random.default_rng(1).normal(5.0, 2.0, 400)
    mean = bootstrap_mean(values)
    # The normal interval of the mean is 1.96 * 2 / sqrt(400) = 0.196 on each side.
    assert mean.value == pytest.approx(values.mean())
    assert mean.high - mean.value == pytest.approx(0.196, rel=0.2)
    assert mean.value - mean.low == pytest.approx(0.196, rel=0.2)
    assert bootstrap_mean(values) == mean
    assert bootstrap_mean([3.0, 3.0]).low == 3.0
    with pytest.raises(InputError, match="failed cases"):
        bootstrap_mean([1.0, math.inf])


def test_psnr_by_hand():
    first = torch.zeros(3, 3, 16, 16)
    second = first.clone()
    second[0] += 0.2  # error 0.04, peak 4: 10 log10(100) = 20 dB
    second[1, :, :8] += 0.02  # half of the pixels: 10 log10(4 / 0.0002)
    assert psnr(first, second).tolist() == pytest.approx([20.0, 10 * math.log10(4 / 2e-4), PSNR_CEILING], abs=1e-4)
    with pytest.raises(InputError, match="one shape"):
        psnr(first, second[:1])


def test_ssim_against_the_formula():
    # Constant pictures a and b: SSIM = (2ab + C1) / (a^2 + b^2 + C1), C1 = (0.01 * 2)^2.
    a, b = 0.2, 0.5
    first, second = torch.full((1, 3, 32, 32), a), torch.full((1, 3, 32, 32), b)
    expected = (2 * a * b + 4e-4) / (a * a + b * b + 4e-4)
    assert ssim(first, second).item() == pytest.approx(expected, abs=1e-4)
    random = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    result = ssim(random, torch.stack([random[0], functional.avg_pool2d(random[1], 3, 1, 1)]))
    assert result[0].item() == pytest.approx(1.0, abs=1e-5)
    assert 0 < result[1] < 0.8
    with pytest.raises(InputError, match="at least 11"):
        ssim(random[..., :8, :8], random[..., :8, :8])


class TestFrechetDistance:
    def test_by_hand_in_one_dimension(self):
        # means 0 and 3, standard deviations 1 and 2: 3^2 + (1 - 2)^2
        first, second = np.array([[-1.0], [0.0], [1.0]]), np.array([[1.0], [3.0], [5.0]])
        assert frechet_distance(first, second) == pytest.approx(10.0)

    def test_is_the_formula_with_the_matrix_root(self):
        linalg = pytest.importorskip("scipy.linalg")
        rng = np.random.default_rng(3)
        first, second = rng.normal(size=(60, 7)) @ rng.normal(size=(7, 7)), rng.normal(size=(50, 7)) + 0.3
        c1, c2 = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
        root = linalg.sqrtm(c1 @ c2).real
        wanted = np.square(first.mean(0) - second.mean(0)).sum() + np.trace(c1 + c2 - 2 * root)
        assert frechet_distance(first, second) == pytest.approx(wanted)
        assert frechet_distance(second, first) == pytest.approx(wanted)

    def test_equal_sets_are_at_zero_even_with_fewer_rows_than_columns(self):
        features = np.random.default_rng(0).normal(size=(5, 20))
        assert frechet_distance(features, features[::-1]) == pytest.approx(0.0, abs=1e-9)

    def test_wrong_shapes_and_values(self):
        with pytest.raises(InputError, match="at least 2 rows"):
            frechet_distance(np.zeros((1, 3)), np.zeros((4, 3)))
        with pytest.raises(InputError, match="not finite"):
            frechet_distance(np.full((3, 2), np.nan), np.zeros((3, 2)))
