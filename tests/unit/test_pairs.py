"""``facezoo evaluate --pairs``: reading the file, and rates whose answers are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from facezoo.data.packed import PackedFaces, write_packed
from facezoo.errors import InputError
from facezoo.evaluate.pairs import Pairs, measure_pairs, pairs_report, read_pairs
from facezoo.evaluate.protocol import EvaluationSettings
from facezoo.recognition import Recogniser
from facezoo.recognition.window import TemplateWindow

PEOPLE, PICTURES = 12, 2
SETTINGS = EvaluationSettings(far=(0.1,), progress=False, batch_size=5)


class Colour(torch.nn.Module):
    """Knows people by the colour of their picture."""

    def forward(self, faces: Tensor) -> Tensor:
        return faces.mean((2, 3))


@pytest.fixture
def people(tmp_path: Path) -> PackedFaces:
    """Twelve people, each a colour of its own; two pictures of each differ a little."""
    rng = np.random.default_rng(0)
    colours = rng.integers(100, 230, (PEOPLE, 1, 1, 3)).repeat(PICTURES, 0)
    pictures = np.clip(colours + rng.integers(-2, 3, (len(colours), 16, 16, 3)), 0, 255).astype(np.uint8)
    names = [f"p{i:02d}" for i in range(PEOPLE) for _ in range(PICTURES)]
    files = [f"made/p{i:02d}_{k}.png" for i in range(PEOPLE) for k in range(PICTURES)]
    write_packed(
        tmp_path / "set.safetensors", iter(pictures), size=16, identities=names, files=files, source="invented"
    )
    return PackedFaces(tmp_path / "set.safetensors")


def pairs_file(folder: Path, text: str) -> Path:
    path = folder / "pairs.csv"
    path.write_text(text)
    return path


EVERYBODY = "a,b,same\n" + "".join(f"p{i:02d}_0,p{i:02d}_1,1\n" for i in range(PEOPLE))
STRANGERS = "".join(f"p{i:02d}_0,p{i + 1:02d}_1,0\n" for i in range(PEOPLE - 1))


def test_reading(people, tmp_path):
    pairs = read_pairs(pairs_file(tmp_path, EVERYBODY + STRANGERS + "p00_0,somebody_else_7,0\n"), people)
    assert (len(pairs), int(pairs.same.sum()), pairs.left_out) == (23, 12, 1)
    assert (pairs.first[0], pairs.second[0], bool(pairs.same[0])) == (0, 1, True)
    assert (pairs.first[-1], pairs.second[-1], bool(pairs.same[-1])) == (20, 23, False)
    few = pairs.some(5, 0)
    assert len(few) == 5
    assert np.array_equal(few.first, pairs.some(5, 0).first)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x,y,same\np00_0,p00_1,1\n", "must name the columns a, b, same"),
        ("a,b,same\np00_0,p00_1,yes\n", "line 2: needs two names, and 1 or 0"),
        ("a,b,same\np00_0,,1\n", "line 2: needs two names"),
        ("a,b,same\np00_0,p00_0,1\n", "paired with itself"),
        ("a,b,same\np00_0,p01_0,1\n", "says one person, but set.safetensors does not"),
        ("a,b,same\np00_0,p00_1,0\n", "says two people, but"),
        ("a,b,same\np00_0,p01_0,0\nx,y,1\n", "no pair of one person has both pictures"),
    ],
)
def test_what_cannot_be_used(people, tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        read_pairs(pairs_file(tmp_path, text), people)
    with pytest.raises(InputError, match="cannot be read"):
        read_pairs(tmp_path / "nothing.csv", people)


def test_a_name_that_two_pictures_have(tmp_path):
    pictures = np.random.default_rng(1).integers(0, 255, (3, 16, 16, 3), dtype=np.uint8)
    files = ["x/p_0.png", "y/p_0.png", "x/p_1.png"]
    write_packed(
        tmp_path / "set.safetensors", iter(pictures), size=16, identities=["p"] * 3, files=files, source="invented"
    )
    with pytest.raises(InputError, match=r"two pictures of set\.safetensors are called p_0"):
        read_pairs(pairs_file(tmp_path, "a,b,same\np_1,p_0,1\n"), PackedFaces(tmp_path / "set.safetensors"))


class Subject:
    """Changes faces as it is told, and counts the keys."""

    def __init__(self, change) -> None:
        self.change, self.keys = change, set()

    def anonymize_faces(self, faces: Tensor, key=None) -> Tensor:
        self.keys.add(key.tag("test", b"", 8))
        return self.change(faces)

    def recover_faces(self, faces: Tensor, key=None) -> Tensor:
        return faces


def rates(people: PackedFaces, pairs: Pairs, change) -> dict:
    subject = Subject(change)
    judge = Recogniser("colour", Colour(), TemplateWindow(16, 8, 0, 0), 3, "test", "euclidean")
    result = measure_pairs(subject, people, pairs, name="x", judges=[judge], settings=SETTINGS)
    assert len(subject.keys) == len(pairs), "every picture has a key of its own"
    return result


def test_rates_that_are_known(people, tmp_path):
    """Unchanged: as the real pictures. Everybody black: nobody is taken for anybody. The next person's colour: the
    pairs of two people become pairs of one."""
    pairs = read_pairs(pairs_file(tmp_path, EVERYBODY + STRANGERS), people)
    same = rates(people, pairs, lambda faces: faces)
    told = same["judges"]["colour"]
    for kind in ("same", "different"):
        assert told[kind]["anonymized"] == told[kind]["real"]
    assert told["same"]["real"]["far_0.1"]["value"] == 1.0
    assert told["same"]["real"]["far_0.1"]["n"] == 12
    assert told["different"]["real"]["far_0.1"]["value"] < 0.3
    hidden = rates(people, pairs, lambda faces: torch.full_like(faces, -1.0))["judges"]["colour"]
    assert hidden["same"]["real"] == told["same"]["real"], "thresholds come from real pictures"
    assert hidden["thresholds"] == told["thresholds"]
    assert hidden["same"]["anonymized"]["far_0.1"]["value"] == 0.0
    text = pairs_report(same)
    assert "12 pairs of one person and 11 of two" in text
    assert "| colour | far_0.1 (" in text


def test_a_face_that_fails_counts_as_its_original(people, tmp_path):
    pairs = read_pairs(pairs_file(tmp_path, EVERYBODY), people)

    def refuse_some(faces: Tensor) -> Tensor:
        if float(faces[0, 0].mean()) > 0:
            raise InputError("too red")
        return torch.full_like(faces, -1.0)

    result = rates(people, pairs, refuse_some)
    assert 0 < result["failed"] < 12
    assert result["judges"]["colour"]["same"]["anonymized"]["far_0.1"]["value"] == pytest.approx(result["failed"] / 12)
    with pytest.raises(InputError, match="always"):
        rates(people, pairs, lambda faces: (_ for _ in ()).throw(InputError("always")))


def test_the_command(people, tmp_path, capsys):
    from facezoo.cli import main

    path = pairs_file(tmp_path, EVERYBODY + STRANGERS)
    arguments = ["evaluate", "black_box", "--data", str(people.path), "-o", str(tmp_path / "out"), "--pairs", str(path)]
    # Twelve people give 264 impostor pairs: too few for the rate of one in a thousand, and that is said.
    assert main([*arguments, "--judge", "sface"]) == 2
    assert "264 impostor pairs cannot give a threshold at FAR 0.001" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
