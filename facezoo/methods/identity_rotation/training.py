"""Training of identity_rotation: phase 1 disentangles, phase 2 learns to conceal and reveal.

Paper: Wen, Liu, Song, Cao, Xie, "Face De-identification: Safeguarding Identities in the Digital Era", chapter 6 (Cao et
al., ICCV 2021), losses (6.11)-(6.15).

Phase ``disentangle`` trains attribute encoder, generator and discriminator as the book does: (6.11) and (6.12) on every
face. Two changes keep the identity path from being ignored; both are switches: the attribute encoder sees the inside of
the face only coarsely (``attribute_grid``), and a part of each batch is given a foreign or rotated identity
(``swap_share``).

Phase ``conceal`` (ours) freezes those and trains four networks that hide an encrypted code in the saved picture and
read it back after rounding, JPEG and resampling; see ``networks`` and ``phase_code``.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from facezoo.concealment.code import CODE_NETWORKS
from facezoo.concealment.training import conceal_rows, conceal_step
from facezoo.core import saved_file
from facezoo.core.batches import PackedBatches
from facezoo.core.configuration import build_strict
from facezoo.core.phases import Phase, PhasedModule, Side
from facezoo.data.embeddings import check_identity_dim, ensure_embeddings
from facezoo.methods.identity_rotation import losses
from facezoo.methods.identity_rotation.config import IdentityRotationConfig
from facezoo.methods.identity_rotation.model import IdentityRotationNetworks
from facezoo.methods.identity_rotation.rotation import PRIVACY_LEVELS, rotate, rotation_degrees
from facezoo.nets.linear_painter import LinearPainter
from facezoo.nets.patch_discriminator import MultiScaleDiscriminator, discriminator_loss, generator_loss
from facezoo.recognition import load_recogniser

_PAINTER_FACES = 8000


class IdentityRotationTraining(PhasedModule):
    """LightningModule of both phases.

    Args:
        config: Plain dict of ``IdentityRotationConfig``.
        seed: Seed of weights and of every random draw.

    Raises:
        InputError: Unknown key or wrong type in ``config``.
    """

    def __init__(self, config: dict[str, Any], seed: int = 0) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.config = build_strict(IdentityRotationConfig, config, "config")
        self.seed = seed
        c = self.config
        self.embedding_field = f"embedding_{c.recogniser}"
        self.data_fields = (self.embedding_field,)
        self.picture_size = c.size
        torch.manual_seed(seed)
        self.model = IdentityRotationNetworks(c)
        self.shipped = tuple(self.model.networks())
        self.discriminator = MultiScaleDiscriminator(
            c.discriminator_width, c.discriminator_layers, c.discriminator_scales
        )
        self.phases = (
            Phase("disentangle", c.disentangle_batches, ("attribute_encoder", "generator", "discriminator")),
            Phase("conceal", c.conceal_batches, CODE_NETWORKS),
        )
        self._recogniser: list[nn.Module] = []  # in a list: frozen, large, and no part of the checkpoint
        self._identities = torch.zeros(0, c.identity_dim)

    def networks(self) -> Mapping[str, nn.Module]:
        """All networks by name."""
        return {**self.model.networks(), "discriminator": self.discriminator}

    def prepare_data_files(self, paths: Sequence[Path], device: torch.device) -> None:
        """Adds the identity vectors to the packed files, computed once.

        Raises:
            InputError: JPEG is to be simulated and kornia is missing; told now and not hours later, in phase two.
        """
        if self.config.jpeg_share > 0 and self.config.conceal_batches > 0:
            saved_file.jpeg_codec()
        for path in paths:
            ensure_embeddings(path, self.config.recogniser, self.recogniser, device)

    def setup_data(self, data: PackedBatches) -> None:
        """Takes the identity vectors: source of foreign identities and of their distribution.

        Raises:
            InputError: vectors of another length than ``identity_dim``.
        """
        self._identities = functional.normalize(torch.from_numpy(data.all(self.embedding_field)), dim=-1)
        check_identity_dim(self._identities, self.config.identity_dim, self.config.recogniser)
        self.model.identity_distribution.fit(self._identities)
        if isinstance(self.model.painter, LinearPainter):
            self.model.painter.fit(self._painter_batches(data))

    def _painter_batches(self, data: PackedBatches) -> Iterator[tuple[Tensor, Tensor]]:
        """An even choice of the training set for the linear regression, at the generator's size."""
        chosen = range(0, len(data), max(1, len(data) // _PAINTER_FACES))
        for start in tqdm(range(0, len(chosen), 100), desc="linear painter", unit="batch", dynamic_ncols=True):
            batch = data.__getitems__(list(chosen[start : start + 100]))
            faces, identity = self._inputs(batch)
            yield identity, self.model.shrink(faces)

    @property
    def recogniser(self) -> nn.Module:
        """The frozen identity encoder, loaded on first use."""
        if not self._recogniser:
            self._recogniser.append(load_recogniser(self.config.recogniser).to(self.device))
        return self._recogniser[0]

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Three Adams: generator side, discriminator, concealing networks. Each holds its parameters in every phase."""
        c, nets = self.config, self.networks()

        def parameters(*names: str) -> list[nn.Parameter]:
            return [p for name in names for p in nets[name].parameters()]

        betas = (c.beta1, c.beta2)
        return [
            torch.optim.Adam(parameters("attribute_encoder", "generator"), lr=c.learning_rate, betas=betas),
            torch.optim.Adam(parameters("discriminator"), lr=c.learning_rate, betas=betas),
            torch.optim.Adam(
                parameters(*CODE_NETWORKS),
                lr=c.conceal_learning_rate,
                betas=(0.9, c.beta2),
            ),
        ]

    # ------------------------------------------------------------------ steps
    def step(self, batch: dict[str, Tensor], phase: Phase, side: Side) -> dict[str, Tensor]:
        """One batch of either phase; ``batch`` has uint8 ``image`` ``(B, 3, S, S)`` and the embeddings ``(B, D)``."""
        faces, identity = self._inputs(batch)
        if phase.name == "disentangle":
            return self._disentangle(faces, identity)
        return self._conceal(faces, identity)

    def _inputs(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        faces = batch["image"].float().div(127.5).sub(1).contiguous(memory_format=torch.channels_last)
        return faces, functional.normalize(batch[self.embedding_field].float(), dim=-1)

    def _rotated(self, identity: Tensor, whole: int, purpose: str) -> Tensor:
        """Identities rotated toward random references by the angle of a random privacy level."""
        rng = self.generator_for(purpose)
        normal = self.share(torch.randn(whole, self.config.identity_dim, generator=rng))
        levels = torch.randint(PRIVACY_LEVELS, (whole,), generator=rng)
        degrees = self.share(torch.tensor([float(rotation_degrees(int(level))) for level in levels]))
        return functional.normalize(rotate(identity, self.model.identity_distribution(normal), degrees), dim=-1)

    def _targets(self, identity: Tensor) -> tuple[Tensor, Tensor, float]:
        """Target identity of each face, which faces got a foreign or rotated one, and how many a process on average.

        Sums are divided by that average, not by this process's own count, so that the gradient averaged over the
        processes is that of the whole batch however the two kinds fall on them.
        """
        whole = len(identity) * self.world_size
        place = torch.arange(whole)
        share = self.config.swap_share if self.batches_seen % self.config.swap_every == 0 else 0.0
        swapped = torch.floor((place + 1) * share) > torch.floor(place * share)
        rng = self.generator_for("targets")
        foreign = self._identities[torch.randint(len(self._identities), (whole,), generator=rng)]
        take_foreign = torch.rand(whole, generator=rng) < 0.5
        other = torch.where(
            self.share(take_foreign)[:, None], self.share(foreign), self._rotated(identity, whole, "rotation")
        )
        mine = self.share(swapped)
        return torch.where(mine[:, None], other, identity), mine, float(swapped.sum()) / self.world_size

    def _disentangle(self, faces: Tensor, identity: Tensor) -> dict[str, Tensor]:
        c = self.config
        optimizer_g, optimizer_d, _ = self._optimizers()
        target, swapped, n_swapped = self._targets(identity)
        faces = self.model.shrink(faces)
        own = ~swapped
        adversarial = c.lambda_adv > 0 and self.batches_seen >= c.adversarial_start
        logs: dict[str, Tensor] = {}

        with optimizer_g.toggle_model():
            result, maps = self.model.paint_small(faces, target)
            weight = 1.0  # of a mean over the crop, so that it is one over the part that the generator paints
            if c.masked:
                result = torch.lerp(faces, result, self.model.generator_mask)
                weight = 1 / float(self.model.generator_mask.mean())
            n_own = max(len(faces) - n_swapped, 1e-9)
            rec = losses.reconstruction_loss(result[own], faces[own]).sum() / n_own
            l1 = (result[own] - faces[own]).abs().flatten(1).mean(1).sum() / n_own
            total = weight * (c.lambda_rec * rec + c.lambda_l1 * l1)
            logs |= {"rec": rec, "l1": l1}
            if self.batches_seen % c.swap_every == 0:
                rng = self.generator_for("jitter")
                offsets = (torch.rand(len(faces) * self.world_size, 2, generator=rng) * 2 - 1) * c.recogniser_jitter
                embedding = self.recogniser(saved_file.jitter(result, self.share(offsets)))
                ident = losses.identity_loss(embedding, target).mean()
                again = self.model.attribute_encoder(self.model.seen(result, target))
                attr = losses.attribute_loss(again, [m.detach() for m in maps]).mean()
                total = total + c.lambda_id * ident + c.lambda_attr * attr
                logs |= {"cos_target": 1 - ident, "attr": attr}
                if bool(swapped.any()):
                    tone = losses.coarse_loss(result[swapped], faces[swapped]).sum() / n_swapped
                    total = total + c.lambda_coarse * tone
                    leak = functional.cosine_similarity(embedding[swapped].detach(), identity[swapped], dim=-1).mean()
                    logs |= {"cos_original": leak, "coarse": tone}
            if adversarial:
                adv = generator_loss(self.discriminator(result), c.adversarial)
                total = total + c.lambda_adv * adv
                logs["adv"] = adv
            optimizer_g.zero_grad()
            self.manual_backward(total)
            optimizer_g.step()

        if adversarial:
            with optimizer_d.toggle_model():
                loss_d = discriminator_loss(
                    self.discriminator(faces), self.discriminator(result.detach()), c.adversarial
                )
                optimizer_d.zero_grad()
                self.manual_backward(loss_d)
                optimizer_d.step()
            logs["discriminator"] = loss_d
        return {name: value.detach() for name, value in logs.items()}

    def _conceal(self, faces: Tensor, identity: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            cover = self.model.cover(faces, self._rotated(identity, len(faces) * self.world_size, "rotation"))
        return conceal_step(self, self.model, self.config, self._optimizers()[2], faces, cover)

    def _optimizers(self) -> Sequence[Any]:
        optimizers = self.optimizers()
        return cast(Sequence[Any], optimizers)

    # ------------------------------------------------------------------ what a run shows and ships
    @torch.no_grad()
    def sample_sheet(self, batch: dict[str, Tensor], averaged: Mapping[str, nn.Module]) -> list[tuple[str, Tensor]]:
        """Originals, what the attribute encoder sees, own identity, two keys; in phase 2 the code and the recovery."""
        faces, identity = self._inputs(batch)
        model = self.model
        live = {name: getattr(model, name) for name in averaged}
        try:
            for name, network in averaged.items():
                setattr(model, name, network)
            rng = torch.Generator().manual_seed(7)
            enlarged = functools.partial(functional.interpolate, size=faces.shape[-2:])
            normal = torch.randn(2, 1, self.config.identity_dim, generator=rng).to(faces.device)
            reference = [model.identity_distribution(n).expand_as(identity) for n in normal]
            rows = [
                ("original", faces),
                ("seen by the attribute encoder", enlarged(model.seen(model.shrink(faces), identity))),
                ("own identity", model.paint(faces, identity)),
            ]
            covers = [
                model.cover(faces, functional.normalize(rotate(identity, r, rotation_degrees(4)), dim=-1))
                for r in reference
            ]
            rows += [("key A", covers[0]), ("key B", covers[1])]
            if self.locate(self.batches_seen)[0].name == "conceal":
                rows += conceal_rows(model, faces, covers[0], rng)
            return rows
        finally:
            for name, network in live.items():
                setattr(model, name, network)

    def manifest_entries(self) -> dict[str, Any]:
        """What the checkpoint's manifest says about the method: configuration and preprocessing."""
        return {
            "config": dataclasses.asdict(self.config),
            "crop_size": self.config.size,
            "preprocessing": {"range": [-1, 1], "template": "facezoo five points at 128", "colour": "RGB"},
        }
