"""A set of aligned faces in tar shards, read picture by picture in any order: no unpacking, no copy for each process.

A folder of shards holds

| file | what it is |
|---|---|
| `shard-00000.tar`, ... | plain tar files in WebDataset's layout: `000000000.npy` (or .png, ...) and `000000000.json` |
| `index.safetensors` | where each picture's bytes lie, their CRC-32, and every label and embedding of the set |

The index is what a packed set is without its pixels (`facezoo.data.packed`): picture number i of the shards is number i
of the packed set that they were made from, so that a training visits both in the same order. A picture is one
``pread`` of its bytes: training at random positions needs no buffer to shuffle in, a run that is resumed in the middle
starts at the right picture at once, and the shards may lie on a file system that all machines share. The tar files
alone are a complete WebDataset: other programs read them, and `index_shards` makes an index for shards that
other programs wrote.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final, Literal, overload

import numpy as np
import numpy.typing as npt

from facezoo.data.packed import PackedFaces, rewrite_packed, stream_to, write_packed
from facezoo.data.tars import read_samples
from facezoo.errors import InputError, OutputError
from facezoo.files import check_output

__all__ = [
    "INDEX",
    "ShardedFaces",
    "ShardedImages",
    "add_arrays",
    "check_shards",
    "index_shards",
    "open_faces",
    "pack_shards",
]

INDEX: Final = "index.safetensors"
"""Name of the index in a folder of shards."""

Encoding = Literal["npy", "png"]

_PLACE: Final = ("shard", "offset", "bytes", "crc32")
"""The index's own arrays: number of the shard, first byte of the picture in it, length, CRC-32; all int64 (N,)."""

_OPEN_SHARDS = 64
"""Shards kept open by a process: far below the usual limit of 1024 open files."""
_BLOCK = 512

Array = npt.NDArray[Any]


def open_faces(path: str | os.PathLike[str]) -> PackedFaces:
    """Opens a packed file, or a folder of shards (or its index): both answer alike.

    Raises:
        InputError: it is neither, or damaged.
    """
    place = Path(path)
    if place.is_dir() or place.name == INDEX:
        return ShardedFaces(place)
    return PackedFaces(place)


def add_arrays(path: str | os.PathLike[str], arrays: Mapping[str, Array]) -> Path:
    """Adds or replaces labels of a packed file, or of the index of a folder of shards.

    Raises:
        InputError: a label does not fit.
        OutputError: the file cannot be written.
    """
    place = Path(path)
    if place.is_dir():
        place = place / INDEX
    return rewrite_packed(place, place, arrays=arrays, overwrite=True)


class ShardedImages:
    """The pictures of a folder of shards, indexed like an array uint8 (N, S, S, 3); each access reads from the shards.

    May be pickled and shared with forked processes: reads name their position and move no file pointer.

    Args:
        shards: The tar files.
        place: (N, 4) int64: shard, offset, length, CRC-32.
        size: S.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, shards: Sequence[Path], place: npt.NDArray[np.int64], size: int) -> None:
        self._shards, self._place, self._size = tuple(shards), place, size
        self._open: OrderedDict[int, IO[bytes]] = OrderedDict()

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, S, S, 3)."""
        return len(self._place), self._size, self._size, 3

    def __len__(self) -> int:
        return len(self._place)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}

    @overload
    def __getitem__(self, index: slice | npt.NDArray[np.integer[Any]] | Sequence[int]) -> npt.NDArray[np.uint8]: ...
    @overload
    def __getitem__(self, index: int | np.integer[Any]) -> npt.NDArray[np.uint8]: ...
    def __getitem__(self, index: Any) -> npt.NDArray[np.uint8]:
        """One picture (S, S, 3), or several (B, S, S, 3).

        Raises:
            InputError: a shard is missing, cut short or damaged, or holds a picture of another size.
            IndexError: no such picture.
        """
        if isinstance(index, int | np.integer):
            return self._picture(int(index))
        chosen = np.arange(len(self))[index]
        if not len(chosen):
            return np.zeros((0, *self.shape[1:]), np.uint8)
        return np.stack([self._picture(int(i)) for i in chosen])

    def _picture(self, index: int) -> npt.NDArray[np.uint8]:
        shard, offset, length, checksum = (int(value) for value in self._place[index])
        path = self._shards[shard]
        try:
            data = os.pread(self._stream(shard).fileno(), length, offset)
        except OSError as error:
            raise InputError(f"cannot read the shard {path}: {error.strerror or type(error).__name__}") from error
        if len(data) != length or zlib.crc32(data) != checksum:
            raise InputError(f"picture {index} in the shard {path} is damaged or cut short; copy the shard again")
        return _decode(data, self._size, f"picture {index} in the shard {path}")

    def _stream(self, shard: int) -> IO[bytes]:
        if shard in self._open:
            self._open.move_to_end(shard)
        else:
            self._open[shard] = self._shards[shard].open("rb", buffering=0)
            if len(self._open) > _OPEN_SHARDS:
                self._open.popitem(last=False)[1].close()
        return self._open[shard]


