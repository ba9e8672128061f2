"""The demo: what it refuses, and the whole of it with a tiny learned model."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from facezoo.demo import _inside, run_demo
from tests.cli.conftest import files_under


def test_a_classic_is_no_learned_model(cli, tmp_path):
    run = cli("demo", "-o", tmp_path / "demo", "--model", "gaussian_blur")
    assert run.code == 2
    assert "classic" in run.error_line()
    assert files_under(tmp_path) == []


def test_output_that_is_no_folder(cli, tmp_path):
    (tmp_path / "mine").write_text("mine")
    run = cli("demo", "-o", tmp_path / "mine")
    assert run.code == 7
    assert "-o" in run.error_line()
    assert (tmp_path / "mine").read_text() == "mine"


def test_close_ups_stay_in_the_picture():
    for middle in ((0, 0), (50, 40), (99, 79)):
        x0, y0, x1, y1 = _inside(np.array(middle), 30.0, 100, 80)
        assert 0 <= x0 < x1 <= 100
        assert 0 <= y0 < y1 <= 80
        assert x1 - x0 == pytest.approx(60)
        assert y1 - y0 == pytest.approx(60)
    x0, y0, x1, y1 = _inside(np.array([5, 5]), 500.0, 100, 80)
    assert (x1 - x0, y1 - y0) == (80, 80)


@pytest.mark.slow
def test_the_whole_demo(tiny_model, tmp_path):
    lines: list[str] = []
    report = run_demo(tmp_path / "demo", say=lines.append, learned=[str(tiny_model)])
    rows = {(row.section, row.name): row for row in report.rows}
    learned = {name: row for (section, name), row in rows.items() if section == "tiny_swap.test"}
    assert sum(section == "classics" for section, _ in rows) >= 8, "a classic is missing"
    assert all(row.faces == 3 for row in report.rows)
    assert rows["original", "original"].euclidean == 0
    assert rows["classics", "black_box"].recognised == 0
    anonymized = learned["anonymized, key A"]
    assert not np.array_equal(anonymized.picture, learned["anonymized, key B"].picture)
    right, wrong = learned["recovered, right key (A)"], learned["recovered, wrong key (B)"]
    assert right.euclidean < wrong.euclidean
    assert right.euclidean < anonymized.euclidean
    with Image.open(report.sheet) as sheet:
        assert sheet.width == 2000
        assert sheet.height > 2000
    assert any("recovered, right key" in line for line in lines)
    assert not any("lantern" in line or "trains" in line for line in lines), "a passphrase was printed"
    assert max(len(line) for line in lines if "  " in line and not line.startswith(("dlib", "SFace"))) <= 100


def test_what_needs_people_to_hide_among_is_a_note_and_not_an_error():
    from facezoo.demo import _learned_models

    notes: list[str] = []
    shown = _learned_models((), notes)
    assert "identity_rotation.faces128" in shown
    assert not [name for name in shown if name.startswith("dp_kanonymity")]
    assert any("dp_kanonymity" in note and "people to hide among" in note for note in notes)
