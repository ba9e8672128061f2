"""One file for a whole set of aligned faces, read without loading it.

The file is a plain safetensors file (any safetensors reader opens it) with

| tensor | type and shape | meaning |
|---|---|---|
| `images` | uint8 (N, S, S, 3) | RGB faces aligned to the template, 0..255 |
| `identity` | int32 (N,) | index into the metadata's `identities` |
| `points` | float32 (N, 5, 2), optional | (x, y) in crop pixels: eye, eye, nose, mouth, mouth, left to right |
| `sex` | int16 (N,), optional | 0 female, 1 male, -1 unknown |
| `age` | int16 (N,), optional | years, -1 unknown |
| `expression` | int16 (N,), optional | index into the metadata's `expressions`, -1 unknown |
| `embedding_<name>` | float32 (N, D), optional | embeddings of a recogniser |

and further labels as int16 or float32 arrays whose first length is N. The metadata (strings, as safetensors wants
it) holds `facezoo_packed` ("1"), `identities` and `files` (JSON lists), `source` and `crop`.

Why one uncompressed file: a training step picks pictures at random; reading them through a memory map costs one copy
of 49 kB a picture at size 128 and no decoding, the operating system keeps what fits in RAM, and every worker process
shares that cache. Only numpy and the standard library are needed to read or write it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from facezoo.errors import InputError, OutputError
from facezoo.files import check_output

__all__ = ["FORMAT_VERSION", "PackedFaces", "rewrite_packed", "stream_to", "write_packed"]

FORMAT_VERSION = "1"
"""Value of the metadata field ``facezoo_packed``; a reader refuses any other."""

_MAX_HEADER_BYTES = 100_000_000
"""The safetensors library refuses longer headers, so we never write one and never try to read one."""

_DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class _Entry:
    """Where one tensor lies."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int
    """Bytes from the beginning of the file."""


def _read_header(path: Path) -> tuple[dict[str, _Entry], dict[str, str]]:
    """Read and check the safetensors header.

    Raises:
        InputError: missing or unreadable file, not a safetensors file, damaged, or cut short.
    """
    try:
        file_bytes = path.stat().st_size
        with path.open("rb") as stream:
            first = stream.read(8)
            if len(first) < 8:
                raise InputError(f"{path} is not a packed set: it is too short; make one with `facezoo prepare`")
            (length,) = struct.unpack("<Q", first)
            if length > min(_MAX_HEADER_BYTES, file_bytes - 8):
                raise InputError(f"{path} is not a packed set or is cut short; make one with `facezoo prepare`")
            text = stream.read(length)
    except OSError as error:
        raise InputError(f"cannot read the packed set {path}: {error.strerror or type(error).__name__}") from error
    damaged = InputError(f"the header of the packed set {path} is damaged; copy or make the file again")
    try:
        header = json.loads(text)
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
        raise damaged from error
    if not isinstance(header, dict):
        raise damaged
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise damaged
    entries: dict[str, _Entry] = {}
    for name, entry in header.items():
        try:
            dtype, shape = _DTYPES[entry["dtype"]], tuple(int(length) for length in entry["shape"])
            begin, end = (int(offset) for offset in entry["data_offsets"])
        except (KeyError, TypeError, ValueError) as error:
            raise damaged from error
        count = 1
        for side in shape:
            count *= side
        if min((begin, *shape)) < 0 or end - begin != count * dtype.itemsize:
            raise damaged
        if 8 + length + end > file_bytes:
            raise InputError(f"the packed set {path} is cut short (tensor {name!r}); copy or make the file again")
        entries[name] = _Entry(dtype, shape, 8 + length + begin)
    return entries, metadata


