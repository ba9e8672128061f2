"""What somebody hostile can hand over, and what others on the machine can see; docs/security.md names each test."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from facezoo import batch
from facezoo.cli import main
from facezoo.core.recipe import load_recipe
from facezoo.data.shards import INDEX, index_shards, open_faces
from facezoo.data.tars import MAX_MEMBER_BYTES, read_samples
from facezoo.errors import CheckpointError, FacezooError, InputError, RecordError
from facezoo.frozen import read_state
from facezoo.hub.manifest import read_manifest, verify_files
from facezoo.keys import Key
from facezoo.methods.checkpoints import fill_networks
from facezoo.recognition import load_recogniser
from facezoo.records import PictureRecord, find_record, read_record, read_sidecar, sidecar_path
from tests.cli.conftest import files_under, portrait
from tests.tiny_method import Gain, write_tiny_checkpoint

SECRET = "correct horse battery staple of the tests"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_tiny_checkpoint(tmp_path / "tiny_swap.test")


def edited(folder: Path, change: Any) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest.pop("checksum")
    change(manifest)
    path.write_text(json.dumps(manifest))


# ---------------------------------------------------------------------------------------------- paths that lead out


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "/etc/x.safetensors", "a/b/weights.safetensors", "a\\..\\x.safetensors", "..", "x.pt"]
)
def test_a_manifest_names_no_file_outside_its_folder(checkpoint: Path, name: str) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["files"][name] = manifest["files"].pop("generator.safetensors")

    edited(checkpoint, change)
    with pytest.raises(CheckpointError):
        read_manifest(checkpoint)


@pytest.mark.parametrize("name", ["..", "../other", "/etc", "a/b", "tiny_swap.test/../..", ""])
def test_a_file_is_shared_from_a_checkpoint_beside_and_nowhere_else(checkpoint: Path, name: str) -> None:
    edited(checkpoint, lambda manifest: manifest["files"]["generator.safetensors"].update({"from": name}))
    with pytest.raises(CheckpointError):
        read_manifest(checkpoint)


@pytest.mark.parametrize("model", ["../../evil", "/tmp/evil", "somebody/evil", "somebody/evil@main"])
def test_a_record_without_a_key_cannot_choose_a_model_from_elsewhere(
    tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(batch.Processor, "_anonymizer", lambda *_: pytest.fail("it was looked for"))
    portrait().save(tmp_path / "x.png")
    record = PictureRecord("identity_rotation", model, (300, 336), ())
    sidecar_path(tmp_path / "x.png").write_text(record.to_json())
    (tmp_path / "pass.txt").write_text(SECRET)
    words = ["recover", str(tmp_path / "x.png"), "-o", str(tmp_path / "y.png")]
    assert main([*words, "--key-file", str(tmp_path / "pass.txt")]) == 6
    assert "name it with --model" in capsys.readouterr().err
    assert not (tmp_path / "y.png").exists()


def test_a_changed_record_chooses_no_model_before_it_is_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch.Processor, "_anonymizer", lambda *_: pytest.fail("it was looked for"))
    key = Key.from_passphrase(SECRET)
    portrait().save(tmp_path / "x.png")
    record = PictureRecord("identity_rotation", "identity_rotation.faces128", (300, 336), ()).with_key(key)
    content = json.loads(record.authenticated(key).to_json())
    fields = {name: value for name, value in content.items() if name != "checksum"}
    changed = PictureRecord(**{**fields, "model": "somebody/evil", "faces": ()})
    sidecar_path(tmp_path / "x.png").write_text(changed.to_json())
    (tmp_path / "pass.txt").write_text(SECRET)
    words = ["recover", str(tmp_path / "x.png"), "-o", str(tmp_path / "y.png"), "-q"]
    assert main([*words, "--key-file", str(tmp_path / "pass.txt")]) == 6


def test_an_index_of_shards_names_no_file_outside_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    add_member(folder / "a.tar", "0.png", buffer.getvalue())
    index_shards(folder)
    (tmp_path / "a.tar").write_bytes((folder / "a.tar").read_bytes())
    data = (folder / INDEX).read_bytes()
    assert data.count(b"a.tar") >= 1
    outside = data.replace(b'\\"a.tar\\"', b'\\"../a.tar\\"')
    grown = len(outside) - len(data)
    assert grown > 0
    length = int.from_bytes(outside[:8], "little") + grown
    (folder / INDEX).write_bytes(length.to_bytes(8, "little") + outside[8:])
    with pytest.raises(InputError):
        open_faces(folder)


def add_member(path: Path, name: str, data: bytes, size: int | None = None) -> None:
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
    if size is not None:
        raw = bytearray(path.read_bytes())
        raw[124:136] = b"\x80" + size.to_bytes(11, "big")  # base 256, for sizes beyond eight octal digits
        raw[148:156] = b" " * 8
        raw[148:156] = f"{sum(raw[:512]):06o}\0 ".encode()
        path.write_bytes(bytes(raw))


@pytest.mark.parametrize("name", ["../../evil.png", "/evil.png", "a/../../evil.png"])
def test_names_in_a_shard_that_lead_out_are_not_passed_on(tmp_path: Path, name: str) -> None:
    buffer = io.BytesIO()
    portrait().resize((90, 100)).save(buffer, "PNG")
    add_member(tmp_path / "a.tar", name, buffer.getvalue())
    out = tmp_path / "out"
    words = ["anonymize-dataset", str(tmp_path / "a.tar"), "-o", str(out), "--no-ray", "-q"]
    assert main([*words, "--model", "black_box", "--verify", "off"]) == 2
    with tarfile.open(out / "part-000000" / "pictures.tar") as tar:
        assert tar.getnames() == []
    assert "leads out of the folder" in (out / "failed.jsonl").read_text()


def test_a_link_in_the_place_of_a_temporary_file_is_not_followed(tmp_path: Path) -> None:
    from facezoo import files

    victim = tmp_path / "victim"
    victim.write_text("mine")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / f".facezoo-{os.getpid()}-{'00' * 8}.tmp").symlink_to(victim)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files.secrets, "token_hex", lambda n: "00" * n)
        with pytest.raises(FacezooError):
            files.atomic_write(folder / "x", b"new")
    assert victim.read_text() == "mine"
    assert not (folder / "x").exists()


# ---------------------------------------------------------------------------------------------- programs in data


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.place}",)


@pytest.mark.parametrize("name", ["x.pt", "x.pth", "x.safetensors"])
def test_weights_run_no_code(tmp_path: Path, name: str) -> None:
    mark = tmp_path / "it_ran"
    path = tmp_path / name
    path.write_bytes(pickle.dumps({"weight": Evil(mark)}))
    for read in (read_state, load_recogniser):
        with pytest.raises(CheckpointError):
            read(path)  # type: ignore[operator]
    torch.save({"weight": Evil(mark)}, path)
    for read in (read_state, load_recogniser):
        with pytest.raises(CheckpointError):
            read(path)  # type: ignore[operator]
    assert not mark.exists()


def test_arrays_in_shards_run_no_code(tmp_path: Path) -> None:
    mark = tmp_path / "it_ran"
    buffer = io.BytesIO()
    np.save(buffer, np.array([Evil(mark)], dtype=object), allow_pickle=True)
    add_member(tmp_path / "a.tar", "0.npy", buffer.getvalue())
    with pytest.raises(InputError):
        index_shards(tmp_path)
    assert not mark.exists()


@pytest.mark.parametrize(
    "text",
    [
        '!!python/object/apply:os.system ["touch MARK"]',
        'name: !!python/object/apply:os.system ["touch MARK"]',
        "[" * 1500,
        "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b]\nname: *c",
    ],
)
def test_recipes_run_no_code_and_nest_no_deeper_than_is_read(tmp_path: Path, text: str) -> None:
    mark = tmp_path / "it_ran"
    path = tmp_path / "recipe.yaml"
    path.write_text(text.replace("MARK", str(mark)))
    with pytest.raises(InputError):
        load_recipe(path)
    assert not mark.exists()


# ---------------------------------------------------------------------------------------------- headers and bombs


def test_a_member_that_claims_more_than_there_can_be_is_not_read(tmp_path: Path) -> None:
    add_member(tmp_path / "a.tar", "0.png", b"x", size=1 << 40)
    with (tmp_path / "a.tar").open("rb") as stream, pytest.raises((InputError, tarfile.TarError)):
        _ = [sample.picture() for sample in read_samples(stream)]
    assert MAX_MEMBER_BYTES <= 1 << 30


def test_records_of_any_size_and_depth_are_refused(tmp_path: Path) -> None:
    place = tmp_path / "x.png.facezoo.json"
    place.write_text("[" * 100_000)
    with pytest.raises(RecordError):
        read_record(place)
    with place.open("wb") as stream:
        stream.truncate(1 << 40)  # a file of a terabyte that takes no room
    with pytest.raises(RecordError, match="MB allowed"):
        read_record(place)
    place.unlink()
    with (tmp_path / "x.png").open("wb") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(InputError, match="MB allowed"):
        find_record(tmp_path / "x.png")
    good = json.loads(PictureRecord("m", "m", (1, 1), ()).to_json())
    for cost in ({"n": 2**40}, {"r": 2**30}, {"p": 10**6}):
        with pytest.raises(RecordError):
            PictureRecord("m", "m", (1, 1), (), kdf={**good["kdf"], **cost})


def test_boxes_of_any_depth_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    portrait().save(tmp_path / "x.png")
    (tmp_path / "boxes.json").write_text("[" * 100_000)
    words = ["anonymize", str(tmp_path / "x.png"), "-o", str(tmp_path / "y.png"), "--model", "black_box"]
    assert main([*words, "--boxes", str(tmp_path / "boxes.json")]) == 2
    assert "no JSON" in capsys.readouterr().err


def test_a_header_of_a_safetensors_file_may_claim_anything(checkpoint: Path) -> None:
    path = checkpoint / "generator.safetensors"
    for length in (2**63 - 1, 10**9, 0):
        data = length.to_bytes(8, "little") + path.read_bytes()[8:]
        path.write_bytes(data)
        import hashlib

        entry = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        edited_again = json.loads((checkpoint / "manifest.json").read_text())
        edited_again.pop("checksum", None)
        edited_again["files"]["generator.safetensors"] = entry
        (checkpoint / "manifest.json").write_text(json.dumps(edited_again))
        manifest, _ = read_manifest(checkpoint)
        with pytest.raises(CheckpointError):
            fill_networks({"generator": Gain()}, checkpoint, manifest)


# ---------------------------------------------------------------------------------------------- bytes hashed = loaded


def test_the_bytes_that_are_hashed_are_the_bytes_that_are_loaded(checkpoint: Path) -> None:
    """A file that is swapped after the check is refused when it is loaded."""
    manifest, _ = read_manifest(checkpoint)
    verify_files(checkpoint, manifest)
    save_file({"gain": torch.full((3, 1, 1), 7.0)}, checkpoint / "generator.safetensors")
    gain = Gain()
    with pytest.raises(CheckpointError, match=r"SHA-256|bytes instead of"):
        fill_networks({"generator": gain}, checkpoint, manifest)
    assert torch.equal(gain.gain.detach(), torch.ones(3, 1, 1))


def test_weights_that_are_no_numbers_are_not_loaded(tmp_path: Path) -> None:
    import hashlib

    save_file({"weight": torch.tensor([[float("nan")]]), "bias": torch.zeros(1)}, tmp_path / "net.safetensors")
    data = (tmp_path / "net.safetensors").read_bytes()
    entry = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    with pytest.raises(CheckpointError, match="not finite"):
        fill_networks({"net": nn.Linear(1, 1)}, tmp_path, {"files": {"net.safetensors": entry}})


# ---------------------------------------------------------------------------------------------- what others can see


def test_workers_get_the_key_through_a_pipe_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not on a command line, not in an environment, both of which others on the machine may read; not in a file."""
    started: list[tuple[Any, Any]] = []
    real = subprocess.Popen

    def spy(arguments: Any, **options: Any) -> Any:
        started.append((arguments, options.get("env")))
        return real([sys.executable, "-c", "pass"], **options)

    monkeypatch.setattr(subprocess, "Popen", spy)
    monkeypatch.setenv("FACEZOO_KEY", SECRET)
    key = Key.from_passphrase(SECRET)
    worker = batch._Worker(batch.Settings(task="anonymize"), key, 1)
    outcome = worker.run(batch.Job(tmp_path / "a", tmp_path / "b", "a"))
    worker.stop()
    assert outcome.status == "failed"
    shown = repr(started)
    master = batch._key_line(key).split(":")[1]
    assert started
    assert SECRET not in shown
    assert master not in shown
    assert "FACEZOO_KEY" not in started[0][1]
    assert SECRET not in outcome.message


