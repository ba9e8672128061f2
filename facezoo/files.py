"""Writing files so that a reader sees the whole new file, the old file, or none: never a half.

Only the standard library is imported, so that every module of the package may use these functions.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from facezoo.errors import InputError, OutputError

__all__ = [
    "atomic_write",
    "check_output",
    "checkpoint_file",
    "file_parts",
    "make_folder",
    "network_files",
    "sha256_bytes",
    "sha256_file",
]

_REASONS: dict[int, str] = {
    errno.ENOSPC: "the disk is full; free some space or write elsewhere",
    errno.EDQUOT: "the disk quota is used up; free some space or write elsewhere",
    errno.EACCES: "permission denied; choose a folder you may write to",
    errno.EPERM: "permission denied; choose a folder you may write to",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.ENOENT: "its folder does not exist; make the folder first",
    errno.ENOTDIR: "a part of its path is a file and not a folder; choose another path",
    errno.EISDIR: "it is a folder; give a file name",
    errno.ENAMETOOLONG: "the file name is too long; choose a shorter one",
    errno.EFBIG: "the file is too big for this file system; write elsewhere",
    errno.ELOOP: "its symbolic links run in a circle; choose another path",
}
"""What to do about an operating-system error, by ``errno``."""

_LINK_UNSUPPORTED = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EINVAL}
"""How file systems without hard links (FAT, some network shares) answer ``link``."""


def _output_error(path: Path, error: OSError) -> OutputError:
    reason = _REASONS.get(error.errno or 0, f"{error.strerror or type(error).__name__}; choose another path")
    return OutputError(f"cannot write {path}: {reason}")


def _exists_error(path: Path) -> OutputError:
    return OutputError(f"{path} exists already; choose another name or allow overwriting (--overwrite)")


def check_output(path: str | os.PathLike[str], overwrite: bool = False, *, make_parents: bool = False) -> Path:
    """Tell early whether ``path`` may be written, before work is spent on its content.

    ``atomic_write`` checks again at the end: between the two calls the answer may change.

    Args:
        path: the file to be written. A symbolic link stands for the file it points to.
        overwrite: whether an existing regular file may be replaced.
        make_parents: whether missing folders will be made by the caller's ``atomic_write``.

    Returns:
        The path with symbolic links followed.

    Raises:
        OutputError: it exists (and ``overwrite`` is off), is a folder or a device, or its folder is missing or
            not writable.
    """
    given = Path(path)
    try:
        target = Path(os.path.realpath(given))
        try:
            status = target.stat()
        except FileNotFoundError:
            status = None
        if status is not None:
            if stat.S_ISDIR(status.st_mode):
                raise OutputError(f"cannot write {given}: it is a folder; give a file name")
            if not stat.S_ISREG(status.st_mode):
                raise OutputError(f"cannot write {given}: it is not a regular file; give the name of a file")
            if not overwrite:
                raise _exists_error(given)
        parent = target.parent
        if make_parents:
            while not parent.exists() and parent != parent.parent:
                parent = parent.parent
        if not parent.exists():
            raise OutputError(f"cannot write {given}: the folder {parent} does not exist; make the folder first")
        if not parent.is_dir():
            raise OutputError(f"cannot write {given}: {parent} is a file and not a folder; choose another path")
        if not os.access(parent, os.W_OK | os.X_OK):
            raise OutputError(f"cannot write {given}: permission denied; choose a folder you may write to")
    except OSError as error:
        raise _output_error(given, error) from error
    except ValueError as error:  # a NUL byte in the name
        raise OutputError(f"cannot write {str(given)!r}: {error}; choose another name") from error
    return target


def atomic_write(
    path: str | os.PathLike[str],
    data: bytes,
    overwrite: bool = False,
    *,
    mode: int | None = None,
    make_parents: bool = False,
) -> Path:
    """Write ``data`` to ``path``: all of it or nothing.

    The bytes go to a temporary file in the same folder, are flushed to the disk, and the file is then moved to its
    name in one step. On any failure (also a keyboard interrupt) the temporary file is removed and an existing file
    stays as it was.

    Args:
        path: the file to write. A symbolic link stands for the file it points to.
        data: the whole content.
        overwrite: whether an existing file may be replaced. When off, the last step itself refuses to replace a
            file which appeared in the meantime (where the file system knows hard links).
        mode: permission bits, e.g. ``0o600`` for secrets; never wider than this at any moment. None: those of the
            replaced file, or what the umask leaves of ``0o666``.
        make_parents: whether missing folders are made.

    Returns:
        The path as it was given.

    Raises:
        OutputError: the file exists and ``overwrite`` is off, or it cannot be written (no space, no permission,
            no such folder, ...).
    """
    given = Path(path)
    target = check_output(given, overwrite, make_parents=make_parents)
    temporary: Path | None = None
    try:
        if make_parents:
            target.parent.mkdir(parents=True, exist_ok=True)
        keep_mode = None
        if mode is None and overwrite and target.exists():
            keep_mode = stat.S_IMODE(target.stat().st_mode)
        # The target's name stays out of the temporary name: it may already have the greatest length allowed.
        candidate = target.parent / f".facezoo-{os.getpid()}-{secrets.token_hex(8)}.tmp"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
        descriptor = os.open(candidate, flags, 0o666 if mode is None else mode)
        temporary = candidate
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        if keep_mode is not None:
            temporary.chmod(keep_mode)
        if overwrite:
            temporary.replace(target)
            temporary = None
        else:
            _move_without_replacing(temporary, target)
        _flush_folder(target.parent)
    except FileExistsError as error:
        raise _exists_error(given) from error
    except OSError as error:
        raise _output_error(given, error) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink()
    return given


def _move_without_replacing(source: Path, target: Path) -> None:
    """Give ``source`` the name ``target``; FileExistsError if that name is taken (``rename`` would replace it)."""
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno not in _LINK_UNSUPPORTED:
            raise
        # No hard links here: a check and a rename, with a gap between them that only a second writer could hit.
        if target.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from None
        source.replace(target)


def _flush_folder(folder: Path) -> None:
    """Flush the folder's entry to the disk where the system can; the file itself is complete already."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, where they are missing.

    Raises:
        OutputError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {folder}: {error.strerror}; choose another") from error


