"""Blocks of the DosGAN family that SDN and MfM share: content encoder, style joining, decoder, extractor, PatchGAN.

Sources: Lin et al., "Exploring Explicit Domain Supervision for Latent Space Disentanglement" (DosGAN, 2019), whose
residual networks SDN (Pan et al., Electronics 2024, section 3.1) and MfM (Pan et al., section 3.1) name as their base.
The papers' layer tables are lost; what is fixed is 128x128x3 -> 256x32x32 -> 128x128x3, a 1024-vector that is laid out
as 32x32, repeated over the channels and added, six stride-2 convolutions (and three residual layers in MfM) in the
extractor, and a PatchGAN with heads.

Passwords and attributes come in StarGAN's way, as constant planes, with one change: StarGAN puts the planes beside the
picture, in front of an instance normalisation, which subtracts every constant again (only the zero padding at the
border lets a trace through). Here the planes are added *behind* each normalisation, as a scale and a shift of every
channel (``ConditionedNorm``). A convolution of constant planes is exactly such a shift, so nothing else is lost.

Imports torch only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class ConditionedNorm(nn.Module):
    """Instance normalisation, then scale and shift: learned, plus a linear function of the condition.

    Args:
        channels: Channels of the input.
        condition_dim: Length of the condition vector; 0 for none.
        groups: Groups of channels that are normalised together; 0: each channel alone (instance normalisation, the
            papers'). Groups keep how bright one channel is against another, which a single picture's colour needs.
    """

    def __init__(self, channels: int, condition_dim: int, groups: int = 0) -> None:
        super().__init__()
        self.groups = groups or channels
        self.scale = nn.Parameter(torch.ones(channels))
        self.shift = nn.Parameter(torch.zeros(channels))
        self.condition = nn.Linear(condition_dim, 2 * channels, bias=False) if condition_dim else None
        if self.condition is not None:
            nn.init.normal_(self.condition.weight, std=0.3 / condition_dim**0.5)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """``(B, C, H, W)`` and ``(B, D)`` -> ``(B, C, H, W)``."""
        # In float32 also under bfloat16 autocast: the variance is a difference of large numbers.
        normal = functional.group_norm(x.float(), self.groups).to(x.dtype)
        if self.condition is None:
            return torch.addcmul(self.shift[:, None, None].to(x), normal, self.scale[:, None, None].to(x))
        scale, shift = self.condition(condition)[:, :, None, None].to(x.dtype).chunk(2, dim=1)
        scale, shift = scale + self.scale[:, None, None].to(x), shift + self.shift[:, None, None].to(x)
        return torch.addcmul(shift, normal, scale)


class ConditionedConv(nn.Module):
    """Convolution, conditioned normalisation, ReLU."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int, condition_dim: int, groups: int = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride, (kernel - stride + 1) // 2, bias=False)
        self.norm = ConditionedNorm(c_out, condition_dim, groups)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """``(B, C, H, W)`` -> ``(B, C', H / stride, W / stride)``."""
        return functional.relu(self.norm(self.conv(x), condition))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with conditioned normalisation, added to the input."""

    def __init__(self, channels: int, condition_dim: int, groups: int = 0) -> None:
        super().__init__()
        self.first = ConditionedConv(channels, channels, 3, 1, condition_dim, groups)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = ConditionedNorm(channels, condition_dim, groups)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """``(B, C, H, W)`` -> the same shape."""
        y: Tensor = self.norm(self.conv(self.first(x, condition)), condition)
        return x + y


class ContentEncoder(nn.Module):
    """Picture and condition -> content latent at a quarter of the side: SDN's identity network, MfM's content encoder.

    Args:
        width: Channels after the first convolution; the latent has four times as many (paper: 64 -> 256).
        blocks: Residual blocks at the latent's resolution.
        condition_dim: Length of the condition vector (password bits and attributes).
        cells: Start from 4x4-pixel cells (pixel-unshuffle and one 3x3 convolution) instead of the paper's 7x7
            convolution and two strided ones: the same latent for a fraction of the cost.
        extra_channels: Channels of a second input at the latent's resolution; 0 for none.
        groups: As in ``ConditionedNorm``.
    """

    def __init__(
        self, width: int, blocks: int, condition_dim: int, *, cells: bool, extra_channels: int = 0, groups: int = 0
    ) -> None:
        super().__init__()
        self.cells = cells
        latent = 4 * width
        stem = (
            [ConditionedConv(48, latent, 3, 1, condition_dim, groups)]
            if cells
            else [
                ConditionedConv(3, width, 7, 1, condition_dim, groups),
                ConditionedConv(width, 2 * width, 4, 2, condition_dim, groups),
                ConditionedConv(2 * width, latent, 4, 2, condition_dim, groups),
            ]
        )
        self.stem = nn.ModuleList(stem)
        self.beside = nn.Conv2d(extra_channels, latent, 3, padding=1) if extra_channels else None
        self.blocks = nn.ModuleList(ResidualBlock(latent, condition_dim, groups) for _ in range(blocks))

    def forward(self, faces: Tensor, condition: Tensor, extra: Tensor | None = None) -> Tensor:
        """``(B, 3, S, S)`` in [-1, 1], ``(B, D)``, ``(B, E, S/4, S/4)`` -> ``(B, 4 width, S/4, S/4)``."""
        x = functional.pixel_unshuffle(faces, 4) if self.cells else faces
        for layer in self.stem:
            x = layer(x, condition)
        if self.beside is not None and extra is not None:
            x = x + self.beside(extra)
        for block in self.blocks:
            x = block(x, condition)
        return x


def join_style(latent: Tensor, style: Tensor) -> Tensor:
    """The "vertical element-wise addition": the style vector as a plane, repeated over the channels and added.

    Args:
        latent: ``(B, C, H, W)``.
        style: ``(B, n * n)``, laid out as ``n x n`` row by row. Where n is not the latent's side (a decoder at another
            resolution than the encoder) each number covers a square of the latent.

    Returns:
        ``(B, C, H, W)``.

    Raises:
        ValueError: the style's length is not the square of a divisor of the latent's side.
    """
    side = round(style.shape[1] ** 0.5)
    if side * side != style.shape[1] or latent.shape[-1] % side:
        raise ValueError(f"a style of {style.shape[1]} numbers does not lie on a latent of side {latent.shape[-1]}")
    plane = style.view(-1, 1, side, side)
    if side != latent.shape[-1]:
        plane = functional.interpolate(plane, size=latent.shape[-2:], mode="nearest")
    return latent + plane.to(latent.dtype)


class PictureDecoder(nn.Module):
    """Joined latent -> picture: SDN's erasing and reveal networks, MfM's decoder.

    Args:
        width: As in ``ContentEncoder``.
        blocks: Residual blocks before the two up-sampling blocks.
        condition_dim: Length of the condition vector.
        cells: Sub-pixel convolutions and a 3x3 at the end instead of the paper's two transposed convolutions and a 7x7.
        groups: As in ``ConditionedNorm``.
    """

    def __init__(self, width: int, blocks: int, condition_dim: int, *, cells: bool, groups: int = 0) -> None:
        super().__init__()
        self.cells = cells
        latent = 4 * width
        self.blocks = nn.ModuleList(ResidualBlock(latent, condition_dim, groups) for _ in range(blocks))
        if cells:
            self.grow = nn.ModuleList([nn.Conv2d(latent, 4 * width, 3, padding=1)])
            self.norms = nn.ModuleList([ConditionedNorm(width, condition_dim, groups)])
            self.head = nn.Conv2d(width, 12, 3, padding=1)
        else:
            self.grow = nn.ModuleList(
                nn.ConvTranspose2d(c, c // 2, 4, stride=2, padding=1, bias=False) for c in (latent, 2 * width)
            )
            self.norms = nn.ModuleList(ConditionedNorm(c, condition_dim, groups) for c in (2 * width, width))
            self.head = nn.Conv2d(width, 3, 7, padding=3)
        with torch.no_grad():
            self.head.weight.mul_(0.1)  # a translator that starts from its input begins near it, without a pattern

    def forward(self, latent: Tensor, condition: Tensor) -> Tensor:
        """``(B, 4 width, S/4, S/4)`` and ``(B, D)`` -> ``(B, 3, S, S)`` before the final tanh."""
        x = latent
        for block in self.blocks:
            x = block(x, condition)
        for grow, norm in zip(self.grow, self.norms, strict=True):
            x = grow(x)
            if self.cells:
                x = functional.pixel_shuffle(x, 2)
            x = functional.relu(norm(x, condition))
        raw: Tensor = self.head(x)
        return functional.pixel_shuffle(raw, 2) if self.cells else raw


class Translator(nn.Module):
    """Content encoder, joining and decoder in a row: SDN's En and De, MfM's modifier.

    Args:
        width: As in ``ContentEncoder``.
        encoder_blocks: Residual blocks before the joining.
        decoder_blocks: Residual blocks behind it.
        condition_dim: Length of the condition vector.
        cells: As in ``ContentEncoder``.
        extra_channels: As in ``ContentEncoder``.
        groups: As in ``ConditionedNorm``.
        style_dim: Length of the style vector if it shall also act on the decoder's normalisations (ours: added as a
            plane alone, a number reaches only its own place of the picture and the convolutions around it); else 0.
    """

    def __init__(
        self,
        width: int,
        encoder_blocks: int,
        decoder_blocks: int,
        condition_dim: int,
        *,
        cells: bool,
        extra_channels: int = 0,
        groups: int = 0,
        style_dim: int = 0,
    ) -> None:
        super().__init__()
        self.modulated = style_dim > 0
        self.content = ContentEncoder(
            width, encoder_blocks, condition_dim, cells=cells, extra_channels=extra_channels, groups=groups
        )
        self.picture = PictureDecoder(width, decoder_blocks, condition_dim + style_dim, cells=cells, groups=groups)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compiles both halves, for it is they that are called: ``nn.Module.compile`` acts on the call alone."""
        self.content.compile(*args, **kwargs)
        self.picture.compile(*args, **kwargs)

    def latent(self, faces: Tensor, condition: Tensor, style: Tensor, extra: Tensor | None = None) -> Tensor:
        """The bottleneck behind the joining, ``(B, 4 width, S/4, S/4)``."""
        return join_style(self.content(faces, condition, extra), style)

    def draw(self, latent: Tensor, condition: Tensor, style: Tensor) -> Tensor:
        """Bottleneck -> picture before the final tanh."""
        if self.modulated:
            condition = torch.cat([condition, style], dim=1)
        raw: Tensor = self.picture(latent, condition)
        return raw

    def forward(self, faces: Tensor, condition: Tensor, style: Tensor, extra: Tensor | None = None) -> Tensor:
        """``(B, 3, S, S)``, ``(B, D)``, ``(B, n * n)`` -> ``(B, 3, S, S)`` before the final tanh."""
        return self.draw(self.latent(faces, condition, style, extra), condition, style)


