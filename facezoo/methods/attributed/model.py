"""What the networks of SDN and MfM have in common: conditions, style, what is seen, the concealed code, the bank."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from facezoo.concealment.phase_code import CodeLayout
from facezoo.data.attributes import ATTRIBUTES, value_count
from facezoo.faces.mask import face_mask
from facezoo.methods.attributed.config import AttributedConfig
from facezoo.methods.attributed.losses import gaussian_log_likelihood
from facezoo.nets.concealed_code import CELL, CodeEmbedder, CodeEncoder, CodeExtractor
from facezoo.nets.disentangled import DisentangledPainter
from facezoo.nets.dosgan import FeatureExtractor, SourceBank, Translator
from facezoo.nets.linear_painter import LinearPainter, coarse_face

_SKIP_LIMIT = 0.97
"""The input skip goes through atanh, which is infinite at 1."""


_PAINTER_SIDE = 64
"""The linear guess has no more pixels a side: it is soft anyway, and its matrix most of a small checkpoint."""

_POOL = 4
"""The latent code c of a face is its content latent, averaged to this many places a side."""


class LatentDirections(nn.Module):
    """Directions in the bottleneck, one a (binary) attribute; zero until they are fitted (latent space manipulation).

    Args:
        attributes: Their names.
        shape: Of the bottleneck, (C, H, W).
    """

    directions: Tensor

    def __init__(self, attributes: tuple[str, ...], shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.attributes = attributes
        self.register_buffer("directions", torch.zeros(len(attributes), *shape))

    def forward(self, degrees: Tensor) -> Tensor:
        """Shift of the bottleneck for degrees ``(B, A)``: ``(B, C, H, W)``."""
        return torch.einsum("ba,achw->bchw", degrees.to(self.directions), self.directions)


class RequestShift(nn.Module):
    """What a request changes on average: mean differences of features and of the coarse content, a row a value.

    Ridge regression of both on the labels of all attributes at once, so that a smile is not also a woman's because more
    of the smiling faces are. Zero until it is fitted.

    Args:
        values: Values of all attributes together.
        feature_dim: Length of the features.
        grid: Pixels across the coarse content.
    """

    features: Tensor
    content: Tensor

    def __init__(self, values: int, feature_dim: int, grid: int) -> None:
        super().__init__()
        self.register_buffer("features", torch.zeros(values, feature_dim))
        self.register_buffer("content", torch.zeros(values, 3, grid, grid))

    @torch.no_grad()
    def fit(self, asked: Tensor, features: Tensor, content: Tensor, ridge: float = 1e-3) -> None:
        """Solves the regression.

        Args:
            asked: Labels as one-hot numbers ``(N, V)``, zeros where unknown.
            features: ``(N, F)``.
            content: ``(N, 3, grid, grid)``.
            ridge: Weight of the penalty for each picture; it also decides between values that always go together.
        """
        x = (asked - asked.mean(0)).double()
        y = torch.cat([features, content.flatten(1)], dim=1).double()
        gram = x.T @ x + ridge * len(x) * torch.eye(x.shape[1], dtype=torch.float64)
        solution = torch.linalg.solve(gram, x.T @ (y - y.mean(0)))
        self.features.copy_(solution[:, : features.shape[1]])
        self.content.copy_(solution[:, features.shape[1] :].view_as(self.content))

    def forward(self, asked: Tensor) -> tuple[Tensor, Tensor]:
        """One-hot requests ``(B, V)`` -> shifts ``(B, F)`` and ``(B, 3, grid, grid)``."""
        return asked @ self.features, torch.einsum("bv,vchw->bchw", asked, self.content)


class AttributedNetworks(nn.Module):
    """Base of ``SDNNetworks`` and ``MfMNetworks``."""

    mask: Tensor
    generator_mask: Tensor

    def __init__(self, config: AttributedConfig, purpose: str) -> None:
        super().__init__()
        c = config
        self.config = c
        self.extractor: nn.Module = (
            FeatureExtractor(
                c.extractor_size,
                c.extractor_width,
                c.extractor_max_width,
                c.extractor_layers,
                c.extractor_residual,
                c.style_features,
                c.identity_classes,
            )
            if c.extractor == "learned"
            else nn.Identity()
        )
        self.source_bank = SourceBank(c.bank_entries, c.feature_dim, c.bank_people)
        self.painter: nn.Module = (
            LinearPainter(
                c.feature_dim + c.request_dim - c.password_bits, c.content_grid, min(c.generator_size, _PAINTER_SIDE)
            )
            if c.linear_painter
            else nn.Identity()
        )
        # The mask is one and the same; the painter holds it at its own size.
        self.face_painter: nn.Module = (
            DisentangledPainter(
                size=c.size,
                scale=c.size // c.painter_size,
                identity_dim=c.feature_dim,
                generator_widths=c.painter_generator_widths,
                attribute_widths=c.painter_attribute_widths,
                attribute_grid=c.content_grid,
                linear_painter=True,
                constants=True,
                mask=torch.from_numpy(face_mask(c.size).copy()),
                generator_mask=torch.from_numpy(face_mask(c.painter_size).copy()),
            )
            if c.face_painter
            else nn.Identity()
        )
        self.face_painter.requires_grad_(False)
        self.request_shift: nn.Module = (
            RequestShift(self.value_total, c.feature_dim, c.content_grid) if c.request_shift else nn.Identity()
        )
        if c.keyed_code:
            self.code_encoder = CodeEncoder(c.code_channels, c.code_width, max(1, c.code_blocks - 1))
            self.code_embedder = CodeEmbedder(
                c.code_channels, c.code_width, max(1, c.code_blocks - 1), c.residual_limit
            )
            self.code_extractor = CodeExtractor(c.code_channels, c.code_width, c.code_blocks)
            self.layout = CodeLayout(c.code_channels, c.size // CELL, purpose)
        side = c.generator_size // 4
        self.latent_directions = LatentDirections(c.attributes, (4 * c.width, side, side))
        self.register_buffer("generator_mask", torch.from_numpy(face_mask(c.generator_size).copy()), persistent=False)
        self.register_buffer("mask", torch.from_numpy(face_mask(c.size).copy()), persistent=False)

    def networks(self) -> dict[str, nn.Module]:
        """The networks by the names of their files; a face painter's have the names of where they come from."""
        own = {name: child for name, child in self.named_children() if not isinstance(child, nn.Identity)}
        own.pop("face_painter", None)
        return {**own, **self.painting()}

    def painting(self) -> dict[str, nn.Module]:
        """The face painter's networks: trained before, frozen here; empty without one."""
        if not isinstance(self.face_painter, DisentangledPainter):
            return {}
        networks = self.face_painter.networks()
        networks.pop("identity_distribution")  # sources come from the bank
        return networks

    def new_style_map(self) -> nn.Module:
        """Features -> the features' part of the style vector; nothing to do for the learned extractor's."""
        c = self.config
        return nn.Linear(c.feature_dim, c.style_features) if c.extractor == "recogniser" else nn.Identity()

    @property
    def value_total(self) -> int:
        """Values of all attributes together."""
        return value_count(self.config.attributes)

    # ------------------------------------------------------------------ inputs
    def one_hot(self, attributes: Tensor) -> Tensor:
        """Attribute indices ``(B, A)``, -1 for nothing asked -> ``(B, V)``: a one for each value that is asked for."""
        columns = [
            functional.one_hot(attributes[:, i] + 1, len(ATTRIBUTES[name].values) + 1)[:, 1:].float()
            for i, name in enumerate(self.config.attributes)
        ]
        return torch.cat(columns, dim=1) if columns else attributes.new_zeros(len(attributes), 0).float()

    def condition(self, bits: Tensor, attributes: Tensor) -> Tensor:
        """Password bits ``(B, N)`` of 0 and 1, attributes ``(B, A)`` -> condition ``(B, D)``, bits as -1 and 1."""
        return torch.cat([2 * bits.float() - 1, self.one_hot(attributes)], dim=1)

    @staticmethod
    def style(style_map: nn.Module, features: Tensor, bits: Tensor) -> Tensor:
        """Features ++ password bits: ``(B, F)``, ``(B, N)`` -> ``(B, n * n)``."""
        mapped: Tensor = style_map(features)
        return torch.cat([mapped.float(), 2 * bits.float() - 1], dim=1)

    def shrink(self, faces: Tensor) -> Tensor:
        """Crops at the generator's size."""
        scale = self.config.generator_scale
        return faces if scale == 1 else functional.avg_pool2d(faces, scale)

    def guess(self, small: Tensor, features: Tensor, attributes: Tensor, degrees: Tensor | None = None) -> Tensor:
        """What the anonymizing network sees of faces at its size.

        See ``content_grid``, ``linear_painter``, ``painter_generator_widths`` and ``request_feature_strength``. Degrees
        ``(B, A)`` of edits move what is painted from as requests do, by parts: +2 is as far as asking for the second
        value of an attribute, -2 as far as asking for the first.
        """
        c = self.config
        if isinstance(self.request_shift, RequestShift):
            asked = self.one_hot(attributes)
            if degrees is not None:
                sizes = torch.tensor([len(ATTRIBUTES[name].values) for name in c.attributes], device=asked.device)
                second = self.one_hot(torch.ones_like(attributes))
                asked = asked + second * degrees.repeat_interleave(sizes, dim=1) / 2
            moved, content = self.request_shift(asked)
            features = features + c.request_feature_strength * moved.to(features)
            shift = functional.interpolate(content, size=small.shape[-2:], mode="bilinear", align_corners=False)
            changed = small + c.request_content_strength * self.generator_mask * shift.to(small)
            small = changed.clamp(-1, 1)
        if isinstance(self.face_painter, DisentangledPainter):
            side = c.painter_size
            given = small if side == small.shape[-1] else functional.adaptive_avg_pool2d(small, side)
            painted, _ = self.face_painter.paint_small(given, functional.normalize(features, dim=-1))
            if side != small.shape[-1]:
                painted = functional.interpolate(painted, size=small.shape[-2:], mode="bilinear", align_corners=False)
            return torch.lerp(small, painted, self.generator_mask)
        if isinstance(self.painter, LinearPainter):
            painted = self.painter(self.painter_vector(features, attributes), small)
            if painted.shape[-1] != small.shape[-1]:
                painted = functional.interpolate(painted, size=small.shape[-2:], mode="bilinear", align_corners=False)
            return torch.lerp(small, painted, self.generator_mask)
        return coarse_face(small, self.generator_mask, self.config.content_grid)

    def original(self, faces: Tensor) -> Tensor:
        """What the latent code c of originals ``(B, 3, S, S)`` is read from: the face at the network's size.

        With ``content_grid`` as coarse as the anonymizing network may know it: telling more is what that is against.
        """
        small = self.shrink(faces)
        grid = self.config.content_grid
        return coarse_face(small, self.generator_mask, grid) if grid else small

    def painter_vector(self, features: Tensor, attributes: Tensor) -> Tensor:
        """Features and attributes as the linear painter takes them; the one-hot numbers at the features' size."""
        scale = features.shape[1] ** -0.5
        return torch.cat([functional.normalize(features, dim=-1), scale * self.one_hot(attributes)], dim=1)

    def finish(self, translator: Translator, latent: Tensor, condition: Tensor, style: Tensor, base: Tensor) -> Tensor:
        """Bottleneck -> picture in [-1, 1], without ``content_grid``; ``base`` is the translator's input."""
        raw = translator.draw(latent, condition, style).to(base.dtype)
        if self.config.input_skip:
            raw = raw + torch.atanh(base.clamp(-_SKIP_LIMIT, _SKIP_LIMIT))
        return torch.tanh(raw)

    def paint_over(self, faces: Tensor, small_guess: Tensor, raw: Tensor) -> Tensor:
        """The anonymizing network's change on the full crop, with ``content_grid``.

        Outside the face the picture keeps its own pixels, inside it starts from the (enlarged) guess.
        """
        c = self.config
        change = c.added * torch.tanh(raw.to(faces.dtype))
        guess = small_guess
        if c.generator_scale > 1:
            change, guess = (
                functional.interpolate(x, size=faces.shape[-2:], mode="bilinear", align_corners=False)
                for x in (change, guess)
            )
        return (torch.lerp(faces, guess, self.mask) + change).clamp(-1, 1)


