"""Push to and pull from a hub on 127.0.0.1, through huggingface_hub itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save
from torch import nn

import facezoo
from facezoo.cli import main
from facezoo.errors import CheckpointError, InputError, OutputError
from facezoo.files import sha256_bytes
from facezoo.hub import manifest as hub_manifest
from facezoo.hub.manifest import (
    load_networks,
    load_strictly,
    read_manifest,
    resolve_model,
    verify_files,
    write_checkpoint,
)
from facezoo.hub.publish import check_checkpoint, publish
from facezoo.hub.remote import download, fetch
from tests.hub.loopback import TOKEN, Hub
from tests.tiny_method import Gain, registered

constants = pytest.importorskip("huggingface_hub.constants")

REPOSITORY = "someone/tiny"
WORDS = {
    "card": {
        "What it does": "Mirrors colours.",
        "Intended use": "Tests.",
        "Not for": ["Pictures."],
        "Limits": ["All of them."],
        "Training data": "None.",
    },
    "licences": {"code": "Apache-2.0", "weights": "Apache-2.0", "data": "no data"},
    "paper": "none",
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch) -> Iterator[Hub]:
    """A hub, a cache of its own, and a user who is logged in."""
    with Hub() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        with registered():
            yield server


def tiny_run(folder: Path, **changes: object) -> Path:
    """A run folder whose checkpoint is complete, in two variants, with a network that is cut into parts."""
    manifest = {
        "name": "tiny_swap.test",
        "method": "tiny_swap",
        "summary": "for tests",
        "crop_size": 64,
        "config": {"size": 64},
        "metrics": {"taken for the original (dlib, FAR 0.001)": "0.3 % (0.1-1.2)", "measured on": "9 faces"},
        "training": {"recipe": {"data": ["/home/somebody/secret/faces.safetensors"]}},
        **{key: WORDS[key] for key in ("card", "licences", "paper")},
        **changes,
    }
    last = Gain()
    nn.init.constant_(last.gain, 1.25)
    extra = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64)).state_dict()
    write_checkpoint(
        folder / "checkpoint",
        manifest,
        {"generator": Gain().state_dict(), "extra": extra},
        variants={"last": {"generator": last.state_dict()}},
    )
    return folder


def offline(monkeypatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def replace_file(hub: Hub, file: str, content: bytes, /, **changes: object) -> None:
    """A new commit with another file, and a manifest that vouches for it."""
    files = dict(hub.files(REPOSITORY))
    manifest = json.loads(files["manifest.json"])
    manifest.pop("checksum", None)
    manifest["files"][file] = {"sha256": sha256_bytes(content), "bytes": len(content)}
    files[file], files["manifest.json"] = content, json.dumps({**manifest, **changes}).encode()
    hub.commit(REPOSITORY, files)


# Publishing


def test_pushes_once_and_pulls_the_same_weights(hub, tmp_path):
    run = tiny_run(tmp_path / "run")
    done = publish(run, REPOSITORY, part_bytes=20_000)
    pushed = hub.files(REPOSITORY)
    assert len(hub.commits[REPOSITORY]) == 2, "the empty one of create_repo, and one with everything"
    assert (
        set(pushed)
        == set(done.files)
        == {
            "README.md",
            "manifest.json",
            "generator/weights.safetensors",
            "generator/weights.last.safetensors",
            "extra/weights-00001-of-00002.safetensors",
            "extra/weights-00002-of-00002.safetensors",
        }
    )
    assert done.commit == hub.head(REPOSITORY)
    assert hub.objects, "safetensors files go through LFS"
    assert b"somebody" not in pushed["manifest.json"] + pushed["README.md"], "where the data lay stays here"

    found = resolve_model(f"{REPOSITORY}@{done.commit}")
    assert found.commit == done.commit
    mine, manifest = read_manifest(run / "checkpoint")[0], found.manifest
    local, remote = load_networks(run / "checkpoint", mine), load_networks(found.folder, manifest)
    for network, state in local.items():
        assert all(torch.equal(state[key], remote[network][key]) for key in state), network
    assert not hub.transfers("generator.last"), "a variant that nobody asked for is not fetched"
    anonymizer = facezoo.from_pretrained(REPOSITORY, revision=done.commit)
    assert float(anonymizer.method.network.gain.detach().mean()) == 1.0
    anonymizer = facezoo.from_pretrained(REPOSITORY, variant="last")
    assert float(anonymizer.method.network.gain.detach().mean()) == 1.25


def test_the_card_says_what_a_hub_shows(hub, tmp_path):
    text = publish(tiny_run(tmp_path / "run"), REPOSITORY, dry_run=True).card
    head = yaml.safe_load(text.split("---\n")[1])
    assert head["library_name"] == "facezoo"
    assert head["pipeline_tag"] == "image-to-image"
    assert head["license"] == "apache-2.0"
    assert head["datasets"] == ["faces"]
    (result,) = head["model-index"][0]["results"]
    assert result["metrics"] == [
        {
            "type": "taken for the original (dlib, FAR 0.001), %",
            "name": "taken for the original (dlib, FAR 0.001), %",
            "value": 0.3,
        }
    ]
    assert f'from_pretrained("{REPOSITORY}")' in text
    assert "| data | no data |" in text
    assert not hub.commits, "a dry run sends nothing"


def test_publishing_again_takes_old_parts_away(hub, tmp_path):
    run = tiny_run(tmp_path / "run")
    publish(run, REPOSITORY, part_bytes=20_000)
    publish(run, REPOSITORY)
    assert "extra/weights.safetensors" in hub.files(REPOSITORY)
    assert not [name for name in hub.files(REPOSITORY) if "-of-" in name]
    verify_files(*_fetched(REPOSITORY))


def _fetched(name: str) -> tuple[Path, dict]:
    found = fetch(name)
    return found.folder, found.manifest


@pytest.mark.parametrize(
    ("changes", "check", "words"),
    [
        ({"card": {"What it does": "x"}}, "card", "Intended use"),
        ({"metrics": {}}, "measured", "facezoo evaluate"),
        ({"licences": {}}, "licences", "data"),
        ({"card": {**WORDS["card"], "Limits": "![x](face.png)"}}, "no picture of a person", "picture"),
        ({"card": {**WORDS["card"], "Limits": f"token {TOKEN}"}}, "no secret, no path", "token"),
        ({"config": {"weights": "/home/somebody/arcface.pt"}}, "no secret, no path", "path of this machine"),
    ],
)
def test_what_is_not_complete_is_not_published(hub, tmp_path, changes, check, words):
    run = tiny_run(tmp_path / "run", **changes)
    with pytest.raises(InputError, match=words) as caught:
        publish(run, REPOSITORY)
    assert f"({check})" in str(caught.value)
    assert TOKEN not in str(caught.value)
    assert not hub.commits


def test_pickles_pictures_and_foreign_tensors_are_not_published(hub, tmp_path):
    run = tiny_run(tmp_path / "pickle")
    torch.save({"x": torch.zeros(1)}, run / "checkpoint" / "optimizer")
    with pytest.raises(InputError, match="pickle"):
        publish(run, REPOSITORY)

    run = tmp_path / "pictures"
    tiny_run(run)
    manifest, _ = read_manifest(run / "checkpoint")
    states = load_networks(run / "checkpoint", manifest)
    states["extra"]["gallery"] = torch.zeros(5, 32, 32, 3, dtype=torch.uint8)
    plain = {key: value for key, value in manifest.items() if key not in ("files", "checksum")}
    write_checkpoint(run / "checkpoint", plain, states, overwrite=True)
    with pytest.raises(InputError, match="gallery"):
        publish(run, REPOSITORY)

    run = tiny_run(tmp_path / "renamed")
    states = load_networks(run / "checkpoint", read_manifest(run / "checkpoint")[0])
    states["generator"]["gains"] = states["generator"].pop("gain")
    write_checkpoint(run / "checkpoint", plain, states, overwrite=True)
    with pytest.raises(InputError, match=r"\(loads\).*gain"):
        publish(run, REPOSITORY)
    assert not hub.commits


def test_every_check_is_named(tmp_path):
    with registered():
        folder = tiny_run(tmp_path / "run", training={}) / "checkpoint"
        checks = check_checkpoint(folder, read_manifest(folder)[0], None)
    assert [check.problem for check in checks] == [""] * 8


def test_bundled_checkpoints_share_no_files_when_published(hub, tmp_path):
    done = publish(
        "stylegan2.faces64", "someone/people", dry_run=True, data_licence="research use", output=tmp_path / "out"
    )
    assert {"README.md", "manifest.json", "generator/weights.safetensors"} == set(done.files)
    assert "pipeline_tag: unconditional-image-generation" in done.card
    manifest, _ = read_manifest(tmp_path / "out")
    verify_files(tmp_path / "out", manifest)
    assert manifest["licences"] == {"code": "Apache-2.0", "weights": "Apache-2.0", "data": "research use"}


def test_without_a_token_nothing_is_pushed(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "")
    with pytest.raises(CheckpointError, match=REPOSITORY):
        publish(tiny_run(tmp_path / "run"), REPOSITORY)
    assert not hub.commits


def test_publish_offline_says_so(hub, tmp_path, monkeypatch):
    offline(monkeypatch)
    with pytest.raises(CheckpointError, match="HF_HUB_OFFLINE"):
        publish(tiny_run(tmp_path / "run"), REPOSITORY)


# Downloading


@pytest.fixture
def published(hub, tmp_path) -> Hub:
    publish(tiny_run(tmp_path / "run"), REPOSITORY)
    hub.log.clear()
    return hub


def test_loads_without_network_what_was_loaded_once(published, monkeypatch):
    commit = published.head(REPOSITORY)
    first = resolve_model(REPOSITORY)
    published.server.shutdown()
    offline(monkeypatch)
    published.log.clear()
    for name in (REPOSITORY, f"{REPOSITORY}@{commit}"):
        again = resolve_model(name)
        assert (again.folder, again.commit, again.sha256) == (first.folder, commit, first.sha256)
        load_networks(again.folder, again.manifest)
    assert published.log == []
    with pytest.raises(CheckpointError, match="HF_HUB_OFFLINE forbids"):
        resolve_model(REPOSITORY, variant="last")
    with pytest.raises(CheckpointError, match="not in the cache"):
        resolve_model("someone/else")


def test_a_pinned_commit_stays_what_it_was(published):
    before = published.head(REPOSITORY)
    sha = resolve_model(REPOSITORY).sha256
    replace_file(published, "generator/weights.safetensors", save({"gain": torch.full((3, 1, 1), 7.0)}))
    assert resolve_model(f"{REPOSITORY}@{before}").sha256 == sha
    assert resolve_model(REPOSITORY).sha256 != sha
    with pytest.raises(CheckpointError, match="no revision v9"):
        resolve_model(REPOSITORY, revision="v9")


def test_a_flipped_byte_is_never_loaded(published):
    published.flip.add("generator/weights.safetensors")
    with pytest.raises(CheckpointError, match="damaged or was altered"):
        facezoo.from_pretrained(REPOSITORY)
    with pytest.raises(CheckpointError, match="facezoo download --force someone/tiny@"):
        download(REPOSITORY)
    published.flip.clear()
    with pytest.raises(CheckpointError, match="damaged or was altered"):
        facezoo.from_pretrained(REPOSITORY)  # the cache still holds it
    download(REPOSITORY, force=True)
    facezoo.from_pretrained(REPOSITORY)


def test_a_broken_connection_is_taken_up_where_it_broke(published, monkeypatch):
    piece = 2**20
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", piece)  # what the client writes to the disk at a time
    content = torch.randn(3_000_000, generator=torch.Generator().manual_seed(1))
    big = save({"weight": content})
    assert len(big) > published.lfs_bytes
    replace_file(published, "extra/weights.safetensors", big)
    published.cut["extra/weights.safetensors"] = 2
    found = fetch(REPOSITORY)
    assert torch.equal(load_file(found.folder / "extra/weights.safetensors")["weight"], content)
    ranges = [entry[2] for entry in published.transfers("extra/weights.safetensors")]
    first = len(big) // 2 // piece * piece
    second = first + (len(big) - first) // 2 // piece * piece
    assert ranges == ["", f"bytes={first}-", f"bytes={second}-"]


def test_a_download_that_gave_up_keeps_what_is_finished(published, monkeypatch):
    published.lost.add("generator/weights.safetensors")
    with pytest.raises(CheckpointError, match=r"lacks a file that its manifest\.json names"):
        fetch(REPOSITORY)
    published.lost.clear()
    done = len(published.transfers("extra/weights.safetensors"))
    fetch(REPOSITORY)
    assert len(published.transfers("extra/weights.safetensors")) == max(done, 1)


def test_a_file_that_the_manifest_names_and_the_repository_lacks(published):
    files = dict(published.files(REPOSITORY))
    del files["extra/weights.safetensors"]
    published.commit(REPOSITORY, files)
    with pytest.raises(CheckpointError, match=r"lacks extra/weights\.safetensors"):
        fetch(REPOSITORY)
    published.commit(REPOSITORY, {"README.md": b"nothing"})
    with pytest.raises(CheckpointError, match="no model of facezoo"):
        fetch(REPOSITORY)


def test_wrong_class_and_renamed_key_say_what_does_not_fit(published):
    replace_file(published, "generator/weights.safetensors", save({"gains": torch.ones(3, 1, 1)}))
    with pytest.raises(CheckpointError, match=r"lacks 1 tensors \(gain"):
        facezoo.from_pretrained(REPOSITORY)
    replace_file(published, "extra/weights.safetensors", save({}), method="tiny_swop", name="tiny_swop.test")
    with pytest.raises(CheckpointError, match="'tiny_swop', which this facezoo does not know"):
        facezoo.from_pretrained(REPOSITORY)


def test_a_private_repository_needs_a_token(hub, tmp_path, monkeypatch):
    publish(tiny_run(tmp_path / "run"), REPOSITORY, private=True)
    assert REPOSITORY in hub.private
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(CheckpointError, match="set HF_TOKEN") as caught:
        resolve_model(REPOSITORY)
    assert "\n" not in str(caught.value)
    assert resolve_model(REPOSITORY, token=TOKEN).name == "tiny_swap.test"


def test_a_model_of_the_registry_may_lie_on_the_hub(published, tmp_path):
    root = tmp_path / "checkpoints"
    found = fetch(REPOSITORY)
    entry = {
        "method": "tiny_swap",
        "manifest_sha256": found.sha256,
        "hub": {"repository": REPOSITORY, "commit": found.commit},
    }
    root.mkdir()
    (root / "registry.json").write_text(json.dumps({"models": {"tiny_swap.test": entry}}))
    assert resolve_model("tiny_swap", checkpoints=root).commit == found.commit
    assert download("tiny_swap.test", checkpoints=root).bytes == sum(
        entry["bytes"] for name, entry in found.manifest["files"].items() if ".last" not in name
    )
    (root / "registry.json").write_text(
        json.dumps({"models": {"tiny_swap.test": {**entry, "manifest_sha256": "0" * 64}}})
    )
    with pytest.raises(CheckpointError, match="altered"):
        resolve_model("tiny_swap.test", checkpoints=root)


def test_copies_for_a_machine_without_network(published, tmp_path):
    done = download(REPOSITORY, output=tmp_path / "plain")
    manifest, _ = read_manifest(done.folder)
    verify_files(done.folder, manifest, every_variant=True)
    assert not (done.folder / "generator/weights.last.safetensors").exists()
    last = download(REPOSITORY, variant="last", output=tmp_path / "last")
    state = load_networks(last.folder, read_manifest(last.folder)[0])["generator"]
    load_strictly(Gain(), state, "generator")
    assert float(state["gain"].mean()) == 1.25
    with pytest.raises(OutputError, match="exists already"):
        download(REPOSITORY, output=tmp_path / "plain")


def test_commands(published, tmp_path, capsys):
    commit = published.head(REPOSITORY)
    assert main(["download", REPOSITORY, "--output", str(tmp_path / "here")]) == 0
    assert f"pin it with {REPOSITORY}@{commit}" in capsys.readouterr().out
    assert main(["download"]) == 2
    assert main(["download", "gaussian_blur"]) == 5
    assert "nothing to download" in capsys.readouterr().err
    run = str(tmp_path / "run")
    assert main(["publish", run, "--repo-id", "someone/other", "--dry-run"]) == 0
    assert "dry run: nothing was sent" in capsys.readouterr().out
    assert "someone/other" not in published.commits
    assert main(["publish", run, "--repo-id", "no-slash"]) == 2


# The format


def test_parts_and_variants_are_checked(tmp_path):
    manifest, _ = read_manifest(tiny_run(tmp_path / "run") / "checkpoint")
    manifest.pop("checksum")
    entry = {"sha256": "0" * 64, "bytes": 1}

    def check(*files: str) -> None:
        hub_manifest._check_manifest({**manifest, "files": dict.fromkeys(files, entry)}, tmp_path / "manifest.json")

    check("a-00001-of-00002.safetensors", "a-00002-of-00002.safetensors", "a.last.safetensors")
    check("a/weights-00001-of-00002.safetensors", "a/weights-00002-of-00002.safetensors", "a/weights.last.safetensors")
    with pytest.raises(CheckpointError, match="not all of them are named"):
        check("a-00001-of-00002.safetensors")
    with pytest.raises(CheckpointError, match="two cuts"):
        check("a.safetensors", "a-00001-of-00002.safetensors", "a-00002-of-00002.safetensors")
    with pytest.raises(CheckpointError, match="twice"):
        check("a.safetensors", "a-00001-of-00001.safetensors")
    for name in (
        "../a.safetensors",
        "a.b.c.safetensors",
        "a.pt",
        "a/b.safetensors",
        "../weights.safetensors",
        "/weights.safetensors",
    ):
        with pytest.raises(CheckpointError, match="not the name of a safetensors file"):
            check(name)
    with pytest.raises(CheckpointError, match="licences"):
        hub_manifest._check_manifest({**manifest, "licences": {"pictures": "mine"}}, tmp_path / "manifest.json")
