"""``facezoo demo``: every anonymizer on one public-domain picture, as one sheet and one table. Needs no network.

The learned models are shown the hard way: the anonymized picture is saved as PNG and recovered *from that file*, with
the right key and with a wrong one.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from facezoo.errors import InputError, OutputError
from facezoo.files import atomic_write
from facezoo.hub.models import ModelInfo, list_models

if TYPE_CHECKING:
    from facezoo.anonymizer import Anonymizer, Result
    from facezoo.recognition.base import Recogniser

__all__ = ["DemoReport", "DemoRow", "demo_picture", "run_demo"]

ByteArray = npt.NDArray[np.uint8]

PASSPHRASE_A: Final = "demo key A: copper lantern over quiet water"  # noqa: S105 (public on purpose)
PASSPHRASE_B: Final = "demo key B: seven slow trains at midnight"  # noqa: S105

THRESHOLD: Final = 0.6
"""dlib's own threshold: below this Euclidean distance its author takes two faces for the same person."""

_ORDER: Final = ("astronaut.jpg", "obama.jpg", "biden.jpg")


@dataclass(frozen=True)
class DemoRow:
    """One way of treating the picture.

    Attributes:
        name: model, and key or step where there is one.
        section: "original", "classics" or the learned model's name.
        picture: (H, W, 3) uint8.
        cosine: mean over the faces of dlib's cosine similarity to the original.
        euclidean: mean over the faces of dlib's distance to the original.
        recognised: number of faces taken for the original at `THRESHOLD`.
        faces: number of faces.
        seconds: time of the call, detection included.
        recovery: whether being taken for the original is what is wanted.
    """

    name: str
    section: str
    picture: ByteArray
    cosine: float
    euclidean: float
    recognised: int
    faces: int
    seconds: float
    recovery: bool = False


@dataclass(frozen=True)
class DemoReport:
    """What the demo did: rows in the order of the sheet, notes, the sheet's file and the time in seconds."""

    rows: tuple[DemoRow, ...]
    notes: tuple[str, ...]
    sheet: Path
    seconds: float


def demo_picture() -> ByteArray:
    """The demo's picture: the bundled portraits side by side, (H, W, 3) uint8 RGB.

    Raises:
        InputError: the package's pictures are missing.
    """
    folder = resources.files("facezoo") / "assets" / "demo"
    names = [entry.name for entry in folder.iterdir() if entry.name.endswith(".jpg")]
    names.sort(key=lambda name: (_ORDER.index(name) if name in _ORDER else len(_ORDER), name))
    if not names:
        raise InputError("the demo's pictures are missing; install facezoo again")
    panels = []
    for name in names:
        with Image.open(io.BytesIO((folder / name).read_bytes())) as image:
            panels.append(np.asarray(image.convert("RGB")))
    height = min(panel.shape[0] for panel in panels)
    return np.ascontiguousarray(np.concatenate([panel[:height] for panel in panels], axis=1))