class PackedFaces:
    """A packed set, opened and not loaded.

    Every array is a read-only ``np.memmap``; the object may be pickled (a worker process maps the file again).

    Args:
        path: the packed file.

    Attributes:
        path: the file.
        metadata: the file's own metadata, strings.
        identities: names of the people; ``identity`` indexes this list.
        files: the name of each picture's source file, length N.
        size: S, the side of a picture in pixels.

    Raises:
        InputError: the file is missing, damaged, cut short, of another version or not a packed set.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._entries, self.metadata = _read_header(self.path)
        version = self.metadata.get("facezoo_packed")
        if version != FORMAT_VERSION:
            raise InputError(
                f"{self.path} is not a packed set of version {FORMAT_VERSION} (it says {version!r}); "
                "make one with `facezoo prepare`"
            )
        self._check_layout()
        self._maps: dict[str, Array] = {}
        self.size: int = self._entries["images"].shape[1]
        self.identities: list[str] = self._names("identities")
        self.files: list[str] = self._names("files")
        if len(self.files) != len(self):
            raise InputError(f"{self.path} lists {len(self.files)} files for {len(self)} pictures; make it again")
        identity = self.identity
        if len(self) and not 0 <= int(identity.min()) <= int(identity.max()) < len(self.identities):
            raise InputError(f"{self.path} has an identity outside its list of people; make it again")

    def _check_layout(self) -> None:
        images, identity = self._entries.get("images"), self._entries.get("identity")
        if images is None or identity is None:
            raise InputError(f"{self.path} has no tensors `images` and `identity`; it is not a packed set")
        shape = images.shape
        if images.dtype != np.uint8 or len(shape) != 4 or shape[1] != shape[2] or shape[3] != 3:
            raise InputError(f"{self.path}: `images` must be uint8 (N, S, S, 3), found {images.dtype} {shape}")
        if identity.dtype != np.int32 or identity.shape != shape[:1]:
            raise InputError(f"{self.path}: `identity` must be int32 ({shape[0]},)")
        for name, entry in self._entries.items():
            if not entry.shape or entry.shape[0] != shape[0]:
                raise InputError(f"{self.path}: tensor {name!r} has {entry.shape} and not one row for each picture")

    def _names(self, field: str) -> list[str]:
        try:
            names = json.loads(self.metadata[field])
        except (KeyError, ValueError) as error:
            raise InputError(f"{self.path} has no readable list `{field}` in its metadata; make it again") from error
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise InputError(f"{self.path}: `{field}` must be a list of texts; make it again")
        return names

    def __len__(self) -> int:
        return self._entries["images"].shape[0]

    def __repr__(self) -> str:
        content = f"{len(self)} pictures of {len(self.identities)} people, size {self.size}"
        return f"PackedFaces({str(self.path)!r}, {content})"

    def __getstate__(self) -> dict[str, Any]:
        # Maps would be pickled as copies of the whole file; the other process opens its own.
        return {**self.__dict__, "_maps": {}}

    @property
    def names(self) -> list[str]:
        """Names of all tensors in the file."""
        return list(self._entries)

    @property
    def label_names(self) -> list[str]:
        """Names of the tensors that are labels of a picture: neither pixels nor the person."""
        return [name for name in self._entries if name not in ("images", "identity")]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def array(self, name: str) -> Array:
        """One tensor as a read-only memory map.

        Raises:
            InputError: the file has no such tensor, or it cannot be mapped.
        """
        if name not in self._maps:
            if name not in self._entries:
                raise InputError(f"{self.path} has no {name!r}; it has: {', '.join(sorted(self._entries))}")
            entry = self._entries[name]
            if 0 in entry.shape:  # a file cannot be mapped at zero length
                self._maps[name] = np.zeros(entry.shape, entry.dtype)
            else:
                try:
                    self._maps[name] = np.memmap(self.path, entry.dtype, "r", entry.offset, entry.shape)
                except OSError as error:
                    raise InputError(f"cannot map the packed set {self.path}: {error}") from error
        return self._maps[name]

    @property
    def images(self) -> npt.NDArray[np.uint8]:
        """uint8 (N, S, S, 3), RGB, 0..255."""
        return self.array("images")

    @property
    def identity(self) -> npt.NDArray[np.int32]:
        """int32 (N,), an index into ``identities``."""
        return self.array("identity")

    @property
    def points(self) -> npt.NDArray[np.float32] | None:
        """float32 (N, 5, 2) in crop pixels, or None."""
        return self.array("points") if "points" in self else None

    def batch(self, indices: Sequence[int] | npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.uint8]:
        """Copy pictures out of the file.

        Args:
            indices: (B,) whole numbers in [0, N).

        Returns:
            uint8 (B, S, S, 3), channels last: ``torch.from_numpy(...).permute(0, 3, 1, 2)`` is then a batch in
            torch's channels_last memory format without another copy.
        """
        return np.array(self.images[np.asarray(indices, dtype=np.int64)])

    def indices_of(self, identity: str) -> npt.NDArray[np.int64]:
        """The pictures of one person, ascending.

        Raises:
            InputError: nobody of this name is in the set.
        """
        if identity not in self.identities:
            raise InputError(f"{self.path} has nobody called {identity!r}")
        return np.flatnonzero(self.identity == self.identities.index(identity))


def _check_arrays(arrays: Mapping[str, Array], count: int) -> dict[str, Array]:
    checked: dict[str, Array] = {}
    for name, array in arrays.items():
        if name in ("images", "identity", "__metadata__"):
            raise InputError(f"the label name {name!r} is taken by the packed format; choose another")
        values = np.asarray(array)
        values = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))
        if values.dtype not in _NAMES:
            raise InputError(f"label {name!r} has type {values.dtype}; use int16, int32 or float32")
        if values.ndim == 0 or values.shape[0] != count:
            raise InputError(f"label {name!r} has shape {values.shape} and not one row for each of {count} pictures")
        checked[name] = values
    return checked


def _header_bytes(entries: Sequence[tuple[str, np.dtype[Any], tuple[int, ...]]], metadata: Mapping[str, str]) -> bytes:
    """The length field and the JSON header, padded with spaces so that the data begins at a multiple of 8."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    offset = 0
    for name, dtype, shape in entries:
        length = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [offset, offset + length]}
        offset += length
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=True).encode("ascii")
    text += b" " * (-len(text) % 8)
    if len(text) > _MAX_HEADER_BYTES:
        raise InputError("the lists of files and people are too long for one packed file; pack the set in parts")
    return struct.pack("<Q", len(text)) + text


