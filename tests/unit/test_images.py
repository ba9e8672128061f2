"""What a file is by its content, and which files of a folder are pictures."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from facezoo.errors import InputError
from facezoo.faces.picture import load_picture
from facezoo.images.folders import find_pictures, walk_folder
from facezoo.images.formats import FORMATS, file_format, is_text

RAMP = Image.fromarray(np.tile(np.linspace(0, 255, 40).astype(np.uint8), (24, 1))).convert("RGB")
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(400)


def save(path: Path, kind: str, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    RAMP.save(path, kind, **options)
    return path


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000"])
def test_content_decides_whatever_the_ending(kind: str, tmp_path: Path) -> None:
    for name in ("x.jpg", "x.png", "x.heic", "x.mp4", "x.txt", "noext", "x.dat"):
        path = save(tmp_path / name, kind)
        assert load_picture(path).size == (40, 24)
        assert find_pictures(tmp_path) == [name]
        path.unlink()


@pytest.mark.parametrize(
    ("head", "name", "kind"),
    [
        (HEIC, "a.jpg", "heic"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf", "a.heic", "avif"),
        (b"\0\0\0\x18ftypmp42" + bytes(50), "a.jpg", "video"),
        (b"\0\0\0\x14ftypqt  " + bytes(50), "", "video"),
        (b"RIFF\0\0\0\0AVI LIST", "a.webp", "video"),
        (b"II*\0" + bytes(400), "a.DNG", "raw"),
        (b"II*\0" + bytes(400), "a.tif", "tiff"),
        (b"II*\0\x10\0\0\0CR\2\0" + bytes(40), "a.tif", "raw"),
        # A first directory that calls its picture a preview (NewSubfileType 1), as a camera's raw file does.
        (b"II*\0\x08\0\0\0\x01\0\xfe\0\x04\0\x01\0\0\0\x01\0\0\0" + bytes(4), "a.tif", "raw"),
        (b"\0\0\0\x18ftypcrx " + bytes(50), "", "raw"),
        (b"\0\x05\x16\7" + bytes(60), "._a.jpg", "housekeeping"),
        (bytes(100), "Thumbs.db", "housekeeping"),
        (b"%PDF-1.4", "a.jpg", "pdf"),
        (b'<?xml version="1.0"?><svg xmlns="x">', "a.txt", "svg"),
        (b"", "a.jpg", "jpeg"),
        (b"words", "a.mov", "video"),
        (b"BMW is a brand of cars", "brands", None),
        (b"P3 is where we parked", "notes", None),
        (b"words", "a.txt", None),
    ],
)
def test_signatures(head: bytes, name: str, kind: str | None) -> None:
    found = file_format(head, name)
    assert (found and found.name) == kind


def test_a_picture_does_not_print_its_pixels() -> None:
    assert repr(load_picture(np.zeros((24, 40, 3), np.uint8))) == "<facezoo.Picture: 40x24, array>"


def test_texts_and_binaries() -> None:
    assert is_text("Grüße\n".encode())
    assert is_text(("ab" * 2047 + "ü").encode()[:4095])  # the last letter is cut in two
    assert is_text(b"")
    assert not is_text(bytes(range(256)))


def test_every_ending_belongs_to_one_format() -> None:
    endings = [ending for entry in FORMATS for ending in entry.endings]
    assert len(endings) == len(set(endings))
    assert all(ending == ending.lower() and ending.startswith(".") for ending in endings)


def test_a_folder_as_people_have_it(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    for name in ("a.JPG", "b.jfif", "c.pjpeg", "d.mpo", "noext", "deep/er/e.png", "fake_folder.jpg/in.jpg"):
        save(root / name, "PNG" if name.endswith("png") else "JPEG")
    (root / "cut.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    (root / "empty.jpg").write_bytes(b"")
    (root / "._a.JPG").write_bytes(b"\0\x05\x16\7" + bytes(60))
    (root / ".hidden").mkdir()
    save(root / ".hidden" / "h.jpg", "JPEG")
    (root / "clip.MOV").write_bytes(b"\0\0\0\x14ftypqt  " + bytes(50))
    (root / "new.jxl").write_bytes(b"\xff\x0a" + bytes(60))
    (root / "blob").write_bytes(bytes(range(256)))
    (root / "notes.txt").write_text("words")
    (root / "Thumbs.db").write_bytes(bytes(60))
    (root / "a.JPG.facezoo.json").write_text("{}")
    (root / "broken.jpg").symlink_to("nowhere.jpg")
    os.mkfifo(root / "pipe.jpg")
    listing = walk_folder(root)
    assert listing.pictures == (
        *("a.JPG", "b.jfif", "c.pjpeg", "cut.jpg", "d.mpo", "deep/er/e.png", "empty.jpg"),
        *("fake_folder.jpg/in.jpg", "noext"),
    )
    told = {item.name: item for item in listing.left_out}
    assert {name for name, item in told.items() if item.counts} == {
        *("clip.MOV", "new.jxl", "blob", "broken.jpg", "pipe.jpg"),
    }
    assert {name for name, item in told.items() if not item.counts} == {
        *("._a.JPG", ".hidden", "notes.txt", "Thumbs.db", "a.JPG.facezoo.json"),
    }
    assert "video" in told["clip.MOV"].reason
    assert "JPEG XL" in told["new.jxl"].reason
    assert ".hidden/h.jpg" in walk_folder(root, hidden=True).pictures
    with pytest.raises(InputError, match="no folder"):
        walk_folder(root / "none")


def test_linked_folders_are_followed_once_and_never_in_a_circle(tmp_path: Path) -> None:
    root, other = tmp_path / "photos", tmp_path / "elsewhere"
    save(root / "in" / "a.jpg", "JPEG")
    save(other / "b.jpg", "JPEG")
    (root / "loop").symlink_to(".")
    (root / "in" / "up").symlink_to("..")
    (root / "a_link_to_in").symlink_to("in")
    (root / "far").symlink_to(other)
    (root / "far_again").symlink_to(other)
    (other / "back").symlink_to(root)
    (root / "file.jpg").symlink_to(other / "b.jpg")
    listing = walk_folder(root)
    assert listing.pictures == ("far/b.jpg", "file.jpg", "in/a.jpg")
    assert all("already" in item.reason and not item.counts for item in listing.left_out)
    assert len(listing.left_out) == 5


def test_the_output_folder_inside_the_input_is_not_walked(tmp_path: Path) -> None:
    save(tmp_path / "a.jpg", "JPEG")
    save(tmp_path / "out" / "b.jpg", "JPEG")
    assert walk_folder(tmp_path, without=tmp_path / "out").pictures == ("a.jpg",)


def test_heic_is_read_with_its_extra_and_told_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    path = tmp_path / "IMG_1.jpg"
    pillow_heif.from_pillow(RAMP).save(path.with_suffix(".heic"), quality=90)
    path.write_bytes(path.with_suffix(".heic").read_bytes())
    picture = load_picture(path)
    assert (picture.size, picture.format) == ((40, 24), "heic")
    assert np.abs(picture.pixels.astype(int) - np.asarray(RAMP)).mean() < 4
    with pytest.raises(InputError, match="damaged"):
        load_picture(HEIC)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"is HEIC, which needs pip install 'facezoo\[heic\]'"):
        load_picture(path)
    assert find_pictures(tmp_path) == []


def test_raw_files_are_developed_with_their_extra_and_told_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("rawpy")
    path = tmp_path / "IMG_1.DNG"
    path.write_bytes(dng())
    picture = load_picture(path)
    assert picture.format == "raw"
    assert picture.size == (64, 48)
    assert picture.pixels.std() > 5
    path.write_bytes(b"II*\0" + bytes(3000))
    with pytest.raises(InputError, match="damaged"):
        load_picture(path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs pip install 'facezoo\[raw\]'"):
        load_picture(path)


def dng(width: int = 64, height: int = 48) -> bytes:
    """The smallest raw file that a developer reads: one plain Bayer plane of 16 bits, a ramp."""
    plane = np.tile(np.linspace(500, 60_000, width).astype("<u2"), (height, 1)).tobytes()
    rationals = b"".join(int(v * 10_000).to_bytes(4, "little", signed=True) + (10_000).to_bytes(4, "little")
                         for v in (1, 0, 0, 0, 1, 0, 0, 0, 1))  # fmt: skip
    entries: list[tuple[int, int, int, bytes]] = [
        (0xFE, 4, 1, (0).to_bytes(4, "little")),
        (0x100, 4, 1, width.to_bytes(4, "little")),
        (0x101, 4, 1, height.to_bytes(4, "little")),
        (0x102, 3, 1, (16).to_bytes(4, "little")),
        (0x103, 3, 1, (1).to_bytes(4, "little")),
        (0x106, 3, 1, (32803).to_bytes(4, "little")),
        (0x111, 4, 1, b"DATA"),
        (0x115, 3, 1, (1).to_bytes(4, "little")),
        (0x116, 4, 1, height.to_bytes(4, "little")),
        (0x117, 4, 1, len(plane).to_bytes(4, "little")),
        (0x828D, 3, 2, b"\2\0\2\0"),
        (0x828E, 1, 4, b"\0\1\1\2"),
        (0xC612, 1, 4, b"\1\4\0\0"),
        (0xC614, 2, 4, b"Cam\0"),
        (0xC61D, 4, 1, (65535).to_bytes(4, "little")),
        (0xC621, 10, 9, b"MATX"),
    ]
    start = 8 + 2 + 12 * len(entries) + 4
    places = {b"DATA": start + len(rationals), b"MATX": start}
    head = b"II*\0" + (8).to_bytes(4, "little") + len(entries).to_bytes(2, "little")
    for tag, kind, count, value in entries:
        value = places[value].to_bytes(4, "little") if value in places else value
        head += tag.to_bytes(2, "little") + kind.to_bytes(2, "little") + count.to_bytes(4, "little") + value
    return head + bytes(4) + rationals + plane