def run_demo(output: Path, *, say: Callable[[str], None] = print, models: list[ModelInfo] | None = None) -> DemoReport:
    """Anonymize the demo's picture with every model, write the sheet, print the table.

    Args:
        output: folder, made if it is missing. Files of an earlier demo in it are replaced.
        say: prints one line.
        models: the models to show; None: all.

    Returns:
        What was done.

    Raises:
        OutputError: the folder cannot be written.
        CheckpointError: a bundled checkpoint is damaged.
    """
    started = time.perf_counter()
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {output}: {error.strerror}; choose another with -o") from error

    from facezoo.anonymizer import from_pretrained
    from facezoo.faces.detect import get_detector
    from facezoo.keys import Key
    from facezoo.recognition.loader import load_recogniser

    picture = demo_picture()
    original_path = output / "facezoo-demo-original.png"
    _write_png(original_path, picture)
    points = np.stack([face.points for face in get_detector("yunet").detect(picture)])
    judge = _Judge(load_recogniser("dlib"), picture, points)
    chosen = list_models() if models is None else models
    rows = [judge.row("original", "original", picture, 0.0)]
    notes: list[str] = []

    say(f"facezoo demo: {len(points)} faces, judged by dlib's recogniser")
    for model in chosen:
        if model.kind != "classic":
            continue
        begin = time.perf_counter()
        try:
            result = from_pretrained(model.name).anonymize(original_path)
        except InputError as error:
            if "gallery" not in str(error):
                raise
            notes.append(f"{model.name} is left out: it mixes in the faces of a gallery, which must be your own")
            continue
        rows.append(judge.row(model.name, "classics", result.picture.pixels, time.perf_counter() - begin))

    key_a, key_b = Key.from_passphrase(PASSPHRASE_A), Key.from_passphrase(PASSPHRASE_B)
    learned = [model for model in chosen if model.kind == "learned" and model.status != "no checkpoint"]
    for model in learned:
        anonymizer = from_pretrained(model.name)
        rows += _learned_rows(anonymizer, model, original_path, output, key_a, key_b, judge)
    for model in chosen:
        if model.kind == "learned" and model.status == "no checkpoint":
            notes.append(
                f"{model.name} is NOT shown: no trained checkpoint of it is bundled with this facezoo; "
                "train one with `facezoo train`, or get a release that has it"
            )

    sheet = output / "facezoo-demo.png"
    atomic_write(sheet, _encode(_draw_sheet(rows, notes)), overwrite=True)
    for line in _table(rows):
        say(line)
    say(
        f"similarity and distance: dlib's ResNet against the original, mean over the faces; "
        f"taken for the original: distance below {THRESHOLD} (dlib's own threshold)"
    )
    for note in notes:
        say(f"note: {note}")
    seconds = time.perf_counter() - started
    say(f"{sheet} ({seconds:.1f} s)")
    return DemoReport(tuple(rows), tuple(notes), sheet, seconds)


def _learned_rows(
    anonymizer: Anonymizer,
    model: ModelInfo,
    original: Path,
    output: Path,
    key_a: Any,
    key_b: Any,
    judge: _Judge,
) -> list[DemoRow]:
    """Key A, key B, and what comes back from the saved file with the right and with a wrong key."""
    rows: list[DemoRow] = []
    stem = f"facezoo-demo-{anonymizer.model}"

    def timed(name: str, call: Callable[[], Result], *, recovery: bool = False) -> Result:
        begin = time.perf_counter()
        result = call()
        seconds = time.perf_counter() - begin
        rows.append(judge.row(name, anonymizer.model, result.picture.pixels, seconds, recovery=recovery))
        return result

    saved = output / f"{stem}.png"
    timed("anonymized, key A", lambda: anonymizer.anonymize(original, key_a)).save(saved, overwrite=True)
    timed("anonymized, key B", lambda: anonymizer.anonymize(original, key_b))
    if model.reversible:
        back = timed("recovered from the file, key A (right)", lambda: anonymizer.recover(saved, key_a), recovery=True)
        back.save(output / f"{stem}.recovered.png", overwrite=True)
        timed(
            "recovery attempt, key B (wrong)",
            lambda: anonymizer.recover(saved, key_b, check_key=False, use_seal=False),
        )
    return rows


class _Judge:
    """Compares faces with the original's by a recogniser, at the places where the original's faces are."""

    def __init__(self, recogniser: Recogniser, original: ByteArray, points: npt.NDArray[Any]) -> None:
        from facezoo.faces.align import similarity

        self._recogniser = recogniser
        self._transforms = np.stack([similarity(five, 128) for five in points])
        self._original = self._embed(original)

    def _embed(self, picture: ByteArray) -> npt.NDArray[np.float64]:
        import torch

        from facezoo.faces.align import crop_faces_float

        crops = crop_faces_float(picture, self._transforms, 128)
        tensor = (torch.from_numpy(crops).permute(0, 3, 1, 2) / 127.5 - 1.0).clamp(-1.0, 1.0)
        with torch.inference_mode():
            return np.asarray(self._recogniser(tensor).double().numpy())

    def row(self, name: str, section: str, picture: ByteArray, seconds: float, *, recovery: bool = False) -> DemoRow:
        """Judge one picture."""
        embedded = self._embed(picture)
        lengths = np.linalg.norm(embedded, axis=1) * np.linalg.norm(self._original, axis=1)
        cosines = (embedded * self._original).sum(axis=1) / lengths
        distances = np.linalg.norm(embedded - self._original, axis=1)
        return DemoRow(
            name=name,
            section=section,
            picture=picture,
            cosine=float(cosines.mean()),
            euclidean=float(distances.mean()),
            recognised=int((distances < THRESHOLD).sum()),
            faces=len(distances),
            seconds=seconds,
            recovery=recovery,
        )


