"""Attribute labels for a packed set: a user's csv, colours measured in the pixels, and a linear probe for the rest.

Pseudo-labels are only as good as they are measured to be, so each attribute's source and agreement go into the set's
metadata (``attributes``). What agreement is measured against:

* a probe (sex, age, smiling where labels are missing): held-out pictures with true labels, by other people than those
  that the probe was fitted on;
* measured colours (hair, skin), for which no set here has true labels: pairs of pictures of one person, whose colour
  should be the same. It is consistency and no accuracy, and is recorded as such.

Imports no torch.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from facezoo.data.attributes import ATTRIBUTES
from facezoo.data.labels import Labels, LabelSource, label_field, own_labels, read_label_csv
from facezoo.data.packed import PackedFaces, rewrite_packed
from facezoo.errors import InputError

__all__ = ["label_set", "measure_hair", "measure_skin", "probe"]

Pixels = npt.NDArray[np.uint8]

_HAIR = (slice(1, 15), slice(38, 90))
"""Rows and columns of the 128 crop where most people have hair: above the forehead."""
_CHEEKS = ((slice(72, 86), slice(34, 48)), (slice(72, 86), slice(80, 94)))
_PROBED: Final = ("sex", "age", "smiling")
_PROBE_SIDE: Final = 32
_RIDGE: Final = 0.02
_UNSURE_ANGLE: Final = 6.0
"""Degrees about the limits between two tones where a picture's light decides: unknown."""
_SURE: Final = 0.85
"""Share of the pictures without a label that a probe labels: the surest ones; the others stay unknown."""


def _lab(images: Pixels) -> npt.NDArray[np.float32]:
    """CIE L*a*b* of RGB pixels ``(..., 3)``: L 0 to 100."""
    flat = images.reshape(-1, 1, 3).astype(np.float32) / 255
    return cv2.cvtColor(flat, cv2.COLOR_RGB2LAB).reshape(images.shape)


def _regions(image: Pixels) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Pixels above the forehead and of the cheeks, in L*a*b*: ``(n, 3)`` each."""
    if image.shape[0] != 128:
        image = cv2.resize(image, (128, 128), interpolation=cv2.INTER_AREA)
    hair = _lab(image[_HAIR]).reshape(-1, 3)
    cheeks = np.concatenate([_lab(image[region]).reshape(-1, 3) for region in _CHEEKS])
    return hair, cheeks


def measure_skin(image: Pixels) -> int:
    """Index of the skin's tone (light, medium, dark; -1 near a limit) by the individual typology angle of the cheeks.

    ITA = atan2(L* - 50, b*) in degrees (Chardon et al. 1991); above 30 light, to 0 medium, below dark. The angle of a
    photograph depends on its light, so does the label.
    """
    _, cheeks = _regions(image)
    lightness, _, yellow = np.median(cheeks, axis=0)
    angle = np.degrees(np.arctan2(lightness - 50, max(float(yellow), 1e-3)))
    if min(abs(angle - 30), abs(angle)) < _UNSURE_ANGLE:
        return -1
    return 0 if angle > 30 else 1 if angle > 0 else 2


def measure_hair(image: Pixels) -> int:
    """Index of the hair's colour (black, brown, blond, gray), -1 where the place above the forehead is no hair.

    By lightness against the cheeks' (which takes the picture's light out) and by chroma. A bald head, a hat or a
    background shows as skin-like, as uneven, or as coloured otherwise than hair is: unknown.
    """
    hair, cheeks = _regions(image)
    skin = np.median(cheeks, axis=0)
    lightness, red, yellow = np.median(hair, axis=0)
    spread = float(np.percentile(hair[:, 0], 85) - np.percentile(hair[:, 0], 15))
    ratio = float(lightness) / max(float(skin[0]), 1.0)
    if spread > 38 or np.linalg.norm(np.array([lightness, red, yellow]) - skin) < 12 or ratio > 1.15:
        return -1
    if yellow < -6 or red < -6 or red > 22:  # bluish, greenish, reddish: a background or a hat
        return -1
    chroma = float(np.hypot(red, yellow))
    if ratio < 0.33:
        return 0
    if chroma < 7:
        return 3 if ratio > 0.62 else 0 if ratio < 0.45 else -1
    if ratio > 0.62 and yellow > 12:
        return 2
    return 1 if ratio < 0.8 else -1


def _probe_features(faces: PackedFaces) -> npt.NDArray[np.float32]:
    """Grey pixels at 32x32, each picture of zero mean and unit variance, and SFace's vector where the set has it."""
    rows = np.empty((len(faces), _PROBE_SIDE * _PROBE_SIDE), dtype=np.float32)
    for index in tqdm(range(len(faces)), desc="pictures", unit="face", dynamic_ncols=True):
        grey = cv2.cvtColor(np.ascontiguousarray(faces.images[index]), cv2.COLOR_RGB2GRAY)
        small = cv2.resize(grey, (_PROBE_SIDE, _PROBE_SIDE), interpolation=cv2.INTER_AREA).astype(np.float32).ravel()
        rows[index] = (small - small.mean()) / max(float(small.std()), 1e-3)
    if "embedding_sface" in faces:
        vectors = np.asarray(faces.array("embedding_sface"), dtype=np.float32)
        rows = np.concatenate([rows, vectors * vectors.shape[1] ** 0.5], axis=1)
    return rows


