"""Good runs: files, folders, resuming, keep-list, sealing, workers, keys from pipes; and the small commands."""

from __future__ import annotations

import io
import json
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from facezoo.records import read_embedded, read_sidecar, sidecar_path
from tests.cli.conftest import files_under, portrait

BLUR = ("--model", "gaussian_blur", "--verify", "off")


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """A tree: two pictures with a face, one of them in a sub-folder, and a text file."""
    folder = tmp_path / "album"
    (folder / "trip").mkdir(parents=True)
    portrait().save(folder / "a.png")
    portrait("obama.jpg").save(folder / "trip" / "b.jpg", quality=95)
    (folder / "notes.txt").write_text("not a picture")
    return folder


def test_one_file_and_its_record(cli, face_file, tmp_path):
    target = tmp_path / "x.png"
    run = cli("anonymize", face_file, "-o", target, "--model", "gaussian_blur", "--option", "sigma=20")
    assert run.code == 0, run.err
    assert "1 face anonymized" in run.out
    record = read_sidecar(target)
    assert record.belongs_to(target)
    assert record.key_id is None
    assert record.options["method"]["sigma"] == 20
    assert record.options["run"]["verify"] == {"mode": "on", "detector": "centerface", "added": 0}
    before, after = pixels(face_file), pixels(target)
    x0, y0, x1, y1 = (int(value) for value in record.faces[0].box)
    assert np.abs(before[y0:y1, x0:x1].astype(int) - after[y0:y1, x0:x1]).mean() > 5
    assert (before[-40:] == after[-40:]).all()  # far from the face nothing changed


def test_folder_is_mirrored_and_resumed(cli, album, tmp_path):
    out = tmp_path / "out"
    first = cli("anonymize", album, "-o", out, *BLUR)
    assert first.code == 0, first.err
    assert "no pictures were left out: 1" in first.err
    expected = ["a.png", "a.png.facezoo.json", "trip/b.jpg", "trip/b.jpg.facezoo.json"]
    assert files_under(out) == expected
    stamps = {name: (out / name).stat().st_mtime_ns for name in expected}

    again = cli("anonymize", album, "-o", out, *BLUR)
    assert again.code == 0, again.err
    assert "2 finished before" in again.out
    assert stamps == {name: (out / name).stat().st_mtime_ns for name in expected}

    # One is lost, and the run is repeated: only that one is made again.
    (out / "trip" / "b.jpg").unlink()
    third = cli("anonymize", album, "-o", out, *BLUR)
    assert third.code == 0, third.err
    assert files_under(out) == expected
    assert (out / "a.png").stat().st_mtime_ns == stamps["a.png"]

    # Other settings, another input: refused, with the output untouched.
    other = cli("anonymize", album, "-o", out, *BLUR, "--option", "sigma=30")
    assert other.code == 7
    assert "--overwrite" in other.err
    portrait("biden.jpg").save(album / "a.png")
    changed = cli("anonymize", album, "-o", out, *BLUR)
    assert changed.code == 7
    assert "a.png" in changed.err
    assert "b.jpg" not in changed.err
    assert (out / "a.png").stat().st_mtime_ns == stamps["a.png"]


def test_failures_of_a_folder_are_listed_and_leave_nothing(cli, album, empty_scene, tmp_path):
    (album / "broken.png").write_bytes((album / "a.png").read_bytes()[:5000])
    (album / "ramp.png").write_bytes(empty_scene.read_bytes())
    out = tmp_path / "out"
    run = cli("anonymize", album, "-o", out, *BLUR)
    assert run.code == 1  # two different errors
    assert "broken.png" in run.err
    assert "ramp.png" in run.err
    assert "2 of 4 pictures failed" in run.err
    assert [name for name in files_under(out) if not name.endswith(".json")] == ["a.png", "trip/b.jpg"]
    assert not any("broken" in name or "ramp" in name or "tmp" in name for name in files_under(out))


