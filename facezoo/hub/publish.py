"""``facezoo publish``: a checkpoint to the Hugging Face hub, after it was looked at as a stranger would.

What is pushed is three kinds of files and nothing else: ``manifest.json``, the safetensors files that it names, and the
card (``README.md``). So no picture can travel but inside a tensor or a text, and both are looked at.

All checks come before the first byte is sent, and all files arrive in one commit.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from facezoo import registry
from facezoo.errors import CheckpointError, FacezooError, InputError, OutputError
from facezoo.files import checkpoint_file, file_parts, sha256_bytes
from facezoo.hub.card import card_text, headline
from facezoo.hub.card_header import card_header
from facezoo.hub.manifest import (
    MANIFEST_NAME,
    load_networks,
    read_manifest,
    resolve_model,
    select_variant,
    verify_files,
    write_checkpoint,
)
from facezoo.hub.remote import explain, offline

__all__ = ["PART_BYTES", "Check", "Published", "check_checkpoint", "publish"]

PART_BYTES: Final = 256 * 2**20
"""Networks are cut into files of at most this size: a download that is killed repeats one of them at most."""

_SECTIONS: Final = ("What it does", "Intended use", "Not for", "Limits", "Training data")
_PICKLES: Final = (".ckpt", ".pt", ".pth", ".bin", ".pkl", ".pickle", ".npy", ".npz", ".joblib")
_REPOSITORY: Final = re.compile(r"[\w\-.]+/[\w\-.]+")
_SECRET: Final = re.compile(
    r"\bhf_[A-Za-z0-9]{20,}|facezoo-key-v1:|-----BEGIN [A-Z ]*PRIVATE KEY|\bAKIA[0-9A-Z]{16}\b|\bghp_[A-Za-z0-9]{30,}"
)
_PICTURE_IN_TEXT: Final = re.compile(r"!\[|<img|data:image", re.IGNORECASE)
_PATH: Final = re.compile(r"(/[\w.\-]+){2,}|[A-Za-z]:\\|~/")
"""A text that begins as a path of this machine does; names within a folder are none."""
_SMALLEST_PICTURE: Final = 16


@dataclass(frozen=True)
class Check:
    """One check of a publication.

    Attributes:
        name: what was looked at.
        problem: what is wrong and what to do; "" when nothing is.
    """

    name: str
    problem: str = ""


@dataclass(frozen=True)
class Published:
    """What ``publish`` did.

    Attributes:
        repository: "org/name".
        commit: the commit that holds all files; "" for a dry run.
        files: what lies in it, with sizes in bytes.
        checks: all of them, passed.
        card: text of the card.
    """

    repository: str
    commit: str
    files: dict[str, int]
    checks: tuple[Check, ...]
    card: str


def find_checkpoint(run: str | os.PathLike[str]) -> Path:
    """The checkpoint folder of a run folder, a checkpoint folder itself, or a bundled model's.

    Raises:
        CheckpointError: none of them.
    """
    folder = Path(run)
    for candidate in (folder / "checkpoint", folder):
        if (candidate / MANIFEST_NAME).is_file():
            return candidate
    if folder.is_dir():
        raise CheckpointError(f"{folder} holds no checkpoint; finish its training, or give the checkpoint's folder")
    found = resolve_model(os.fspath(run))
    if found.folder is None:
        raise CheckpointError(f"{found.name} has no weights: there is nothing to publish")
    return found.folder


def check_checkpoint(folder: Path, manifest: Mapping[str, Any], results: Mapping[str, Any] | None) -> list[Check]:
    """Everything that is looked at before a checkpoint leaves this machine, in order.

    Args:
        folder: the checkpoint.
        manifest: its manifest, as it is to be published.
        results: the evaluation that goes into the card.
    """
    return [
        _check("files and hashes", lambda: verify_files(folder, manifest, every_variant=True)),
        Check("no pickle", _pickles(folder)),
        Check("card", _card_problem(manifest)),
        Check("licences", _licence_problem(manifest)),
        Check("measured", _measured_problem(manifest, results)),
        Check("no picture of a person", _picture_problem(folder, manifest)),
        Check("no secret, no path", _text_problem(manifest, results)),
        _check("loads", lambda: _load(folder, manifest)),
    ]


def _check(name: str, call: Any) -> Check:
    try:
        call()
    except FacezooError as error:
        return Check(name, str(error))
    return Check(name)


def _pickles(folder: Path) -> str:
    """Files of a kind that runs code when it is read, by name and by their first bytes."""
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        with path.open("rb") as stream:
            start = stream.read(4)
        # Protocol 2 and later begin with 0x80 and a small number; torch.save writes a zip. A safetensors file begins
        # with the length of its header, whose 5th to 8th byte are 0, and a manifest with a brace.
        pickled = start[:1] == b"\x80" and start[1:2] <= b"\x05" and path.suffix != ".safetensors"
        if path.suffix in _PICKLES or pickled or start == b"PK\x03\x04":
            return f"{path.name} may hold a pickle, which runs code when it is read; take it out of {folder}"
    return ""


def _card_problem(manifest: Mapping[str, Any]) -> str:
    missing = [title for title in _SECTIONS if not manifest["card"].get(title)]
    if missing:
        return f"the manifest's card lacks {', '.join(missing)}; write them (facezoo publish --card FILE.yaml)"
    if not str(manifest["summary"]).strip():
        return "the manifest has no summary; write one line"
    return ""


def _licence_problem(manifest: Mapping[str, Any]) -> str:
    missing = [kind for kind in ("code", "weights", "data") if not manifest.get("licences", {}).get(kind)]
    if missing:
        return (
            f"licence of the {' and the '.join(missing)} is not said; write licences: {{code, weights, data}} into the "
            "card's file, or --data-licence TEXT"
        )
    return ""


def _measured_problem(manifest: Mapping[str, Any], results: Mapping[str, Any] | None) -> str:
    if not manifest["metrics"]:
        return (
            "nothing was measured: run facezoo evaluate on the checkpoint and give --evaluation FOLDER/evaluation.json"
        )
    if results is not None and results.get("name") not in (None, manifest["name"]):
        return f"the evaluation is of {results['name']}, not of {manifest['name']}; evaluate this checkpoint"
    return ""


def _tensors(path: Path) -> Iterator[tuple[str, str, list[int]]]:
    """Name, type and shape of every tensor in a safetensors file, from its header alone."""
    with path.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length))
    for name, entry in header.items():
        if name != "__metadata__":
            yield name, str(entry["dtype"]), [int(side) for side in entry["shape"]]


def _picture_problem(folder: Path, manifest: Mapping[str, Any]) -> str:
    """Tensors that are pictures, and pictures in the card."""
    for file in manifest["files"]:
        path = checkpoint_file(folder, manifest, file)
        try:
            for name, kind, shape in _tensors(path):
                if kind == "U8" and len(shape) >= 3 and sorted(shape)[-2] >= _SMALLEST_PICTURE:
                    return (
                        f"{file} holds {name}, bytes of the shape {tuple(shape)}: that looks like pictures; a "
                        "checkpoint must hold nobody's picture"
                    )
        except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
            return f"{path} is no safetensors file ({error})"
    if _PICTURE_IN_TEXT.search(json.dumps(manifest["card"])):
        return "the card shows a picture; leave it out: nobody can check whose face it is"
    return ""


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield str(key)
            yield from _texts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)


def _text_problem(manifest: Mapping[str, Any], results: Mapping[str, Any] | None) -> str:
    for text in _texts([manifest, results]):
        if _SECRET.search(text):
            return "a text of the manifest looks like it holds a token or a key (not repeated here); take it out"
        if _PATH.match(text):
            return f"a text of the manifest is a path of this machine ({text[:60]}); take it out"
    return ""


def _load(folder: Path, manifest: Mapping[str, Any]) -> None:
    """The class of the method takes every tensor, strictly: a renamed key or a foreign class fails here."""
    known = {info.name: info for info in registry.list_methods(kind=None)}
    info = known.get(manifest["method"])
    if info is None or not info.learned:
        raise CheckpointError(f"no learned method is called {manifest['method']!r}; name the right one in the manifest")
    generator = info.kind == "generator"
    learned: Any = (registry.load_generator_class if generator else registry.load_class)(manifest["method"])
    learned.from_checkpoint(folder, dict(manifest))


def _shown_training(training: Mapping[str, Any]) -> dict[str, Any]:
    """The training entry with the recipe's files by their names: where they lie is nobody's business."""

    def shown(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: shown(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [shown(inner) for inner in value]
        return Path(value).name if isinstance(value, str) and _PATH.match(value) else value

    plain: dict[str, Any] = json.loads(json.dumps(training))
    return {key: shown(value) if key == "recipe" else value for key, value in plain.items()}


def _hub_card(manifest: Mapping[str, Any], results: Mapping[str, Any] | None, repository: str) -> str:
    """The card with its metadata and the lines that load it from the hub."""
    text = card_text(manifest, results)
    text = text.replace(f'from_pretrained("{manifest["name"]}")', f'from_pretrained("{repository}")')
    text = re.sub(r"<!--.*?-->\n\n", "", text, count=1, flags=re.DOTALL)
    return card_header(manifest, results) + "\n" + text


def _read_words(path: Path) -> dict[str, Any]:
    """The words of a card (as MODEL_CARDS/text/*.yaml)."""
    allowed = {"card", "status", "version", "training", "licences", "paper", "summary"}
    try:
        words = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path} cannot be read as YAML ({str(error).splitlines()[0]})") from error
    if not isinstance(words, dict) or set(words) - allowed:
        raise InputError(f"{path} must be a mapping with {', '.join(sorted(allowed))} and nothing else")
    return words


def _read_results(path: Path) -> dict[str, Any]:
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is no evaluation.json of facezoo evaluate ({error})") from error
    if not isinstance(results, dict) or "facezoo_evaluation" not in results:
        raise InputError(f"{path} is no evaluation.json of facezoo evaluate; give that file")
    return results


def _final_manifest(
    manifest: Mapping[str, Any],
    words: Mapping[str, Any],
    results: Mapping[str, Any] | None,
    data_licence: str | None,
) -> dict[str, Any]:
    """The manifest as it is published."""
    known = {info.name: info for info in registry.list_methods(kind=None)}
    info = known.get(manifest["method"])
    final: dict[str, Any] = {**manifest, **{key: value for key, value in words.items() if key != "training"}}
    final["training"] = _shown_training({**manifest["training"], **words.get("training", {})})
    licences = {"code": "Apache-2.0", "weights": manifest["licence"], **manifest.get("licences", {})}
    licences |= words.get("licences", {})
    if data_licence:
        licences["data"] = data_licence
    final["licences"], final["licence"] = licences, licences["weights"]
    if info is not None and info.source and not final.get("paper"):
        final["paper"] = info.source
    if results is not None:
        final["metrics"] = headline(results)
    return final


def publish(
    run: str | os.PathLike[str],
    repository: str,
    *,
    private: bool = False,
    dry_run: bool = False,
    card: Path | None = None,
    evaluation: Path | None = None,
    data_licence: str | None = None,
    part_bytes: int = PART_BYTES,
    output: Path | None = None,
    token: str | None = None,
) -> Published:
    """Checks a checkpoint, writes what is to be published, and pushes it in one commit.

    Args:
        run: run folder, checkpoint folder or bundled model.
        repository: "org/name" on the hub; made when it does not exist.
        private: make it private (a repository that exists keeps what it is).
        dry_run: everything but the network.
        card: YAML with the card's words (as MODEL_CARDS/text), added to those of the manifest.
        evaluation: ``evaluation.json`` of this checkpoint; RUN/evaluation/evaluation.json when there is one.
        data_licence: rights of the pictures that it was trained on, in a few words.
        part_bytes: networks are cut into files of at most this size.
        output: also leave what is pushed in this new folder.
        token: with the right to write; None: the user's own (``HF_TOKEN``, ``hf auth login``).

    Returns:
        What was pushed, or would be.

    Raises:
        InputError: a malformed name, or a checkpoint that must not be published: the first problem found.
        CheckpointError: no checkpoint there, or the hub refused.
        OutputError: ``output`` exists or cannot be written.
    """
    if not _REPOSITORY.fullmatch(repository):
        raise InputError(f"{repository!r} is not the name of a repository; write org/name")
    if output is not None and output.exists():
        raise OutputError(f"{output} exists already; choose another folder")
    folder = find_checkpoint(run)
    manifest, _ = read_manifest(folder)
    beside = folder.parent / "evaluation" / "evaluation.json"
    if evaluation is None and folder.name == "checkpoint" and beside.is_file():
        evaluation = beside
    results = _read_results(evaluation) if evaluation is not None else None
    final = _final_manifest(manifest, _read_words(card) if card is not None else {}, results, data_licence)
    checks = tuple(check_checkpoint(folder, final, results))
    if problem := next((check for check in checks if check.problem), None):
        raise InputError(f"not published ({problem.name}): {problem.problem}")
    with tempfile.TemporaryDirectory(prefix="facezoo-publish-") as temporary:
        staged = Path(temporary) / "checkpoint"
        plain = {key: value for key, value in final.items() if key not in ("files", "checksum")}
        variants = {
            variant: {
                name: state
                for name, state in load_networks(folder, select_variant(final, variant)).items()
                if name in own
            }
            for variant, own in _variants(final).items()
        }
        networks = load_networks(folder, final)
        write_checkpoint(staged, plain, networks, variants=variants, part_bytes=part_bytes, subfolders=True)
        written, digest = read_manifest(staged)
        text = _hub_card(written, results, repository)
        (staged / "README.md").write_text(text, encoding="utf-8")
        files = {name: (staged / name).stat().st_size for name in _names(staged)}
        commit = "" if dry_run else _push(staged, repository, written, private, token, digest)
        if output is not None:
            try:
                output.parent.mkdir(parents=True, exist_ok=True)
                shutil.copytree(staged, output)
            except OSError as error:
                raise OutputError(f"cannot write {output}: {error.strerror or error}") from error
    return Published(repository, commit, files, checks, text)


def _names(staged: Path) -> list[str]:
    """The files below a folder, as a repository names them."""
    return sorted(path.relative_to(staged).as_posix() for path in staged.rglob("*") if path.is_file())


def _variants(manifest: Mapping[str, Any]) -> dict[str, set[str]]:
    """The networks of which there are other weights, by variant."""
    found: dict[str, set[str]] = {}
    for name in manifest["files"]:
        parts = file_parts(name)
        if parts is not None and parts[1]:
            found.setdefault(parts[1], set()).add(parts[0])
    return found


def _push(
    staged: Path, repository: str, manifest: Mapping[str, Any], private: bool, token: str | None, digest: str
) -> str:
    """Creates the repository and commits every file at once; files of an older version leave in the same commit.

    Returns:
        The commit.
    """
    if offline():
        raise CheckpointError("HF_HUB_OFFLINE forbids the network; unset it to publish, or use --dry-run")
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi(token=token)
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        before = {entry.rfilename for entry in api.model_info(repository).siblings or []}
        here = _names(staged)
        stale = sorted(name for name in before - set(here) if name.endswith(".safetensors"))
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            *(CommitOperationAdd(name, str(staged / name)) for name in here),
            *(CommitOperationDelete(name) for name in stale),
        ]
        message = f"{manifest['name']} {manifest['version']}"
        commit = api.create_commit(repository, operations, commit_message=message).oid
        pushed = Path(api.hf_hub_download(repository, MANIFEST_NAME, revision=commit)).read_bytes()
    except Exception as error:  # whatever the network, the hub or its client answers
        raise explain(error, repository) from error
    if sha256_bytes(pushed) != digest:
        raise CheckpointError(f"the hub holds another manifest than was pushed to {repository}@{commit}; publish again")
    return str(commit)