def probe(
    features: npt.NDArray[np.float32], labels: Labels, people: npt.NDArray[np.integer], values: int
) -> tuple[Labels, float, int]:
    """Fills unknown labels by ridge regression on one-hot targets.

    Args:
        features: ``(N, D)``.
        labels: ``(N,)``, -1 unknown.
        people: ``(N,)`` person numbers; people are never on both sides of the measurement.
        values: number of values.

    Returns:
        Labels with the surest of the unknown ones filled in, the agreement on held-out people with the same
        choice of the surest, and how many pictures that was measured on.
    """
    known = np.flatnonzero(labels >= 0)
    design = np.concatenate([features, np.ones((len(features), 1), np.float32)], axis=1)

    def fit(rows: npt.NDArray[np.integer]) -> npt.NDArray[np.float32]:
        x = design[rows].astype(np.float64)
        y = np.eye(values)[labels[rows]]
        penalty = _RIDGE * len(rows) * np.eye(x.shape[1])
        penalty[-1, -1] = 0
        return np.linalg.solve(x.T @ x + penalty, x.T @ y).astype(np.float32)

    def decide(weights: npt.NDArray[np.float32], rows: npt.NDArray[np.integer]) -> tuple[Labels, npt.NDArray[np.bool_]]:
        scores = design[rows] @ weights
        ordered = np.sort(scores, axis=1)
        margin = ordered[:, -1] - ordered[:, -2]
        sure = margin >= np.quantile(margin, 1 - _SURE) if len(rows) else np.zeros(0, bool)
        return scores.argmax(1).astype(np.int16), sure

    held_out = known[people[known] % 5 == 0]
    guessed, sure = decide(fit(known[people[known] % 5 != 0]), held_out)
    agreement = float((guessed[sure] == labels[held_out][sure]).mean()) if sure.any() else float("nan")
    filled = labels.copy()
    unknown = np.flatnonzero(labels < 0)
    if len(unknown):
        guessed, certain = decide(fit(known), unknown)
        filled[unknown[certain]] = guessed[certain]
    return filled, agreement, int(sure.sum())


def _pair_agreement(labels: Labels, people: npt.NDArray[np.integer]) -> tuple[float | None, int]:
    """Share of equal labels among neighbouring pictures of one person."""
    order = np.argsort(people, kind="stable")
    a, b = order[:-1], order[1:]
    both = (people[a] == people[b]) & (labels[a] >= 0) & (labels[b] >= 0)
    count = int(both.sum())
    return (float((labels[a] == labels[b])[both].mean()) if count else None), count


def label_set(
    path: str | os.PathLike[str], *, table: str | os.PathLike[str] | None = None, measure: bool = False
) -> dict[str, LabelSource]:
    """Adds attribute labels to a packed set; the file is replaced when everything is done.

    Args:
        path: the packed set.
        table: csv of the user's own labels; they replace others of the same attribute.
        measure: measure hair and skin colour, and fill what is unknown of sex, age and smiling by a probe.

    Returns:
        Attribute -> where its labels come from; the same is in the set's metadata.

    Raises:
        InputError: nothing to do, an unusable csv, or no labels to learn a probe from.
    """
    if table is None and not measure:
        raise InputError("say where the labels come from: --csv FILE, --measure, or both")
    faces = PackedFaces(path)
    people = np.asarray(faces.identity)
    arrays: dict[str, Labels] = {}
    sources: dict[str, LabelSource] = {}
    given = read_label_csv(table, faces.files) if table is not None else {}
    for name, labels in given.items():
        arrays[name] = labels
        sources[name] = LabelSource(f"the table {os.path.basename(table or '')}", float((labels >= 0).mean()))  # noqa: PTH119
    if measure:
        _measure(faces, people, given, arrays, sources)
    before = json.loads(faces.metadata.get("attributes", "{}"))
    texts = json.dumps(before | {name: source.to_dict() for name, source in sources.items()})
    rewrite_packed(
        path,
        path,
        arrays={label_field(name): labels for name, labels in arrays.items()},
        metadata={"attributes": texts},
        overwrite=True,
    )
    return sources


def _measure(
    faces: PackedFaces,
    people: npt.NDArray[np.integer],
    given: dict[str, Labels],
    arrays: dict[str, Labels],
    sources: dict[str, LabelSource],
) -> None:
    measured: Sequence[tuple[str, str]] = (
        ("hair", "colour above the forehead, measured in the pixels; agreement: pairs of pictures of one person"),
        ("skin", "typology angle of the cheeks, measured in the pixels; agreement: pairs of pictures of one person"),
    )
    wanted = [name for name, _ in measured if name not in given]
    found = {name: np.full(len(faces), -1, dtype=np.int16) for name in wanted}
    for index in tqdm(range(len(faces) if wanted else 0), desc="colours", unit="face", dynamic_ncols=True):
        image = np.ascontiguousarray(faces.images[index])
        if "hair" in found:
            found["hair"][index] = measure_hair(image)
        if "skin" in found:
            found["skin"][index] = measure_skin(image)
    for name, source in measured:
        if name in found:
            agreement, count = _pair_agreement(found[name], people)
            arrays[name] = found[name]
            sources[name] = LabelSource(source, float((found[name] >= 0).mean()), agreement, count)
    features: npt.NDArray[np.float32] | None = None
    for name in _PROBED:
        true = None if name in given else own_labels(faces, name)
        if true is None or int((true >= 0).sum()) < 50:
            continue
        if features is None:
            features = _probe_features(faces)
        filled, agreement, count = probe(features, true, people, len(ATTRIBUTES[name].values))
        arrays[name] = filled
        share = float((true >= 0).mean())
        sources[name] = LabelSource(
            f"the set's own labels for {share:.0%} of the pictures, a linear probe for the surest of the others; "
            "agreement: the probe on held-out people with labels",
            float((filled >= 0).mean()),
            agreement,
            count,
        )
