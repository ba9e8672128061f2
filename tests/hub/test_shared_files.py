"""Two checkpoints that share networks: stored once, checked all the same, and told of clearly when one is gone."""

from __future__ import annotations

import json

import pytest
import torch

from facezoo.errors import CheckpointError
from facezoo.hub.manifest import MANIFEST_NAME, load_networks, read_manifest, verify_files, write_checkpoint
from facezoo.hub.registry_file import build_registry

OWN = {"body": {"weight": torch.arange(6.0)}, "head": {"weight": torch.ones(2)}}


@pytest.fixture
def pair(tmp_path):
    base = {"crop_size": 64, "config": {}}
    write_checkpoint(tmp_path / "first.tag", {"name": "first.tag", "method": "first", **base}, OWN)
    second = {"name": "second.tag", "method": "second", **base}
    write_checkpoint(
        tmp_path / "second.tag", second, {"tail": {"weight": torch.zeros(3)}}, shared={"body": "first.tag"}
    )
    return tmp_path


def test_stored_once_and_loaded_from_there(pair):
    folder = pair / "second.tag"
    assert sorted(path.name for path in folder.iterdir()) == [MANIFEST_NAME, "tail.safetensors"]
    manifest, _ = read_manifest(folder)
    verify_files(folder, manifest)
    networks = load_networks(folder, manifest)
    assert torch.equal(networks["body"]["weight"], OWN["body"]["weight"])
    assert set(networks) == {"body", "tail"}
    sizes = {name: entry["bytes"] for name, entry in build_registry(pair)["models"].items()}
    assert sizes["second.tag"] == (folder / "tail.safetensors").stat().st_size, "shared bytes are counted once"


@pytest.mark.parametrize("action", [verify_files, load_networks])
def test_one_flipped_bit_in_the_owners_folder_is_found(pair, action):
    manifest, _ = read_manifest(pair / "second.tag")
    path = pair / "first.tag" / "body.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"first\.tag.*SHA-256"):
        action(pair / "second.tag", manifest)


@pytest.mark.parametrize("action", [verify_files, load_networks])
def test_owner_that_is_not_there(pair, action):
    manifest, _ = read_manifest(pair / "second.tag")
    (pair / "first.tag").rename(pair / "elsewhere")
    with pytest.raises(CheckpointError, match=r"shares it with first\.tag, whose folder must lie beside"):
        action(pair / "second.tag", manifest)


@pytest.mark.parametrize("owner", ["../first.tag", "/etc", "..", "first", 3])
def test_nothing_but_a_checkpoints_name_gets_through(pair, owner):
    path = pair / "second.tag" / MANIFEST_NAME
    content = json.loads(path.read_text())
    content["files"]["body.safetensors"]["from"] = owner
    del content["checksum"]
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="no checkpoint's name"):
        read_manifest(pair / "second.tag")


def test_an_own_file_beside_a_shared_entry_is_foreign(pair):
    (pair / "second.tag" / "body.safetensors").write_bytes((pair / "first.tag" / "body.safetensors").read_bytes())
    manifest, _ = read_manifest(pair / "second.tag")
    with pytest.raises(CheckpointError, match="does not name"):
        verify_files(pair / "second.tag", manifest)


@pytest.mark.parametrize(
    ("shared", "message"),
    [
        ({"body": "../first.tag"}, "no checkpoint's name"),
        ({"leg": "first.tag"}, "holds no leg"),
        ({"tail": "first.tag"}, "given and shared"),
        ({"body": "second.tag"}, "holds no body"),
    ],
)
def test_what_cannot_be_shared(pair, shared, message):
    third = {"name": "third.tag", "method": "third", "crop_size": 64, "config": {}}
    with pytest.raises(CheckpointError, match=message):
        write_checkpoint(pair / "third.tag", third, {"tail": {"weight": torch.zeros(3)}}, shared=shared)
    assert not (pair / "third.tag").exists()
