"""The one table of file formats: what a file is by its content, whether it is read, and how it is written.

Content decides, not the ending: a ``.jpg`` that holds HEIC is HEIC. The ending counts where the content leaves the
choice open (a camera's raw file is a TIFF file to its first bytes) or says nothing.

Imports nothing heavy.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import PurePath
from typing import Final, Literal

from facezoo.errors import InputError

__all__ = [
    "FORMATS",
    "FileFormat",
    "HEAD_BYTES",
    "PICTURE_ENDINGS",
    "WRITTEN_ENDINGS",
    "by_name",
    "file_format",
    "format_of_ending",
    "is_text",
    "missing_reader",
    "output_format",
    "pillow_readers",
    "writer_name",
]

Kind = Literal["picture", "video", "document", "archive", "housekeeping"]

HEAD_BYTES: Final = 4096
"""So many bytes of a file say what it is."""


@dataclass(frozen=True)
class FileFormat:
    """One format.

    Attributes:
        name: as `Picture.format` and ``--format`` say it.
        title: for people.
        kind: what such a file is. "housekeeping": of an operating system, never a picture to publish.
        endings: of file names, lower case; the first is the usual one.
        readers: Pillow's names of what reads it; empty: Pillow does not.
        package: module of an optional package that reads it, "" for none.
        extra: the extra of facezoo that brings the package.
        writer: Pillow's name of what writes it; "" where it is not written.
        lossless: whether the written pixels come back exactly.
    """

    name: str
    title: str
    kind: Kind
    endings: tuple[str, ...]
    readers: tuple[str, ...] = ()
    package: str = ""
    extra: str = ""
    writer: str = ""
    lossless: bool = False

    @property
    def readable(self) -> bool:
        """Whether it can be read here and now."""
        if self.package:
            return importlib.util.find_spec(self.package) is not None
        return bool(self.readers)


_RAW_ENDINGS: Final = (
    *(".dng", ".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".srf", ".sr2", ".raf", ".orf", ".rw2", ".pef", ".srw"),
    *(".3fr", ".iiq", ".rwl", ".x3f", ".mrw", ".erf", ".kdc", ".dcr", ".mos"),
)

FORMATS: Final[tuple[FileFormat, ...]] = (
    # MPO (a JPEG with more pictures behind it) is opened by Pillow's JPEG reader.
    FileFormat(
        *("jpeg", "JPEG", "picture", (".jpg", ".jpeg", ".jpe", ".jfif", ".pjpeg", ".pjp", ".mpo")),
        readers=("JPEG",),
        writer="JPEG",
    ),
    FileFormat("png", "PNG", "picture", (".png", ".apng"), readers=("PNG",), writer="PNG", lossless=True),
    FileFormat("webp", "WebP", "picture", (".webp",), readers=("WEBP",), writer="WEBP"),
    FileFormat("avif", "AVIF", "picture", (".avif", ".avifs"), readers=("AVIF",), writer="AVIF"),
    FileFormat("tiff", "TIFF", "picture", (".tif", ".tiff"), readers=("TIFF",), writer="TIFF", lossless=True),
    FileFormat("bmp", "BMP", "picture", (".bmp", ".dib"), readers=("BMP", "DIB"), writer="BMP", lossless=True),
    FileFormat("gif", "GIF", "picture", (".gif",), readers=("GIF",)),
    FileFormat("ppm", "PPM", "picture", (".ppm", ".pgm", ".pbm", ".pnm"), readers=("PPM",)),
    FileFormat("jp2", "JPEG 2000", "picture", (".jp2", ".j2k", ".jpx", ".jpf", ".j2c"), readers=("JPEG2000",)),
    FileFormat("heic", "HEIC", "picture", (".heic", ".heif", ".hif"), package="pillow_heif", extra="heic"),
    FileFormat("raw", "a camera's raw file", "picture", _RAW_ENDINGS, package="rawpy", extra="raw"),
    # Pictures that are not read: rare, without a signature, or programs and containers of others.
    FileFormat("jxl", "JPEG XL", "picture", (".jxl",)),
    FileFormat("tga", "TGA", "picture", (".tga",)),
    FileFormat("ico", "an icon file", "picture", (".ico", ".cur")),
    FileFormat("psd", "a Photoshop file", "picture", (".psd", ".psb")),
    FileFormat("svg", "SVG", "picture", (".svg", ".svgz")),
    FileFormat("exr", "OpenEXR", "picture", (".exr",)),
    FileFormat("dicom", "DICOM", "picture", (".dcm",)),
    FileFormat(
        *("video", "a video", "video"),
        (
            *(".mp4", ".mov", ".m4v", ".3gp", ".3g2", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".mts", ".m2ts"),
            *(".wmv", ".flv", ".ogv"),
        ),
    ),
    FileFormat("pdf", "PDF", "document", (".pdf",)),
    FileFormat("ps", "PostScript", "document", (".ps", ".eps")),
    FileFormat("archive", "an archive", "archive", (".zip", ".gz", ".tgz", ".7z", ".rar", ".xz", ".bz2", ".tar")),
    FileFormat("housekeeping", "a system's own file", "housekeeping", ()),
)

_BY_NAME: Final = {entry.name: entry for entry in FORMATS}
_BY_ENDING: Final = {ending: entry for entry in FORMATS for ending in entry.endings}

PICTURE_ENDINGS: Final = frozenset(
    ending for entry in FORMATS if entry.kind == "picture" and (entry.readers or entry.package)
    for ending in entry.endings
)  # fmt: skip
"""Endings of the pictures that are read, some of them with an extra."""

WRITTEN_ENDINGS: Final = {ending: entry.name for entry in FORMATS if entry.writer for ending in entry.endings}
"""Ending -> name of the formats that are written."""

_HOUSEKEEPING_NAMES: Final = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", ".ds_store", ".localized", "icon\r"})
_HEIF_BRANDS: Final = frozenset(
    {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1", b"mif2", b"heif"}
)
_QUICKTIME_BOXES: Final = (b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")
_BMP_HEADERS: Final = (12, 16, 40, 52, 56, 64, 108, 124)


def by_name(name: str) -> FileFormat:
    """A format by its name; "jpg" and "tif" stand for "jpeg" and "tiff".

    Raises:
        KeyError: there is no such format.
    """
    return _BY_NAME[{"jpg": "jpeg", "tif": "tiff", "mpo": "jpeg", "dib": "bmp", "heif": "heic"}.get(name, name)]


def format_of_ending(name: str) -> FileFormat | None:
    """The format that a file's ending names; None for other endings."""
    return _BY_ENDING.get(PurePath(name).suffix.lower())


