"""Records: what is written beside (or into) an anonymized picture so that it can be recovered exactly where it was.

A record names the method, the checkpoint, the boxes and points of the faces, and the key by a name that means nothing
outside this record. It holds no secret and no embedding of an original face. With ``--seal`` each face also carries
its original crop, encrypted under a key that only the owner of the passphrase can derive.

Three things guard a record:

* ``checksum``: SHA-256 over the content, needs no key. Refuses damage: a flipped byte, a lost line.
* ``mac``: HMAC-SHA256 under the record key. Refuses changes made on purpose (moved boxes, swapped faces) by anybody
  without the key. ``PictureRecord.authenticated`` writes it, ``PictureRecord.verify`` checks it.
* each sealed crop: AES-256-GCM, bound to the method, the box, the points and the size of the picture.

A record travels as a sidecar (``group.anon.png.facezoo.json``; any format) or inside the picture (PNG only, as an
``iTXt`` chunk named ``facezoo``; the pixel data is not touched).
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import hmac
import json
import math
import os
import re
import secrets
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Final, NoReturn

from facezoo.errors import FacezooError, InputError, KeyMaterialError, OutputError, RecordError
from facezoo.files import atomic_write
from facezoo.keys import KdfParams, Key, new_salt

__all__ = [
    "RECORD_VERSION",
    "FaceRecord",
    "PictureRecord",
    "embed_in_png",
    "embed_record",
    "extract_record",
    "find_record",
    "open_face",
    "open_seal",
    "picture_sha256",
    "read_embedded",
    "read_record",
    "read_sidecar",
    "seal_aad",
    "seal_crop",
    "seal_faces",
    "sidecar_path",
    "write_sidecar",
]

RECORD_VERSION: Final = 1
"""Version of the record's format; raised whenever a field changes its meaning."""

Point = tuple[float, float]
Points = tuple[Point, Point, Point, Point, Point]
Box = tuple[float, float, float, float]

_SIDECAR_SUFFIX: Final = ".facezoo.json"
_MAX_RECORD_BYTES: Final = 2**28
_MAX_PICTURE_BYTES: Final = 2**30
_MAX_EMBEDDED_BYTES: Final = 7_900_000
"""libpng skips text chunks above 8,000,000 bytes, and programs that stand on it would lose the record."""

_PNG_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_KEYWORD: Final = b"facezoo"
_NONCE_BYTES: Final = 12
_SEAL_BLOCK: Final = 1024
"""Sealed crops are padded to a multiple of this: the exact length of a compressed face says something about it."""

_HEX64: Final = re.compile(r"[0-9a-f]{64}")
_HEX16: Final = re.compile(r"[0-9a-f]{16}")


def _default_kdf() -> dict[str, int | str]:
    return KdfParams().to_dict()


