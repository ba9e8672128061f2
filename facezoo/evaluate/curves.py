"""``facezoo curves``: one option against identity distance, protection, likeness and detection; csv, JSON and PNG.

The book's figures 4.3, 4.4, 5.4 and 5.5, and its tables 4.1 and 5.1, on faces of one's own. Aligned crops, rounded
to 8 bits. PSR (protection success rate) is the part of the faces that dlib's network puts further away from the
original than .6, the threshold of its author. Noise that depends on chance is drawn from the seed, so that a figure
can be made again; privacy as such does not depend on it.

Methods that hide a face among other people get those from the same set, unless an option says otherwise: k-Same a
closed gallery of everybody's first picture (and those are then the faces that are measured, since it protects its
gallery only), dp_kanonymity the set as its reference.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from facezoo.anonymizer import Anonymizer, from_pretrained
from facezoo.data.packed import PackedFaces
from facezoo.errors import InputError, OutputError, UnknownNameError
from facezoo.evaluate.book_tables import TABLES, BookTable
from facezoo.evaluate.judges import to_pictures, to_tensor
from facezoo.evaluate.people import first_pictures, own_people
from facezoo.evaluate.protocol import hardware
from facezoo.faces.detect import DetectorOptions, get_detector
from facezoo.files import atomic_write
from facezoo.keys import Key
from facezoo.methods.base import FaceContext
from facezoo.methods.classics.config import BOOK_SETTINGS
from facezoo.metrics import bootstrap_mean, psnr, similarity, ssim, wilson
from facezoo.recognition import load_recogniser
from facezoo.recognition.dlib_resnet import DLIB_THRESHOLD
from facezoo.recognition.window import TemplateWindow

__all__ = [
    "ATTRIBUTE_COLUMNS",
    "COLUMNS",
    "Meter",
    "draw_curves",
    "run_curves",
    "run_tables",
]

ByteArray = npt.NDArray[np.uint8]

COLUMNS = ("distance", "psr", "cosine", "psnr", "ssim", "detected")
"""What is measured: dlib's distance, PSR, cosine (SFace), PSNR in dB, SSIM, detection rate."""

ATTRIBUTE_COLUMNS = ("chosen_predicted", "average_predicted", "chosen_average")
"""Attribute accuracy (book, 4.14; figures 4.3 and 4.4) of methods that choose attributes: between what the face gets
and what it had, what its neighbours have and what it had, what it gets and what the neighbours have."""

_TITLES = {
    "chosen_predicted": "attributes: given as before",
    "average_predicted": "attributes: neighbours' as before",
    "chosen_average": "attributes: given as neighbours'",
    "distance": "identity distance (dlib)",
    "psr": "PSR (dlib, 0.6)",
    "cosine": "cosine to the original (SFace)",
    "psnr": "PSNR, dB",
    "ssim": "SSIM",
    "detected": "faces detected",
}
_BATCH = 16
_KEY = bytes(range(32))

Figures = dict[str, dict[str, float | int | None]]


@dataclass(frozen=True)
class Measured:
    """One setting.

    Attributes:
        value: of the option that is varied.
        figures: by column: value with its 95 % interval.
    """

    value: float | int | str
    figures: Figures


