"""``facezoo evaluate --pairs``: a verification protocol with the second picture of every pair anonymized.

LFW's pairs as CIAGAN and the book use them (tables 5.3 and 8.5): of two real pictures of one person the true acceptance
rate is near 1; with the second one anonymized it should be that of strangers. Pairs of different people say how often
an anonymized face is taken for somebody else's picture.

Thresholds come from all impostor pairs of the set's real pictures, never from the pairs that are judged. A face for
which the method fails counts as its original.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from facezoo.data.packed import PackedFaces
from facezoo.errors import FacezooError, InputError
from facezoo.evaluate.judges import Judge, own_encoder, to_pictures, to_tensor
from facezoo.evaluate.people import own_people
from facezoo.evaluate.protocol import EvaluationSettings, apply_method
from facezoo.evaluate.subjects import EvaluationKeys, as_face_method
from facezoo.files import atomic_write, check_output, sha256_file
from facezoo.metrics import similarity, wilson
from facezoo.recognition import Recogniser, list_recognisers, load_recogniser
from facezoo.recognition.window import TemplateWindow

__all__ = ["Pairs", "measure_pairs", "pairs_report", "read_pairs", "run_pairs"]

JSON_NAME, MARKDOWN_NAME = "pairs.json", "pairs.md"
_COLUMNS = ("a", "b", "same")

ByteArray = npt.NDArray[np.uint8]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Pairs:
    """Pairs of a set's pictures.

    Attributes:
        first: ``(N,)`` rows of the set; these stay real.
        second: ``(N,)``; these are anonymized.
        same: ``(N,)`` whether both show one person.
        left_out: pairs of the file of which the set lacks a picture.
    """

    first: IntArray
    second: IntArray
    same: npt.NDArray[np.bool_]
    left_out: int

    def __len__(self) -> int:
        return len(self.first)

    def some(self, count: int | None, seed: int) -> Pairs:
        """At most ``count`` of them, drawn with the seed; None: all."""
        if count is None or count >= len(self):
            return self
        rows = np.sort(np.random.default_rng(seed).choice(len(self), count, replace=False))
        return Pairs(self.first[rows], self.second[rows], self.same[rows], self.left_out)


def read_pairs(path: str | os.PathLike[str], data: PackedFaces) -> Pairs:
    """Reads a csv with the columns ``a``, ``b`` (file names, without folder and ending) and ``same`` (1 or 0).

    Args:
        path: the file.
        data: the set that has the pictures.

    Raises:
        InputError: unreadable, other columns, a line that contradicts the set or itself, a name that two pictures of
            the set have, or no pair of one person left.
    """
    rows: dict[str, int] = {}
    twice: set[str] = set()
    for row, file in enumerate(data.files):
        stem = Path(file).stem
        twice |= {stem} & rows.keys()
        rows[stem] = row
    found: list[tuple[int, int, bool]] = []
    left_out = 0
    try:
        with Path(path).open(newline="", encoding="utf-8") as stream:
            reader = csv.DictReader(stream)
            if not set(_COLUMNS) <= set(reader.fieldnames or ()):
                raise InputError(f"{path}: the first line must name the columns {', '.join(_COLUMNS)}")
            for line in reader:
                pair = _pair(f"{path}, line {reader.line_num}", line, rows, twice, data)
                left_out += pair is None
                found += [pair] if pair is not None else []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as a csv of pairs: {error}") from error
    if not any(same for _, _, same in found):
        raise InputError(f"{path}: no pair of one person has both pictures in {data.path.name} ({left_out} left out)")
    first, second, same = (np.array(column) for column in zip(*found, strict=True))
    return Pairs(first.astype(np.int64), second.astype(np.int64), same.astype(np.bool_), left_out)


def _pair(
    where: str, line: Mapping[str, str | None], rows: Mapping[str, int], twice: set[str], data: PackedFaces
) -> tuple[int, int, bool] | None:
    """One line as rows of the set; None where it lacks a picture."""
    names = [(line[column] or "").strip() for column in ("a", "b")]
    word = (line["same"] or "").strip()
    if not all(names) or word not in ("0", "1"):
        raise InputError(f"{where}: needs two names, and 1 or 0 for same")
    if names[0] == names[1]:
        raise InputError(f"{where}: {names[0]} is paired with itself")
    for name in names:
        if name in twice:
            raise InputError(f"{where}: two pictures of {data.path.name} are called {name}")
    if not all(name in rows for name in names):
        return None
    first, second = (rows[name] for name in names)
    if bool(data.identity[first] == data.identity[second]) is not (word == "1"):
        told = "one person" if word == "1" else "two people"
        raise InputError(f"{where}: says {told}, but {data.path.name} does not")
    return first, second, word == "1"


def measure_pairs(
    subject: object,
    data: PackedFaces,
    pairs: Pairs,
    *,
    name: str,
    judges: Sequence[Recogniser] | None = None,
    settings: EvaluationSettings | None = None,
) -> dict[str, Any]:
    """Judges the pairs as they are, and with the second picture anonymized under a key of its own.

    Args:
        subject: as for ``evaluate_model``.
        data: the set of the pairs; no person of it may have been trained on.
        pairs: see `read_pairs`.
        name: of the subject.
        judges: recognisers; None: those of the settings.
        settings: judges, false accept rates, seed, batch size, device; ``limit`` is the number of pairs.

    Returns:
        A plain dict: for each judge and threshold the rates of pairs that are taken for one person, ``same`` and
        ``different``, each ``real`` and ``anonymized``, with 95 % intervals.

    Raises:
        InputError: a set too small for the false accept rates, or a subject that cannot be judged.
        FacezooError: the method's own, if it fails for every face.
    """
    settings = settings or EvaluationSettings()
    pairs = pairs.some(settings.limit, settings.seed)
    method, info = as_face_method(subject, settings.seed)
    pictures = data.batch(np.arange(len(data)))
    size = (info.crop_size if info else None) or data.size
    if size != data.size:
        window = TemplateWindow(size, 128.0 / size, 0.0, 0.0)
        pictures = np.concatenate([to_pictures(window(to_tensor(picture[None]))) for picture in pictures])
    uses_key = info.uses_key if info else True
    hidden, failed = _anonymized(method, pictures[pairs.second], uses_key, settings)
    if judges is None:
        judges = [load_recogniser(judge) for judge in settings.judges or list_recognisers()]
    encoders = sorted({*settings.identity_encoders, *(info.identity_encoders if info else ())})
    told: dict[str, Any] = {}
    for recogniser in tqdm(judges, desc="judges", unit="judge", disable=None if settings.progress else True):
        judge = Judge(recogniser, settings.far, settings.device, settings.batch_size, settings.seed)
        told[judge.name] = _judged(judge, pictures, np.asarray(data.identity), pairs, hidden)
        told[judge.name]["took_part_in_training"] = own_encoder(recogniser, encoders, pictures) is not None
    return {
        "facezoo_pairs": 1,
        "name": name,
        "method": info.name if info else type(subject).__name__,
        "data": data.path.name,
        "data_sha256": sha256_file(data.path),
        "same_pairs": int(pairs.same.sum()),
        "different_pairs": int((~pairs.same).sum()),
        "left_out": pairs.left_out,
        "failed": failed,
        "size": size,
        "seed": settings.seed,
        "far": list(settings.far),
        "judges": told,
    }


def _anonymized(
    method: Any, pictures: ByteArray, uses_key: bool, settings: EvaluationSettings
) -> tuple[ByteArray, int]:
    """Each picture under a key of its own (all at once without one), and for how many the method failed."""
    keys = EvaluationKeys(settings.seed, len(pictures))
    step = 1 if uses_key else settings.batch_size
    result, failed, last = pictures.copy(), 0, None
    bar = tqdm(total=len(pictures), desc="anonymize", unit="face", disable=None if settings.progress else True)
    for start in range(0, len(pictures), step):
        key = keys.key("right", start) if uses_key else None
        faces, _, error = apply_method(method.anonymize_faces, to_tensor(pictures[start : start + step]), key)
        last = error or last
        for offset, face in enumerate(faces):
            failed += face is None
            if face is not None:
                result[start + offset] = to_pictures(face[None])[0]
        bar.update(len(faces))
    bar.close()
    if failed == len(pictures) and isinstance(last, FacezooError):
        raise last
    return result, failed


def _judged(
    judge: Judge, pictures: ByteArray, identity: npt.NDArray[np.integer], pairs: Pairs, hidden: ByteArray
) -> dict[str, Any]:
    """Rates of one judge; its thresholds come from the real pictures."""
    real = np.concatenate(list(judge.embed(pictures)))
    judge.set_thresholds(real, identity)
    changed = np.concatenate(list(judge.embed(hidden)))
    scores = {
        "real": similarity(real[pairs.first], real[pairs.second], judge.metric),
        "anonymized": similarity(real[pairs.first], changed, judge.metric),
    }
    rates = {
        kind: {
            side: {
                threshold: wilson(int((of[chosen] >= value).sum()), int(chosen.sum())).to_dict()
                for threshold, value in judge.thresholds.items()
            }
            for side, of in scores.items()
        }
        for kind, chosen in (("same", pairs.same), ("different", ~pairs.same))
    }
    return {"thresholds": {kind: judge.own_unit(value) for kind, value in judge.thresholds.items()}, **rates}


def pairs_report(result: Mapping[str, Any]) -> str:
    """The result as Markdown: a row for each judge and threshold."""

    def percent(figure: Mapping[str, Any]) -> str:
        if not figure["n"]:
            return "-"
        return f"{100 * figure['value']:.1f} % ({100 * figure['low']:.1f}-{100 * figure['high']:.1f})"

    lines = [
        f"# {result['name']}: pairs of real and anonymized pictures",
        "",
        f"{result['same_pairs']} pairs of one person and {result['different_pairs']} of two in {result['data']}, "
        f"{result['size']} pixels, seed {result['seed']}; {result['left_out']} pairs of the file have a picture that "
        f"the set lacks, {result['failed']} pictures could not be anonymized and count as they are. The second picture "
        "of each pair is anonymized, under a key of its own. Taken for one person, 95 % intervals; thresholds from all "
        "impostor pairs of the set's real pictures.",
        "",
        "| judge | threshold | one person, real | one person, anonymized | two people, real | two people, anonymized |",
        "|---|---|---|---|---|---|",
    ]
    for judge, told in result["judges"].items():
        star = "\\*" if told["took_part_in_training"] else ""
        for threshold, value in told["thresholds"].items():
            cells = [
                percent(told[kind][side][threshold])
                for kind in ("same", "different")
                for side in ("real", "anonymized")
            ]
            lines.append(f"| {judge}{star} | {threshold} ({value:.3f}) | " + " | ".join(cells) + " |")
    if any(told["took_part_in_training"] for told in result["judges"].values()):
        lines += ["", "\\* took part in the method's training: its figures flatter."]
    return "\n".join(lines) + "\n"


def run_pairs(
    model: str | os.PathLike[str],
    data: str | os.PathLike[str],
    pairs: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    settings: EvaluationSettings | None = None,
    overwrite: bool = False,
    options: Mapping[str, object] | None = None,
) -> dict[str, Any]:
    """Loads a model, judges the pairs and writes ``pairs.json`` and ``pairs.md``.

    Args:
        model: as ``facezoo.from_pretrained`` takes it.
        data: packed set of the evaluation split.
        pairs: see `read_pairs`.
        output: folder.
        settings: see `measure_pairs`.
        overwrite: whether older files may be replaced.
        options: of the method; people to hide among come from the set where none are given.

    Returns:
        What `measure_pairs` returned, with the options.

    Raises:
        OutputError: the files exist or cannot be written; checked before the work.
        FacezooError: as `read_pairs` and `measure_pairs`.
    """
    from facezoo.anonymizer import from_pretrained

    settings = settings or EvaluationSettings()
    folder = Path(output)
    for name in (JSON_NAME, MARKDOWN_NAME):
        check_output(folder / name, overwrite, make_parents=True)
    packed = PackedFaces(data)
    chosen = read_pairs(pairs, packed)
    given: dict[str, Any] = dict(options or {})
    added, _ = own_people(os.fspath(model), data, given)
    given |= {name: value for name, value in added.items() if name != "gallery"}
    anonymizer = from_pretrained(os.fspath(model), device=settings.device, **given)
    result = measure_pairs(anonymizer, packed, chosen, name=anonymizer.model, settings=settings)
    result["options"] = anonymizer.method.options.updated(anonymizer.options).to_record()
    text = json.dumps(result, indent=1, allow_nan=False) + "\n"
    atomic_write(folder / JSON_NAME, text.encode(), overwrite, make_parents=True)
    atomic_write(folder / MARKDOWN_NAME, pairs_report(result).encode(), overwrite)
    return result
