"""The vocabulary of face attributes that SDN and MfM are steered by, and where their labels come from.

Identity-related attributes (sex, age, expression) say something about who is seen; style-related ones (hair colour,
skin colour) how. A request names attributes and values: ``{"smiling": "yes", "hair": "blond"}``; an attribute that is
not named is left to the network.

Labels of a packed set: the array ``attribute_<name>`` (int16, the value's index, -1 unknown), or else what can be read
from the arrays ``sex``, ``age`` and ``expression``. Where the labels come from, and how often they agree with what is
known, stands in the set's metadata under ``attributes`` (``facezoo label`` writes both).

Imports no torch.
"""

from __future__ import annotations

import csv
import difflib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from facezoo.data.packed import PackedFaces
from facezoo.errors import InputError, UnknownNameError

__all__ = [
    "ATTRIBUTES",
    "Attribute",
    "LabelSource",
    "conflicts",
    "format_request",
    "label_field",
    "labels_of",
    "parse_request",
    "read_label_csv",
    "request_indices",
    "resolve",
    "value_count",
]

Kind = Literal["identity", "style"]
Labels = npt.NDArray[np.int16]


@dataclass(frozen=True)
class Attribute:
    """One attribute.

    Attributes:
        name: as in requests, labels and checkpoints.
        kind: "identity" or "style" related, as the papers divide them.
        values: what it can be; labels are indices into this.
        doc: what is meant.
    """

    name: str
    kind: Kind
    values: tuple[str, ...]
    doc: str


ATTRIBUTES: Final[Mapping[str, Attribute]] = {
    a.name: a
    for a in (
        Attribute("sex", "identity", ("female", "male"), "as the face is read by others"),
        Attribute("age", "identity", ("child", "young", "middle", "old"), "to 15, 16 to 34, 35 to 54, from 55"),
        Attribute("smiling", "identity", ("no", "yes"), "neutral or serious, or happy"),
        Attribute("hair", "style", ("black", "brown", "blond", "gray"), "colour of the hair above the forehead"),
        Attribute("skin", "style", ("light", "medium", "dark"), "tone of the cheeks in this picture's light"),
        Attribute("beard", "style", ("no", "yes"), "beard or stubble"),
        Attribute("mustache", "style", ("no", "yes"), "hair on the upper lip"),
        Attribute("mouth_open", "style", ("no", "yes"), "lips apart"),
        Attribute("glasses", "style", ("no", "yes"), "any glasses"),
    )
}
"""Every attribute that can be labelled. A checkpoint knows those that it was trained with."""

_AGE_ENDS: Final = (16, 35, 55)

_CONFLICTS: Final[tuple[tuple[tuple[str, str], tuple[str, str], str], ...]] = (
    (("mustache", "yes"), ("sex", "female"), "a mustache on a female face"),
    (("beard", "yes"), ("sex", "female"), "a beard on a female face"),
    (("mustache", "yes"), ("age", "child"), "a mustache on a child"),
    (("beard", "yes"), ("age", "child"), "a beard on a child"),
    (("hair", "gray"), ("age", "child"), "gray hair on a child"),
)
"""Pairs that contradict each other: the first is the one that is dropped where conflicts are resolved (the papers keep
the identity-related one: "the less unreasonable face")."""


def _known(names: Iterable[str], name: str, what: str) -> None:
    choices = list(names)
    if name not in choices:
        near = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise UnknownNameError(f"there is no {what} {name!r}{hint} Choices: {', '.join(choices)}")