class SourceBank(nn.Module):
    """Features that anonymized faces take on: each entry is mixed from many people, so that nobody's are lent.

    Args:
        entries: Number of entries.
        features: Length of a feature vector.
        people: People mixed into each entry, at least ten.

    Raises:
        ValueError: fewer than ten people, or fewer than two entries.
    """

    FEWEST_PEOPLE = 10

    entries: Tensor

    def __init__(self, entries: int, features: int, people: int) -> None:
        super().__init__()
        if people < self.FEWEST_PEOPLE:
            raise ValueError(f"a source is mixed from at least {self.FEWEST_PEOPLE} people, not {people}")
        if entries < 2:
            raise ValueError("a bank needs at least two entries")
        self.people = people
        self.register_buffer("entries", torch.zeros(entries, features))

    @torch.no_grad()
    def fit(self, features: Tensor, generator: torch.Generator) -> None:
        """Fills the bank from one feature vector of each person, ``(N, F)``; every entry from different rows.

        An entry is the mean of its people, moved away from the mean of all by the root of their number (a mean of n has
        1/n of the variance), so that it looks like a person to the networks; and as long as a person's vector is.

        Raises:
            ValueError: fewer people than one entry needs.
        """
        if len(features) < self.people:
            raise ValueError(f"{len(features)} people are too few: every source is mixed from {self.people}")
        centre, length = features.mean(0), features.norm(dim=-1).mean()
        for row in range(len(self.entries)):
            chosen = torch.randperm(len(features), generator=generator)[: self.people]
            moved = centre + self.people**0.5 * (features[chosen].mean(0) - centre)
            self.entries[row] = (functional.normalize(moved, dim=0) * length).to(self.entries)

    def draw(self, uniform: Tensor) -> Tensor:
        """Sources from uniform numbers in [0, 1): ``(B, 3)`` -> ``(B, F)``; two entries, mixed on the arc between."""
        count = len(self.entries)
        first = (uniform[:, 0] * count).long().clamp_max(count - 1)
        step = 1 + (uniform[:, 1] * (count - 1)).long().clamp_max(count - 2)
        second = (first + step) % count
        angle = (uniform[:, 2] * torch.pi / 2).to(self.entries)[:, None]
        mixed = torch.cos(angle) * self.entries[first] + torch.sin(angle) * self.entries[second]
        length = self.entries[first].norm(dim=-1, keepdim=True)
        return functional.normalize(mixed, dim=-1) * length