def write_packed(
    path: str | os.PathLike[str],
    images: Iterable[npt.NDArray[np.uint8]],
    *,
    size: int,
    identities: Sequence[str],
    files: Sequence[str],
    arrays: Mapping[str, Array] | None = None,
    metadata: Mapping[str, str] | None = None,
    source: str = "",
    crop: str = "template128",
    overwrite: bool = False,
) -> Path:
    """Write a packed set: all of it or nothing, holding one picture in memory at a time.

    The same arguments give the same bytes.

    Args:
        path: the file to write.
        images: N pictures in order, each uint8 (S, S, 3) RGB. Read once.
        size: S.
        identities: the person of each picture (N names, not unique).
        files: the source file of each picture (N names).
        arrays: labels, each with N rows (see the module's table).
        metadata: further texts for the header, e.g. ``{"expressions": json.dumps([...])}``.
        source: where the pictures come from and under which rights, for people.
        crop: how the pictures were cropped; ``template128`` is the alignment template of `facezoo.faces`, scaled to S.
        overwrite: replace an existing file.

    Returns:
        The path.

    Raises:
        InputError: a picture or a label has the wrong shape or type, or the number of pictures is not N.
        OutputError: the file exists, or cannot be written.
    """
    target = Path(path)
    count = len(identities)
    if len(files) != count:
        raise InputError(f"{count} identities but {len(files)} files: give one of each a picture")
    real = check_output(target, overwrite)
    people = sorted(set(identities))
    number = {name: index for index, name in enumerate(people)}
    labels: dict[str, Array] = {"identity": np.array([number[name] for name in identities], dtype="<i4")}
    labels |= _check_arrays(arrays or {}, count)
    # Wide types first keeps every tensor aligned to its own type; the pixels, one byte wide, come last.
    ordered = sorted(labels.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))
    entries = [(name, array.dtype, array.shape) for name, array in ordered]
    entries.append(("images", np.dtype("u1"), (count, size, size, 3)))
    texts = {
        **(metadata or {}),
        "facezoo_packed": FORMAT_VERSION,
        "identities": json.dumps(people, ensure_ascii=False, separators=(",", ":")),
        "files": json.dumps(list(files), ensure_ascii=False, separators=(",", ":")),
        "source": source,
        "crop": crop,
    }
    header = _header_bytes(entries, texts)

    def write(stream: IO[bytes]) -> None:
        stream.write(header)
        for _, array in ordered:
            stream.write(array.tobytes())
        written = 0
        for image in images:
            if image.dtype != np.uint8 or image.shape != (size, size, 3):
                found = f"{image.dtype} {image.shape}"
                raise InputError(f"picture {written} is {found} and not uint8 ({size}, {size}, 3); align it first")
            if written == count:
                raise InputError(f"there are more pictures than the {count} names given")
            stream.write(np.ascontiguousarray(image).tobytes())
            written += 1
        if written != count:
            raise InputError(f"only {written} pictures came for {count} names")

    stream_to(real, write, overwrite)
    return target