def test_pictures_without_faces_are_copied_or_skipped_when_asked(cli, empty_scene, tmp_path):
    target = tmp_path / "x.png"
    skipped = cli("anonymize", empty_scene, "-o", target, *BLUR, "--allow-no-face", "skip")
    assert skipped.code == 0
    assert not target.exists()
    copied = cli("anonymize", empty_scene, "-o", target, *BLUR, "--allow-no-face", "copy")
    assert copied.code == 0
    assert (pixels(target) == pixels(empty_scene)).all()
    assert read_sidecar(target).options["run"]["no_face"] == "copy"


def test_same_names_do_not_collide(cli, tmp_path):
    folder = tmp_path / "twins"
    folder.mkdir()
    portrait().save(folder / "a.png")
    portrait("obama.jpg").save(folder / "a.jpg")
    out = tmp_path / "out"
    assert cli("anonymize", folder, "-o", out, *BLUR, "--no-record").code == 0
    assert files_under(out) == ["a.jpg", "a.png"]
    out = tmp_path / "png"
    assert cli("anonymize", folder, "-o", out, *BLUR, "--no-record", "--format", "png").code == 0
    assert files_under(out) == ["a.jpg.png", "a.png.png"]


def test_sealed_originals_come_back_bit_by_bit(cli, tmp_path, key_file):
    source = tmp_path / "group.png"
    wide = Image.new("RGB", (600, 336))
    wide.paste(portrait(), (0, 0))
    wide.paste(portrait("obama.jpg"), (300, 0))
    wide.save(source)
    anon, back = tmp_path / "anon.png", tmp_path / "back.png"
    sealed = cli("anonymize", source, "-o", anon, *BLUR, "--seal", "--key-file", key_file)
    assert sealed.code == 0, sealed.err
    assert not (pixels(anon) == pixels(source)).all()
    assert read_sidecar(anon).key_id is not None
    # The blur destroys the faces: what comes back comes out of the record.
    recovered = cli("recover", anon, "-o", back, "--key-file", key_file)
    assert recovered.code == 0, recovered.err
    assert "face 2: code verified; restored from the sealed original" in recovered.out
    assert (pixels(back) == pixels(source)).all()

    # A changed record and a wrong key are refused.
    sidecar = sidecar_path(anon)
    content = json.loads(sidecar.read_text())
    content["faces"][0]["box"][0] += 1
    good = sidecar.read_text()
    sidecar.write_text(json.dumps(content))
    assert cli("recover", anon, "-o", tmp_path / "b2.png", "--key-file", key_file).code == 6
    sidecar.write_text(good)
    cli("key", "new", tmp_path / "other.key")
    assert cli("recover", anon, "-o", tmp_path / "b2.png", "--key-file", tmp_path / "other.key").code == 4
    assert not (tmp_path / "b2.png").exists()


def test_learned_model_with_embedded_record_and_without_any(cli, face_file, tiny_model, key_file, tmp_path):
    anon = tmp_path / "anon.png"
    arguments = ("--model", tiny_model, "--key-file", key_file)
    made = cli("anonymize", face_file, "-o", anon, *arguments, "--verify", "off", "--embed-record", "--no-record")
    assert made.code == 0, made.err
    assert not sidecar_path(anon).exists()
    record = read_embedded(anon)
    assert record is not None
    assert record.model == "tiny_swap.test"
    assert record.checkpoint_sha256 is not None

    back = tmp_path / "back.png"
    recovered = cli("recover", anon, "-o", back, *arguments)
    assert recovered.code == 0, recovered.err
    assert "face 1: code verified" in recovered.out
    x0, y0, x1, y1 = (int(value) for value in record.faces[0].box)
    original, after, covered = (pixels(path)[y0:y1, x0:x1].astype(int) for path in (face_file, back, anon))
    assert np.abs(original - after).mean() < 0.25 * np.abs(original - covered).mean()


