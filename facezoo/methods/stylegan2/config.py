"""Configuration of a StyleGAN2 training: every number of the networks, losses and phases, with its source."""

from __future__ import annotations

import dataclasses
from typing import Literal

from facezoo.nets.stylegan2.config import StyleGAN2Config


@dataclasses.dataclass(frozen=True)
class StyleGAN2TrainingConfig:
    """Plain numbers only, so that checkpoints load with ``weights_only=True``.

    "Paper" is Karras et al. 2020, "Analyzing and improving the image quality of StyleGAN"; "ADA" is Karras et al. 2020,
    "Training generative adversarial networks with limited data".

    Attributes:
        resolution: Side of the pictures in pixels, a power of two.
        z_dim: Length of z (paper: 512).
        w_dim: Length of w (paper: 512).
        mapping_layers: Layers from z to w (paper: 8).
        mapping_learning_rate_multiplier: .01 (paper).
        channel_base: Channels at a resolution are this divided by it (paper: 32768; ADA's 256-pixel runs: 16384).
        channel_max: Most channels (paper: 512).
        minibatch_std_group: Pictures a group of the minibatch standard deviation (paper: 4).

        growing: Smaller sides to begin with, e.g. [16, 32] (ours: progressive growing as in Karras et al. 2018, which
            the paper leaves out; on a CPU it sees several times as many pictures in the same time).
        growing_batches: Batches at each of them.
        fade_batches: Batches over which a new resolution is faded in.
        training_batches: Batches at full resolution.

        learning_rate: Adam, .002 (paper), .0025 (ADA).
        beta1: Adam, 0 (paper).
        beta2: Adam, .99 (paper).
        style_mixing: Part of the pictures that take two latents (paper: .9).
        w_mean_decay: Decay a batch of the mean w (paper's code: .995).
        r1_gamma: Weight of R1 at full resolution; smaller sides use it times (side / resolution)^2, because a gradient
            by pixel grows as pixels get fewer (paper: 10 at 1024; ADA: .0002 resolution^2 / batch).
        r1_every: Batches between R1 penalties (paper: 16).
        path_weight: Weight of the path-length penalty (paper: 2).
        path_every: Batches between path-length penalties (paper: 8 in the text of section 3.1, 4 in its code).
        path_decay: Decay of the mean path length (paper: .99).
        path_share: Part of the batch that the path-length penalty draws (paper's code: half).
        mirror: Whether real pictures are mirrored by chance.
        sampling_noise: Noise maps of the people that are drawn after training: "const", the stored ones (paper's
            code), or "none", where training was too short for the noise to have become fine detail.
        ada_target: Sign of D(real) that adaptive augmentation holds (ADA: .6); 0 leaves augmentation out.
        ada_pictures: Pictures after which the strength may go from 0 to 1 (ADA: 500k).
        ada_every: Batches between changes of the strength (ADA: 4).
    """

    resolution: int = 256
    z_dim: int = 512
    w_dim: int = 512
    mapping_layers: int = 8
    mapping_learning_rate_multiplier: float = 0.01
    channel_base: int = 32768
    channel_max: int = 512
    minibatch_std_group: int = 4

    growing: tuple[int, ...] = ()
    growing_batches: tuple[int, ...] = ()
    fade_batches: int = 0
    training_batches: int = 800_000

    learning_rate: float = 2e-3
    beta1: float = 0.0
    beta2: float = 0.99
    style_mixing: float = 0.9
    w_mean_decay: float = 0.995
    r1_gamma: float = 10.0
    r1_every: int = 16
    path_weight: float = 2.0
    path_every: int = 8
    path_decay: float = 0.99
    path_share: float = 0.5
    mirror: bool = True
    sampling_noise: Literal["const", "none"] = "const"
    ada_target: float = 0.0
    ada_pictures: int = 500_000
    ada_every: int = 4

    def __post_init__(self) -> None:
        """Checks what would otherwise fail late.

        Raises:
            ValueError: numbers that do not fit together.
        """
        sides = (*self.growing, self.resolution)
        if self.network.resolutions[1:][-len(sides) :] != sides:
            raise ValueError(
                f"growing must double up to the resolution, e.g. [{self.resolution // 4}, {self.resolution // 2}], "
                f"not {list(self.growing)}"
            )
        if len(self.growing) != len(self.growing_batches):
            raise ValueError(f"{len(self.growing)} sizes in growing but {len(self.growing_batches)} in growing_batches")
        for name in ("r1_every", "path_every", "ada_every", "ada_pictures"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("style_mixing", "path_share", "ada_target", "w_mean_decay", "path_decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be from 0 to 1, not {getattr(self, name)}")

    @property
    def network(self) -> StyleGAN2Config:
        """Sizes of the networks."""
        names = [field.name for field in dataclasses.fields(StyleGAN2Config)]
        return StyleGAN2Config(**{name: getattr(self, name) for name in names})
