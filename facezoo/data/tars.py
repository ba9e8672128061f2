"""Samples of a tar file in WebDataset's layout: members that share a name up to its first dot, one after another."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO

from facezoo.errors import InputError

__all__ = ["PICTURES", "Member", "Sample", "read_samples"]

PICTURES = (".npy", ".png", ".jpg", ".jpeg", ".webp")
"""Endings of a sample's picture."""


@dataclass(frozen=True)
class Member:
    """One file of a sample.

    Attributes:
        name: Its full name in the tar file.
        data: Its bytes; empty when only the places were asked for.
        offset: Where its bytes begin in the tar file.
        length: How many there are.
    """

    name: str
    data: bytes
    offset: int
    length: int


@dataclass
class Sample:
    """Files that belong together.

    Attributes:
        name: What their names have in common, with the folder.
        start: Where the first member's header begins in the tar file.
        members: By ending, lower case, with its dot.
    """

    name: str
    start: int
    members: dict[str, Member] = field(default_factory=dict)

    def picture(self) -> Member | None:
        """The picture.

        Raises:
            InputError: there are several.
        """
        found = [self.members[ending] for ending in PICTURES if ending in self.members]
        if len(found) > 1:
            raise InputError(f"the sample {self.name} has several pictures: {', '.join(m.name for m in found)}")
        return found[0] if found else None


def read_samples(stream: IO[bytes], *, contents: bool = True) -> Iterator[Sample]:
    """Yields the samples of an uncompressed tar file, from the stream's position on.

    Args:
        stream: The open file, at the header of a sample's first member.
        contents: Whether the members' bytes are read.

    Raises:
        tarfile.TarError: not a plain tar file, or a damaged one.
        OSError: it cannot be read.
        InputError: a member comes twice in a sample.
    """
    sample: Sample | None = None
    with tarfile.open(fileobj=stream, mode="r:") as tar:
        for member in tar:
            tar.members = []  # type: ignore[attr-defined] # or the list of a long file would grow without end
            if not member.isfile():
                continue
            parent, _, last = member.name.rpartition("/")
            begin, _, ending = last.partition(".")
            name = f"{parent}/{begin}" if parent else begin
            if sample is None or name != sample.name:
                if sample is not None:
                    yield sample
                sample = Sample(name, member.offset)
            key = f".{ending.lower()}"
            if key in sample.members:
                raise InputError(f"{member.name} comes twice; give every sample a name of its own")
            data = b""
            if contents:
                handle = tar.extractfile(member)
                data = handle.read() if handle is not None else b""
                if len(data) != member.size:
                    raise tarfile.ReadError("unexpected end of data")
            sample.members[key] = Member(member.name, data, member.offset_data, member.size)
    if sample is not None:
        yield sample
