"""Datasets of faces: packed sets, folders of pictures, CelebA's and FFHQ's published layouts.

All of them give the same sample, a dictionary:

| key | value |
|---|---|
| `image` | uint8 tensor (3, S, S), RGB, 0..255 |
| `identity` | int, an index into the dataset's `identities` |
| `index` | int, the sample's place in the dataset |
| labels | int, float or a tensor, under the label's name; -1 means unknown for whole numbers |

Pixels stay uint8 until they are on the device: a batch is then a quarter of the size on its way there. Augmentation
is not done here either, but in the training step, which knows the step's number and so repeats after a resume.

Only torch, numpy and `facezoo.faces` are needed. `PackedDataset` is the fast one (no decoding); `pack_dataset` turns
any of the others into a packed file.
"""

from __future__ import annotations

import abc
import csv
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from facezoo.data.packed import PackedFaces, write_packed
from facezoo.data.split import is_evaluation
from facezoo.errors import InputError
from facezoo.images.folders import find_pictures
from facezoo.images.formats import PICTURE_ENDINGS

__all__ = [
    "CELEBA_POINTS",
    "FFHQ_POINTS",
    "CelebADataset",
    "FFHQDataset",
    "FaceDataset",
    "FolderDataset",
    "PackedDataset",
    "Sample",
    "pack_dataset",
]

Sample = dict[str, Any]
"""One sample; see the module's table."""

Split = Literal["all", "train", "evaluation"]
"""Which side of facezoo's own split (`facezoo.data.split`) to take."""

CELEBA_POINTS: npt.NDArray[np.float32] = np.array(
    [[69.0, 112.3], [108.6, 112.3], [88.8, 135.0], [72.0, 152.6], [105.5, 152.6]], dtype=np.float32
)
"""Mean five points in a 178x218 picture of img_align_celeba, (5, 2) in pixels.

Measured with YuNet on 299 pictures (standard deviation 3 pixels, of the nose 7) and made symmetric. CelebA's pictures
are aligned by a similarity transform already, so one fixed transform brings them to our template.
"""

FFHQ_POINTS: npt.NDArray[np.float32] = np.array(
    [[0.3797, 0.4722], [0.6203, 0.4722], [0.5, 0.6096], [0.4003, 0.75], [0.5997, 0.75]], dtype=np.float32
)
"""Five points of a face with our template's proportions in a picture of FFHQ, (5, 2), as a part of its side.

Follows from FFHQ's published alignment: the crop's half side is max(2.0 x the distance between the eyes, 1.8 x that
from the eyes' middle to the mouth's), its centre lies a tenth of the way from the eyes to the mouth.
"""


class FaceDataset(Dataset[Sample], abc.ABC):
    """What the rest of facezoo asks of a set of faces.

    Attributes:
        size: S, the side of a sample's picture in pixels.
        identities: names of the people.
        identity: int64 (N,), each sample's index into ``identities``.
        files: each sample's source file, as text.
    """

    size: int
    identities: list[str]
    identity: npt.NDArray[np.int64]
    files: list[str]

    def __len__(self) -> int:
        return len(self.files)

    @abc.abstractmethod
    def pixels(self, index: int) -> npt.NDArray[np.uint8]:
        """The picture of one sample, uint8 (S, S, 3) RGB.

        Raises:
            InputError: the file cannot be read; the message names it.
        """

    def labels(self, index: int) -> dict[str, Any]:
        """The labels of one sample; none by default."""
        return {}

    @property
    def label_names(self) -> list[str]:
        """Names of the labels in every sample."""
        return sorted(self.labels(0)) if len(self) else []

    def __getitem__(self, index: int) -> Sample:
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of a set of {len(self)}")
        index = int(index) % len(self)
        pixels = np.ascontiguousarray(self.pixels(index).transpose(2, 0, 1))
        return {
            "image": torch.from_numpy(pixels),
            "identity": int(self.identity[index]),
            "index": index,
            **self.labels(index),
        }

    def __iter__(self) -> Iterator[Sample]:
        for index in range(len(self)):
            yield self[index]


