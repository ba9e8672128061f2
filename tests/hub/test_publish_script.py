"""``scripts/publish_checkpoint.py``: what a run did not change is not stored twice; what it said of itself stays."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from facezoo.hub.manifest import load_networks, read_manifest, write_checkpoint

PLAIN = {"method": "black_box", "crop_size": 128, "config": {}}


@pytest.fixture(scope="module")
def script(repository: Path):
    spec = importlib.util.spec_from_file_location(
        "publish_checkpoint", repository / "scripts" / "publish_checkpoint.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_networks_that_a_run_left_alone_stay_where_they_are(script, tmp_path: Path):
    frozen, learned = {"w": torch.arange(6.0)}, {"w": torch.zeros(3)}
    write_checkpoint(
        tmp_path / "checkpoints" / "black_box.first", {**PLAIN, "name": "black_box.first"}, {"f": frozen, "g": learned}
    )
    words = tmp_path / "MODEL_CARDS" / "text"
    words.mkdir(parents=True)
    for name in ("black_box.first", "black_box.second"):
        (words / f"{name}.yaml").write_text(json.dumps({"card": {"What it does": "Nothing."}}))
    run = {
        **PLAIN,
        "name": "black_box.second",
        "card": {"Labels": "read from the pixels"},
        "training": {"started_from": {"name": "black_box.first", "networks": ["f", "g"]}},
    }
    changed = {"w": torch.ones(3)}
    write_checkpoint(tmp_path / "run", run, {"f": frozen, "g": changed, "h": learned})
    folder = script.publish(tmp_path / "run", None, tmp_path)
    assert sorted(path.name for path in folder.glob("*.safetensors")) == ["g.safetensors", "h.safetensors"]
    manifest, _ = read_manifest(folder)
    assert manifest["files"]["f.safetensors"]["from"] == "black_box.first"
    assert manifest["card"] == {"Labels": "read from the pixels", "What it does": "Nothing."}
    states = load_networks(folder, manifest)
    assert torch.equal(states["f"]["w"], frozen["w"])
    assert torch.equal(states["g"]["w"], changed["w"])


def test_new_words_for_a_checkpoint_that_went_on_from_itself(script, tmp_path: Path):
    """It must not be told to look for its files in itself: they would be gone."""
    folder = tmp_path / "checkpoints" / "black_box.own"
    training = {"started_from": {"name": "black_box.own", "networks": ["f"]}}
    write_checkpoint(folder, {**PLAIN, "name": "black_box.own", "training": training}, {"f": {"w": torch.arange(6.0)}})
    before = (folder / "f.safetensors").read_bytes()
    words = tmp_path / "MODEL_CARDS" / "text"
    words.mkdir(parents=True)
    (words / "black_box.own.yaml").write_text(json.dumps({"card": {"What it does": "Something."}}))
    assert script.publish(folder, None, tmp_path) == folder
    assert (folder / "f.safetensors").read_bytes() == before
    manifest, _ = read_manifest(folder)
    assert manifest["card"]["What it does"] == "Something."
    assert load_networks(folder, manifest)["f"]["w"].tolist() == [0, 1, 2, 3, 4, 5]


def test_a_run_from_nothing_shares_nothing(script, tmp_path: Path):
    assert script.unchanged({"name": "black_box.new", "training": {}, "files": {}}, tmp_path) == {}
