"""``scripts/attributed_tables.py``: what is written says what was measured, on an untrained model."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from facezoo.evaluate.attribute_judge import AttributeJudge
from facezoo.metrics import Interval
from tests.labelled import NAMES, labelled_set, untrained_checkpoint


@pytest.fixture(scope="module")
def tables(repository: Path):
    spec = importlib.util.spec_from_file_location("attributed_tables", repository / "scripts" / "attributed_tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_distances_by_hand(tables):
    """Pairs .3, .5, .6 and 1 apart: three at or above .5, two at or above .6 (dlib's threshold counts as apart)."""
    apart = np.array([0.3, 0.5, 0.6, 1.0])
    first = np.zeros((4, 2))
    second = np.stack([apart, np.zeros(4)], axis=1)
    found = tables.distances(first, second, 0)
    assert found["distance"]["value"] == pytest.approx(0.6)
    assert [found[f"spr_{t}"]["value"] for t in ("0.4", "0.5", "0.6")] == [0.75, 0.75, 0.5]
    assert Interval(**found["spr_0.6"]).n == 4


def test_one_bit_is_changed_and_only_one(tables):
    text = tables.password(3, 5, 16)
    assert len(text) == 16
    assert text == tables.password(3, 5, 16) != tables.password(3, 6, 16)
    for place in range(16):
        other = tables.flipped(text, place)
        assert [a != b for a, b in zip(text, other, strict=True)].index(True) == place
        assert sum(a != b for a, b in zip(text, other, strict=True)) == 1


def test_the_tables_of_an_untrained_model(tables, tmp_path: Path, monkeypatch):
    model = untrained_checkpoint(tmp_path / "model", "mfm")
    data = labelled_set(tmp_path / "set.safetensors")
    judge = tmp_path / "judge.safetensors"
    AttributeJudge(NAMES).eval().save(judge)
    own = {name: {"value": 0.9, "low": 0.8, "high": 1.0, "n": 10, "chance": 0.5} for name in NAMES}
    judge.with_suffix(".json").write_text(json.dumps(own))
    arguments = ["tables", str(model), "--data", str(data), "--judge", str(judge), "-o", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", [*arguments, "--count", "4", "--per-request", "2"])
    assert tables.main() == 0
    result = json.loads((tmp_path / "out" / "tables.json").read_text())
    # Untrained: the code cannot be read, so nothing is verified, and nothing came back.
    assert result["recovered"]["verified"]["value"] == 0
    assert set(result["requests"]) == {
        *("sex=female", "sex=male", "smiling=no", "smiling=yes"),
        *("hair=black", "hair=brown", "hair=blond", "hair=gray"),
    }
    assert all(row["met"]["n"] == 2 for row in result["requests"].values())
    assert result["cost"]["multiply_adds"]["hide"] > 0 < result["cost"]["seconds_a_face"]["recover"]
    alone = result["network_alone"]
    assert alone["n"] == 2
    for name in ("one_bit", "all_bits", "another_source", "recovered", "recovered_all_wrong"):
        assert alone[name]["distance"]["n"] == 2
    assert 0 < alone["own_change"]["value"] < 255
    text = (tmp_path / "out" / "tables.md").read_text()
    assert "| one bit apart: pairs below .4 | 2 of 24 |" in text
    assert "Not the same data" in text
    assert "| same source, all bits flipped |" in text
    assert "| recovered: LPIPS | .069 (SDN's table 2) |" in text
    assert text.count("0.900 (0.500)") == 8

    monkeypatch.setattr(sys, "argv", ["tables", "gaussian_blur", *arguments[2:]])
    assert tables.main() == 2
