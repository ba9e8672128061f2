"""Names and texts: of an input's content, by which a later run knows what is finished; of files, in messages.

Imports nothing heavy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from facezoo.files import sha256_bytes

if TYPE_CHECKING:
    from facezoo.keys import Key

__all__ = ["input_tag", "printable"]


def input_tag(data: bytes, key: Key | None) -> str:
    """Name of an input file's content.

    With a key it is an HMAC, so that nobody else can test a guess of the original against it. Without one it is the
    plain SHA-256: to a holder of the original such a record says no more than the untouched background does.

    Args:
        data: the file's bytes.
        key: the key that the record names; None for a method without one.

    Returns:
        32 hex digits with a key, 64 without.
    """
    digest = sha256_bytes(data)
    return digest if key is None else key.tag("anonymizer/input", digest.encode(), 16).hex()


def printable(text: object) -> str:
    """A text or path as one line that any terminal takes: line breaks and control characters become ``?``.

    A file's name is chosen by whoever made the file; it must neither break a message into two lines nor steer the
    terminal.
    """
    return "".join(character if character.isprintable() else "?" for character in str(text))
