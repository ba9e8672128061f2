"""`facezoo finetune`: from pictures to an adapted checkpoint with its card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from facezoo import finetune as tuning
from facezoo.cli import main
from facezoo.core.recipe import load_recipe
from facezoo.core.run import train, training_class
from facezoo.data.packed import PackedFaces
from facezoo.errors import InputError
from facezoo.evaluate.report import write_report
from facezoo.hub.manifest import read_manifest, resolve_model, verify_files
from facezoo.hub.publish import check_checkpoint
from facezoo.registry import method_info
from tests.core.test_run import write_recipe
from tests.core.toy import make_set

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A trained model of the smallest size."""
    folder = tmp_path_factory.mktemp("base")
    return train(write_recipe(folder), output=folder / "run", accelerator="cpu").checkpoint


@pytest.fixture
def measured(monkeypatch, repository) -> list[str]:
    """Evaluations that cost nothing: the shipped model's figures, whatever is measured."""
    canned = json.loads((repository / "MODEL_CARDS" / "results" / "identity_rotation.faces128.json").read_text())
    calls: list[str] = []

    def run_evaluation(model: str, data: Path, output: Path, **_: Any) -> dict[str, Any]:
        calls.append(read_manifest(model)[0]["name"])
        result = {**canned, "name": calls[-1]}
        write_report(result, output, overwrite=True)
        return result

    monkeypatch.setattr(tuning, "run_evaluation", run_evaluation)
    return calls


def test_from_pictures_to_a_card_in_one_command(base, measured, tmp_path, capsys):
    data = make_set(tmp_path / "mine.safetensors", count=14, size=128, dim=128)
    arguments = ["finetune", str(base), "--data", str(data), "-o", str(tmp_path / "tuned"), "--batches", "4", "--quiet"]
    arguments += [
        "--faces",
        "7",
        "--rights",
        "invented pixels",
        "--name",
        "identity_rotation.mine",
        "--accelerator",
        "cpu",
    ]
    assert main(arguments) == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    assert "| right key, PSNR in dB | higher |" in out
    folder = tmp_path / "tuned"

    training, held_out = PackedFaces(folder / "train.safetensors"), PackedFaces(folder / "held_out.safetensors")
    assert (len(training), len(held_out)) == (7, 7)
    assert not set(training.identities) & set(held_out.identities)
    recipe = json.loads((folder / "recipe.yaml").read_text())
    assert recipe["config"]["disentangle_batches"] == recipe["config"]["conceal_batches"] == 2
    assert recipe["config"]["learning_rate"] == pytest.approx(0.25 * read_manifest(base)[0]["config"]["learning_rate"])
    assert recipe["train"]["freeze"] == "late"

    manifest, _ = read_manifest(folder / "checkpoint")
    verify_files(folder / "checkpoint", manifest)
    assert manifest["name"] == "identity_rotation.mine"
    assert manifest["training"]["started_from"]["name"] == "identity_rotation.small"
    assert "invented pixels" in manifest["licences"]["data"]
    assert "PSNR, png, dB" in manifest["metrics"]
    assert "Adapted to 7 pictures" in (folder / "card.md").read_text()
    assert measured == ["identity_rotation.small", "identity_rotation.mine"], "the old model, then the new one"
    missing = {check.name: check.problem for check in check_checkpoint(folder / "checkpoint", manifest, None)}
    assert not missing["licences"]
    assert not missing["measured"]

    # The same command again finds everything done.
    before = (folder / "checkpoint" / "generator.safetensors").read_bytes()
    assert main(arguments) == 0
    assert (folder / "checkpoint" / "generator.safetensors").read_bytes() == before
    assert len(measured) == 2
    # Other settings are not mixed in.
    assert main([*arguments, "--preset", "none"]) == 7
    assert "another freeze" in capsys.readouterr().err


def test_refuses_before_the_work(base, measured, tmp_path):
    few = make_set(tmp_path / "few.safetensors", count=11, size=128, dim=128)
    settings = tuning.FineTuneSettings()
    with pytest.raises(InputError, match="11 people in the pictures: at least 12"):
        tuning.finetune(str(base), few, tmp_path / "a", settings)
    small = make_set(tmp_path / "small.safetensors", count=14, size=64)
    with pytest.raises(InputError, match="faces of 64 pixels and the model takes 128"):
        tuning.finetune(str(base), small, tmp_path / "b", settings)
    with pytest.raises(InputError, match="not a model that is trained"):
        tuning.finetune("gaussian_blur", few, tmp_path / "c", settings)
    with pytest.raises(InputError, match="makes people"):
        tuning.finetune("stylegan2.faces64", few, tmp_path / "d", settings)
    assert not measured


def test_a_person_is_on_one_side_and_stays_there(tmp_path):
    data = make_set(tmp_path / "all.safetensors", count=30, size=16)
    first = tuning.split_people(data, tmp_path, 0.3)
    again = tmp_path / "again"
    again.mkdir()
    second = tuning.split_people(data, again, 0.3)
    assert len(PackedFaces(first[1])) == 9
    assert list(PackedFaces(first[1]).identities) == list(PackedFaces(second[1]).identities)
    both = np.concatenate([np.asarray(PackedFaces(path).images) for path in first])
    assert sorted(map(bytes, both)) == sorted(map(bytes, np.asarray(PackedFaces(data).images)))


def test_the_table_by_hand():
    def figure(value: float) -> dict[str, float]:
        return {"value": value, "low": value - 0.01, "high": value + 0.01}

    def result(taken: float) -> dict[str, Any]:
        judge = {"taken": {"far_0.01": figure(taken)}, "cosine": figure(0.25)}
        return {
            "name": "a.b",
            "n": 9,
            "people": 8,
            "far": [0.01],
            "judges": {"dlib": {"took_part_in_training": False}},
            "anonymized": {"judges": {"dlib": judge}, "detected": figure(0.5)},
            "recovered": None,
        }

    lines = tuning.before_after(result(0.2), result(0.1)).splitlines()
    assert "| taken for the original, dlib | lower | 20.0 % (19.0 to 21.0) | 10.0 % (9.0 to 11.0) |" in lines
    assert "| cosine to the original, dlib | lower | 0.250 (0.240 to 0.260) | 0.250 (0.240 to 0.260) |" in lines
    assert not any("right key" in line for line in lines)


BUNDLED = sorted(path.parent.name for path in (Path(__file__).parents[2] / "checkpoints").glob("*/manifest.json"))


@pytest.mark.parametrize("name", BUNDLED)
def test_shipped_models_can_be_adapted(name, tmp_path):
    """Every bundled anonymizer that says how it was trained gives a recipe that its method accepts, anywhere."""
    resolved = resolve_model(name)
    assert resolved.manifest is not None
    if method_info(resolved.method).kind == "generator" or "recipe" not in resolved.manifest["training"]:
        pytest.skip("refused: makes people, or derived from another model")
    data = make_set(tmp_path / "set.safetensors", count=7, size=resolved.manifest["crop_size"])
    path = tuning._write_recipe(resolved, data, data, tmp_path, tuning.FineTuneSettings(batches=40), "cpu")
    recipe = load_recipe(path)
    module = training_class(recipe.method)(recipe.config)
    assert 30 <= module.total_batches <= 50
    assert recipe.train.batch_size in (4, 7)
    assert recipe.train.batch_size % module.batch_group == 0
    assert not any(isinstance(value, str) and "/" in value for value in recipe.config.values()), (
        "folders of the trainer"
    )