@dataclass(frozen=True)
class FaceRecord:
    """One anonymized face.

    Attributes:
        box: (x0, y0, x1, y1) in pixels of the upright picture; may reach over the border.
        points: five (x, y) in pixels: eye, eye, nose, mouth, mouth, as seen in the picture from left to right.
        score: the detector's confidence; 1.0 for boxes given by the user.
        sealed: the original crop as ``seal_crop`` returned it, or None.

    Raises:
        RecordError: a value of the wrong type, not finite, or a box without area.

    """

    box: Box
    points: Points
    score: float
    sealed: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Check the values and turn numpy numbers into plain ones."""
        box = _floats(self.box, 4, "box")
        if not (box[0] < box[2] and box[1] < box[3]):
            raise RecordError("the box of a face in the record has no area; the record is damaged")
        rows = _sequence(self.points, 5, "points")
        object.__setattr__(self, "box", box)
        object.__setattr__(self, "points", tuple(_floats(row, 2, "points") for row in rows))
        object.__setattr__(self, "score", _float(self.score, "score"))
        if self.sealed is not None and (not isinstance(self.sealed, str) or not self.sealed):
            _wrong("sealed", "text or null")

    @classmethod
    def of(cls, box: object, points: object, score: object = 1.0) -> FaceRecord:
        """Entry from arrays or lists: ``box`` (4,), ``points`` (5, 2), both in pixels of the upright picture.

        Raises:
            RecordError: as the class says.

        """
        return cls(box=box, points=points, score=score)  # type: ignore[arg-type]  # __post_init__ checks every value

    def to_dict(self) -> dict[str, object]:
        """Plain dict with lists for JSON."""
        return {
            "box": list(self.box),
            "points": [list(point) for point in self.points],
            "score": self.score,
            "sealed": self.sealed,
        }


@dataclass(frozen=True)
class PictureRecord:
    """What was done to one picture.

    Attributes:
        method: name of the method, e.g. "identity_rotation".
        model: name under which it was loaded, e.g. "identity_rotation.faces128"; the method's name for classics.
        size: (width, height) of the upright picture in pixels.
        faces: one entry a face, in the order in which they were processed.
        options: the method's options as plain JSON values. Never a secret.
        checkpoint_sha256: SHA-256 of the checkpoint's weights and configuration in hex; None for methods without one.
        key_id: ``key.key_id(salt)`` of the key; None for methods without a key.
        record_salt: random salt of this record, base64; None exactly when ``key_id`` is None.
        kdf: parameters of the scrypt which leads from the key to the record key.
        picture_sha256: ``picture_sha256`` of the saved output; None as long as nothing was saved.
        facezoo_version: version that made the record.
        mac: authentication code over all other fields, base64; see ``authenticated``.
        version: of the record's format.

    Raises:
        RecordError: a value of the wrong type or out of range.

    """

    method: str
    model: str
    size: tuple[int, int]
    faces: Sequence[FaceRecord]
    options: Mapping[str, object] = field(default_factory=dict)
    checkpoint_sha256: str | None = None
    key_id: str | None = None
    record_salt: str | None = None
    kdf: Mapping[str, int | str] = field(default_factory=_default_kdf)
    picture_sha256: str | None = None
    facezoo_version: str = ""
    mac: str | None = None
    version: int = RECORD_VERSION

    def __post_init__(self) -> None:
        """Check the values and turn sequences into their plain form."""
        if type(self.version) is not int or self.version != RECORD_VERSION:
            raise RecordError(
                f"the record has format {self.version!r} and this facezoo reads format {RECORD_VERSION}; "
                "use the facezoo version that made it, or a newer one"
            )
        for name in ("method", "model"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                _wrong(name, "text")
        if not isinstance(self.facezoo_version, str):
            _wrong("facezoo_version", "text")
        size = _sequence(self.size, 2, "size")
        sides = [side for side in size if isinstance(side, int) and not isinstance(side, bool) and side > 0]
        if len(sides) != 2:
            _wrong("size", "two whole numbers above 0")
        object.__setattr__(self, "size", tuple(sides))
        if not isinstance(self.faces, list | tuple) or not all(isinstance(face, FaceRecord) for face in self.faces):
            _wrong("faces", "a list of faces")
        object.__setattr__(self, "faces", tuple(self.faces))
        if not isinstance(self.options, Mapping):
            _wrong("options", "an object")
        object.__setattr__(self, "options", _plain(self.options, "options"))
        for name, pattern in (("checkpoint_sha256", _HEX64), ("picture_sha256", _HEX64), ("key_id", _HEX16)):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, str) or not pattern.fullmatch(value)):
                _wrong(name, "lower-case hex digits or null")
        if (self.key_id is None) != (self.record_salt is None):
            raise RecordError("the record has a key id without a salt, or a salt without a key id; it is damaged")
        if self.record_salt is not None and not 16 <= len(_from_base64(self.record_salt, "record_salt")) <= 64:
            _wrong("record_salt", "base64 of 16 to 64 bytes")
        if self.mac is not None and len(_from_base64(self.mac, "mac")) != 32:
            _wrong("mac", "base64 of 32 bytes or null")
        if self.record_salt is None and (self.mac is not None or any(face.sealed for face in self.faces)):
            raise RecordError("the record is sealed or authenticated but names no key; it is damaged")
        object.__setattr__(self, "kdf", self._kdf_params.to_dict())

    @property
    def _kdf_params(self) -> KdfParams:
        try:
            return KdfParams.from_dict(dict(self.kdf) if isinstance(self.kdf, Mapping) else self.kdf)
        except KeyMaterialError as error:
            raise RecordError(f"the record's key-derivation field is unusable: {error}") from None

    # ---------------------------------------------------------------- the key's side

    @property
    def salt(self) -> bytes | None:
        """The record's salt as bytes; None for a method without a key."""
        return None if self.record_salt is None else _from_base64(self.record_salt, "record_salt")

    def with_key(self, key: Key, salt: bytes | None = None) -> PictureRecord:
        """Copy that names this key.

        Args:
            key: whose name to enter.
            salt: random salt of the record; None: a fresh one. The pictures of one run may share a salt: scrypt is
                then paid for once, and their records show that they belong together.

        """
        chosen = new_salt() if salt is None else salt
        return replace(
            self,
            key_id=key.key_id(chosen, self._kdf_params),
            record_salt=base64.b64encode(chosen).decode(),
            mac=None,
        )

    def belongs_to(self, picture: str | os.PathLike[str] | bytes) -> bool:
        """Whether ``picture`` (a path or a file's content) is, byte by byte, the output that this record tells of.

        A re-encoded copy is not, though its faces may well be recovered with this record.
        """
        return self.picture_sha256 is not None and self.picture_sha256 == picture_sha256(picture)

    def matches_key(self, key: Key) -> bool:
        """Whether this key made the record (a wrong key passes once in 2**64)."""
        if self.key_id is None or self.salt is None:
            return False
        return hmac.compare_digest(key.key_id(self.salt, self._kdf_params), self.key_id)

    def authenticated(self, key: Key) -> PictureRecord:
        """Copy with the authentication code over all other fields. The last step before writing.

        Raises:
            RecordError: the record names another key, or none (``with_key`` comes first).

        """
        self._require_key(key)
        return replace(self, mac=base64.b64encode(self._expected_mac(key)).decode())

    def verify(self, key: Key) -> None:
        """Check that this key made the record and that nothing in it was changed since.

        Raises:
            RecordError: another key, no authentication code, or a changed field.

        """
        self._require_key(key)
        if self.mac is None:
            raise RecordError("the record carries no authentication code; anonymize the picture again to get one")
        if not hmac.compare_digest(_from_base64(self.mac, "mac"), self._expected_mac(key)):
            raise RecordError("the record was changed after it was made; use an unchanged copy, or go without a record")

    def _require_key(self, key: Key) -> None:
        if self.key_id is None:
            raise RecordError(f"the record names no key: {self.method} was used without one")
        if not self.matches_key(key):
            raise RecordError(
                "the record was made with another key; give the key with which the picture was anonymized"
            )

    def _expected_mac(self, key: Key) -> bytes:
        salt = self.salt
        if salt is None:
            raise RecordError(f"the record names no key: {self.method} was used without one")
        content = self._content()
        del content["mac"]
        return hmac.digest(key.mac_key(salt, self._kdf_params), _canonical(content), "sha256")

    # ---------------------------------------------------------------- JSON

    def _content(self) -> dict[str, object]:
        return {
            "version": self.version,
            "facezoo_version": self.facezoo_version,
            "method": self.method,
            "model": self.model,
            "checkpoint_sha256": self.checkpoint_sha256,
            "options": self.options,
            "key_id": self.key_id,
            "record_salt": self.record_salt,
            "kdf": self.kdf,
            "size": list(self.size),
            "picture_sha256": self.picture_sha256,
            "faces": [face.to_dict() for face in self.faces],
            "mac": self.mac,
        }

    def to_json(self) -> str:
        """The record as JSON text, with its checksum; one line a field and a face."""
        content = self._content()
        content["checksum"] = _checksum(content)
        lines = []
        for name, value in content.items():
            if name == "faces" and self.faces:
                text = "[\n" + ",\n".join(f"  {_readable(face.to_dict())}" for face in self.faces) + "\n ]"
            else:
                text = _readable(value)
            lines.append(f" {json.dumps(name)}: {text}")
        return "{\n" + ",\n".join(lines) + "\n}\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> PictureRecord:
        """Read what ``to_json`` wrote; everything else is refused.

        Raises:
            RecordError: no JSON, truncated, a missing, unknown or doubled field, a wrong type, a wrong checksum, or
                a format of another version.

        """
        content = _parse(text)
        version = content.get("version")
        if type(version) is int and version > RECORD_VERSION:
            raise RecordError(
                f"the record has format {version} and this facezoo reads format {RECORD_VERSION}; upgrade facezoo"
            )
        names = {item.name for item in fields(cls)}
        _check_names(content, names | {"checksum"}, "the record")
        checksum = content.pop("checksum")
        if not isinstance(checksum, str) or not hmac.compare_digest(checksum.encode(), _checksum(content).encode()):
            raise RecordError("the record is damaged or was edited (its checksum is wrong); use an unchanged copy")
        rows = content["faces"]
        if not isinstance(rows, list):
            _wrong("faces", "a list")
        faces = []
        for row in rows:
            if not isinstance(row, dict):
                _wrong("faces", "a list of objects")
            _check_names(row, {item.name for item in fields(FaceRecord)}, "a face in the record")
            faces.append(FaceRecord(**row))
        return cls(**{**content, "faces": tuple(faces)})  # type: ignore[arg-type]  # __post_init__ checks every value


