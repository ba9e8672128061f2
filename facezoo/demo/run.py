"""Runs every anonymizer on the demo's picture.

The learned models are shown the hard way: the anonymized picture is saved as PNG and recovered *from that file*, with
the right key and with a wrong one. k-Same, which needs a gallery of people, gets the people of the picture.
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
from PIL import Image

from facezoo.demo.judge import THRESHOLD, ByteArray, DemoRow, Judge, table
from facezoo.demo.sheet import draw_sheet
from facezoo.errors import InputError, OutputError
from facezoo.files import atomic_write
from facezoo.hub.manifest import resolve_model
from facezoo.hub.models import flagship_of, list_models
from facezoo.registry import load_options_class, method_info, require_anonymizer

if TYPE_CHECKING:
    from facezoo.anonymizer import Anonymizer, Result
    from facezoo.keys import Key
    from facezoo.methods.ksame.gallery import Gallery

__all__ = ["DemoReport", "demo_picture", "run_demo"]

PASSPHRASE_A: Final = "demo key A: copper lantern over quiet water"  # noqa: S105 (public on purpose)
PASSPHRASE_B: Final = "demo key B: seven slow trains at midnight"  # noqa: S105

_ORDER: Final = ("astronaut.jpg", "obama.jpg", "biden.jpg")


@dataclass(frozen=True)
class DemoReport:
    """What the demo did.

    Attributes:
        rows: in the order of the table.
        notes: what is not shown, and why.
        flagship: name of the model that the sheet shows large; "" where no learned model could be shown.
        sheet: the sheet's file.
        seconds: time of the whole.
    """

    rows: tuple[DemoRow, ...]
    notes: tuple[str, ...]
    flagship: str
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
    shown, notes = learned_models(learned)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {output}: {error.strerror}; choose another with -o") from error

    from facezoo.anonymizer import from_pretrained
    from facezoo.faces.detect import get_detector
    from facezoo.keys import Key

    picture = demo_picture()
    original = output / "facezoo-demo-original.png"
    _write_png(original, Image.fromarray(picture))
    found = sorted(get_detector("yunet").detect(picture), key=lambda face: face.box[0])
    points = np.stack([face.points for face in found])
    judge = Judge(picture, points)
    say(f"facezoo demo: {len(points)} faces, compared with the original by the recognisers of dlib and SFace")
    rows = [judge.row("original", "original", picture, 0.0), *_classic_rows(original, picture, points, judge)]
    keys = Key.from_passphrase(PASSPHRASE_A), Key.from_passphrase(PASSPHRASE_B)
    for source in shown:
        rows += _learned_rows(from_pretrained(source), original, output, keys, judge)

    sheet, flagship = output / "facezoo-demo.png", flagship_of(shown)
    _write_png(sheet, draw_sheet(rows, points, flagship, notes).image)
    _say_table(rows, notes, say)
    seconds = time.perf_counter() - started
    say(f"{sheet} ({seconds:.1f} s)")
    return DemoReport(tuple(rows), tuple(notes), flagship, sheet, seconds)


def learned_models(wanted: Sequence[str] = ()) -> tuple[list[str], list[str]]:
    """What to load for the learned part, and a note for what cannot be shown.

    Raises:
        InputError: ``wanted`` names a classic.
    """
    for name in wanted:
        resolved = resolve_model(name)
        require_anonymizer(resolved.method, resolved.name)
        if resolved.folder is None or not method_info(resolved.method).learned:
            raise InputError(f"{name} is a classic, which the demo shows anyway; --model takes a learned model")
    if wanted:
        return list(wanted), []
    notes = []
    bundled = [model for model in list_models() if model.kind == "learned"]
    missing = [model.name for model in bundled if model.status == "no checkpoint"]
    if missing:
        notes.append(
            f"not shown, because no trained checkpoint is bundled: {', '.join(missing)}; take one from checkpoints/ of "
            "a clone or train one, and show it with `facezoo demo --model FOLDER`"
        )
    there = [model for model in bundled if model.status != "no checkpoint"]
    needy = [model.name for model in there if "reference" in load_options_class(model.method).documented()]
    if needy:
        notes.append(f"not shown, because it needs a set of people to hide among (reference=FILE): {', '.join(needy)}")
    return [model.name for model in there if model.name not in needy], notes


def _classic_rows(original: Path, picture: ByteArray, points: npt.NDArray[Any], judge: Judge) -> list[DemoRow]:
    from facezoo.anonymizer import from_pretrained

    rows = []
    for model in list_models():
        if model.kind != "classic":
            continue
        begin = time.perf_counter()
        options: dict[str, Any] = {}
        name = model.name
        if "gallery" in load_options_class(model.method).defaults():
            options = {"gallery": _own_gallery(picture, points), "k": len(points), "mode": "open"}
            name = f"{model.name} (k={len(points)})"
        result = from_pretrained(model.name, **options).anonymize(original)
        rows.append(judge.row(name, "classics", result.picture.pixels, time.perf_counter() - begin))
    return rows


def _own_gallery(picture: ByteArray, points: npt.NDArray[Any]) -> Gallery:
    """The picture's own faces as a gallery of k-Same: with k = N all get the same face."""
    from facezoo.faces.align import apply_transform, crop_faces, similarity
    from facezoo.methods.ksame.gallery import Gallery

    transforms = np.stack([similarity(five, 128) for five in points])
    inside = [apply_transform(matrix, five) for matrix, five in zip(transforms, points, strict=True)]
    smiling = {"expression": np.zeros(len(points), dtype=np.int64)}
    return Gallery(crop_faces(picture, transforms, 128), points=np.stack(inside), labels=smiling)


def _learned_rows(
    anonymizer: Anonymizer, original: Path, output: Path, keys: tuple[Key, Key], judge: Judge
) -> list[DemoRow]:
    """Key A, key B, and what comes back from the saved file with the right and a wrong key; without a key: twice."""
    rows: list[DemoRow] = []
    key_a, key_b = keys
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


def _say_table(rows: Sequence[DemoRow], notes: Sequence[str], say: Callable[[str], None]) -> None:
    for line in table(rows):
        say(line)
    say(
        f"dlib: Euclidean distance to the original face, mean; taken for the original where below {THRESHOLD} (dlib's "
        "own threshold)."
    )
    say("SFace: cosine similarity to the original face, mean (the learned models were trained against it).")
    for note in notes:
        say(f"note: {note}")


def _write_png(path: Path, image: Image.Image) -> None:
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=False, compress_level=6)
    atomic_write(path, stream.getvalue(), overwrite=True)
