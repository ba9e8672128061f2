"""The benchmark on synthetic faces: nothing is measured twice, nothing is left out in silence."""

from __future__ import annotations

import dataclasses
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional

from facezoo import registry
from facezoo.cli import main
from facezoo.data.packed import PackedFaces, write_packed
from facezoo.errors import InputError, OutputError, RecordError
from facezoo.evaluate import EvaluationSettings, benchmark
from facezoo.evaluate.benchmark import find_packed, list_candidates, run_benchmark
from facezoo.evaluate.benchmark_page import MARK, check_page, draw_scatter, draw_sheet, page_text, write_page
from facezoo.evaluate.memory import RememberingRecogniser, remembering_detector
from facezoo.evaluate.paper_rows import PAPER_ROWS
from facezoo.faces.detect import Detector, Face, get_detector, points_from_box, register_detector
from facezoo.hub.models import list_models
from facezoo.recognition import Recogniser
from facezoo.recognition.window import TemplateWindow

PEOPLE, PICTURES, SIZE = 24, 2, 32
COUNT = PEOPLE * PICTURES
MODELS = ("black_box", "pixelation", "pixel_noise")


class Coarse(nn.Module):
    """Sees the picture in 8 x 8 fields, without its mean."""

    calls = 0

    def forward(self, pictures):
        Coarse.calls += len(pictures)
        flat = pictures.flatten(1)
        return functional.normalize(flat - flat.mean(1, keepdim=True), dim=1, eps=1e-3)


def judge(name: str, metric: str = "cosine") -> Recogniser:
    return Recogniser(name, Coarse(), TemplateWindow(8, 16, 8, 8), 192, "test", metric)