# -------------------------------------------------------------------- sealing


def seal_aad(
    method: str, box: Sequence[float], points: Sequence[Sequence[float]], size: Sequence[int], extra: str = ""
) -> bytes:
    """What a sealed crop is bound to, as canonical JSON: the crop opens only where all of this is unchanged.

    Args:
        method: name of the method.
        box: (x0, y0, x1, y1) in pixels.
        points: five (x, y) in pixels.
        size: (width, height) of the picture.
        extra: anything else to bind to.

    """
    face = FaceRecord.of(box, points)
    return _canonical(
        {
            "method": method,
            "box": list(face.box),
            "points": [list(point) for point in face.points],
            "size": [int(side) for side in size],
            "extra": extra,
        }
    )


def seal_crop(key: Key, salt: bytes, png_bytes: bytes, aad: bytes, kdf: KdfParams | None = None) -> str:
    """Encrypt and authenticate an original crop: AES-256-GCM under ``key.seal_key(salt)`` with a random nonce.

    Args:
        key: the user's key.
        salt: the record's random salt.
        png_bytes: the crop as a PNG file (any bytes do).
        aad: what the crop is bound to, from ``seal_aad``.
        kdf: the record's scrypt parameters; None: the default.

    Returns:
        Base64 of nonce (12 bytes), ciphertext and tag (16 bytes).

    """
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    nonce = secrets.token_bytes(_NONCE_BYTES)
    padded = png_bytes + b"\x80"
    padded += bytes(-len(padded) % _SEAL_BLOCK)
    return base64.b64encode(nonce + AESGCM(key.seal_key(salt, kdf)).encrypt(nonce, padded, aad)).decode()