def writer_name(ending: str) -> str | None:
    """Name of the format that is written to files with this ending (".jpg"), or None."""
    return WRITTEN_ENDINGS.get(ending.lower())


def output_format(path: PurePath, wanted: str | None) -> str:
    """Name of the format of an output, from what was asked for or from the ending.

    Args:
        path: the output.
        wanted: "png", "jpg", "webp" or another name of a written format; None: as the ending says.

    Raises:
        InputError: an unknown ending or format, or the two contradict each other.
    """
    ending = writer_name(path.suffix)
    if wanted is None:
        if ending is None:
            raise InputError(
                f"{path}: cannot tell the format from the ending {path.suffix!r}; use .png, .jpg, .webp, .avif, .tif "
                "or .bmp"
            )
        return ending
    try:
        entry = by_name(wanted)
    except KeyError:
        entry = None
    if entry is None or not entry.writer:
        raise InputError(f"unknown output format {wanted!r}; choose png, jpg or webp")
    if ending is not None and ending != entry.name:
        raise InputError(f"{path} ends in {path.suffix} but the format asked for is {wanted}; make them agree")
    return entry.name


def pillow_readers(known: Iterable[str]) -> list[str]:
    """Pillow's readers of the formats that are read, as far as this build of Pillow has them."""
    there = set(known)
    return [reader for entry in FORMATS for reader in entry.readers if reader in there]


def _riff(head: bytes) -> str | None:
    if head[:4] == b"RIFF":
        return {b"WEBP": "webp", b"AVI ": "video"}.get(head[8:12])
    return None


def _iso_box(head: bytes) -> str | None:
    """Files that are made of boxes: HEIC, AVIF, Canon's CR3, MP4 and QuickTime, JPEG 2000, JPEG XL."""
    kind = head[4:8]
    if kind == b"ftyp":
        length = min(max(int.from_bytes(head[:4], "big"), 16), 256)
        brands = {head[8:12], *(head[place : place + 4] for place in range(16, length, 4))}
        if head[8:12] == b"crx ":
            return "raw"
        if brands & {b"avif", b"avis"}:
            return "avif"
        return "heic" if brands & _HEIF_BRANDS else "video"
    if head[:4] == b"\0\0\0\x0c" and kind in (b"jP  ", b"JXL "):
        return "jp2" if kind == b"jP  " else "jxl"
    return "video" if kind in _QUICKTIME_BOXES else None


def _tiff(head: bytes) -> str | None:
    if head[:4] not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return None
    return "raw" if head[8:10] == b"CR" or _begins_with_preview(head) else "tiff"


def _begins_with_preview(head: bytes) -> bool:
    """Whether a TIFF file's first picture is a preview of another one in it, as in raw files.

    Its first directory then has the tag DNGVersion (0xC612), or NewSubfileType (0xFE) with the bit "reduced".
    """
    order: Literal["little", "big"] = "little" if head[:2] == b"II" else "big"
    place = int.from_bytes(head[4:8], order)
    count = min(int.from_bytes(head[place : place + 2], order), 200)
    for start in range(place + 2, place + 2 + 12 * count, 12):
        entry = head[start : start + 12]
        tag = int.from_bytes(entry[:2], order)
        if len(entry) == 12 and (tag == 0xC612 or (tag == 0xFE and int.from_bytes(entry[8:], order) & 1)):
            return True
    return False


