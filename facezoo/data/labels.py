"""Attribute labels of a packed set: where they are read from, and a user's table of them.

The labels of an attribute are the array ``attribute_<name>`` (int16, the value's index, -1 unknown), or else what can
be read from the arrays ``sex``, ``age`` and ``expression``. Where they come from, and how often they agree with what is
known, stands in the set's metadata under ``attributes`` (``facezoo label`` writes both).

Imports no torch.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from facezoo.data.attributes import ATTRIBUTES, check_known
from facezoo.data.packed import PackedFaces
from facezoo.errors import InputError

__all__ = ["LabelSource", "Labels", "label_field", "labels_of", "own_labels", "read_label_csv"]

Labels = npt.NDArray[np.int16]

_AGE_ENDS: Final = (16, 35, 55)


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


def own_labels(faces: PackedFaces, name: str) -> Labels | None:
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
        column = np.asarray(faces.array(field), dtype=np.int16) if field in faces else own_labels(faces, name)
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
        check_known(ATTRIBUTES, name, f"attribute in {where.name} called")
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
