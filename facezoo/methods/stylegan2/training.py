"""Training of StyleGAN2 (Karras et al. 2020), with adaptive augmentation and an optional start at small sizes.

Every batch trains the generator and then the discriminator, on the same generated pictures. The penalties are lazy
(section 3.1): each joins every k-th batch with k times its weight, in the same optimizer step as the adversarial loss.
The paper takes a step of its own for them, and for that scales Adam's constants; together no such correction is needed,
and each backward pass reaches every parameter, which training in several processes wants.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from facezoo.core.configuration import build_strict
from facezoo.core.phases import Phase, PhasedModule, Side
from facezoo.errors import InputError
from facezoo.methods.stylegan2 import losses
from facezoo.methods.stylegan2.config import StyleGAN2TrainingConfig
from facezoo.nets.stylegan2 import Discriminator, Generator
from facezoo.nets.stylegan2.augment import AdaptiveStrength, apply_transforms, draw_transforms
from facezoo.nets.stylegan2.discriminator import r1_penalty

_SHEET_TRUNCATION = 0.7


class StyleGAN2Training(PhasedModule):
    """LightningModule of the adversarial training.

    Args:
        config: Plain dict of ``StyleGAN2TrainingConfig``.
        seed: Seed of weights and of every random draw.

    Raises:
        InputError: Unknown key or wrong type in ``config``.
    """

    shipped = ("generator",)
    path_mean: Tensor

    def __init__(self, config: dict[str, Any], seed: int = 0) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.config = build_strict(StyleGAN2TrainingConfig, config, "config")
        self.seed = seed
        self.batch_group = self.config.minibatch_std_group
        c = self.config
        self.picture_size = c.resolution
        torch.manual_seed(seed)
        self.generator = Generator(c.network)
        self.discriminator = Discriminator(c.network, c.growing)
        self.register_buffer("path_mean", torch.zeros(()))
        self.ada = AdaptiveStrength(c.ada_target, c.ada_pictures, c.ada_every) if c.ada_target > 0 else None
        both = ("generator", "discriminator")
        self._sides = {f"grow{side}": side for side in c.growing} | {"train": c.resolution}
        lengths = (*c.growing_batches, c.training_batches)
        self.phases = tuple(Phase(name, length, both) for name, length in zip(self._sides, lengths, strict=True))

    def networks(self) -> Mapping[str, nn.Module]:
        """Generator and discriminator."""
        return {"generator": self.generator, "discriminator": self.discriminator}

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """One Adam each."""
        c = self.config
        return [
            torch.optim.Adam(network.parameters(), lr=c.learning_rate, betas=(c.beta1, c.beta2), eps=1e-8)
            for network in (self.generator, self.discriminator)
        ]

    def on_train_start(self) -> None:
        """Refuses compiled networks before the first batch.

        Raises:
            InputError: a network was compiled; R1 and path length differentiate a gradient, which compiled code cannot.
        """
        super().on_train_start()
        if any(network._compiled_call_impl is not None for network in self.networks().values()):
            raise InputError("torch.compile has no second derivatives, which R1 needs: use --set train.compile=false")

    # ------------------------------------------------------------------ steps
    def stage(self, batches_seen: int) -> tuple[int, float]:
        """Side of the pictures and part of the newest resolution at a time of the clock."""
        phase, position = self.locate(batches_seen)
        grown = phase is not self.phases[0] and position < self.config.fade_batches
        return self._sides[phase.name], position / self.config.fade_batches if grown else 1.0

    def step(self, batch: dict[str, Tensor], phase: Phase, side: Side) -> dict[str, Tensor]:
        """One batch; ``batch`` has uint8 ``image`` ``(B, 3, R, R)``."""
        c = self.config
        optimizer_g, optimizer_d = cast(Sequence[Any], self.optimizers())
        size, fade = self.stage(self.batches_seen)
        real = self._real(batch["image"], size)
        logs: dict[str, Tensor] = {}

        with optimizer_g.toggle_model():
            ws = self._latents(len(real), "latent")
            fake = self.generator.synthesis(ws, self._noise(len(real), size, "noise"), resolution=size, fade=fade)
            loss_g = losses.generator_loss(self.discriminator(self._augmented(fake, "augment generator"), fade))
            total = loss_g
            if c.path_weight > 0 and self.batches_seen % c.path_every == 0:
                penalty = self._path_penalty(len(real), size, fade)
                total = total + c.path_weight * c.path_every * penalty
                logs |= {"path": penalty, "path_mean": self.path_mean.clone()}
            optimizer_g.zero_grad()
            self.manual_backward(total)
            optimizer_g.step()

        with optimizer_d.toggle_model():
            penalised = c.r1_gamma > 0 and self.batches_seen % c.r1_every == 0
            # R1 is taken at the pictures that the discriminator sees: the way back through the augmentation has no
            # second derivative, and needs none.
            shown = self._augmented(real, "augment real").detach().requires_grad_(penalised)
            logits_real = self.discriminator(shown, fade)
            logits_fake = self.discriminator(self._augmented(fake.detach(), "augment fake"), fade)
            loss_d = losses.discriminator_loss(logits_real, logits_fake)
            total = loss_d
            if penalised:
                r1 = r1_penalty(logits_real, shown)
                gamma = c.r1_gamma * (size / c.resolution) ** 2
                total = total + gamma / 2 * c.r1_every * r1
                logs["r1"] = r1
            optimizer_d.zero_grad()
            self.manual_backward(total)
            optimizer_d.step()
        signs = logits_real.detach().sign().mean()
        if self.ada is not None:
            whole = len(real) * self.world_size
            self.ada.observe(self._mean(signs.clone()) * whole, whole)
            logs["ada"] = self.ada.strength.float()
        logs |= {
            "generator": loss_g,
            "discriminator": loss_d,
            "sign_real": signs,
            "sign_fake": logits_fake.sign().mean(),
        }
        return {name: value.detach() for name, value in logs.items()}

    def _real(self, images: Tensor, size: int) -> Tensor:
        """Real pictures of this batch at a size, mirrored by chance: uint8 -> [-1, 1]."""
        real = images.float().div(127.5).sub(1)
        if size < real.shape[-1]:
            real = functional.interpolate(real, size=(size, size), mode="area")
        if self.config.mirror:
            turned = torch.rand(len(real) * self.world_size, generator=self.generator_for("mirror")) < 0.5
            real = torch.where(self.share(turned)[:, None, None, None], real.flip(3), real)
        return real.contiguous(memory_format=torch.channels_last)

    def _augmented(self, pictures: Tensor, purpose: str) -> Tensor:
        """Pictures as the discriminator sees them; the same ones while the augmentation's strength is zero."""
        strength = float(self.ada.strength) if self.ada is not None else 0.0
        if strength == 0:
            return pictures
        whole = len(pictures) * self.world_size
        drawn = draw_transforms(whole, pictures.shape[-1], strength, self.generator_for(purpose))
        mine = drawn[self.global_rank :: self.world_size]
        return apply_transforms(pictures, mine)

    def _latents(self, count: int, purpose: str) -> Tensor:
        """Latents of every layer with style mixing; the mean w moves along."""
        c, rng = self.config, self.generator_for(purpose)
        whole = count * self.world_size
        z = torch.randn(2, whole, c.z_dim, generator=rng)
        mixed = torch.rand(whole, generator=rng) < c.style_mixing
        crossover = torch.randint(1, c.network.num_ws, (whole,), generator=rng)
        crossover = torch.where(mixed, crossover, c.network.num_ws)
        w = self.generator.mapping(torch.cat([self.share(z[0]), self.share(z[1])]))
        first, second = w[:count, None], w[count:, None]
        self.generator.move_w_mean(self._mean(w[:count].detach().mean(0)), c.w_mean_decay)
        layer = torch.arange(c.network.num_ws, device=w.device)
        return torch.where((layer < self.share(crossover)[:, None])[..., None], first, second)

    def _noise(self, count: int, size: int, purpose: str) -> list[Tensor]:
        rng = self.generator_for(purpose)
        sizes = [r for r in self.generator.synthesis.noise_sizes if r <= size]
        return [self.share(torch.randn(count * self.world_size, 1, r, r, generator=rng)) for r in sizes]

    def _path_penalty(self, count: int, size: int, fade: float) -> Tensor:
        c = self.config
        count = max(1, int(count * c.path_share))
        ws = self._latents(count, "path latent")
        pictures = self.generator.synthesis(ws, self._noise(count, size, "path noise"), resolution=size, fade=fade)
        direction = torch.randn(
            count * self.world_size, *pictures.shape[1:], generator=self.generator_for("path direction")
        )
        lengths = losses.path_lengths(pictures, ws, self.share(direction))
        with torch.no_grad():
            self.path_mean.lerp_(self._mean(lengths.detach().mean()), 1 - c.path_decay)
        return losses.path_penalty(lengths, self.path_mean.clone())

    def _mean(self, value: Tensor) -> Tensor:
        """Mean over the processes."""
        if self.world_size > 1:
            dist.all_reduce(value)
            value = value / self.world_size
        return value

    # ------------------------------------------------------------------ what a run shows and ships
    @torch.no_grad()
    def sample_sheet(self, batch: dict[str, Tensor], averaged: Mapping[str, nn.Module]) -> list[tuple[str, Tensor]]:
        """Real faces, people at two truncations, and style mixing, at the size of the moment."""
        size, fade = self.stage(max(self.batches_seen - 1, 0))
        generator = cast(Generator, averaged["generator"])
        count = len(batch["image"])
        z = torch.randn(3 * count, self.config.z_dim, generator=torch.Generator().manual_seed(7)).to(self.device)

        def draw(ws: Tensor) -> Tensor:
            return cast(Tensor, generator.synthesis(ws, self.config.sampling_noise, resolution=size, fade=fade))

        real = batch["image"].float().div(127.5).sub(1)
        rows = [("real", functional.interpolate(real, size=(size, size), mode="area"))]
        for i, part in enumerate(z.chunk(3)):
            rows.append((f"truncation {_SHEET_TRUNCATION}", draw(generator.w(part, _SHEET_TRUNCATION))))
            if i < 2:
                rows.append(("truncation 1", draw(generator.w(part))))
        half = self.config.network.num_ws // 2
        first = generator.w(z[:count], _SHEET_TRUNCATION)
        second = generator.w(z[count : count + 1], _SHEET_TRUNCATION).expand_as(first)
        rows.append(
            (
                "coarse layers of row 2, fine ones of the first in row 4",
                draw(torch.cat([first[:, :half], second[:, half:]], 1)),
            )
        )
        return rows

    def manifest_entries(self) -> dict[str, Any]:
        """What the checkpoint's manifest says about the method: configuration and preprocessing."""
        return {
            "config": dataclasses.asdict(self.config),
            "crop_size": self.config.resolution,
            "preprocessing": {"range": [-1, 1], "template": "facezoo five points at 128", "colour": "RGB"},
        }