class Posterior(nn.Module):
    """Variational distributions of the two games, used in training only.

    ``q(c|picture)`` is a diagonal Gaussian whose mean a small convolutional network reads from the picture: one network
    for anonymized pictures, another for recovered ones. ``p(.|c)`` of the bottleneck is a Gaussian of learned variance
    about it.

    Args:
        width: First width of a network.
        size: Side of the pictures.
        code_channels: Channels of the latent code c.
        bottleneck_channels: Channels of the bottleneck.
        features: Length of a source's features.
    """

    def __init__(self, width: int, size: int, code_channels: int, bottleneck_channels: int, features: int) -> None:
        super().__init__()
        self.anonymized = self._reader(width, size, code_channels)
        self.recovered = self._reader(width, size, code_channels)
        self.code_log_variance = nn.Parameter(torch.zeros(code_channels, 1, 1))
        self.recovered_log_variance = nn.Parameter(torch.zeros(code_channels, 1, 1))
        self.source_log_variance = nn.Parameter(torch.tensor(-math.log(features)))  # of a unit vector's numbers
        self.bottleneck_log_variance = nn.Parameter(torch.full((bottleneck_channels, 1, 1), -4.0))

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compiles both readers, for it is they that are called; see ``nn.Module.compile``."""
        self.anonymized.compile(*args, **kwargs)
        self.recovered.compile(*args, **kwargs)

    @staticmethod
    def _reader(width: int, size: int, code_channels: int) -> nn.Module:
        """Pictures ``(B, 3, S, S)`` -> mean of q ``(B, C, 4, 4)``."""
        layers: list[nn.Module] = []
        c_in, c_out, side = 3, width, size
        while side > 2 * _POOL:
            layers += [nn.Conv2d(c_in, c_out, 4, stride=2, padding=1), nn.LeakyReLU(0.1)]
            c_in, c_out, side = c_out, min(2 * c_out, 8 * width), side // 2
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(_POOL), nn.Conv2d(c_in, code_channels, 1))

    def told_by_anonymized(self, code: Tensor, picture: Tensor) -> Tensor:
        """``log q(c|Z_nid)`` in nats: SDN (17), (18); MfM (12). ``(B, C, 4, 4)``, ``(B, 3, S, S)`` -> scalar."""
        return gaussian_log_likelihood(code, self.anonymized(picture), self.code_log_variance)

    def told_by_recovered(self, code: Tensor, picture: Tensor) -> Tensor:
        """``log q(c|Z_id)`` in nats: the bound of (21) and MfM's (18), for the right password. -> scalar."""
        return gaussian_log_likelihood(code, self.recovered(picture), self.recovered_log_variance)

    def told_of_source(self, source: Tensor, seen: Tensor) -> Tensor:
        """``log q`` in nats of a source's features ``(B, F)`` in those of a wrongly recovered face: -> scalar.

        SDN (21), MfM (18). Both at unit length, so that the term's scale is one and the same for every F.
        """
        wanted, found = (functional.normalize(features.float(), dim=-1) for features in (source, seen))
        return gaussian_log_likelihood(wanted, found, self.source_log_variance)

    @staticmethod
    def code(latent: Tensor) -> Tensor:
        """The latent code c of a face from its content latent ``(B, C, H, W)``, as a constant: ``(B, C, 4, 4)``.

        Brought to zero mean and unit variance over the picture's channels and places, so that the bound cannot be
        raised by shrinking the code.
        """
        pooled = functional.adaptive_avg_pool2d(latent.detach().float(), _POOL)
        return functional.layer_norm(pooled, list(pooled.shape[1:]))