def parse_request(text: str | Sequence[str] | Mapping[str, str] | None) -> dict[str, str]:
    """A request from ``"smiling=yes,hair=blond"``, a list of such texts, or a mapping; in the vocabulary's order.

    Raises:
        UnknownNameError: no such attribute or value; the message lists the choices and suggests the nearest.
        InputError: not ``name=value``, or one attribute with two values.
    """
    if text is None:
        return {}
    if isinstance(text, Mapping):
        parts = [f"{name}={value}" for name, value in text.items()]
    else:
        parts = [part for line in ([text] if isinstance(text, str) else text) for part in line.split(",") if part]
    found: dict[str, str] = {}
    for part in parts:
        name, separator, value = (piece.strip().lower() for piece in part.partition("="))
        if not separator or not name or not value:
            raise InputError(f"attribute {part!r}: write NAME=VALUE, such as smiling=yes")
        _known(ATTRIBUTES, name, "attribute")
        _known(ATTRIBUTES[name].values, value, f"value of {name}")
        if found.get(name, value) != value:
            raise InputError(f"contradictory attributes: {name}={found[name]} and {name}={value}; give one of them")
        found[name] = value
    return {name: found[name] for name in ATTRIBUTES if name in found}


def format_request(request: Mapping[str, str]) -> str:
    """The request as one text, always the same for the same request; "" when nothing is asked for."""
    return ",".join(f"{name}={request[name]}" for name in ATTRIBUTES if name in request)