class FeatureExtractor(nn.Module):
    """Six stride-2 convolutions (and residual layers), one trunk, two heads: features and identity logits.

    SDN's EC (``F_ext`` and ``F_cls``); with three residual layers MfM's style classifier (``C_feat`` and ``C_id``).

    Args:
        size: Side of the pictures in pixels; a multiple of ``2 ** layers``.
        width: Channels after the first convolution; each next one has twice as many, at most ``max_width``.
        max_width: Most channels.
        layers: Stride-2 convolutions (paper: 6).
        residual: Residual layers behind them (MfM: 3).
        features: Length of the feature vector (paper: 1024 less the password's bits).
        classes: Number of identities.
    """

    def __init__(
        self, size: int, width: int, max_width: int, layers: int, residual: int, features: int, classes: int
    ) -> None:
        super().__init__()
        widths = [min(width * 2**i, max_width) for i in range(layers)]
        self.size = size
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 4, stride=2, padding=1) for a, b in zip([3, *widths[:-1]], widths, strict=True)
        )
        self.residual = nn.ModuleList(ResidualBlock(widths[-1], 0) for _ in range(residual))
        side = size // 2**layers
        self.feature_head = nn.Linear(widths[-1] * side * side, features)
        self.identity_head = nn.Linear(features, classes)

    def features(self, faces: Tensor) -> Tensor:
        """``F_ext``, by the call, which is what can be compiled; see `forward`."""
        found: Tensor = self(faces)
        return found

    def forward(self, faces: Tensor) -> Tensor:
        """``F_ext``: ``(B, 3, S, S)`` in [-1, 1] -> ``(B, F)``, each of about unit size; other sizes are resized."""
        if faces.shape[-1] != self.size:
            faces = functional.interpolate(faces, size=(self.size, self.size), mode="bilinear", antialias=True)
        x = faces
        for conv in self.convs:
            x = functional.leaky_relu(conv(x), 0.1)
        nothing = x.new_zeros(len(x), 0)
        for block in self.residual:
            x = block(x, nothing)
        raw: Tensor = self.feature_head(x.flatten(1))
        # A fixed length keeps the features of all training stages, and their mixtures, on one scale.
        return functional.normalize(raw.float(), dim=-1) * raw.shape[1] ** 0.5

    def classify(self, features: Tensor) -> Tensor:
        """``F_cls`` of features: ``(B, F)`` -> identity logits ``(B, K)``."""
        logits: Tensor = self.identity_head(features)
        return logits


