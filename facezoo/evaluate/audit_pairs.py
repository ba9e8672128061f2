"""Which released picture belongs to which original: by path, by name, by a name with something added, or by a table."""

from __future__ import annotations

import csv
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from facezoo.data.pictures import PICTURE_SUFFIXES, find_files
from facezoo.errors import InputError

__all__ = ["Pair", "Pairing", "pair_folders", "read_pairs"]

_ADDED = ("_anonymized", "-anonymized", ".anonymized", "_anonymised", "_anon", "-anon", ".anon", "_blurred", "_deid")
"""What tools add to a name (deface: ``_anonymized``; facezoo's examples: ``.anon``)."""


@dataclass(frozen=True)
class Pair:
    """An original and what was released of it.

    Attributes:
        name: of the original, relative, with forward slashes; of the released picture where there is no original.
        original: None: a released picture whose original is not known.
        released: None: nothing was released, or it cannot be told which.
        problem: why the pair cannot be judged; "" where it can.
    """

    name: str
    original: Path | None
    released: Path | None
    problem: str = ""


@dataclass(frozen=True)
class Pairing:
    """All pairs.

    Attributes:
        pairs: sorted by name; every picture of both folders is in one of them.
        left_out: files of the two folders that are no pictures, by their ending.
    """

    pairs: tuple[Pair, ...]
    left_out: int


def _pictures(folder: Path, without: Path) -> tuple[list[str], int]:
    """Pictures below a folder, without those below the other one (which may lie in it); and how many other files."""
    names, inner = find_files(folder), without.resolve()
    if folder.resolve() in inner.parents:
        names = [name for name in names if inner not in (folder / name).resolve().parents]
    pictures = [name for name in names if PurePosixPath(name).suffix.lower() in PICTURE_SUFFIXES]
    return pictures, len(names) - len(pictures)


def _stem(name: str) -> str:
    """The relative path without the ending, in lower case: ``Tag/IMG_1.JPG`` and ``tag/img_1.png`` are one picture."""
    return PurePosixPath(name).with_suffix("").as_posix().lower()


def _plain(stem: str) -> str:
    """The stem without what tools add."""
    for added in _ADDED:
        if stem.endswith(added) and not stem.endswith("/" + added):
            return stem.removesuffix(added)
    return stem


def _index(names: Iterable[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for name in names:
        found[_stem(name)].append(name)
    return found


def pair_folders(originals: Path, released: Path) -> Pairing:
    """Pairs by relative path: the same name, the same name with another ending, or one with ``_anonymized`` added.

    Args:
        originals: folder of the originals.
        released: folder of the released pictures.

    Returns:
        The pairs. Where two originals or two released pictures could be meant, none is taken: a problem is noted.

    Raises:
        InputError: no such folder, one folder for both, or no original in it.
    """
    if originals.is_dir() and released.is_dir() and originals.resolve() == released.resolve():
        raise InputError(
            "the originals and the released pictures are in one folder; say which belong together with --pairs CSV"
        )
    first, first_left_out = _pictures(originals, released)
    second, second_left_out = _pictures(released, originals)
    if not first:
        raise InputError(f"no picture in {originals}; endings: {' '.join(sorted(PICTURE_SUFFIXES))}")
    partners = _partners(first, second)
    pairs: list[Pair] = []
    used: set[str] = set()
    for name in first:
        found = partners[name]
        used.update(found)
        if len(found) == 1:
            pairs.append(Pair(name, originals / name, released / found[0]))
        elif found:
            problem = f"{len(found)} released pictures could belong to it ({', '.join(found[:3])}); use --pairs"
            pairs.append(Pair(name, originals / name, None, problem))
        else:
            pairs.append(Pair(name, originals / name, None, "no released picture belongs to it"))
    strangers = [name for name in second if name not in used]
    pairs += [Pair(name, None, released / name, "no original belongs to it") for name in strangers]
    return Pairing(tuple(_without_shared(pairs)), first_left_out + second_left_out)


def _partners(first: list[str], second: list[str]) -> Mapping[str, list[str]]:
    """Original -> released pictures that may belong to it, the likelier kind of name first and alone."""
    exact = set(second)
    stems = _index(second)
    plain: dict[str, list[str]] = defaultdict(list)
    for name in second:
        plain[_plain(_stem(name))].append(name)
    known = {_stem(name) for name in first}
    found: dict[str, list[str]] = {}
    for name in first:
        stem = _stem(name)
        if name in exact:
            found[name] = [name]
        elif stem in stems:
            found[name] = stems[stem]
        else:
            # `a_anon.png` belongs to the original `a_anon.jpg` before it belongs to `a.jpg`.
            found[name] = [other for other in plain.get(stem, []) if _stem(other) not in known]
    return found


def _without_shared(pairs: list[Pair]) -> list[Pair]:
    """A released picture that was found for two originals belongs to none of them for sure."""
    owners: dict[Path, int] = defaultdict(int)
    for pair in pairs:
        if pair.original is not None and pair.released is not None:
            owners[pair.released] += 1
    return [
        Pair(pair.name, pair.original, None, f"{pair.released.name} could belong to another original too; use --pairs")
        if pair.original is not None and pair.released is not None and owners[pair.released] > 1
        else pair
        for pair in sorted(pairs, key=lambda pair: (pair.name, pair.original is None))
    ]


def read_pairs(table: str | os.PathLike[str], originals: Path, released: Path) -> Pairing:
    """Pairs from a csv with the columns ``original`` and ``released`` (paths relative to the two folders, or whole).

    An empty ``released`` says that nothing was released; pictures that the table does not name are not looked at.

    Raises:
        InputError: the table cannot be read, lacks a column, has no line, or names an original twice.
    """
    path = Path(table)
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"the table {path} cannot be read ({error}); write a csv with original,released") from error
    if not rows or not {"original", "released"} <= set(rows[0]):
        raise InputError(f"the table {path} needs the columns original,released and at least one line")
    pairs: list[Pair] = []
    seen: set[str] = set()
    for row in rows:
        name, other = (str(row[column] or "").strip() for column in ("original", "released"))
        if not name or name in seen:
            raise InputError(f"the table {path} names {'no original' if not name else repr(name) + ' twice'}")
        seen.add(name)
        if other:
            pairs.append(Pair(name, originals / name, released / other))
        else:
            pairs.append(Pair(name, originals / name, None, "no released picture belongs to it"))
    return Pairing(tuple(sorted(pairs, key=lambda pair: pair.name)), 0)
