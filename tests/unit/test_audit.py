"""The audit on drawn pictures whose faces, places and failures are known."""

from __future__ import annotations

import csv
import dataclasses
import json

import cv2
import numpy as np
import pytest
from PIL import Image
from torch import nn
from torch.nn import functional

from facezoo.cli import main
from facezoo.errors import InputError, NoFaceError, OutputError
from facezoo.evaluate import audit as audit_module
from facezoo.evaluate.audit import THRESHOLDS, AuditSettings, run_audit
from facezoo.evaluate.audit_pairs import pair_folders, read_pairs
from facezoo.evaluate.audit_report import html_report, refuse_inside, write_audit
from facezoo.faces.detect import Face, points_from_box
from facezoo.recognition import Recogniser
from facezoo.recognition.window import TemplateWindow

SIDE, GREY = 64, 130


class Coarse(nn.Module):
    """Sees the picture in 8 x 8 fields without its mean: a black or grey square is the zero vector."""

    def forward(self, pictures):
        flat = pictures.flatten(1)
        return functional.normalize(flat - flat.mean(1, keepdim=True), dim=1, eps=1e-3)


def judge(name: str, metric: str = "cosine") -> Recogniser:
    return Recogniser(name, Coarse(), TemplateWindow(8, 8, 32, 40), 192, "test", metric)


class Patches:
    """Finds every square that is neither the grey of the background nor black."""

    def __init__(self, options) -> None:
        self.options = options

    def detect(self, rgb):
        faint = 5 if self.options.score_threshold == 0.3 else 12
        seen = (np.abs(rgb.astype(int) - GREY).max(2) > faint) & (rgb.max(2) > 20)
        count, _, boxes, _ = cv2.connectedComponentsWithStats(
            cv2.morphologyEx(seen.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((9, 9), np.uint8))
        )
        faces = []
        for x, y, width, height, _ in boxes[1:count]:
            box = (float(x), float(y), float(x + width), float(y + height))
            if min(width, height) >= self.options.minimum_face:
                faces.append(Face(box, points_from_box(box), 1.0))
        return sorted(faces, key=lambda face: face.box)


@pytest.fixture(autouse=True)
def drawn_detector(monkeypatch):
    monkeypatch.setattr(audit_module, "get_detector", lambda name, options: Patches(options))


