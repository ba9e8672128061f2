"""Stops that lose nothing: a signal or the time limit sets a flag; the checkpoint is written between two batches."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


class Preemption(Callback):
    """Saves every ``save_every_minutes`` and, on a signal or at ``max_minutes``, once more, then ends the fit.

    Args:
        checkpoint: File to write (through a temporary name, so that a kill while writing leaves the last one whole).
        save_every_minutes: Minutes between saves.
        max_minutes: Length of this run; None for no limit. The clock starts with the first batch of this process.
    """

    def __init__(self, checkpoint: Path, save_every_minutes: float, max_minutes: float | None) -> None:
        self.checkpoint, self.save_every_minutes, self.max_minutes = checkpoint, save_every_minutes, max_minutes
        self.stopped_by = ""
        self._asked = ""
        self._previous: dict[int, Any] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Installs the signal handlers, after Lightning's own, whose SIGTERM would raise in the middle of a batch."""
        self._started = self._saved = time.monotonic()
        for number in _SIGNALS:
            self._previous[number] = signal.signal(number, self._on_signal)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Gives the signal handlers back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._asked = signal.Signals(number).name

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Saves or stops, on all ranks alike."""
        now = time.monotonic()
        if self.max_minutes is not None and now - self._started > 60 * self.max_minutes:
            self._asked = self._asked or "the time limit"
        stop = trainer.strategy.reduce_boolean_decision(bool(self._asked), all=False)
        due = trainer.strategy.reduce_boolean_decision(now - self._saved > 60 * self.save_every_minutes, all=False)
        if stop or due:
            self.save(trainer)
        if stop:
            self.stopped_by = self._asked or "another process"
            trainer.should_stop = True

    def save(self, trainer: L.Trainer) -> None:
        """Writes the checkpoint under a temporary name and renames it."""
        temporary = self.checkpoint.with_name(self.checkpoint.name + ".part")
        trainer.save_checkpoint(temporary)
        if trainer.is_global_zero:
            temporary.replace(self.checkpoint)
        trainer.strategy.barrier()
        self._saved = time.monotonic()
