"""Checkpoints: what lies in their folder, how they are found, checked, read and written.

A checkpoint is a folder: ``manifest.json`` and one safetensors file per network. Nothing in it is ever executed or
unpickled. Before a network is loaded, the size and the SHA-256 of every file are compared with the manifest; the
manifest of a bundled checkpoint is itself compared with ``facezoo/checkpoints/registry.json``.

``manifest.json``::

    {"format": "facezoo-checkpoint", "format_version": 1,
     "name": "identity_rotation.faces128", "method": "identity_rotation", "version": "1.0.0", "status": "trained",
     "summary": "one line", "crop_size": 128, "config": {...}, "preprocessing": {...},
     "files": {"generator.safetensors": {"sha256": "...", "bytes": 123}},
     "metrics": {...}, "licence": "Apache-2.0", "training": {...}, "card": {"section title": "text", ...},
     "checksum": "..."}

``checksum`` is over all other fields: it finds damage, not malice. It is written always, and may be left out of a
manifest that was edited by hand.

torch, safetensors and huggingface_hub are imported when they are first needed.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from facezoo.errors import CheckpointError, FacezooError, OutputError, UnknownNameError
from facezoo.files import sha256_bytes, sha256_file

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = [
    "CHECKPOINTS",
    "MANIFEST_NAME",
    "ResolvedModel",
    "bundled_models",
    "load_networks",
    "load_strictly",
    "read_manifest",
    "resolve_model",
    "verify_files",
    "write_checkpoint",
]

MANIFEST_NAME: Final = "manifest.json"
FORMAT: Final = "facezoo-checkpoint"
FORMAT_VERSION: Final = 1

_PACKAGE: Final = Path(__file__).resolve().parent.parent


def _checkpoint_root() -> Path:
    inside = _PACKAGE / "checkpoints"
    beside = _PACKAGE.parent / "checkpoints"
    # In the repository (and in an editable install) the folder lies at the root, where people look for it.
    return (
        beside if beside.is_dir() and not inside.is_dir() and (_PACKAGE.parent / "pyproject.toml").is_file() else inside
    )


CHECKPOINTS: Final = _checkpoint_root()
"""The bundled checkpoints: ``facezoo/checkpoints`` in the wheel, ``checkpoints`` at the root of the repository."""

_FIELDS: Final[dict[str, type | tuple[type, ...]]] = {
    "format": str,
    "format_version": int,
    "name": str,
    "method": str,
    "version": str,
    "status": str,
    "summary": str,
    "crop_size": int,
    "config": dict,
    "preprocessing": dict,
    "files": dict,
    "metrics": dict,
    "licence": str,
    "training": dict,
    "card": dict,
}
"""Every field of a manifest and its type; each is required and no other is allowed."""

_DEFAULTS: Final[dict[str, object]] = {
    "format": FORMAT,
    "format_version": FORMAT_VERSION,
    "version": "1.0.0",
    "status": "experimental",
    "summary": "",
    "preprocessing": {},
    "metrics": {},
    "licence": "Apache-2.0",
    "training": {},
    "card": {},
}
"""Fields that ``write_checkpoint`` fills in when the caller leaves them out."""

_CHECKSUM: Final = "checksum"
"""The one field that may be missing."""

_NAME: Final = re.compile(r"[a-z0-9_]+\.[a-z0-9_\-]+")
_FILE: Final = re.compile(r"[A-Za-z0-9_\-]+\.safetensors")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_REPOSITORY: Final = re.compile(r"[\w\-.]+/[\w\-.]+(@[\w\-./]+)?")
_MAX_MANIFEST_BYTES: Final = 4 * 2**20


@dataclass(frozen=True)
class ResolvedModel:
    """Where a model name leads.

    Attributes:
        name: the name for records and cards: "gaussian_blur" or "identity_rotation.faces128".
        method: name of the method in the registry.
        folder: the checkpoint's folder; None for a method without weights.
        manifest: the checkpoint's manifest; None for a method without weights.
        sha256: SHA-256 of the manifest file (which holds the hashes of all others); "" for a method without weights.
    """

    name: str
    method: str
    folder: Path | None = None
    manifest: Mapping[str, Any] | None = None
    sha256: str = ""


def _no_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a field occurs twice")
    return result


def _checksum(manifest: Mapping[str, Any]) -> str:
    """SHA-256 over every field but the checksum itself."""
    content = {name: value for name, value in manifest.items() if name != _CHECKSUM}
    return sha256_bytes(json.dumps(content, sort_keys=True, separators=(",", ":")).encode())


def _check_manifest(manifest: object, where: Path) -> dict[str, Any]:
    """Check fields and types; returns the manifest."""

    def wrong(what: str) -> CheckpointError:
        return CheckpointError(f"the checkpoint {where.parent} is not usable: {what}; get a fresh copy of it")

    if not isinstance(manifest, dict):
        raise wrong(f"{MANIFEST_NAME} does not hold a JSON object")
    if manifest.get("format") != FORMAT:
        raise wrong(f'{MANIFEST_NAME} is no facezoo manifest ("format" is not "{FORMAT}")')
    if manifest.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"the checkpoint {where.parent} has format version {manifest.get('format_version')!r} and this facezoo "
            f"reads version {FORMAT_VERSION}; update facezoo or get the matching checkpoint"
        )
    if missing := sorted(set(_FIELDS) - set(manifest)):
        raise wrong(f"{MANIFEST_NAME} lacks {', '.join(missing)}")
    if unknown := sorted(set(manifest) - set(_FIELDS) - {_CHECKSUM}):
        raise wrong(f"{MANIFEST_NAME} has unknown fields: {', '.join(map(str, unknown))}")
    for field, kind in _FIELDS.items():
        if not isinstance(manifest[field], kind) or isinstance(manifest[field], bool):
            raise wrong(f'"{field}" in {MANIFEST_NAME} has the wrong type')
    if not _NAME.fullmatch(manifest["name"]):
        raise wrong(f'the name {manifest["name"]!r} is not of the form "method.tag"')
    if manifest["name"].split(".")[0] != manifest["method"]:
        raise wrong(f"the name {manifest['name']!r} does not begin with its method {manifest['method']!r}")
    if manifest["crop_size"] < 16 or manifest["crop_size"] > 1024:
        raise wrong(f"the crop size {manifest['crop_size']} is outside 16 to 1024")
    for name, entry in manifest["files"].items():
        # The pattern keeps every file inside the folder: no separators, no "..".
        if not _FILE.fullmatch(name):
            raise wrong(f"{name!r} is not the name of a safetensors file")
        if not isinstance(entry, dict) or set(entry) != {"sha256", "bytes"}:
            raise wrong(f"the entry of {name} must hold exactly sha256 and bytes")
        if not isinstance(entry["sha256"], str) or not _SHA256.fullmatch(entry["sha256"]):
            raise wrong(f"the sha256 of {name} is malformed")
        if not isinstance(entry["bytes"], int) or isinstance(entry["bytes"], bool) or entry["bytes"] < 0:
            raise wrong(f"the size of {name} is malformed")
    if _CHECKSUM in manifest and manifest[_CHECKSUM] != _checksum(manifest):
        raise wrong(f"{MANIFEST_NAME} is damaged or was edited (its checksum is wrong)")
    return manifest


def read_manifest(folder: str | os.PathLike[str]) -> tuple[dict[str, Any], str]:
    """Read and check ``manifest.json`` of a checkpoint folder. The networks' files are not touched.

    Args:
        folder: the checkpoint's folder.

    Returns:
        The manifest, and the SHA-256 of its file.

    Raises:
        CheckpointError: missing, unreadable, not JSON, or with missing, unknown or malformed fields.
    """
    path = Path(folder) / MANIFEST_NAME
    try:
        with path.open("rb") as stream:
            data = stream.read(_MAX_MANIFEST_BYTES + 1)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise CheckpointError(f"cannot read {path}: {reason}; a checkpoint folder must hold {MANIFEST_NAME}") from error
    if len(data) > _MAX_MANIFEST_BYTES:
        raise CheckpointError(f"{path} is too big for a manifest; get a fresh copy of the checkpoint")
    try:
        manifest = json.loads(data.decode("utf-8"), object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); get a fresh copy of the checkpoint") from error
    return _check_manifest(manifest, path), sha256_bytes(data)


def verify_files(folder: str | os.PathLike[str], manifest: Mapping[str, Any]) -> None:
    """Compare size and SHA-256 of every file with the manifest.

    Raises:
        CheckpointError: a file is missing, truncated or altered (one flipped bit is enough), or the folder holds
            weights that the manifest does not name (nothing would vouch for them).
    """
    try:
        present = sorted(path.name for path in Path(folder).iterdir() if path.name.endswith(".safetensors"))
    except OSError as error:
        raise CheckpointError(f"cannot read {folder}: {error.strerror}; check its permissions") from error
    if foreign := [name for name in present if name not in manifest["files"]]:
        raise CheckpointError(
            f"{folder} holds {foreign[0]}, which its {MANIFEST_NAME} does not name; get a fresh copy of the checkpoint"
        )
    for name, entry in manifest["files"].items():
        path = Path(folder) / name
        try:
            size = path.stat().st_size
            if not path.is_file():
                raise CheckpointError(f"{path} is not a file; get a fresh copy of the checkpoint")
            if size != entry["bytes"]:
                raise CheckpointError(
                    f"{path} has {size} bytes instead of {entry['bytes']}; get a fresh copy of the checkpoint"
                )
            digest = sha256_file(path)
        except FileNotFoundError as error:
            raise CheckpointError(f"{path} is missing; get a fresh copy of the checkpoint") from error
        except (OSError, FacezooError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"cannot read {path}: {error}; check its permissions") from error
        if digest != entry["sha256"]:
            raise CheckpointError(
                f"{path} is damaged or was altered (its SHA-256 is not the manifest's); get a fresh copy"
            )


def load_networks(folder: str | os.PathLike[str], manifest: Mapping[str, Any]) -> dict[str, dict[str, Tensor]]:
    """Check every file and read the networks.

    Returns:
        State dicts by network name (the file's name without ``.safetensors``), on the CPU.

    Raises:
        CheckpointError: as ``verify_files``, or a file that is no safetensors file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    networks: dict[str, dict[str, Tensor]] = {}
    for name, entry in manifest["files"].items():
        # The bytes that are hashed are the bytes that are loaded: a file swapped in between changes nothing.
        path = Path(folder) / name
        try:
            data = path.read_bytes()
        except FileNotFoundError as error:
            raise CheckpointError(f"{path} is missing; get a fresh copy of the checkpoint") from error
        except OSError as error:
            raise CheckpointError(f"cannot read {path}: {error.strerror}; check its permissions") from error
        if len(data) != entry["bytes"]:
            raise CheckpointError(
                f"{path} has {len(data)} bytes instead of {entry['bytes']}; get a fresh copy of the checkpoint"
            )
        if sha256_bytes(data) != entry["sha256"]:
            raise CheckpointError(
                f"{path} is damaged or was altered (its SHA-256 is not the manifest's); get a fresh copy"
            )
        try:
            networks[name.removesuffix(".safetensors")] = load(data)
        except (SafetensorError, ValueError, KeyError) as error:
            raise CheckpointError(f"{path} is not a safetensors file: {error}") from error
    return networks


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    """Load a state dict: every tensor must be there, with its shape and a finite content, and no other.

    Args:
        module: the network to fill.
        state: its tensors.
        what: what to call it in the message, e.g. "identity_rotation.faces128/generator".

    Raises:
        CheckpointError: missing or unknown tensors, another shape, NaN or infinite values.
    """
    import torch

    expected = module.state_dict()
    if missing := sorted(set(expected) - set(state)):
        raise CheckpointError(f"{what} lacks {len(missing)} tensors ({missing[0]}, ...); it does not fit its config")
    if unknown := sorted(set(state) - set(expected)):
        raise CheckpointError(f"{what} has {len(unknown)} unknown tensors ({unknown[0]}, ...); it does not fit")
    for name, value in state.items():
        if value.shape != expected[name].shape:
            raise CheckpointError(
                f"{what}: {name} has the shape {tuple(value.shape)} instead of {tuple(expected[name].shape)}"
            )
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise CheckpointError(f"{what}: {name} holds values that are not finite; export it again")
    module.load_state_dict(dict(state), strict=True)


def bundled_models(root: Path = CHECKPOINTS) -> dict[str, dict[str, Any]]:
    """Bundled checkpoints by name, from ``registry.json``; empty where there is no such file.

    Returns:
        ``{name: {"folder", "manifest_sha256", "method", "status", "summary", "crop_size", "bytes"}}``.

    Raises:
        CheckpointError: the registry is damaged.
    """
    path = root / "registry.json"
    if not path.is_file():
        return {}
    try:
        models = json.loads(path.read_text(encoding="utf-8"))["models"]
        if not isinstance(models, dict) or any(not isinstance(entry, dict) for entry in models.values()):
            raise TypeError("models is not an object of objects")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); install facezoo again") from error
    return dict(models)


