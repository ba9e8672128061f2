"""The demo's sheet: one model large, the others as small strips, on one page that fits a screen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from facezoo.demo.judge import THRESHOLD, ByteArray, DemoRow

__all__ = ["HEIGHT", "WIDTH", "Part", "Sheet", "draw_sheet"]

WIDTH: Final = 1600
HEIGHT: Final = 1000
"""Size of the sheet in pixels, whatever is shown."""

_MARGIN: Final = 40
_PAPER: Final = (250, 249, 246)
_INK: Final = (28, 30, 34)
_SOFT: Final = (104, 108, 116)
_GOOD: Final = (30, 118, 76)
_BAD: Final = (190, 62, 50)
_MIXED: Final = (160, 104, 10)

_LARGE: Final = 202
_LARGE_GAP: Final = 14
_LARGE_TOP: Final = 118
_STRIPS: Final = 12
_COLUMNS: Final = 6
_STRIP_GAP: Final = 20
_STRIP_WIDTH: Final = (WIDTH - 2 * _MARGIN - (_COLUMNS - 1) * _STRIP_GAP) // _COLUMNS
_SMALL_GAP: Final = 3
_SMALL_TOP: Final = 764

_CLASSICS: Final = (
    "gaussian_blur",
    "pixelation",
    "ksame_pixel",
    "eye_bar",
    "black_box",
    "pixel_noise",
    "low_resolution",
    "dp_svd",
)
"""Classics that get a strip, dearest first; the learned models come before them."""

_CREDITS: Final = (
    "Pictures: NASA (Eileen Collins); Pete Souza, official White House photographs (Barack Obama, Joe Biden). "
    "US government works; no endorsement."
)


@dataclass(frozen=True)
class Part:
    """Something on the sheet.

    Attributes:
        label: a text's words; a face's row and person, "original, person 1".
        box: left, top, right, bottom in pixels.
        face: whether it is a face.
    """

    label: str
    box: tuple[int, int, int, int]
    face: bool = False


@dataclass
class Sheet:
    """A page of `WIDTH` x `HEIGHT` pixels, and what was put on it."""

    image: Image.Image = field(default_factory=lambda: Image.new("RGB", (WIDTH, HEIGHT), _PAPER))
    parts: list[Part] = field(default_factory=list)

    def text(self, at: tuple[int, int], words: str, size: int, colour: tuple[int, int, int], anchor: str = "ls") -> int:
        """Write one line; returns its right edge."""
        draw, font = ImageDraw.Draw(self.image), ImageFont.load_default(size)
        draw.text(at, words, font=font, fill=colour, anchor=anchor)
        left, top, right, bottom = (round(edge) for edge in draw.textbbox(at, words, font=font, anchor=anchor))
        self.parts.append(Part(words, (left, top, right, bottom)))
        return right

    def paragraph(self, at: tuple[int, int], words: str, size: int, colour: tuple[int, int, int], width: int) -> int:
        """Write lines no wider than ``width``; returns the baseline below the last."""
        font: Any = ImageFont.load_default(size)
        lines = [""]
        for word in words.split():
            longer = f"{lines[-1]} {word}".strip()
            if font.getlength(longer) <= width:
                lines[-1] = longer
            else:
                lines.append(word)
        x, y = at
        for line in lines:
            self.text((x, y), line, size, colour)
            y += round(size * 1.4)
        return y

    def face(self, at: tuple[int, int], picture: ByteArray, five: npt.NDArray[Any], side: int, label: str) -> None:
        """Put one face and its hair, as a square with round corners."""
        middle, half = five.mean(axis=0), 1.9 * float(np.ptp(five, axis=0).max())
        box = _inside(middle, half, picture.shape[1], picture.shape[0])
        face = Image.fromarray(picture).resize((side, side), Image.Resampling.LANCZOS, box=box)
        mask = Image.new("L", (2 * side, 2 * side), 0)
        corners = (0, 0, 2 * side - 1, 2 * side - 1)
        ImageDraw.Draw(mask).rounded_rectangle(corners, radius=side // 8, fill=255)
        self.image.paste(face, at, mask.resize((side, side), Image.Resampling.LANCZOS))
        self.parts.append(Part(label, (*at, at[0] + side, at[1] + side), face=True))


def draw_sheet(
    rows: Sequence[DemoRow], points: npt.NDArray[Any], flagship: str = "", notes: Sequence[str] = ()
) -> Sheet:
    """Draw the sheet.

    Args:
        rows: what was done; the first is the original.
        points: (N, 5, 2), the five points of each face in pixels of the pictures.
        flagship: section of the rows to show large beside the original; "": the original alone.
        notes: what is not shown, and why.
    """
    sheet = Sheet()
    right = sheet.text((_MARGIN, 56), "facezoo", 46, _INK)
    sheet.text((right + 20, 56), "another face under a key, and the way back", 24, _SOFT)
    large = [rows[0], *(row for row in rows if row.section == flagship)]
    edge = _draw_large(sheet, large, points)
    _draw_story(sheet, edge + 36, flagship, any(row.recovery for row in large), notes)
    strips = _strips([row for row in rows[1:] if row.section != flagship])
    side = min(76, (_STRIP_WIDTH - (len(points) - 1) * _SMALL_GAP) // len(points))
    for place, row in enumerate(strips):
        x = _MARGIN + place % _COLUMNS * (_STRIP_WIDTH + _STRIP_GAP)
        y = _SMALL_TOP + 22 + place // _COLUMNS * (side + 32)
        _draw_strip(sheet, (x, y), row, points, side)
    sheet.text((_MARGIN, HEIGHT - 9), _CREDITS, 13, _SOFT)
    return sheet


def _draw_large(sheet: Sheet, rows: Sequence[DemoRow], points: npt.NDArray[Any]) -> int:
    """A line a person, a column a row; returns the right edge."""
    room = _SMALL_TOP - 12 - _LARGE_TOP
    side = min(_LARGE, (room - (len(points) - 1) * _LARGE_GAP) // len(points))
    for column, row in enumerate(rows):
        x = _MARGIN + column * (_LARGE + _LARGE_GAP)
        middle = x + _LARGE // 2
        sheet.text((middle, _LARGE_TOP - 26), row.name[0].upper() + row.name[1:], 17, _INK, "ms")
        if row.section != "original":
            sheet.text((middle, _LARGE_TOP - 8), *_verdict(row, "{} of {} recognised"), "ms")
        for person, five in enumerate(points):
            at = (middle - side // 2, _LARGE_TOP + person * (side + _LARGE_GAP))
            sheet.face(at, row.picture, five, side, f"{row.name}, person {person + 1}")
    return _MARGIN + len(rows) * (_LARGE + _LARGE_GAP) - _LARGE_GAP


def _draw_story(sheet: Sheet, x: int, flagship: str, recovered: bool, notes: Sequence[str]) -> None:
    """The text beside the large faces."""
    width = min(WIDTH - _MARGIN - x, 640)
    story = [
        "The faces of one picture were found, replaced by other people's under key A, and pasted back. Key B makes "
        "yet other people.",
        "The picture was saved as PNG. From that file alone key A brings the faces back; a wrong key brings somebody "
        "else.",
    ]
    y = _LARGE_TOP + 20
    if flagship:
        y = sheet.paragraph((x, y), flagship, 22, _INK, width) + 2
    for words in story if recovered else ():
        y = sheet.paragraph((x, y), words, 16, _SOFT, width) + 6
    judged = f"Recognised: dlib's recogniser takes the face for the original's (distance below {THRESHOLD})."
    y = sheet.paragraph((x, y), judged, 16, _SOFT, width)
    y = sheet.paragraph((x, y + 16), "Below: the other models", 22, _INK, width) + 2
    others = "The same people, anonymized once; the number says how many are recognised. k-Same mixes them."
    y = sheet.paragraph((x, y), others, 16, _SOFT, width)
    for note in notes:
        y = sheet.paragraph((x, y + 6), note[0].upper() + note[1:] + ".", 13, _SOFT, width)


def _strips(rows: Sequence[DemoRow]) -> list[DemoRow]:
    """The first picture of every learned model, then chosen classics, as many as the page holds."""
    learned: dict[str, DemoRow] = {}
    for row in rows:
        if row.section != "classics":
            learned.setdefault(row.section, row)
    classics = {row.name.split(" ")[0]: row for row in rows if row.section == "classics"}
    return [*learned.values(), *(classics[name] for name in _CLASSICS if name in classics)][:_STRIPS]


def _draw_strip(sheet: Sheet, at: tuple[int, int], row: DemoRow, points: npt.NDArray[Any], side: int) -> None:
    x, y = at
    title = row.name if row.section == "classics" else row.section
    sheet.text((x, y - 7), title, 14, _INK)
    sheet.text((x + _STRIP_WIDTH, y - 7), *_verdict(row, "{} of {}"), "rs")
    for person, five in enumerate(points):
        place = (x + person * (side + _SMALL_GAP), y)
        sheet.face(place, row.picture, five, side, f"{title}, person {person + 1}")


def _inside(middle: npt.NDArray[Any], half: float, width: int, height: int) -> tuple[float, float, float, float]:
    """A square of side ``2 half`` about a point, moved (and shrunk if need be) so that it lies in the picture."""
    half = min(half, width / 2, height / 2)
    x = float(np.clip(middle[0], half, width - half))
    y = float(np.clip(middle[1], half, height - half))
    return (x - half, y - half, x + half, y + half)


def _verdict(row: DemoRow, words: str) -> tuple[str, int, tuple[int, int, int]]:
    """How many faces are taken for the original: words, size and colour."""
    wanted = row.faces if row.recovery else 0
    colour = _GOOD if row.recognised == wanted else _BAD if abs(row.recognised - wanted) == row.faces else _MIXED
    return words.format(row.recognised, row.faces), 14, colour
