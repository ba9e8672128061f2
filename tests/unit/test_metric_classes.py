"""The metric classes against values worked out by hand, float64 formulas and other implementations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from facezoo import metrics
from facezoo.errors import CheckpointError, InputError
from facezoo.metrics.diversity import key_diversity
from facezoo.metrics.utility import EXPRESSION_FEATURES, SUBSETS_68, landmark_expression


def unit(*degrees: float) -> torch.Tensor:
    angles = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    return torch.stack((angles.cos(), angles.sin()), 1)


def fed(metric, *arguments):
    metric.update(*arguments)
    return metric


def test_identity_distance_by_hand():
    first, second = torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([[8.0, 6.0], [1.0, 2.0]])
    # cosines 48/50 and 1/sqrt(5); differences (5, 2) and (0, 2)
    assert fed(metrics.IdentityDistance(), first, second).compute() == pytest.approx((0.04 + 1 - 5**-0.5) / 2)
    assert fed(metrics.IdentityDistance("euclidean"), first, second).compute() == pytest.approx((29**0.5 + 2) / 2)
    with pytest.raises(InputError, match="what it counts as"):
        metrics.IdentityDistance().update(first * math.nan, second)


def test_protection_fails_closed_and_verification_too():
    broken = unit(0, 60, 60, 90)
    broken[2] = math.nan
    originals = unit(0, 0, 0, 0)
    threshold = math.cos(math.radians(70))
    protected = fed(metrics.ProtectionRate(threshold), broken, originals)
    assert (protected.compute().item(), protected.interval().n) == (0.25, 4)
    assert protected.interval() == metrics.wilson(1, 4)
    assert fed(metrics.VerifiedRate(threshold), broken, originals).compute().item() == 0.5


def test_tar_at_far_by_hand():
    # Impostors at 10, 20, ..., 100 degrees; genuine pairs at 5, 15, 25 degrees and one that failed.
    first = torch.cat((unit(*[0] * 10), unit(*[0] * 4)))
    second = torch.cat((unit(*range(10, 101, 10)), unit(5, 15, 25, 0)))
    second[-1] = math.nan
    metric = fed(metrics.TarAtFar((0.1, 0.2)), first, second, torch.tensor([False] * 10 + [True] * 4))
    # One of ten impostors (10 degrees) may pass: 5 and 15 degrees do. Two: 25 degrees does as well.
    assert metric.compute().tolist() == [0.5, 0.75]
    assert metric.intervals()[0.1] == metrics.wilson(2, 4)
    assert metric.thresholds() == metrics.thresholds_from_scores(np.cos(np.radians(np.arange(10, 101, 10))), (0.1, 0.2))
    with pytest.raises(InputError, match="at least 1000"):
        fed(metrics.TarAtFar((1e-3,)), first, second, torch.tensor([False] * 10 + [True] * 4)).compute()
    with pytest.raises(InputError, match="impostor pair is not finite"):
        metrics.TarAtFar().update(first, second, torch.zeros(14, dtype=torch.bool))


def test_tar_is_what_the_functions_give():
    random = np.random.default_rng(0)
    people = np.repeat(np.arange(30), 2)
    vectors = random.normal(size=(30, 8)).repeat(2, 0) + 0.4 * random.normal(size=(60, 8))
    rows, columns = np.triu_indices(60, 1)
    same = torch.from_numpy(people[rows] == people[columns])
    metric = fed(metrics.TarAtFar((0.01,)), torch.tensor(vectors[rows]), torch.tensor(vectors[columns]), same)
    threshold = metrics.thresholds_from_impostors(vectors, people, (0.01,))[0.01]
    assert metric.thresholds()[0.01] == pytest.approx(threshold)
    wanted = metrics.verified_rate(vectors[::2], vectors[1::2], threshold)
    assert metric.compute().item() == pytest.approx(wanted.value)


def test_kffa_is_the_function_s():
    results = torch.randn(9, 5, 12, generator=torch.Generator().manual_seed(0))
    assert fed(metrics.KnownFactorFeatureAngle(), results).compute().item() == pytest.approx(
        key_diversity(results.numpy(), results[:, 0].numpy()).kffa
    )
    with pytest.raises(InputError, match="K >= 2"):
        metrics.KnownFactorFeatureAngle().update(results[:, :1])


def test_identity_invariance_by_hand():
    # Clip 0: frames 0, 1, 2 at 0, 60, 60 degrees; clip 1: frames 0 and 2 (1 is missing), then 3 at 90 from 2.
    metric = metrics.IdentityInvarianceScore()
    metric.update(unit(60, 0), torch.tensor([0, 0]), torch.tensor([1, 0]))
    metric.update(unit(0, 60, 0, 90), torch.tensor([1, 0, 1, 1]), torch.tensor([0, 2, 2, 3]))
    assert metric.compute().item() == pytest.approx((0.5 + 0 + 1) / 3)
    assert metric.gaps() == 1
    assert metric.interval().n == 3
    with pytest.raises(InputError, match="of 3 after 2 numbers"):
        metric.update(torch.zeros(1, 3), torch.zeros(1), torch.zeros(1))


def test_boxes_and_landmarks_by_hand():
    boxes = torch.tensor([[0.0, 0, 10, 10], [5, 5, 9, 9], [math.nan] * 4])
    metric = fed(metrics.BoxDistance(), boxes, torch.tensor([[2.0, 0, 14, 10], [5, 5, 9, 9], [1.0, 1, 2, 2]]))
    assert metric.compute().item() == pytest.approx((6 / 4 + 0) / 2)
    assert int(metric.missing) == 1
    points = torch.zeros(1, 68, 2)
    moved = points.clone()
    moved[0, list(SUBSETS_68["mouth"])] = torch.tensor([3.0, 4.0])
    assert fed(metrics.LandmarkDistance(), moved, points).compute().item() == pytest.approx(20 * 5 / 68)
    mouth = metrics.LandmarkDistance(points=SUBSETS_68["mouth"])
    assert fed(mouth, moved, points).compute().item() == pytest.approx(5)
    assert fed(metrics.LandmarkDistance("l1"), moved, points).compute().item() == pytest.approx(20 * 3.5 / 68)
    assert sorted(i for part in ("contour", "brows", "nose", "eyes", "mouth") for i in SUBSETS_68[part]) == list(
        SUBSETS_68["all"]
    )
    with pytest.raises(InputError, match="point 67"):
        mouth.update(moved[:, :5], points[:, :5])


def test_pose_is_compared_round_the_circle():
    first, second = torch.tensor([[179.0, 0, 3]]), torch.tensor([[-179.0, 2, 0]])
    assert fed(metrics.PoseDistance(), first, second).compute().item() == pytest.approx((2 + 2 + 3) / 3)
    assert fed(metrics.PoseDistance("l2"), first, second).compute().item() == pytest.approx(17**0.5)


def face_points() -> torch.Tensor:
    """68 points, most at 0; eyes 20 apart."""
    p = torch.zeros(1, 68, 2, dtype=torch.float64)
    for start, x in ((36, -10.0), (42, 10.0)):
        p[0, start : start + 6, 0] = torch.tensor([-3.0, -1, 1, 3, 1, -1]) + x
        p[0, start : start + 6, 1] = torch.tensor([0.0, -1, -1, 0, 1, 1])
    p[0, 17:27] = torch.tensor([[x, -6.0] for x in (-14, -12, -10, -8, -6, 6, 8, 10, 12, 14)])
    p[0, 48:68, 1] = 20
    p[0, [48, 54], 0] = torch.tensor([-8.0, 8.0], dtype=torch.float64)
    return p


def test_expression_by_hand_and_without_place_size_and_roll():
    neutral = face_points()
    values = dict(zip(EXPRESSION_FEATURES, landmark_expression(neutral)[0].tolist(), strict=True))
    assert values["left eye open"] == pytest.approx(2 / 20)
    assert values["right brow raised"] == pytest.approx(6 / 20)
    assert values["brows apart"] == pytest.approx(12 / 20)
    assert values["mouth wide"] == pytest.approx(16 / 20)
    assert values["mouth open"] == 0
    smiling = neutral.clone()
    smiling[0, [48, 54], 1] -= 4
    smiling[0, 65:68, 1] += 3
    changed = landmark_expression(smiling)[0] - landmark_expression(neutral)[0]
    named = dict(zip(EXPRESSION_FEATURES, changed.tolist(), strict=True))
    assert named["mouth open"] == pytest.approx(3 / 20)
    # Points 51, 57, 62, 66: one of four lips' points is 3 lower, so the corners stand 4 + 0.75 above them.
    assert named["left mouth corner raised"] == pytest.approx(4.75 / 20)
    assert named["left eye open"] == 0
    turn = torch.tensor([[0.8, 0.6], [-0.6, 0.8]], dtype=torch.float64)
    assert torch.allclose(landmark_expression(3 * smiling @ turn + 40), landmark_expression(smiling))
    distance = fed(metrics.ExpressionDistance(), landmark_expression(smiling), landmark_expression(neutral))
    assert distance.compute().item() == pytest.approx(changed.norm().item())


def test_attribute_accuracy_by_hand():
    metric = metrics.AttributeAccuracy(("sex", "glasses", "hat"))
    labels = torch.tensor([[0, 1, -1], [1, -1, -1], [1, 0, -1]])
    metric.update(torch.tensor([[0, 1, 0], [0, 1, 0], [-1, 0, 0]]), labels)
    # sex: one of three (-1 for a known label is wrong); glasses: two of two; hat: no label.
    assert metric.compute().item() == pytest.approx((1 / 3 + 1) / 2)
    assert metric.intervals()["sex"] == metrics.wilson(1, 3)
    assert metric.intervals()["hat"].n == 0


def ssim_reference(first: np.ndarray, second: np.ndarray) -> float:
    """Wang et al. 2004, formula 13, float64; pictures mirrored at the border, as torchmetrics has it."""
    first, second = (np.pad(x, ((0, 0), (5, 5), (5, 5)), mode="reflect") for x in (first, second))
    offsets = np.arange(11) - 5
    window = np.exp(-(offsets**2) / (2 * 1.5**2))
    window = np.outer(window, window) / window.sum() ** 2
    a, b = (
        np.lib.stride_tricks.sliding_window_view(x.astype(np.float64), (11, 11), axis=(1, 2)) for x in (first, second)
    )
    mean_a, mean_b = (a * window).sum((-1, -2)), (b * window).sum((-1, -2))
    var_a, var_b = (a**2 * window).sum((-1, -2)) - mean_a**2, (b**2 * window).sum((-1, -2)) - mean_b**2
    both = (a * b * window).sum((-1, -2)) - mean_a * mean_b
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    above = (2 * mean_a * mean_b + c1) * (2 * both + c2)
    below = (mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)
    return float((above / below).mean())


def test_picture_metrics_against_references():
    random = torch.Generator().manual_seed(1)
    first = torch.rand(4, 3, 24, 30, generator=random) * 2 - 1
    second = (first + 0.2 * torch.randn(4, 3, 24, 30, generator=random)).clamp(-1, 1)
    wanted = np.mean([ssim_reference(a.numpy(), b.numpy()) for a, b in zip(first, second, strict=True)])
    assert fed(metrics.StructuralSimilarity(), first, second).compute().item() == pytest.approx(wanted, abs=1e-5)
    errors = (first.double() - second.double()).square().mean((1, 2, 3))
    assert fed(metrics.PeakSignalToNoise(), first, second).compute().item() == pytest.approx(
        (10 * torch.log10(4 / errors)).mean().item()
    )
    pixels = ((first.double() - second.double()) / 2).abs().mean().item()
    assert fed(metrics.MeanAbsoluteError(), first, second).compute().item() == pytest.approx(pixels)


def test_frechet_class_is_the_function_and_has_a_name():
    random = np.random.default_rng(0)
    real, made = random.normal(size=(50, 6)) @ random.normal(size=(6, 6)) + 100, random.normal(size=(70, 6)) + 100
    metric = metrics.FrechetDistance("MobileNetV2", 6)
    metric.update(torch.tensor(real), real=True)
    metric.update(torch.tensor(made), real=False)
    assert metric.compute().item() == pytest.approx(metrics.frechet_distance(real, made), rel=1e-6)
    linalg = pytest.importorskip("scipy.linalg")
    c1, c2 = np.cov(real, rowvar=False), np.cov(made, rowvar=False)
    wanted = np.square(real.mean(0) - made.mean(0)).sum() + np.trace(c1 + c2 - 2 * linalg.sqrtm(c1 @ c2).real)
    assert metric.compute().item() == pytest.approx(wanted, rel=1e-6)
    assert metric.title == "FD-MobileNetV2"
    assert metrics.FrechetDistance("Inception-2015-12-05", 4).title == "FID"
    assert metrics.FrechetDistance("x", 2).compute().isnan()


def test_inception_is_the_network_of_the_file():
    """23,834,568 parameters are Inception-v3 without its auxiliary head; eight classes more make 8 x 2049."""
    from facezoo.nets.inception import InceptionFeatures

    network = InceptionFeatures()
    assert sum(p.numel() for p in network.parameters()) == 23_834_568 + 8 * 2049
    names = set(network.state_dict())
    assert {"Mixed_6d.branch7x7dbl_4.bn.running_var", "Mixed_7c.branch3x3dbl_3b.conv.weight", "fc.weight"} <= names
    with torch.inference_mode():
        features = network(torch.zeros(1, 3, 64, 64))
    assert features.shape == (1, 2048)


def test_mobilenet_is_the_published_network():
    from facezoo.nets.mobilenet_v2 import MobileNetV2Features

    network = MobileNetV2Features()
    assert sum(p.numel() for p in network.parameters()) == 3_504_872  # torchvision's count
    assert network.state_dict()["features.17.conv.2.weight"].shape == (320, 960, 1, 1)
    with torch.inference_mode():
        assert network(torch.zeros(1, 3, 64, 64)).shape == (1, 1280)


def test_pieapp_is_the_published_formula():
    from facezoo.nets.pieapp import PieAPP

    torch.manual_seed(0)
    network = PieAPP()
    first, second = torch.rand(2, 3, 91, 64) * 2 - 1, torch.rand(2, 3, 91, 64) * 2 - 1
    with torch.inference_mode():
        answer = network(first, second)
        scores, weights = [], []
        for top in (0, 27):  # 91 = 64 + 27: two patches
            a, b = ((x[:1, :, top : top + 64] + 1) * 127.5 for x in (first, second))
            score, weight = network.patch_scores(a, b)
            scores.append(score)
            weights.append(weight)
        scores, weights = torch.cat(scores), torch.cat(weights)
        assert answer[0].item() == pytest.approx(((scores * weights).sum() / weights.sum()).item(), rel=1e-4)
        # Equal pictures: the difference is 0, and what is left are the biases.
        same = network(first, first)
        bias = network.fc2_score(functional.relu(network.fc1_score.bias))
        assert same.tolist() == pytest.approx([network.ref_score_subtract(0.01 * bias).item()] * 2, rel=1e-5)
    with pytest.raises(ValueError, match="at least 64"):
        network(first[..., :40], second[..., :40])


def test_networks_say_what_is_missing(tmp_path, monkeypatch):
    from facezoo.metrics import networks

    monkeypatch.setenv("FACEZOO_WEIGHTS", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"peppa_slim160_68\.pth"):
        networks.load_landmarks()
    with pytest.raises(CheckpointError, match=r"fsanet-1x1\.onnx"):
        networks.load_head_pose()
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="is no FID"):
        networks.load_inception(tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="no PieAPP network"):
        networks.load_pieapp(tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="its SHA-256 differs"):
        networks.load_mobilenet(tmp_path / "other.pth")


def test_pieapp_file_that_lost_a_dimension_loads(tmp_path):
    from facezoo.metrics.networks import load_pieapp
    from facezoo.nets.pieapp import PieAPP

    state = PieAPP().state_dict()
    torch.save(state | {"ref_score_subtract.weight": state["ref_score_subtract.weight"][0]}, tmp_path / "p.pth")
    loaded = load_pieapp(tmp_path / "p.pth")
    assert torch.equal(loaded.ref_score_subtract.weight, state["ref_score_subtract.weight"])


def test_head_pose_sees_a_mirrored_head_turned_the_other_way(shared_folder, repository):
    from facezoo.data.packed import PackedFaces
    from facezoo.metrics.networks import load_head_pose

    path = repository / "packed" / "evaluation128.safetensors"
    if not path.is_file():
        pytest.skip("needs the packed evaluation set")
    pictures = torch.from_numpy(PackedFaces(path).batch(list(range(40)))).permute(0, 3, 1, 2).float() / 127.5 - 1
    angles = load_head_pose(shared_folder / "weights")
    seen, mirrored = angles(pictures), angles(pictures.flip(3))
    assert seen.abs().max() < 90
    assert np.corrcoef(seen[:, 0], -mirrored[:, 0])[0, 1] > 0.8
    assert metrics.PoseDistance()(seen, mirrored * torch.tensor([-1.0, 1, -1])) < 6