def _keep_split(names: Sequence[str], split: Split) -> npt.NDArray[np.int64]:
    """Indices of the ``names`` (one a sample) on the wanted side of the split."""
    if split == "all":
        return np.arange(len(names))
    if split not in ("train", "evaluation"):
        raise InputError(f"there is no split {split!r}; choose all, train or evaluation")
    sides = {name: is_evaluation(name) for name in set(names)}
    wanted = split == "evaluation"
    return np.array([index for index, name in enumerate(names) if sides[name] == wanted], dtype=np.int64)


def _number(names: Sequence[str]) -> tuple[list[str], npt.NDArray[np.int64]]:
    """The sorted people, and each sample's index among them."""
    people = sorted(set(names))
    number = {name: index for index, name in enumerate(people)}
    return people, np.array([number[name] for name in names], dtype=np.int64)


class PackedDataset(FaceDataset):
    """One or several packed files as one set. The same name in two files is the same person.

    Args:
        paths: packed files.
        labels: labels to give with each sample; None gives those that every file has.
        split: a side of the split by the person's name. The files that `scripts/pack_shared.py` writes are split
            already; use this for one's own.

    Raises:
        InputError: a file is damaged, the files differ in size, a label is not in every file, or nothing is left.
    """

    def __init__(
        self,
        paths: str | Path | Sequence[str | Path],
        *,
        labels: Sequence[str] | None = None,
        split: Split = "all",
    ) -> None:
        listed = [paths] if isinstance(paths, str | Path) else list(paths)
        if not listed:
            raise InputError("no packed file was given; make one with `facezoo prepare`")
        self.packs = [PackedFaces(path) for path in listed]
        sizes = {pack.size for pack in self.packs}
        if len(sizes) > 1:
            raise InputError(f"the packed files have different picture sizes {sorted(sizes)}; prepare them at one size")
        self.size = sizes.pop()
        self._label_names = self._choose_labels(labels)
        names = [pack.identities[number] for pack in self.packs for number in pack.identity]
        place = [(number, row) for number, pack in enumerate(self.packs) for row in range(len(pack))]
        kept = _keep_split(names, split)
        if not kept.size:
            raise InputError(f"no picture is left of {', '.join(str(pack.path) for pack in self.packs)} ({split})")
        self._place = np.array(place, dtype=np.int64)[kept]
        """(N, 2): number of the file, row in it."""
        self.identities, self.identity = _number([names[index] for index in kept])
        self.files = [self.packs[number].files[row] for number, row in self._place]

    def _choose_labels(self, labels: Sequence[str] | None) -> list[str]:
        common = [name for name in self.packs[0].label_names if all(name in pack for pack in self.packs)]
        if labels is not None:
            for name in labels:
                if name not in common:
                    raise InputError(f"the label {name!r} is not in every packed file; these are: {', '.join(common)}")
            common = list(labels)
        if "expression" in common and len({pack.metadata.get("expressions") for pack in self.packs}) > 1:
            raise InputError("the packed files number their expressions differently; leave the label out")
        return common

    @property
    def label_names(self) -> list[str]:
        """Names of the labels in every sample."""
        return list(self._label_names)

    def pixels(self, index: int) -> npt.NDArray[np.uint8]:
        """The picture of one sample, uint8 (S, S, 3) RGB."""
        number, row = self._place[index]
        return self.packs[number].images[row]

    def labels(self, index: int) -> dict[str, Any]:
        """Whole numbers as int, points and embeddings as tensors."""
        number, row = self._place[index]
        labels: dict[str, Any] = {}
        for name in self._label_names:
            value = self.packs[number].array(name)[row]
            labels[name] = value.item() if value.ndim == 0 else torch.from_numpy(np.array(value))
        return labels

    def batch(self, indices: Sequence[int] | npt.NDArray[np.integer[Any]]) -> torch.Tensor:
        """Pictures of many samples at once, without building samples.

        Args:
            indices: (B,) whole numbers.

        Returns:
            uint8 (B, 3, S, S) in channels_last memory format.
        """
        places = self._place[np.asarray(indices, dtype=np.int64)]
        pixels = np.empty((len(places), self.size, self.size, 3), dtype=np.uint8)
        for number, pack in enumerate(self.packs):
            here = places[:, 0] == number
            pixels[here] = pack.images[places[here, 1]]
        return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def _whole_transform(height: int, width: int, size: int) -> npt.NDArray[np.float64]:
    """The largest centred square of a picture, scaled to ``size``: 2x3, picture -> crop, pixel centres at integers."""
    side = min(height, width)
    scale = size / side
    left, top = (width - side) / 2, (height - side) / 2
    # Pixel i covers [i - 0.5, i + 0.5]: (x + 0.5 - left) * scale - 0.5.
    return np.array(
        [[scale, 0.0, (0.5 - left) * scale - 0.5], [0.0, scale, (0.5 - top) * scale - 0.5]], dtype=np.float64
    )


