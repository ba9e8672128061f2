"""The judge of attributes: it learns what can be seen, says how well on people it never saw, and is kept on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from facezoo.data.labels import label_field
from facezoo.data.packed import PackedFaces, write_packed
from facezoo.errors import InputError
from facezoo.evaluate.attribute_judge import AttributeJudge, train_attribute_judge


def coloured_set(path: Path, count: int = 320) -> Path:
    """Noise whose brightness is the sex and whose lower half is bright for a smile; a part of the labels unknown."""
    rng = np.random.default_rng(0)
    sex, smiling = rng.integers(0, 2, count), rng.integers(0, 2, count)
    images = rng.integers(60, 120, (count, 32, 32, 3))
    images += 60 * sex[:, None, None, None]
    images[:, 16:] += 60 * smiling[:, None, None, None]
    labels = {"sex": sex.astype(np.int16), "smiling": smiling.astype(np.int16)}
    labels["smiling"][::5] = -1
    write_packed(
        path,
        iter(images.astype(np.uint8)),
        size=32,
        identities=[f"person {i // 2}" for i in range(count)],
        files=[f"{i}.png" for i in range(count)],
        arrays={label_field(name): values for name, values in labels.items()},
        source="invented",
    )
    return path


def test_it_learns_measures_itself_on_others_and_comes_back_from_disk(tmp_path: Path):
    data = PackedFaces(coloured_set(tmp_path / "set.safetensors"))
    judge, accuracy = train_attribute_judge(data, ("sex", "smiling"), passes=8, seed=1)
    # A tenth of 160 people, two pictures each; four in five of them have a label of the smile.
    assert accuracy.rate["sex"].n == 32
    assert accuracy.rate["smiling"].n == int((np.asarray(data.array("attribute_smiling"))[_held(data)] >= 0).sum())
    assert accuracy.rate["sex"].value > 0.9 > accuracy.chance["sex"]
    judge.save(tmp_path / "judge.safetensors")
    again = AttributeJudge.load(tmp_path / "judge.safetensors")
    assert again.names == ("sex", "smiling")
    pictures = data.batch(np.arange(20))
    assert np.array_equal(again.guess(pictures), judge.guess(pictures))
    assert again.guess(pictures[:0]).shape == (0, 2)
    # Another state of the global generator does not change what is learned.
    torch.manual_seed(99)
    other, _ = train_attribute_judge(data, ("sex", "smiling"), passes=1, seed=1)
    torch.manual_seed(3)
    same, _ = train_attribute_judge(data, ("sex", "smiling"), passes=1, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(other.parameters(), same.parameters(), strict=True))


def _held(data: PackedFaces) -> np.ndarray:
    people = np.unique(np.asarray(data.identity))
    return np.isin(np.asarray(data.identity), np.random.default_rng(1).permutation(people)[:16])


@pytest.mark.parametrize("content", [b"", b"not safetensors at all"])
def test_what_is_no_judge_is_one_line(tmp_path: Path, content: bytes):
    path = tmp_path / "judge.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"is no attribute judge .* train it again"):
        AttributeJudge.load(path)


def test_too_few_pictures_are_refused(tmp_path: Path):
    data = PackedFaces(coloured_set(tmp_path / "set.safetensors", count=60))
    with pytest.raises(InputError, match="it needs 128"):
        train_attribute_judge(data, ("sex",))
