"""Samples of a tar file in WebDataset's layout: members that share a name up to its first dot, one after another.

That rule alone would make one sample of `2023.05.01.cam0.jpg` and `2023.05.01.cam1.jpg` and lose a picture. Where a
name has more dots, or a sample would have several pictures, the last dot counts: each picture is a sample of its own,
named by all but its ending. What belongs to none of them (`2023.json`) belongs to each.

Links in a tar file (symbolic and hard) stand for the file they name in it; one that names nothing in it is a problem of
its sample. The ``._`` members that a Mac adds, and other housekeeping, are left out.
"""

from __future__ import annotations

import posixpath
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import IO

from facezoo.errors import InputError
from facezoo.images.formats import HEAD_BYTES, file_format, format_of_ending

__all__ = ["ARRAY_ENDING", "Member", "Sample", "read_samples"]

ARRAY_ENDING = ".npy"
"""Ending of a picture as an array, besides all endings of pictures."""

MAX_MEMBER_BYTES = 1 << 30
"""Longer members are not read: no picture has so many bytes, and a header may claim anything."""

_LONGEST_CHAIN = 16
"""So many links may stand between a name and its file."""


@dataclass(frozen=True)
class Member:
    """One file of a sample.

    Attributes:
        name: Its full name in the tar file.
        data: Its bytes; empty when only the places were asked for.
        offset: Where its bytes begin in the tar file (of a link: those of the file that it names).
        length: How many there are.
        picture: Whether it is a picture, read or not, by its ending, else by its first bytes.
        problem: Why there are no bytes, as the end of a sentence; "" where there are.
    """

    name: str
    data: bytes
    offset: int
    length: int
    picture: bool = False
    problem: str = ""


@dataclass
class Sample:
    """Files that belong together.

    Attributes:
        name: What their names have in common, with the folder.
        start: Where the header of the first member begins in the tar file; samples whose members are mixed share it.
        members: By ending, lower case, with its dot.
    """

    name: str
    start: int
    members: dict[str, Member] = field(default_factory=dict)

    def picture(self) -> Member | None:
        """The picture.

        Raises:
            InputError: there are several, or a member is a link to nothing.
        """
        if broken := [member for member in self.members.values() if member.problem]:
            raise InputError(f"{broken[0].name} {broken[0].problem}")
        found = [member for member in self.members.values() if member.picture]
        if len(found) > 1:
            raise InputError(f"the sample {self.name} has several pictures: {', '.join(m.name for m in found)}")
        return found[0] if found else None


def read_samples(stream: IO[bytes], *, contents: bool = True, fields: bool = False) -> Iterator[Sample]:
    """Yields the samples of an uncompressed tar file, from the stream's position on.

    Args:
        stream: The open file, at the header of a sample's first member.
        contents: Whether the members' bytes are read.
        fields: Whether `2.seg.png` beside `2.png` is a field of sample 2 (a mask, say), and no picture of its own.

    Raises:
        tarfile.TarError: not a plain tar file, or a damaged one.
        OSError: it cannot be read.
        InputError: a member comes twice in a sample.
    """
    links = _Links(stream)
    group: list[Member] = []
    name, start = "", 0
    with tarfile.open(fileobj=stream, mode="r:") as tar:
        for entry in tar:
            tar.members = []  # type: ignore[attr-defined] # or the list of a long file would grow without end
            if not (entry.isfile() or entry.islnk() or entry.issym()) or _is_housekeeping(entry.name):
                continue
            member = _member(tar, entry, links, contents)
            if member is None:
                continue
            common = _up_to_first_dot(entry.name)
            if group and common != name:
                yield from _split(name, start, group, fields)
                group = []
            if not group:
                name, start = common, entry.offset
            group.append(member)
    if group:
        yield from _split(name, start, group, fields)


