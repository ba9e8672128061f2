"""Pack the aligned sets that this project was trained and measured on.

Reads ``lfw128.{tar,csv}`` and ``aaf128.{tar,csv}`` (WebP pictures, labels and points) and writes two packed files:

- ``train128.safetensors``: every picture of lfw128 and aaf128 whose person is not in the evaluation split;
- ``evaluation128.safetensors``: every picture of lfw128's evaluation people.

The pictures are for research use only: neither file may be published or committed. Usage:

    python scripts/pack_shared.py --data ../shared/data --output packed
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from tqdm import tqdm

from facezoo.data.packed import PackedFaces, write_packed
from facezoo.data.split import is_evaluation
from facezoo.errors import FacezooError, InputError

SIZE = 128
EXPRESSIONS = ["anger", "contempt", "disgust", "fear", "happiness", "neutral", "sadness", "surprise"]
SEXES = {"female": 0, "male": 1}


@dataclass(frozen=True)
class Row:
    """One picture of a set's table."""

    archive: str
    file: str
    identity: str
    sex: int
    age: int
    expression: int
    points: tuple[float, ...]
    evaluation: bool


def read_table(folder: Path, name: str) -> list[Row]:
    """Read one set's csv; the split rule is applied to the person (lfw128) or the file name (aaf128)."""
    with (folder / f"{name}.csv").open(newline="", encoding="utf-8") as stream:
        return [
            Row(
                archive=name,
                file=line["file"],
                identity=line["identity"],
                sex=SEXES.get(line["sex"], -1),
                age=int(line.get("age") or -1),
                expression=EXPRESSIONS.index(line["expression"]) if line.get("expression") else -1,
                points=tuple(float(line[f"{axis}{index}"]) for index in range(5) for axis in "xy"),
                evaluation=is_evaluation(line["file"] if name == "aaf128" else line["identity"]),
            )
            for line in csv.DictReader(stream)
        ]


def read_pictures(folder: Path, rows: list[Row], title: str) -> Iterator[npt.NDArray[np.uint8]]:
    """Decode the pictures of ``rows`` in their order, uint8 (128, 128, 3)."""
    archives: dict[str, tarfile.TarFile] = {}
    try:
        for row in tqdm(rows, desc=title, unit="picture"):
            if row.archive not in archives:
                archives[row.archive] = tarfile.open(folder / f"{row.archive}.tar")  # noqa: SIM115 closed below
            stream = archives[row.archive].extractfile(row.file)
            if stream is None:
                raise InputError(f"{row.file} in {row.archive}.tar is not a file")
            with Image.open(io.BytesIO(stream.read())) as picture:
                yield np.asarray(picture.convert("RGB"))
    finally:
        for archive in archives.values():
            archive.close()


def pack(folder: Path, rows: list[Row], output: Path, overwrite: bool) -> PackedFaces:
    """Write one packed file and open it again, which checks it."""
    write_packed(
        output,
        read_pictures(folder, rows, output.name),
        size=SIZE,
        identities=[row.identity for row in rows],
        files=[f"{row.archive}/{row.file}" for row in rows],
        arrays={
            "sex": np.array([row.sex for row in rows], dtype=np.int16),
            "age": np.array([row.age for row in rows], dtype=np.int16),
            "expression": np.array([row.expression for row in rows], dtype=np.int16),
            "points": np.array([row.points for row in rows], dtype=np.float32).reshape(-1, 5, 2),
        },
        metadata={"expressions": json.dumps(EXPRESSIONS)},
        source="lfw128 and aaf128: press and web photographs, research use only, not to be passed on",
        overwrite=overwrite,
    )
    return PackedFaces(output)


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the tar and csv files")
    parser.add_argument("--output", type=Path, default=Path("packed"), help="folder for the packed files")
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist")
    arguments = parser.parse_args()
    lfw, aaf = read_table(arguments.data, "lfw128"), read_table(arguments.data, "aaf128")
    arguments.output.mkdir(parents=True, exist_ok=True)
    sets = {
        "evaluation128.safetensors": [row for row in lfw if row.evaluation],
        "train128.safetensors": [row for row in lfw + aaf if not row.evaluation],
    }
    for name, rows in sets.items():
        print(pack(arguments.data, rows, arguments.output / name, arguments.overwrite))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except FacezooError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
