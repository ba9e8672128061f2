"""Checkpoints on the Hugging Face hub: found, downloaded, checked, kept for use without network.

huggingface_hub does the transfers, so its settings hold: ``HF_ENDPOINT`` (another hub), ``HF_HUB_CACHE`` (where files
are kept), ``HF_HUB_OFFLINE=1`` (cache only), ``HF_TOKEN`` or ``hf auth login`` (private repositories). A broken
connection is taken up where it broke; after a kill every finished file is kept and the one in progress starts anew,
which is why published networks are cut into parts.

The manifest comes first. Only the files that it names are fetched, and none of them is loaded before its SHA-256 is
that of the manifest. What vouches for the manifest is the commit: a branch or a tag may point elsewhere tomorrow, so
pin the commit where it matters (``org/name@COMMIT``; ``facezoo download`` prints it).
"""

from __future__ import annotations

import contextlib
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from facezoo.errors import CheckpointError, InputError, OutputError
from facezoo.files import checkpoint_file
from facezoo.hub.manifest import (
    CHECKPOINTS,
    MANIFEST_NAME,
    REPOSITORY,
    ResolvedModel,
    bundled_models,
    read_manifest,
    resolve_model,
    select_variant,
    selected_files,
    verify_files,
    written_manifest,
)

__all__ = ["Download", "Fetched", "download", "downloadable", "explain", "fetch", "offline"]

_COMMIT: Final = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Fetched:
    """A repository's checkpoint in the local cache.

    Attributes:
        repository: "org/name".
        commit: the commit that was asked for or that the branch pointed to.
        folder: its folder in the cache.
        manifest: the checked manifest, asking for the variant that was fetched.
        sha256: SHA-256 of the manifest file.
    """

    repository: str
    commit: str
    folder: Path
    manifest: dict[str, Any]
    sha256: str


@dataclass(frozen=True)
class Download:
    """One line of ``facezoo download``.

    Attributes:
        name: the model.
        folder: where its files lie.
        bytes: of its weights.
        commit: of the hub repository; "" for a bundled model.
        transfer_seconds: time until all files were here (next to nothing when they were already).
        verify_seconds: time for size and SHA-256 of every file.
    """

    name: str
    folder: Path
    bytes: int
    commit: str
    transfer_seconds: float
    verify_seconds: float


def offline() -> bool:
    """Whether the user forbids the network (``HF_HUB_OFFLINE``)."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def explain(error: BaseException, repository: str, revision: str | None = None) -> CheckpointError:
    """What the hub's client raised, as one line that says what to do."""
    from huggingface_hub import errors

    at = f" at {revision}" if revision else ""
    entry = getattr(errors, "EntryNotFoundError", None)
    missing = getattr(errors, "RevisionNotFoundError", None)
    gated = getattr(errors, "GatedRepoError", None)
    unknown = getattr(errors, "RepositoryNotFoundError", None)
    local = getattr(errors, "LocalEntryNotFoundError", None)
    if local is not None and isinstance(error, local):
        if offline():
            return CheckpointError(
                f"{repository}{at} is not in the cache as a whole and HF_HUB_OFFLINE forbids the network; download it "
                "once with the network (facezoo download), or give a local folder"
            )
        return CheckpointError(
            f"{repository}{at} is not in the cache as a whole and the hub did not give it ({_cause(error)}); check the "
            "connection and HF_ENDPOINT, then give the same command again: finished files are kept"
        )
    if missing is not None and isinstance(error, missing):
        return CheckpointError(f"{repository} has no revision {revision}; name a branch, a tag or a commit of it")
    if gated is not None and isinstance(error, gated):
        return CheckpointError(
            f"{repository} is open only to those who were let in: ask on its page, then set HF_TOKEN or `hf auth login`"
        )
    if unknown is not None and isinstance(error, unknown):
        return CheckpointError(
            f"the hub shows no repository {repository}: check the name; if it is private, set HF_TOKEN to a token that "
            "may read it, or log in with `hf auth login`"
        )
    if entry is not None and isinstance(error, entry):
        return CheckpointError(
            f"{repository}{at} lacks a file that its {MANIFEST_NAME} names, or the manifest itself; tell its owner"
        )
    return CheckpointError(
        f"the hub did not give {repository}{at} ({_cause(error)}); check the connection and HF_ENDPOINT, then give the "
        "same command again: finished files are kept"
    )


def _cause(error: BaseException) -> str:
    """The beginning of the first message in a chain of errors: its first line, at most 90 characters."""
    while error.__cause__ is not None:
        error = error.__cause__
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return line if len(line) <= 90 else f"{line[:87].rstrip()}..."


