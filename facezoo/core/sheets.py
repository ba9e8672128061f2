"""Pictures of a training run: sample sheets and learning curves, as PNG files in the run folder.

Texts and lines are drawn by Pillow. On a training machine without it the sheets have no titles and curves are left out
(``log.csv`` has their numbers).
"""

from __future__ import annotations

import csv
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from torch import Tensor

if TYPE_CHECKING:
    from PIL import Image

_TITLE_WIDTH = 150
_BACKGROUND = (250, 250, 248)
_INK = (40, 40, 48)
_PALETTE = ((31, 119, 180), (214, 39, 40), (44, 160, 44), (148, 103, 189), (255, 127, 14), (23, 190, 207))


def save_sheet(path: Path, rows: Sequence[tuple[str, Tensor]], caption: str = "") -> None:
    """Writes rows of pictures with their titles.

    Args:
        path: PNG file to write; replaced when it exists.
        rows: ``(title, (B, 3, S, S) in [-1, 1])``.
        caption: A line above the rows.
    """
    size, columns = rows[0][1].shape[-1], max(len(pictures) for _, pictures in rows)
    gap, top = 3, 24 if caption else 0
    sheet = np.empty((top + len(rows) * (size + gap), _TITLE_WIDTH + columns * (size + gap), 3), dtype=np.uint8)
    sheet[:] = _BACKGROUND
    for r, (_, pictures) in enumerate(rows):
        y = top + r * (size + gap)
        pixels = ((pictures.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
        for c, picture in enumerate(pixels):
            x = _TITLE_WIDTH + c * (size + gap)
            sheet[y : y + size, x : x + size] = picture
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError:
        _replace(path, _png(sheet))
        return
    titled = Image.fromarray(sheet)
    draw, font = ImageDraw.Draw(titled), ImageFont.load_default(size=13)
    if caption:
        draw.text((6, 5), caption, fill=_INK, font=font)
    for r, (title, _) in enumerate(rows):
        for i, line in enumerate(_wrap(title, 20)):
            draw.text((6, top + r * (size + gap) + 4 + 16 * i), line, fill=_INK, font=font)
    _save(titled, path)


def _wrap(text: str, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def save_curves(log: Path, path: Path) -> None:
    """Draws every column of a training log (csv with ``batch`` and named values) over the batches.

    Args:
        log: The csv file; empty cells are left out.
        path: PNG file to write; without Pillow it is not.
    """
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError:
        return
    series = read_log(log)
    if not series:
        return
    columns, width, height, margin = 3, 360, 210, 34
    rows = -(-len(series) // columns)
    sheet = Image.new("RGB", (columns * width, rows * height), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=12)
    for n, (name, points) in enumerate(series.items()):
        x0, y0 = (n % columns) * width + margin + 14, (n // columns) * height + margin
        x1, y1 = x0 + width - margin - 30, y0 + height - 2 * margin
        x, y = np.array([p[0] for p in points], float), np.array([p[1] for p in points], float)
        low, high = float(y.min()), float(y.max())
        span, reach = (high - low) or 1.0, (x.max() - x.min()) or 1.0
        draw.rectangle((x0, y0, x1, y1), outline=(200, 200, 200))
        draw.text((x0, y0 - 18), name, fill=_INK, font=font)
        draw.text((x0 - 44, y0 - 4), f"{high:.3g}", fill=_INK, font=font)
        draw.text((x0 - 44, y1 - 8), f"{low:.3g}", fill=_INK, font=font)
        draw.text((x1 - 40, y1 + 2), f"{int(x.max())}", fill=_INK, font=font)
        window = max(1, len(y) // 40)
        smooth = np.convolve(np.pad(y, (window - 1, 0), mode="edge"), np.ones(window) / window, mode="valid")
        line = [
            (x0 + (a - x.min()) / reach * (x1 - x0), y1 - (b - low) / span * (y1 - y0))
            for a, b in zip(x, smooth, strict=True)
        ]
        if len(line) > 1:
            draw.line(line, fill=_PALETTE[n % len(_PALETTE)], width=2)
    _save(sheet, path)


def read_log(log: Path) -> Mapping[str, list[tuple[int, float]]]:
    """Columns of a training log as ``name -> [(batch, value), ...]``."""
    series: dict[str, list[tuple[int, float]]] = {}
    with log.open(newline="") as stream:
        for row in csv.DictReader(stream):
            batch = int(row["batch"])
            for name, value in row.items():
                if name != "batch" and value:
                    series.setdefault(name, []).append((batch, float(value)))
    return series


def _save(image: Image.Image, path: Path) -> None:
    temporary = path.with_name(path.name + ".part")
    image.save(temporary, format="PNG")
    temporary.replace(path)


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(path.name + ".part")
    temporary.write_bytes(content)
    temporary.replace(path)


def _png(pixels: npt.NDArray[np.uint8]) -> bytes:
    """An RGB picture ``(H, W, 3)`` as a PNG file (the format's plainest form: 8 bits, no filters)."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    height, width, _ = pixels.shape
    lines = b"".join(b"\0" + line.tobytes() for line in pixels)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines, 6)) + chunk(b"IEND", b"")