def open_seal(key: Key, salt: bytes, sealed: str, aad: bytes, kdf: KdfParams | None = None) -> bytes:
    """Decrypt what ``seal_crop`` made: exactly the bytes that went in.

    Raises:
        RecordError: another key or salt, a changed ciphertext, or a changed ``aad``.

    """
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    message = (
        "a sealed face does not open: the key is another one, or the record was changed after it was made; "
        "give the right key and an unchanged record"
    )
    data = _from_base64(sealed, "sealed")
    if len(data) < _NONCE_BYTES + 16 + _SEAL_BLOCK:
        raise RecordError(message)
    try:
        padded = AESGCM(key.seal_key(salt, kdf)).decrypt(data[:_NONCE_BYTES], data[_NONCE_BYTES:], aad)
    except InvalidTag:
        raise RecordError(message) from None
    return padded[: padded.rindex(b"\x80")]


def seal_faces(record: PictureRecord, key: Key, crops: Sequence[bytes]) -> PictureRecord:
    """Copy of the record in which every face carries its original crop, sealed.

    Args:
        record: which names this key already (``with_key``).
        key: the user's key.
        crops: one PNG file a face, in the order of ``record.faces``.

    Raises:
        RecordError: the record names another key or none, or the number of crops is not that of the faces.

    """
    record._require_key(key)
    if len(crops) != len(record.faces):
        raise RecordError(f"the record has {len(record.faces)} faces and {len(crops)} crops were given to seal")
    faces = tuple(
        replace(face, sealed=seal_crop(key, record.salt or b"", crop, _face_aad(record, index), record._kdf_params))
        for index, (face, crop) in enumerate(zip(record.faces, crops, strict=True))
    )
    return replace(record, faces=faces, mac=None)