def conflicts(request: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """Contradictions in a request: (attribute to drop, attribute that stays, what is wrong)."""
    return [
        (drop[0], stay[0], why)
        for drop, stay, why in _CONFLICTS
        if request.get(drop[0]) == drop[1] and request.get(stay[0]) == stay[1]
    ]


def check_consistent(request: Mapping[str, str]) -> None:
    """Refuses a request that contradicts itself.

    Raises:
        InputError: it does.
    """
    for drop, stay, why in conflicts(request):
        raise InputError(
            f"contradictory attributes: {drop}={request[drop]} and {stay}={request[stay]} ({why}); leave one out"
        )


def resolve(request: Mapping[str, str], seen: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Resolves conflicts to the less unreasonable face: within the request, and with what is seen in the picture.

    Args:
        request: what is asked for.
        seen: attributes read from the original, used where the request does not say otherwise.

    Returns:
        The request without what was dropped, and a sentence for each dropped attribute.
    """
    left, dropped = dict(request), []
    for drop, stay, why in conflicts({**seen, **request}):
        if drop not in left:
            continue
        known = f"{stay}={request[stay]} is asked for" if stay in request else f"the face looks {seen[stay]}"
        dropped.append(f"{drop}={left.pop(drop)} was dropped: {why} ({known})")
    return left, dropped


def check_names(names: Sequence[str]) -> None:
    """Refuses a list of attributes that cannot be a checkpoint's.

    Raises:
        ValueError: an unknown or repeated name.
    """
    for name in names:
        if name not in ATTRIBUTES:
            raise ValueError(f"there is no attribute {name!r}; known: {', '.join(ATTRIBUTES)}")
    if len(set(names)) != len(names):
        raise ValueError("an attribute is named twice")


def value_count(names: Sequence[str]) -> int:
    """Number of values of all these attributes together."""
    return sum(len(ATTRIBUTES[name].values) for name in names)


def request_indices(request: Mapping[str, str], names: Sequence[str]) -> list[int]:
    """The request in a checkpoint's attributes: the index of each one's value, -1 where nothing is asked.

    Raises:
        UnknownNameError: an attribute that this checkpoint does not know; lists those that it knows.
    """
    for name in request:
        _known(names, name, "attribute of this checkpoint called")
    return [ATTRIBUTES[name].values.index(request[name]) if name in request else -1 for name in names]


# --------------------------------------------------------------------------------------------------------------- labels


@dataclass(frozen=True)
class LabelSource:
    """Where the labels of one attribute come from.

    Attributes:
        source: a sentence.
        known: share of the pictures with a label.
        agreement: share of agreement with independent labels where both exist; None where there are none.
        compared: how many pictures that was measured on.
    """

    source: str
    known: float
    agreement: float | None = None
    compared: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "source": self.source,
            "known": round(self.known, 4),
            "agreement": None if self.agreement is None else round(self.agreement, 4),
            "compared": self.compared,
        }


def label_field(name: str) -> str:
    """Name of the packed array that holds an attribute's labels."""
    return f"attribute_{name}"


def _from_own_arrays(faces: PackedFaces, name: str) -> Labels | None:
    """Labels that the set's plain arrays give."""
    if name == "sex" and "sex" in faces:
        return np.asarray(faces.array("sex"), dtype=np.int16)
    if name == "age" and "age" in faces:
        years = np.asarray(faces.array("age"), dtype=np.int16)
        return np.where(years < 0, -1, np.digitize(years, _AGE_ENDS)).astype(np.int16)
    if name == "smiling" and "expression" in faces and "expressions" in faces.metadata:
        words = json.loads(faces.metadata["expressions"])
        if "happiness" not in words:
            return None
        happy = words.index("happiness")
        rest = [words.index(w) for w in ("neutral", "anger", "sadness", "contempt") if w in words]
        values = np.asarray(faces.array("expression"))
        return np.where(values == happy, 1, np.where(np.isin(values, rest), 0, -1)).astype(np.int16)
    return None


def labels_of(faces: PackedFaces, names: Sequence[str]) -> Labels:
    """Labels of a packed set, ``(N, A)`` int16: index of the value, -1 unknown.

    Raises:
        InputError: an attribute of which no label exists, or a label that is no value of its attribute.
    """
    columns = []
    for name in names:
        if name not in ATTRIBUTES:
            raise InputError(f"there is no attribute {name!r}; choices: {', '.join(ATTRIBUTES)}")
        field = label_field(name)
        column = np.asarray(faces.array(field), dtype=np.int16) if field in faces else _from_own_arrays(faces, name)
        if column is None or not (column >= 0).any():
            raise InputError(
                f"{faces.path} has no labels of {name}; make them with: facezoo label {faces.path} --measure "
                "(or --csv FILE)"
            )
        if column.ndim != 1 or int(column.min()) < -1 or int(column.max()) >= len(ATTRIBUTES[name].values):
            raise InputError(f"{faces.path}: {field} has labels that are no value of {name}; label the set again")
        columns.append(column)
    return np.stack(columns, axis=1) if columns else np.zeros((len(faces), 0), np.int16)


def read_label_csv(path: str | os.PathLike[str], files: Sequence[str]) -> dict[str, Labels]:
    """A user's table of labels: column ``file`` and one column an attribute; an empty cell is an unknown label.

    Args:
        path: the csv file, UTF-8.
        files: the set's files, in order; every one must have exactly one row.

    Returns:
        Attribute -> labels ``(N,)``.

    Raises:
        InputError: unreadable, no ``file`` column, unknown columns or values, missing, repeated or foreign rows.
    """
    where = Path(path)
    try:
        with where.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            columns = list(reader.fieldnames or [])
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 csv"
        raise InputError(f"cannot read the labels {where}: {reason}") from error
    if "file" not in columns:
        raise InputError(
            f"{where} needs a column 'file' that names the pictures; it has: {', '.join(columns) or 'none'}"
        )
    names = [column for column in columns if column != "file"]
    if not names:
        raise InputError(f"{where} has no column of an attribute; choices: {', '.join(ATTRIBUTES)}")
    for name in names:
        _known(ATTRIBUTES, name, f"attribute in {where.name} called")
    position = {name: index for index, name in enumerate(files)}
    labels = {name: np.full(len(files), -2, dtype=np.int16) for name in names}
    for line, row in enumerate(rows, start=2):
        file = row["file"]
        if file not in position:
            raise InputError(
                f"{where}, line {line}: {file!r} is no picture of the set; its names look like {files[0]!r}"
            )
        index = position[file]
        for name in names:
            text = (row[name] or "").strip().lower()
            if labels[name][index] != -2:
                raise InputError(f"{where}, line {line}: {file!r} has two rows; leave one")
            if text and text not in ATTRIBUTES[name].values:
                allowed = ", ".join(ATTRIBUTES[name].values)
                raise InputError(f"{where}, line {line}: {name} cannot be {text!r}; write one of {allowed}, or nothing")
            labels[name][index] = ATTRIBUTES[name].values.index(text) if text else -1
    missing = [file for file in files if labels[names[0]][position[file]] == -2]
    if missing:
        shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise InputError(
            f"{where} has no row for {len(missing)} of {len(files)} pictures ({shown}); add them "
            "(an empty cell stands for unknown)"
        )
    return labels