def _from_folder(folder: Path) -> ResolvedModel:
    manifest, digest = read_manifest(folder)
    return ResolvedModel(manifest["name"], manifest["method"], folder, manifest, digest)


def _from_hub(name: str, revision: str | None) -> ResolvedModel:
    """Download (or find in the cache) a Hugging Face repository; works offline once it is cached."""
    repository, _, pinned = name.partition("@")
    wanted = revision or pinned or None
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise CheckpointError(
            f"{name} looks like a Hugging Face repository, which needs: pip install huggingface_hub"
        ) from error
    patterns = [MANIFEST_NAME, "*.safetensors"]
    try:
        folder = snapshot_download(repository, revision=wanted, allow_patterns=patterns)
    except Exception as error:  # whatever the network, the hub or its client answers
        try:
            folder = snapshot_download(repository, revision=wanted, allow_patterns=patterns, local_files_only=True)
        except Exception:
            raise CheckpointError(
                f"there is no folder {name} here, it is not in the cache, and the Hugging Face hub did not give it "
                f"({_short(error)}); check the name and the connection, or give a local folder"
            ) from error
    return _from_folder(Path(folder))


def _short(error: BaseException) -> str:
    """The beginning of another library's message: its first line, at most 90 characters."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return line if len(line) <= 90 else f"{line[:87].rstrip()}..."


def resolve_model(
    name: str | os.PathLike[str], *, revision: str | None = None, checkpoints: Path = CHECKPOINTS
) -> ResolvedModel:
    """Find a model: a local checkpoint folder, a bundled checkpoint, a method without weights, or a hub repository.

    Tried in this order:

    1. a folder that holds ``manifest.json``;
    2. a bundled checkpoint by its full name (``identity_rotation.faces128``), or a method by its own name when
       exactly one checkpoint of it is bundled;
    3. a method without weights (``gaussian_blur``);
    4. a Hugging Face repository ``org/name`` or ``org/name@revision`` (downloaded once, then from the cache).

    Args:
        name: one of the above.
        revision: branch, tag or commit of the hub repository; None: the repository's default.
        checkpoints: folder of the bundled checkpoints.

    Returns:
        What was found; the networks' files are checked later, when they are loaded.

    Raises:
        UnknownNameError: nothing of that name; the message lists what there is.
        CheckpointError: found, but damaged or not reachable.
    """
    if not isinstance(name, str | os.PathLike):
        raise UnknownNameError(f"a model's name is text or a path, not {type(name).__name__}; see `facezoo list`")
    text = os.fspath(name)
    if not text or "\x00" in text:
        raise UnknownNameError("the model's name is empty or malformed; see `facezoo list`")
    folder = Path(text)
    is_path = text.startswith((".", "~", "/", os.sep)) or text.endswith(("/", os.sep)) or folder.is_absolute()
    try:
        if (folder / MANIFEST_NAME).is_file():
            return _from_folder(folder)
        if folder.is_dir() and (os.sep in text or is_path):
            raise CheckpointError(
                f"the folder {text} holds no {MANIFEST_NAME}; give a checkpoint folder or a model's name"
            )
        if folder.is_file() and (os.sep in text or is_path):
            raise CheckpointError(f"{text} is a file; give the checkpoint's folder or a model's name")
    except OSError as error:
        raise UnknownNameError(f"the model's name cannot be used: {error.strerror}; see `facezoo list`") from error
    if is_path:
        raise UnknownNameError(f"there is no checkpoint folder {text}; check the path, or see `facezoo list` for names")

    bundled = bundled_models(checkpoints)
    wanted = text
    if text not in bundled:
        of_method = [full for full, entry in bundled.items() if entry.get("method") == text]
        if len(of_method) == 1:
            wanted = of_method[0]
        elif len(of_method) > 1:
            raise UnknownNameError(f"{text} has several checkpoints; choose one of: {', '.join(sorted(of_method))}")
    if wanted in bundled:
        entry = bundled[wanted]
        found = _from_folder(checkpoints / str(entry.get("folder", wanted)))
        if found.sha256 != entry.get("manifest_sha256"):
            raise CheckpointError(
                f"the manifest of the bundled {wanted} was altered (its SHA-256 is not the registry's); "
                "install facezoo again"
            )
        return found

    from facezoo import registry

    methods = {info.name: info for info in registry.list_methods(kind=None)}
    if text in methods:
        if methods[text].learned:
            raise CheckpointError(
                f"{text} is a learned method and no checkpoint of it is bundled; give a checkpoint folder, "
                "a Hugging Face repository (org/name), or train one with `facezoo train`"
            )
        return ResolvedModel(text, text)
    if _REPOSITORY.fullmatch(text):
        return _from_hub(text, revision)
    method, _, tag = text.partition(".")
    if tag and method in methods and methods[method].learned:
        of_method = sorted(full for full, entry in bundled.items() if entry.get("method") == method)
        raise UnknownNameError(
            f"no checkpoint {text} is bundled (of {method} there {'are' if len(of_method) > 1 else 'is'}: "
            f"{', '.join(of_method) or 'none'}); give its folder, or a Hugging Face repository (org/name)"
        )
    choices = sorted(set(bundled) | {info.name for info in methods.values() if not info.learned})
    raise UnknownNameError(f"unknown model {text!r}{_nearest(text, choices)}; there are: {', '.join(choices)}")


def _nearest(name: str, choices: list[str]) -> str:
    import difflib

    near = difflib.get_close_matches(name, choices, n=2, cutoff=0.6)
    return f" (did you mean {' or '.join(near)}?)" if near else ""


def write_checkpoint(
    folder: str | os.PathLike[str],
    manifest: Mapping[str, object],
    networks: Mapping[str, Mapping[str, Tensor]],
    *,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write a checkpoint folder: all of it or nothing.

    The files go to a temporary folder beside, which is then renamed.

    Args:
        folder: the checkpoint's folder.
        manifest: at least ``name``, ``method``, ``crop_size`` and ``config``; the others have defaults; ``files`` is
            made here. Plain JSON values only.
        networks: state dicts by network name, e.g. ``{"generator": generator.state_dict()}``. Tensors are copied to
            the CPU; tensors that share memory are written out separately.
        overwrite: whether an existing checkpoint may be replaced.

    Returns:
        The manifest as written.

    Raises:
        OutputError: the folder exists (and ``overwrite`` is off) or cannot be written.
        CheckpointError: a manifest that could not be read again, or tensors with values that are not finite.
    """
    import torch
    from safetensors.torch import save

    target = Path(folder)
    if target.exists() and not overwrite:
        raise OutputError(f"{target} exists already; choose another folder or allow overwriting")
    if target.exists() and not (target / MANIFEST_NAME).is_file():
        raise OutputError(f"{target} is not a checkpoint folder and is not replaced; choose another folder")
    contents: dict[str, bytes] = {}
    for name, state in networks.items():
        tensors: dict[str, Tensor] = {}
        for key, value in state.items():
            tensor = value.detach().to("cpu", copy=True).contiguous()
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise CheckpointError(f"{name}: {key} holds values that are not finite; the checkpoint is not written")
            tensors[key] = tensor
        contents[f"{name}.safetensors"] = save(tensors)
    full: dict[str, Any] = {**_DEFAULTS, **manifest}
    full["files"] = {name: {"sha256": sha256_bytes(data), "bytes": len(data)} for name, data in contents.items()}
    try:
        full[_CHECKSUM] = _checksum(json.loads(json.dumps(full, allow_nan=False)))
        text = json.dumps(full, indent=2, sort_keys=True, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"the manifest holds a value that JSON cannot hold ({error})") from error
    checked = _check_manifest(json.loads(text), target / MANIFEST_NAME)
    contents[MANIFEST_NAME] = text.encode()

    temporary = target.parent / f".{target.name}-{secrets.token_hex(6)}.tmp"
    retired = target.parent / f".{target.name}-{secrets.token_hex(6)}.old"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        for name, data in contents.items():
            with (temporary / name).open("wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
        if target.exists():
            target.rename(retired)
        temporary.rename(target)
    except OSError as error:
        if retired.exists() and not target.exists():
            retired.rename(target)
        raise OutputError(f"cannot write the checkpoint {target}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if target.exists():
            shutil.rmtree(retired, ignore_errors=True)
    return checked
