"""The data module: the order of training is a function of the batches seen."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("lightning")

from facezoo.data.datasets import PackedDataset
from facezoo.data.modules import FaceDataModule, to_unit_range
from facezoo.data.packed import write_packed
from facezoo.errors import InputError


def _dataset(path: Path, first: int = 0, count: int = 10) -> PackedDataset:
    numbers = range(first, first + count)
    pictures = (np.full((4, 4, 3), number, dtype=np.uint8) for number in numbers)
    names = [f"person {number}" for number in numbers]
    return PackedDataset(write_packed(path, pictures, size=4, identities=names, files=names))


def _indices(module: FaceDataModule, batches: int) -> list[list[int]]:
    return [batch["index"].tolist() for batch in itertools.islice(module.train_dataloader(), batches)]


def test_a_resumed_run_sees_what_it_would_have_seen(tmp_path: Path) -> None:
    dataset = _dataset(tmp_path / "a")
    straight = _indices(FaceDataModule(dataset, batch_size=3, seed=7), 9)
    resumed = _indices(FaceDataModule(dataset, batch_size=3, seed=7, position=lambda: 4), 5)
    assert straight[4:] == resumed
    first_lap = list(itertools.chain.from_iterable(straight))[:10]
    assert sorted(first_lap) == list(range(10))  # one lap sees each picture once
    assert straight != _indices(FaceDataModule(dataset, batch_size=3, seed=8), 9)


@pytest.mark.slow  # a spawned process imports torch again
def test_workers_give_the_same_batches(tmp_path: Path) -> None:
    dataset = _dataset(tmp_path / "a")
    module = FaceDataModule(dataset, batch_size=3, seed=7, workers=1)
    assert _indices(module, 3) == _indices(FaceDataModule(dataset, batch_size=3, seed=7), 3)


def test_evaluation_is_one_pass_in_order(tmp_path: Path) -> None:
    module = FaceDataModule(_dataset(tmp_path / "a"), _dataset(tmp_path / "b", first=50), batch_size=4)
    loader = module.val_dataloader()
    assert isinstance(loader, torch.utils.data.DataLoader)
    images = torch.cat([batch["image"] for batch in loader])
    assert images[:, 0, 0, 0].tolist() == list(range(50, 60))
    assert FaceDataModule(module.train, batch_size=4).val_dataloader() == []


def test_a_person_in_both_sets_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="1 people are in both sets, person 9"):
        FaceDataModule(_dataset(tmp_path / "a"), _dataset(tmp_path / "b", first=9), batch_size=2)


def test_pixels_reach_both_ends_of_the_unit_range() -> None:
    assert to_unit_range(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1.0, 1.0]