def test_picture_alone_is_not_recovered_with_the_record_of_another_checkpoint(
    cli, face_file, tiny_model, key_file, tmp_path
):
    from tests.tiny_method import write_tiny_checkpoint

    anon = tmp_path / "anon.png"
    args = ("--model", tiny_model, "--key-file", key_file)
    assert cli("anonymize", face_file, "-o", anon, *args, "--verify", "off").code == 0
    # Another version of the card only: the same weights, so the record holds.
    manifest = tiny_model / "manifest.json"
    changed = json.loads(manifest.read_text()) | {"version": "2.0.0"}
    changed.pop("checksum")
    manifest.write_text(json.dumps(changed))
    assert cli("recover", anon, "-o", tmp_path / "same.png", *args).code == 0
    write_tiny_checkpoint(tiny_model, overwrite=True)  # random parts of it differ
    run = cli("recover", anon, "-o", tmp_path / "back.png", *args)
    assert run.code == 5
    assert "another checkpoint" in run.error_line()


def test_key_from_a_pipe_and_from_the_environment(cli, face_file, tiny_model, tmp_path, monkeypatch):
    passphrase = b"seven slow trains at midnight\n"
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: False, buffer=io.BytesIO(passphrase)))
    args = ("--model", tiny_model, "--verify", "off")
    assert cli("anonymize", face_file, "-o", tmp_path / "x.png", *args, "--key-file", "-").code == 0
    monkeypatch.setenv("FACEZOO_KEY", "seven slow trains at midnight")
    back = cli("recover", tmp_path / "x.png", "-o", tmp_path / "back.png", "--model", tiny_model)
    assert back.code == 0, back.err
    text = sidecar_path(tmp_path / "x.png").read_text()
    assert "trains" not in text


def test_jpeg_of_a_reversible_model_warns(cli, face_file, tiny_model, key_file, tmp_path):
    args = ("--model", tiny_model, "--key-file", key_file, "--verify", "off")
    run = cli("anonymize", face_file, "-o", tmp_path / "x.jpg", *args)
    assert run.code == 0
    assert "JPEG" in run.err


def test_keep_list_leaves_a_person_as_they_are(cli, tmp_path):
    source = tmp_path / "group.png"
    wide = Image.new("RGB", (600, 336))
    wide.paste(portrait(), (0, 0))
    wide.paste(portrait("obama.jpg"), (300, 0))
    wide.save(source)
    keep = tmp_path / "keep"
    keep.mkdir()
    portrait("obama.jpg").resize((450, 504)).save(keep / "him.png")
    run = cli("anonymize", source, "-o", tmp_path / "x.png", *BLUR, "--keep", keep)
    assert run.code == 0, run.err
    assert "1 kept" in run.out
    before, after = pixels(source), pixels(tmp_path / "x.png")
    assert (before[:, 300:] == after[:, 300:]).all()
    assert not (before[:, :300] == after[:, :300]).all()


@pytest.mark.slow
def test_workers_give_the_same_pictures(cli, album, tmp_path, key_file):
    """Two processes, with a key for the seal: it reaches them through a pipe."""
    args = (*BLUR, "--seal", "--key-file", key_file)
    assert cli("anonymize", album, "-o", tmp_path / "one", *args).code == 0
    two = cli("anonymize", album, "-o", tmp_path / "two", *args, "--workers", "2")
    assert two.code == 0, two.err
    for name in ("a.png", "trip/b.png"):
        assert (pixels(tmp_path / "one" / name) == pixels(tmp_path / "two" / name)).all()
    assert cli("recover", tmp_path / "two", "-o", tmp_path / "back", "--key-file", key_file, "--workers", "2").code == 0
    assert (pixels(tmp_path / "back" / "a.png") == pixels(album / "a.png")).all()


