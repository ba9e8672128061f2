"""StyleGAN2 at use: a seed in, the aligned face of somebody who does not exist out."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from facezoo.methods.base import PeopleGenerator, check_person
from facezoo.methods.checkpoints import checkpoint_config, fill_networks
from facezoo.methods.stylegan2.config import StyleGAN2TrainingConfig
from facezoo.nets.stylegan2 import Generator
from facezoo.nets.stylegan2.generator import Noise


class StyleGAN2(PeopleGenerator):
    """The trained generator.

    Args:
        network: Averaged weights of the training.
        noise: Noise maps of every picture, "const" or "none".
    """

    name: ClassVar[str] = "stylegan2"

    def __init__(self, network: Generator, noise: Noise = "const") -> None:
        self.noise = noise
        self.network = network.eval().requires_grad_(False)
        self.size = network.config.resolution
        self.device = torch.device("cpu")

    @classmethod
    def from_checkpoint(cls, folder: Path, manifest: dict[str, Any]) -> Self:
        """Builds the generator of a checkpoint folder, strictly.

        Raises:
            CheckpointError: the configuration or the file does not fit.
        """
        config = checkpoint_config(StyleGAN2TrainingConfig, folder, manifest)
        network = Generator(config.network)
        fill_networks({"generator": network}, folder, manifest)
        return cls(network, config.sampling_noise)

    def to(self, device: torch.device | str) -> Self:
        """Moves the network. Returns the generator itself."""
        self.device = torch.device(device)
        self.network.to(self.device)
        return self

    @torch.no_grad()
    def person(self, seed: int, truncation: float) -> Tensor:
        """See `PeopleGenerator.person`; z comes from the seed, drawn on the CPU."""
        check_person(seed, truncation)
        z = torch.randn(1, self.network.config.z_dim, generator=torch.Generator().manual_seed(seed))
        picture = self.network(z.to(self.device), truncation, noise=self.noise)[0]
        return picture.float().clamp(-1, 1).cpu()
