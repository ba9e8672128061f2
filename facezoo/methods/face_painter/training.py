"""Training of the face painter: closed form first, then the refiner against discriminators on frozen features.

Half of each batch is painted with its own identity and traits and compared with the picture; the other half gets a
foreign identity and drawn traits, and has to look like a photograph all the same. The linear guess already tells who it
is and where everything lies, so a few hundred batches are enough to look real; more make it good.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from facezoo.core import saved_file
from facezoo.core.batches import PackedBatches
from facezoo.core.configuration import build_strict
from facezoo.core.phases import Phase, PhasedModule, Side
from facezoo.data.embeddings import ensure_embeddings
from facezoo.data.meshes import MESH_FIELD, ensure_meshes
from facezoo.errors import CheckpointError, InputError
from facezoo.frozen import FeatureNetwork, load_features
from facezoo.methods.face_painter import losses
from facezoo.methods.face_painter.config import FacePainterTrainingConfig
from facezoo.nets.face_painter.painter import FacePainter, Painting, Person, Turns
from facezoo.nets.face_painter.shape import several_first
from facezoo.nets.patch_discriminator import PatchDiscriminator, discriminator_loss, generator_loss
from facezoo.nets.projected_discriminator import ProjectedDiscriminator
from facezoo.recognition import load_recogniser

_FIT_BATCH = 64


class FacePainterTraining(PhasedModule):
    """LightningModule of the refiner's training.

    Args:
        config: plain dict of ``FacePainterTrainingConfig``.
        seed: seed of weights and of every random draw.

    Raises:
        InputError: unknown key or wrong type in ``config``.
        CheckpointError: the frozen feature network's weights are not found.
    """

    def __init__(self, config: dict[str, Any], seed: int = 0) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.config = build_strict(FacePainterTrainingConfig, config, "config")
        self.seed = seed
        c = self.config
        self.embedding_field = f"embedding_{c.recogniser}"
        self.data_fields = (self.embedding_field, MESH_FIELD)
        self.picture_size = c.size
        torch.manual_seed(seed)
        self.model = FacePainter(c)
        self.shipped = tuple(self.model.networks())
        self._features = [load_features(c.features)]  # in a list: frozen, and no part of the checkpoint
        self.heads = ProjectedDiscriminator(self._features[0].channels, c.head_width)
        self.pixels = PatchDiscriminator(c.pixel_width, c.pixel_layers)
        self.phases = (Phase("refine", c.refine_batches, ("refiner", "heads", "pixels")),)
        self._recognisers: dict[str, nn.Module] = {}
        self._identities = torch.zeros(0, c.identity_dim)

    def networks(self) -> Mapping[str, nn.Module]:
        """All networks by name."""
        return {**self.model.networks(), "heads": self.heads, "pixels": self.pixels}

    def prepare_data_files(self, paths: Sequence[Path], device: torch.device) -> None:
        """Adds meshes and identity vectors to the packed files, computed once.

        Raises:
            CheckpointError: LPIPS is wanted and the feature network is not that of LPIPS; told now and not hours later.
        """
        if self.config.lambda_lpips > 0 and self.features.lpips_heads is None:
            raise CheckpointError(
                f"features {self.config.features!r} have no LPIPS weights: set config.lambda_lpips=0, or use alexnet"
            )
        for path in paths:
            ensure_meshes(path, device)
            ensure_embeddings(path, self.config.recogniser, self.recogniser(self.config.recogniser), device)

    def setup_data(self, data: PackedBatches) -> None:
        """Takes the identity vectors and fits what has a closed form.

        Raises:
            InputError: too few pictures, or too few people with several, for as many directions as are wanted.
        """
        self._identities = functional.normalize(torch.from_numpy(data.all(self.embedding_field)), dim=-1)
        person, start = [], 0
        for faces in data.sets:
            identity = torch.from_numpy(np.asarray(faces.array("identity"), dtype=np.int64))
            person.append(identity + start)
            start += int(identity.max()) + 1
        everyone = torch.cat(person)
        chosen = several_first(everyone, self.config.fit_faces)
        self._check_enough(everyone[chosen])

        def batches() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
            for part in tqdm(torch.split(chosen, _FIT_BATCH), desc="linear painter", unit="batch", dynamic_ncols=True):
                yield self._inputs(data.__getitems__(part.tolist()))

        meshes = torch.from_numpy(data.all(MESH_FIELD))[chosen]
        self.model.fit(batches(), meshes, everyone[chosen], self._identities[chosen])

    def _check_enough(self, person: Tensor) -> None:
        """Refuses sets in which there are fewer pictures than directions to be found.

        Raises:
            InputError: see there.
        """
        c = self.config
        traced = person[several_first(person, c.trait_faces)]
        _, count = torch.unique(traced, return_counts=True)
        several, wanted = int(count[count > 1].sum()), max(c.expressions, c.varying)
        if several < wanted:
            raise InputError(
                f"the set has {several} pictures of people with several pictures; expression needs {wanted}: add "
                "people with two or more, or lower config.expressions and config.varying"
            )
        most = max(c.shape_traits, c.texture_traits, c.details)
        if len(traced) < most:
            raise InputError(
                f"the set has {len(traced)} pictures, fewer than {most} directions: add pictures, or lower "
                "config.shape_traits, config.texture_traits and config.details"
            )

    @property
    def features(self) -> FeatureNetwork:
        """The frozen feature network, on the module's device."""
        network = self._features[0]
        if network.device != self.device:
            network.to(self.device)
        return network

    def recogniser(self, name: str) -> nn.Module:
        """A frozen recogniser, loaded at its first use."""
        if name not in self._recognisers:
            self._recognisers[name] = load_recogniser(name)
        return self._recognisers[name].to(self.device)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """One Adam for the refiner, one for both discriminators."""
        c = self.config
        groups = (
            list(self.model.refiner.parameters()),
            [p for network in (self.heads, self.pixels) for p in network.parameters()],
        )
        return [torch.optim.Adam(group, lr=c.learning_rate, betas=(c.beta1, c.beta2)) for group in groups]

    # ------------------------------------------------------------------ steps
    def _inputs(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Faces in [-1, 1], meshes and unit identity vectors."""
        faces = batch["image"].float().div(127.5).sub(1).contiguous(memory_format=torch.channels_last)
        return faces, batch[MESH_FIELD].float(), functional.normalize(batch[self.embedding_field].float(), dim=-1)

    def strangers(self, person: Person) -> Person:
        """Somebody else for each face of the batch: all turned in the same planes, by the same angle."""
        c = self.config
        rng = self.generator_for("strangers")
        degrees = c.least_degrees + (c.most_degrees - c.least_degrees) * float(torch.rand((), generator=rng))
        turns = Turns.drawn(lambda _, n: torch.randn(n, n, generator=rng), c, degrees)
        return self.model.stranger(person, turns.to(person.identity.device))

    def step(self, batch: dict[str, Tensor], phase: Phase, side: Side) -> dict[str, Tensor]:
        """One batch: the refiner, then the discriminators."""
        faces, mesh, identity = self._inputs(batch)
        own = max(1, round(len(faces) * (1 - self.config.swap_share)))
        painting, wanted = self._guess(faces, mesh, identity, own)
        optimizer_g, optimizer_d = cast(Sequence[Any], self.optimizers())
        with optimizer_g.toggle_model():
            result = self.model.refiner(painting.guess, painting.places, painting.mask, painting.condition)
            total, logs, seen, real = self._refiner_loss(faces, result, painting, wanted, own)
            optimizer_g.zero_grad()
            self.manual_backward(total)
            optimizer_g.step()
        with optimizer_d.toggle_model():
            loss = self._discriminator_loss(faces, result.detach(), real, [f.detach() for f in seen])
            optimizer_d.zero_grad()
            self.manual_backward(loss)
            optimizer_d.step()
        logs["discriminator"] = loss
        return {name: value.detach() for name, value in logs.items()}

    @torch.no_grad()
    def _guess(self, faces: Tensor, mesh: Tensor, identity: Tensor, own: int) -> tuple[Painting, Tensor]:
        """Linear guesses: the first ``own`` rows of themselves, the others of somebody else. Also who was wanted."""
        with torch.autocast(faces.device.type, enabled=False):
            state = self.model.observe(faces, mesh, identity)
            stranger, person = self.strangers(state.person), state.person
            # A recovery knows the details and a closed-form one does not: both are seen.
            rng = self.generator_for("details")
            known = self.share(torch.rand(len(faces) * self.world_size, generator=rng) < 0.5).float()[:, None]
            wanted = Person(
                torch.cat([person.identity[:own], stranger.identity[own:]]),
                torch.cat([person.own[:own], stranger.own[own:]]),
                torch.cat([person.details[:own] * known[:own], stranger.details[own:]]),
            )
            return self.model.paint(faces, state, wanted, refine=False), wanted.identity

    def _refiner_loss(
        self, faces: Tensor, result: Tensor, painting: Painting, wanted: Tensor, own: int
    ) -> tuple[Tensor, dict[str, Tensor], list[Tensor], list[Tensor]]:
        c, network = self.config, self.features
        seen = network(result)
        with torch.no_grad():
            real = network(faces)
        l1 = losses.masked_l1(result[:own], faces[:own], painting.mask[:own])
        total = c.lambda_l1 * l1
        logs = {"l1": l1}
        if c.lambda_lpips > 0 and network.lpips_heads is not None:
            lpips = losses.features_distance([f[:own] for f in seen], [f[:own] for f in real], network.lpips_heads)
            total = total + c.lambda_lpips * lpips.mean()
            logs["lpips"] = lpips.mean()
        tone = losses.tone_distance(result[own:], painting.guess[own:], painting.mask[own:], c.tone_grid)
        kept = losses.masked_l1(result[own:], painting.guess[own:], painting.kept[own:])
        weight = c.lambda_adversarial * min(1.0, self.batches_seen / max(1, c.adversarial_warmup))
        adversarial = generator_loss([*self.heads(seen), self.pixels(result)], "hinge")
        total = total + c.lambda_tone * tone + c.lambda_kept * kept + weight * adversarial
        logs |= {"tone": tone, "kept": kept, "adversarial": adversarial}
        if c.lambda_identity + c.lambda_other > 0 and self.batches_seen % c.identity_every == 0:
            term, more = self._identity_loss(faces, result, wanted, own)
            total, logs = total + term, logs | more
        return total, logs, seen, real

    def _identity_loss(
        self, faces: Tensor, result: Tensor, wanted: Tensor, own: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What the recognisers say of some of the foreign rows."""
        c = self.config
        rows = slice(own, own + c.identity_rows)
        offsets = torch.rand(len(faces) * self.world_size, 2, generator=self.generator_for("jitter")) * 2 - 1
        moved = saved_file.jitter(result[rows], self.share(offsets)[rows] * c.recogniser_jitter)
        embedding = self.recogniser(c.recogniser)(moved)
        near = (1 - functional.cosine_similarity(embedding, wanted[rows], dim=-1)).mean()
        total, logs = c.lambda_identity * near, {"cos_wanted": 1 - near}
        for name in c.others if c.lambda_other > 0 else ():
            network = self.recogniser(name)
            with torch.no_grad():
                original = network(faces[rows])
            far = losses.other_person(network(moved), original, c.other_margin)
            total = total + c.lambda_other * far / len(c.others)
            logs[f"{name}_original"] = far
        return total, logs

    def _discriminator_loss(self, faces: Tensor, result: Tensor, real: list[Tensor], seen: list[Tensor]) -> Tensor:
        return discriminator_loss(
            [*self.heads(real), self.pixels(faces)], [*self.heads(seen), self.pixels(result)], "hinge"
        )

    # ------------------------------------------------------------------ what a run shows and ships
    @torch.no_grad()
    def sample_sheet(self, batch: dict[str, Tensor], averaged: Mapping[str, nn.Module]) -> list[tuple[str, Tensor]]:
        """Originals, linear guess and refined picture of the own identity, three strangers, mask."""
        faces, mesh, identity = self._inputs(batch)
        model, live = self.model, self.model.refiner
        model.refiner = cast(Any, averaged["refiner"])
        try:
            state = model.observe(faces, mesh, identity)
            itself = model.paint(faces, state, state.person)
            rows = [("original", faces), ("linear guess", itself.guess), ("own identity", itself.result)]
            rng = torch.Generator().manual_seed(7)
            for name in "ABC":
                turns = Turns.drawn(lambda _, n: torch.randn(n, n, generator=rng), self.config, 95.0)
                stranger = model.stranger(state.person, turns.to(faces.device))
                rows.append((f"stranger {name}", model.paint(faces, state, stranger).result))
            return [*rows, ("painted", itself.mask.expand(-1, 3, -1, -1) * 2 - 1)]
        finally:
            model.refiner = live

    def manifest_entries(self) -> dict[str, Any]:
        """What the checkpoint's manifest says about the method: configuration and preprocessing."""
        return {
            "config": dataclasses.asdict(self.config),
            "crop_size": self.config.size,
            "preprocessing": {"range": [-1, 1], "template": "facezoo five points at 128", "colour": "RGB"},
        }
