"""The face painter as a source of people who do not exist: a seed in, an aligned face out."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from facezoo.methods.base import PeopleGenerator, check_person
from facezoo.methods.checkpoints import checkpoint_config, fill_networks
from facezoo.methods.face_painter.config import FacePainterTrainingConfig
from facezoo.nets.face_painter.painter import FacePainter, Person


class FacePainterPeople(PeopleGenerator):
    """The trained painter, given identity, traits and light by chance, on surroundings out of focus.

    Args:
        painter: averaged weights of the training.
    """

    name: ClassVar[str] = "face_painter"

    def __init__(self, painter: FacePainter) -> None:
        self.painter = painter.eval().requires_grad_(False)
        self.size = painter.config.size
        self.device = torch.device("cpu")

    @classmethod
    def from_checkpoint(cls, folder: Path, manifest: dict[str, Any]) -> Self:
        """Builds the painter of a checkpoint folder, strictly.

        Raises:
            CheckpointError: the configuration or the file does not fit.
        """
        painter = FacePainter(checkpoint_config(FacePainterTrainingConfig, folder, manifest))
        fill_networks(painter.networks(), folder, manifest)
        return cls(painter)

    def to(self, device: torch.device | str) -> Self:
        """Moves the networks. Returns the generator itself."""
        self.device = torch.device(device)
        self.painter.to(self.device)
        return self

    @torch.no_grad()
    def person(self, seed: int, truncation: float) -> Tensor:
        """See `PeopleGenerator.person`; everything is drawn from the seed, on the CPU."""
        check_person(seed, truncation)
        painter, c = self.painter, self.painter.config
        rng = torch.Generator().manual_seed(seed)
        sizes = (c.identity_dim, c.traits, c.details, painter.portrait.light_mean.numel())
        drawn = [torch.randn(1, size, generator=rng).to(self.device) * truncation for size in sizes]
        own, details = (value.clamp(-c.trait_limit, c.trait_limit) for value in drawn[1:3])
        person = Person(painter.identity_distribution(drawn[0]), own, details)
        light = painter.portrait.light(drawn[3])
        surroundings = painter.portrait.surroundings(person.identity, light, c.size)
        state = painter.observe(surroundings, painter.portrait.mesh[None], person.identity)
        picture = painter.paint(surroundings, painter.lit(state, light), person).result[0]
        return picture.float().clamp(-1, 1).cpu()