def open_face(record: PictureRecord, index: int, key: Key) -> bytes:
    """The original crop of face ``index``: the PNG file that was given to ``seal_faces``.

    Raises:
        RecordError: no such face, not sealed, another key, or a changed record.

    """
    if not 0 <= index < len(record.faces):
        raise RecordError(f"the record has {len(record.faces)} faces and none with the number {index}")
    sealed = record.faces[index].sealed
    if sealed is None or record.salt is None:
        raise RecordError(f"face {index} of the record is not sealed; recover it with the method itself")
    return open_seal(key, record.salt, sealed, _face_aad(record, index), record._kdf_params)


def _face_aad(record: PictureRecord, index: int) -> bytes:
    face = record.faces[index]
    return seal_aad(record.method, face.box, face.points, record.size, extra=f"face {index} of {len(record.faces)}")


# -------------------------------------------------------------------- sidecars


def sidecar_path(output: str | os.PathLike[str]) -> Path:
    """Where the record of a picture lies: ``group.anon.png`` -> ``group.anon.png.facezoo.json``."""
    path = Path(output)
    return path.with_name(path.name + _SIDECAR_SUFFIX)


def write_sidecar(output: str | os.PathLike[str], record: PictureRecord, overwrite: bool = False) -> Path:
    """Write the record beside the picture ``output``.

    Returns:
        The path of the sidecar.

    Raises:
        OutputError: it exists and ``overwrite`` is off, or cannot be written.

    """
    return atomic_write(sidecar_path(output), record.to_json().encode(), overwrite)


def read_sidecar(output: str | os.PathLike[str]) -> PictureRecord:
    """Read the record beside the picture ``output``.

    Raises:
        RecordError: there is none, or it is damaged.

    """
    return read_record(sidecar_path(output))


def read_record(path: str | os.PathLike[str]) -> PictureRecord:
    """Read a record from its JSON file.

    Raises:
        RecordError: missing, unreadable or damaged; the message names the file.

    """
    data = _read(Path(path), RecordError, "the record")
    try:
        return PictureRecord.from_json(data)
    except RecordError as error:
        raise RecordError(f"{path}: {error}") from None


def find_record(picture: str | os.PathLike[str]) -> PictureRecord | None:
    """Record of a picture: its sidecar, else the one inside the PNG, else None.

    Raises:
        RecordError: there is one and it is damaged.

    """
    if sidecar_path(picture).exists():
        return read_sidecar(picture)
    return read_embedded(picture)


def picture_sha256(picture: str | os.PathLike[str] | bytes) -> str:
    """SHA-256 of a picture file, as 64 hex digits; a record inside a PNG is left out.

    So the figure is the same before and after the record is embedded, and can stand in the record itself.

    Raises:
        InputError: the file cannot be read.
        RecordError: a PNG is truncated.

    """
    data = picture if isinstance(picture, bytes) else _read(Path(picture), InputError, "the picture")
    digest = hashlib.sha256()
    for piece in _png_without_record(data) if data.startswith(_PNG_SIGNATURE) else (data,):
        digest.update(piece)
    return digest.hexdigest()


# -------------------------------------------------------------------- PNG


