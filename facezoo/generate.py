"""Pictures of people who do not exist, from a trained generator: ``facezoo generate``.

Each person has a number, the seed, and a file of its own, whose text chunk says what it is. So a run that was broken
off goes on where it stopped, and nobody takes the pictures for photographs of somebody.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, PngImagePlugin

from facezoo import registry
from facezoo.errors import CheckpointError, InputError, OutputError
from facezoo.files import atomic_write
from facezoo.hub.manifest import resolve_model, verify_files
from facezoo.methods.base import PeopleGenerator

__all__ = ["People", "draw_sheet", "generate_people", "load_generator", "person_file"]

SHEET_NAME = "sheet.png"
SHEET_PEOPLE = 400
"""Most people on a sheet; more would make a picture that few programs open."""

_TEXT = "Description"
_GAP = 2


@dataclass(frozen=True)
class People:
    """What a run wrote.

    Attributes:
        files: one picture a person, in the order of the seeds.
        made: how many of them this run drew; the others were there already.
        sheet: all of them (at most `SHEET_PEOPLE`) in one picture, or None.
    """

    files: tuple[Path, ...]
    made: int
    sheet: Path | None


def load_generator(name: str, *, revision: str | None = None, device: str = "cpu") -> tuple[PeopleGenerator, str]:
    """Load a generator; every file of its checkpoint is checked against its hash first.

    Args:
        name: a bundled model (``stylegan2.faces64``), a method, a checkpoint folder, or org/name.
        revision: of a Hugging Face repository.
        device: where it runs.

    Returns:
        The generator, and what it is called with the beginning of its checkpoint's hash.

    Raises:
        UnknownNameError: no such model.
        InputError: a model that makes no people, or a device that cannot be used.
        CheckpointError: a damaged checkpoint.
    """
    import torch

    resolved = resolve_model(name, revision=revision)
    known = {info.name for info in registry.list_methods(kind=None)}
    if resolved.method not in known:
        raise CheckpointError(
            f"{resolved.name} is a checkpoint of {resolved.method!r}, which this facezoo does not know; update facezoo "
            "or install the plug-in"
        )
    generator_class = registry.load_generator_class(resolved.method)
    if resolved.folder is None or resolved.manifest is None:
        raise CheckpointError(f"{resolved.name} has no weights; give a checkpoint folder or a model of `facezoo list`")
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"the device {device!r} cannot be used here ({str(error).splitlines()[0]})") from error
    verify_files(resolved.folder, resolved.manifest)
    generator = generator_class.from_checkpoint(resolved.folder, dict(resolved.manifest)).to(device)
    return generator, f"{resolved.name} ({resolved.sha256[:16]})"


def person_file(folder: Path, seed: int) -> Path:
    """The file of one person."""
    return folder / f"person-{seed:06d}.png"


def generate_people(
    generator: PeopleGenerator,
    title: str,
    folder: Path,
    *,
    count: int,
    seed: int = 0,
    truncation: float = 0.7,
    sheet: bool = False,
    overwrite: bool = False,
    report: Callable[[], None] = lambda: None,
) -> People:
    """Write pictures of people who do not exist.

    Args:
        generator: draws them.
        title: what the generator is called, for the files' text.
        folder: an existing folder.
        count: how many people.
        seed: number of the first; the others follow.
        truncation: 0 to 1; smaller is likelier to look right and less varied.
        sheet: also write all of them into one picture, ``sheet.png``.
        overwrite: replace pictures that are something else. The same person, made by the same model with the same
            truncation, is never drawn again.
        report: called after each person.

    Returns:
        What was written.

    Raises:
        InputError: a count, seed or truncation out of range.
        OutputError: a file of that name is something else, or cannot be written. All names are looked at before the
            first picture is drawn.
    """
    if count < 1:
        raise InputError(f"the number of people must be at least 1, not {count}")
    seeds = range(seed, seed + count)
    texts = {s: f"nobody: made by facezoo generate, {title}, seed {s}, truncation {truncation:g}" for s in seeds}
    files = {s: person_file(folder, s) for s in seeds}
    there = {s for s in seeds if files[s].exists() and _text_of(files[s]) == texts[s]}
    sheet_file = folder / SHEET_NAME
    sheet_text = f"nobody: made by facezoo generate, {title}, truncation {truncation:g}"
    if not overwrite:
        foreign = [files[s] for s in seeds if s not in there and files[s].exists()]
        if sheet and sheet_file.exists() and not (_text_of(sheet_file) or "").startswith("nobody: made by facezoo"):
            foreign.append(sheet_file)
        if foreign:
            raise OutputError(
                f"{foreign[0]} exists already and is another picture; choose another folder or seed, or --overwrite"
            )
    for s in seeds:
        if s not in there:
            pixels = to_pixels(generator.person(s, truncation))
            atomic_write(files[s], _png(pixels, texts[s]), overwrite=overwrite)
        report()
    if sheet:
        shown = [np.asarray(Image.open(files[s]).convert("RGB")) for s in list(seeds)[:SHEET_PEOPLE]]
        atomic_write(sheet_file, _png(draw_sheet(shown), sheet_text), overwrite=True)
    return People(tuple(files.values()), count - len(there), sheet_file if sheet else None)


def to_pixels(picture: object) -> npt.NDArray[np.uint8]:
    """``(3, S, S)`` in [-1, 1], a tensor on the CPU, to ``(S, S, 3)`` 0..255."""
    values = np.asarray(picture, dtype=np.float32)
    return np.asarray(np.clip(np.rint((values + 1) * 127.5), 0, 255), dtype=np.uint8).transpose(1, 2, 0)


def draw_sheet(pictures: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[np.uint8]:
    """Pictures of one size, row by row, in about a square with a thin white gap."""
    columns = math.ceil(math.sqrt(len(pictures)))
    rows = math.ceil(len(pictures) / columns)
    side = pictures[0].shape[0] + _GAP
    sheet = np.full((rows * side - _GAP, columns * side - _GAP, 3), 255, dtype=np.uint8)
    for place, picture in enumerate(pictures):
        y, x = place // columns * side, place % columns * side
        sheet[y : y + side - _GAP, x : x + side - _GAP] = picture
    return sheet


def _png(pixels: npt.NDArray[np.uint8], text: str) -> bytes:
    notes = PngImagePlugin.PngInfo()
    notes.add_text(_TEXT, text)
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(stream, "PNG", pnginfo=notes)
    return stream.getvalue()


def _text_of(path: Path) -> str | None:
    """The description in a PNG file; None for anything else."""
    try:
        with Image.open(path) as picture:
            picture.load()  # a file that was cut short is no finished picture
            text = picture.info.get(_TEXT)
    except (OSError, ValueError, SyntaxError):
        return None
    return text if isinstance(text, str) else None