class Meter:
    """Faces, what judges say about them, and how a method changes it.

    Args:
        data: packed set.
        limit: number of faces, drawn with the seed; None: all.
        seed: of the choice, the methods' chance and the bootstrap.
        progress: whether to show a bar.
        once: whether to leave out all but the first picture of each person.

    Raises:
        InputError: fewer than two faces.
    """

    def __init__(
        self,
        data: str | os.PathLike[str],
        *,
        limit: int | None = None,
        seed: int = 0,
        progress: bool = True,
        once: bool = False,
    ) -> None:
        packed = PackedFaces(data)
        if len(packed) < 2 or (limit is not None and limit < 2):
            raise InputError("curves need at least two faces")
        self.name = packed.path.name
        rows = first_pictures(packed) if once else np.arange(len(packed))
        if limit is not None and limit < len(rows):
            rows = np.sort(np.random.default_rng(seed).choice(rows, limit, replace=False))
        self.pictures = packed.batch(rows)
        self.seed = seed
        self.progress = progress
        self._judges = {name: load_recogniser(name) for name in ("dlib", "sface")}
        self._originals: dict[int, tuple[ByteArray, dict[str, npt.NDArray[np.float64]]]] = {}

    def _embedded(self, pictures: ByteArray) -> dict[str, npt.NDArray[np.float64]]:
        vectors = {}
        for name, judge in self._judges.items():
            with torch.inference_mode():
                parts = [
                    judge(to_tensor(pictures[start : start + _BATCH])).double().numpy()
                    for start in range(0, len(pictures), _BATCH)
                ]
            vectors[name] = np.concatenate(parts)
        return vectors

    def originals(self, size: int) -> tuple[ByteArray, dict[str, npt.NDArray[np.float64]]]:
        """The faces at a crop size, and their vectors."""
        if size not in self._originals:
            pictures = self.pictures
            if size != pictures.shape[1]:
                window = TemplateWindow(size, 128.0 / size, 0.0, 0.0)
                pictures = np.concatenate([to_pictures(window(to_tensor(picture[None]))) for picture in pictures])
            self._originals[size] = (pictures, self._embedded(pictures))
        return self._originals[size]

    def measure(self, anonymizer: Anonymizer, name: str) -> Figures:
        """All columns for one method with its settings.

        Raises:
            FacezooError: the method's own.
        """
        size = anonymizer.method.crop_size or int(self.pictures.shape[1])
        originals, known = self.originals(size)
        key = Key.from_bytes(_KEY) if anonymizer.method.uses_key else None
        parts = []
        agreement: dict[str, list[npt.NDArray[np.float64]]] = {}
        choices = getattr(anonymizer.method, "attribute_choices", None)
        shown = None if self.progress else True
        for start in tqdm(range(0, len(originals), _BATCH), desc=name, unit="batch", disable=shown):
            faces = to_tensor(originals[start : start + _BATCH])
            parts.append(to_pictures(anonymizer.anonymize_faces(faces, key, seed=self.seed)))
            if choices is not None:
                context = FaceContext(seed=self.seed, options=anonymizer.options)
                for column, values in choices(faces, context).agreement().items():
                    agreement.setdefault(column, []).append(values.numpy())
        results = np.concatenate(parts)
        vectors = self._embedded(results)
        distance = -similarity(vectors["dlib"], known["dlib"], "euclidean")
        first, second = to_tensor(originals), to_tensor(results)
        detector = get_detector("yunet", DetectorOptions(minimum_face=max(4.0, size / 4), rotations=False))
        found = sum(bool(detector.detect(picture)) for picture in results)
        count = len(results)
        return {
            "distance": bootstrap_mean(distance, self.seed).to_dict(),
            "psr": wilson(int((distance > DLIB_THRESHOLD).sum()), count).to_dict(),
            "cosine": bootstrap_mean(similarity(vectors["sface"], known["sface"]), self.seed).to_dict(),
            "psnr": bootstrap_mean(psnr(first, second).double().numpy(), self.seed).to_dict(),
            "ssim": bootstrap_mean(ssim(first, second).double().numpy(), self.seed).to_dict(),
            "detected": wilson(found, count).to_dict(),
            **{name: bootstrap_mean(np.concatenate(agreement[name]), self.seed).to_dict() for name in agreement},
        }


def _seeded(anonymizer: Anonymizer) -> Anonymizer:
    """Noise from the seed, where the method would otherwise draw it from the operating system."""
    if "randomness" in anonymizer.method.options_class.documented() and "randomness" not in anonymizer.options:
        anonymizer.options["randomness"] = "seeded"
    return anonymizer


def _check_outputs(paths: Sequence[Path], overwrite: bool) -> None:
    for path in paths:
        if path.exists() and not overwrite:
            raise OutputError(f"{path} exists already; choose another folder or use --overwrite")


