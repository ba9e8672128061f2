"""Names and texts: of an input's content, by which a later run knows what is finished; of files, in messages.

Imports nothing heavy.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

from facezoo.errors import OutputError
from facezoo.files import atomic_write, sha256_bytes

if TYPE_CHECKING:
    from facezoo.keys import Key

__all__ = ["input_tag", "is_input", "printable"]


def input_tag(data: bytes, key: Key | None) -> str | None:
    """Name of an input file's content, which nobody else can test a guess of the original against.

    With a key it is an HMAC under it. Without one it is an HMAC under a secret of this user on this machine: enough for
    a later run to know what is finished, and nothing to whoever gets the record.

    Args:
        data: the file's bytes.
        key: the key that the record names; None for a method without one.

    Returns:
        32 hex digits; None where no secret can be kept (no home folder that can be written).
    """
    digest = sha256_bytes(data).encode()
    if key is not None:
        return key.tag("anonymizer/input", digest, 16).hex()
    secret = _own_secret()
    return None if secret is None else hmac.digest(secret, digest, "sha256")[:16].hex()


def is_input(tag: object, data: bytes, key: Key | None) -> bool:
    """Whether a record's tag is that of these bytes; records of older versions hold a bare SHA-256 where no key was."""
    if not isinstance(tag, str):
        return False
    if key is None and len(tag) == 64:
        return hmac.compare_digest(tag.encode(), sha256_bytes(data).encode())
    mine = input_tag(data, key)
    return mine is not None and hmac.compare_digest(tag.encode(), mine.encode())


def _own_secret() -> bytes | None:
    """32 random bytes of this user on this machine, made when they are first asked for, readable by the user alone."""
    try:
        state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
        place = Path(state) / "facezoo" / "inputs.secret"
        for _ in range(2):
            if place.is_file():
                content = place.read_bytes()
                return content if len(content) == 32 else None
            with contextlib.suppress(OutputError):  # another process was first, or it cannot be written
                atomic_write(place, secrets.token_bytes(32), mode=0o600, make_parents=True)
    except (OSError, RuntimeError):  # RuntimeError: there is no home
        pass
    return None


def printable(text: object) -> str:
    """A text or path as one line that any terminal takes: line breaks and control characters become ``?``.

    A file's name is chosen by whoever made the file; it must neither break a message into two lines nor steer the
    terminal.
    """
    return "".join(character if character.isprintable() else "?" for character in str(text))
