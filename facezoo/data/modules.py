"""The data module: what a Lightning Trainer asks for its batches.

The datasets themselves are in `facezoo.data.datasets` and need no Lightning.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from facezoo.core.sampler import StepSampler
from facezoo.data.datasets import FaceDataset, Sample
from facezoo.errors import InputError

__all__ = ["FaceDataModule", "to_unit_range"]


def to_unit_range(images: torch.Tensor) -> torch.Tensor:
    """Pixels as networks take them.

    Args:
        images: uint8 (B, 3, S, S), 0..255, on any device.

    Returns:
        float32 (B, 3, S, S) in [-1, 1].
    """
    return images.float().div_(127.5).sub_(1.0)


class FaceDataModule(LightningDataModule):
    """Endless training batches in an order that is a function of (seed, batches seen), and one pass for evaluation.

    The training order needs no saved state: a run resumed after t batches asks ``position`` (which then returns t)
    and sees exactly what an uninterrupted run sees, with any number of processes (`facezoo.core.sampler`). The
    Trainer must not put its own sampler in place: ``Trainer(use_distributed_sampler=False)``.

    Args:
        train: the set to train on.
        evaluation: the set to evaluate on, or None.
        batch_size: samples a batch and process.
        seed: seed of the shuffles.
        workers: processes that read and decode; packed sets are quick enough with 0 to 2.
        position: returns the number of training batches already seen; None starts at 0.

    Raises:
        InputError: ``batch_size`` or ``workers`` is out of range, a set is empty, or the sets share a person (the
            evaluation would then measure memory).
    """

    def __init__(
        self,
        train: FaceDataset,
        evaluation: FaceDataset | None = None,
        *,
        batch_size: int,
        seed: int = 0,
        workers: int = 0,
        position: Callable[[], int] | None = None,
    ) -> None:
        super().__init__()
        if batch_size < 1 or workers < 0:
            raise InputError(f"batch_size must be at least 1 and workers at least 0, not {batch_size} and {workers}")
        if not len(train) or (evaluation is not None and not len(evaluation)):
            raise InputError("a set without pictures cannot be trained or evaluated on")
        if evaluation is not None:
            both = sorted(set(train.identities) & set(evaluation.identities))
            if both:
                raise InputError(f"{len(both)} people are in both sets, {both[0]} for one; split the sets by person")
        self.train = train
        self.evaluation = evaluation
        self.batch_size = batch_size
        self.seed = seed
        self.workers = workers
        self.position: Callable[[], int] = position or (lambda: 0)

    def train_dataloader(self) -> DataLoader[Sample]:
        """Batches without end: the Trainer's ``limit_train_batches`` sets the length of an epoch."""
        world_size = self.trainer.world_size if self.trainer else 1
        rank = self.trainer.global_rank if self.trainer else 0
        sampler = StepSampler(len(self.train), self.batch_size, world_size, rank, self.seed, self.position)
        return DataLoader(self.train, batch_sampler=sampler, **self._loading())

    def val_dataloader(self) -> DataLoader[Sample] | list[DataLoader[Sample]]:
        """The evaluation set once, in order; an empty list without one."""
        if self.evaluation is None:
            return []
        return DataLoader(self.evaluation, batch_size=self.batch_size, shuffle=False, **self._loading())

    def _loading(self) -> dict[str, Any]:
        return {
            "num_workers": self.workers,
            "pin_memory": torch.cuda.is_available(),
            # fork would copy the parent's threads' locks; the packed files are mapped again in each worker.
            "multiprocessing_context": "spawn" if self.workers else None,
            "persistent_workers": self.workers > 0,
        }
