"""The one walker of folders: which files are pictures, and why each of the others is left out.

* Content decides (see `facezoo.images.formats`); a damaged file with a picture's ending is a picture, whose reader will
  say what is wrong with it.
* Linked files are taken. Linked folders are followed, each folder once, real ones before linked ones, so that links may
  run in circles.
* Hidden files and folders are left out, and so are the ``._`` files that a Mac leaves beside others.
* Nothing is left out in silence: each such file stands in the listing with a reason, and `LeftOut.counts` says whether
  it may show a face, so that not doing it is a failure.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from facezoo.errors import InputError
from facezoo.images.formats import HEAD_BYTES, FileFormat, file_format, is_text, missing_reader

__all__ = ["FolderListing", "LeftOut", "find_pictures", "look_at", "walk_folder"]


@dataclass(frozen=True)
class LeftOut:
    """A file that is not taken.

    Attributes:
        name: relative to the folder, with forward slashes.
        reason: what it is, as the end of a sentence that begins with its name.
        counts: whether it may show a face. False: texts, housekeeping of systems, hidden files, records of facezoo,
            links to what is in the folder already.
    """

    name: str
    reason: str
    counts: bool


@dataclass(frozen=True)
class FolderListing:
    """What is in a folder.

    Attributes:
        pictures: relative names with forward slashes, sorted.
        left_out: every other file (and every hidden or linked folder that was not entered), sorted by name.
    """

    pictures: tuple[str, ...]
    left_out: tuple[LeftOut, ...]


def look_at(path: Path) -> tuple[FileFormat | None, str, bool]:
    """What one file is.

    Returns:
        Its format (None: unknown); why it is not taken ("" where it is a picture that can be read); whether it may
        show a face.

    Raises:
        OSError: it cannot be read.
    """
    if not path.is_file():
        what = "is a link that leads nowhere" if path.is_symlink() else "is not a regular file"
        return None, f"{what}; replace it by the file itself", True
    with path.open("rb") as stream:
        head = stream.read(HEAD_BYTES)
    entry = file_format(head, path.name)
    if entry is None:
        if is_text(head):
            return None, "is a text and no picture", False
        return None, "is of an unknown kind; move it away if it shows nobody", True
    if entry.kind == "housekeeping":
        return entry, "is a file of the operating system", False
    if entry.kind != "picture" or not entry.readable:
        return entry, missing_reader(entry), True
    return entry, "", True


def walk_folder(folder: Path, *, without: Path | None = None, hidden: bool = False) -> FolderListing:
    """Lists a folder's tree.

    Args:
        folder: where to begin.
        without: a folder that is left out (an output folder may lie inside the input).
        hidden: whether hidden files and folders are looked at like others.

    Returns:
        The listing.

    Raises:
        InputError: there is no such folder, or it, one in it, or a file cannot be read.
    """
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}; give a folder of pictures")
    pictures: list[str] = []
    left_out: list[LeftOut] = []
    for path, note in _entries(folder, without, hidden):
        name = path.relative_to(folder).as_posix()
        if note:
            left_out.append(LeftOut(name, note, False))
            continue
        if name.endswith(".facezoo.json"):
            left_out.append(LeftOut(name, "is a record of facezoo", False))
            continue
        try:
            _, reason, counts = look_at(path)
        except OSError:
            pictures.append(name)  # whoever reads it says why it cannot be read
            continue
        if reason:
            left_out.append(LeftOut(name, reason, counts))
        else:
            pictures.append(name)
    return FolderListing(tuple(sorted(pictures)), tuple(sorted(left_out, key=lambda item: item.name)))


def find_pictures(folder: Path) -> list[str]:
    """The pictures below a folder: relative names with forward slashes, sorted.

    Raises:
        InputError: as `walk_folder`.
    """
    return list(walk_folder(folder).pictures)


def _entries(folder: Path, without: Path | None, hidden: bool) -> Iterator[tuple[Path, str]]:
    """Files below a folder with "", and what is not entered with the reason; real folders first, then linked ones."""
    inside = None if without is None else without.resolve()
    seen: set[Path] = set()
    waiting = [folder]
    while waiting:
        links: list[Path] = []
        for start in waiting:
            if start.resolve() in seen:
                yield start, "is a link to a folder that is looked at already"
                continue
            for root, names, files in os.walk(start, onerror=_stop):
                here = Path(root)
                seen.add(here.resolve())
                entered = []
                for name in sorted(names):
                    path = here / name
                    if inside is not None and path.resolve() == inside:
                        continue
                    if name.startswith(".") and not hidden:
                        yield path, "is a hidden folder"
                    elif path.is_symlink():
                        links.append(path)
                    elif path.resolve() in seen:
                        yield path, "is a folder that is looked at already"
                    else:
                        entered.append(name)
                names[:] = entered
                for name in sorted(files):
                    yield here / name, "is a hidden file" if name.startswith(".") and not hidden else ""
        waiting = links


def _stop(error: OSError) -> None:
    """A folder that cannot be read must not be passed over in silence."""
    raise InputError(f"cannot read the folder {error.filename}: {error.strerror}; check its permissions") from error