def test_no_output_of_a_run_holds_the_key(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Neither printed nor in any file that is written, also when it fails."""
    portrait().save(tmp_path / "x.png")
    (tmp_path / "pass.txt").write_text(SECRET)
    out = tmp_path / "out"
    words = ["--key-file", str(tmp_path / "pass.txt"), "--model", "gaussian_blur", "--seal", "--verify", "off"]
    assert main(["anonymize", str(tmp_path / "x.png"), "-o", f"{out}/", *words]) == 0
    assert main(["anonymize", str(tmp_path / "x.png"), "-o", f"{out}/", *words, "--option", "sigma=9"]) == 7
    (tmp_path / "pass.txt").write_text(SECRET + "!")
    assert main(["recover", str(out / "x.png"), "-o", f"{tmp_path}/back/", "--key-file", str(tmp_path / "pass.txt")])
    printed = "".join(capfd.readouterr())
    key = batch._key_line(Key.from_passphrase(SECRET)).split(":")[1]
    written = b"".join((out / name).read_bytes() for name in files_under(out))
    assert written
    for secret in (SECRET, key):
        assert secret not in printed
        assert secret.encode() not in written


# ---------------------------------------------------------------------------------------------- power loss


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_each_write_nothing_half_is_left_and_the_next_run_goes_on(tmp_path: Path) -> None:
    """The process ends without a word at the first, second, ... call that touches the disk."""
    source = tmp_path / "in"
    source.mkdir()
    portrait().resize((90, 100)).save(source / "a.png")
    (tmp_path / "boxes.json").write_text("[[20, 15, 70, 80]]")
    words = ["--model", "black_box", "--boxes", str(tmp_path / "boxes.json"), "--verify", "off", "-q"]
    ended = 0
    for number in range(40):
        out = tmp_path / f"out{number}"
        code = run_and_die(["anonymize", str(source), "-o", str(out), *words], number)
        for path in out.rglob("*") if out.exists() else ():
            if path.suffix == ".png":
                with Image.open(path) as image:
                    image.load()
                assert read_sidecar(path).belongs_to(path)
        assert main(["anonymize", str(source), "-o", str(out), *words]) == 0
        assert read_sidecar(out / "a.png").belongs_to(out / "a.png")
        if code == 0:
            break
        assert code == 9
        ended += 1
    assert ended >= 6
    assert code == 0


def run_and_die(words: list[str], calls: int) -> int:
    """Runs a command in a copy of this process, which ends at its n-th call that changes the disk."""
    child = os.fork()
    if child == 0:
        left = [calls]

        def dying(real: Any) -> Any:
            def call(*arguments: Any, **options: Any) -> Any:
                if left[0] == 0:
                    os._exit(9)
                left[0] -= 1
                return real(*arguments, **options)

            return call

        code = 1
        try:
            for name in ("fsync", "link", "replace", "unlink", "rename", "mkdir"):
                setattr(os, name, dying(getattr(os, name)))
            code = main(words)
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_each_test_that_the_page_names_is_there(repository: Path) -> None:
    text = (repository / "docs" / "security.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text)
    assert len(named) > 40
    for path, name in named:
        assert f"def {name}(" in (repository / path).read_text(encoding="utf-8"), f"{path}::{name}"