def _table(rows: list[DemoRow]) -> list[str]:
    """The rows as lines of text."""
    cells = [("MODEL", "SIMILARITY", "DISTANCE", "TAKEN FOR THE ORIGINAL", "SECONDS")]
    for row in rows:
        name = row.name if row.section in ("original", "classics") else f"{row.section}: {row.name}"
        cells.append(
            (
                name,
                f"{row.cosine:.3f}",
                f"{row.euclidean:.3f}",
                f"{row.recognised} of {row.faces}",
                f"{row.seconds:.2f}",
            )
        )
    widths = [max(len(line[column]) for line in cells) for column in range(5)]
    return [
        line[0].ljust(widths[0])
        + "".join("  " + text.rjust(width) for text, width in zip(line[1:], widths[1:], strict=True))
        for line in cells
    ]


# --------------------------------------------------------------------------------------------------------- the sheet

_PAPER: Final = (250, 249, 246)
_INK: Final = (28, 30, 34)
_SOFT: Final = (104, 108, 116)
_LINE: Final = (222, 220, 214)
_GOOD: Final = (38, 128, 84)
_BAD: Final = (190, 62, 50)
_MIXED: Final = (186, 128, 26)
_SHEET_WIDTH: Final = 2000
_MARGIN: Final = 56
_GAP: Final = 32


def _font(size: int) -> Any:
    return ImageFont.load_default(size)


@dataclass
class _Page:
    """A sheet that grows downwards."""

    image: Image.Image
    draw: Any
    y: int = 0


def _draw_sheet(rows: list[DemoRow], notes: list[str]) -> Image.Image:
    """One PNG: the original with the story, the classics in three columns, each learned model in two."""
    sections: dict[str, list[DemoRow]] = {}
    for row in rows:
        sections.setdefault(row.section, []).append(row)
    image = Image.new("RGB", (_SHEET_WIDTH, 12_000), _PAPER)
    page = _Page(image, ImageDraw.Draw(image))

    page.draw.text((_MARGIN, 48), "facezoo", font=_font(64), fill=_INK)
    wide = page.draw.textlength("facezoo", font=_font(64))
    page.draw.text((_MARGIN + wide + 28, 77), "one picture, every anonymizer", font=_font(30), fill=_SOFT)
    page.y = 150

    top = page.y
    inner = _SHEET_WIDTH - 2 * _MARGIN
    half = (inner - _GAP) // 2
    bottom = _cell(page, sections["original"][0], _MARGIN, top, half)
    _story(page, _MARGIN + half + _GAP + 12, top, half - 12, notes)
    page.y = max(bottom, page.y) + 20

    for name, members in sections.items():
        if name == "original":
            continue
        columns = 3 if name == "classics" else 2
        title = "Classics" if name == "classics" else name
        subtitle = "one way only" if name == "classics" else "learned, controlled by a key, reversible"
        _heading(page, title, subtitle)
        width = (inner - (columns - 1) * _GAP) // columns
        for start in range(0, len(members), columns):
            bottoms = [
                _cell(page, row, _MARGIN + index * (width + _GAP), page.y, width)
                for index, row in enumerate(members[start : start + columns])
            ]
            page.y = max(bottoms) + 22
    page.y += 10
    page.draw.text(
        (_MARGIN, page.y),
        "Pictures: NASA (Eileen Collins); Pete Souza, official White House photographs (Barack Obama, Joe Biden). "
        "US government works; no endorsement.",
        font=_font(20),
        fill=_SOFT,
    )
    return image.crop((0, 0, _SHEET_WIDTH, page.y + 60))


