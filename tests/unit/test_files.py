"""Files are written whole or not at all, and every refusal is one clear line."""

from __future__ import annotations

import errno
import os
import pickle
import stat
from pathlib import Path

import pytest

from facezoo import errors, files
from facezoo.errors import FacezooError, InputError, NoFaceError, OutputError
from facezoo.files import atomic_write, check_output, sha256_bytes, sha256_file


def test_exit_codes_are_those_of_the_table() -> None:
    codes = {
        name: getattr(errors, name).exit_code for name in errors.__all__ if issubclass(getattr(errors, name), Exception)
    }
    assert codes == {
        "FacezooError": 1,
        "InputError": 2,
        "UnknownNameError": 2,
        "NoFaceError": 3,
        "KeyMaterialError": 4,
        "CheckpointError": 5,
        "RecordError": 6,
        "OutputError": 7,
    }
    assert issubclass(NoFaceError, InputError)


def test_message_is_one_line_and_survives_a_worker_process() -> None:
    error = InputError("cannot read a\nb.png:\r\nno  picture")
    assert str(error) == error.message == "cannot read a b.png: no  picture"
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is InputError
    assert str(copy) == str(error)


def test_writes_all_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    assert atomic_write(path, b"one") == path
    assert path.read_bytes() == b"one"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.bin"]


def test_existing_file_is_kept_unless_overwriting_is_allowed(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(OutputError, match=r"exists already.*--overwrite"):
        atomic_write(path, b"new")
    assert path.read_bytes() == b"old"
    atomic_write(path, b"new", overwrite=True)
    assert path.read_bytes() == b"new"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_file_that_appears_while_writing_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.bin"
    real = os.fsync

    def another_writer(descriptor: int) -> None:
        path.write_bytes(b"theirs")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", another_writer)
    with pytest.raises(OutputError, match="exists already"):
        atomic_write(path, b"ours")
    monkeypatch.undo()
    assert path.read_bytes() == b"theirs"
    assert len(list(tmp_path.iterdir())) == 1


def test_works_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    path = tmp_path / "a.bin"
    atomic_write(path, b"one")
    with pytest.raises(OutputError, match="exists already"):
        atomic_write(path, b"two")
    assert path.read_bytes() == b"one"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "disk is full"),
        (errno.EDQUOT, "quota"),
        (errno.EACCES, "permission denied"),
        (errno.EROFS, "read-only"),
        (errno.EIO, "another path"),
    ],
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_failing_disk_leaves_no_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str, overwrite: bool
) -> None:
    path = tmp_path / "a.bin"
    if overwrite:
        path.write_bytes(b"old")

    def fail(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OutputError, match=words) as caught:
        atomic_write(path, b"new", overwrite)
    assert str(path) in str(caught.value)
    assert [entry.read_bytes() for entry in tmp_path.iterdir()] == ([b"old"] if overwrite else [])


def test_keyboard_interrupt_leaves_no_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        atomic_write(tmp_path / "a.bin", b"new")
    assert list(tmp_path.iterdir()) == []


def test_refuses_what_is_no_place_for_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    cases = {
        tmp_path: "it is a folder",
        tmp_path / "missing" / "a": "does not exist",
        tmp_path / "file" / "a": "not a folder",
        tmp_path / ("x" * 300): "too long",
        Path("/dev/null"): "not a regular file",
    }
    for path, words in cases.items():
        for call in (lambda p: check_output(p, True), lambda p: atomic_write(p, b"x", True)):
            with pytest.raises(OutputError, match=words):
                call(path)
    with pytest.raises(OutputError):
        atomic_write(str(tmp_path / "a\x00b"), b"x")
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_unwritable_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # By patching, because root may write everywhere.
    monkeypatch.setattr(files.os, "access", lambda *_: False)
    with pytest.raises(OutputError, match="permission denied"):
        check_output(tmp_path / "a")


def test_makes_folders_only_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "b" / "c" / "a.bin"
    check_output(path, make_parents=True)
    assert not (tmp_path / "b").exists()
    atomic_write(path, b"x", make_parents=True)
    assert path.read_bytes() == b"x"


@pytest.mark.skipif(os.name != "posix", reason="permission bits are POSIX")
def test_mode_is_narrow_from_the_start_and_kept_when_replacing(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    atomic_write(path, b"x", mode=0o600)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    atomic_write(path, b"y", overwrite=True)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    umask = os.umask(0o027)
    try:
        atomic_write(tmp_path / "plain", b"x")
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "plain").stat().st_mode) == 0o640


def test_symbolic_link_stands_for_its_target(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"old")
    link = tmp_path / "link"
    link.symlink_to(target)
    with pytest.raises(OutputError, match="exists"):
        atomic_write(link, b"new")
    atomic_write(link, b"new", overwrite=True)
    assert link.is_symlink()
    assert target.read_bytes() == b"new"


def test_sha256(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_file(path) == sha256_bytes(b"abc") == known
    with pytest.raises(FacezooError, match="cannot read"):
        sha256_file(tmp_path / "missing")
