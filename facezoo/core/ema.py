"""Exponential moving average of named networks, once a batch."""

from __future__ import annotations

import copy
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from facezoo.core.phases import phased


class NetworkEMA(Callback):
    """Keeps an average of the networks that ship; Lightning's own averaging counts optimizer steps and copies all nets.

    Args:
        names: Networks to average.
        decay: Weight of the old average. The first batches of a network use less, ``(1 + n) / (10 + n)``, so that the
            random start is soon forgotten; n counts the batches in which the network learned.
    """

    def __init__(self, names: tuple[str, ...], decay: float) -> None:
        self.names, self.decay = names, decay
        self.shadow: dict[str, nn.Module] = {}
        self.updates: dict[str, int] = dict.fromkeys(names, 0)
        self._pending: dict[str, Any] | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Copies the networks, or restores the averages of a checkpoint."""
        networks = phased(pl_module).networks()
        self.shadow = {n: copy.deepcopy(networks[n]).requires_grad_(False).eval() for n in self.names}
        if self._pending is not None:
            for name, state in self._pending["networks"].items():
                self.shadow[name].load_state_dict(state)
            self.updates = dict(self._pending["updates"])
            self._pending = None

    @torch.no_grad()
    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_batch: Any) -> None:
        """Moves the averages of the networks that learned in this batch.

        Where ten discriminator batches go before each generator batch, those ten must not wear the generator's average.
        """
        module = phased(pl_module)
        phase, position = module.locate(module.batches_seen - 1)
        learned = phase.learning(position)
        for name, average in self.shadow.items():
            if name not in learned:
                continue
            seen = self.updates[name]
            decay = min(self.decay, (1 + seen) / (10 + seen))
            live = module.networks()[name]
            means: list[Tensor] = list(average.parameters())
            if means:  # a network may consist of buffers alone
                torch._foreach_lerp_(means, list(live.parameters()), 1 - decay)
            for mean, now in zip(average.buffers(), live.buffers(), strict=True):
                mean.copy_(now)  # copied, not averaged: counters must stay whole numbers
            self.updates[name] = seen + 1

    def state_dicts(self) -> dict[str, dict[str, Tensor]]:
        """State dict of each averaged network."""
        return {name: network.state_dict() for name, network in self.shadow.items()}

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Saves the averages."""
        checkpoint["facezoo_ema"] = {"networks": self.state_dicts(), "updates": dict(self.updates)}

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Remembers the averages until training starts (the networks may not be on their device yet)."""
        self._pending = checkpoint["facezoo_ema"]
