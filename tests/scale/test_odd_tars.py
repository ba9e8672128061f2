"""Tar shards as people make them: links, dots in names, what a Mac adds, other formats. No picture gets lost."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from facezoo.cli import main
from facezoo.data.tars import Sample, read_samples
from facezoo.errors import InputError
from tests.scale.pictures import picture
from tests.scale.test_parts import COMMAND, members


def add(tar: tarfile.TarFile, name: str, data: bytes = b"", link: str = "", kind: bytes = tarfile.SYMTYPE) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    if link:
        info.type, info.linkname = kind, link
    tar.addfile(info, io.BytesIO(data))


def samples(path: Path, **options: bool) -> list[Sample]:
    with path.open("rb") as stream:
        return list(read_samples(stream, **options))


def as_kind(data: bytes, kind: str) -> bytes:
    stream = io.BytesIO()
    Image.open(io.BytesIO(data)).convert("RGB").save(stream, kind)
    return stream.getvalue()


def test_links_stand_for_their_files_and_broken_ones_fail(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        add(tar, "in/0.png", picture(0))
        add(tar, "in/1.png", link="0.png")
        add(tar, "2.png", link="in/0.png", kind=tarfile.LNKTYPE)
        add(tar, "3.png", link="in/1.png")
        add(tar, "4.png", link="/etc/passwd")
        add(tar, "5.png", link="../outside.png")
        add(tar, "6.png", link="7.png")
        add(tar, "7.png", link="6.png")
        add(tar, "8.png", link="9.png")
        add(tar, "9.png", picture(1))
        add(tar, "again", link="in")
    found = samples(tmp_path / "a.tar")
    good = {s.name: s.picture() for s in found if s.name not in ("4", "5", "6", "7")}
    assert {name: member.data for name, member in good.items() if member} == {
        **dict.fromkeys(["in/0", "in/1", "2", "3"], picture(0)),
        **dict.fromkeys(["8", "9"], picture(1)),
    }
    for sample, reason in ((found[4], "not in the tar"), (found[5], "not in the tar"), (found[6], "circle")):
        with pytest.raises(InputError, match=reason):
            sample.picture()

    out = tmp_path / "out"
    assert main([*COMMAND, str(tmp_path / "a.tar"), "-o", str(out), "--part", "3"]) == 2
    names = {name for name in members(out) if name.endswith(".png")}
    assert names == {"in/0.png", "in/1.png", "2.png", "3.png", "8.png", "9.png"}
    failed = {row["name"]: row for row in map(json.loads, (out / "failed.jsonl").read_text().splitlines())}
    assert set(failed) == {"4", "5", "6", "7"}
    assert "/etc/passwd, which is not in the tar file" in failed["4"]["message"]


def test_dots_in_names_never_merge_two_pictures(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for camera in (0, 1, 2):
            add(tar, f"train/2023.05.01.cam{camera}.png", picture(camera))
            add(tar, f"train/2023.05.01.cam{camera}.cls", str(camera).encode())
        add(tar, "train/2023.json", b"{}")
        add(tar, "x.left.png", picture(3))
        add(tar, "x.right.jpg", as_kind(picture(4), "JPEG"))
        add(tar, "plain.png", picture(5))
        add(tar, "plain.cls", b"5")
    with_bytes, places = samples(tmp_path / "a.tar"), samples(tmp_path / "a.tar", contents=False)
    assert [(s.name, s.start, sorted(s.members)) for s in with_bytes] == [
        (s.name, s.start, sorted(s.members)) for s in places
    ]
    first = with_bytes[0]
    assert (first.name, sorted(first.members)) == ("train/2023.05.01.cam0", [".cls", ".json", ".png"])
    for part in ("1", "2", "50"):
        out = tmp_path / f"out{part}"
        command = [*COMMAND, str(tmp_path / "a.tar"), "-o", str(out), "--part", part, "--keep-columns", "cls"]
        assert main(command) == 0
        found = members(out)
        assert {name for name in found if name.endswith(".png")} == {
            *(f"train/2023.05.01.cam{n}.png" for n in range(3)),
            *("x.left.png", "x.right.png", "plain.png"),
        }
        assert {name: data for name, data in found.items() if name.endswith(".cls")} == {
            **{f"train/2023.05.01.cam{n}.cls": str(n).encode() for n in range(3)},
            "plain.cls": b"5",
        }


def test_two_pictures_of_one_name_are_told_and_counted(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        add(tar, "a.png", picture(0))
        add(tar, "a.jpg", as_kind(picture(1), "JPEG"))
    out = tmp_path / "out"
    assert main([*COMMAND, str(tmp_path / "a.tar"), "-o", str(out)]) == 2
    (row,) = map(json.loads, (out / "failed.jsonl").read_text().splitlines())
    assert "several pictures: a.png, a.jpg" in row["message"]


def test_what_a_mac_adds_is_left_out_and_content_decides(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        add(tar, "./._0000.png", b"\0\5\x16\7" + bytes(60))
        add(tar, "./0000.png", picture(0))
        add(tar, "./.DS_Store", b"\0\0\0\x01Bud1")
        add(tar, "__MACOSX/._0000.png", b"\0\5\x16\7" + bytes(60))
        add(tar, "b.AVIF", as_kind(picture(1), "AVIF"))
        add(tar, "c.jfif", as_kind(picture(2), "JPEG"))
        add(tar, "d.img", picture(3))
        add(tar, "e.heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
        add(tar, "f.txt", b"words")
    out = tmp_path / "out"
    assert main([*COMMAND, str(tmp_path / "a.tar"), "-o", str(out)]) == 2
    assert {name for name in members(out) if name.endswith(".png")} == {"./0000.png", "b.png", "c.png", "d.png"}
    failed = {row["name"]: row["message"] for row in map(json.loads, (out / "failed.jsonl").read_text().splitlines())}
    assert set(failed) == {"e", "f"}
    assert "no picture" in failed["f"]


def test_compressed_shards_are_not_left_out_in_silence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = tmp_path / "shards"
    shards.mkdir()
    for name, mode in (("a.tar", "w"), ("b.tar.gz", "w:gz")):
        with tarfile.open(shards / name, mode) as tar:  # type: ignore[call-overload]
            add(tar, "0.png", picture(0))
    assert main([*COMMAND, str(shards), "-o", str(tmp_path / "out")]) == 2
    assert "b.tar.gz is compressed" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
