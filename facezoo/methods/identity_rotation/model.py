"""The networks of identity_rotation under one roof, without training and without keys."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from facezoo.faces.mask import face_mask
from facezoo.methods.identity_rotation.config import IdentityRotationConfig
from facezoo.methods.identity_rotation.networks import IdentityDistribution
from facezoo.nets.aad import AADGenerator, AttributeEncoder
from facezoo.nets.concealed_code import CELL, CodeEmbedder, CodeEncoder, CodeExtractor, Revealer
from facezoo.nets.linear_painter import LinearPainter, coarse_face
from facezoo.privacy.phase_code import CodeLayout

_ADDED = 0.5
"""Largest change that the generator makes to the linear guess, of the [-1, 1] range."""


class IdentityRotationNetworks(nn.Module):
    """Attribute encoder, generator, and the four networks of the concealed code."""

    mask: Tensor
    generator_mask: Tensor

    def __init__(self, config: IdentityRotationConfig) -> None:
        super().__init__()
        c = config
        self.config = c
        self.attribute_encoder = AttributeEncoder(c.attribute_widths)
        self.generator = AADGenerator(
            c.generator_widths,
            self.attribute_encoder.out_channels,
            c.identity_dim,
            c.start,
            constants=c.generator_constants,
        )
        self.painter: nn.Module = (
            LinearPainter(c.identity_dim, c.attribute_grid, c.generator_size) if c.linear_painter else nn.Identity()
        )
        self.identity_distribution = IdentityDistribution(c.identity_dim)
        width, blocks = c.conceal_width, c.conceal_blocks
        self.code_encoder = CodeEncoder(c.code_channels, width, max(1, blocks - 1))
        self.code_embedder = CodeEmbedder(c.code_channels, width, max(1, blocks - 1), c.residual_limit)
        self.code_extractor = CodeExtractor(c.code_channels, width, blocks)
        self.revealer = Revealer(c.code_channels, width, blocks)
        self.layout = CodeLayout(c.code_channels, c.size // CELL, "identity_rotation/code")
        small_mask = torch.from_numpy(face_mask(c.generator_size).copy())
        self.register_buffer("generator_mask", small_mask, persistent=False)
        self.register_buffer("mask", torch.from_numpy(face_mask(c.size).copy()), persistent=False)

    def networks(self) -> dict[str, nn.Module]:
        """The networks by the names of their files."""
        return {name: child for name, child in self.named_children() if not isinstance(child, nn.Identity)}

    def shrink(self, faces: Tensor) -> Tensor:
        """Crops ``(B, 3, S, S)`` at the generator's size."""
        scale = self.config.generator_scale
        return faces if scale == 1 else functional.avg_pool2d(faces, scale)

    def seen(self, small: Tensor, identity: Tensor) -> Tensor:
        """What the attribute encoder sees of faces at the generator's size that are to get ``identity``."""
        if isinstance(self.painter, LinearPainter):
            return torch.lerp(small, self.painter(identity, small), self.generator_mask)
        return coarse_face(small, self.generator_mask, self.config.attribute_grid)

    def paint_small(self, small: Tensor, identity: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The generator's picture at its own size, and the attribute maps (coarsest first) that it was painted from."""
        seen = self.seen(small, identity)
        maps: list[Tensor] = self.attribute_encoder(seen)
        picture: Tensor = self.generator(identity, maps).to(small.dtype)  # bfloat16 in mixed precision
        if isinstance(self.painter, LinearPainter):
            picture = (seen + _ADDED * picture).clamp(-1, 1)
        return picture, maps

    def paint(self, faces: Tensor, identity: Tensor) -> Tensor:
        """The generator's picture of ``identity`` with the attributes of ``faces``, both ``(B, 3, S, S)``."""
        picture, _ = self.paint_small(self.shrink(faces), identity)
        if self.config.generator_scale == 1:
            return picture
        return functional.interpolate(picture, size=faces.shape[-2:], mode="bilinear", align_corners=False)

    def cover(self, faces: Tensor, identity: Tensor) -> Tensor:
        """Faces with another identity: the generator's picture inside the face mask, the original outside it."""
        return torch.lerp(faces, self.paint(faces, identity), self.mask)
