"""`prepare`: resumable to the byte, never stopped by a bad file, and telling what was left out."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from facezoo.data import prepare as prepare_module
from facezoo.data.packed import PackedFaces
from facezoo.data.prepare import PrepareReport, prepare, print_summary, progress_folder, report_path
from facezoo.errors import InputError, OutputError
from facezoo.faces.align import template

SIZE = 32


@dataclass
class _Face:
    box: tuple[float, float, float, float]
    points: np.ndarray
    score: float = 0.9


class _Marks:
    """Stands in for a detector: the top left pixel's red says how many faces a picture has (in tens).

    The faces are side by side, each a little smaller than the one before it.
    """

    calls = 0

    def __init__(self, stop_at: int | None = None) -> None:
        self.stop_at = stop_at

    def detect(self, rgb: np.ndarray) -> list[_Face]:
        self.calls += 1
        if self.calls == self.stop_at:
            raise KeyboardInterrupt
        faces = []
        for number in range(int(rgb[0, 0, 0]) // 10):
            side = 60 - 2 * number
            left = 64 * number
            points = template(side) + np.array([left, 0])
            faces.append(_Face((left, 0, left + side, side), points))
        return faces


def _save(path: Path, faces: int, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (64, 200, 3), dtype=np.uint8)
    pixels[0, 0] = 10 * faces
    Image.fromarray(pixels).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eight pictures of two people, among them bad ones, and a file that is no picture."""
    root = tmp_path / "pictures"
    for number in range(3):
        _save(root / "adam" / f"{number}.png", 1, number)
    _save(root / "eve" / "0.png", 2, 10)
    _save(root / "eve" / "1.png", 0, 11)
    _save(root / "eve" / "4.png", 1, 12)
    (root / "eve" / "2.png").write_bytes(b"")
    (root / "eve" / "3.jpg").write_bytes((root / "eve" / "0.png").read_bytes()[:200])
    (root / "eve" / "notes.txt").write_text("hello")
    return root


def _prepare(folder: Path, output: Path, detector: _Marks | None = None, **options: object) -> PrepareReport:
    arguments: dict[str, object] = {"size": SIZE, "progress": False, **options}
    return prepare(folder, output, detector=detector or _Marks(), **arguments)  # type: ignore[arg-type]


