"""Which released picture belongs to which original: by path, by name, by a name with something added, or by a table."""

from __future__ import annotations

import csv
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from facezoo.errors import InputError
from facezoo.images.folders import walk_folder
from facezoo.images.formats import PICTURE_ENDINGS, format_of_ending

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
        pairs: sorted by name; every released file that may show a face is in one of them.
        withheld: originals of which nothing was released.
        others: files of the released folder that show nobody (texts, records, housekeeping): name and what it is.
    """

    pairs: tuple[Pair, ...]
    withheld: tuple[str, ...] = ()
    others: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class _Folder:
    """What one of the two folders holds.

    Attributes:
        names: everything that may show a face, sorted.
        unread: those of them that are not read, with the reason.
        others: the rest, with what it is.
    """

    names: list[str]
    unread: dict[str, str]
    others: tuple[tuple[str, str], ...]


def _look(folder: Path, without: Path, *, hidden: bool) -> _Folder:
    """A folder without the other one, which may lie in it."""
    listing = walk_folder(folder, without=without, hidden=hidden)
    unread = {item.name: item.reason for item in listing.left_out if item.counts}
    others = tuple((item.name, item.reason) for item in listing.left_out if not item.counts)
    return _Folder(sorted([*listing.pictures, *unread]), unread, others)


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


def pair_folders(originals: Path, released: Path, *, all_released: bool = False) -> Pairing:
    """Pairs by relative path: the same name, the same name with another ending, or one with ``_anonymized`` added.

    Everything in the released folder that may show a face is in a pair, also what is hidden, and what cannot be judged
    (a video, a format that is not read) with that as its problem.

    Args:
        originals: folder of the originals.
        released: folder of the released pictures.
        all_released: whether an original of which nothing was released is a problem, and not merely withheld.

    Returns:
        The pairs. Where two originals or two released pictures could be meant, none is taken: a problem is noted.

    Raises:
        InputError: no such folder, one folder for both, or no original in it.
    """
    if originals.is_dir() and released.is_dir() and originals.resolve() == released.resolve():
        raise InputError(
            "the originals and the released pictures are in one folder; say which belong together with --pairs CSV"
        )
    first, second = _look(originals, released, hidden=False), _look(released, originals, hidden=True)
    if not first.names:
        raise InputError(f"no picture in {originals}; endings: {' '.join(sorted(PICTURE_ENDINGS))}")
    partners = _partners(first.names, second.names)
    pairs: list[Pair] = []
    withheld: list[str] = []
    for name in first.names:
        found = partners[name]
        if len(found) == 1:
            problem = _unread(name, found[0], first, second)
            pairs.append(Pair(name, originals / name, released / found[0], problem))
        elif found:
            problem = f"{len(found)} released pictures could belong to it ({', '.join(found[:3])}); use --pairs"
            pairs.append(Pair(name, originals / name, None, problem))
        elif all_released:
            pairs.append(Pair(name, originals / name, None, "no released picture belongs to it"))
        else:
            withheld.append(name)
    used = {name for found in partners.values() for name in found}
    strangers = [name for name in second.names if name not in used]
    pairs += [Pair(name, None, released / name, _stranger(name, second)) for name in strangers]
    return Pairing(tuple(_without_shared(pairs)), tuple(withheld), second.others)


def _unread(name: str, partner: str, first: _Folder, second: _Folder) -> str:
    """Why a pair cannot be judged before it is opened; "" where it can."""
    if partner in second.unread:
        return f"the released file {second.unread[partner]}"
    return f"the original {first.unread[name]}" if name in first.unread else ""


def _stranger(name: str, second: _Folder) -> str:
    return f"the released file {second.unread[name]}" if name in second.unread else "no original belongs to it"


def _partners(first: list[str], second: list[str]) -> Mapping[str, list[str]]:
    """Original -> released pictures that may belong to it, the likelier kind of name first and alone."""
    exact = set(second)
    whole = {_stem(name): name for name in second}  # `a.jpg.png`, where `a.png` could have been made from two
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
        elif name.lower() in whole:
            found[name] = [whole[name.lower()]]
        elif (entry := format_of_ending(name)) is not None and entry.kind != "picture":
            found[name] = []  # the clip beside a phone's picture has its name, and the picture was made from it never
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


def read_pairs(
    table: str | os.PathLike[str], originals: Path, released: Path, *, all_released: bool = False
) -> Pairing:
    """Pairs from a csv with the columns ``original`` and ``released`` (paths relative to the two folders, or whole).

    An empty ``released`` says that nothing was released. What lies in the released folder and is not in the table
    cannot be judged, and is in a pair with that as its problem.

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
    withheld: list[str] = []
    seen: set[str] = set()
    for row in rows:
        name, other = (str(row[column] or "").strip() for column in ("original", "released"))
        if not name or name in seen:
            raise InputError(f"the table {path} names {'no original' if not name else repr(name) + ' twice'}")
        seen.add(name)
        if other:
            pairs.append(Pair(name, originals / name, released / other))
        elif all_released:
            pairs.append(Pair(name, originals / name, None, "no released picture belongs to it"))
        else:
            withheld.append(name)
    second = _look(released, originals, hidden=True)
    named = {os.path.realpath(pair.released) for pair in pairs if pair.released is not None}
    for name in second.names:
        if os.path.realpath(released / name) not in named:
            pairs.append(Pair(name, None, released / name, "the table of pairs does not name it"))
    pairs.sort(key=lambda pair: (pair.name, pair.original is None))
    return Pairing(tuple(pairs), tuple(withheld), second.others)
