"""``facezoo demo``: every anonymizer on one public-domain picture, as one sheet and one table. Needs no network.

The learned models are shown the hard way: the anonymized picture is saved as PNG and recovered *from that file*, with
the right key and with a wrong one. k-Same, which needs a gallery of people, gets the three people of the picture.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from facezoo.errors import InputError, OutputError
from facezoo.files import atomic_write
from facezoo.hub.manifest import resolve_model
from facezoo.hub.models import list_models
from facezoo.registry import list_methods, load_options_class, require_anonymizer

if TYPE_CHECKING:
    from facezoo.anonymizer import Anonymizer, Result
    from facezoo.methods.ksame.gallery import Gallery
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
        cosine: mean over the faces of SFace's cosine similarity to the original.
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


def run_demo(output: Path, *, say: Callable[[str], None] = print, learned: Sequence[str] = ()) -> DemoReport:
    """Anonymize the demo's picture with every model, write the sheet, print the table.

    Args:
        output: folder, made if it is missing. Files of an earlier demo in it are replaced.
        say: prints one line.
        learned: learned models to show instead of the bundled ones: names, checkpoint folders or hub repositories.

    Returns:
        What was done.

    Raises:
        OutputError: the folder cannot be written.
        UnknownNameError: one of ``learned`` does not exist.
        InputError: one of ``learned`` is a classic.
        CheckpointError: a checkpoint is damaged.
    """
    started = time.perf_counter()
    notes: list[str] = []
    shown = _learned_models(learned, notes)
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
    found = sorted(get_detector("yunet").detect(picture), key=lambda face: face.box[0])
    points = np.stack([face.points for face in found])
    judge = _Judge(load_recogniser("dlib"), load_recogniser("sface"), picture, points)
    rows = [judge.row("original", "original", picture, 0.0)]

    say(f"facezoo demo: {len(points)} faces, compared with the original by the recognisers of dlib and SFace")
    for model in list_models():
        if model.kind != "classic":
            continue
        begin = time.perf_counter()
        options: dict[str, Any] = {}
        name = model.name
        if "gallery" in load_options_class(model.method).defaults():
            options = {"gallery": _own_gallery(picture, points), "k": len(points), "mode": "open"}
            name = f"{model.name} (k={len(points)})"
        result = from_pretrained(model.name, **options).anonymize(original_path)
        rows.append(judge.row(name, "classics", result.picture.pixels, time.perf_counter() - begin))

    key_a, key_b = Key.from_passphrase(PASSPHRASE_A), Key.from_passphrase(PASSPHRASE_B)
    for source in shown:
        rows += _learned_rows(from_pretrained(source), original_path, output, key_a, key_b, judge)

    sheet = output / "facezoo-demo.png"
    atomic_write(sheet, _encode(_draw_sheet(rows, notes, points)), overwrite=True)
    for line in _table(rows):
        say(line)
    say(
        f"dlib: Euclidean distance to the original face, mean; taken for the original where below {THRESHOLD} (dlib's "
        "own threshold)."
    )
    say("SFace: cosine similarity to the original face, mean (identity_rotation was trained against it).")
    for note in notes:
        say(f"note: {note}")
    seconds = time.perf_counter() - started
    say(f"{sheet} ({seconds:.1f} s)")
    return DemoReport(tuple(rows), tuple(notes), sheet, seconds)


def _learned_models(wanted: Sequence[str], notes: list[str]) -> list[str]:
    """What to load for the learned part of the sheet; a method without a checkpoint gets a note."""
    methods = {info.name: info for info in list_methods()}
    for name in wanted:
        resolved = resolve_model(name)
        require_anonymizer(resolved.method, resolved.name)
        if resolved.folder is None or not methods[resolved.method].learned:
            raise InputError(f"{name} is a classic, which the demo shows anyway; --model takes a learned model")
    if wanted:
        return list(wanted)
    bundled = [model for model in list_models() if model.kind == "learned"]
    missing = [model.name for model in bundled if model.status == "no checkpoint"]
    if missing:
        notes.append(
            f"not shown, because no trained checkpoint is bundled: {', '.join(missing)}; train one with `facezoo "
            "train` and show it with `facezoo demo --model FOLDER`"
        )
    there = [model for model in bundled if model.status != "no checkpoint"]
    needy = [model.name for model in there if "reference" in load_options_class(model.method).documented()]
    if needy:
        notes.append(f"not shown, because it needs a set of people to hide among (reference=FILE): {', '.join(needy)}")
    return [model.name for model in there if model.name not in needy]


def _own_gallery(picture: ByteArray, points: npt.NDArray[Any]) -> Gallery:
    """The picture's own faces as a gallery of k-Same: with k = N all get the same face."""
    from facezoo.faces.align import apply_transform, crop_faces, similarity
    from facezoo.methods.ksame.gallery import Gallery

    transforms = np.stack([similarity(five, 128) for five in points])
    inside = [apply_transform(matrix, five) for matrix, five in zip(transforms, points, strict=True)]
    smiling = {"expression": np.zeros(len(points), dtype=np.int64)}
    return Gallery(crop_faces(picture, transforms, 128), points=np.stack(inside), labels=smiling)