def rewrite_packed(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    indices: Sequence[int] | npt.NDArray[np.integer[Any]] | None = None,
    arrays: Mapping[str, Array] | None = None,
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> Path:
    """Copy a packed set, choosing pictures or adding labels (embeddings, say).

    Args:
        source: the packed file to read.
        output: the packed file to write; it may be the same when ``overwrite`` is on.
        indices: pictures to keep, in this order; None keeps all.
        arrays: labels to add or replace, one row for each *kept* picture.
        metadata: texts of the header to add or replace.
        overwrite: replace an existing file.

    Returns:
        The path written.

    Raises:
        InputError: ``source`` is not a packed set, an index is outside it, or a label does not fit.
        OutputError: ``output`` exists, or cannot be written.
    """
    packed = PackedFaces(source)
    chosen = np.arange(len(packed)) if indices is None else np.asarray(indices, dtype=np.int64)
    if chosen.size and not 0 <= int(chosen.min()) <= int(chosen.max()) < len(packed):
        raise InputError(f"an index is outside {packed.path}, which has {len(packed)} pictures")
    labels = {name: np.asarray(packed.array(name)[chosen]) for name in packed.label_names}
    fixed = ("facezoo_packed", "identities", "files", "source", "crop")
    identity = packed.identity
    return write_packed(
        output,
        (packed.images[index] for index in chosen),
        size=packed.size,
        identities=[packed.identities[identity[index]] for index in chosen],
        files=[packed.files[index] for index in chosen],
        arrays=labels | dict(arrays or {}),
        metadata={name: text for name, text in packed.metadata.items() if name not in fixed} | dict(metadata or {}),
        source=packed.metadata.get("source", ""),
        crop=packed.metadata.get("crop", "template128"),
        overwrite=overwrite,
    )


def stream_to(target: Path, write: Callable[[IO[bytes]], None], overwrite: bool) -> None:
    """Let ``write`` fill a temporary file beside ``target``, then move it there; remove it on any failure.

    `facezoo.files.atomic_write` wants the whole content in memory, which a set of pictures is too big for.
    """
    temporary = target.parent / f".facezoo-{os.getpid()}-{secrets.token_hex(8)}.tmp"
    try:
        with temporary.open("xb", buffering=1 << 20) as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        if not overwrite and target.exists():
            raise OutputError(f"{target} appeared while it was being made; choose another name")
        temporary.replace(target)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        advice = "free some space or write elsewhere" if full else "choose another path"
        raise OutputError(f"cannot write {target}: {error.strerror or type(error).__name__}; {advice}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
