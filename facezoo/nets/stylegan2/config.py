"""Size of a StyleGAN2: every number that the networks' shapes depend on. Imports no torch."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class StyleGAN2Config:
    """Shapes of generator and discriminator.

    Source: Karras et al., "Analyzing and improving the image quality of StyleGAN" (CVPR 2020), configuration F; its
    1024-pixel networks are ``StyleGAN2Config(resolution=1024)``.

    Attributes:
        resolution: Side of the pictures in pixels, a power of two of at least 8.
        z_dim: Length of the input latent z.
        w_dim: Length of an intermediate latent w.
        mapping_layers: Fully connected layers from z to w.
        mapping_learning_rate_multiplier: Learning rate of the mapping network as a part of the others'.
        channel_base: Channels at a resolution are ``channel_base / resolution``, at most ``channel_max``.
        channel_max: Most channels of a layer.
        minibatch_std_group: Pictures a group of the discriminator's minibatch standard deviation; smaller batches form
            one group.
    """

    resolution: int = 256
    z_dim: int = 512
    w_dim: int = 512
    mapping_layers: int = 8
    mapping_learning_rate_multiplier: float = 0.01
    channel_base: int = 32768
    channel_max: int = 512
    minibatch_std_group: int = 4

    def __post_init__(self) -> None:
        """Refuse shapes that cannot be built.

        Raises:
            ValueError: a resolution that is no power of two, or a number below 1.
        """
        if self.resolution < 8 or self.resolution & (self.resolution - 1):
            raise ValueError(f"resolution must be a power of two of at least 8, not {self.resolution}")
        for name in ("z_dim", "w_dim", "mapping_layers", "channel_max", "minibatch_std_group"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.channel_base < self.resolution:
            raise ValueError(f"channel_base {self.channel_base} leaves no channel at {self.resolution} pixels")
        if not self.mapping_learning_rate_multiplier > 0:
            raise ValueError(
                f"mapping_learning_rate_multiplier must be above 0, not {self.mapping_learning_rate_multiplier}"
            )

    def channels(self, resolution: int) -> int:
        """Channels of the feature maps at a resolution."""
        return min(self.channel_base // resolution, self.channel_max)

    @property
    def resolutions(self) -> tuple[int, ...]:
        """4, 8, ... up to ``resolution``."""
        return tuple(2**level for level in range(2, self.resolution.bit_length()))

    @property
    def num_ws(self) -> int:
        """Latents w that one picture takes, ``2 log2(resolution) - 2``: 14 at 256, 18 at 1024."""
        return 2 * len(self.resolutions)
