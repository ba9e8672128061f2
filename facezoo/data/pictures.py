"""Which files of a folder are pictures."""

from __future__ import annotations

import os
from pathlib import Path

from facezoo.errors import InputError

__all__ = ["PICTURE_SUFFIXES", "find_files", "find_pictures"]

PICTURE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".pgm", ".ppm", ".gif"}
)
"""File name endings, in lower case, that are taken for pictures when a folder is walked."""


def find_files(folder: Path) -> list[str]:
    """All files below a folder, as relative paths with forward slashes, sorted; hidden ones are left out.

    Links to folders are not followed: they could run in a circle.

    Raises:
        InputError: there is no such folder, or it, or one in it, cannot be read.
    """
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}; give a folder of pictures")

    def stop(error: OSError) -> None:
        raise InputError(f"cannot read the folder {error.filename}: {error.strerror}") from error

    found: list[str] = []
    for base, folders, files in os.walk(folder, onerror=stop):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            path = Path(base) / name
            if not name.startswith(".") and path.is_file():
                found.append(path.relative_to(folder).as_posix())
    return sorted(found)


def find_pictures(folder: Path) -> list[str]:
    """Those of `find_files` whose names end like a picture's."""
    return [name for name in find_files(folder) if Path(name).suffix.lower() in PICTURE_SUFFIXES]