def _read_crop(path: Path, size: int, points: npt.NDArray[np.floating[Any]] | None) -> npt.NDArray[np.uint8]:
    """Read a picture and crop it: to the template by its points, or its centred square."""
    from facezoo.faces.align import crop_faces, similarity
    from facezoo.faces.picture import load_picture

    rgb = load_picture(path).pixels
    if points is None:
        if rgb.shape == (size, size, 3):
            return rgb
        transform = _whole_transform(rgb.shape[0], rgb.shape[1], size)
    else:
        transform = similarity(points, size)
    return crop_faces(rgb, [transform], size)[0]


class FolderDataset(FaceDataset):
    """A folder of pictures that are face crops already (others: `facezoo prepare` first).

    Args:
        folder: walked to any depth.
        size: S; the largest centred square of each picture is scaled to it.
        identity: whose face it is: ``"subfolder"`` takes the first folder below ``folder`` (a picture that lies in
            none is a person of its own), ``"file"`` makes every picture a person of its own, ``"csv"`` takes the
            column ``identity`` of ``labels_csv``.
        labels_csv: a table with a column ``file`` (path relative to ``folder``, with forward slashes) and one column
            a label. Whole numbers become int, other numbers float; a column of texts is numbered by its sorted
            values (see ``categories``); empty means -1. Pictures that are not in the table are left out.
        split: a side of the split by the person's name (with ``"file"``: by the relative path).

    Attributes:
        categories: for each column of texts its values, in the order of their numbers.

    Raises:
        InputError: no such folder or table, no picture left, a picture of the table is missing, or a column is.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        size: int,
        identity: Literal["subfolder", "file", "csv"] = "subfolder",
        labels_csv: str | Path | None = None,
        split: Split = "all",
    ) -> None:
        if identity not in ("subfolder", "file", "csv"):
            raise InputError(f"there is no identity rule {identity!r}; choose subfolder, file or csv")
        if identity == "csv" and labels_csv is None:
            raise InputError("identity 'csv' needs labels_csv, a table with the columns file and identity")
        self.folder = Path(folder)
        self.size = size
        files = find_pictures(self.folder)
        table: dict[str, dict[str, str]] = {}
        if labels_csv is not None:
            table = _read_table(Path(labels_csv), identity == "csv")
            missing = sorted(set(table) - set(files))
            if missing:
                raise InputError(f"{labels_csv} names {len(missing)} pictures that {folder} lacks: {missing[0]} ...")
            files = [file for file in files if file in table]
        names = [_person(file, identity, table) for file in files]
        kept = _keep_split(names, split)
        if not kept.size:
            raise InputError(f"no picture in {folder} ({split}); endings: {' '.join(sorted(PICTURE_ENDINGS))}")
        self.files = [files[index] for index in kept]
        self.identities, self.identity = _number([names[index] for index in kept])
        self.categories: dict[str, list[str]] = {}
        self._labels: dict[str, list[int] | list[float]] = {}
        columns = [name for name in next(iter(table.values()), {}) if name not in ("file", "identity")]
        for column in columns:
            # Numbered over the whole table, so that the numbers are the same in both splits.
            values, categories = _parse_column({file: row[column] for file, row in table.items()})
            self._labels[column] = [values[file] for file in self.files]
            if categories:
                self.categories[column] = categories

    def pixels(self, index: int) -> npt.NDArray[np.uint8]:
        """The picture of one sample, uint8 (S, S, 3) RGB."""
        return _read_crop(self.folder / self.files[index], self.size, None)

    def labels(self, index: int) -> dict[str, Any]:
        """The row of the table."""
        return {name: values[index] for name, values in self._labels.items()}


def _person(file: str, rule: str, table: Mapping[str, Mapping[str, str]]) -> str:
    if rule == "csv":
        return table[file]["identity"]
    first, slash, _ = file.partition("/")
    return first if rule == "subfolder" and slash else file


def _read_table(path: Path, with_identity: bool) -> dict[str, dict[str, str]]:
    """Rows of a csv by their column ``file``."""
    needed = {"file", "identity"} if with_identity else {"file"}
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, strict=True)
            if not needed <= set(reader.fieldnames or []):
                raise InputError(f"{path} needs the columns {', '.join(sorted(needed))} in its first line")
            table: dict[str, dict[str, str]] = {}
            for line in reader:
                if None in line or None in line.values():
                    raise InputError(f"{path}, line {reader.line_num}: it has not as many fields as the first line")
                if line["file"] in table:
                    raise InputError(f"{path}, line {reader.line_num}: {line['file']} is there twice")
                if with_identity and not line["identity"]:
                    raise InputError(f"{path}, line {reader.line_num}: the identity is empty")
                table[line["file"]] = line
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or type(error).__name__}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not a csv table in UTF-8: {error}") from error
    return table


def _parse_column(texts: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    """One column as numbers: (value by file, categories of a column of texts)."""
    given = {text for text in texts.values() if text}
    for kind in (int, float):
        try:
            numbers = {text: kind(text) for text in given}
        except ValueError:
            continue
        return {file: numbers[text] if text else kind(-1) for file, text in texts.items()}, []
    categories = sorted(given)
    return {file: categories.index(text) if text else -1 for file, text in texts.items()}, categories


CelebASplit = Literal["all", "train", "valid", "test"]


class CelebADataset(FaceDataset):
    """CelebA as it is published: ``img_align_celeba/`` and its text files in one folder.

    Args:
        root: the folder with ``img_align_celeba/`` (178x218 jpg) and ``list_eval_partition.txt``; and, if present,
            ``identity_CelebA.txt`` (without it every picture is a person of its own) and ``list_attr_celeba.txt``
            (gives the label ``attributes``: int8 tensor (40,) of 0 and 1, in the order of ``attribute_names``).
        split: CelebA's own partition.
        size: S.
        crop: ``"template"`` brings the pictures to facezoo's template by one fixed transform (see
            ``CELEBA_POINTS``) and gives the label ``points``; ``"whole"`` takes the centred 178x178 square.

    Raises:
        InputError: a file is missing or malformed, or the partition is empty.
    """

    _PARTITIONS = ("train", "valid", "test")

    def __init__(
        self,
        root: str | Path,
        *,
        size: int,
        split: CelebASplit = "train",
        crop: Literal["template", "whole"] = "template",
    ) -> None:
        _check_crop(crop)
        if split not in ("all", *self._PARTITIONS):
            raise InputError(f"there is no partition {split!r}; choose all, train, valid or test")
        self.root = Path(root)
        self.size = size
        self.crop = crop
        if not (self.root / "img_align_celeba").is_dir():
            raise InputError(f"{self.root} has no folder img_align_celeba; give the folder that holds it")
        partition = _read_pairs(self.root / "list_eval_partition.txt")
        wanted = set(self._PARTITIONS) if split == "all" else {split}
        self.files = []
        for file, number in sorted(partition.items()):
            if number not in ("0", "1", "2"):
                raise InputError(f"{self.root}/list_eval_partition.txt: {file} has partition {number!r}, not 0 to 2")
            if self._PARTITIONS[int(number)] in wanted:
                self.files.append(file)
        if not self.files:
            raise InputError(f"{self.root / 'list_eval_partition.txt'} has no picture of the partition {split}")
        people = self._optional_pairs("identity_CelebA.txt")
        self.identities, self.identity = _number([people[file] if people else file for file in self.files])
        self.attribute_names: list[str] = []
        self._attributes: npt.NDArray[np.int8] | None = None
        if (self.root / "list_attr_celeba.txt").is_file():
            self._read_attributes(self.root / "list_attr_celeba.txt")

    def _optional_pairs(self, name: str) -> dict[str, str]:
        path = self.root / name
        if not path.is_file():
            return {}
        pairs = _read_pairs(path)
        for file in self.files:
            if file not in pairs:
                raise InputError(f"{path} has no line for {file}; download it again")
        return pairs

    def _read_attributes(self, path: Path) -> None:
        lines = _read_lines(path)
        # First line the number of pictures, second the names, then a file and forty times 1 or -1.
        if len(lines) < 2:
            raise InputError(f"{path} is too short; download it again")
        self.attribute_names = lines[1].split()
        rows: dict[str, list[bool]] = {}
        for line in lines[2:]:
            file, *values = line.split()
            if len(values) != len(self.attribute_names) or not set(values) <= {"1", "-1"}:
                raise InputError(f"{path}: the line of {file} is malformed; download it again")
            rows[file] = [value == "1" for value in values]
        missing = next((file for file in self.files if file not in rows), None)
        if missing is not None:
            raise InputError(f"{path} has no line for {missing}; download it again")
        self._attributes = np.array([rows[file] for file in self.files], dtype=np.int8)

    def pixels(self, index: int) -> npt.NDArray[np.uint8]:
        """The picture of one sample, uint8 (S, S, 3) RGB."""
        points = CELEBA_POINTS if self.crop == "template" else None
        return _read_crop(self.root / "img_align_celeba" / self.files[index], self.size, points)

    def labels(self, index: int) -> dict[str, Any]:
        """``attributes`` where the list is present, and ``points`` with the template crop."""
        labels: dict[str, Any] = {}
        if self._attributes is not None:
            labels["attributes"] = torch.from_numpy(self._attributes[index].copy())
        if self.crop == "template":
            labels["points"] = _points_in_crop(CELEBA_POINTS, self.size)
        return labels


class FFHQDataset(FaceDataset):
    """FFHQ as it is published: ``images1024x1024/00000/00000.png`` or ``thumbnails128x128/00000/00000.png``.

    Every picture is a person of its own (FFHQ has no identities; a few people are in it more than once).

    Args:
        root: the folder that holds the picture folder.
        size: S.
        split: FFHQ's own: ``"train"`` is 00000 to 59999, ``"validation"`` 60000 to 69999.
        pictures: which folder to read.
        crop: ``"template"`` brings the pictures to facezoo's template by one fixed transform (see ``FFHQ_POINTS``)
            and gives the label ``points``; ``"whole"`` scales the whole picture.

    Raises:
        InputError: the folder is missing or has no picture of the split.
    """

    _FIRST_VALIDATION = 60_000
    _NAME = re.compile(r"(\d{5})\.png")

    def __init__(
        self,
        root: str | Path,
        *,
        size: int,
        split: Literal["all", "train", "validation"] = "train",
        pictures: Literal["images1024x1024", "thumbnails128x128"] = "images1024x1024",
        crop: Literal["template", "whole"] = "template",
    ) -> None:
        _check_crop(crop)
        if split not in ("all", "train", "validation"):
            raise InputError(f"there is no split {split!r}; choose all, train or validation")
        if pictures not in ("images1024x1024", "thumbnails128x128"):
            raise InputError(f"there is no picture folder {pictures!r}; choose images1024x1024 or thumbnails128x128")
        self.folder = Path(root) / pictures
        self.size = size
        self.crop = crop
        self.side = int(pictures.rpartition("x")[2])
        if not self.folder.is_dir():
            raise InputError(f"{root} has no folder {pictures}; give the folder that holds it")
        self.files = []
        for file in find_pictures(self.folder):
            name = self._NAME.fullmatch(Path(file).name)
            if name is None:
                continue
            side = "validation" if int(name[1]) >= self._FIRST_VALIDATION else "train"
            if split in ("all", side):
                self.files.append(file)
        if not self.files:
            raise InputError(f"{self.folder} has no picture of the split {split} (00000/00000.png and so on)")
        self.identities, self.identity = _number([Path(file).stem for file in self.files])

    def pixels(self, index: int) -> npt.NDArray[np.uint8]:
        """The picture of one sample, uint8 (S, S, 3) RGB."""
        # A point at the share u of the side lies, with pixel centres at integers, at u * side - 0.5.
        points = FFHQ_POINTS * self.side - 0.5 if self.crop == "template" else None
        return _read_crop(self.folder / self.files[index], self.size, points)

    def labels(self, index: int) -> dict[str, Any]:
        """``points`` with the template crop."""
        return {"points": _points_in_crop(FFHQ_POINTS, self.size)} if self.crop == "template" else {}


def _check_crop(crop: str) -> None:
    if crop not in ("template", "whole"):
        raise InputError(f"there is no crop {crop!r}; choose template or whole")


def _points_in_crop(points: npt.NDArray[np.float32], size: int) -> torch.Tensor:
    """Where five points of a picture lie in its template crop, float32 (5, 2) in crop pixels."""
    from facezoo.faces.align import similarity

    transform = np.asarray(similarity(points, size), dtype=np.float64)
    return torch.from_numpy((points @ transform[:, :2].T + transform[:, 2]).astype(np.float32))


def _read_lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    return [line for line in lines if line.strip()]


def _read_pairs(path: Path) -> dict[str, str]:
    """Lines of two words, as in CelebA's text files."""
    pairs: dict[str, str] = {}
    for line in _read_lines(path):
        words = line.split()
        if len(words) != 2:
            raise InputError(f"{path}: expected a file name and a number, found {line[:60]!r}")
        pairs[words[0]] = words[1]
    return pairs


