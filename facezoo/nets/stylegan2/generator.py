"""Mapping network, synthesis network and the generator made of both (Karras et al. 2020, figure 2d and 7b)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from facezoo.nets.stylegan2.config import StyleGAN2Config
from facezoo.nets.stylegan2.layers import EqualLinear, StyledLayer, ToRGB
from facezoo.nets.stylegan2.resampling import upsample

Noise = Literal["const", "random", "none"]


class MappingNetwork(nn.Module):
    """z to w: normalisation of the second moment, then fully connected layers with leaky ReLU.

    Args:
        z_dim: Length of z.
        w_dim: Length of w.
        layers: Fully connected layers.
        learning_rate_multiplier: Relative speed of these layers (.01 in the paper).
    """

    def __init__(self, z_dim: int, w_dim: int, layers: int, learning_rate_multiplier: float = 0.01) -> None:
        super().__init__()
        self.z_dim, self.w_dim = z_dim, w_dim
        self.layers = nn.ModuleList(
            EqualLinear(
                z_dim if i == 0 else w_dim,
                w_dim,
                activate=True,
                learning_rate_multiplier=learning_rate_multiplier,
            )
            for i in range(layers)
        )

    def forward(self, z: Tensor) -> Tensor:
        """``(B, z_dim)`` -> ``(B, w_dim)``."""
        w = z * torch.rsqrt(z.square().mean(1, keepdim=True) + 1e-8)
        for layer in self.layers:
            w = layer(w)
        return w


class SynthesisBlock(nn.Module):
    """One resolution: a layer that enlarges (not at 4 x 4), a second layer, and the colours that it adds.

    Args:
        config: Sizes.
        resolution: Side of this block's maps.
    """

    def __init__(self, config: StyleGAN2Config, resolution: int) -> None:
        super().__init__()
        channels = config.channels(resolution)
        self.resolution = resolution
        self.first = (
            StyledLayer(config.channels(resolution // 2), channels, config.w_dim, resolution, up=True)
            if resolution > 4
            else None
        )
        self.second = StyledLayer(channels, channels, config.w_dim, resolution)
        self.to_rgb = ToRGB(channels, config.w_dim)

    @property
    def styled_layers(self) -> list[StyledLayer]:
        """The layers that take noise, in order."""
        return [self.second] if self.first is None else [self.first, self.second]

    def forward(
        self, maps: Tensor, picture: Tensor | None, ws: Tensor, noise: Sequence[Tensor | None], fade: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """One resolution.

        Args:
            maps: ``(B, C, R / 2, R / 2)``, or ``(B, C, 4, 4)`` at the start.
            picture: ``(B, 3, R / 2, R / 2)``; None at the start.
            ws: ``(B, styled layers + 1, w_dim)``.
            noise: One map or None a styled layer.
            fade: Factor of the colours that this block adds; the colours of the start are always whole.

        Returns:
            Maps ``(B, C', R, R)`` and the picture ``(B, 3, R, R)`` so far.
        """
        for i, layer in enumerate(self.styled_layers):
            maps = layer(maps, ws[:, i], noise[i])
        colours = self.to_rgb(maps, ws[:, -1])
        if picture is None:
            return maps, colours
        return maps, upsample(picture) + (colours if fade == 1.0 else colours * fade)


class SynthesisNetwork(nn.Module):
    """w of each layer to a picture, with skip connections of the colours.

    Each block's colour layer shares its w with the next block's first layer, as in the paper's code: a picture takes
    one w a styled layer, and one for the last colours.

    Args:
        config: Sizes.
    """

    def __init__(self, config: StyleGAN2Config) -> None:
        super().__init__()
        self.config = config
        self.constant = nn.Parameter(torch.randn(1, config.channels(4), 4, 4))
        self.blocks = nn.ModuleList(SynthesisBlock(config, resolution) for resolution in config.resolutions)

    @property
    def styled_layers(self) -> list[StyledLayer]:
        """Every layer that takes noise, coarsest first; their number is ``num_ws - 1``."""
        return [layer for block in self.blocks for layer in block.styled_layers]  # type: ignore[union-attr]

    @property
    def noise_sizes(self) -> list[int]:
        """Side of each styled layer's noise map."""
        return [layer.noise_const.shape[-1] for layer in self.styled_layers]

    def forward(
        self,
        ws: Tensor,
        noise: Noise | Sequence[Tensor] = "const",
        generator: torch.Generator | None = None,
        resolution: int | None = None,
        fade: float = 1.0,
    ) -> Tensor:
        """Draws pictures.

        Args:
            ws: ``(B, num_ws, w_dim)``.
            noise: "const" uses the maps stored in the layers, "random" draws new ones, "none" leaves noise out; or one
                map ``(B, 1, R, R)`` a styled layer.
            generator: Source of "random"; torch's global one when None.
            resolution: Stop at this side and return the smaller picture (training that grows); all blocks when None.
            fade: Part of the last block's colours that is added, 0 to 1 (training that grows).

        Returns:
            ``(B, 3, R, R)``, about in [-1, 1]; not clipped.

        Raises:
            ValueError: ``ws`` or the list of noise maps does not fit the network.
        """
        if ws.ndim != 3 or ws.shape[1:] != (self.config.num_ws, self.config.w_dim):
            raise ValueError(
                f"ws must be (B, {self.config.num_ws}, {self.config.w_dim}) at {self.config.resolution} pixels, "
                f"not {tuple(ws.shape)}"
            )
        end = self.config.resolution if resolution is None else resolution
        if end not in self.config.resolutions:
            raise ValueError(f"there is no block of {end} pixels; there are {self.config.resolutions}")
        layers = [layer for layer in self.styled_layers if layer.noise_const.shape[-1] <= end]
        maps_of_noise = self._noise(len(ws), noise, generator, layers)
        maps = self.constant.expand(len(ws), -1, -1, -1)
        picture: Tensor | None = None
        first = 0
        for size, block in zip(self.config.resolutions, self.blocks, strict=True):
            if size > end:
                break
            count = len(block.styled_layers)  # type: ignore[arg-type]
            taken, drawn = ws[:, first : first + count + 1], maps_of_noise[first : first + count]
            maps, picture = block(maps, picture, taken, drawn, fade if size == end else 1.0)
            first += count
        assert picture is not None  # noqa: S101 - there is always a block, of 4 x 4
        return picture

    def _noise(
        self,
        count: int,
        noise: str | Sequence[Tensor],
        generator: torch.Generator | None,
        layers: Sequence[StyledLayer],
    ) -> Sequence[Tensor | None]:
        if noise == "const":
            return [layer.noise_const for layer in layers]
        if noise == "none":
            return [None] * len(layers)
        if noise == "random":
            # Drawn where the generator lives and then moved, so that a seed gives one picture on every device.
            place = self.constant.device if generator is None else generator.device
            sizes = [layer.noise_const.shape[-1] for layer in layers]
            return [torch.randn(count, 1, r, r, generator=generator, device=place).to(self.constant) for r in sizes]
        if isinstance(noise, str):
            raise ValueError(f"noise must be 'const', 'random', 'none' or maps, not {noise!r}")
        if len(noise) < len(layers):
            raise ValueError(f"{len(layers)} layers take noise, but {len(noise)} maps were given")
        return noise


class Generator(nn.Module):
    """z to pictures.

    Args:
        config: Sizes.

    Attributes:
        mapping: z -> w.
        synthesis: ws -> picture.
        w_mean: Moving average of w in training, ``(w_dim,)``: the centre of truncation.
    """

    w_mean: Tensor

    def __init__(self, config: StyleGAN2Config) -> None:
        super().__init__()
        self.config = config
        self.mapping = MappingNetwork(
            config.z_dim, config.w_dim, config.mapping_layers, config.mapping_learning_rate_multiplier
        )
        self.synthesis = SynthesisNetwork(config)
        self.register_buffer("w_mean", torch.zeros(config.w_dim))

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compiles mapping and synthesis, which training calls apart; see ``nn.Module.compile``."""
        self.mapping.compile(*args, **kwargs)
        self.synthesis.compile(*args, **kwargs)

    def w(self, z: Tensor, truncation: float = 1.0, cutoff: int | None = None) -> Tensor:
        """Latents of every layer.

        Args:
            z: ``(B, z_dim)``, normal.
            truncation: Factor of the distance from ``w_mean``: below 1 less variety and fewer odd pictures.
            cutoff: Truncate only this many layers, coarsest first; all when None.

        Returns:
            ``(B, num_ws, w_dim)``.
        """
        ws = self.mapping(z)[:, None].expand(-1, self.config.num_ws, -1)
        if truncation == 1.0:
            return ws
        end = self.config.num_ws if cutoff is None else cutoff
        return torch.cat([torch.lerp(self.w_mean, ws[:, :end], truncation), ws[:, end:]], 1)

    def forward(
        self,
        z: Tensor,
        truncation: float = 1.0,
        cutoff: int | None = None,
        noise: Noise | Sequence[Tensor] = "const",
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """``(B, z_dim)`` -> ``(B, 3, R, R)`` about in [-1, 1]; see `w` and `SynthesisNetwork.forward`."""
        pictures: Tensor = self.synthesis(self.w(z, truncation, cutoff), noise, generator)
        return pictures

    @torch.no_grad()
    def move_w_mean(self, mean: Tensor, decay: float) -> None:
        """Moves ``w_mean`` towards the mean of a batch's w, ``(w_dim,)``."""
        self.w_mean.copy_(torch.lerp(mean.to(self.w_mean), self.w_mean, decay))