def embed_record(png: bytes, record: PictureRecord) -> bytes:
    """PNG file with the record in an ``iTXt`` chunk before its end; an older record in it is replaced.

    All other chunks, the pixel data among them, are copied byte by byte.

    Raises:
        InputError: not a PNG.
        OutputError: the record is too big for a chunk that every program reads (many sealed faces).
        RecordError: the PNG is truncated.

    """
    if not png.startswith(_PNG_SIGNATURE):
        raise InputError("only a PNG can carry its record; save as PNG, or leave the record in the sidecar file")
    # Not compressed: decoders refuse compressed texts that unfold to more than 1 MiB, and sealed crops do not shrink.
    text = json.dumps(json.loads(record.to_json()), separators=(",", ":"), ensure_ascii=False).encode()
    if len(text) > _MAX_EMBEDDED_BYTES:
        raise OutputError(f"the record ({len(text)} bytes) is too big to embed in a PNG; use the sidecar file")
    chunk = _png_chunk(b"iTXt", _KEYWORD + b"\x00\x00\x00\x00\x00" + text)
    pieces = list(_png_without_record(png))
    for position, piece in enumerate(pieces):
        if piece[4:8] == b"IEND" and position > 0:
            return b"".join([*pieces[:position], chunk, *pieces[position:]])
    raise RecordError("the PNG is truncated (it has no end); save the picture again")


def extract_record(png: bytes) -> PictureRecord | None:
    """Record in a PNG file's ``facezoo`` chunk; None where there is none or the file is no PNG.

    Raises:
        RecordError: two records, or one that is damaged.

    """
    if not png.startswith(_PNG_SIGNATURE):
        return None
    found = [piece for piece in _png_pieces(png) if _is_record(piece)]
    if not found:
        return None
    if len(found) > 1:
        raise RecordError("the PNG carries more than one facezoo record; use the sidecar file")
    piece = found[0]
    if zlib.crc32(piece[4:-4]) != struct.unpack(">I", piece[-4:])[0]:
        raise RecordError("the record in the PNG is damaged (checksum of its chunk); use an unchanged copy")
    body = piece[8:-4]
    head = _KEYWORD + b"\x00\x00\x00\x00\x00"
    if not body.startswith(head):
        raise RecordError("the record in the PNG was rewritten by another program; use the sidecar file")
    return PictureRecord.from_json(body[len(head) :])


def embed_in_png(path: str | os.PathLike[str], record: PictureRecord) -> Path:
    """Put the record into an existing PNG file, which is replaced in one step; its pixels stay as they are.

    Raises:
        InputError: not a PNG, or it cannot be read.
        OutputError: the file cannot be written, or the record is too big.
        RecordError: the PNG is truncated.

    """
    return atomic_write(path, embed_record(_read(Path(path), InputError, "the picture"), record), overwrite=True)


def read_embedded(path: str | os.PathLike[str]) -> PictureRecord | None:
    """Record inside a PNG file; None where there is none or the file is no PNG.

    Raises:
        InputError: the file cannot be read.
        RecordError: its record is damaged; the message names the file.

    """
    source = Path(path)
    try:
        return extract_record(_read(source, InputError, "the picture"))
    except RecordError as error:
        raise RecordError(f"{source}: {error}") from None


def _png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _png_pieces(png: bytes) -> Iterator[bytes]:
    """The signature, then each chunk with its length, kind and checksum, then what stands behind the end (if any)."""
    yield png[: len(_PNG_SIGNATURE)]
    position = len(_PNG_SIGNATURE)
    while position < len(png):
        if position + 12 > len(png):
            raise RecordError("the PNG is truncated; save the picture again")
        end = position + 12 + int.from_bytes(png[position : position + 4], "big")
        if end > len(png):
            raise RecordError("the PNG is truncated; save the picture again")
        piece = png[position:end]
        yield piece
        position = end
        if piece[4:8] == b"IEND":
            if position < len(png):
                yield png[position:]
            return
    raise RecordError("the PNG is truncated (it has no end); save the picture again")


def _is_record(piece: bytes) -> bool:
    return piece[4:8] in (b"iTXt", b"tEXt", b"zTXt") and piece[8 : 8 + len(_KEYWORD) + 1] == _KEYWORD + b"\x00"


def _png_without_record(png: bytes) -> Iterator[bytes]:
    return (piece for piece in _png_pieces(png) if not _is_record(piece))


# -------------------------------------------------------------------- small parts


def _wrong(name: str, expected: str) -> NoReturn:
    raise RecordError(f"the record's field {name} is unusable (it must be {expected}); use an unchanged copy")


