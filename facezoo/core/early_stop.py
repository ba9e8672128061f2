"""Ends a phase when held-out pictures stop getting better, and goes back to the best weights."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any, Final

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from facezoo.core.ema import NetworkEMA
from facezoo.core.phases import Phase, PhasedModule, phased

__all__ = ["EarlyStop"]

_WATCHED: Final = ("total", "loss", "rec", "l1")
"""The first of these that a phase logs is its objective; smaller is better for all of them."""

_STATE: Final = "facezoo_early_stop"


class EarlyStop(Callback):
    """Looks at held-out pictures every ``every`` batches; after ``patience`` looks without progress the phase is over.

    The look is the method's own training step with the same random draws each time (those of the middle of the phase),
    without a backward pass, and with every statistic put back afterwards: it changes nothing, so a run with it and a
    run without it are the same until the phase ends. At the end of a phase the weights and averages of the best look
    are restored.

    Args:
        batches: held-out batches, as training gets them (on the CPU).
        every: batches between looks.
        patience: looks without progress that end the phase.
        ema: the averages, which go back too.
        progress: part of the best value by which a look must be better to count.
    """

    def __init__(
        self, batches: list[dict[str, Tensor]], every: int, patience: int, ema: NetworkEMA, progress: float = 0.002
    ) -> None:
        self.batches, self.every, self.patience, self.ema, self.progress = batches, every, patience, ema, progress
        self.phase = ""
        self.best = float("inf")
        self.waited = 0
        self.looks: list[dict[str, Any]] = []
        self._kept: dict[str, Any] = {}

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Looks when it is time, and at the end of a phase."""
        module = phased(pl_module)
        phase, position = module.locate(module.batches_seen - 1)
        if phase.name != self.phase:
            self.phase, self.best, self.waited, self._kept = phase.name, float("inf"), 0, {}
        last = position + 1 >= phase.batches
        if (position + 1) % self.every and not last:
            return
        value = self._look(module, phase)
        if trainer.world_size > 1:
            value = float(trainer.strategy.reduce(torch.tensor(value, device=module.device), reduce_op="mean"))
        self.looks.append({"batch": module.batches_seen, "phase": phase.name, "held_out": value})
        if value < self.best - abs(self.best if self.best < float("inf") else 0.0) * self.progress:
            self.best, self.waited = value, 0
            self._kept = self._states(module, phase)
        else:
            self.waited += 1
        if self.waited >= self.patience or last:
            self._restore(module)
            module.batches_seen += phase.batches - (position + 1)
            self.waited = 0

    def _objective(self, module: PhasedModule, batch: dict[str, Tensor], phase: Phase) -> float:
        logs = module.step(batch, phase, "generator" if phase.discriminator_batches else "both")
        name = next((name for name in _WATCHED if name in logs), None)
        if name is None:
            raise TypeError(f"phase {phase.name} logs none of {', '.join(_WATCHED)}, so it cannot be stopped early")
        return float(logs[name])

    def _look(self, module: PhasedModule, phase: Phase) -> float:
        """Mean objective of the held-out batches."""
        with _unchanged(module), torch.no_grad():
            seen, module.batches_seen = module.batches_seen, self._start(module, phase)
            try:
                values = []
                for batch in self.batches:
                    here = {name: value.to(module.device) for name, value in batch.items()}
                    values.append(self._objective(module, here, phase))
            finally:
                module.batches_seen = seen
        return sum(values) / len(values)

    @staticmethod
    def _start(module: PhasedModule, phase: Phase) -> int:
        """The clock whose random draws every look uses: the middle of the phase, after any warming up."""
        before = 0
        for other in module.phases:
            if other is phase:
                break
            before += other.batches
        return before + phase.batches // 2

    def _states(self, module: PhasedModule, phase: Phase) -> dict[str, Any]:
        networks = module.networks()
        return {
            "live": {name: copy.deepcopy(networks[name].state_dict()) for name in phase.train},
            "average": {
                name: copy.deepcopy(self.ema.shadow[name].state_dict())
                for name in phase.train
                if name in self.ema.shadow
            },
        }

    def _restore(self, module: PhasedModule) -> None:
        if not self._kept:
            return
        networks = module.networks()
        for name, state in self._kept["live"].items():
            networks[name].load_state_dict(state)
        for name, state in self._kept["average"].items():
            self.ema.shadow[name].load_state_dict(state)
        self._kept = {}

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Saves how far it is and the best weights."""
        names = ("phase", "best", "waited", "looks")
        checkpoint[_STATE] = {**{name: getattr(self, name) for name in names}, "kept": self._kept}

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Goes on from there."""
        state = checkpoint.get(_STATE)
        if state is not None:
            self.phase, self.best, self.waited = state["phase"], state["best"], state["waited"]
            self.looks, self._kept = list(state["looks"]), state["kept"]


@contextlib.contextmanager
def _unchanged(module: PhasedModule) -> Iterator[None]:
    """Lets a training step run without learning: no backward pass, no optimizer step, buffers put back."""
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]

    def nothing(*_: Any, **__: Any) -> None:
        return

    optimizers: Any = module.optimizers()
    listed = list(optimizers) if isinstance(optimizers, list) else [optimizers]
    module.manual_backward = nothing  # type: ignore[method-assign]
    module.clip_gradients = nothing  # type: ignore[method-assign]
    for optimizer in listed:
        optimizer.step = nothing
    try:
        yield
    finally:
        del module.manual_backward, module.clip_gradients
        for optimizer in listed:
            del optimizer.step
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