class ShardedFaces(PackedFaces):
    """A folder of shards, opened and not loaded; it answers like a packed set.

    Args:
        path: The folder, or its index.

    Attributes:
        folder: The folder.
        shards: The tar files.

    Raises:
        InputError: no index, a shard is missing or of another length than the index says, or the index is damaged.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        place = Path(path)
        self.folder = place.parent if place.name == INDEX else place
        if not (self.folder / INDEX).is_file():
            raise InputError(
                f"{self.folder} has no {INDEX}; make shards with `facezoo shards pack`, or an index for existing tar "
                "files with `facezoo shards index`"
            )
        super().__init__(self.folder / INDEX)
        damaged = InputError(f"{self.path} is no index of shards, or damaged; make it again: facezoo shards index")
        try:
            entry = json.loads(self.metadata["shards"])
            self.size = int(entry["size"])
            names, lengths = [str(name) for name in entry["names"]], [int(length) for length in entry["bytes"]]
        except (KeyError, ValueError, TypeError) as error:
            raise damaged from error
        if not all(name in self for name in _PLACE) or len(names) != len(lengths) or self.size < 1:
            raise damaged
        if any(Path(name).name != name for name in names):
            raise damaged
        self.shards = [self.folder / name for name in names]
        for shard, length in zip(self.shards, lengths, strict=True):
            found = shard.stat().st_size if shard.is_file() else -1
            if found != length:
                raise InputError(f"the shard {shard} is missing or not the one of the index; copy it again")
        where = np.stack([self.array(name) for name in _PLACE], axis=1) if len(self) else np.zeros((0, 4), np.int64)
        where = where.astype(np.int64)
        if len(self) and not (where.min() >= 0 and where[:, 0].max() < len(names)):
            raise damaged
        self._images = ShardedImages(self.shards, where, self.size)

    @property
    def images(self) -> Any:
        """uint8 (N, S, S, 3), RGB, 0..255: a ``ShardedImages``."""
        return self._images

    @property
    def label_names(self) -> list[str]:
        """Names of the tensors that are labels of a picture: neither pixels, nor the person, nor the place."""
        return [name for name in super().label_names if name not in _PLACE]


# ------------------------------------------------------------------------------------------------------------- writing


@dataclass
class _Index:
    """What is gathered while shards are written or scanned."""

    size: int = 0
    names: list[str] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    rows: list[tuple[int, int, int, int]] = field(default_factory=list)

    def write(
        self,
        folder: Path,
        identities: Sequence[str],
        files: Sequence[str],
        arrays: Mapping[str, Array],
        metadata: Mapping[str, str],
        overwrite: bool,
    ) -> None:
        place = np.array(self.rows, dtype=np.int64).reshape(-1, len(_PLACE))
        shards = json.dumps({"size": self.size, "names": self.names, "bytes": self.lengths})
        fixed = ("facezoo_packed", "identities", "files", "source", "crop", "shards")
        write_packed(
            folder / INDEX,
            (np.zeros((0, 0, 3), np.uint8) for _ in files),  # the pixels are in the shards
            size=0,
            identities=identities,
            files=files,
            arrays={**arrays, **{name: place[:, column].copy() for column, name in enumerate(_PLACE)}},
            metadata={name: text for name, text in metadata.items() if name not in fixed} | {"shards": shards},
            source=metadata.get("source", ""),
            crop=metadata.get("crop", "template128"),
            overwrite=overwrite,
        )


def pack_shards(
    source: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    shard_bytes: int = 256 << 20,
    encoding: Encoding = "npy",
    overwrite: bool = False,
) -> ShardedFaces:
    """Writes a packed set as tar shards and their index; the same arguments give the same bytes.

    The index comes last: a run that was broken off leaves none, and the same command makes the shards again.

    Args:
        source: The packed set.
        folder: Where the shards go.
        shard_bytes: A shard is closed when it has grown to this.
        encoding: "npy" needs no decoding and only numpy; "png" is smaller, and takes time to decode.
        overwrite: Replace the shards that are there.

    Returns:
        The set, opened from its shards.

    Raises:
        InputError: not a packed set, or an impossible size.
        OutputError: there is an index already, or the folder cannot be written.
    """
    if shard_bytes < 1:
        raise InputError("a shard must have at least one byte")
    if encoding not in ("npy", "png"):
        raise InputError(f"there is no encoding {encoding!r}; choose npy or png")
    faces, target = PackedFaces(source), Path(folder)
    check_output(target / INDEX, overwrite, make_parents=True)
    try:
        target.mkdir(parents=True, exist_ok=True)
        (target / INDEX).unlink(missing_ok=True)  # an index must never describe shards that are being replaced
    except OSError as error:
        raise OutputError(f"cannot write the folder {target}: {error.strerror}; choose another with -o") from error
    index = _Index(size=faces.size)
    position = 0
    while position < len(faces):
        name = f"shard-{len(index.names):05d}.tar"
        begin = position

        def fill(stream: IO[bytes], begin: int = begin, number: int = len(index.names)) -> None:
            nonlocal position
            with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
                for position in range(begin, len(faces)):
                    data = _encode(np.asarray(faces.images[position]), encoding)
                    index.rows.append(
                        (number, _add(tar, f"{position:09d}.{encoding}", data), len(data), zlib.crc32(data))
                    )
                    _add(tar, f"{position:09d}.json", _facts(faces, position))
                    if tar.offset >= shard_bytes:
                        break
            position += 1

        stream_to(target / name, fill, overwrite=True)
        index.names.append(name)
        index.lengths.append((target / name).stat().st_size)
    identity = faces.identity
    index.write(
        target,
        [faces.identities[number] for number in identity],
        faces.files,
        {name: np.asarray(faces.array(name)) for name in faces.label_names},
        faces.metadata,
        overwrite=False,
    )
    return ShardedFaces(target)


def index_shards(folder: str | os.PathLike[str], *, source: str = "", overwrite: bool = False) -> ShardedFaces:
    """Makes the index of tar files that are there: ours, or a WebDataset of aligned faces that another program wrote.

    A sample is a picture (.npy, .png, .jpg, .webp; all square and of one size) and, optionally, a .json of the same
    name with ``identity`` and ``file`` (texts), ``points`` ((5, 2) numbers) and labels (whole numbers). A picture
    without an identity is a person of its own. Every picture is read and decoded once here.

    Args:
        folder: Where the tar files are; they are taken in the order of their names.
        source: Where the pictures come from and under which rights, for people.
        overwrite: Replace an index that is there.

    Returns:
        The set.

    Raises:
        InputError: no tar file, a compressed or damaged one, no picture, pictures of several sizes, or a json that
            does not fit.
        OutputError: there is an index already, or it cannot be written.
    """
    target = Path(folder)
    tars = sorted(target.glob("*.tar"))
    if not tars:
        raise InputError(f"{target} has no .tar file; name the folder of the shards")
    check_output(target / INDEX, overwrite)
    index = _Index()
    facts: list[dict[str, Any]] = []
    for number, path in enumerate(tars):
        try:
            with path.open("rb") as stream:
                for name, data, offset, fact in _samples(stream):
                    size = _side(data, f"{name} in {path}")
                    index.size = index.size or size
                    _decode(data, index.size, f"{name} in {path}")
                    index.rows.append((number, offset, len(data), zlib.crc32(data)))
                    facts.append({"file": f"{path.name}/{name}", **fact})
        except (OSError, tarfile.TarError) as error:
            raise InputError(f"{path} is not a plain tar file, or is damaged ({error})") from error
        except (ValueError, TypeError) as error:
            raise InputError(f"{path}: {error}") from error
        index.names.append(path.name)
        index.lengths.append(path.stat().st_size)
    if not index.rows:
        raise InputError(f"the tar files of {target} hold no picture (.npy, .png, .jpg, ...)")
    files = [str(fact["file"]) for fact in facts]
    identities = [str(fact.get("identity", fact["file"])) for fact in facts]
    index.write(target, identities, files, _label_arrays(facts), {"source": source}, overwrite)
    return ShardedFaces(target)


def check_shards(folder: str | os.PathLike[str]) -> ShardedFaces:
    """Reads every picture once, against its CRC-32.

    Raises:
        InputError: a picture is damaged.
    """
    faces = ShardedFaces(folder)
    for index in range(len(faces)):
        faces.images[index]
    return faces


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> int:
    """Adds a member without anything of this machine in it; says where its bytes begin."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), 0o644
    tar.addfile(info, io.BytesIO(data))
    return tar.offset - -(-len(data) // _BLOCK) * _BLOCK


def _facts(faces: PackedFaces, position: int) -> bytes:
    """A picture's json: what fits into one; embeddings and other float vectors are in the index only."""
    fact: dict[str, Any] = {
        "file": faces.files[position],
        "identity": faces.identities[int(faces.identity[position])],
    }
    for name in faces.label_names:
        row = np.asarray(faces.array(name)[position])
        if name == "points" or (row.ndim == 0 and row.dtype.kind == "i"):
            fact[name] = row.tolist()
    return json.dumps(fact, separators=(",", ":")).encode("ascii")


def _samples(stream: IO[bytes]) -> Iterator[tuple[str, bytes, int, dict[str, Any]]]:
    """(name, bytes, offset, facts) of the pictures of a tar file."""
    for sample in read_samples(stream, fields=True):
        picture, facts = sample.picture(), sample.members.get(".json")
        if picture is None:
            continue
        fact = json.loads(facts.data) if facts is not None else {}
        if not isinstance(fact, dict):
            raise ValueError(f"{sample.name}.json must hold a JSON object")
        yield picture.name, picture.data, picture.offset, fact


def _label_arrays(facts: Sequence[Mapping[str, Any]]) -> dict[str, Array]:
    arrays: dict[str, Array] = {}
    if all("points" in fact for fact in facts):
        points = np.array([fact["points"] for fact in facts], dtype=np.float32)
        if points.shape[1:] != (5, 2):
            raise InputError(f"`points` must be five pairs of numbers a picture, not of shape {points.shape[1:]}")
        arrays["points"] = points
    names = {
        name
        for fact in facts
        for name, value in fact.items()
        if isinstance(value, int) and name not in ("identity", "file", "images", *_PLACE)
    }
    for name in sorted(names):
        values = [fact.get(name, -1) for fact in facts]
        if not all(isinstance(value, int) and -(2**15) <= value < 2**15 for value in values):
            raise InputError(f"the label {name!r} must be a whole number of 16 bits in every json")
        arrays[name] = np.array(values, dtype=np.int16)
    return arrays


# ------------------------------------------------------------------------------------------------------------- pixels


def _encode(pixels: npt.NDArray[np.uint8], encoding: Encoding) -> bytes:
    buffer = io.BytesIO()
    if encoding == "npy":
        np.lib.format.write_array(buffer, np.ascontiguousarray(pixels), version=(1, 0), allow_pickle=False)
    else:
        from PIL import Image

        Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _read(data: bytes, what: str) -> npt.NDArray[np.uint8]:
    try:
        if data[:6] == b"\x93NUMPY":
            pixels = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
        else:
            from PIL import Image

            with Image.open(io.BytesIO(data)) as picture:
                pixels = np.asarray(picture.convert("RGB"))
    except (ValueError, OSError, SyntaxError, EOFError) as error:
        raise InputError(f"{what} is not a picture that can be read: {error}") from error
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.shape[0] != pixels.shape[1]:
        raise InputError(f"{what} must be uint8 (S, S, 3), found {pixels.dtype} {pixels.shape}")
    return pixels


def _side(data: bytes, what: str) -> int:
    return int(_read(data, what).shape[0])


def _decode(data: bytes, size: int, what: str) -> npt.NDArray[np.uint8]:
    pixels = _read(data, what)
    if pixels.shape[0] != size:
        raise InputError(f"{what} has a side of {pixels.shape[0]} pixels; all of a set must have one size ({size})")
    return pixels