def test_recovery_of_a_folder_can_be_repeated(cli, album, tiny_model, key_file, tmp_path):
    anon, back = tmp_path / "anon", tmp_path / "back"
    args = ("--model", tiny_model, "--key-file", key_file)
    assert cli("anonymize", album, "-o", anon, *args, "--verify", "off").code == 0
    assert cli("recover", anon, "-o", back, *args).code == 0
    stamps = {name: (back / name).stat().st_mtime_ns for name in ("a.png", "trip/b.png")}
    (back / "trip" / "b.png").unlink()
    again = cli("recover", anon, "-o", back, *args)
    assert again.code == 0, again.err
    assert "1 of 2 pictures done (1 faces); 1 finished before" in again.out
    assert (back / "a.png").stat().st_mtime_ns == stamps["a.png"]

    # An output that somebody changed, and one that came from another input, are not passed off as finished.
    portrait("obama.jpg").save(back / "a.png")
    changed = cli("recover", anon, "-o", back, *args)
    assert changed.code == 7
    assert "a.png" in changed.err
    assert "b.jpg" not in changed.err
    assert not any(line.count("train") for line in (back / ".facezoo-recovered.jsonl").read_text().splitlines())


def test_the_model_of_a_record_that_is_not_here(cli, face_file, tiny_model, key_file, tmp_path):
    args = ("--key-file", key_file)
    assert (
        cli("anonymize", face_file, "-o", tmp_path / "x.png", "--model", tiny_model, "--verify", "off", *args).code == 0
    )
    run = cli("recover", tmp_path / "x.png", "-o", tmp_path / "back.png", *args)
    assert run.code == 2
    assert "tiny_swap.test" in run.error_line()
    assert "--model FOLDER" in run.err


def test_inputs_may_follow_the_options(cli, face_file, empty_scene, tmp_path):
    run = cli("anonymize", face_file, "-o", tmp_path / "out", *BLUR, "--allow-no-face", "skip", empty_scene)
    assert run.code == 0, run.err
    assert "1 skipped" in run.out
    assert files_under(tmp_path / "out") == ["astronaut.png", "astronaut.png.facezoo.json"]


def test_examples_of_the_help_can_be_typed(cli):
    """Every command line that the help shows is understood, down to the options of the methods."""
    from facezoo.cli import build_parser
    from facezoo.cli.common import parse_options

    seen = 0
    for command in ("anonymize", "recover", "list", "info", "key", "demo", "prepare", "train", "evaluate"):
        text = cli(command, "--help").out.split("examples:")[1]
        for line in text.strip().splitlines():
            arguments = build_parser().parse_args(shlex.split(line.split("facezoo ", 1)[1]))
            if getattr(arguments, "option", None):
                parse_options(arguments.model, arguments.option)
            seen += 1
    assert seen > 12


def test_list_and_info(cli):
    table = cli("list")
    assert table.code == 0
    assert "gaussian_blur" in table.out
    models = json.loads(cli("list", "--json").out)
    assert {"name", "kind", "reversible", "uses_key", "status", "summary", "method"} <= set(models[0])
    info = cli("info", "gaussian_blur")
    assert "sigma" in info.out
    assert json.loads(cli("info", "pixelation", "--json").out)["kind"] == "classic"
    assert cli("info", "nonsense").code == 2


def test_help_has_examples_everywhere(cli):
    for command in ("anonymize", "recover", "list", "info", "key", "demo", "prepare", "train", "evaluate"):
        run = cli(command, "--help")
        assert run.code == 0
        assert f"facezoo {command}" in run.out
        assert "examples:" in run.out
    assert cli("--version").out.startswith("facezoo ")


def test_light_commands_import_nothing_heavy():
    code = (
        "import sys; from facezoo.cli import main; import facezoo\n"
        "main(['list']); main(['info', 'gaussian_blur']); main(['anonymize', '--help']); main(['--version'])\n"
        "heavy = {'torch', 'cv2', 'numpy', 'PIL', 'lightning', 'safetensors', 'huggingface_hub', 'cryptography'}\n"
        "print('HEAVY', sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "HEAVY []"
