"""Keys: from a passphrase, a key file or raw bytes to bits, vectors and seeds. Nothing else handles secrets.

::

    passphrase --NFKC, scrypt--> master (32 bytes) --HKDF-SHA256(purpose)--> seed --ChaCha20--> any number of bytes
                                   |                                             bits, unit vectors, uniforms, seeds
                                   +--scrypt(random salt of a record)--> record key --HKDF--> key id, seal key

* **What a method uses** depends on the master and on the purpose alone, so that a saved picture and the passphrase
  are enough to recover it, without any record. The passphrase therefore goes through scrypt with a constant, public
  salt (``APPLICATION_SALT``) unless the caller gives a salt of their own. The price: one table of guessed
  passphrases would serve against all users. A passphrase of five random words, or a key file, makes that pointless.
* **What a record holds** (key id, sealed faces) depends on a random salt which is stored in the record with the
  parameters of its scrypt; never the secret, and nothing from which it can be had faster than by guessing.
* **Purposes are apart**: outputs for two purposes, or two kinds of output for one purpose, are independent.
* **The same everywhere**: every output is built from exact integer arithmetic and from additions, multiplications,
  divisions and square roots of IEEE 754, one at a time. Logarithm and cosine of the system's library differ in the
  last bit from one machine to another; those here do not. A test pins the values.

A secret is never on the command line, and never in ``repr``, ``str``, a pickle or an error text.

The modules torch and cv2 are not imported here, numpy and cryptography only when they are first needed.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import getpass
import hashlib
import hmac
import math
import os
import secrets
import stat
import sys
import threading
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, NoReturn, SupportsIndex, TypeAlias

from facezoo.errors import KeyMaterialError
from facezoo.files import atomic_write

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["APPLICATION_SALT", "KEY_FORMS", "KdfParams", "Key", "KeyForm", "new_salt", "read_key"]

KEY_BYTES: Final = 32
"""Length of the master key in bytes."""

APPLICATION_SALT: Final = hashlib.sha256(b"facezoo application salt, version 1").digest()
"""Public constant salt of every passphrase for which the caller gives no salt (see the module's text for the price)."""

KEY_FILE_PREFIX: Final = "facezoo-key-v1:"
"""First characters of a file made by ``Key.generate_file``; base64 of the 32 bytes follows."""

KeyForm = Literal["passphrase", "six-digits", "bits"]
"""How a typed key is to be read."""

KEY_FORMS: Final[tuple[KeyForm, ...]] = ("passphrase", "six-digits", "bits")

ADVISED_LENGTH: Final = 16
"""Characters below which a passphrase earns an advice: shorter ones are in reach of guessing on many machines."""

ADVISED_BITS: Final = 64.0
"""Worth below which any key earns an advice: 2**64 guesses at 0.1 s each are 58 billion processor-years."""

_MAX_SECRET_FILE_BYTES: Final = 4096
_MAX_BIT_FORM: Final = 1024
_MAX_EXPANSION_BYTES: Final = 2**32
_HKDF_SALT: Final = b"facezoo-v1"
_CACHED_RECORD_KEYS: Final = 16
_EXAMPLE_ADVICE: Final = "use a key file (`facezoo key new FILE`) or at least five random words"


@dataclass(frozen=True)
class KdfParams:
    """Cost of scrypt (RFC 7914). One evaluation needs ``128 * n * r`` bytes of memory.

    Attributes:
        n: cost; a power of two, at least 2. The default of 2**15 with ``r`` = 8 takes 32 MiB and about 0.1 s.
        r: block size, at least 1.
        p: parallel lanes, at least 1.

    Raises:
        KeyMaterialError: a value that scrypt does not allow, or that would need more than 1 GiB or take minutes
            (a record is foreign input: it must not be able to exhaust the reader's memory).

    """

    n: int = 2**15
    r: int = 8
    p: int = 1

    def __post_init__(self) -> None:
        """Check the values."""
        if any(not isinstance(value, int) or isinstance(value, bool) for value in (self.n, self.r, self.p)):
            raise KeyMaterialError("the scrypt parameters n, r and p must be whole numbers")
        if self.n < 2 or self.n & (self.n - 1):
            raise KeyMaterialError(f"the scrypt parameter n must be a power of two, at least 2, not {self.n}")
        if self.r < 1 or self.p < 1:
            raise KeyMaterialError(f"the scrypt parameters r and p must be at least 1, not {self.r} and {self.p}")
        if 128 * self.n * self.r > 2**30 or self.p > 16:
            raise KeyMaterialError(
                f"the scrypt parameters n={self.n}, r={self.r}, p={self.p} cost too much (at most 1 GiB and p = 16)"
            )

    def to_dict(self) -> dict[str, int | str]:
        """Plain dict for a record: ``{"name": "scrypt", "n": ..., "r": ..., "p": ...}``."""
        return {"name": "scrypt", "n": self.n, "r": self.r, "p": self.p}

    @classmethod
    def from_dict(cls, values: object) -> KdfParams:
        """Read what ``to_dict`` wrote.

        Raises:
            KeyMaterialError: another function than scrypt, missing or unknown fields, values out of range.

        """
        if not isinstance(values, dict) or set(values) != {"name", "n", "r", "p"} or values["name"] != "scrypt":
            raise KeyMaterialError('key-derivation parameters must be {"name": "scrypt", "n": .., "r": .., "p": ..}')
        return cls(n=values["n"], r=values["r"], p=values["p"])

    def derive(self, secret: bytes, salt: bytes) -> bytes:
        """Scrypt of ``secret`` with ``salt``: 32 bytes."""
        from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

        return Scrypt(salt=salt, length=KEY_BYTES, n=self.n, r=self.r, p=self.p).derive(secret)


def new_salt() -> bytes:
    """16 fresh random bytes: the salt of a record."""
    return secrets.token_bytes(16)


_Bytes: TypeAlias = bytes  # within `Key` the name `bytes` is the method


class Key:
    """A secret key of 32 bytes and what can be expanded from it.

    Made by one of the ``from_...`` methods or ``generate``; immutable; compared in constant time. Printing shows the
    kind and the worth, never the secret; pickling is refused.

    Attributes:
        kind: "passphrase", "key file", "raw bytes", "six digits" or "bits".
        strength_bits: how many bits the key is worth **at best**: somebody who knows how it was chosen needs
            at most about 2**strength_bits guesses, and usually far fewer for a passphrase that a person thought up.
        strength_note: the same as a sentence, with what it means.
        advice: one line on how to get a better key; None where there is nothing to say.

    """

    __slots__ = ("_lock", "_master", "_record_keys", "advice", "kind", "strength_bits", "strength_note")

    _master: _Bytes
    _record_keys: dict[tuple[_Bytes, KdfParams], _Bytes]
    _lock: threading.Lock
    kind: str
    strength_bits: float
    strength_note: str
    advice: str | None

    def __init__(
        self, master: _Bytes, *, kind: str, strength_bits: float, strength_note: str, advice: str | None = None
    ) -> None:
        """Keep the master; callers use one of the ``from_...`` methods or ``generate``."""
        if not isinstance(master, bytes) or len(master) != KEY_BYTES:
            raise KeyMaterialError(f"a key must have exactly {KEY_BYTES} bytes")
        for name, value in (
            ("_master", master),
            ("_record_keys", {}),
            ("_lock", threading.Lock()),
            ("kind", kind),
            ("strength_bits", float(strength_bits)),
            ("strength_note", strength_note),
            ("advice", advice),
        ):
            object.__setattr__(self, name, value)

    # ---------------------------------------------------------------- making a key

    @classmethod
    def from_passphrase(cls, text: str, *, salt: _Bytes | None = None, kdf: KdfParams | None = None) -> Key:
        """Key from a passphrase, by scrypt.

        The text is NFKC-normalised, so that one passphrase typed on two systems is one key. Every other character
        counts, spaces at the ends too.

        Args:
            text: the passphrase.
            salt: at least 8 bytes of the caller's own, which must then be given again for recovery; None: the
                documented ``APPLICATION_SALT``.
            kdf: cost of scrypt; None: the default ``KdfParams()``. Must be the same for recovery.

        Raises:
            KeyMaterialError: no text, an empty text, or a text that is the content of a key file.

        """
        if not isinstance(text, str):
            raise KeyMaterialError(
                f"a passphrase must be text, not {type(text).__name__}; for 32 raw bytes use Key.from_bytes"
            )
        if text.startswith(KEY_FILE_PREFIX):
            raise KeyMaterialError("this is the content of a key file and not a passphrase; use Key.from_file")
        normal = unicodedata.normalize("NFKC", text)
        if not normal.strip():
            raise KeyMaterialError("the passphrase is empty; give a passphrase")
        encoded = _encode(normal)
        bits = _passphrase_bits(normal)
        note = (
            f"passphrase: at best {bits:.0f} bits, if each character was drawn at random; "
            "words, names and dates are worth far less"
        )
        advice = None
        if len(normal) < ADVISED_LENGTH:
            advice = f"the passphrase has fewer than {ADVISED_LENGTH} characters and may be guessed: {_EXAMPLE_ADVICE}"
        elif bits < ADVISED_BITS:
            advice = f"the passphrase is worth {bits:.0f} bits at best and may be guessed: {_EXAMPLE_ADVICE}"
        master = _stretch(b"passphrase\x00" + encoded, salt, kdf)
        return cls(master, kind="passphrase", strength_bits=bits, strength_note=note, advice=advice)

    @classmethod
    def from_six_digits(cls, digits: str, *, salt: _Bytes | None = None, kdf: KdfParams | None = None) -> Key:
        """Key from six decimal digits: the form of the book's chapter 6 (10**6 passwords, 19.9 bits).

        For repeating the book's experiments. Somebody who holds the picture tries all of them in about a day on one
        processor. A passphrase of the same six digits is another key.

        Raises:
            KeyMaterialError: not exactly six of the digits 0 to 9.

        """
        if not isinstance(digits, str) or len(digits) != 6 or not (digits.isascii() and digits.isdigit()):
            raise KeyMaterialError('a six-digit key must be text of exactly six digits, as in "012345"')
        return cls(
            _stretch(b"six-digits\x00" + digits.encode(), salt, kdf),
            kind="six digits",
            strength_bits=6 * math.log2(10),
            strength_note="six digits: 19.9 bits; all one million can be tried in about a day on one processor",
            advice=f"six digits only repeat the book's experiments: {_EXAMPLE_ADVICE}",
        )

    @classmethod
    def from_bits(cls, bits: str | Iterable[int], *, salt: _Bytes | None = None, kdf: KdfParams | None = None) -> Key:
        """Key from N bits: the form of the SDN and MfM papers (16 bits and other lengths).

        Args:
            bits: "0101..." or zeros and ones; 1 to 1024 of them. Leading zeros count: "01" and "1" are two keys.
            salt: as in ``from_passphrase``.
            kdf: as in ``from_passphrase``.

        Raises:
            KeyMaterialError: something else than zeros and ones, or too many or none.

        """
        message = f'a bit key must be 1 to {_MAX_BIT_FORM} zeros and ones, as in "0110100110010110"'
        if isinstance(bits, str):
            text = bits
        else:
            try:
                values = list(bits)
            except TypeError:
                raise KeyMaterialError(message) from None
            if any(value not in (0, 1) for value in values):
                raise KeyMaterialError(message)
            text = "".join("1" if value else "0" for value in values)
        if not 1 <= len(text) <= _MAX_BIT_FORM or set(text) - {"0", "1"}:
            raise KeyMaterialError(message)
        worth = min(len(text), 8 * KEY_BYTES)
        weak = worth < ADVISED_BITS
        reach = "; all of them can be tried" if weak else ""
        return cls(
            _stretch(b"bits\x00" + text.encode(), salt, kdf),
            kind="bits",
            strength_bits=worth,
            strength_note=f"{len(text)} bits: worth {worth} bits at best, if drawn at random{reach}",
            advice=f"{len(text)} bits only repeat the papers' experiments: {_EXAMPLE_ADVICE}" if weak else None,
        )

    @classmethod
    def from_bytes(cls, raw: _Bytes) -> Key:
        """Key from 32 raw bytes, which must come from a good random source; no scrypt is applied.

        Raises:
            KeyMaterialError: not bytes, or not 32 of them, or all the same.

        """
        if not isinstance(raw, bytes | bytearray | memoryview):
            raise KeyMaterialError(f"a raw key must be bytes, not {type(raw).__name__}; for text use from_passphrase")
        master = bytes(raw)
        if len(master) != KEY_BYTES:
            raise KeyMaterialError(f"a raw key must have exactly {KEY_BYTES} bytes, not {len(master)}")
        if len(set(master)) == 1:
            raise KeyMaterialError("a raw key of 32 equal bytes is no key; use Key.generate()")
        return cls(
            master, kind="raw bytes", strength_bits=256, strength_note="32 raw bytes: 256 bits, if drawn at random"
        )

    @classmethod
    def generate(cls) -> Key:
        """Fresh random key of 256 bits from the operating system."""
        return cls._generated(secrets.token_bytes(KEY_BYTES))

    @classmethod
    def _generated(cls, master: _Bytes) -> Key:
        return cls(master, kind="key file", strength_bits=256, strength_note="random key: 256 bits")

    @classmethod
    def generate_file(cls, path: str | os.PathLike[str]) -> Key:
        """Make a fresh random key and write it to a new key file, readable by its owner only (mode 0600).

        An existing file is never replaced: the pictures made under the old key could not be recovered any more.

        Returns:
            The key.

        Raises:
            OutputError: the file exists or cannot be written.

        """
        master = secrets.token_bytes(KEY_BYTES)
        content = KEY_FILE_PREFIX + base64.b64encode(master).decode() + "\n"
        atomic_write(path, content.encode(), overwrite=False, mode=0o600)
        return cls._generated(master)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], *, form: KeyForm = "passphrase") -> Key:
        """Key from a file: one made by ``generate_file``, a text file with a passphrase, or 32 raw bytes.

        In a text file the passphrase is the only line; the line break at its end does not count, and blank lines
        after it are allowed. A file which holds more than that was probably given by mistake and is refused, as are
        PEM files: their first line is the same for everybody.

        Args:
            path: of the file.
            form: how a text is read: "passphrase", "six-digits" or "bits". A file made by ``generate_file`` is
                taken whatever the form.

        Raises:
            KeyMaterialError: missing, a folder, empty, too big, damaged, or neither text nor 32 bytes.

        """
        source = Path(path)
        try:
            with source.open("rb") as stream:
                status = os.fstat(stream.fileno())
                data = stream.read(_MAX_SECRET_FILE_BYTES + 1)
        except IsADirectoryError:
            raise KeyMaterialError(f"the key file {source} is a folder; give a file") from None
        except FileNotFoundError:
            raise KeyMaterialError(
                f"the key file {source} does not exist; make one with `facezoo key new FILE`"
            ) from None
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else "unusable name"
            raise KeyMaterialError(f"cannot read the key file {source}: {reason}") from None
        key = cls._from_content(data, f"the key file {source}", form)
        if os.name == "posix" and stat.S_ISREG(status.st_mode) and status.st_mode & 0o077 and key.advice is None:
            object.__setattr__(key, "advice", f"others can read the key file {source}: chmod 600 it")
        return key

    @classmethod
    def _from_content(cls, data: _Bytes, what: str, form: KeyForm = "passphrase") -> Key:
        """Key from the content of a key file, a variable or a pipe; ``what`` names it in error texts."""
        if not data.strip(b"\x00 \t\r\n"):
            raise KeyMaterialError(f"{what} is empty; it must hold a key or a passphrase")
        if len(data) > _MAX_SECRET_FILE_BYTES:
            raise KeyMaterialError(f"{what} is longer than {_MAX_SECRET_FILE_BYTES} bytes: that is no key")
        text = _as_text(data)
        if text is None:
            if len(data) == KEY_BYTES and form == "passphrase":
                return cls.from_bytes(data)
            raise KeyMaterialError(
                f"{what} is neither text nor {KEY_BYTES} raw bytes (it has {len(data)} bytes): that is no key"
            )
        lines = text.splitlines()
        if any(line.strip() for line in lines[1:]):
            raise KeyMaterialError(f"{what} has more than one line: it must hold the passphrase or the key alone")
        line = lines[0]
        if not line.strip():
            raise KeyMaterialError(f"{what} has an empty first line; write the passphrase there")
        if line.startswith("-----BEGIN "):
            raise KeyMaterialError(f"{what} is a PEM file and no facezoo key; make one with `facezoo key new FILE`")
        if line.startswith(KEY_FILE_PREFIX):
            return cls._generated(_decode_key_line(line, what))
        if form == "six-digits":
            return cls.from_six_digits(line.strip())
        if form == "bits":
            return cls.from_bits(line.strip())
        return cls.from_passphrase(line)

    # ---------------------------------------------------------------- expansion

    def bytes(self, purpose: str, n: int, context: _Bytes = b"") -> _Bytes:
        """``n`` pseudo-random bytes: ChaCha20 keystream under HKDF-SHA256 of the key, the purpose and the context.

        A shorter output is the beginning of a longer one.

        Args:
            purpose: what for, e.g. "identity_rotation/reference"; different purposes give independent bytes.
            n: how many, 0 to 2**32.
            context: public bytes that vary the output within a purpose, e.g. the number of a face.

        """
        return self._expand("bytes", purpose, n, context)

    def bits(self, purpose: str, n: int) -> NDArray[np.uint8]:
        """``n`` bits as an array (n,) of zeros and ones."""
        import numpy as np

        packed = np.frombuffer(self._expand("bits", purpose, (n + 7) // 8, b""), np.uint8)
        return np.unpackbits(packed, count=n, bitorder="little")

    def seed(self, purpose: str) -> int:
        """Seed for a random generator: whole number of 63 bits, 0 to 2**63 - 1."""
        return int.from_bytes(self._expand("seed", purpose, 8, b""), "little") >> 1

    def uniform(self, purpose: str, shape: int | tuple[int, ...], context: _Bytes = b"") -> NDArray[np.float32]:
        """Uniform numbers in [-1, 1), of the given shape, 24 bits each (all that float32 holds there), exact.

        Args:
            purpose: as in ``bytes``.
            shape: of the result.
            context: as in ``bytes``.

        """
        import numpy as np

        sizes = (shape,) if isinstance(shape, int) else tuple(shape)
        count = math.prod(sizes)
        result = np.empty(count, np.float32)
        stream = self._stream("uniform", purpose, 3 * count, context)
        piece = 2**18  # keeps the integers of one piece at 3 MiB, whatever the shape
        for start in range(0, count, piece):
            part = result[start : start + piece]
            triples = np.frombuffer(stream.read(3 * len(part)), np.uint8).reshape(-1, 3).astype(np.int32)
            whole = triples[:, 0] | triples[:, 1] << 8 | triples[:, 2] << 16
            part[:] = (whole - 2**23).astype(np.float32) * np.float32(2.0**-23)
        return result.reshape(sizes)

    def unit_vector(self, purpose: str, dim: int) -> NDArray[np.float32]:
        """Direction drawn evenly from the unit sphere: (dim,) float32 with norm 1 (up to rounding).

        Normal numbers by Box and Muller from uniforms of 53 bits, in float64, divided by their norm.

        Raises:
            ValueError: ``dim`` below 1.

        """
        import numpy as np

        if dim < 1:
            raise ValueError(f"a unit vector needs at least one dimension, not {dim}")
        pairs = (dim + 1) // 2
        words = np.frombuffer(self._expand("unit_vector", purpose, 16 * pairs, b""), "<u8").reshape(2, pairs)
        uniforms = (words >> np.uint64(11)).astype(np.float64) * 2.0**-53  # [0, 1), exact
        radius = np.sqrt(-2.0 * _exact_log(1.0 - uniforms[0]))  # 1 - u is in (0, 1], exact
        cosine, sine = _exact_turn(uniforms[1])
        normal = np.concatenate([radius * cosine, radius * sine])[:dim]
        # fsum is correctly rounded, so the norm does not depend on how a machine orders its additions.
        norm = math.sqrt(math.fsum((normal * normal).tolist()))
        return (normal / norm).astype(np.float32)

    def tag(self, purpose: str, message: _Bytes, n_bytes: int = 32) -> _Bytes:
        """Message authentication code: the first ``n_bytes`` (1 to 32) of HMAC-SHA256 under a key for the purpose.

        Compare tags with ``hmac.compare_digest``.
        """
        if not 1 <= n_bytes <= 32:
            raise ValueError(f"a tag has 1 to 32 bytes, not {n_bytes}")
        return hmac.digest(self._expand("tag", purpose, KEY_BYTES, b""), message, "sha256")[:n_bytes]

    # ---------------------------------------------------------------- records

    def record_key(self, salt: _Bytes, kdf: KdfParams | None = None) -> _Bytes:
        """Key of a record: scrypt of the master with the record's random salt, 32 bytes. Secret.

        The last few are remembered, so that a folder of pictures under one salt pays for scrypt once.

        Raises:
            KeyMaterialError: a salt of less than 16 or more than 64 bytes.

        """
        if not isinstance(salt, bytes) or not 16 <= len(salt) <= 64:
            raise KeyMaterialError("the salt of a record must have 16 to 64 bytes; make one with facezoo.keys.new_salt")
        parameters = KdfParams() if kdf is None else kdf
        with self._lock:
            known = self._record_keys.get((salt, parameters))
            if known is None:
                while len(self._record_keys) >= _CACHED_RECORD_KEYS:
                    self._record_keys.pop(next(iter(self._record_keys)))
                known = parameters.derive(b"record\x00" + self._master, salt)
                self._record_keys[(salt, parameters)] = known
        return known

    def key_id(self, salt: _Bytes, kdf: KdfParams | None = None) -> str:
        """Public name of this key within one record: 16 hex digits. Another salt gives an unrelated name."""
        return _hkdf(self.record_key(salt, kdf), b"facezoo/v1/key-id", 8).hex()

    def seal_key(self, salt: _Bytes, kdf: KdfParams | None = None) -> _Bytes:
        """Key for sealing original crops in one record: 32 bytes for AES-256-GCM. Secret."""
        return _hkdf(self.record_key(salt, kdf), b"facezoo/v1/seal", KEY_BYTES)

    def mac_key(self, salt: _Bytes, kdf: KdfParams | None = None) -> _Bytes:
        """Key for the authentication code of one record: 32 bytes for HMAC-SHA256. Secret."""
        return _hkdf(self.record_key(salt, kdf), b"facezoo/v1/record-mac", KEY_BYTES)

    # ---------------------------------------------------------------- the inside

    def _stream(self, kind: str, purpose: str, n: int, context: _Bytes) -> _KeyStream:
        if not isinstance(purpose, str) or not purpose or "\x00" in purpose:
            raise ValueError("the purpose of an expansion must be a text, not empty and without NUL")
        if not 0 <= n <= _MAX_EXPANSION_BYTES:
            raise ValueError(f"an expansion has 0 to 2**32 bytes, not {n}")
        info = f"facezoo/v1/{kind}\x00{purpose}\x00".encode() + context
        return _KeyStream(_hkdf(self._master, info, KEY_BYTES))

    def _expand(self, kind: str, purpose: str, n: int, context: _Bytes) -> _Bytes:
        return self._stream(kind, purpose, n, context).read(n)

    def __repr__(self) -> str:
        """Kind and worth; no secret."""
        return f"<facezoo.Key: {self.kind}, at best {self.strength_bits:.1f} bits>"

    def __eq__(self, other: object) -> bool:
        """Whether both are the same key, however they were made; in constant time."""
        return hmac.compare_digest(self._master, other._master) if isinstance(other, Key) else NotImplemented

    def __hash__(self) -> int:
        """Hash for dicts and sets, from an expansion of its own."""
        return int.from_bytes(self._expand("hash", "python", 7, b""), "little")

    def __setattr__(self, name: str, value: object) -> NoReturn:
        """Refuse: keys do not change."""
        raise AttributeError("a Key cannot be changed; make a new one")

    def __delattr__(self, name: str) -> NoReturn:
        """Refuse: keys do not change."""
        raise AttributeError("a Key cannot be changed; make a new one")

    def __copy__(self) -> Key:
        """Return the key itself: it does not change."""
        return self

    def __deepcopy__(self, memo: object) -> Key:
        """Return the key itself: it does not change."""
        return self

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        """Refuse: a pickle would write the secret in the clear."""
        raise KeyMaterialError("a Key is never pickled (that would store the secret); make it again from its source")


class _KeyStream:
    """ChaCha20 keystream under a key that is used once (nonce and counter zero)."""

    __slots__ = ("_encryptor",)

    def __init__(self, seed: bytes) -> None:
        from cryptography.hazmat.primitives.ciphers import Cipher
        from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

        self._encryptor = Cipher(ChaCha20(seed, bytes(16)), mode=None).encryptor()

    def read(self, n: int) -> bytes:
        """Next ``n`` bytes of the stream."""
        return self._encryptor.update(bytes(n))


def _hkdf(secret: bytes, info: bytes, n: int) -> bytes:
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    return HKDF(algorithm=SHA256(), length=n, salt=_HKDF_SALT, info=info).derive(secret)


def _stretch(secret: bytes, salt: bytes | None, kdf: KdfParams | None) -> bytes:
    if salt is not None and (not isinstance(salt, bytes) or len(salt) < 8):
        raise KeyMaterialError("a salt must have at least 8 bytes; leave it out to use facezoo's constant salt")
    return (KdfParams() if kdf is None else kdf).derive(secret, APPLICATION_SALT if salt is None else salt)


def _encode(text: str) -> bytes:
    # A UnicodeEncodeError carries the text, which must not reach a traceback: leave the handler before raising.
    with contextlib.suppress(UnicodeEncodeError):
        return text.encode()
    raise KeyMaterialError("the passphrase is not valid Unicode text; type it again or use a key file")


def _as_text(data: bytes) -> str | None:
    """The text in ``data``, or None where it is binary (not UTF-8, or with control characters)."""
    # As above, a UnicodeDecodeError carries the bytes.
    with contextlib.suppress(UnicodeDecodeError):
        text = data.decode("utf-8-sig")
        if not any(unicodedata.category(character) == "Cc" for character in text if character not in "\t\r\n"):
            return text
    return None


def _decode_key_line(line: str, what: str) -> bytes:
    with contextlib.suppress(binascii.Error, ValueError):
        master = base64.b64decode(line.removeprefix(KEY_FILE_PREFIX).strip().encode(), validate=True)
        if len(master) == KEY_BYTES and len(set(master)) > 1:
            return master
    raise KeyMaterialError(f"{what} is damaged: {KEY_FILE_PREFIX} must be followed by base64 of {KEY_BYTES} bytes")


def _passphrase_bits(text: str) -> float:
    """Worth of a passphrase in bits at best: as if each character were drawn evenly from the kinds in use.

    A run of equal or neighbouring characters ("aaaa", "1234") is worth its first character and its length.
    """
    kinds = (
        (10, any("0" <= character <= "9" for character in text)),
        (26, any("a" <= character <= "z" for character in text)),
        (26, any("A" <= character <= "Z" for character in text)),
        (33, any(character.isascii() and not character.isalnum() for character in text)),
        (2048, not text.isascii()),
    )
    alphabet = sum(size for size, used in kinds if used)
    bits = 0.0
    position = 0
    while position < len(text):
        end = position + 1
        if end < len(text) and abs(step := ord(text[end]) - ord(text[position])) <= 1:
            while end < len(text) and ord(text[end]) - ord(text[end - 1]) == step:
                end += 1
        length = end - position
        if length >= 3:
            bits += math.log2(alphabet) + math.log2(3 * length)  # three directions: up, down, level
        else:
            bits += length * math.log2(alphabet)
        position = end
    return min(bits, 8.0 * KEY_BYTES)


# The two functions below use + - * / and exact scaling only, each in a numpy call of its own (so that no compiler
# joins a product and a sum into one rounding): their results are the same bits on every machine.


def _exact_log(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Natural logarithm of ``x`` > 0, to about 1e-16: ln x = e ln 2 + 2 artanh((m - 1) / (m + 1)), x = m 2**e."""
    import numpy as np

    mantissa, exponent = np.frexp(x)
    low = mantissa < math.sqrt(0.5)
    mantissa = np.where(low, mantissa * 2.0, mantissa)  # [0.707, 1.414)
    exponent = exponent.astype(np.float64) - low
    ratio = (mantissa - 1.0) / (mantissa + 1.0)  # |ratio| < 0.172, so 12 terms reach 1e-19
    square = ratio * ratio
    series = np.zeros_like(ratio)
    for power in range(23, 0, -2):
        series = series * square
        series = series + 1.0 / power
    series = series * ratio
    return exponent * 0.6931471805599453 + series * 2.0


def _exact_turn(u: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Cosine and sine of ``2 pi u`` for ``u`` in [0, 1), to about 1e-16: Taylor series after the nearest quarter."""
    import numpy as np

    quarter = np.floor(u * 4.0 + 0.5)
    angle = (u - quarter * 0.25) * (2.0 * math.pi)  # the difference is exact; [-pi / 4, pi / 4]
    square = angle * angle
    cosine = np.zeros_like(angle)
    sine = np.zeros_like(angle)
    for power in range(18, -1, -2):
        sign = -1.0 if power % 4 else 1.0
        cosine = cosine * square
        cosine = cosine + sign / math.factorial(power)
        sine = sine * square
        sine = sine + sign / math.factorial(power + 1)
    sine = sine * angle
    turn = quarter.astype(np.int64) % 4
    return (
        np.choose(turn, [cosine, -sine, -cosine, sine]),
        np.choose(turn, [sine, cosine, -sine, -cosine]),
    )


def read_key(
    key_file: str | os.PathLike[str] | None,
    env: str = "FACEZOO_KEY",
    prompt: bool = True,
    *,
    confirm: bool = False,
    form: KeyForm = "passphrase",
) -> Key:
    """Get the user's key: from a file, from a pipe, from the environment or by asking; never from the command line.

    The order: ``key_file`` when given ("-" is the first line of standard input); else the variable ``env``; else,
    on a terminal, a question whose answer is not shown.

    Args:
        key_file: path of a key file (see ``Key.from_file``), "-" for standard input, or None.
        env: name of the environment variable; its value is a passphrase or the line of a key file.
        prompt: whether the user may be asked.
        confirm: whether to ask twice; for anonymizing, where a typing error would lock the picture for good.
        form: how a typed key is read: "passphrase", "six-digits" or "bits". Files made by ``Key.generate_file`` are
            taken in every form.

    Returns:
        The key. ``key.advice`` holds a line to show where the key is weak.

    Raises:
        KeyMaterialError: no key given and nobody to ask; empty; not the wanted form; two different answers.

    """
    if form not in KEY_FORMS:
        raise KeyMaterialError(f"unknown key form {form!r}; choose one of {', '.join(KEY_FORMS)}")
    if key_file is not None and os.fspath(key_file) == "-":
        if sys.stdin is None:
            raise KeyMaterialError("there is no standard input to read the key from; use --key-file FILE")
        if sys.stdin.isatty():
            return _ask(confirm, form)  # typed at a terminal it would be shown on the screen
        # One byte more than allowed is enough to tell that it is too long.
        binary = getattr(sys.stdin, "buffer", None)  # absent where a program put a text stream in its place
        limit = _MAX_SECRET_FILE_BYTES + 1
        line = _encode(sys.stdin.readline(limit)) if binary is None else binary.readline(limit)
        return Key._from_content(line, "the key on standard input", form)
    if key_file is not None:
        return Key.from_file(key_file, form=form)
    value = os.environ.get(env)
    if value is not None:
        return Key._from_content(os.fsencode(value), f"the environment variable {env}", form)
    if prompt and sys.stdin is not None and sys.stdin.isatty():
        return _ask(confirm, form)
    raise KeyMaterialError(
        f"no key given: use --key-file FILE (- reads standard input), or set the environment variable {env}"
    )


def _ask(confirm: bool, form: KeyForm) -> Key:
    label = {"passphrase": "Passphrase", "six-digits": "Six digits", "bits": "Bits"}[form]
    try:
        answer = getpass.getpass(f"{label}: ")
        if confirm and not hmac.compare_digest(
            _encode(unicodedata.normalize("NFKC", answer)),
            _encode(unicodedata.normalize("NFKC", getpass.getpass(f"{label} again: "))),
        ):
            raise KeyMaterialError("the two answers differ; try again")
    except EOFError:
        raise KeyMaterialError("no key was typed; try again or use --key-file FILE") from None
    return Key._from_content(_encode(answer), "the typed key", form)
