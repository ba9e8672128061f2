"""Checkpoints: written whole, read strictly, found by name, folder or hub repository."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from facezoo.errors import CheckpointError, OutputError, UnknownNameError
from facezoo.hub import manifest as hub
from facezoo.hub import registry_file
from tests.tiny_method import registered, write_tiny_checkpoint


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tiny_checkpoint(tmp_path / "tiny_swap.test")


def edit(folder: Path, **changes: object) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest.pop("checksum")  # what is tested is the check of the field itself
    for name, value in changes.items():
        if value is None:
            manifest.pop(name)
        else:
            manifest[name] = value
    path.write_text(json.dumps(manifest))


def test_round_trip_is_exact(tmp_path):
    weights = {"a": torch.randn(3, 5), "b": torch.arange(4), "half": torch.randn(2).half(), "view": torch.ones(6)[::2]}
    manifest = {"name": "tiny_swap.x", "method": "tiny_swap", "crop_size": 64, "config": {"depth": 3}}
    hub.write_checkpoint(tmp_path / "tiny_swap.x", manifest, {"net": weights})
    back, digest = hub.read_manifest(tmp_path / "tiny_swap.x")
    assert back["config"] == {"depth": 3}
    assert len(digest) == 64
    hub.verify_files(tmp_path / "tiny_swap.x", back)
    loaded = hub.load_networks(tmp_path / "tiny_swap.x", back)["net"]
    assert set(loaded) == set(weights)
    for name, value in weights.items():
        assert torch.equal(loaded[name], value)
        assert loaded[name].dtype == value.dtype


def test_writing_never_leaves_a_half(tmp_path, folder):
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(OutputError, match="exists"):
        write_tiny_checkpoint(folder)
    with pytest.raises(CheckpointError, match="finite"):
        hub.write_checkpoint(
            tmp_path / "tiny_swap.nan",
            {"name": "tiny_swap.nan", "method": "tiny_swap", "crop_size": 64, "config": {}},
            {"net": {"w": torch.tensor([1.0, float("nan")])}},
        )
    with pytest.raises(CheckpointError, match="JSON"):
        hub.write_checkpoint(
            tmp_path / "tiny_swap.bad",
            {"name": "tiny_swap.bad", "method": "tiny_swap", "crop_size": 64, "config": {"x": object()}},
            {},
        )
    with pytest.raises(CheckpointError, match="unknown fields"):
        hub.write_checkpoint(
            tmp_path / "tiny_swap.bad",
            {"name": "tiny_swap.bad", "method": "tiny_swap", "crop_size": 64, "config": {}, "colour": "red"},
            {},
        )
    (tmp_path / "other").mkdir()
    with pytest.raises(OutputError, match="not a checkpoint"):
        write_tiny_checkpoint(tmp_path / "other", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "tiny_swap.test"]
    write_tiny_checkpoint(folder, overwrite=True)
    assert sorted(path.name for path in folder.iterdir()) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "tiny_swap.test"]


@pytest.mark.parametrize("position", [0, 9, -1])
def test_every_flipped_byte_is_found(folder, position):
    path = folder / "generator.safetensors"
    data = bytearray(path.read_bytes())
    data[position] ^= 0x10
    path.write_bytes(bytes(data))
    manifest, _ = hub.read_manifest(folder)
    for check in (hub.verify_files, hub.load_networks):
        with pytest.raises(CheckpointError, match=r"generator\.safetensors"):
            check(folder, manifest)


def test_every_flipped_byte_of_the_manifest_is_found(folder):
    path = folder / "manifest.json"
    good = path.read_bytes()
    for position in range(len(good)):
        data = bytearray(good)
        data[position] ^= 0x01
        path.write_bytes(bytes(data))
        with pytest.raises(CheckpointError):
            hub.read_manifest(folder)


def test_a_manifest_edited_by_hand_may_leave_its_checksum_out(folder):
    edit(folder, summary="mine")
    assert hub.read_manifest(folder)[0]["summary"] == "mine"


def test_weights_that_the_manifest_does_not_name_are_refused(folder):
    manifest, _ = hub.read_manifest(folder)
    manifest["files"].pop("generator.safetensors")
    with pytest.raises(CheckpointError, match=r"generator\.safetensors.*does not name"):
        hub.verify_files(folder, manifest)


def test_missing_and_truncated_files(folder):
    manifest, _ = hub.read_manifest(folder)
    path = folder / "extra.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    for check in (hub.verify_files, hub.load_networks):
        with pytest.raises(CheckpointError, match="bytes instead of"):
            check(folder, manifest)
    path.unlink()
    for check in (hub.verify_files, hub.load_networks):
        with pytest.raises(CheckpointError, match="missing"):
            check(folder, manifest)


@pytest.mark.parametrize(
    "changes",
    [
        {"status": None},
        {"colour": "red"},
        {"crop_size": "128"},
        {"crop_size": True},
        {"crop_size": 4},
        {"format": "other"},
        {"format_version": 2},
        {"name": "other.test"},
        {"name": "no tag"},
        {"files": {"../../etc/passwd": {"sha256": "0" * 64, "bytes": 1}}},
        {"files": {"weights.pt": {"sha256": "0" * 64, "bytes": 1}}},
        {"files": {"net.safetensors": {"sha256": "0" * 63, "bytes": 1}}},
        {"files": {"net.safetensors": {"sha256": "0" * 64}}},
        {"files": {"net.safetensors": {"sha256": "0" * 64, "bytes": -1}}},
    ],
)
def test_malformed_manifests_are_refused(folder, changes):
    edit(folder, **changes)
    with pytest.raises(CheckpointError):
        hub.read_manifest(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1, "format": 2}', "\xff", "[" * 100_000])
def test_damaged_manifests_are_refused(folder, text):
    (folder / "manifest.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError):
        hub.read_manifest(folder)


def test_loading_is_strict():
    module = torch.nn.Linear(2, 3)
    good = module.state_dict()
    hub.load_strictly(module, good, "net")
    for bad in (
        {"weight": good["weight"]},
        {**good, "extra": torch.ones(1)},
        {**good, "bias": torch.ones(4)},
        {**good, "bias": torch.tensor([1.0, float("inf"), 0.0])},
    ):
        with pytest.raises(CheckpointError, match="net"):
            hub.load_strictly(module, bad, "net")


def bundle(tmp_path: Path) -> Path:
    root = tmp_path / "checkpoints"
    write_tiny_checkpoint(root / "tiny_swap.test")
    assert registry_file.main(["--root", str(root)]) == 0
    return root


def test_names_lead_to_bundled_checkpoints(tmp_path):
    root = bundle(tmp_path)
    with registered():
        for name in ("tiny_swap.test", "tiny_swap"):
            found = hub.resolve_model(name, checkpoints=root)
            assert found.name == "tiny_swap.test"
            assert found.folder == root / "tiny_swap.test"
        assert hub.resolve_model("gaussian_blur", checkpoints=root).folder is None
        assert hub.resolve_model(root / "tiny_swap.test").sha256 == found.sha256
        with pytest.raises(UnknownNameError, match=r"tiny_swap\.test"):
            hub.resolve_model("tiny_swap.tset", checkpoints=root)
        with pytest.raises(CheckpointError, match=r"manifest\.json"):
            hub.resolve_model(str(tmp_path))
        with pytest.raises(CheckpointError, match="no checkpoint"):
            hub.resolve_model("tiny_swap", checkpoints=tmp_path / "none")
        with pytest.raises(UnknownNameError, match=r"none.*give its folder"):
            hub.resolve_model("tiny_swap.test", checkpoints=tmp_path / "none")


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "nowhere/", "../nowhere", "x" * 300])
def test_a_path_that_does_not_exist_is_not_looked_up_in_the_network(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # an import would fail
    with pytest.raises(UnknownNameError, match=r"facezoo list|unknown model"):
        hub.resolve_model(name)


def test_changed_manifest_of_a_bundled_checkpoint_is_refused(tmp_path):
    root = bundle(tmp_path)
    edit(root / "tiny_swap.test", summary="changed")
    with registered(), pytest.raises(CheckpointError, match="altered"):
        hub.resolve_model("tiny_swap.test", checkpoints=root)


def test_registry_file_goes_stale(tmp_path, capsys):
    root = bundle(tmp_path)
    assert registry_file.main(["--root", str(root), "--check"]) == 0
    edit(root / "tiny_swap.test", summary="changed")
    assert registry_file.main(["--root", str(root), "--check"]) == 1
    (root / "tiny_swap.test" / "generator.safetensors").write_bytes(b"")
    assert registry_file.main(["--root", str(root)]) == 5
    assert "error" in capsys.readouterr().err


def test_registry_file_keeps_models_that_lie_on_the_hub_and_mends_a_damaged_file(tmp_path):
    root = bundle(tmp_path)
    path = root / "registry.json"
    content = json.loads(path.read_text())
    far = {"method": "tiny_swap", "manifest_sha256": "0" * 64, "hub": {"repository": "a/b", "commit": "c"}}
    path.write_text(
        json.dumps({**content, "models": {**content["models"], "tiny_swap.far": far, "tiny_swap.gone": {}}})
    )
    assert registry_file.build_registry(root)["models"] == {**content["models"], "tiny_swap.far": far}
    path.write_text("<<<<<<< ours")
    assert registry_file.build_registry(root)["models"] == content["models"]


@pytest.mark.slow
def test_the_real_hub_client_answers_offline_with_one_line():
    pytest.importorskip("huggingface_hub")
    with pytest.raises(CheckpointError, match="not in the cache"):
        hub.resolve_model("facezoo-tests/does-not-exist")
