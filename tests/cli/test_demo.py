"""The demo: what it refuses, its sheet, and the whole of it with a tiny learned model."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from facezoo.demo import DemoRow, run_demo
from facezoo.demo.run import learned_models
from facezoo.demo.sheet import HEIGHT, WIDTH, Sheet, _inside, draw_sheet
from facezoo.hub import models
from facezoo.hub.models import flagship_of
from tests.cli.conftest import files_under

FLAGSHIP_ROWS = ("anonymized, key A", "anonymized, key B", "recovered, right key (A)", "recovered, wrong key (B)")
LEARNED = ("identity_rotation.faces128", "ifadit.faces64", "mfm.faces64", "sdn.faces64")
CLASSICS = ("black_box", "eye_bar", "gaussian_blur", "ksame_pixel (k=3)", "pixelation", "pixel_noise")


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


def made_up_sheet(
    people: int = 3, learned: tuple[str, ...] = LEARNED, notes: tuple[str, ...] = ()
) -> tuple[Sheet, dict]:
    """A sheet of pictures of one colour a row and person, and the colour that belongs to each label."""
    points = np.array([[[40, 50], [80, 50], [60, 70], [45, 90], [75, 90]]], dtype=float).repeat(people, 0)
    points[:, :, 0] += 120 * np.arange(people)[:, None]
    rows, colours = [], {}
    named = [("original", "original"), *(("flag.ship", name) for name in FLAGSHIP_ROWS)]
    named += [*itertools.product(learned, FLAGSHIP_ROWS), *(("classics", name) for name in CLASSICS)]
    for number, (section, name) in enumerate(named):
        picture = np.zeros((150, 120 * people, 3), np.uint8)
        for person in range(people):
            colour = (10 + 2 * number, 60 * person, 200)
            picture[:, 120 * person : 120 * (person + 1)] = colour
            shown = name if section in ("original", "classics", "flag.ship") else section
            colours.setdefault(f"{shown}, person {person + 1}", colour)
        rows.append(DemoRow(name, section, picture, 0.1, 0.8, 0, people, 1.0, recovery="right" in name))
    return draw_sheet(rows, points, "flag.ship", notes), colours


@pytest.mark.parametrize(("people", "learned"), [(3, LEARNED), (1, LEARNED), (5, LEARNED[:1]), (3, ())])
def test_every_face_is_on_the_sheet_under_its_label(people, learned):
    sheet, colours = made_up_sheet(people, learned)
    assert sheet.image.size == (WIDTH, HEIGHT)
    assert WIDTH <= 1600
    assert HEIGHT <= 1000
    faces = {part.label: part.box for part in sheet.parts if part.face}
    assert set(faces) == set(colours)
    for label, (left, top, right, bottom) in faces.items():
        assert sheet.image.getpixel(((left + right) // 2, (top + bottom) // 2)) == colours[label], label
    large = [box for label, box in faces.items() if label.startswith(("original", "anonymized", "recovered"))]
    small = [box for box in faces.values() if box not in large]
    assert min(box[2] - box[0] for box in large) > 1.8 * max(box[2] - box[0] for box in small)


LONG_NOTE = "not shown, because it needs a set of people to hide among (reference=FILE): dp_kanonymity.faces64"


@pytest.mark.parametrize("people", [1, 3])
@pytest.mark.parametrize("notes", [(), (LONG_NOTE, LONG_NOTE)])
def test_nothing_on_the_sheet_overlaps_or_leaves_it(people, notes):
    sheet, _ = made_up_sheet(people, notes=notes)
    for part in sheet.parts:
        left, top, right, bottom = part.box
        assert 0 <= left < right <= WIDTH, part
        assert 0 <= top < bottom <= HEIGHT, part
    for a, b in itertools.combinations(sheet.parts, 2):
        apart = a.box[2] <= b.box[0] or b.box[2] <= a.box[0] or a.box[3] <= b.box[1] + 1 or b.box[3] <= a.box[1] + 1
        assert apart, (a, b)


def test_more_models_than_the_page_holds_leave_it_the_same():
    sheet, _ = made_up_sheet(learned=tuple(f"method{number}.test" for number in range(20)))
    assert sheet.image.size == (WIDTH, HEIGHT)
    assert all(part.box[3] <= HEIGHT for part in sheet.parts)


def test_the_model_shown_large(monkeypatch):
    measured = {"mfm.faces64": "28.5 (28.3-28.6)", "sdn.faces64": "30.9 (30.8-31.1)", "identity_dp.faces128": "99"}

    def resolve(name: str) -> SimpleNamespace:
        metrics = {"PSNR, png, dB": measured[name]} if name in measured else {}
        return SimpleNamespace(name=name, method=name.split(".")[0], manifest={"metrics": metrics})

    monkeypatch.setattr(models, "resolve_model", resolve)
    assert flagship_of(["mfm.faces64", "identity_rotation.mesh128", "sdn.faces64"]) == "identity_rotation.mesh128"
    assert flagship_of(["identity_dp.faces128", "mfm.faces64", "sdn.faces64"]) == "sdn.faces64", "recovers best"
    assert flagship_of(["identity_dp.faces128"]) == "identity_dp.faces128"
    assert flagship_of([]) == ""


@pytest.mark.slow
def test_the_whole_demo(tiny_model, tmp_path):
    lines: list[str] = []
    report = run_demo(tmp_path / "demo", say=lines.append, learned=[str(tiny_model)])
    rows = {(row.section, row.name): row for row in report.rows}
    learned = {name: row for (section, name), row in rows.items() if section == "tiny_swap.test"}
    assert report.flagship == "tiny_swap.test"
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
        assert sheet.size == (WIDTH, HEIGHT)
    stem = "facezoo-demo-tiny_swap.test"
    assert {"facezoo-demo.png", "facezoo-demo-original.png", f"{stem}.png", f"{stem}.recovered.png"} <= {
        path.name for path in (tmp_path / "demo").iterdir()
    }
    assert any("recovered, right key" in line for line in lines)
    assert not any("lantern" in line or "trains" in line for line in lines), "a passphrase was printed"
    assert max(len(line) for line in lines if "  " in line and not line.startswith(("dlib", "SFace"))) <= 100


def test_what_needs_people_to_hide_among_is_a_note_and_not_an_error():
    shown, notes = learned_models()
    assert any(name.startswith("identity_rotation.") for name in shown)
    assert not [name for name in shown if name.startswith("dp_kanonymity")]
    assert any("dp_kanonymity" in note and "people to hide among" in note for note in notes)
