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
     "licences": {"code": "Apache-2.0", "weights": "Apache-2.0", "data": "..."}, "paper": "...",
     "checksum": "..."}

A file is called ``NETWORK[.VARIANT][-00001-of-00003].safetensors``. Files without a variant hold the averaged weights
(EMA), which are used unless a variant is asked for; ``last`` are the weights of the last batch without the average. Big
networks are cut into parts by size, so that a download that breaks off repeats little.

``licences`` (of the code, of the weights, of the pictures that they were trained on) and ``paper`` may be missing;
``facezoo publish`` asks for them. ``licence`` is that of the weights.

A file's entry may have ``"from": "identity_rotation.faces128"``: the file lies in that checkpoint's folder beside this
one, and is checked against the hash here all the same. So two models that share networks are stored once.

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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from facezoo.errors import CheckpointError, FacezooError, OutputError, UnknownNameError
from facezoo.files import checkpoint_file, file_parts, network_files, sha256_bytes, sha256_file

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = [
    "CHECKPOINTS",
    "RECOMMENDED",
    "MANIFEST_NAME",
    "REPOSITORY",
    "ResolvedModel",
    "bundled_models",
    "load_networks",
    "load_strictly",
    "read_manifest",
    "resolve_model",
    "select_variant",
    "selected_files",
    "verify_files",
    "weights_sha256",
    "write_checkpoint",
    "written_manifest",
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


RECOMMENDED: Final = frozenset({"identity_dp.mesh128", "identity_rotation.mesh128"})
"""What a method's own name means where several checkpoints of it are bundled; at most one a method."""

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
_OPTIONAL: Final[dict[str, type]] = {"licences": dict, "paper": str, _CHECKSUM: str}
"""Fields that may be missing, and their types."""

_LICENCES: Final = ("code", "weights", "data")

_NAME: Final = re.compile(r"[a-z0-9_]+\.[a-z0-9_\-]+")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
REPOSITORY: Final = re.compile(r"[\w\-.]+/[\w\-.]+(@[\w\-./]+)?")
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
        commit: commit of the hub repository that it came from; "" for everything else.
    """

    name: str
    method: str
    folder: Path | None = None
    manifest: Mapping[str, Any] | None = None
    sha256: str = ""
    commit: str = ""

    @property
    def weights_sha256(self) -> str:
        """What records and results are tied to, see ``weights_sha256``; "" for a method without weights."""
        return "" if self.manifest is None else weights_sha256(self.manifest)


def weights_sha256(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of what decides what a model does: method, configuration, preprocessing and the networks' hashes.

    The words and figures of a card may be corrected, and the files of a repository laid out in another way, without
    making records unusable that were written before.
    """
    networks = {
        f"{network}/{number}": manifest["files"][file]["sha256"]
        for network, files in network_files(manifest).items()
        for number, file in enumerate(files)
    }
    content = {name: manifest[name] for name in ("method", "crop_size", "preprocessing", "config")}
    text = json.dumps({**content, "networks": networks}, sort_keys=True, separators=(",", ":"))
    return sha256_bytes(text.encode())


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
    if unknown := sorted(set(manifest) - set(_FIELDS) - set(_OPTIONAL)):
        raise wrong(f"{MANIFEST_NAME} has unknown fields: {', '.join(map(str, unknown))}")
    for field, kind in (_FIELDS | _OPTIONAL).items():
        if field in manifest and (not isinstance(manifest[field], kind) or isinstance(manifest[field], bool)):
            raise wrong(f'"{field}" in {MANIFEST_NAME} has the wrong type')
    for kind_of_licence, licence in manifest.get("licences", {}).items():
        if kind_of_licence not in _LICENCES or not isinstance(licence, str):
            raise wrong(f'"licences" in {MANIFEST_NAME} must hold texts for {", ".join(_LICENCES)}')
    if not _NAME.fullmatch(manifest["name"]):
        raise wrong(f'the name {manifest["name"]!r} is not of the form "method.tag"')
    if manifest["name"].split(".")[0] != manifest["method"]:
        raise wrong(f"the name {manifest['name']!r} does not begin with its method {manifest['method']!r}")
    if manifest["crop_size"] < 16 or manifest["crop_size"] > 1024:
        raise wrong(f"the crop size {manifest['crop_size']} is outside 16 to 1024")
    parts_of: dict[tuple[str, str, int], set[int]] = {}
    for name, entry in manifest["files"].items():
        # The pattern keeps every file inside the folder: no "..", and no separator but that of a network's own folder.
        parts = file_parts(name)
        if parts is None:
            raise wrong(f"{name!r} is not the name of a safetensors file")
        there = parts_of.setdefault((parts[0], parts[1], parts[3]), set())
        if parts[2] in there:
            raise wrong(f"a part of {parts[0]} is named twice")
        there.add(parts[2])
        if not isinstance(entry, dict) or set(entry) - {"from"} != {"sha256", "bytes"}:
            raise wrong(f"the entry of {name} must hold exactly sha256 and bytes, and from where it is shared")
        # Another checkpoint's name is a folder's name: the pattern lets nothing else through.
        if "from" in entry and (not isinstance(entry["from"], str) or not _NAME.fullmatch(entry["from"])):
            raise wrong(f"{name} is shared from something that is no checkpoint's name")
        if not isinstance(entry["sha256"], str) or not _SHA256.fullmatch(entry["sha256"]):
            raise wrong(f"the sha256 of {name} is malformed")
        if not isinstance(entry["bytes"], int) or isinstance(entry["bytes"], bool) or entry["bytes"] < 0:
            raise wrong(f"the size of {name} is malformed")
    for (network, _, count), there in parts_of.items():
        if there != set(range(1, count + 1)):
            raise wrong(f"{network} is said to have {count} parts and not all of them are named")
    if len({key[:2] for key in parts_of}) != len(parts_of):
        raise wrong("a network is there both whole and in parts, or in two cuts")
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


def select_variant(manifest: Mapping[str, Any], variant: str) -> dict[str, Any]:
    """The manifest, asking for a variant of the weights ("last"; "" for the averaged ones).

    Raises:
        CheckpointError: the checkpoint has no such variant.
    """
    there = {parts[1] for name in manifest["files"] if (parts := file_parts(name)) is not None} - {""}
    if variant and variant not in there:
        raise CheckpointError(
            f"{manifest['name']} has no variant {variant!r} of its weights; "
            + (f"there is: {', '.join(sorted(there))}" if there else "it has the averaged ones only")
        )
    plain = {key: value for key, value in manifest.items() if key != "variant"}
    return {**plain, "variant": variant} if variant else plain


def selected_files(manifest: Mapping[str, Any]) -> list[str]:
    """Names of the files that the manifest's variant consists of."""
    return [name for names in network_files(manifest).values() for name in names]


def verify_files(folder: str | os.PathLike[str], manifest: Mapping[str, Any], *, every_variant: bool = False) -> None:
    """Compare size and SHA-256 of every file with the manifest.

    Args:
        folder: the checkpoint's folder.
        manifest: its manifest.
        every_variant: look at all files, not only at those of the variant that the manifest asks for.

    Raises:
        CheckpointError: a file is missing, truncated or altered (one flipped bit is enough), or the folder holds
            weights that the manifest does not name (nothing would vouch for them).
    """
    try:
        present = sorted(path.name for path in Path(folder).iterdir() if path.name.endswith(".safetensors"))
    except OSError as error:
        raise CheckpointError(f"cannot read {folder}: {error.strerror}; check its permissions") from error
    own = {name for name, entry in manifest["files"].items() if "from" not in entry}
    if foreign := [name for name in present if name not in own]:
        raise CheckpointError(
            f"{folder} holds {foreign[0]}, which its {MANIFEST_NAME} does not name; get a fresh copy of the checkpoint"
        )
    for name in manifest["files"] if every_variant else selected_files(manifest):
        entry = manifest["files"][name]
        path = checkpoint_file(Path(folder), manifest, name)
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
            raise _missing(path, entry) from error
        except (OSError, FacezooError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"cannot read {path}: {error}; check its permissions") from error
        if digest != entry["sha256"]:
            raise CheckpointError(
                f"{path} is damaged or was altered (its SHA-256 is not the manifest's); get a fresh copy"
            )


def _missing(path: Path, entry: Mapping[str, Any]) -> CheckpointError:
    if "from" in entry:
        return CheckpointError(
            f"{path} is missing: this checkpoint shares it with {entry['from']}, whose folder must lie beside its own"
        )
    return CheckpointError(f"{path} is missing; get a fresh copy of the checkpoint")


def load_networks(
    folder: str | os.PathLike[str], manifest: Mapping[str, Any], *, names: Sequence[str] | None = None
) -> dict[str, dict[str, Tensor]]:
    """Check every file and read the networks.

    Args:
        folder: the checkpoint's folder.
        manifest: its manifest.
        names: of the networks that are read; None: all.

    Returns:
        State dicts by network name, on the CPU; those of the variant that the manifest asks for.

    Raises:
        CheckpointError: as ``verify_files``, or a file that is no safetensors file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    networks: dict[str, dict[str, Tensor]] = {}
    network_of = {
        file: network
        for network, files in network_files(manifest).items()
        if names is None or network in names
        for file in files
    }
    for name, network in network_of.items():
        entry = manifest["files"][name]
        # The bytes that are hashed are the bytes that are loaded: a file swapped in between changes nothing.
        path = checkpoint_file(Path(folder), manifest, name)
        try:
            data = path.read_bytes()
        except FileNotFoundError as error:
            raise _missing(path, entry) from error
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
            tensors = load(data)
        except (SafetensorError, ValueError, KeyError) as error:
            raise CheckpointError(f"{path} is not a safetensors file: {error}") from error
        state = networks.setdefault(network, {})
        if twice := sorted(set(tensors) & set(state)):
            raise CheckpointError(
                f"{path} holds {twice[0]}, which another part of {network} holds too; export it again"
            )
        state |= tensors
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
                f"{what}: {name} has the shape {tuple(value.shape)} instead of "
                f"{tuple(expected[name].shape)}; it does not fit its config"
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


def _from_hub(name: str, revision: str | None, variant: str, token: str | None) -> ResolvedModel:
    """Download (or find in the cache) a Hugging Face repository; the hashes are compared when it is loaded."""
    from facezoo.hub.remote import fetch

    found = fetch(name, revision=revision, variant=variant, token=token, verify=False)
    return ResolvedModel(
        found.manifest["name"], found.manifest["method"], found.folder, found.manifest, found.sha256, found.commit
    )


def _from_entry(name: str, entry: Mapping[str, Any], folder: Path, variant: str, token: str | None) -> ResolvedModel:
    """A model of the registry: its folder here, or else its repository on the hub at the commit that is pinned."""
    hub = entry.get("hub")
    if not (folder / MANIFEST_NAME).is_file() and isinstance(hub, Mapping):
        found = _from_hub(str(hub.get("repository")), str(hub.get("commit")), variant, token)
    else:
        found = _from_folder(folder)
    if found.sha256 != entry.get("manifest_sha256"):
        raise CheckpointError(
            f"the manifest of the bundled {name} was altered (its SHA-256 is not the registry's); install facezoo again"
        )
    return found


def resolve_model(
    name: str | os.PathLike[str],
    *,
    revision: str | None = None,
    variant: str = "",
    token: str | None = None,
    checkpoints: Path = CHECKPOINTS,
) -> ResolvedModel:
    """Find a model: a local checkpoint folder, a bundled checkpoint, a method without weights, or a hub repository.

    Tried in this order:

    1. a folder that holds ``manifest.json``;
    2. a bundled checkpoint by its full name (``identity_rotation.faces128``), or a method by its own name when
       exactly one checkpoint of it is bundled, or one of several is in ``RECOMMENDED``;
    3. a method without weights (``gaussian_blur``);
    4. a Hugging Face repository ``org/name`` or ``org/name@revision`` (downloaded once, then from the cache).

    Args:
        name: one of the above.
        revision: branch, tag or commit of the hub repository; None: the repository's default. Only a commit says for
            good what is loaded.
        variant: other weights of the checkpoint than the averaged ones: "last".
        token: for a private repository; None: that of ``HF_TOKEN`` or of ``hf auth login``.
        checkpoints: folder of the bundled checkpoints.

    Returns:
        What was found; the networks' files are checked later, when they are loaded.

    Raises:
        UnknownNameError: nothing of that name; the message lists what there is.
        CheckpointError: found, but damaged or not reachable.
    """
    found = _resolve(name, revision, variant, token, checkpoints)
    if found.manifest is None:
        if variant:
            raise CheckpointError(f"{found.name} has no weights, so no variant {variant!r} of them")
        return found
    return replace(found, manifest=select_variant(found.manifest, variant))


def _resolve(
    name: str | os.PathLike[str], revision: str | None, variant: str, token: str | None, checkpoints: Path
) -> ResolvedModel:
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
        preferred = [full for full in of_method if full in RECOMMENDED] or of_method
        if len(preferred) == 1:
            wanted = preferred[0]
        elif len(of_method) > 1:
            raise UnknownNameError(f"{text} has several checkpoints; choose one of: {', '.join(sorted(of_method))}")
    if wanted in bundled:
        entry = bundled[wanted]
        return _from_entry(wanted, entry, checkpoints / str(entry.get("folder", wanted)), variant, token)

    from facezoo import registry

    methods = {info.name: info for info in registry.list_methods(kind=None)}
    if text in methods:
        if methods[text].learned:
            raise CheckpointError(
                f"{text} is a learned method and no checkpoint of it is bundled; give a checkpoint folder, "
                "a Hugging Face repository (org/name), or train one with `facezoo train`"
            )
        return ResolvedModel(text, text)
    if REPOSITORY.fullmatch(text):
        return _from_hub(text, revision, variant, token)
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


def _shared_entries(parent: Path, shared: Mapping[str, str], own: set[str]) -> dict[str, dict[str, Any]]:
    """Entries of files that lie in other checkpoints' folders; their hashes are those of the files as they are."""
    entries: dict[str, dict[str, Any]] = {}
    for network, owner in shared.items():
        name = f"{network}.safetensors"
        if not _NAME.fullmatch(owner):
            raise CheckpointError(f"{network} cannot be shared from {owner!r}: that is no checkpoint's name")
        if name in own:
            raise CheckpointError(f"{network} is given and shared at once; do one of the two")
        other, _ = read_manifest(parent / owner)
        entry = other["files"].get(name)
        if entry is None or "from" in entry:
            raise CheckpointError(f"the checkpoint {owner} holds no {name} to share; name the one that does")
        verify_files(parent / owner, other)
        entries[name] = {**entry, "from": owner}
    return entries


def written_manifest(manifest: Mapping[str, Any]) -> str:
    """The text of a manifest's file, with its checksum; what only lives in memory (``variant``) is left out.

    Raises:
        CheckpointError: a value that JSON cannot hold.
    """
    full = {key: value for key, value in manifest.items() if key not in ("variant", _CHECKSUM)}
    try:
        full[_CHECKSUM] = _checksum(json.loads(json.dumps(full, allow_nan=False)))
        return json.dumps(full, indent=2, sort_keys=True, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"the manifest holds a value that JSON cannot hold ({error})") from error


def _checked_tensors(name: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU that share no memory, all of them finite."""
    import torch

    tensors: dict[str, Tensor] = {}
    for key, value in state.items():
        tensor = value.detach().to("cpu", copy=True).contiguous()
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{name}: {key} holds values that are not finite; the checkpoint is not written")
        tensors[key] = tensor
    return tensors


def _parts(tensors: dict[str, Tensor], part_bytes: int | None) -> list[dict[str, Tensor]]:
    """The tensors in their order, cut where the next one would make a part too big."""
    parts: list[dict[str, Tensor]] = [{}]
    size = 0
    for key, tensor in tensors.items():
        if part_bytes is not None and parts[-1] and size + tensor.nbytes > part_bytes:
            parts.append({})
            size = 0
        parts[-1][key] = tensor
        size += tensor.nbytes
    return parts


def write_checkpoint(
    folder: str | os.PathLike[str],
    manifest: Mapping[str, object],
    networks: Mapping[str, Mapping[str, Tensor]],
    *,
    overwrite: bool = False,
    shared: Mapping[str, str] | None = None,
    variants: Mapping[str, Mapping[str, Mapping[str, Tensor]]] | None = None,
    part_bytes: int | None = None,
    subfolders: bool = False,
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
        shared: networks that are not stored again: network name -> name of the checkpoint, in a folder of that name
            beside this one, that holds the file.
        variants: other weights of the same networks: variant -> network -> state dict, e.g. ``{"last": {...}}``.
        part_bytes: cut a network's file into parts of at most this many bytes of tensors (one tensor is never cut);
            None: one file a network.
        subfolders: a folder for each network, as on a hub.

    Returns:
        The manifest as written.

    Raises:
        OutputError: the folder exists (and ``overwrite`` is off) or cannot be written.
        CheckpointError: a manifest that could not be read again, tensors with values that are not finite, or a
            shared network that the other checkpoint does not hold.
    """
    from safetensors.torch import save

    target = Path(folder)
    if target.exists() and not overwrite:
        raise OutputError(f"{target} exists already; choose another folder or allow overwriting")
    if target.exists() and not (target / MANIFEST_NAME).is_file():
        raise OutputError(f"{target} is not a checkpoint folder and is not replaced; choose another folder")
    contents: dict[str, bytes] = {}
    for variant, states in {"": networks, **(variants or {})}.items():
        for network, state in states.items():
            parts = _parts(_checked_tensors(network, state), part_bytes)
            plain = f"{network}/weights" if subfolders else network
            stem = f"{plain}.{variant}" if variant else plain
            for number, tensors in enumerate(parts, start=1):
                cut = f"-{number:05d}-of-{len(parts):05d}" if len(parts) > 1 else ""
                contents[f"{stem}{cut}.safetensors"] = save(tensors)
    full: dict[str, Any] = {**_DEFAULTS, **manifest}
    full["files"] = {name: {"sha256": sha256_bytes(data), "bytes": len(data)} for name, data in contents.items()}
    full["files"] |= _shared_entries(target.parent, shared or {}, set(contents))
    text = written_manifest(full)
    checked = _check_manifest(json.loads(text), target / MANIFEST_NAME)
    contents[MANIFEST_NAME] = text.encode()

    temporary = target.parent / f".{target.name}-{secrets.token_hex(6)}.tmp"
    retired = target.parent / f".{target.name}-{secrets.token_hex(6)}.old"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        for name, data in contents.items():
            (temporary / name).parent.mkdir(exist_ok=True)
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
