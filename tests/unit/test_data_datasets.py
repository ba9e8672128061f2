"""Datasets over packed files, folders and the published layouts, on tiny generated ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from facezoo.data.datasets import (
    CELEBA_POINTS,
    CelebADataset,
    FFHQDataset,
    FolderDataset,
    PackedDataset,
    pack_dataset,
)
from facezoo.data.packed import PackedFaces, write_packed
from facezoo.data.split import is_evaluation
from facezoo.errors import InputError
from facezoo.faces.align import template


def _save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def _plain(value: int, height: int = 8, width: int = 8) -> np.ndarray:
    return np.full((height, width, 3), value, dtype=np.uint8)


def _pack(path: Path, people: list[str], values: list[int], **labels: list[int]) -> Path:
    return write_packed(
        path,
        (_plain(value) for value in values),
        size=8,
        identities=people,
        files=[f"{path.stem}/{value}" for value in values],
        arrays={name: np.array(numbers, dtype=np.int16) for name, numbers in labels.items()},
        metadata={"expressions": json.dumps(["glad"])},
    )


def test_a_packed_sample(tmp_path: Path) -> None:
    dataset = PackedDataset(_pack(tmp_path / "a", ["eve", "adam"], [10, 20], sex=[0, 1]))
    sample = dataset[1]
    assert sample["image"].dtype == torch.uint8
    assert sample["image"].shape == (3, 8, 8)
    assert sample["image"].unique().tolist() == [20]
    assert dataset.identities[sample["identity"]] == "adam"
    assert (sample["index"], sample["sex"]) == (1, 1)
    assert dataset[-1]["index"] == 1
    with pytest.raises(IndexError):
        dataset[2]


def test_channels_are_rgb_and_first(tmp_path: Path) -> None:
    pixels = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
    path = write_packed(tmp_path / "a", iter([pixels]), size=8, identities=["x"], files=["x"])
    assert np.array_equal(PackedDataset(path)[0]["image"].numpy(), pixels.transpose(2, 0, 1))
    assert np.array_equal(PackedDataset(path).batch([0])[0].numpy(), pixels.transpose(2, 0, 1))


def test_several_packed_files_share_their_people(tmp_path: Path) -> None:
    first = _pack(tmp_path / "a", ["eve", "adam"], [10, 20], sex=[0, 1], age=[30, 40])
    second = _pack(tmp_path / "b", ["cain", "eve"], [30, 40], sex=[1, 0])
    dataset = PackedDataset([first, second])
    assert [dataset.identities[number] for number in dataset.identity] == ["eve", "adam", "cain", "eve"]
    assert dataset.label_names == ["sex"]  # not every file has an age
    assert [int(sample["image"][0, 0, 0]) for sample in dataset] == [10, 20, 30, 40]
    batch = dataset.batch([3, 0, 2])
    assert batch[:, 0, 0, 0].tolist() == [40, 10, 30]
    assert batch.is_contiguous(memory_format=torch.channels_last)
    with pytest.raises(InputError, match="'age' is not in every"):
        PackedDataset([first, second], labels=["age"])


def test_packed_files_of_two_sizes_are_refused(tmp_path: Path) -> None:
    other = write_packed(tmp_path / "b", iter([_plain(1, 4, 4)]), size=4, identities=["x"], files=["x"])
    with pytest.raises(InputError, match=r"different picture sizes \[4, 8\]"):
        PackedDataset([_pack(tmp_path / "a", ["eve"], [1]), other])


def test_the_sides_of_the_split_have_nobody_in_common(tmp_path: Path) -> None:
    people = [f"person_{number // 2}" for number in range(120)]
    path = _pack(tmp_path / "a", people, list(range(120)))
    train, evaluation = PackedDataset(path, split="train"), PackedDataset(path, split="evaluation")
    assert len(train) + len(evaluation) == 120
    assert set(train.identities).isdisjoint(evaluation.identities)
    assert all(is_evaluation(name) for name in evaluation.identities)
    # Each side still gives its own pictures.
    assert all(dataset[3]["image"][0, 0, 0] == int(dataset.files[3].split("/")[1]) for dataset in (train, evaluation))


def test_folders_are_people(tmp_path: Path) -> None:
    _save(tmp_path / "eve" / "1.png", _plain(1))
    _save(tmp_path / "eve" / "deep" / "2.png", _plain(2))
    _save(tmp_path / "adam" / "1.png", _plain(3))
    _save(tmp_path / "stranger.png", _plain(4))
    (tmp_path / "eve" / "notes.txt").write_text("no picture")
    _save(tmp_path / ".hidden" / "1.png", _plain(5))
    dataset = FolderDataset(tmp_path, size=8)
    assert dataset.files == ["adam/1.png", "eve/1.png", "eve/deep/2.png", "stranger.png"]
    assert [dataset.identities[number] for number in dataset.identity] == ["adam", "eve", "eve", "stranger.png"]
    assert [int(sample["image"][0, 0, 0]) for sample in dataset] == [3, 1, 2, 4]
    assert len(FolderDataset(tmp_path, size=8, identity="file").identities) == 4


def test_the_centred_square_of_a_wide_picture_is_taken(tmp_path: Path) -> None:
    pixels = _plain(200, 16, 32)
    pixels[:, :8] = pixels[:, 24:] = 0
    _save(tmp_path / "a.png", pixels)
    image = FolderDataset(tmp_path, size=8)[0]["image"]
    assert image.shape == (3, 8, 8)
    assert int(image[:, :, 1:-1].min()) > 190  # the dark sides are cut off
    assert image[:, :, 0].float().mean() > 150  # and no more than the rim of the kernel sees them
    assert torch.equal(image, image.flip(2))  # half a pixel of shift would show here


def test_a_table_of_labels(tmp_path: Path) -> None:
    for number in range(4):
        _save(tmp_path / "pictures" / f"{number}.png", _plain(number))
    table = tmp_path / "labels.csv"
    table.write_text("file,identity,age,mood,weight\n0.png,eve,30,sad,1.5\n2.png,adam,,glad,\n1.png,eve,31,,2\n")
    dataset = FolderDataset(tmp_path / "pictures", size=8, identity="csv", labels_csv=table)
    assert dataset.files == ["0.png", "1.png", "2.png"]  # 3.png is not in the table
    assert [dataset.identities[number] for number in dataset.identity] == ["eve", "eve", "adam"]
    assert [(sample["age"], sample["mood"], sample["weight"]) for sample in dataset] == [
        (30, 1, 1.5),
        (31, -1, 2.0),
        (-1, 0, -1.0),
    ]
    assert dataset.categories == {"mood": ["glad", "sad"]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,age\n0.png,3\n", "needs the columns file, identity"),
        ("file,identity\n0.png,eve\n9.png,eve\n", r"names 1 pictures that .* lacks: 9\.png"),
        ("file,identity\n0.png,eve\n0.png,eve\n", r"0\.png is there twice"),
        ("file,identity\n0.png\n", "line 2: it has not as many fields"),
        ("file,identity\n0.png,\n", "the identity is empty"),
    ],
)
def test_a_wrong_table_is_named(tmp_path: Path, text: str, message: str) -> None:
    _save(tmp_path / "pictures" / "0.png", _plain(0))
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        FolderDataset(tmp_path / "pictures", size=8, identity="csv", labels_csv=tmp_path / "labels.csv")


def test_an_unreadable_picture_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"broken\.png"):
        FolderDataset(tmp_path, size=8)[0]


def test_an_empty_and_a_missing_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no picture in"):
        FolderDataset(tmp_path, size=8)
    with pytest.raises(InputError, match="there is no folder"):
        FolderDataset(tmp_path / "nowhere", size=8)


def _dotted(points: np.ndarray, height: int, width: int) -> np.ndarray:
    """A dark picture with a bright soft dot at each point."""
    y, x = np.mgrid[:height, :width].astype(np.float64)
    spread = (width / 60) ** 2
    dots = sum(np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * spread)) for px, py in points)
    return np.repeat(np.clip(dots * 255, 0, 255).astype(np.uint8)[..., None], 3, axis=2)


def _celeba(root: Path, count: int = 6) -> Path:
    (root / "img_align_celeba").mkdir(parents=True)
    names = [f"{number:06d}.jpg" for number in range(1, count + 1)]
    for name in names:
        Image.fromarray(_dotted(CELEBA_POINTS, 218, 178)).save(root / "img_align_celeba" / name, quality=95)
    (root / "list_eval_partition.txt").write_text("".join(f"{name} {i % 3}\n" for i, name in enumerate(names)))
    (root / "identity_CelebA.txt").write_text("".join(f"{name} {2880 + i // 4}\n" for i, name in enumerate(names)))
    rows = "".join(f"{name}  {1 if i % 2 else -1} -1\n" for i, name in enumerate(names))
    (root / "list_attr_celeba.txt").write_text(f"{count}\nSmiling Young\n{rows}")
    return root


def test_celeba(tmp_path: Path) -> None:
    root = _celeba(tmp_path)
    train = CelebADataset(root, size=64)
    assert train.files == ["000001.jpg", "000004.jpg"]
    assert CelebADataset(root, size=64, split="valid").files == ["000002.jpg", "000005.jpg"]
    everyone = CelebADataset(root, size=64, split="all")
    assert everyone.identities == ["2880", "2881"]
    assert everyone.identity.tolist() == [0, 0, 0, 0, 1, 1]
    assert everyone.attribute_names == ["Smiling", "Young"]
    assert everyone[3]["attributes"].tolist() == [1, 0]


def test_celeba_pictures_come_to_the_template(tmp_path: Path) -> None:
    sample = CelebADataset(_celeba(tmp_path), size=128)[0]
    # CelebA's mean face is not exactly the template's: the fit leaves about two pixels.
    assert np.abs(sample["points"].numpy() - template(128)).max() < 3
    for x, y in sample["points"].round().int().tolist():
        assert int(sample["image"][0, y, x]) > 230  # the dots lie where the label says
    assert CelebADataset(tmp_path, size=128, crop="whole").label_names == ["attributes"]


def test_celeba_without_the_optional_files(tmp_path: Path) -> None:
    root = _celeba(tmp_path)
    (root / "identity_CelebA.txt").unlink()
    (root / "list_attr_celeba.txt").unlink()
    dataset = CelebADataset(root, size=32, split="all", crop="whole")
    assert len(dataset.identities) == 6
    assert dataset.label_names == []
    (root / "list_eval_partition.txt").unlink()
    with pytest.raises(InputError, match=r"list_eval_partition\.txt"):
        CelebADataset(root, size=32)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("list_eval_partition.txt", "000001.jpg 7\n", "partition '7'"),
        ("list_eval_partition.txt", "000001.jpg\n", "a file name and a number"),
        ("list_attr_celeba.txt", "1\nSmiling Young\n000001.jpg 1\n", "malformed"),
        ("list_attr_celeba.txt", "1\nSmiling Young\n000001.jpg 1 1\n", r"no line for 000004\.jpg"),
        ("identity_CelebA.txt", "000001.jpg 5\n", r"no line for 000004\.jpg"),
    ],
)
def test_a_damaged_celeba_file_is_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    root = _celeba(tmp_path)
    (root / name).write_text(text)
    with pytest.raises(InputError, match=message):
        CelebADataset(root, size=32)


def test_ffhq(tmp_path: Path) -> None:
    for number in (0, 1, 59_999, 60_000):
        folder = f"{number // 1000 * 1000:05d}"
        _save(tmp_path / "thumbnails128x128" / folder / f"{number:05d}.png", _plain(number % 250, 128, 128))
    train = FFHQDataset(tmp_path, size=64, pictures="thumbnails128x128")
    assert train.files == ["00000/00000.png", "00000/00001.png", "59000/59999.png"]
    assert train.identities == ["00000", "00001", "59999"]
    validation = FFHQDataset(tmp_path, size=64, pictures="thumbnails128x128", split="validation")
    assert validation.files == ["60000/60000.png"]
    assert np.abs(validation[0]["points"].numpy() - template(64)).max() < 1
    whole = FFHQDataset(tmp_path, size=128, pictures="thumbnails128x128", crop="whole")
    assert whole[1]["image"].unique().tolist() == [1]
    with pytest.raises(InputError, match="no folder images1024x1024"):
        FFHQDataset(tmp_path, size=64)


def test_any_dataset_can_be_packed(tmp_path: Path) -> None:
    dataset = CelebADataset(_celeba(tmp_path / "celeba"), size=32, split="all")
    packed = PackedDataset(pack_dataset(dataset, tmp_path / "a.safetensors", source="generated", progress=False))
    assert packed.identities == dataset.identities
    assert packed.files == dataset.files
    for index in (0, 5):
        for key, value in dataset[index].items():
            assert torch.equal(torch.as_tensor(packed[index][key]), torch.as_tensor(value)), key
    assert json.loads(PackedFaces(tmp_path / "a.safetensors").metadata["attributes"]) == ["Smiling", "Young"]