def _bmp(head: bytes) -> str | None:
    fits = head[:2] == b"BM" and len(head) >= 18 and int.from_bytes(head[14:18], "little") in _BMP_HEADERS
    return "bmp" if fits else None


def _ppm(head: bytes) -> str | None:
    # A text may begin with "P3 " too; what follows must be a number or a comment.
    fits = head[:1] == b"P" and head[1:2] in b"123456" and head[2:3].isspace() and head[3:4] in b"0123456789# \n\t"
    return "ppm" if fits and len(head) > 3 else None


def _svg(head: bytes) -> str | None:
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")[:1024].lower()
    return "svg" if start.startswith(b"<svg") or (start.startswith(b"<?xml") and b"<svg" in start) else None


_STARTS: Final[tuple[tuple[bytes, str], ...]] = (
    (b"\xff\xd8\xff", "jpeg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"GIF87a", "gif"),
    (b"GIF89a", "gif"),
    (b"\xff\x4f\xff\x51", "jp2"),
    (b"\xff\x0a", "jxl"),
    (b"8BPS", "psd"),
    (b"\x76\x2f\x31\x01", "exr"),
    (b"FUJIFILMCCD-RAW", "raw"),
    (b"IIRO", "raw"),
    (b"IIRS", "raw"),
    (b"MMOR", "raw"),
    (b"IIU\0", "raw"),
    (b"FOVb", "raw"),
    (b"\0MRM", "raw"),
    (b"\x1a\x45\xdf\xa3", "video"),
    (b"FLV\x01", "video"),
    (b"OggS", "video"),
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "video"),
    (b"\0\0\x01\xba", "video"),
    (b"\0\0\x01\xb3", "video"),
    (b"%PDF", "pdf"),
    (b"%!PS", "ps"),
    (b"\xc5\xd0\xd3\xc6", "ps"),
    (b"PK\x03\x04", "archive"),
    (b"\x1f\x8b", "archive"),
    (b"7z\xbc\xaf\x27\x1c", "archive"),
    (b"Rar!", "archive"),
    (b"\xfd7zXZ\0", "archive"),
    (b"BZh", "archive"),
    (b"\0\x05\x16\x07", "housekeeping"),  # AppleDouble: what a Mac keeps beside a file, as ._NAME
    (b"\0\x05\x16\0", "housekeeping"),
    (b"\0\0\0\x01Bud1", "housekeeping"),  # .DS_Store
)


def _start(head: bytes) -> str | None:
    return next((name for start, name in _STARTS if head.startswith(start)), None)


def _later(head: bytes) -> str | None:
    if head[128:132] == b"DICM":
        return "dicom"
    if head[257:262] == b"ustar":
        return "archive"
    if head[:4] == b"\0\0\x01\0" and 0 < int.from_bytes(head[4:6], "little") < 64 and head[9:10] == b"\0":
        return "ico"
    return None


_TESTS: Final[tuple[Callable[[bytes], str | None], ...]] = (_start, _riff, _iso_box, _tiff, _bmp, _ppm, _svg, _later)


def file_format(head: bytes, name: str = "") -> FileFormat | None:
    """What a file is.

    Args:
        head: its first bytes, `HEAD_BYTES` or all of it.
        name: its name, for what the content leaves open; "" where there is none.

    Returns:
        The format by the content; where no signature is known, the one that the ending names; None for a file that is
        neither (a text, a program, ...).
    """
    if PurePath(name).name.lower() in _HOUSEKEEPING_NAMES:
        return _BY_NAME["housekeeping"]
    found = next((kind for test in _TESTS if (kind := test(head)) is not None), None)
    ending = format_of_ending(name)
    if found == "tiff" and ending is not None and ending.name == "raw":
        found = "raw"  # raw files are TIFF files whose first picture is a small preview
    return ending if found is None else _BY_NAME[found]


def is_text(head: bytes) -> bool:
    """Whether a file's first bytes are a text: UTF-8 (or UTF-16 with its mark) without control bytes."""
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return True
    if any(byte < 9 or 13 < byte < 27 for byte in head):
        return False
    try:
        head.decode()
    except UnicodeDecodeError as error:
        return error.start >= len(head) - 3  # a letter that the end of the head cut in two
    return True


def missing_reader(entry: FileFormat) -> str:
    """Why files of a format are not done here, and what to do, as the end of a sentence."""
    if entry.kind == "video":
        return "is a video, and videos are not done; take it apart into pictures"
    if entry.package and not entry.readable:
        return f"is {entry.title}, which needs pip install 'facezoo[{entry.extra}]'; or convert it to JPEG or PNG"
    if entry.kind == "archive":
        return "is an archive, which is not looked into; unpack it"
    what = "which is not looked into" if entry.kind == "document" else "which is not read"
    return f"is {entry.title}, {what}; convert it to JPEG or PNG"
