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


def test_a_run_from_nothing_shares_nothing(script, tmp_path: Path):
    assert script.unchanged({"training": {}, "files": {}}, tmp_path) == {}
