"""Small data sets of pictures with a face, without one, and of no pictures at all."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

DEMO = Path(__file__).resolve().parents[2] / "facezoo" / "assets" / "demo" / "astronaut.jpg"


def picture(number: int) -> bytes:
    """The astronaut, small, each time a little brighter or darker, so that no two pictures are the same."""
    with Image.open(DEMO) as image:
        small = np.asarray(image.convert("RGB").resize((192, 192)), dtype=np.int16)
    buffer = io.BytesIO()
    Image.fromarray(np.clip(small + (number % 40) - 20, 0, 255).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def empty_picture() -> bytes:
    """Grey."""
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), (128, 128, 128)).save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(path: Path, pictures: list[bytes], start: int = 0) -> Path:
    """A WebDataset: picture, text and secret of each."""
    with tarfile.open(path, "w") as tar:
        for number, data in enumerate(pictures, start):
            for name, content in (
                (f"{number:05d}.png", data),
                (f"{number:05d}.cls", b"7"),
                (f"{number:05d}.txt", b"Ada"),
            ):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


def pixels(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))
