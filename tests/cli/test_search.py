"""How faces are looked for, from the command line: sizes, turns, thresholds, boxes, and what is said about them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from facezoo.records import read_sidecar
from tests.cli.conftest import files_under, portrait

BLUR = ("--model", "gaussian_blur")


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Somebody near, and six people far away with faces of about 13 pixels."""
    picture = Image.new("RGB", (600, 400), (120, 130, 140))
    picture.paste(portrait("obama.jpg").crop((60, 0, 260, 200)).resize((180, 180)), (20, 200))
    for index in range(6):
        name = ("astronaut.jpg", "obama.jpg", "biden.jpg")[index % 3]
        picture.paste(
            portrait(name).crop((60, 0, 260, 200)).resize((28, 28), Image.Resampling.LANCZOS), (20 + 90 * index, 40)
        )
    path = tmp_path_factory.mktemp("crowd") / "crowd.png"
    picture.save(path)
    return path


def test_faces_below_min_face_are_named_also_when_quiet(cli, crowd, tmp_path):
    run = cli("anonymize", crowd, "-o", tmp_path / "all.png", *BLUR)
    assert run.code == 0
    assert "7 faces anonymized" in run.out
    assert run.err == ""
    out = tmp_path / "out"
    run = cli("anonymize", crowd, "-o", f"{out}/", *BLUR, "--min-face", 40)
    assert run.code == 0
    assert "1 of 1 pictures done (1 faces)" in run.out
    (line,) = run.err.splitlines()
    assert "warning: 6 faces below 40 px found and left" in line
    quiet = cli("anonymize", crowd, "-o", tmp_path / "q.png", *BLUR, "--min-face", 40, "-q")
    assert "6 faces below 40 px" in quiet.err
    # Another size from which on faces are treated makes another picture.
    again = cli("anonymize", crowd, "-o", f"{out}/", *BLUR)
    assert again.code != 0
    assert "--min-face 40" in again.err


def test_what_the_user_set_reaches_the_search(cli, tmp_path):
    sheet = Image.new("RGB", (480, 340), (140, 150, 160))
    sheet.paste(portrait("obama.jpg"), (10, 2))
    sheet.paste(portrait("biden.jpg").resize((100, 112)).rotate(90, expand=True), (330, 100))
    path = tmp_path / "sheet.png"
    sheet.save(path)
    for rotations, count in (("auto", 2), ("all", 2), ("off", 1)):
        target = tmp_path / f"{rotations}.png"
        run = cli("anonymize", path, "-o", target, *BLUR, "--verify", "off", "--rotations", rotations)
        assert run.code == 0, run.err
        assert len(read_sidecar(target).faces) == count
    run = cli("anonymize", path, "-o", tmp_path / "x.png", *BLUR, "--verify", "off", "--threshold", ".97")
    assert run.code == 3
    assert "no face was found" in run.error_line()


@pytest.mark.parametrize(
    "wrong", [("--threshold", "2"), ("--rotations", "some"), ("--min-face", "-1"), ("--min-face", "nan")]
)
def test_impossible_values_are_refused(cli, crowd, tmp_path, wrong):
    run = cli("anonymize", crowd, "-o", tmp_path / "x.png", *BLUR, *wrong)
    assert run.code == 2
    assert files_under(tmp_path) == []


def test_a_box_on_a_nose_is_refused_and_nothing_is_written(cli, face_file, tmp_path):
    boxes = tmp_path / "boxes.json"
    boxes.write_text(json.dumps([[140, 80, 160, 100]]))
    run = cli("anonymize", face_file, "-o", tmp_path / "x.png", *BLUR, "--boxes", boxes)
    assert run.code == 3
    assert "in part" in run.error_line()
    assert files_under(tmp_path) == ["boxes.json"]
    run = cli("anonymize", face_file, "-o", tmp_path / "x.png", *BLUR, "--boxes", boxes, "--verify", "add")
    assert run.code == 0
    before, after = (np.asarray(Image.open(path).convert("RGB")) for path in (face_file, tmp_path / "x.png"))
    assert (before[80:170, 120:185] != after[80:170, 120:185]).any(axis=2).mean() > 0.9


def test_one_line_a_picture_says_it_all_and_an_unmeasured_model_says_so(cli, tiny_model, key_file, crowd, tmp_path):
    target = tmp_path / "x.png"
    run = cli("anonymize", crowd, "-o", target, "--model", tiny_model, "--key-file", key_file, "--verify", "off")
    assert run.code == 0
    faces, measured = run.err.splitlines()
    assert "6 faces (1, 2, 3, ...): so small that recovery from the picture alone will be weak" in faces
    assert "was never measured" in measured
