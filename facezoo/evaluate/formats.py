"""Saved and read again: every recovery is measured on what a file really holds."""

from __future__ import annotations

import io
import re

import numpy as np
import numpy.typing as npt
from PIL import Image, features

from facezoo.errors import InputError, UnknownNameError

__all__ = ["DEFAULT_FORMATS", "check_format", "through_file"]

ByteArray = npt.NDArray[np.uint8]

#: What the protocol saves to, in the order of the tables.
DEFAULT_FORMATS = ("png", "jpeg95", "jpeg85", "jpeg75", "webp90", "resize075")

_PATTERN = re.compile(r"(png|jpeg(?P<jpeg>\d{1,3})|webp(?P<webp>\d{1,3})|resize(?P<resize>\d{3}))")


def _parse(name: str) -> tuple[str, int]:
    match = _PATTERN.fullmatch(name)
    if match is None:
        raise UnknownNameError(
            f"No file format is called {name!r}: png, jpegQ and webpQ (Q a quality of 1 to 100), or resizeF "
            "(F = 025 to 099, hundredths), e.g. jpeg95, resize075."
        )
    kind = "png" if name == "png" else next(k for k in ("jpeg", "webp", "resize") if match[k])
    value = 0 if kind == "png" else int(match[kind])
    low, high = (25, 99) if kind == "resize" else (0, 0) if kind == "png" else (1, 100)
    if not low <= value <= high:
        raise UnknownNameError(f"{name!r}: the number must lie between {low} and {high}.")
    if kind == "webp" and not features.check("webp"):
        raise InputError("This build of Pillow writes no WebP: leave that format out, or install Pillow from PyPI.")
    return kind, value


def check_format(name: str) -> None:
    """Refuses an unknown format before any work is done.

    Raises:
        UnknownNameError: no such format.
        InputError: this build of Pillow cannot write it.
    """
    _parse(name)


def through_file(picture: ByteArray, name: str) -> ByteArray:
    """Encodes a picture to the bytes of a file and decodes them again.

    Args:
        picture: (H, W, 3) uint8, RGB.
        name: ``png``; ``jpegQ`` (quality Q, colours at half the resolution, as Pillow and cameras save); ``webpQ``
            (lossy); ``resizeF``: shrunk to F hundredths (Lanczos), saved as PNG, enlarged again (bicubic).

    Returns:
        (H, W, 3) uint8, RGB: what the file holds.

    Raises:
        UnknownNameError: no such format.
    """
    kind, value = _parse(name)
    image = Image.fromarray(picture)
    size = image.size
    if kind == "resize":
        shrunk = (max(1, round(size[0] * value / 100)), max(1, round(size[1] * value / 100)))
        image = image.resize(shrunk, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    if kind == "jpeg":
        image.save(buffer, "JPEG", quality=value, subsampling="4:2:0")
    elif kind == "webp":
        image.save(buffer, "WEBP", quality=value)
    else:
        image.save(buffer, "PNG")
    decoded = Image.open(io.BytesIO(buffer.getvalue())).convert("RGB")
    if kind == "resize":
        decoded = decoded.resize(size, Image.Resampling.BICUBIC)
    return np.asarray(decoded, dtype=np.uint8)