def _heading(page: _Page, title: str, subtitle: str) -> None:
    page.draw.line((_MARGIN, page.y, _SHEET_WIDTH - _MARGIN, page.y), fill=_LINE, width=2)
    page.draw.text((_MARGIN, page.y + 22), title, font=_font(38), fill=_INK)
    wide = page.draw.textlength(title, font=_font(38))
    page.draw.text((_MARGIN + wide + 20, page.y + 36), subtitle, font=_font(24), fill=_SOFT)
    page.y += 92


def _cell(page: _Page, row: DemoRow, x: int, y: int, width: int) -> int:
    """Draw one picture with its caption; returns the lower edge."""
    height = round(width * row.picture.shape[0] / row.picture.shape[1])
    picture = Image.fromarray(row.picture).resize((width, height), Image.Resampling.LANCZOS)
    mask = Image.new("L", (width * 2, height * 2), 0)
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, width * 2 - 1, height * 2 - 1), radius=24, fill=255)
    page.image.paste(picture, (x, y), mask.resize((width, height), Image.Resampling.LANCZOS))
    caption = y + height + 14
    big = width > 800
    page.draw.text((x + 2, caption), row.name, font=_font(28 if big else 26), fill=_INK)
    if row.section == "original":
        return caption + 44
    text, colour = _verdict(row)
    font = _font(20)
    wide = page.draw.textlength(text, font=font)
    left = x + width - wide - 28
    page.draw.rounded_rectangle((left, caption + 1, x + width, caption + 35), radius=17, fill=colour)
    page.draw.text((left + 14, caption + 18), text, font=font, fill=(255, 255, 255), anchor="lm")
    page.draw.text(
        (x + 2, caption + 42), f"dlib distance {row.euclidean:.2f}, similarity {row.cosine:.2f}", font=font, fill=_SOFT
    )
    return caption + 74


def _verdict(row: DemoRow) -> tuple[str, tuple[int, int, int]]:
    if row.recovery:
        colour = _GOOD if row.recognised == row.faces else _BAD if row.recognised == 0 else _MIXED
        return f"{row.recognised} of {row.faces} recognised again", colour
    colour = _GOOD if row.recognised == 0 else _BAD if row.recognised == row.faces else _MIXED
    return f"{row.recognised} of {row.faces} still recognised", colour


def _story(page: _Page, x: int, y: int, width: int, notes: list[str]) -> None:
    """The text beside the original."""
    lines = [
        ("How to read this", 30, _INK),
        (
            "Every picture below was made by one call of facezoo on the picture at the left: faces were found, "
            "aligned, anonymized and pasted back.",
            24,
            _SOFT,
        ),
        (
            "The label says how many faces dlib's recogniser still takes for the original "
            f"(distance below {THRESHOLD}).",
            24,
            _SOFT,
        ),
        (
            "Learned models work under a key. Their picture is saved as PNG and recovered from that very file: with "
            "the right key the people come back, with a wrong key they do not.",
            24,
            _SOFT,
        ),
    ]
    lines += [(f"Note: {note}.", 22, _BAD if "NOT" in note else _SOFT) for note in notes]
    at = y
    for text, size, colour in lines:
        font = _font(size)
        for piece in _wrap(page, text, font, width):
            page.draw.text((x, at), piece, font=font, fill=colour)
            at += round(size * 1.38)
        at += 14
    page.y = max(page.y, at)


def _wrap(page: _Page, text: str, font: Any, width: int) -> list[str]:
    lines: list[str] = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if page.draw.textlength(longer, font=font) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _encode(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=False, compress_level=6)
    return stream.getvalue()


def _write_png(path: Path, pixels: ByteArray) -> None:
    atomic_write(path, _encode(Image.fromarray(pixels)), overwrite=True)
