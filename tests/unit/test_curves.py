"""Curves and the book's tables: files that are whole, figures that mean what they say, refusals in one line."""

from __future__ import annotations

import csv
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from facezoo.data.packed import PackedFaces, write_packed
from facezoo.errors import InputError, OutputError, UnknownNameError
from facezoo.evaluate import curves, people
from facezoo.evaluate.book_tables import TABLES
from facezoo.methods.classics.config import BOOK_SETTINGS
from facezoo.registry import load_options_class, method_info


class Judge(torch.nn.Module):
    """Sixteen numbers of a picture, and no waiting."""

    def forward(self, faces: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(faces, 4).mean(1).flatten(1)


@pytest.fixture
def packed(tmp_path, monkeypatch):
    monkeypatch.setattr(curves, "load_recogniser", lambda name: Judge())
    detector = SimpleNamespace(detect=lambda picture: [1] if picture.std() > 20 else [])
    monkeypatch.setattr(curves, "get_detector", lambda name, options: detector)
    images = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)
    images ^= np.random.default_rng(1).integers(0, 64, images.shape, dtype=np.uint8)  # grain: no cell is flat
    names = [f"p{i}" for i in range(5)]
    write_packed(tmp_path / "set.safetensors", iter(images), size=128, identities=names, files=names)
    return tmp_path / "set.safetensors"


def test_csv_json_and_png_agree_and_follow_the_option(packed, tmp_path):
    out = tmp_path / "out"
    result = curves.run_curves(
        "pixelation", packed, out, option="block", values=[2.0, 16.0, 64.0], limit=4, progress=False
    )
    rows = list(csv.DictReader((out / "curves.csv").open()))
    assert [float(row["block"]) for row in rows] == [2, 16, 64]
    held = json.loads((out / "curves.json").read_text())
    assert held == json.loads(json.dumps(result))
    assert held["n"] == 4
    for name in curves.COLUMNS:
        for row, point in zip(rows, held["points"], strict=True):
            assert float(row[name]) == pytest.approx(point[name]["value"], rel=1e-4)
            assert point[name]["low"] <= point[name]["value"] <= point[name]["high"]
    distance, likeness = ([point[name]["value"] for point in held["points"]] for name in ("distance", "psnr"))
    assert distance[0] < distance[2], "larger cells are further away"
    assert likeness[0] > likeness[2]
    with Image.open(out / "curves.png") as picture:
        assert picture.size[0] > 800
        assert picture.convert("L").getextrema()[0] < 100
    with pytest.raises(OutputError, match="exists already"):
        curves.run_curves("pixelation", packed, out, option="block", values=[2.0, 16.0], progress=False)


def test_noise_is_drawn_from_the_seed_and_said_so(packed, tmp_path):
    results = [
        curves.run_curves(
            "dp_pix", packed, tmp_path / name, option="epsilon", values=[0.5, 50.0], limit=2, progress=False
        )
        for name in ("a", "b")
    ]
    assert results[0] == results[1]
    assert results[0]["other_options"]["randomness"] == "seeded"


def test_a_gallery_is_everybodys_first_picture_and_those_are_measured(tmp_path, packed):
    images = np.random.default_rng(3).integers(0, 256, (7, 64, 64, 3), dtype=np.uint8)
    names = ["ann", "bob", "ann", "cid", "dan", "eve", "bob"]
    path = tmp_path / "people.safetensors"
    write_packed(path, iter(images), size=64, identities=names, files=[f"{row}.png" for row in range(7)])
    result = curves.run_curves("ksame_pixel", path, tmp_path / "k", option="k", values=[2, 5], progress=False)
    assert result["n"] == 5
    assert result["people"] == "gallery: the first pictures of the 5 people of the set"
    assert result["hardware"]["torch"] == torch.__version__
    # With everybody in one group all get the mean of the five, whatever they look like.
    mean = images[[0, 1, 3, 4, 5]].astype(np.float64).mean(0).round()
    noise = [((images[row] - mean) ** 2).mean() for row in (0, 1, 3, 4, 5)]
    expected = np.mean([10 * np.log10(255**2 / one) for one in noise])
    assert result["points"][1]["psnr"]["value"] == pytest.approx(expected, abs=0.02)
    with pytest.raises(InputError, match="k=6 is more than the 5 people"):
        curves.run_curves("ksame_pixel", path, tmp_path / "x", option="k", values=[2, 6], progress=False)


def test_people_are_added_only_where_they_are_wanted_and_not_given(packed):
    assert people.own_people("pixelation", packed, {}) == ({}, "")
    assert people.own_people("ksame_m", packed, {"gallery": "mine.safetensors"}) == ({}, "")
    assert people.own_people("ksame_m", packed, {}, varied="gallery") == ({}, "")
    # dp_kanonymity draws its sample so large that it has the k people.
    count = len(PackedFaces(packed))
    added, words = people.own_people("dp_kanonymity", packed, {"k": 2})
    assert added == {"reference": str(packed), "gamma": min(1.0, 4 / count)}
    assert "instead of 0.05" in words
    assert "gamma" not in people.own_people("dp_kanonymity", packed, {"k": 2, "gamma": 0.5})[0]
    added, words = people.own_people("ksame_m", packed, {"k": 3})
    assert len(added["gallery"]) == 5
    assert "5 people" in words


def test_refusals(packed, tmp_path):
    def run(**changes):
        arguments = {"option": "block", "values": [2.0, 4.0], "progress": False, **changes}
        return curves.run_curves("pixelation", packed, tmp_path / "x", **arguments)

    with pytest.raises(InputError, match="two values"):
        run(values=[2.0])
    with pytest.raises(UnknownNameError, match="no option 'bloc'"):
        run(option="bloc")
    with pytest.raises(InputError, match="block must be"):
        run(values=[2.0, -4.0])
    with pytest.raises(InputError, match="two faces"):
        run(limit=1)
    with pytest.raises(UnknownNameError, match=r"4\.1, 5\.1 are known"):
        curves.run_tables(packed, tmp_path / "x", tables=["9.9"], progress=False)
    assert not (tmp_path / "x").exists()


def test_tables_put_the_books_rows_beside_ours(packed, tmp_path):
    text = curves.run_tables(packed, tmp_path / "t", tables=["4.1"], limit=2, progress=False)
    assert text == (tmp_path / "t" / "tables.md").read_text()
    assert "Not the same data" in text
    assert "| Noise s=30 | book | 0.2911 | 17.968 |" in text
    assert "| Noise s=30 | ours |" in text
    assert "| DeepPrivacy | ours |" not in text, "what is not here is not measured"
    assert "| DP k-anonymity, k=100, eps=0.05 | ours |" not in text
    assert "DP k-anonymity, k=100, eps=0.05 is not measured: dp_kanonymity: k=100 is more than the 1 people" in text
    assert "| AnonymousNet | ours |" in text


def test_every_row_is_the_books_and_its_settings_exist():
    for table in TABLES.values():
        for row in table.rows:
            assert len(row.values) == len(table.columns) == len(table.ours)
            method, options = BOOK_SETTINGS[row.setting] if row.setting else (row.model, dict(row.options))
            if row.model:
                name = method.partition(".")[0]
                assert method_info(name)
                load_options_class(name).from_mapping(options)
    assert {column for table in TABLES.values() for column in table.ours if column} <= set(curves.COLUMNS)
