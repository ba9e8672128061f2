"""A data set in parts: what is in the output, what is not, what a second run does, what a dying process does."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from facezoo.cli import main
from facezoo.keys import Key
from facezoo.records import PictureRecord
from facezoo.scale.parts import PartWorker, Run, find_inputs, plan_run
from tests.scale.pictures import empty_picture, picture, pixels, write_tar

COMMAND = ["anonymize-dataset", "--model", "gaussian_blur", "--verify", "off", "--no-ray", "-q"]


def members(folder: Path) -> dict[str, bytes]:
    """All files of all parts' tar files; a name that comes twice is an error."""
    found: dict[str, bytes] = {}
    for path in sorted(folder.glob("part-*/pictures.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                assert member.name not in found
                handle = tar.extractfile(member)
                assert handle is not None
                found[member.name] = handle.read()
    return found


def test_tar_in_and_out(tmp_path: Path, capsys):
    """Good pictures come out changed, with a record of exactly these bytes; the others are named and not there."""
    originals = [picture(0), empty_picture(), b"no picture", picture(1), picture(2)]
    write_tar(tmp_path / "a.tar", originals[:3])
    write_tar(tmp_path / "b.tar", originals[3:], start=3)
    out = tmp_path / "out"
    words = [*COMMAND, str(tmp_path / "a.tar"), str(tmp_path / "b.tar"), "-o", str(out), "--part", "2"]
    words += ["--keep-columns", "cls"]
    assert main(words) == 1, "failures of two kinds"
    found = members(out)
    assert sorted(found) == sorted(f"{n:05d}{e}" for n in (0, 3, 4) for e in (".png", ".cls", ".facezoo.json"))
    for number in (0, 3, 4):
        data = found[f"{number:05d}.png"]
        before, after = pixels(originals[number]), pixels(data)
        assert before.shape == after.shape
        assert np.abs(before.astype(int) - after).max() > 20, "a face is gone"
        assert PictureRecord.from_json(found[f"{number:05d}.facezoo.json"]).belongs_to(data)
    failures = [json.loads(line) for line in (out / "failed.jsonl").read_text().splitlines()]
    assert [(f["row"], f["name"], f["exit_code"]) for f in failures] == [(1, "00001", 3), (2, "00002", 2)]
    assert json.loads((out / "summary.json").read_text()) == {
        "parts": 3,
        "missing": 0,
        "done": 3,
        "failed": 2,
        "skipped": 0,
        "exit_codes": [2, 3],
    }
    assert not (out / ".work").exists()

    times = {path: path.stat().st_mtime_ns for path in out.glob("part-*/*")}
    lost = out / "part-000001"
    for path in lost.iterdir():
        path.unlink()
    lost.rmdir()
    assert main(words) == 1
    assert members(out).keys() == found.keys()
    assert {p for p, t in times.items() if p.stat().st_mtime_ns != t} == {p for p in times if p.parent == lost}

    capsys.readouterr()
    assert main([*words, "--option", "strength=0.9"]) != 0
    assert main([word if word != "2" else "3" for word in words]) == 7
    assert "another run" in capsys.readouterr().err


def test_without_a_face_skipped_or_copied(tmp_path: Path):
    write_tar(tmp_path / "a.tar", [empty_picture()])
    for how, names in (("skip", []), ("copy", ["00000.facezoo.json", "00000.png"])):
        words = [*COMMAND, str(tmp_path / "a.tar"), "-o", str(tmp_path / how), "--allow-no-face", how]
        assert main(words) == 0
        assert sorted(members(tmp_path / how)) == names


def small_run(tmp_path: Path, **changes: object) -> tuple[Run, list]:
    from facezoo.batch import Settings

    write_tar(tmp_path / "a.tar", [picture(0), picture(1)])
    salt = "AAAAAAAAAAAAAAAAAAAAAA=="
    settings = Settings(task="anonymize", model="gaussian_blur", verify="off", file_format="png", salt=salt)
    run = Run(kind="tar", output=str(tmp_path / "out"), settings=settings, **changes)
    return plan_run(run, find_inputs([str(tmp_path / "a.tar")])[0], "f", 8)


def test_part_done_twice_is_there_once(tmp_path: Path, monkeypatch):
    """A process that was thought lost finishes too: the first stays, byte for byte, and both tell the same."""
    run, (part,) = small_run(tmp_path)
    first, second = PartWorker(run), PartWorker(run)
    report = first.do(part)
    before = (tmp_path / "out" / part.name / "pictures.tar").read_bytes()
    real = Path.exists
    monkeypatch.setattr(Path, "exists", lambda path: path.name != "report.json" and real(path))
    monkeypatch.setattr("facezoo.scale.parts._read_json", lambda path: json.loads(path.read_text()))
    second.do(part)
    monkeypatch.undo()
    assert (tmp_path / "out" / part.name / "pictures.tar").read_bytes() == before
    assert first.do(part) == report
    assert [path.name for path in (tmp_path / "out" / ".work").iterdir()] == []


def test_picture_that_kills_is_given_up(tmp_path: Path):
    """The journal names it: after three deaths over one picture the others get through."""
    run, (part,) = small_run(tmp_path)
    worker = PartWorker(run)
    journal = worker._journal(part)
    journal.write_text("attempt\n0\n1\n" * 3)  # what three processes leave that died over the second picture
    report = worker.do(part)
    assert (report["done"], report["failed"]) == (1, 1)
    failure = json.loads((tmp_path / "out" / part.name / "failed.jsonl").read_text())
    assert failure["row"] == 1
    assert "died 3 times" in failure["message"]


def test_key_is_compared_and_stays_out_of_what_travels(tmp_path: Path):
    from facezoo.errors import KeyMaterialError

    path = tmp_path / "my.key"
    key = Key.generate_file(path)
    run, _ = small_run(tmp_path, key_file=str(path))
    run = run.with_key_id(key.key_id(b"\0" * 16))
    assert key._master.hex() not in json.dumps(run.to_dict())
    assert path.read_text().strip().partition(":")[2] not in json.dumps(run.to_dict()) + repr(run)
    assert Run.from_dict(json.loads(json.dumps(run.to_dict()))) == run
    PartWorker(run)
    path.unlink()
    Key.generate_file(path)
    with pytest.raises(KeyMaterialError, match="another key on this machine"):
        PartWorker(run)


def test_keys_that_many_processes_cannot_read(tmp_path: Path, capsys, monkeypatch):
    write_tar(tmp_path / "a.tar", [picture(0)])
    monkeypatch.setenv("FACEZOO_KEY", "a long enough passphrase")
    words = [*COMMAND, str(tmp_path / "a.tar"), "-o", str(tmp_path / "out"), "--seal"]
    assert main(words) == 4
    assert main([*words, "--key-file", "-"]) == 4
    assert "--key-file" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_parquet(tmp_path: Path):
    """Row groups of uneven length, parts that tear them apart, only the columns that were asked for."""
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [{"image": {"bytes": empty_picture(), "path": "x"}, "label": n, "who": "Ada"} for n in range(23)]
    rows[13]["image"]["bytes"] = picture(0)
    rows[22]["image"]["bytes"] = None
    with parquet.ParquetWriter(tmp_path / "in.parquet", arrow.Table.from_pylist(rows[:1]).schema) as writer:
        for first, last in ((0, 3), (3, 4), (4, 21), (21, 23)):
            writer.write_table(arrow.Table.from_pylist(rows[first:last], schema=writer.schema))
    out = tmp_path / "out"
    words = [*COMMAND, str(tmp_path / "in.parquet"), "-o", str(out), "--part", "3", "--keep-columns", "label"]
    assert main([*words, "--allow-no-face", "copy"]) == 2
    table = arrow.concat_tables(parquet.read_table(path) for path in sorted(out.glob("part-*/pictures.parquet")))
    assert table.column_names == ["source", "row", "image", "record", "label"]
    assert table["row"].to_pylist() == table["label"].to_pylist() == list(range(22))
    changed = [n for n, data in enumerate(table["image"].to_pylist()) if n == 13 and pixels(data).std() > 0]
    assert changed == [13]
    assert np.abs(pixels(table["image"][13].as_py()).astype(int) - pixels(rows[13]["image"]["bytes"])).max() > 20
    assert [json.loads(line)["row"] for line in (out / "failed.jsonl").read_text().splitlines()] == [22]
    assert max(json.loads(p.read_text())["pictures"] for p in out.glob("part-*/report.json")) <= 12