JUDGES = [judge("one"), judge("two")]
SETTINGS = EvaluationSettings(
    formats=("png",), far=(1e-2,), detector=None, looks=False, progress=False, limit=30, key_count=2
)


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> PackedFaces:
    """Each person is a random coarse pattern; the first half of the people is female."""
    random = np.random.default_rng(0)
    patterns = random.integers(0, 256, (PEOPLE, 8, 8, 3)).repeat(SIZE // 8, 1).repeat(SIZE // 8, 2)
    pictures = patterns.repeat(PICTURES, 0) + random.normal(0, 20, (COUNT, SIZE, SIZE, 3))
    path = tmp_path_factory.mktemp("packed") / "evaluation.safetensors"
    write_packed(
        path,
        pictures.clip(0, 255).round().astype(np.uint8),
        size=SIZE,
        identities=[f"person{i // PICTURES}" for i in range(COUNT)],
        files=[f"{i}.png" for i in range(COUNT)],
        source="synthetic",
        arrays={"sex": np.repeat([0, 1], COUNT // 2).astype(np.int16)},
    )
    return PackedFaces(path)


@pytest.fixture(scope="module")
def measured(packed, tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    return folder, run_benchmark(packed.path, folder, models=MODELS, settings=SETTINGS, judges=JUDGES)


def test_a_recogniser_that_remembers_says_the_same_and_looks_once():
    plain = judge("x")
    plain.published = (0.6,)
    remembering = RememberingRecogniser(plain, capacity=4)
    assert remembering.published == (0.6,)
    faces = torch.rand(3, 3, SIZE, SIZE) * 2 - 1
    first = remembering(faces)
    assert torch.equal(first, plain(faces))
    before = Coarse.calls
    again = remembering(torch.cat([faces[1:], faces[:1]]))
    assert Coarse.calls == before
    assert torch.equal(again, torch.cat([first[1:], first[:1]]))
    assert (remembering.embedded, remembering.recalled) == (3, 3)
    # The same picture at another size is another picture; what was not asked for lately is forgotten.
    remembering(torch.rand(3, 3, SIZE, SIZE))
    remembering(faces[1:2])
    assert remembering.embedded == 7


def test_a_detector_that_remembers_looks_once(monkeypatch):
    from facezoo.faces import detect

    looks = []

    class Counting(Detector):
        def find(self, rgb, threshold):
            return []

        def detect(self, rgb):
            looks.append(rgb.shape)
            box = (1.0, 1.0, 9.0, 9.0)
            return [Face(box, points_from_box(box), 1.0)]

    monkeypatch.setattr(detect, "_DETECTORS", dict(detect._DETECTORS))
    register_detector("counting", Counting)
    name = remembering_detector("counting")
    assert remembering_detector("counting") == name
    pictures = np.random.default_rng(0).integers(0, 256, (3, 40, 40, 3)).astype(np.uint8)
    for _ in range(2):
        detector = get_detector(name)
        assert [len(detector.detect(picture)) for picture in pictures] == [1, 1, 1]
    assert len(looks) == 3
    # What is found is handed out as a new list each time: nobody changes the memory.
    get_detector(name).detect(pictures[0]).clear()
    assert len(get_detector(name).detect(pictures[0])) == 1


def test_every_model_has_a_result_or_a_reason(measured):
    folder, outcomes = measured
    assert [outcome.candidate.name for outcome in outcomes] == list(MODELS)
    assert all(outcome.result is not None and not outcome.cached for outcome in outcomes)
    assert len(list(folder.glob("*.json"))) == 3
    black = outcomes[0].result
    assert black["evaluation"]["anonymized"]["judges"]["one"]["taken"]["far_0.01"]["value"] == 0.0
    assert black["evaluation"]["name"] == "black_box"
    assert black["utility"]["ssim"]["n"] == 30
    assert black["utility"]["failed"] == 0
    noise = outcomes[2].result
    assert noise["utility"]["psnr"]["value"] > black["utility"]["psnr"]["value"] + 1.5


def test_groups_add_up_to_the_whole(measured):
    for outcome in measured[1]:
        groups = outcome.result["groups"]["sex"]
        assert sum(entry["n"] for entry in groups.values()) == 30
        for name in ("one", "two"):
            counted = sum(round(entry["taken"][name]["value"] * entry["n"]) for entry in groups.values())
            whole = outcome.result["evaluation"]["anonymized"]["judges"][name]["taken"]["far_0.01"]
            assert counted == round(whole["value"] * 30)
    assert measured[1][0].result["label_sources"] == {"sex": "the set's own labels"}


def test_a_second_run_measures_nothing_and_a_broken_one_goes_on(measured, packed, tmp_path, monkeypatch):
    folder, outcomes = measured
    before = Coarse.calls
    again = run_benchmark(packed.path, folder, models=MODELS, settings=SETTINGS, judges=JUDGES)
    assert all(outcome.cached for outcome in again)
    assert Coarse.calls == before
    assert [outcome.result for outcome in again] == [
        json.loads(json.dumps(outcome.result, allow_nan=False)) for outcome in outcomes
    ]

    class Break(Exception):
        pass

    real = benchmark._Measurer.measure

    def measure(self, candidate):
        if candidate.name == "pixelation":
            raise Break
        return real(self, candidate)

    monkeypatch.setattr(benchmark._Measurer, "measure", measure)
    with pytest.raises(Break):
        run_benchmark(packed.path, tmp_path, models=MODELS, settings=SETTINGS, judges=JUDGES)
    monkeypatch.undo()
    resumed = run_benchmark(packed.path, tmp_path, models=MODELS, settings=SETTINGS, judges=JUDGES)
    assert [outcome.cached for outcome in resumed] == [True, False, False]
    # The same figures as without the interruption.
    for one, other in zip(outcomes, resumed, strict=True):
        assert one.result["key"] == other.result["key"]
        assert one.result["utility"] == other.result["utility"]
        assert one.result["evaluation"]["anonymized"]["judges"] == other.result["evaluation"]["anonymized"]["judges"]


def test_other_settings_judges_data_or_code_are_measured_anew(measured, packed, monkeypatch):
    known = {outcome.candidate.name: outcome for outcome in measured[1]}
    hashes = known["pixelation"].result
    other = benchmark._protocol_sha256(dataclasses.replace(SETTINGS, seed=1), JUDGES)
    assert other != hashes["protocol_sha256"]
    assert benchmark._protocol_sha256(SETTINGS, [judge("one")]) != hashes["protocol_sha256"]
    assert benchmark._protocol_sha256(dataclasses.replace(SETTINGS, progress=True), JUDGES) == hashes["protocol_sha256"]
    monkeypatch.setattr(benchmark, "PROTOCOL_VERSION", benchmark.PROTOCOL_VERSION + 1)
    assert benchmark._protocol_sha256(SETTINGS, JUDGES) != hashes["protocol_sha256"]
    monkeypatch.setattr(benchmark, "_sources_sha256", lambda module: "changed")
    assert list_candidates(["pixelation"])[0].sha256 != hashes["model_sha256"]


def test_a_model_that_fails_is_told_and_the_others_go_on(packed, tmp_path, monkeypatch):
    real = benchmark.from_pretrained

    def load(name, **options):
        if name == "pixelation":
            raise RecordError("will not")
        return real(name, **options)

    monkeypatch.setattr(benchmark, "from_pretrained", load)
    outcomes = run_benchmark(packed.path, tmp_path, models=MODELS[:2], settings=SETTINGS, judges=JUDGES)
    assert [outcome.reason for outcome in outcomes] == ["", "failed: will not"]
    assert len(list(tmp_path.iterdir())) == 1
    text = page_text(outcomes)
    assert "| pixelation | failed: will not |" in text


def test_time_is_kept_and_files_of_others_are_left_alone(measured, packed, tmp_path):
    late = run_benchmark(packed.path, tmp_path, models=MODELS, settings=SETTINGS, judges=JUDGES, max_minutes=1e-9)
    assert all("time was up" in outcome.reason for outcome in late)
    assert not list(tmp_path.iterdir())
    name = next(measured[0].glob("black_box.*.json")).name
    (tmp_path / name).write_text("mine")
    with pytest.raises(OutputError, match="no result of this benchmark"):
        run_benchmark(packed.path, tmp_path, models=MODELS[:1], settings=SETTINGS, judges=JUDGES)
    assert (tmp_path / name).read_text() == "mine"


def test_all_models_are_candidates_and_those_that_cannot_be_measured_say_why(packed):
    candidates = {candidate.name: candidate for candidate in list_candidates()}
    assert set(candidates) == {model.name for model in list_models() if model.kind != "generator"}
    for name, candidate in candidates.items():
        assert bool(candidate.sha256) != bool(candidate.reason), name
    # A learned model's name without a tag is a method that no checkpoint is bundled for.
    untrained = [model.name for model in list_models() if model.kind == "learned" and "." not in model.name]
    assert all("trained first" in candidates[name].reason for name in untrained)
    assert candidates["ksame_pixel"].options == {"mode": "open", "repeated_people": "first"}
    assert candidates["dp_pix"].options == {"randomness": "seeded"}
    with_gallery = list_candidates(["ksame_pixel"], gallery=packed.path)[0]
    assert with_gallery.options["mode"] == "open"
    assert with_gallery.sha256 != candidates["ksame_pixel"].sha256
    assert all(row.ours in {"", *(info.name for info in registry.list_methods())} for row in PAPER_ROWS)


def test_the_page_shows_looks_beside_the_rates(packed, tmp_path):
    settings = dataclasses.replace(SETTINGS, looks=True)
    outcomes = run_benchmark(packed.path, tmp_path, models=("black_box",), settings=settings, judges=JUDGES)
    text = page_text(outcomes)
    section = text[text.index("## Looks") : text.index("## What papers report")]
    assert "| *identity* | 100.0 (88.6-100.0) | 1.00 | 100.0 |" in section
    assert "| black_box | 0.0 | 0.00 |" in section
    assert "| *good* |" in section


def test_a_prepared_folder_is_data(packed, tmp_path):
    assert find_packed(packed.path.parent).path == packed.path
    with pytest.raises(InputError, match="no packed set"):
        find_packed(tmp_path)
    for name in ("a.safetensors", "b.safetensors"):
        (tmp_path / name).write_bytes(packed.path.read_bytes())
    with pytest.raises(InputError, match="2 packed sets"):
        find_packed(tmp_path)
    (tmp_path / "evaluation128.safetensors").write_bytes(packed.path.read_bytes())
    assert find_packed(tmp_path).path.name == "evaluation128.safetensors"


def test_the_page_shows_figures_controls_and_what_is_missing(measured, tmp_path):
    outcomes = [*measured[1], benchmark.Outcome(list_candidates(["ksame_pixel"])[0], None, False, "failed: of itself")]
    page = tmp_path / "docs" / "bench.md"
    files = write_page(outcomes, page, command="facezoo benchmark --quick", sheet=False)
    text = page.read_text()
    assert MARK in text
    assert "![privacy against utility, a dot a model](bench_scatter.png)" in text
    assert "| *identity* | 100.0" in text
    assert "| *black box* | 0.0" in text
    assert "## Looks" not in text  # it was not measured
    assert "| black_box | 0.0" in text
    assert "| ksame_pixel | failed: of itself |" in text
    assert "**Not the same data**" in text
    assert "sex: female (n = " in text
    assert [path.name for path in files] == ["bench.md", "bench_scatter.png"]
    write_page(outcomes, page, sheet=False)  # a generated page may be made again
    page.write_text("# mine")
    with pytest.raises(OutputError):
        check_page(page)
    assert Image.open(io.BytesIO(draw_scatter(outcomes))).size[0] > 400


def test_the_sheet_shows_given_people_only(packed):
    people = packed.batch([0, 2])
    people = people.repeat(4, 1).repeat(4, 2)
    picture = Image.open(io.BytesIO(draw_sheet(list_candidates(["black_box", "pixelation"]), people)))
    # Three columns (original and two models) of two people.
    assert picture.size == (3 * 136 + 8, 22 + 2 * 130 + 8 + 8)


def test_the_command(packed, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "load_recogniser", judge)
    monkeypatch.setattr(benchmark, "QUICK", dataclasses.replace(SETTINGS, limit=12))

    def run(models: str, *more: str) -> int:
        words = ["benchmark", "--data", str(packed.path.parent), "-o", str(tmp_path / "r"), "--models", models]
        return main([*words, "--judges", "one,two", "--quick", "--quiet", "--no-sheet", *more])

    assert run("black_box") == 0
    assert "black_box: measured\n" in capsys.readouterr().out
    assert (tmp_path / "r" / "benchmark.md").is_file()
    assert (tmp_path / "r" / "benchmark_scatter.png").is_file()
    (tmp_path / "page.md").write_text("mine")
    assert run("black_box", "--page", str(tmp_path / "page.md")) == 7
    assert run("no_such_model") == 2
