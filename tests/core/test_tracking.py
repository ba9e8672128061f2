"""What goes to Weights & Biases, without training: the recipe's names, the lineage, and pictures only when asked."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from facezoo.core.recipe import Recipe, TrainConfig
from facezoo.core.tracking import Tracking, shown_recipe
from facezoo.hub.manifest import read_manifest
from tests.core.toy import Toy
from tests.tiny_method import write_tiny_checkpoint

RECIPE = Recipe(
    "toy.x",
    "toy",
    "faces and/or nothing",
    {"size": 16, "recogniser": "/home/somebody/arcface.pt", "widths": [1, 2]},
    TrainConfig(),
    ("/data/hospital/faces.safetensors", "packed/other.safetensors"),
)


def test_a_recipe_leaves_without_its_folders():
    shown = shown_recipe(RECIPE)
    assert shown["data"] == ["faces.safetensors", "other.safetensors"]
    assert shown["config"] == {"size": 16, "recogniser": "arcface.pt", "widths": [1, 2]}
    assert shown["summary"] == "faces and/or nothing"
    assert shown["train"]["precision"] == "32-true"


@pytest.mark.parametrize("sheets", [False, True])
def test_pictures_go_only_when_asked_and_lineage_always(tmp_path: Path, monkeypatch, sheets: bool):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    checkpoint = write_tiny_checkpoint(tmp_path / "tiny_swap.test")
    run = tmp_path / "run"
    (run / "sheets").mkdir(parents=True)
    (run / "started_from.json").write_text('{"name": "tiny_swap.first", "checksum": "0123abcd", "networks": ["a"]}')
    tracking = Tracking(run, RECIPE, sheets=sheets)
    toy, trainer = Toy(), SimpleNamespace(is_global_zero=True)
    tracking.on_train_start(trainer, toy)
    Image.new("RGB", (8, 8)).save(run / "sheets" / "batch_0000001.png")
    tracking.on_train_batch_end(trainer, toy)
    tracking.on_train_batch_end(trainer, toy)
    tracking.finish(checkpoint)
    (offline,) = (run / "wandb").glob("offline-run-*")
    assert len(list(offline.rglob("*.png"))) == int(sheets)
    (log,) = offline.glob("*.wandb")
    content = log.read_bytes()
    for word in (b"tiny_swap.first", b"0123abcd", read_manifest(checkpoint)[1].encode(), b"faces.safetensors"):
        assert word in content, word
    assert b"hospital" not in content