def _is_housekeeping(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return not parts or parts[-1].startswith("._") or parts[-1] == ".DS_Store" or "__MACOSX" in parts


def _up_to_first_dot(name: str) -> str:
    parent, _, last = name.rpartition("/")
    begin = last[:1] + last[1:].partition(".")[0]  # the dot of a hidden file begins its name
    return f"{parent}/{begin}" if parent else begin


def _up_to_last_dot(name: str) -> str:
    return str(PurePosixPath(name).with_suffix("")) if not name.startswith("./") else f"./{_up_to_last_dot(name[2:])}"


def _member(tar: tarfile.TarFile, entry: tarfile.TarInfo, links: _Links, contents: bool) -> Member | None:
    """A member with its bytes; None for a link to a folder, whose files are in the tar file themselves."""
    offset, length = entry.offset_data, entry.size
    if not entry.isfile():
        place = links.find(entry)
        if place == "folder":
            return None
        if isinstance(place, str):
            return Member(entry.name, b"", 0, 0, _by_name(entry.name), place)
        offset, length = place
    known = _by_name(entry.name)
    if length > MAX_MEMBER_BYTES:
        problem = f"is said to have {length >> 20} MB, more than the {MAX_MEMBER_BYTES >> 20} MB allowed"
        return Member(entry.name, b"", 0, 0, known, problem)
    if entry.name.startswith("/") or ".." in PurePosixPath(entry.name).parts:
        return Member(entry.name, b"", 0, 0, known, "has a name that leads out of the folder it is unpacked in")
    wanted = length if contents else 0 if known else min(length, HEAD_BYTES)
    data = b""
    if wanted:
        stream = tar.fileobj
        assert stream is not None  # noqa: S101 (it was opened above)
        stream.seek(offset)
        data = stream.read(wanted)
        if len(data) != wanted:
            raise tarfile.ReadError("unexpected end of data")
    picture = known or _by_content(data, entry.name)
    return Member(entry.name, data if contents else b"", offset, length, picture)


def _by_name(name: str) -> bool:
    entry = format_of_ending(name)
    return name.lower().endswith(ARRAY_ENDING) or (entry is not None and entry.kind == "picture")


def _by_content(data: bytes, name: str) -> bool:
    entry = file_format(data[:HEAD_BYTES], name)
    return entry is not None and entry.kind == "picture"


def _split(name: str, start: int, group: list[Member], fields: bool) -> Iterator[Sample]:
    """The samples of members that share a name up to its first dot."""
    plain = [member for member in group if member.picture and _up_to_last_dot(member.name) == name]
    if fields and len(plain) == 1:
        group = [replace(member, picture=member is plain[0]) for member in group]
    pictures = [member for member in group if member.picture]
    stems = [_up_to_last_dot(member.name) for member in pictures]
    if stems in ([], [name]) or max(Counter(stems).values()) > 1:
        yield _filled(Sample(name, start), group)
        return
    shared = [member for member in group if _up_to_last_dot(member.name) not in stems]
    for stem in stems:
        own = [member for member in group if _up_to_last_dot(member.name) == stem]
        yield _filled(Sample(stem, start), [*own, *shared])


def _filled(sample: Sample, members: list[Member]) -> Sample:
    for member in members:
        inside = member.name.startswith(f"{sample.name}.")
        rest = member.name[len(sample.name) :] if inside else member.name.removeprefix(_up_to_first_dot(member.name))
        key = rest.lower() or "."
        if key in sample.members:
            raise InputError(f"{member.name} comes twice; give every sample a name of its own")
        sample.members[key] = member
    return sample


class _Links:
    """Where the files of a tar file lie that its links name; the headers are read again when there is a link."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._files: dict[str, tuple[int, int] | str] | None = None

    def _known(self) -> dict[str, tuple[int, int] | str]:
        if self._files is None:
            self._files = {}
            position = self._stream.tell()
            self._stream.seek(0)
            with tarfile.open(fileobj=self._stream, mode="r:") as tar:
                for entry in tar:
                    tar.members = []  # type: ignore[attr-defined]
                    name = posixpath.normpath(entry.name)
                    if entry.isfile():
                        self._files[name] = (entry.offset_data, entry.size)
                    elif entry.islnk() or entry.issym():
                        self._files[name] = _aim(entry)
            self._stream.seek(position)
        return self._files

    def find(self, entry: tarfile.TarInfo) -> tuple[int, int] | str:
        """(offset, length) of the file that a link names; "folder"; or why there is none."""
        known = self._known()
        aim = _aim(entry)
        for _ in range(_LONGEST_CHAIN):
            place = known.get(aim)
            if isinstance(place, tuple):
                return place
            if place is None:
                if any(name.startswith(f"{aim}/") for name in known):
                    return "folder"
                return f"is a link to {entry.linkname}, which is not in the tar file"
            aim = place
        return "is a link that leads in a circle"


def _aim(entry: tarfile.TarInfo) -> str:
    """The name in the tar file that a link names: symbolic ones from their folder on, hard ones from the top."""
    base = "" if entry.islnk() else posixpath.dirname(entry.name)
    return posixpath.normpath(posixpath.join(base, entry.linkname))