def fetch(
    repository: str,
    *,
    revision: str | None = None,
    variant: str = "",
    token: str | None = None,
    force: bool = False,
    verify: bool = True,
) -> Fetched:
    """A repository's checkpoint, downloaded once and from the cache afterwards.

    Args:
        repository: "org/name" or "org/name@revision".
        revision: branch, tag or commit; None: what the name says, or the repository's default branch.
        variant: the weights that are wanted; the files of other variants are not fetched.
        token: for a private repository; None: the user's own (``HF_TOKEN``, ``hf auth login``).
        force: download again what is in the cache already.
        verify: compare every file's hash now. Off where the caller does so before it loads them.

    Returns:
        Where it lies.

    Raises:
        InputError: a malformed name.
        CheckpointError: unknown, private or damaged, or not in the cache and no network.
    """
    if not REPOSITORY.fullmatch(repository):
        raise InputError(f"{repository!r} is not the name of a repository; write org/name or org/name@revision")
    name, _, pinned = repository.partition("@")
    wanted = revision or pinned or None
    folder = _snapshot(name, wanted, [MANIFEST_NAME], token, force)
    if not (folder / MANIFEST_NAME).is_file():
        raise CheckpointError(f"{name} holds no {MANIFEST_NAME}, so it is no model of facezoo; check the name")
    commit = folder.name if _COMMIT.fullmatch(folder.name) else ""
    plain, digest = read_manifest(folder)
    manifest = select_variant(plain, variant)
    if shared := sorted(file for file, entry in manifest["files"].items() if "from" in entry):
        raise CheckpointError(f"{name} leaves {shared[0]} to another repository; its owner must publish it whole")
    files = selected_files(manifest)
    # The commit and not the branch: both calls must see the same files, whatever is pushed in between.
    folder = _snapshot(name, commit or wanted, [MANIFEST_NAME, *files], token, force)
    if missing := [file for file in files if not (folder / file).is_file()]:
        raise CheckpointError(f"{name} lacks {missing[0]}, which its {MANIFEST_NAME} names; tell its owner")
    if verify:
        try:
            verify_files(folder, manifest)
        except CheckpointError as error:
            if force:
                raise
            raise CheckpointError(f"{error}: facezoo download --force {name}@{commit or wanted}") from error
    return Fetched(name, commit, folder, manifest, digest)


def _snapshot(repository: str, revision: str | None, files: list[str], token: str | None, force: bool) -> Path:
    """The folder of a commit in huggingface_hub's cache, with these files in it."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise CheckpointError(
            f"{repository} looks like a Hugging Face repository, which needs: pip install huggingface_hub"
        ) from error
    try:
        with _quiet():
            found = snapshot_download(
                repository, revision=revision, allow_patterns=files, token=token, force_download=force and not offline()
            )
    except Exception as error:  # whatever the network, the hub or its client answers
        raise explain(error, repository, revision) from error
    return Path(found)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the client's warnings, which say in ten lines what the error says in one."""
    import logging

    logger = logging.getLogger("huggingface_hub")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def downloadable(root: Path = CHECKPOINTS) -> list[str]:
    """Names of every model with weights that this facezoo knows, bundled or on the hub: what ``--all`` means."""
    return sorted(bundled_models(root))


def download(
    name: str,
    *,
    revision: str | None = None,
    variant: str = "",
    token: str | None = None,
    force: bool = False,
    output: Path | None = None,
    checkpoints: Path = CHECKPOINTS,
    clock: Callable[[], float] = time.perf_counter,
) -> Download:
    """Brings a model here and compares every file with its hash.

    Args:
        name: a model of ``facezoo list``, "org/name" or "org/name@revision".
        revision: of a hub repository.
        variant: the weights that are wanted.
        token: for a private repository.
        force: fetch the files of a hub repository again (after damage).
        output: also copy the checkpoint into this new folder, for a machine without network.
        checkpoints: folder of the bundled checkpoints.
        clock: for the times.

    Returns:
        What was done.

    Raises:
        UnknownNameError: no such model.
        CheckpointError: damaged or not reachable; a method without weights has nothing to download.
        OutputError: ``output`` exists or cannot be written.
    """
    if output is not None and output.exists():
        raise OutputError(f"{output} exists already; choose another folder")
    started = clock()
    if REPOSITORY.fullmatch(name) and not Path(name).is_dir():
        found = fetch(name, revision=revision, variant=variant, token=token, force=force, verify=False)
        model = ResolvedModel(
            found.manifest["name"], found.manifest["method"], found.folder, found.manifest, found.sha256, found.commit
        )
    else:
        model = resolve_model(name, revision=revision, variant=variant, token=token, checkpoints=checkpoints)
    if model.folder is None or model.manifest is None:
        raise CheckpointError(f"{model.name} has no weights: there is nothing to download, it works as it is")
    here = clock()
    try:
        verify_files(model.folder, model.manifest)
    except CheckpointError as error:
        if not model.commit or force:
            raise
        raise CheckpointError(f"{error}: facezoo download --force {name.partition('@')[0]}@{model.commit}") from error
    verified = clock()
    if output is not None:
        _copy(model.folder, model.manifest, output)
    size = sum(model.manifest["files"][file]["bytes"] for file in selected_files(model.manifest))
    return Download(model.name, output or model.folder, size, model.commit, here - started, verified - here)


def _copy(folder: Path, manifest: Mapping[str, Any], output: Path) -> None:
    """A plain folder with all files of the checkpoint, or nothing.

    One variant, or files that it shares with another checkpoint: what is copied is a whole checkpoint of its own with a
    manifest of its own.
    """
    temporary = output.parent / f".{output.name}.part"
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        chosen = selected_files(manifest)
        variant = f".{manifest['variant']}" if "variant" in manifest else ""
        entries: dict[str, dict[str, Any]] = {}
        for file in chosen:
            plain = file.replace(variant, "", 1) if variant else file
            (temporary / plain).parent.mkdir(exist_ok=True)
            shutil.copyfile(checkpoint_file(folder, manifest, file), temporary / plain)
            entries[plain] = {key: value for key, value in manifest["files"][file].items() if key != "from"}
        if entries == read_manifest(folder)[0]["files"]:
            shutil.copyfile(folder / MANIFEST_NAME, temporary / MANIFEST_NAME)
        else:
            (temporary / MANIFEST_NAME).write_text(written_manifest({**manifest, "files": entries}), encoding="utf-8")
        verify_files(temporary, read_manifest(temporary)[0])
        temporary.rename(output)
    except OSError as error:
        raise OutputError(f"cannot write {output}: {error.strerror or error}; choose another folder") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