def face(number: int) -> np.ndarray:
    """Somebody: a coarse pattern of strong colours."""
    fields = np.random.default_rng(number).choice([40, 250], (8, 8, 3))
    return fields.repeat(SIDE // 8, 0).repeat(SIDE // 8, 1).astype(np.uint8)


def picture(*people: np.ndarray) -> np.ndarray:
    """People beside each other, on grey."""
    canvas = np.full((160, 40 + 110 * max(len(people), 1), 3), GREY, dtype=np.uint8)
    for index, person in enumerate(people):
        canvas[40 : 40 + SIDE, 40 + 110 * index : 40 + 110 * index + SIDE] = person
    return canvas


def save(path, pixels) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


BLACK = np.zeros((SIDE, SIDE, 3), dtype=np.uint8)
SETTINGS = AuditSettings(thresholds={"cos": 0.7, "far": 0.7})


def judged(released, originals, settings=SETTINGS, **options):
    return run_audit(pair_folders(originals, released), settings, judges=[judge("cos"), judge("far", "euclidean")])


@pytest.fixture
def folders(tmp_path):
    """One picture of every kind; the comments say what the audit must find."""
    originals, released = tmp_path / "originals", tmp_path / "released"
    save(originals / "a.png", picture(face(1), face(2)))
    save(released / "a.png", picture(face(101), face(2)))  # the second face was missed
    save(originals / "b.png", picture(face(3)))
    save(released / "b_anonymized.png", picture(BLACK))  # protected, not detected any more
    save(originals / "deep" / "c.png", picture(face(4)))
    save(released / "deep" / "c.webp", picture(face(104)))  # protected, a face is still there
    save(originals / "d.png", picture(face(5)))  # never released
    save(originals / "e.png", picture(face(6)))
    (released / "e.png").write_bytes(b"\x89PNG nothing")  # corrupt
    save(originals / "f.png", picture(face(7)))
    save(released / "f.png", picture(face(107))[:, :90])  # cut: other proportions
    save(originals / "g.png", picture(face(8)))
    save(released / "g.png", picture(face(8)).repeat(2, 0).repeat(2, 1))  # enlarged, not anonymized
    save(originals / "h.png", picture())  # nobody
    save(released / "h.png", picture())
    save(originals / "i.png", picture(face(9)))
    save(released / "i.png", np.roll(picture(face(9)), 50, 1))  # not at its place, but in the picture
    save(released / "z.png", picture(face(10)))  # of no known original
    (released / "a.png.facezoo.json").write_text("{}")
    return originals, released


def test_each_kind_of_picture_is_judged_as_it_must_be(folders):
    originals, released = folders
    audit = judged(released, originals)
    found = {verdict.name: verdict for verdict in audit.pictures}
    assert [face.status for face in found["a.png"].faces] == ["protected", "missed"]
    assert found["a.png"].faces[1].changed == 0.0
    assert found["a.png"].faces[1].recognised_by == ("cos", "far")
    assert [face.status for face in found["b.png"].faces] == ["protected"]
    assert found["b.png"].faces[0].detected is False
    assert found["deep/c.png"].faces[0].detected is True
    assert not found["b.png"].failed
    assert not found["deep/c.png"].failed
    assert "d.png" not in found
    assert audit.summary["withheld"] == ["d.png"]
    assert "cannot be read" in found["e.png"].problem
    assert str(released) not in found["e.png"].problem
    assert "other proportions" in found["f.png"].problem
    assert found["f.png"].faces[0].detected is None
    assert found["f.png"].faces[0].same_place == {"cos": None, "far": None}
    assert [face.status for face in found["g.png"].faces] == ["missed"]
    assert any("resized" in warning for warning in found["g.png"].warnings)
    assert found["h.png"].faces == ()
    assert not found["h.png"].failed
    # A face that has moved is found anywhere; the detector has it at a place of its own, where the original has none.
    moved = found["i.png"].faces[0]
    assert (moved.status, moved.found_in) == ("recognised", "original")
    assert moved.same_place["cos"] < 0.7 <= moved.anywhere["cos"]
    assert "no original" in found["z.png"].problem

    pictures, faces = audit.summary["pictures"], audit.summary["faces"]
    # Nine pictures were released; a, e, f, g, i and z fail.
    assert (pictures["all"], pictures["withheld"], pictures["failed"]["value"]) == (9, 1, pytest.approx(6 / 9))
    assert (pictures["not_judged"], pictures["without_a_face"], pictures["resized"]) == (3, 1, 1)
    assert audit.failed_percent == pytest.approx(600 / 9)
    strict = run_audit(
        pair_folders(originals, released, all_released=True), SETTINGS, judges=[judge("cos"), judge("far", "euclidean")]
    )
    assert strict.failed_percent == pytest.approx(70)
    assert faces["missed"]["value"] * faces["all"] == pytest.approx(2)
    assert audit.summary["left_out"] == 1
    assert audit.summary["controls"]["identity"]["cos"]["value"] == 1.0
    assert audit.summary["controls"]["black_box"]["cos"]["value"] == 0.0


def test_looks_are_those_of_the_faces_whose_place_is_known(folders):
    originals, released = folders
    audit = judged(released, originals)
    looks = audit.summary["looks"]
    # a (two faces), b, c, g, i; f has other proportions, and e cannot be read
    assert looks["grain"]["n"] == 6
    assert looks["mesh"]["missing"] == 6  # patterns, no faces
    assert "<h2>Looks</h2>" in html_report(audit, limit=0, title="x")
    untouched = {name: released.parent / name for name in ("there", "before")}
    for folder in untouched.values():
        save(folder / "a.png", picture(face(1)))
    same = judged(untouched["there"], untouched["before"]).summary["looks"]
    assert (same["grain"]["value"], same["detail"]["value"]) == (100, 1)


def test_a_face_that_is_detected_in_the_release_only_is_looked_up_in_the_original(tmp_path):
    originals, released = tmp_path / "o", tmp_path / "r"
    # In the original the detector sees nothing (too near to grey), in the release the same face is stronger.
    weak = (face(1).astype(float) / 255 * 22 + GREY - 11).astype(np.uint8)
    save(originals / "a.png", picture(weak))
    save(released / "a.png", picture(face(1)))
    verdict = judged(released, originals).pictures[0].faces[0]
    assert (verdict.found_in, verdict.status) == ("released", "missed")


def test_pairs_are_told_by_names_and_never_guessed(tmp_path):
    originals, released = tmp_path / "o", tmp_path / "r"
    for name in ("a.jpg", "b.jpg", "c.png", "c.jpg", "d.jpg", "d_anon.jpg", "E.JPG"):
        save(originals / name, picture(face(1)))
    for name in ("a.png", "a.webp", "b_anonymized.jpg", "c.png", "d_anon.png", "e.jpg", "other.png"):
        save(released / name, picture(face(1)))
    pairs = {pair.name: pair for pair in pair_folders(originals, released).pairs}
    assert pairs["b.jpg"].released.name == "b_anonymized.jpg"
    # d_anon.png is d_anon.jpg's, not d.jpg's.
    assert pairs["d_anon.jpg"].released.name == "d_anon.png"
    assert pair_folders(originals, released).withheld == ("d.jpg",)
    assert pairs["E.JPG"].released.name == "e.jpg"
    assert "2 released pictures" in pairs["a.jpg"].problem
    # c.png could have been made from either.
    assert "another original" in pairs["c.png"].problem
    assert "another original" in pairs["c.jpg"].problem
    assert pairs["other.png"].original is None
    assert len(pairs) == 7

    table = tmp_path / "pairs.csv"
    table.write_text("original,released\na.jpg,a.webp\nb.jpg,\n")
    known = read_pairs(table, originals, released)
    assert known.withheld == ("b.jpg",)
    named = [pair.name for pair in known.pairs if not pair.problem]
    # What lies in the released folder and is in no line of the table is not passed over.
    strangers = {pair.name for pair in known.pairs if "does not name it" in pair.problem}
    assert (named, strangers) == (["a.jpg"], {path.name for path in released.iterdir()} - {"a.webp"})
    for text in ("original\na.jpg\n", "original,released\n", "original,released\na.jpg,b\na.jpg,c\n"):
        table.write_text(text)
        with pytest.raises(InputError):
            read_pairs(table, originals, released)
    with pytest.raises(InputError, match="one folder"):
        pair_folders(originals, originals)


def test_released_pictures_inside_the_folder_of_originals_are_no_originals(tmp_path):
    save(tmp_path / "a.png", picture(face(1)))
    save(tmp_path / "out" / "a.png", picture(face(2)))
    pairs = pair_folders(tmp_path, tmp_path / "out").pairs
    assert [(pair.name, pair.problem) for pair in pairs] == [("a.png", "")]


def test_hidden_preview_pictures_are_noticed(tmp_path):
    originals, released = tmp_path / "o", tmp_path / "r"
    save(originals / "a.jpg", picture(face(1)))
    released.mkdir()
    Image.fromarray(picture(face(2))).save(released / "a.jpg", exif=_exif_with_preview())
    verdict = judged(released, originals).pictures[0]
    assert "preview picture" in verdict.problem
    assert verdict.failed


def test_a_clip_or_a_second_picture_behind_the_first_is_not_passed(tmp_path):
    originals, released = tmp_path / "o", tmp_path / "r"
    for name in ("a", "b"):
        save(originals / f"{name}.png", picture(face(1)))
    save(released / "a.jpg", picture(face(101)))
    data = (released / "a.jpg").read_bytes() + b"\0\0\0\x18ftypmp42" + bytes(5000)
    (released / "a.jpg").write_bytes(data)
    first = Image.fromarray(picture(face(101)))
    first.save(released / "b.jpg", "MPO", save_all=True, append_images=[Image.fromarray(picture(face(1)))])
    verdicts = {verdict.name: verdict for verdict in judged(released, originals).pictures}
    assert "clip behind" in verdicts["a.png"].problem
    assert "holds 2 pictures" in verdicts["b.png"].problem
    assert verdicts["a.png"].failed
    assert verdicts["b.png"].failed


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(4000)


def test_nothing_of_a_release_is_passed_over(tmp_path, capsys, monkeypatch):
    """Whatever may show a face and is not judged fails and is named; texts and records do not."""
    originals, released = tmp_path / "o", tmp_path / "r"
    for number, name in enumerate(("a", "b", "c", "d")):
        save(originals / f"{name}.png", picture(face(number)))
    for name, kind in (("a.avif", "AVIF"), ("b.jfif", "JPEG"), ("c.jpe", "JPEG"), ("d.jp2", "JPEG2000")):
        path = released / name
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(picture(face("abcd".index(name[0])))).save(path, kind)  # untouched: everybody is there
    verdicts = {verdict.name: verdict for verdict in judged(released, originals).pictures}
    assert [verdicts[f"{name}.png"].failed for name in "abcd"] == [True] * 4
    assert all(verdict.faces for verdict in verdicts.values())

    unread = {
        "clip.mp4": b"\0\0\0\x18ftypmp42" + bytes(5000),
        "scan.pdf": b"%PDF-1.4 scan",
        "all.zip": b"PK\3\4" + bytes(100),
        "cut.jpg": b"\xff\xd8\xff\xe0" + bytes(20),
        "blob": bytes(range(256)) * 4,
        ".thumbs/hidden.jpg": (released / "b.jfif").read_bytes(),
        "gone.jpg": None,
    }
    for name, data in unread.items():
        path = released / name
        path.parent.mkdir(exist_ok=True)
        path.symlink_to("nowhere.jpg") if data is None else path.write_bytes(data)
    (released / "notes.txt").write_text("words")
    (released / ".DS_Store").write_bytes(b"\0\0\0\x01Bud1" + bytes(50))
    audit = judged(released, originals)
    problems = {verdict.name: verdict.problem for verdict in audit.pictures if verdict.problem}
    assert set(problems) == set(unread)
    assert "video" in problems["clip.mp4"]
    assert "PDF" in problems["scan.pdf"]
    assert "no original" in problems[".thumbs/hidden.jpg"]
    assert audit.summary["left_out"] == 2

    for name in ("a.avif", "b.jfif", "c.jpe", "d.jp2"):
        (released / name).unlink()
    monkeypatch.setattr(audit_module, "load_recogniser", judge)
    words = ["audit", str(released), "--originals", str(originals), "--judges", "cos", "--threshold", "cos=.7"]
    assert main([*words, "--quiet", "-o", str(tmp_path / "report")]) == 8
    errors = capsys.readouterr().err
    assert all(f"facezoo: not judged: {name}: " in errors for name in unread)


def test_heic_is_judged_where_it_is_read_and_fails_where_it_is_not(tmp_path, monkeypatch):
    originals, released = tmp_path / "o", tmp_path / "r"
    save(originals / "a.png", picture(face(1)))
    released.mkdir()
    (released / "a.heic").write_bytes(HEIC)
    assert judged(released, originals).pictures[0].failed
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.from_pillow(Image.fromarray(picture(face(1)))).save(released / "a.heic", quality=95)
    verdict = judged(released, originals).pictures[0]
    assert (verdict.problem, [face.status for face in verdict.faces]) == ("", ["missed"])


def test_a_cover_that_looks_like_a_face_is_listed_and_fails_nothing(tmp_path):
    """The tool drew something face-like where the original has nobody: no face of an original is left there."""
    originals, released = tmp_path / "o", tmp_path / "r"
    crowd = picture(face(1), face(2))
    save(originals / "a.png", crowd)
    covered = picture(face(101), face(102))
    covered[116:146, 112:142] = face(103)[:30, :30]
    save(released / "a.png", covered)
    verdict = judged(released, originals).pictures[0]
    assert [face.status for face in verdict.faces] == ["protected", "protected"]
    assert [tuple(round(value) for value in box) for box in verdict.covers] == [(112, 116, 142, 146)]
    assert not verdict.failed


def test_a_face_that_only_the_release_shows_and_nobody_touched_fails(tmp_path, monkeypatch):
    """What the first detector overlooks in the original and finds in the release is still a face that was left."""

    class Blind(Patches):
        """Sees nothing in the original: it knows it by its lower left corner."""

        def detect(self, rgb):
            return [] if tuple(rgb[-1, 0]) == (1, 2, 3) else super().detect(rgb)

    monkeypatch.setattr(audit_module, "get_detector", lambda name, options: Blind(options))
    original, left = picture(face(1), face(2)), picture(face(101), face(2))
    original[-1, 0] = 1, 2, 3
    save(tmp_path / "o" / "a.png", original)
    save(tmp_path / "r" / "a.png", left)
    verdict = judged(tmp_path / "r", tmp_path / "o").pictures[0]
    assert [(face.found_in, face.status) for face in verdict.faces] == [("released", "missed")] * len(verdict.faces)
    assert len(verdict.faces) >= 1
    assert verdict.failed


def test_faces_of_the_record_are_judged_where_the_detector_finds_none(tmp_path):
    """The audit looks at no fewer faces than the tool did."""
    from facezoo.records import FaceRecord, PictureRecord, write_sidecar

    faint = (face(1).astype(float) / 255 * 22 + GREY - 11).astype(np.uint8)
    save(tmp_path / "o" / "a.png", picture(faint))
    save(tmp_path / "r" / "a.png", picture(faint))
    box = (40.0, 40.0, 40.0 + SIDE, 40.0 + SIDE)
    record = PictureRecord("tool", "tool", (150, 160), (FaceRecord.of(box, points_from_box(box)),))
    write_sidecar(tmp_path / "r" / "a.png", record)
    verdict = judged(tmp_path / "r", tmp_path / "o").pictures[0]
    assert [face.status for face in verdict.faces] == ["recognised"]


def test_many_detections_do_not_make_a_chance_likeness_a_verdict():
    """A face compared with thirty others is taken for one of them at a stricter threshold; a given one stays."""
    examiner = audit_module._Examiner(AuditSettings(thresholds={"cos": 0.7}), [judge("cos"), judge("sface")])
    cos, sface = examiner.judges
    assert examiner.accepts(sface, 0.40)
    assert not examiner.accepts(sface, 0.40, tries=30)
    assert examiner.accepts(sface, 0.52, tries=30)
    assert examiner.accepts(cos, 0.71, tries=30)


def _exif_with_preview() -> bytes:
    """An EXIF block with an empty first directory and a second one that points to a preview."""
    first = (0).to_bytes(2, "little") + (14).to_bytes(4, "little")
    entry = (0x0201).to_bytes(2, "little") + (4).to_bytes(2, "little") + (1).to_bytes(4, "little")
    second = (1).to_bytes(2, "little") + entry + (40).to_bytes(4, "little") + (0).to_bytes(4, "little")
    return b"Exif\0\0" + b"II*\0" + (8).to_bytes(4, "little") + first + second + bytes(16)


def test_thresholds_are_known_or_asked_for(tmp_path):
    originals, released = tmp_path / "o", tmp_path / "r"
    save(originals / "a.png", picture(face(1)))
    save(released / "a.png", picture(face(2)))
    with pytest.raises(InputError, match=r"--threshold cos=VALUE"):
        judged(released, originals, AuditSettings())
    with pytest.raises(InputError, match="no judge"):
        judged(released, originals, AuditSettings(thresholds={"cos": 0.7, "far": 0.7, "other": 1.0}))
    # A stricter false accept rate asks for more likeness.
    for name, known in THRESHOLDS.items():
        assert (known[1e-3] < known[1e-2]) == (name == "dlib")


def test_without_any_face_there_is_nothing_to_judge(tmp_path):
    save(tmp_path / "o" / "a.png", picture())
    save(tmp_path / "r" / "a.png", picture())
    with pytest.raises(NoFaceError):
        judged(tmp_path / "r", tmp_path / "o")


def test_only_problems_still_make_a_report(tmp_path):
    save(tmp_path / "o" / "a.png", picture(face(1)))
    (tmp_path / "r").mkdir()
    with pytest.raises(InputError, match="nothing was released"):
        judged(tmp_path / "r", tmp_path / "o")
    (tmp_path / "r" / "a.png").write_bytes(b"no picture")
    audit = judged(tmp_path / "r", tmp_path / "o")
    assert audit.failed_percent == 100.0
    assert "could not be judged" in html_report(audit, limit=0, title="r")


def test_a_judge_without_a_finite_answer_fails_the_picture(tmp_path):
    class Broken(nn.Module):
        def forward(self, pictures):
            return pictures.flatten(1) * float("nan")

    save(tmp_path / "o" / "a.png", picture(face(1)))
    save(tmp_path / "r" / "a.png", picture(face(2)))
    broken = Recogniser("cos", Broken(), TemplateWindow(8, 8, 32, 40), 192, "test", "euclidean")
    settings = dataclasses.replace(SETTINGS, thresholds={"cos": 0.7})
    audit = run_audit(pair_folders(tmp_path / "o", tmp_path / "r"), settings, judges=[broken])
    assert audit.pictures[0].failed
    assert "cannot be judged" in audit.pictures[0].problem


def test_the_report_holds_everything_and_no_picture_unless_asked(folders, tmp_path):
    originals, released = folders
    save(originals / "<b>x.png", picture(face(11)))
    save(released / "<b>x.png", picture(face(11)))
    audit = judged(released, originals)
    files = write_audit(audit, tmp_path / "report", limit=60, title="released")
    page, data, table = (path.read_text() for path in files)
    assert "<b>x.png" not in page
    assert "&lt;b&gt;x.png" in page
    assert "data:image/jpeg" not in page
    assert page.count("data:image/png;base64,") == 1
    assert "http" not in page.replace("http-equiv", "")
    assert str(tmp_path) not in page + data + table
    assert "Failed: 70.0 %" in page
    content = json.loads(data)
    assert content["passed"] is False
    assert len(content["verdicts"]) == 10
    assert content["withheld"] == ["d.png"]
    rows = list(csv.DictReader(table.splitlines()))
    assert sum(row["status"] == "missed" for row in rows) == 3
    assert [row["problem"] != "" for row in rows if row["picture"] == "e.png"] == [True]
    assert "Passed" in html_report(audit, limit=80, title="released")
    shown = html_report(audit, limit=80, title="released", thumbnails="released")
    both = html_report(audit, limit=80, title="released", thumbnails="both")
    assert both.count("data:image/jpeg") > shown.count("data:image/jpeg") > 0
    with pytest.raises(OutputError):
        write_audit(audit, tmp_path / "report", limit=60, title="released")
    with pytest.raises(OutputError, match="inside"):
        refuse_inside(released / "report", [released])


def test_the_command_leaves_with_8_when_too_many_fail(folders, tmp_path, capsys, monkeypatch):
    originals, released = folders
    monkeypatch.setattr(audit_module, "load_recogniser", judge)
    words = ["audit", str(released), "--originals", str(originals), "--judges", "cos,two", "--threshold", "cos=.7"]
    words += ["--threshold", "two=0.7", "--quiet"]
    assert main([*words, "-o", str(tmp_path / "one")]) == 8
    assert "9 pictures, 66.7 % fail" in capsys.readouterr().out
    assert main([*words, "-o", str(tmp_path / "two"), "--fail-above", "70"]) == 0
    assert (tmp_path / "two" / "audit.html").is_file()
    assert main([*words, "-o", str(tmp_path / "two")]) == 7
    assert main([*words, "-o", str(released / "report")]) == 7
    assert main([*words, "-o", str(tmp_path / "three"), "--fail-above", "200"]) == 2
    assert main(["audit", str(tmp_path / "none"), "--originals", str(originals), "-o", str(tmp_path / "x")]) == 2
    assert not (tmp_path / "three").exists()
