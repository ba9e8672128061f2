"""An endless shuffle that is a pure function of (seed, batches seen): no state to save, any number of processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch.utils.data import Sampler


class StepSampler(Sampler[list[int]]):
    """Batches of indices for one process of ``world_size``.

    The whole stream of indices is one shuffle after another. Batch number t of all processes together takes the next
    ``batch_size * world_size`` of it; rank r takes every ``world_size``-th from r on. A run resumed after t batches
    therefore sees exactly what an uninterrupted one sees, with any number of processes whose batches add up the same.

    Args:
        length: Number of items.
        batch_size: Items a batch and process.
        world_size: Number of processes.
        rank: This process.
        seed: Seed of the shuffles.
        position: Returns the number of batches already seen.

    Raises:
        ValueError: The set is empty.
    """

    def __init__(
        self, length: int, batch_size: int, world_size: int, rank: int, seed: int, position: Callable[[], int]
    ) -> None:
        if length < 1:
            raise ValueError("cannot sample from an empty set")
        self.length, self.batch_size, self.world_size, self.rank = length, batch_size, world_size, rank
        self.seed, self.position = seed, position

    def __iter__(self) -> Iterator[list[int]]:
        """Yields index lists without end."""
        k = self.position() * self.batch_size * self.world_size + self.rank
        lap, order = -1, []
        while True:
            batch = []
            for _ in range(self.batch_size):
                if k // self.length != lap:
                    lap = k // self.length
                    generator = torch.Generator().manual_seed(self.seed + lap)
                    order = torch.randperm(self.length, generator=generator).tolist()
                batch.append(order[k % self.length])
                k += self.world_size
            yield batch