def _sequence(value: object, length: int, name: str) -> list[object]:
    if hasattr(value, "tolist"):  # a numpy array
        value = value.tolist()
    if not isinstance(value, list | tuple) or len(value) != length:
        _wrong(name, f"a list of {length}")
    return [item.item() if hasattr(item, "item") else item for item in value]  # numpy numbers in a tuple


def _float(value: object, name: str) -> float:
    if hasattr(value, "item"):  # a numpy number
        value = value.item()
    if isinstance(value, int | float) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):  # a whole number of 400 digits
            number = float(value)
            if math.isfinite(number):
                return number
    _wrong(name, "finite numbers")


def _floats(value: object, length: int, name: str) -> tuple[float, ...]:
    return tuple(_float(item, name) for item in _sequence(value, length, name))


def _plain(value: object, name: str) -> object:
    """The value with plain JSON types only, so that no object (a key, say) finds its way into a file."""
    if value is None or isinstance(value, bool | str | int):
        return value
    if isinstance(value, float):
        return _float(value, name)
    if isinstance(value, list | tuple):
        return [_plain(item, name) for item in value]
    if isinstance(value, Mapping):
        if not all(isinstance(item, str) for item in value):
            _wrong(name, "an object with text as names")
        return {item: _plain(content, name) for item, content in value.items()}
    raise RecordError(f"the record's field {name} can hold JSON values only, not {type(value).__name__}")


def _readable(content: object) -> str:
    return json.dumps(content, allow_nan=False, ensure_ascii=False)


def _canonical(content: object) -> bytes:
    """JSON that is the same for equal content: sorted names, no spaces, shortest form of every number."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True).encode()


def _checksum(content: Mapping[str, object]) -> str:
    return hashlib.sha256(_canonical(content)).hexdigest()


def _from_base64(text: object, name: str) -> bytes:
    if isinstance(text, str):
        try:
            data = base64.b64decode(text.encode("ascii"), validate=True)
        except (binascii.Error, ValueError):
            data = b""
        # One text for one value: the spare bits before the padding must be zero.
        if data and base64.b64encode(data).decode() == text:
            return data
    _wrong(name, "base64 text")


def _check_names(content: Mapping[str, object], expected: set[str], what: str) -> None:
    missing, unknown = sorted(expected - set(content)), sorted(set(content) - expected)
    if missing:
        raise RecordError(f"{what} lacks {', '.join(missing)}; it is truncated or no facezoo record")
    if unknown:
        raise RecordError(
            f"{what} has unknown fields ({', '.join(unknown[:5])}); it is damaged or from another version"
        )


def _parse(text: str | bytes) -> dict[str, object]:
    def without_doubles(pairs: list[tuple[str, object]]) -> dict[str, object]:
        result = dict(pairs)
        if len(result) != len(pairs):
            raise RecordError("the record names a field twice; it is damaged or was edited")
        return result

    def no_constant(name: str) -> NoReturn:
        raise RecordError(f"the record holds {name}, which is no number; it is damaged or was edited")

    if len(text) > _MAX_RECORD_BYTES:
        raise RecordError(f"the record is longer than {_MAX_RECORD_BYTES} bytes: that is no facezoo record")
    try:
        content = json.loads(
            text if isinstance(text, str) else text.decode(),
            object_pairs_hook=without_doubles,
            parse_constant=no_constant,
        )
    except (ValueError, RecursionError):
        raise RecordError("the record is truncated or no JSON; use an unchanged copy") from None
    if not isinstance(content, dict):
        raise RecordError("the record is no JSON object; use an unchanged copy")
    return content


def _read(path: Path, error_class: type[FacezooError], what: str) -> bytes:
    try:
        size = path.stat().st_size
        limit = _MAX_RECORD_BYTES if error_class is RecordError else _MAX_PICTURE_BYTES
        if size > limit:
            raise error_class(f"{what} {path} has {size >> 20} MB, more than the {limit >> 20} MB allowed")
        return path.read_bytes()
    except IsADirectoryError:
        raise error_class(f"{what} {path} is a folder; give a file") from None
    except FileNotFoundError:
        raise error_class(f"{what} {path} does not exist; check its path") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "unusable name"
        raise error_class(f"cannot read {what} {path}: {reason}") from None