def _learned_rows(
    anonymizer: Anonymizer,
    original: Path,
    output: Path,
    key_a: Any,
    key_b: Any,
    judge: _Judge,
) -> list[DemoRow]:
    """Key A, key B, and what comes back from the saved file with the right and a wrong key; without a key: twice."""
    rows: list[DemoRow] = []
    stem = f"facezoo-demo-{anonymizer.model}"

    def timed(name: str, call: Callable[[], Result], *, recovery: bool = False) -> Result:
        begin = time.perf_counter()
        result = call()
        seconds = time.perf_counter() - begin
        rows.append(judge.row(name, anonymizer.model, result.picture.pixels, seconds, recovery=recovery))
        return result

    saved = output / f"{stem}.png"
    if not anonymizer.method.uses_key:
        timed("anonymized", lambda: anonymizer.anonymize(original)).save(saved, overwrite=True)
        timed("anonymized again", lambda: anonymizer.anonymize(original))
        return rows
    timed("anonymized, key A", lambda: anonymizer.anonymize(original, key_a)).save(saved, overwrite=True)
    timed("anonymized, key B", lambda: anonymizer.anonymize(original, key_b))
    if anonymizer.method.reversible:
        back = timed("recovered, right key (A)", lambda: anonymizer.recover(saved, key_a), recovery=True)
        back.save(output / f"{stem}.recovered.png", overwrite=True)
        timed(
            "recovered, wrong key (B)",
            lambda: anonymizer.recover(saved, key_b, check_key=False, use_seal=False),
        )
    return rows


class _Judge:
    """Compares faces with the original's by two recognisers, at the places where the original's faces are."""

    def __init__(self, dlib: Recogniser, sface: Recogniser, original: ByteArray, points: npt.NDArray[Any]) -> None:
        from facezoo.faces.align import similarity

        self._recognisers = (dlib, sface)
        self._transforms = np.stack([similarity(five, 128) for five in points])
        self._original = self._embed(original)

    def _embed(self, picture: ByteArray) -> list[npt.NDArray[np.float64]]:
        import torch

        from facezoo.faces.align import crop_faces_float

        crops = crop_faces_float(picture, self._transforms, 128)
        tensor = (torch.from_numpy(crops).permute(0, 3, 1, 2) / 127.5 - 1.0).clamp(-1.0, 1.0)
        with torch.inference_mode():
            return [np.asarray(network(tensor).double().numpy()) for network in self._recognisers]

    def row(self, name: str, section: str, picture: ByteArray, seconds: float, *, recovery: bool = False) -> DemoRow:
        """Judge one picture."""
        (dlib, sface), (dlib_original, sface_original) = self._embed(picture), self._original
        lengths = np.linalg.norm(sface, axis=1) * np.linalg.norm(sface_original, axis=1)
        cosines = (sface * sface_original).sum(axis=1) / lengths
        distances = np.linalg.norm(dlib - dlib_original, axis=1)
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
    cells = [("MODEL", "DLIB DISTANCE", "TAKEN FOR ORIGINAL", "SFACE SIMILARITY", "SECONDS")]
    section = ""
    for row in rows:
        listed = row.section in ("original", "classics")
        if not listed and row.section != section:
            cells.append((row.section, "", "", "", ""))
        section = row.section
        cells.append(
            (
                row.name if listed else f"  {row.name}",
                f"{row.euclidean:.2f}",
                f"{row.recognised} of {row.faces}",
                f"{row.cosine:.2f}",
                f"{row.seconds:.1f}" if row.section != "original" else "",
            )
        )
    widths = [max(len(line[column]) for line in cells) for column in range(5)]
    return [
        (
            line[0].ljust(widths[0])
            + "".join("  " + text.rjust(width) for text, width in zip(line[1:], widths[1:], strict=True))
        ).rstrip()
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


def _columns(count: int) -> int:
    """Columns for the classics: three, or four where that leaves no hole in the last line."""
    return 4 if count % 4 == 0 else 3


def _draw_sheet(rows: list[DemoRow], notes: list[str], points: npt.NDArray[Any]) -> Image.Image:
    """One PNG: the original with the story, the classics in columns, each learned model in two with close-ups."""
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
        columns = _columns(len(members)) if name == "classics" else 2
        title = "Classics" if name == "classics" else name
        keyed = any("key" in row.name for row in members)
        learned = "learned, controlled by a key, reversible" if keyed else "learned, one way only, new chance each time"
        subtitle = "one way only" if name == "classics" else learned
        _heading(page, title, subtitle)
        width = (inner - (columns - 1) * _GAP) // columns
        for start in range(0, len(members), columns):
            shown = points if name == "classics" else None
            bottoms = [
                _cell(page, row, _MARGIN + index * (width + _GAP), page.y, width, shown)
                for index, row in enumerate(members[start : start + columns])
            ]
            page.y = max(bottoms) + 22
        if name != "classics":
            _close_ups(page, [*sections["original"], *members], points)
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


def _cell(page: _Page, row: DemoRow, x: int, y: int, width: int, points: npt.NDArray[Any] | None = None) -> int:
    """Draw one picture, or the faces of it at ``points``, with its caption; returns the lower edge."""
    if points is None:
        height = round(width * row.picture.shape[0] / row.picture.shape[1])
        picture = Image.fromarray(row.picture).resize((width, height), Image.Resampling.LANCZOS)
        _paste_rounded(page, picture, x, y)
    else:
        gap = 6
        height = (width - gap * (len(points) - 1)) // len(points)
        for index, five in enumerate(points):
            _paste_rounded(page, _close_up(row.picture, five, height), x + index * (height + gap), y, radius=16)
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
        (x + 2, caption + 42), f"distance: dlib {row.euclidean:.2f}, SFace {1 - row.cosine:.2f}", font=font, fill=_SOFT
    )
    return caption + 74


