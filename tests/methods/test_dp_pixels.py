"""DP-Pix, DP-Blur, DP-SVD: the sensitivities are bounds, the noise has the promised scale, records say what holds."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from facezoo import registry
from facezoo.errors import InputError
from facezoo.methods.base import FaceContext
from facezoo.methods.dp_pixels.method import cell_means, cell_sensitivity, gaussian_blurred


def face(seed: int = 0) -> torch.Tensor:
    return torch.rand(3, 128, 128, generator=torch.Generator().manual_seed(seed)).double() * 2 - 1


@pytest.mark.parametrize("block", [16, 20, 128])
@pytest.mark.parametrize("pixels", [1, 16, 700])
def test_sensitivity_bounds_the_worst_change(block, pixels):
    """Changes as concentrated as possible, and spread out; from one end of the range to the other."""
    first = -torch.ones(3, 128, 128, dtype=torch.float64)
    for rows in (torch.arange(pixels), torch.linspace(0, 128 * 128 - 1, pixels).long()):
        second = first.clone().view(3, -1)
        # In blocks of the first cells: their pixels come first.
        if rows[-1] == pixels - 1:
            side = math.isqrt(pixels)
            second.view(3, 128, 128)[:, :side, :side] = 1
        else:
            second[:, rows] = 1
        moved = cell_means(second.view(3, 128, 128), block) - cell_means(first, block)
        assert float(moved.abs().sum()) <= cell_sensitivity(block, pixels, "l1").value * (1 + 1e-12)
        assert float(moved.norm()) <= cell_sensitivity(block, pixels, "l2").value * (1 + 1e-12)


def test_sensitivity_by_hand():
    # 16 pixels of a 16x16 cell, each by 2, in three channels: 3 * 16 * 2 / 256.
    assert cell_sensitivity(16, 16, "l1").value == pytest.approx(0.375)
    assert cell_sensitivity(16, 16, "l2").value == pytest.approx(math.sqrt(3) * 0.125)
    # Everything changes: 64 cells by 2 in three channels.
    assert cell_sensitivity(16, 128 * 128, "l1").value == pytest.approx(384)
    assert cell_sensitivity(16, 128 * 128, "l2").value == pytest.approx(math.sqrt(3 * 64 * 4))


def test_dp_pix_noise_has_the_scale_of_the_proof():
    method = registry.create("dp_pix", epsilon=10.0, block=8, pixels=16, randomness="seeded")
    grey = torch.zeros(1, 3, 128, 128, dtype=torch.float64)
    noise = method.anonymize(grey, FaceContext(seed=5))[0, :, ::8, ::8]
    # 768 draws of scale b = 3 * 16 * 2 / 64 / 10 = .15, hardly any of them clipped at 1.
    assert float(noise.abs().mean()) == pytest.approx(0.15, rel=5 / math.sqrt(768))


def test_dp_svd_keeps_the_vectors_and_the_rank():
    method = registry.create("dp_svd", epsilon=1.0, rank=2, randomness="seeded")
    original = face(1)
    # Without clipping at the ends of the range: what `private` gives.
    from facezoo.privacy.randomness import SeededBits

    changed = (method.private(original, method.options, SeededBits(1)) + 1) * 127.5
    left, _, right = torch.linalg.svd((original + 1) * 127.5)
    for channel in range(3):
        core = left[channel].T @ changed[channel] @ right[channel].T
        assert float((core - torch.diag(core.diagonal())).abs().max()) < 1e-6
        assert float(core.diagonal()[2:].abs().max()) < 1e-6


def test_blur_keeps_the_mean_of_a_constant():
    assert torch.allclose(gaussian_blurred(torch.full((3, 128, 128), 0.3).double(), 6.0), torch.tensor(0.3).double())


def test_release_is_fresh_each_time_and_the_record_says_what_holds():
    faces = face(2)[None].float()
    for name in ("dp_pix", "dp_blur", "dp_svd"):
        method = registry.create(name)
        assert not torch.equal(*(method.anonymize(faces, FaceContext(seed=1)) for _ in range(2)))
        record = method.options_record(FaceContext())
        assert str(record["guarantee"]).startswith("epsilon")
        assert "person" in str(record["leaks"])
        seeded = method.options_record(FaceContext(options={"randomness": "seeded"}))
        assert str(seeded["guarantee"]).startswith("none")


@pytest.mark.parametrize("name", ["dp_pix", "dp_blur", "dp_svd"])
@pytest.mark.parametrize("epsilon", [0, -1, math.inf, math.nan])
def test_epsilon_that_is_none(name, epsilon):
    with pytest.raises(InputError, match="epsilon must be a number"):
        registry.create(name, epsilon=epsilon)


def test_the_crop_is_the_reference():
    with pytest.raises(InputError, match="128"):
        registry.create("dp_pix").anonymize(torch.zeros(1, 3, 64, 64), FaceContext())
    assert np.isfinite(cell_sensitivity(2, 1, "l2").value)