def test_faces_are_packed_and_the_rest_is_told(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "faces.safetensors"
    report = _prepare(folder, output, source="generated")
    faces = PackedFaces(output)
    assert faces.files == ["adam/0.png", "adam/1.png", "adam/2.png", "eve/0.png", "eve/4.png"]
    assert [faces.identities[number] for number in faces.identity] == ["adam"] * 3 + ["eve"] * 2
    assert faces.metadata["source"] == "generated"
    assert faces.points is not None
    assert np.abs(faces.points[0] - template(SIZE)).max() < 0.01
    # The picture's face is 60 pixels wide and the crop 32: its mean colour must have come along.
    original = np.asarray(Image.open(folder / "adam" / "1.png"))[:60, :60]
    assert abs(float(faces.images[1].mean()) - float(original.mean())) < 3

    assert (report.pictures, report.faces, report.people, report.other_faces) == (8, 5, 2, 1)
    assert {item.file: item.reason for item in report.left_out} == {
        "eve/1.png": "no face found",
        "eve/2.png": "unreadable",
        "eve/3.jpg": "unreadable",
    }
    assert all("\n" not in item.detail for item in report.left_out)
    assert report.ignored == ["eve/notes.txt"]
    assert json.loads(report_path(output).read_text())["faces"] == 5
    assert not progress_folder(output).exists()


def test_an_interrupted_run_ends_in_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    straight, resumed = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    _prepare(folder, straight)
    with pytest.raises(KeyboardInterrupt):
        _prepare(folder, resumed, _Marks(stop_at=4))
    assert not resumed.exists()
    second = _Marks()
    report = _prepare(folder, resumed, second)
    assert report.resumed_after == 3
    assert second.calls == 3  # eve's three readable pictures; adam's are not looked at again
    assert resumed.read_bytes() == straight.read_bytes()
    assert len(report.left_out) == 3


@pytest.mark.parametrize("harm", ["cut line", "no newline", "crops ahead", "crops behind", "garbage"])
def test_a_journal_that_was_cut_anywhere_is_continued(folder: Path, tmp_path: Path, harm: str) -> None:
    straight, resumed = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    _prepare(folder, straight)
    with pytest.raises(KeyboardInterrupt):
        _prepare(folder, resumed, _Marks(stop_at=4))
    journal, raw = progress_folder(resumed) / "journal.jsonl", progress_folder(resumed) / "faces.raw"
    match harm:
        case "cut line":
            journal.write_bytes(journal.read_bytes()[:-20])
        case "no newline":
            journal.write_bytes(journal.read_bytes()[:-1])
        case "crops ahead":
            raw.write_bytes(raw.read_bytes() + bytes(1000))
        case "crops behind":
            raw.write_bytes(raw.read_bytes()[:-1])
        case "garbage":
            journal.write_bytes(b"[]\n" + journal.read_bytes())
    report = _prepare(folder, resumed)
    assert report.resumed_after == {"crops ahead": 3, "garbage": 0}.get(harm, 2)
    assert resumed.read_bytes() == straight.read_bytes()


def test_pictures_changed_in_the_meantime_are_done_again(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        _prepare(folder, tmp_path / "a", _Marks(stop_at=4))
    _save(folder / "adam" / "1.png", 0, 99)
    report = _prepare(folder, tmp_path / "a")
    assert report.resumed_after == 1
    _prepare(folder, tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_other_settings_do_not_continue_a_journal(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        _prepare(folder, tmp_path / "a", _Marks(stop_at=2))
    with pytest.raises(InputError, match=r"other settings \(size\)"):
        _prepare(folder, tmp_path / "a", size=64)
    assert _prepare(folder, tmp_path / "a").resumed_after == 1


def test_nothing_is_overwritten_unasked(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "a"
    output.write_text("mine")
    with pytest.raises(OutputError, match="exists"):
        _prepare(folder, output)
    assert output.read_text() == "mine"
    assert not progress_folder(output).exists()
    _prepare(folder, output, overwrite=True)
    assert len(PackedFaces(output)) == 5


def test_a_failed_write_leaves_the_work_for_the_next_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OutputError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(prepare_module, "write_packed", full)
        with pytest.raises(OutputError, match="full"):
            _prepare(folder, tmp_path / "a")
    detector = _Marks()
    assert _prepare(folder, tmp_path / "a", detector).resumed_after == 8
    assert detector.calls == 0


def test_two_runs_at_once_are_refused(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("fcntl")

    class _Second(_Marks):
        def detect(self, rgb: np.ndarray) -> list[_Face]:
            with pytest.raises(OutputError, match="another run"):
                _prepare(folder, tmp_path / "a")
            return super().detect(rgb)

    _prepare(folder, tmp_path / "a", _Second(), overwrite=True)
    assert len(PackedFaces(tmp_path / "a")) == 5


def test_every_face_of_a_picture(folder: Path, tmp_path: Path) -> None:
    _save(folder / "group.png", 3, 50)
    report = _prepare(folder, tmp_path / "a", identity="file", faces="all", min_face=57)
    faces = PackedFaces(tmp_path / "a")
    assert [file for file in faces.files if "group" in file] == ["group.png", "group.png#1"]
    assert report.people == len(faces) == 8
    small = [item for item in report.left_out if item.reason == "face too small"]
    assert [(item.file, item.detail) for item in small] == [("group.png", "56 pixels, at least 57 are wanted")]


def test_a_face_that_does_not_fit_the_template_is_left_out(folder: Path, tmp_path: Path) -> None:
    class _Swapped(_Marks):
        def detect(self, rgb: np.ndarray) -> list[_Face]:
            faces = super().detect(rgb)
            for face in faces[:1]:
                if rgb[1, 1, 0] < 128:
                    face.points = face.points[[1, 4, 0, 2, 3]]
            return faces

    report = _prepare(folder, tmp_path / "a", _Swapped())
    turned = [item.file for item in report.left_out if item.reason == "face turned too far"]
    expected = [file for file in PackedFaces(tmp_path / "a").files if file in turned]
    assert turned
    assert expected == []
    assert report.faces + len(turned) == 5


def test_no_usable_face_at_all(tmp_path: Path) -> None:
    _save(tmp_path / "in" / "a.png", 0, 1)
    with pytest.raises(InputError, match="no face found: 1"):
        _prepare(tmp_path / "in", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 4}, "size must be"),
        ({"identity": "name"}, "no identity rule 'name'"),
        ({"faces": "some"}, "no choice of faces 'some'"),
        ({"faces": "all"}, "needs identity='file'"),
        ({"workers": -1}, "workers must be"),
        ({"workers": 2}, "by its name to use workers"),
        ({"min_face": 0}, "min_face must be"),
    ],
)
def test_wrong_arguments(folder: Path, tmp_path: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        _prepare(folder, tmp_path / "a", **options)
    assert not progress_folder(tmp_path / "a").exists()


def test_missing_folder_and_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no folder"):
        _prepare(tmp_path / "nowhere", tmp_path / "a")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no picture in"):
        _prepare(tmp_path / "empty", tmp_path / "a")


def test_the_summary_names_what_was_left_out(folder: Path, tmp_path: Path) -> None:
    text = io.StringIO()
    print_summary(_prepare(folder, tmp_path / "a.safetensors"), text)
    lines = text.getvalue().splitlines()
    assert any(line.split() == ["faces", "packed", "5"] for line in lines)
    assert any(line.split() == ["left", "out:", "unreadable", "2"] for line in lines)
    assert any(line.startswith("  eve/2.png: unreadable (") for line in lines)


@pytest.mark.slow
def test_workers_and_the_real_detector_give_the_same_file(tmp_path: Path) -> None:
    """On noise YuNet finds nothing and on a face it finds one; the order does not depend on the workers."""
    picture = Path(prepare_module.__file__).parents[1] / "assets" / "demo" / "astronaut.jpg"
    if not picture.exists():
        pytest.skip("needs the demo's picture")
    for number in range(3):
        with Image.open(picture) as image:
            path = tmp_path / "in" / f"p{number}" / "a.jpg"
            path.parent.mkdir(parents=True)
            image.convert("RGB").rotate(3 * number).save(path)
    _save(tmp_path / "in" / "p1" / "b.png", 0, 1)
    prepare(tmp_path / "in", tmp_path / "a", workers=0, progress=False)
    report = prepare(tmp_path / "in", tmp_path / "b", workers=2, progress=False)
    assert report.faces == 3
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
