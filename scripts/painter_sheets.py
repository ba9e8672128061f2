"""Sheets of the faces that a painter finds hard, one a kind: look at them before a checkpoint ships.

    python scripts/painter_sheets.py identity_rotation.mesh128 --data packed/evaluation128.safetensors -o sheets/

Rows: original, two keys, recovered with the first from the picture rounded to eight bits. Kinds are told by the set's
labels and by what is measured on the faces: children, old, dark and light skin, light from the side, turned heads,
profiles, gray pictures, tinted ones. ``--kind NAME=LIST.txt`` adds a kind by names of files (glasses, beards, hats,
hands), one a line. The sheets show the people of the set: they are for looking, not for publishing.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import facezoo
from facezoo.core.sheets import save_sheet
from facezoo.data.meshes import meshes_of
from facezoo.data.packed import PackedFaces
from facezoo.errors import FacezooError, InputError
from facezoo.keys import Key
from facezoo.mesh import head_pose, load_mesh
from facezoo.methods.base import FaceContext, Method

KEYS = ("sheet of hard faces, first key", "sheet of hard faces, second key")
COLUMNS = 10


def measured(faces: PackedFaces) -> dict[str, np.ndarray]:
    """Brightness of the skin, its slope from left to right, and the turn of the head, of every face: ``(N,)`` each."""
    points, _ = meshes_of(faces, load_mesh())
    yaw = head_pose(torch.from_numpy(points[..., :2].copy()), torch.from_numpy(points[..., 2].copy()))[:, 0].numpy()
    brightness, slope = [], []
    for start in range(0, len(faces), 64):
        luma = faces.batch(np.arange(start, min(start + 64, len(faces)))).astype(np.float32) @ (0.299, 0.587, 0.114)
        left, right = luma[:, 60:90, 40:60].mean((1, 2)), luma[:, 60:90, 68:88].mean((1, 2))
        brightness.append((left + right) / 2)
        slope.append(right - left)
    return {"brightness": np.concatenate(brightness), "slope": np.concatenate(slope), "yaw": yaw}


def kinds(faces: PackedFaces, named: dict[str, Path]) -> dict[str, np.ndarray]:
    """Indices of each kind's faces, the clearest first.

    Raises:
        InputError: a list names no picture of the set.
    """
    found = measured(faces)
    order = {name: np.argsort(values) for name, values in found.items()}
    chosen = {
        "dark skin": order["brightness"],
        "light skin": order["brightness"][::-1],
        "light from one side": np.argsort(-np.abs(found["slope"])),
        "profiles": np.argsort(-np.abs(found["yaw"])),
        "turned heads": np.argsort(np.abs(np.abs(found["yaw"]) - 35)),
    }
    if "age" in faces:
        age = np.asarray(faces.array("age"))
        chosen["children"] = np.flatnonzero((age >= 0) & (age < 13))
        chosen["old people"] = np.flatnonzero(age > 65)
    files = list(faces.files)
    for name, path in named.items():
        wanted = set(path.read_text(encoding="utf-8").split())
        rows = np.array([i for i, file in enumerate(files) if file in wanted], dtype=np.int64)
        if not len(rows):
            raise InputError(f"{path} names no picture of the set")
        chosen[name] = rows
    return {name: rows[:COLUMNS] for name, rows in chosen.items() if len(rows)}


def rows_of(method: Method, faces: Tensor) -> list[tuple[str, Tensor]]:
    """The rows of a sheet for faces ``(B, 3, S, S)`` in [-1, 1]."""
    contexts = [FaceContext(key=Key.from_passphrase(phrase)) for phrase in KEYS]
    anonymized = [method.anonymize(faces, context) for context in contexts]
    saved = ((anonymized[0] + 1) * 127.5).round() / 127.5 - 1
    rows = [("original", faces), ("first key", anonymized[0]), ("second key", anonymized[1])]
    if method.reversible:
        rows.append(("recovered", method.recover(saved, contexts[0]).faces))
    return rows


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", help="a keyed model, by name or folder")
    parser.add_argument("--data", type=Path, required=True, help="packed set of people outside training")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for the sheets")
    parser.add_argument("--kind", action="append", default=[], metavar="NAME=LIST.txt", help="files of one more kind")
    arguments = parser.parse_args()
    try:
        named = {name: Path(path) for name, _, path in (text.partition("=") for text in arguments.kind)}
        faces = PackedFaces(arguments.data)
        method = facezoo.from_pretrained(arguments.model).method
        arguments.output.mkdir(parents=True, exist_ok=True)
        chosen = kinds(faces, named)
        sheets = {name: torch.from_numpy(faces.batch(rows)) for name, rows in chosen.items()}
        usual = torch.from_numpy(faces.batch(np.linspace(0, len(faces) - 1, COLUMNS).astype(np.int64))).float()
        luma = (usual * torch.tensor([0.299, 0.587, 0.114])).sum(-1, keepdim=True)
        sheets["gray pictures"] = luma.expand_as(usual)
        sheets["tinted pictures"] = usual * torch.tensor([1.0, 0.75, 0.5])
        for name, pixels in sheets.items():
            crops = pixels.float().permute(0, 3, 1, 2) / 127.5 - 1
            path = arguments.output / f"{name.replace(' ', '_')}.png"
            save_sheet(path, rows_of(method, crops), f"{arguments.model}: {name}")
            print(path)
    except FacezooError as error:
        print(f"facezoo: error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