def _close_ups(page: _Page, rows: list[DemoRow], points: npt.NDArray[Any]) -> None:
    """The faces enlarged: a line a person, a column a step."""
    inner = _SHEET_WIDTH - 2 * _MARGIN
    gap = 20
    shown = max(5, len(rows))  # columns of one size on the whole sheet
    side = (inner - (shown - 1) * gap) // shown
    font = _font(22)
    page.y += 8
    for column, row in enumerate(rows):
        page.draw.text(
            (_MARGIN + column * (side + gap) + side / 2, page.y), row.name, font=font, fill=_INK, anchor="ma"
        )
    page.y += 40
    for five in points:
        for column, row in enumerate(rows):
            _paste_rounded(page, _close_up(row.picture, five, side), _MARGIN + column * (side + gap), page.y)
        page.y += side + gap
    page.y += 12


def _close_up(picture: ByteArray, five: npt.NDArray[Any], side: int) -> Image.Image:
    """One face and its hair, upright, as a square."""
    box = _inside(five.mean(axis=0), 1.9 * float(np.ptp(five, axis=0).max()), picture.shape[1], picture.shape[0])
    return Image.fromarray(picture).resize((side, side), Image.Resampling.BICUBIC, box=box)


def _inside(middle: npt.NDArray[Any], half: float, width: int, height: int) -> tuple[float, float, float, float]:
    """A square of side ``2 half`` about a point, moved (and shrunk if need be) so that it lies in the picture."""
    half = min(half, width / 2, height / 2)
    x = float(np.clip(middle[0], half, width - half))
    y = float(np.clip(middle[1], half, height - half))
    return (x - half, y - half, x + half, y + half)


def _paste_rounded(page: _Page, picture: Image.Image, x: int, y: int, radius: int = 24) -> None:
    width, height = picture.size
    mask = Image.new("L", (width * 2, height * 2), 0)
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, width * 2 - 1, height * 2 - 1), radius=radius, fill=255)
    page.image.paste(picture, (x, y), mask.resize((width, height), Image.Resampling.LANCZOS))


def _verdict(row: DemoRow) -> tuple[str, tuple[int, int, int]]:
    if row.recovery:
        colour = _GOOD if row.recognised == row.faces else _BAD if row.recognised == 0 else _MIXED
        return f"{row.recognised} of {row.faces} recognised again", colour
    colour = _GOOD if row.recognised == 0 else _BAD if row.recognised == row.faces else _MIXED
    return f"{row.recognised} of {row.faces} recognised", colour


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
            f"(distance below {THRESHOLD}). k-Same mixes the three people with each other.",
            24,
            _SOFT,
        ),
        (
            "Learned models mostly work under a key. Their picture is then saved as PNG and recovered from that very "
            "file: with the right key and with a wrong one.",
            24,
            _SOFT,
        ),
    ]
    lines += [(f"Note: {note}.", 22, _SOFT) for note in notes]
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