def pack_dataset(
    dataset: FaceDataset, output: str | Path, *, source: str = "", overwrite: bool = False, progress: bool = True
) -> Path:
    """Write any dataset into one packed file, its labels included.

    Args:
        dataset: the set; its pictures are read once, in order.
        output: the packed file to write.
        source: where the pictures come from and under which rights.
        overwrite: replace an existing file.
        progress: show a progress bar on stderr.

    Returns:
        The path.

    Raises:
        InputError: a picture cannot be read (nothing is written then).
        OutputError: the file exists, or cannot be written.
    """
    columns: dict[str, list[Any]] = {name: [] for name in dataset.label_names}
    for index in range(len(dataset)):
        for name, value in dataset.labels(index).items():
            columns[name].append(value)
    arrays: dict[str, npt.NDArray[Any]] = {}
    for name, values in columns.items():
        if isinstance(values[0], torch.Tensor):
            arrays[name] = torch.stack(values).numpy()
        else:
            arrays[name] = np.array(values, dtype=np.float32 if isinstance(values[0], float) else np.int32)
    from tqdm import tqdm  # here, so that training itself does not need it

    order = tqdm(range(len(dataset)), desc="packing", unit="picture", disable=not progress)
    texts: dict[str, str] = {}
    if isinstance(dataset, FolderDataset) and dataset.categories:
        texts["categories"] = json.dumps(dataset.categories)
    if isinstance(dataset, CelebADataset) and dataset.attribute_names:
        texts["attributes"] = json.dumps(dataset.attribute_names)
    return write_packed(
        output,
        (dataset.pixels(index) for index in order),
        size=dataset.size,
        identities=[dataset.identities[number] for number in dataset.identity],
        files=dataset.files,
        arrays=arrays,
        metadata=texts,
        source=source,
        overwrite=overwrite,
    )
