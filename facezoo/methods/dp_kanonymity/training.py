"""Training of dp_kanonymity: phase 1 learns to see attributes, phase 2 to edit them (book, chapter 4; STGAN).

Phase 2 freezes the classifier, which fills in labels that the set lacks, and alternates: five batches for the
discriminator, then one for the editor. The target of a face is the attributes of another face of the batch (STGAN).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from facezoo.core.configuration import build_strict
from facezoo.core.phases import Phase, PhasedModule, Side
from facezoo.frozen import fill_backbone, read_state
from facezoo.methods.dp_kanonymity import losses
from facezoo.methods.dp_kanonymity.config import DPKAnonymityConfig
from facezoo.methods.dp_kanonymity.model import DPKAnonymityNetworks
from facezoo.methods.dp_kanonymity.networks import EditDiscriminator


class DPKAnonymityTraining(PhasedModule):
    """LightningModule of both phases.

    Args:
        config: Plain dict of ``DPKAnonymityConfig``.
        seed: Seed of weights and of every random draw.

    Raises:
        InputError: Unknown key or wrong type in ``config``.
        CheckpointError: ``config`` names a timm model that cannot be made, or weights that are not those of it.
    """

    def __init__(self, config: dict[str, Any], seed: int = 0) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.config = build_strict(DPKAnonymityConfig, config, "config")
        self.seed = seed
        c = self.config
        self.data_fields = tuple(sorted({rule.field for rule in c.rules}))
        self.picture_size = c.size
        torch.manual_seed(seed)
        self.model = DPKAnonymityNetworks(c)
        if c.classifier_weights:
            path = Path(c.classifier_weights)
            fill_backbone(cast(nn.Module, self.model.classifier.backbone), read_state(path), path)
        self.shipped = tuple(self.model.networks())
        self.discriminator = EditDiscriminator(c.discriminator_widths, c.size, c.discriminator_hidden, len(c.rules))
        self.phases = (
            Phase("classify", c.classify_batches, ("classifier",)),
            Phase(
                "edit",
                c.edit_batches,
                ("editor", "discriminator"),
                discriminator_batches=c.discriminator_batches,
                judges=("discriminator",),
            ),
        )

    def networks(self) -> Mapping[str, nn.Module]:
        """All networks by name."""
        return {**self.model.networks(), "discriminator": self.discriminator}

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Adam for the classifier (with weight decay), the editor and the discriminator."""
        c, nets = self.config, self.networks()
        betas = (c.beta1, c.beta2)
        return [
            torch.optim.Adam(
                nets["classifier"].parameters(), lr=c.classifier_learning_rate, weight_decay=c.classifier_weight_decay
            ),
            torch.optim.Adam(nets["editor"].parameters(), lr=c.learning_rate, betas=betas),
            torch.optim.Adam(nets["discriminator"].parameters(), lr=c.learning_rate, betas=betas),
        ]

    # ------------------------------------------------------------------ steps
    def step(self, batch: dict[str, Tensor], phase: Phase, side: Side) -> dict[str, Tensor]:
        """One batch of either phase; ``batch`` has uint8 ``image`` ``(B, 3, S, S)`` and the label fields."""
        faces = batch["image"].float().div(127.5).sub(1).contiguous(memory_format=torch.channels_last)
        target, known = self.labels(batch)
        if phase.name == "classify":
            return self._classify(faces, target, known)
        with torch.no_grad():
            guessed = (self.model.classifier(faces)[1] > 0).to(target)
        own = torch.where(known > 0, target, guessed)
        return self._discriminate(faces, own) if side == "discriminator" else self._edit(faces, own)

    def labels(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Attributes of 0 and 1, and 1 where they are known: ``(B, c)`` each, float32."""
        values, known = [], []
        for rule in self.config.rules:
            label = batch[rule.field]
            if rule.column is not None:
                label = label[:, rule.column]
            values.append(label < rule.value if rule.below else label == rule.value)
            known.append(label >= 0)
        return torch.stack(values, 1).float(), torch.stack(known, 1).float()

    def _classify(self, faces: Tensor, target: Tensor, known: Tensor) -> dict[str, Tensor]:
        c, optimizer = self.config, self._optimizers()[0]
        position = self.locate(self.batches_seen)[1]
        left = max(0.0, 1 - position / max(1, c.classify_batches))
        for group in optimizer.param_groups:
            group["lr"] = c.classifier_learning_rate * left**c.classifier_decay
        with optimizer.toggle_model():
            _, logits = self.model.classifier(faces)
            loss = losses.multilabel_loss(logits, target, known, self._whole(known).sum() / self.world_size)
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        right = (((logits > 0) == (target > 0.5)) * known).sum() / known.sum().clamp(min=1)
        return {"loss": loss.detach(), "accuracy": right.detach()}

    def _wanted(self, own: Tensor) -> Tensor:
        """Attributes that the faces are to get: those of another face of the whole batch."""
        whole = self._whole(own)
        order = torch.randperm(len(whole), generator=self.generator_for("targets"))
        return whole[self.share(order)]

    def _whole(self, mine: Tensor) -> Tensor:
        """The rows of all processes, in the order that ``share`` takes them apart; no gradient passes."""
        if self.world_size == 1:
            return mine
        gathered = cast(Tensor, self.all_gather(mine.detach()))
        return gathered.transpose(0, 1).flatten(0, 1)

    def _discriminate(self, faces: Tensor, own: Tensor) -> dict[str, Tensor]:
        c, optimizer = self.config, self._optimizers()[2]
        with torch.no_grad():
            edited = self.model.editor(faces, self._wanted(own) - own)
        mix = self.share(torch.rand(len(faces) * self.world_size, generator=self.generator_for("penalty")))
        with optimizer.toggle_model():
            real, logits = self.discriminator(faces)
            fake, _ = self.discriminator(edited)
            penalty = losses.gradient_penalty(lambda x: self.discriminator(x)[0], faces, edited, mix)
            attribute = losses.attribute_loss(logits, own)
            total = losses.discriminator_loss(real, fake, penalty, attribute, c.lambda_gradient, c.lambda_d_attribute)
            optimizer.zero_grad()
            self.manual_backward(total)
            optimizer.step()
        distance = (real.mean() - fake.mean()).detach()
        return {"distance": distance, "penalty": penalty.detach(), "attribute_d": attribute.detach()}

    def _edit(self, faces: Tensor, own: Tensor) -> dict[str, Tensor]:
        c, optimizer = self.config, self._optimizers()[1]
        wanted = self._wanted(own)
        with optimizer.toggle_model():
            fake, logits = self.discriminator(self.model.editor(faces, wanted - own))
            attribute = losses.attribute_loss(logits, wanted)
            rec = losses.reconstruction_loss(faces, self.model.editor(faces, torch.zeros_like(own)))
            total = losses.editor_loss(fake, attribute, rec, c.lambda_g_attribute, c.lambda_rec)
            optimizer.zero_grad()
            self.manual_backward(total)
            optimizer.step()
        return {"adv": -fake.mean().detach(), "attribute_g": attribute.detach(), "rec": rec.detach()}

    def _optimizers(self) -> Sequence[Any]:
        return cast(Sequence[Any], self.optimizers())

    # ------------------------------------------------------------------ what a run shows and ships
    @torch.no_grad()
    def sample_sheet(self, batch: dict[str, Tensor], averaged: Mapping[str, nn.Module]) -> list[tuple[str, Tensor]]:
        """Originals, the edit that changes nothing, and each attribute turned over."""
        faces = batch["image"].float().div(127.5).sub(1)
        classifier, editor = averaged["classifier"], averaged["editor"]
        own = (classifier(faces)[1] > 0).float()
        rows = [("original", faces), ("unchanged", editor(faces, torch.zeros_like(own)))]
        for index, rule in enumerate(self.config.rules):
            change = torch.zeros_like(own)
            change[:, index] = 1 - 2 * own[:, index]
            rows.append((f"not {rule.name}" if own[0, index] else rule.name, editor(faces, change)))
        return rows

    def manifest_entries(self) -> dict[str, Any]:
        """What the checkpoint's manifest says about the method: configuration and preprocessing."""
        return {
            "config": dataclasses.asdict(dataclasses.replace(self.config, classifier_weights="")),  # where it began
            "crop_size": self.config.size,
            "preprocessing": {"range": [-1, 1], "template": "facezoo five points at 128", "colour": "RGB"},
        }