def run_curves(
    model: str,
    data: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    option: str,
    values: Sequence[float | int | str],
    options: Mapping[str, object] | None = None,
    limit: int | None = None,
    seed: int = 0,
    overwrite: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Vary one option of a model and write ``curves.csv``, ``curves.json`` and ``curves.png``.

    Args:
        model: as ``facezoo.from_pretrained`` takes it.
        data: packed set; no face of it may have been trained on.
        output: folder.
        option: name of the option on the horizontal axis.
        values: of that option.
        options: the others.
        limit: number of faces, drawn with the seed; None: all.
        seed: see `Meter`.
        overwrite: whether older files may be replaced.
        progress: whether to show bars.

    Returns:
        What ``curves.json`` holds.

    Raises:
        UnknownNameError: no such model or option.
        InputError: a value out of range, or too few of them.
        OutputError: the files exist or cannot be written.
    """
    if len(values) < 2:
        raise InputError("a curve needs at least two values")
    folder = Path(output)
    targets = [folder / f"curves.{ending}" for ending in ("csv", "json", "png")]
    _check_outputs(targets, overwrite)
    # One anonymizer for all: its networks are loaded once. Every value is checked before the first is measured.
    added, people = own_people(model, data, options or {}, option)
    first: dict[str, Any] = {**(options or {}), **added, option: values[0]}
    anonymizer = _seeded(from_pretrained(model, **first))
    if option not in anonymizer.method.options_class.documented():
        raise UnknownNameError(f"{model} has no option {option!r}")
    base = dict(anonymizer.options)
    for value in values:
        anonymizer.method.options.updated({**base, option: value})
    meter = Meter(data, limit=limit, seed=seed, progress=progress, once="gallery" in added)
    measured = []
    for value in values:
        anonymizer.options = {**base, option: value}
        measured.append(Measured(value, meter.measure(anonymizer, f"{option}={value}")))
    record = anonymizer.method.options.updated(base).to_record()
    result = {
        "facezoo_curves": 1,
        "model": anonymizer.model,
        "option": option,
        "other_options": {name: value for name, value in record.items() if name != option},
        "data": meter.name,
        "n": len(meter.pictures),
        "seed": seed,
        "people": people,
        "scope": "aligned crops, 8-bit; 95 % intervals; PSR: dlib's distance above 0.6",
        "hardware": hardware("cpu"),
        "identity_encoders": list(anonymizer.method.identity_encoders),
        "points": [{"value": point.value, **point.figures} for point in measured],
    }
    atomic_write(targets[0], _csv(option, measured).encode(), overwrite, make_parents=True)
    atomic_write(targets[1], (json.dumps(result, indent=1) + "\n").encode(), overwrite)
    atomic_write(targets[2], draw_curves(result), overwrite)
    return result


def _columns(figures: Mapping[str, object]) -> list[str]:
    """What was measured, in the order of the figures."""
    return [name for name in (*COLUMNS, *ATTRIBUTE_COLUMNS) if name in figures]


def _csv(option: str, measured: Sequence[Measured]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    columns = _columns(measured[0].figures)
    writer.writerow([option, *(f"{name}{end}" for name in columns for end in ("", "_low", "_high"))])
    for point in measured:
        row: list[object] = [point.value]
        for name in columns:
            figure = point.figures[name]
            row += [_short(figure[end]) for end in ("value", "low", "high")]
        writer.writerow(row)
    return stream.getvalue()


def _short(value: float | int | None) -> str:
    return "" if value is None else f"{value:.5g}"


def draw_curves(result: Mapping[str, Any]) -> bytes:
    """The figure of a ``curves.json``, as the bytes of a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    points = result["points"]
    values = [point["value"] for point in points]
    numeric = all(isinstance(value, int | float) for value in values)
    places = values if numeric else list(range(len(values)))
    wide = numeric and min(values) > 0 and max(values) / min(values) > 20
    columns = _columns(points[0])
    figure, axes = pyplot.subplots(len(columns) // 3, 3, figsize=(11, len(columns)), constrained_layout=True)
    for name, axis in zip(columns, axes.flat, strict=True):
        middle = [point[name]["value"] for point in points]
        axis.plot(places, middle, marker="o", color="tab:blue")
        axis.fill_between(
            places,
            [point[name]["low"] for point in points],
            [point[name]["high"] for point in points],
            alpha=0.2,
            color="tab:blue",
        )
        axis.set_title(_TITLES[name], fontsize=10)
        axis.set_xlabel(result["option"])
        axis.grid(alpha=0.3)
        if wide:
            axis.set_xscale("log")
        elif not numeric:
            axis.set_xticks(places, [str(value) for value in values])
        if name in ("psr", "detected", *ATTRIBUTE_COLUMNS):
            axis.set_ylim(-0.03, 1.03)
    figure.suptitle(f"{result['model']}, {result['n']} faces of {result['data']} (95 % intervals)", fontsize=11)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110, metadata={"Software": "facezoo"})
    pyplot.close(figure)
    return stream.getvalue()


def run_tables(
    data: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    tables: Sequence[str] = ("4.1", "5.1"),
    limit: int | None = None,
    seed: int = 0,
    overwrite: bool = False,
    progress: bool = True,
) -> str:
    """The book's tables on our faces, the book's rows beside ours; writes ``tables.md`` and ``tables.json``.

    Returns:
        The Markdown text.

    Raises:
        UnknownNameError: a table that is not known.
        OutputError: the files exist or cannot be written.
    """
    for number in tables:
        if number not in TABLES:
            raise UnknownNameError(f"the book's tables {', '.join(TABLES)} are known here, not {number}")
    folder = Path(output)
    targets = [folder / "tables.md", folder / "tables.json"]
    _check_outputs(targets, overwrite)
    meter = Meter(data, limit=limit, seed=seed, progress=progress)
    text = [
        "# The book's tables, and the same methods here",
        "",
        f"Ours: {len(meter.pictures)} faces of {meter.name}, aligned crops, seed {seed}. **Not the same data, not the "
        "same judges**: the book's rows say what its authors measured on their faces, ours what our code does on ours. "
        "Only rows of one kind can be compared with each other. '-': not measured.",
        "",
    ]
    found: dict[str, dict[str, Figures]] = {}
    refused: dict[str, str] = {}
    for number in tables:
        table = TABLES[number]
        found[number] = {}
        for row in table.rows:
            if row.model:
                model, settings = BOOK_SETTINGS[row.setting] if row.setting else (row.model, dict(row.options))
                added, _ = own_people(model, data, settings)
                chosen: dict[str, Any] = {**settings, **added}
                anonymizer = _seeded(from_pretrained(model, **chosen))
                try:
                    found[number][row.name] = meter.measure(anonymizer, row.name)
                except InputError as error:  # fewer people than k, say: the other rows are worth having all the same
                    refused[row.name] = str(error)
        text += _table(number, table, found[number])
    text += [f"* {name} is not measured: {reason}" for name, reason in refused.items()]
    text += [""] if refused else []
    content = {
        "facezoo_tables": 1,
        "data": meter.name,
        "n": len(meter.pictures),
        "seed": seed,
        "hardware": hardware("cpu"),
        "tables": found,
        "refused": refused,
    }
    atomic_write(targets[0], "\n".join(text).encode(), overwrite, make_parents=True)
    atomic_write(targets[1], (json.dumps(content, indent=1) + "\n").encode(), overwrite)
    return "\n".join(text)


def _table(number: str, table: BookTable, found: Mapping[str, Figures]) -> list[str]:
    head = [f"## Table {number}", "", table.title + ". Ours: dlib's distance, PSR at 0.6, detection by YuNet.", ""]
    lines = ["| method | rows of | " + " | ".join(table.columns) + " |", "|---|---|" + "---:|" * len(table.columns)]
    for row in table.rows:
        lines.append(f"| {row.name} | book | " + " | ".join(f"{value:g}" for value in row.values) + " |")
        if row.name in found:
            figures = found[row.name]
            cells = [_short(figures[name]["value"]) if name else "-" for name in table.ours]
            lines.append(f"| {row.name} | ours | " + " | ".join(cells) + " |")
    return [*head, *lines, ""]
