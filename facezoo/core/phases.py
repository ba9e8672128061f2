"""Training in phases with freezing, on a clock of batches.

Lightning's ``global_step`` counts every optimizer step, so with several optimizers it is no clock. Here one number,
``batches_seen``, decides the phase, what is frozen, which side (discriminator or generator) learns in this batch and
which random numbers a batch uses. It is the only state a resume needs besides weights and optimizers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import lightning as L
import torch
import torch.distributed as dist
from torch import Tensor, nn

from facezoo.core.freezing import freeze_layers
from facezoo.errors import InputError

if TYPE_CHECKING:
    from facezoo.core.batches import PackedBatches

Side = Literal["both", "discriminator", "generator"]

_LEAST_RATE = 0.01
"""What is left of the learning rates at the end of a phase that lets them fall."""


@dataclasses.dataclass(frozen=True)
class Phase:
    """One phase of a method's training.

    Attributes:
        name: Name in logs and recipes.
        batches: Length of the phase in batches.
        train: Names of the networks that learn; all others are frozen and in eval mode.
        discriminator_batches: Discriminator batches for each generator batch, e.g. 10 for SDN. 0: both sides learn in
            every batch.
        judges: Networks of ``train`` that learn in discriminator batches; the others learn in generator batches. Empty:
            all of them may learn in every batch.
    """

    name: str
    batches: int
    train: tuple[str, ...]
    discriminator_batches: int = 0
    judges: tuple[str, ...] = ()

    def side(self, position: int) -> Side:
        """Which side learns in the batch at ``position`` of this phase (0-based)."""
        if self.discriminator_batches == 0:
            return "both"
        cycle = self.discriminator_batches + 1
        return "generator" if position % cycle == self.discriminator_batches else "discriminator"

    def learning(self, position: int) -> tuple[str, ...]:
        """Networks that learn in the batch at ``position``."""
        side = self.side(position)
        if side == "both" or not self.judges:
            return self.train
        return tuple(name for name in self.train if (name in self.judges) == (side == "discriminator"))


def phased(module: L.LightningModule) -> PhasedModule:
    """The module as what facezoo's callbacks need.

    Raises:
        TypeError: it is another kind of module.
    """
    if not isinstance(module, PhasedModule):
        raise TypeError(f"{type(module).__name__} is not a PhasedModule")
    return module


class PhasedModule(L.LightningModule):
    """A LightningModule that owns its clock. Subclasses give ``phases``, ``networks()``, ``step`` and optimizers.

    Optimizers always hold every parameter of their networks, in every phase: a checkpoint of one phase then loads in
    another. Freezing is an idempotent function of the clock (``requires_grad``, train/eval mode, no stale gradients).

    Attributes:
        starts_from: Networks that no phase trains: a new run must be given them with ``init_from``.
        trained_further: Settings of the configuration that are others when a finished model is trained further.
        batch_group: A process's batch is a multiple of this many pictures, or smaller (minibatch standard deviation).
    """

    phases: Sequence[Phase]
    shipped: tuple[str, ...]
    seed: int
    picture_size: int
    data_fields: tuple[str, ...] = ()
    starts_from: tuple[str, ...] = ()
    trained_further: Mapping[str, Any] = MappingProxyType({})
    batch_group: int = 1
    labels_by_index: bool = False
    """Whether ``step`` looks something up by a picture's place in the training set; no other picture can be given."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.batches_seen = 0
        self._applied: Phase | None = None
        self.last_logs: dict[str, Tensor] = {}
        self.frozen: Mapping[str, frozenset[str]] = {}
        """Names of parameters, by network, that stay as they are although their network learns."""
        self.decay_share = 0.0
        """Share of each phase, at its end, over which the learning rates fall."""

    def networks(self) -> Mapping[str, nn.Module]:
        """The networks by the names that ``Phase.train`` and checkpoints use."""
        raise TypeError(f"{type(self).__name__} does not say which networks it trains")

    def step(self, batch: dict[str, Tensor], phase: Phase, side: Side) -> dict[str, Tensor]:
        """Trains on one batch and returns what to log (detached scalars)."""
        raise TypeError(f"{type(self).__name__} has no training step")

    def prepare_data_files(self, paths: Sequence[Path], device: torch.device) -> None:
        """Adds to the packed files what training needs (identity vectors, say); once, before the data are opened."""

    def setup_data(self, data: PackedBatches) -> None:
        """Sees the whole training set once, before the first batch."""

    def sample_sheet(self, batch: dict[str, Tensor], averaged: Mapping[str, nn.Module]) -> list[tuple[str, Tensor]]:
        """Rows of the sample sheet, ``(title, (B, 3, S, S) in [-1, 1])``, drawn with the averaged networks."""
        raise TypeError(f"{type(self).__name__} has no sample sheet")

    def manifest_entries(self) -> dict[str, Any]:
        """What the exported manifest says of the method: at least ``config`` and ``crop_size``."""
        raise TypeError(f"{type(self).__name__} has no manifest entries")

    # ------------------------------------------------------------------ the clock
    @property
    def total_batches(self) -> int:
        """Batches of all phases together."""
        return sum(phase.batches for phase in self.phases)

    def locate(self, batches_seen: int) -> tuple[Phase, int]:
        """Phase and 0-based position in it after ``batches_seen`` batches; the last phase has no end."""
        start = 0
        for phase in self.phases:
            if batches_seen < start + phase.batches:
                return phase, batches_seen - start
            start += phase.batches
        last = self.phases[-1]
        return last, batches_seen - (start - last.batches)

    def apply_phase(self) -> Phase:
        """Freezes and unfreezes what the clock asks for; does nothing when the phase has not changed."""
        phase, _ = self.locate(self.batches_seen)
        if phase is not self._applied:
            unknown = set(phase.train) - set(self.networks())
            if unknown:
                raise ValueError(f"phase {phase.name!r} trains unknown networks {sorted(unknown)}")
            for name, network in self.networks().items():
                active = name in phase.train
                network.requires_grad_(active)
                network.train(active)
                if not active:
                    for parameter in network.parameters():
                        parameter.grad = None  # a stale gradient would still move a frozen weight
            self._applied = phase
        for name in phase.train:
            # In every batch: a method that switches a network's gradients off and on again would wake them.
            if self.frozen.get(name):
                freeze_layers(self.networks()[name], self.frozen[name])
        return phase

    def learning_rate_factor(self) -> float:
        """What the learning rates are multiplied with in this batch: 1, then a straight line down to a hundredth."""
        phase, position = self.locate(self.batches_seen)
        falling = phase.batches * self.decay_share
        if falling == 0:
            return 1.0
        return max(_LEAST_RATE, min(1.0, (phase.batches - position) / falling))

    def _apply_learning_rates(self) -> None:
        if self.decay_share == 0:
            return
        factor = self.learning_rate_factor()
        for optimizer in self.trainer.optimizers:
            for group in optimizer.param_groups:
                # A checkpoint brings the rates of its own batch; what they fall from is saved with them.
                group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor

    # ------------------------------------------------------------------ randomness
    def generator_for(self, purpose: str) -> torch.Generator:
        """Random numbers that depend on (seed, batches seen, purpose) only: resumed and uninterrupted runs agree."""
        mixed = 0
        for letter in purpose.encode():
            mixed = (mixed * 257 + letter) % (2**31)
        seed = (self.seed * 1_000_003 + self.batches_seen) * 2_147_483_647 + mixed
        return torch.Generator().manual_seed(seed % (2**63))

    def share(self, whole: Tensor) -> Tensor:
        """This process's rows of a tensor drawn for the whole batch of all processes (same striding as the sampler)."""
        return whole[self.global_rank :: self.world_size].to(self.device)

    @property
    def world_size(self) -> int:
        """Number of processes (1 without a trainer)."""
        return self.trainer.world_size if self._trainer is not None else 1

    # ------------------------------------------------------------------ Lightning's hooks
    def on_train_start(self) -> None:
        """Makes the first batch apply its phase, also after a resume, and checks that all processes are at one batch.

        Raises:
            InputError: they are not: one process did not see the checkpoint that another resumed from.
        """
        self._applied = None
        if self.world_size > 1:
            ends = torch.tensor([self.batches_seen, -self.batches_seen], device=self.device)
            dist.all_reduce(ends, op=dist.ReduceOp.MAX)
            latest, earliest = int(ends[0]), -int(ends[1])
            if latest != earliest:
                raise InputError(
                    f"the processes stand at batches {earliest} to {latest}: not all machines see the same run folder; "
                    "put --output on a file system that all of them share"
                )

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Applies the phase and its rates; keeps buffers equal on all ranks (manual optimisation sends none)."""
        self.apply_phase()
        self._apply_learning_rates()
        if self.world_size > 1:
            for buffer in self.buffers():
                dist.broadcast(buffer, src=0)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """One batch: ``step`` of the method, then the clock moves on."""
        phase, position = self.locate(self.batches_seen)
        logs = self.step(batch, phase, phase.side(position))
        self.last_logs = {f"{phase.name}/{name}": value for name, value in logs.items()}
        self.batches_seen += 1  # last line: callbacks' on_train_batch_end run before the module's own

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Saves the clock."""
        checkpoint["facezoo"] = {"batches_seen": self.batches_seen}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores the clock."""
        self.batches_seen = int(checkpoint["facezoo"]["batches_seen"])
