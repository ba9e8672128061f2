"""The register of factors: which attributes a picture was made with, encrypted for whoever has the key.

The papers' systems look up the registered password and factors at recovery. Here the key itself is never stored, and
the attributes only sealed: what was asked for may be a secret of its own (it takes part in the recovery), and it says
something about the picture either way.

The text is padded to a fixed length, so that the number of attributes does not show, and encrypted in SIV manner: the
nonce is an HMAC of the text under the key, which is also the check on reading. The same request under the same key
gives the same sealed text; that this is visible within one run over a folder is the price of repeatable results.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from typing import TYPE_CHECKING

from facezoo.errors import RecordError

if TYPE_CHECKING:
    from facezoo.keys import Key

_LENGTH = 256
_NONCE = 16


def seal_text(key: Key, purpose: str, text: str) -> str:
    """Encrypts a short text under the key, for a record.

    Args:
        key: the key.
        purpose: the method's own purpose, e.g. "sdn/register".
        text: at most 255 bytes of ASCII without NUL.

    Raises:
        ValueError: a longer text or other characters.
    """
    plain = text.encode("ascii")
    if len(plain) >= _LENGTH or b"\0" in plain:
        raise ValueError("a sealed text has at most 255 ASCII characters")
    plain = plain.ljust(_LENGTH, b"\0")
    nonce = key.tag(f"{purpose}/tag", plain, _NONCE)
    stream = key.bytes(f"{purpose}/stream", _LENGTH, context=nonce)
    return base64.b64encode(nonce + bytes(a ^ b for a, b in zip(plain, stream, strict=True))).decode("ascii")


def open_text(key: Key, purpose: str, sealed: str) -> str:
    """The text of ``seal_text``.

    Raises:
        RecordError: damaged, or sealed under another key.
    """
    try:
        data = base64.b64decode(sealed, validate=True)
    except (binascii.Error, ValueError):
        data = b""
    if len(data) != _NONCE + _LENGTH:
        raise RecordError("the record's sealed attributes are damaged; give them again with --attribute")
    nonce, body = data[:_NONCE], data[_NONCE:]
    stream = key.bytes(f"{purpose}/stream", _LENGTH, context=nonce)
    plain = bytes(a ^ b for a, b in zip(body, stream, strict=True))
    if not hmac.compare_digest(key.tag(f"{purpose}/tag", plain, _NONCE), nonce):
        raise RecordError(
            "the record's sealed attributes were not sealed with this key, or are damaged; check the key, or give the "
            "attributes again with --attribute"
        )
    return plain.rstrip(b"\0").decode("ascii")