def checkpoint_file(folder: Path, manifest: Mapping[str, Any], name: str) -> Path:
    """Where a checkpoint's file lies: in its folder, or in that of the checkpoint beside it which the manifest names.

    Two checkpoints may share a file: the entry of the second says ``"from": "<name of the first>"``, with the same
    hash. The folder of a bundled checkpoint is called like the checkpoint.
    """
    entry = manifest.get("files", {}).get(name, {})
    return folder.parent / str(entry["from"]) / name if "from" in entry else folder / name


_NETWORK_FILE = re.compile(
    r"(?:([A-Za-z0-9_\-]+)/weights|([A-Za-z0-9_\-]+?))(?:\.([a-z0-9]+))?(?:-([0-9]{5})-of-([0-9]{5}))?\.safetensors"
)


def file_parts(name: str) -> tuple[str, str, int, int] | None:
    """What the name of a checkpoint's file says: ``NETWORK[.VARIANT][-00001-of-00003].safetensors``.

    On a hub every network has a folder of its own: ``NETWORK/weights[.VARIANT][-00001-of-00003].safetensors``.

    Returns:
        Network, variant ("" for the weights that are used unless others are asked for), number of the part from 1 on,
        number of parts; None for a name of another form.
    """
    match = _NETWORK_FILE.fullmatch(name)
    if match is None:
        return None
    folder, network, variant, part, parts = match.groups()
    return folder or network, variant or "", int(part or 1), int(parts or 1)


def network_files(manifest: Mapping[str, Any]) -> dict[str, list[str]]:
    """The files of each network, parts in order, in the variant that the manifest in memory asks for.

    A variant (``"variant": "last"`` beside the manifest's own fields, set by ``hub.manifest.select_variant``) need only
    hold the networks that differ: the others are the ordinary ones.
    """
    wanted = str(manifest.get("variant", ""))
    found: dict[str, dict[str, list[tuple[int, str]]]] = {}
    for name in manifest["files"]:
        parts = file_parts(name)
        if parts is not None:
            network, variant, part, _ = parts
            found.setdefault(network, {}).setdefault(variant, []).append((part, name))
    chosen = {network: files.get(wanted) or files.get("", []) for network, files in found.items()}
    return {network: [name for _, name in sorted(files)] for network, files in chosen.items() if files}


def sha256_bytes(data: bytes) -> str:
    """SHA-256 of ``data`` as 64 lower-case hex digits."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's content as 64 lower-case hex digits, read in pieces.

    Raises:
        InputError: the file is missing or cannot be read.
    """
    try:
        with Path(path).open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or type(error).__name__}") from error