class MultiTaskDiscriminator(nn.Module):
    """PatchGAN with heads: real or fake patches, identity features (``cls:id``), attributes (``cls:attr``).

    Args:
        size: Side of the pictures; others are resized.
        width: Channels after the first convolution; doubled to at most ``max_width``.
        max_width: Most channels.
        layers: Stride-2 convolutions.
        features: Length of the identity features.
        attribute_logits: Number of attribute values, all attributes together.
    """

    def __init__(
        self, size: int, width: int, max_width: int, layers: int, features: int, attribute_logits: int
    ) -> None:
        super().__init__()
        widths = [min(width * 2**i, max_width) for i in range(layers)]
        self.size = size
        self.convs = nn.ModuleList(
            nn.utils.parametrizations.spectral_norm(nn.Conv2d(a, b, 4, stride=2, padding=1))
            for a, b in zip([3, *widths[:-1]], widths, strict=True)
        )
        self.patch_head = nn.utils.parametrizations.spectral_norm(nn.Conv2d(widths[-1], 1, 3, padding=1))
        flat = widths[-1] * (size // 2**layers) ** 2
        self.identity_head = nn.Linear(flat, features)
        self.attribute_head = nn.Linear(flat, attribute_logits)

    def forward(self, faces: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Patch logits ``(B, 1, S', S')``, identity features ``(B, F)``, attribute logits ``(B, A)``."""
        if faces.shape[-1] != self.size:
            faces = functional.interpolate(faces, size=(self.size, self.size), mode="bilinear", antialias=True)
        x = faces
        for conv in self.convs:
            x = functional.leaky_relu(conv(x), 0.1)
        flat = x.flatten(1)
        return self.patch_head(x), self.identity_head(flat), self.attribute_head(flat)


class AttributeReader(nn.Module):
    """Reads attributes off a real picture: four stride-2 convolutions and a linear layer.

    Args:
        size: Side of the pictures that it sees; others are resized.
        width: Channels after the first convolution; doubled to at most ``max_width``.
        max_width: Most channels.
        attribute_logits: Number of attribute values, all attributes together.
    """

    LAYERS = 4

    def __init__(self, size: int, width: int, max_width: int, attribute_logits: int) -> None:
        super().__init__()
        widths = [min(width * 2**i, max_width) for i in range(self.LAYERS)]
        self.size = size
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 4, stride=2, padding=1) for a, b in zip([3, *widths[:-1]], widths, strict=True)
        )
        self.head = nn.Linear(widths[-1] * (size // 2**self.LAYERS) ** 2, attribute_logits)

    def forward(self, faces: Tensor) -> Tensor:
        """``(B, 3, S, S)`` in [-1, 1] -> logits ``(B, A)``."""
        if faces.shape[-1] != self.size:
            faces = functional.interpolate(faces, size=(self.size, self.size), mode="bilinear", antialias=True)
        x = faces
        for conv in self.convs:
            x = functional.leaky_relu(conv(x), 0.1)
        logits: Tensor = self.head(x.flatten(1))
        return logits


def multiply_adds(module: nn.Module, *inputs: Tensor) -> int:
    """Multiply-accumulate operations of one forward pass, counted by torch (half of its floating-point operations).

    Works on the meta device too, where nothing is computed.
    """
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        module(*inputs)
    return int(counter.get_total_flops()) // 2
