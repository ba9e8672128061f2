"""A small phased module with an encoder, a generator and a discriminator, on invented 16-pixel faces."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from facezoo.core.batches import PackedBatches, as_batch
from facezoo.core.callbacks import EndOfPhases
from facezoo.core.ema import NetworkEMA
from facezoo.core.phases import Phase, PhasedModule, Side
from facezoo.core.preemption import Preemption
from facezoo.core.sampler import StepSampler
from facezoo.data.packed import write_packed


class Toy(PhasedModule):
    """Autoencoder first; then generator against discriminator, two discriminator batches for each generator batch."""

    shipped = ("generator",)
    seed = 3
    picture_size = 16

    def __init__(self, stop_at: int = -1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Tanh())
        self.generator = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 3, 1))
        self.discriminator = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 1))
        self.phases = (
            Phase("one", 5, ("encoder", "generator")),
            Phase("two", 9, ("generator", "discriminator"), discriminator_batches=2),
        )
        self.stop_at = stop_at
        self.seen: list[tuple[int, str, str, list[int]]] = []
        self.rates: list[tuple[float, float]] = []

    def networks(self) -> dict[str, nn.Module]:
        return {"encoder": self.encoder, "generator": self.generator, "discriminator": self.discriminator}

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        body = [*self.encoder.parameters(), *self.generator.parameters()]
        return [torch.optim.Adam(body, lr=1e-2), torch.optim.Adam(self.discriminator.parameters(), lr=1e-2)]

    def step(self, batch: dict[str, Tensor], phase: Phase, side: Side) -> dict[str, Tensor]:
        optimizer, discriminator_optimizer = self.optimizers()
        self.rates.append((optimizer.param_groups[0]["lr"], discriminator_optimizer.param_groups[0]["lr"]))
        x = batch["image"].float() / 127.5 - 1
        noise = self.share(torch.randn(len(x) * self.world_size, 3, 16, 16, generator=self.generator_for("noise")))
        y = self.generator(self.encoder(x + 0.1 * noise))
        adversarial = self.discriminator(y).mean() if phase.name == "two" else torch.zeros(())
        if side == "discriminator":
            loss = adversarial - self.discriminator(x).mean() + self.discriminator.state_dict()["1.weight"].sum() * 0
            chosen = discriminator_optimizer
        else:
            loss, chosen = (y - x).square().mean() - 0.1 * adversarial, optimizer
        with chosen.toggle_model():
            chosen.zero_grad()
            self.manual_backward(loss)
            chosen.step()
        self.seen.append((self.batches_seen, phase.name, side, batch["index"].tolist()))
        if self.batches_seen == self.stop_at:
            import os
            import signal

            os.kill(os.getpid(), signal.SIGTERM)
        return {"loss": loss.detach()}


def make_set(path: Path, count: int = 11, size: int = 16, dim: int = 0) -> Path:
    """Writes a packed set of invented faces, with SFace-like identity vectors when ``dim`` is given."""
    rng = np.random.default_rng(5)
    coarse = rng.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    images = coarse.repeat(size // 4, 1).repeat(size // 4, 2)
    arrays: dict[str, Any] = {}
    if dim:
        vectors = rng.standard_normal((count, dim)).astype(np.float32)
        arrays["embedding_sface"] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    names = [f"person {i}" for i in range(count)]
    write_packed(
        path,
        iter(images),
        size=size,
        identities=names,
        files=[f"{n}.png" for n in names],
        arrays=arrays,
        source="invented",
    )
    return path


def run(
    folder: Path, data: Path, *, resume: bool = False, stop_at: int = -1, decay_share: float = 0.0
) -> tuple[Toy, NetworkEMA]:
    """Trains the toy in ``folder``; with ``stop_at`` a SIGTERM arrives in that batch."""
    module, ema = Toy(stop_at), NetworkEMA(("generator",), 0.9)
    module.decay_share = decay_share
    batches = PackedBatches([data], 16, ())
    preemption = Preemption(folder / "last.ckpt", 1e9, None)
    sampler = StepSampler(len(batches), 3, 1, 0, 5, lambda: module.batches_seen)
    trainer = L.Trainer(
        max_epochs=5,
        limit_train_batches=4,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[ema, EndOfPhases(), preemption],
    )
    loader = DataLoader(batches, batch_sampler=sampler, collate_fn=as_batch)
    trainer.fit(module, loader, ckpt_path=str(folder / "last.ckpt") if resume else None, weights_only=resume or None)
    return module, ema
