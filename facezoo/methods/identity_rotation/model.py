"""The networks of identity_rotation under one roof, without training and without keys."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from facezoo.faces.mask import face_mask
from facezoo.methods.identity_rotation.config import IdentityRotationConfig
from facezoo.methods.identity_rotation.networks import (
    CELL,
    CodeEmbedder,
    CodeEncoder,
    CodeExtractor,
    IdentityDistribution,
    Revealer,
    coarse_face,
)
from facezoo.methods.identity_rotation.phase_code import CodeLayout
from facezoo.nets.aad import AADGenerator, AttributeEncoder


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
        self.identity_distribution = IdentityDistribution(c.identity_dim)
        width, blocks = c.conceal_width, c.conceal_blocks
        self.code_encoder = CodeEncoder(c.code_channels, width, max(1, blocks - 1))
        self.code_embedder = CodeEmbedder(c.code_channels, width, max(1, blocks - 1), c.residual_limit)
        self.code_extractor = CodeExtractor(c.code_channels, width, blocks)
        self.revealer = Revealer(c.code_channels, width, blocks)
        self.layout = CodeLayout(c.code_channels, c.size // CELL)
        small_mask = torch.from_numpy(face_mask(c.generator_size).copy())
        self.register_buffer("generator_mask", small_mask, persistent=False)
        self.register_buffer("mask", torch.from_numpy(face_mask(c.size).copy()), persistent=False)

    def networks(self) -> dict[str, nn.Module]:
        """The networks by the names of their files."""
        return dict(self.named_children())

    def shrink(self, faces: Tensor) -> Tensor:
        """Crops ``(B, 3, S, S)`` at the generator's size."""
        scale = self.config.generator_scale
        return faces if scale == 1 else functional.avg_pool2d(faces, scale)

    def coarse(self, small: Tensor) -> Tensor:
        """What the attribute encoder sees of faces at the generator's size."""
        return coarse_face(small, self.generator_mask, self.config.attribute_grid)

    def attributes(self, small: Tensor) -> list[Tensor]:
        """Attribute maps of faces at the generator's size, in [-1, 1]; coarsest first."""
        maps: list[Tensor] = self.attribute_encoder(self.coarse(small))
        return maps

    def paint(self, faces: Tensor, identity: Tensor) -> Tensor:
        """The generator's picture of ``identity`` with the attributes of ``faces``, both ``(B, 3, S, S)``."""
        picture: Tensor = self.generator(identity, self.attributes(self.shrink(faces)))
        if self.config.generator_scale == 1:
            return picture
        return functional.interpolate(picture, size=faces.shape[-2:], mode="bilinear", align_corners=False)

    def cover(self, faces: Tensor, identity: Tensor) -> Tensor:
        """Faces with another identity: the generator's picture inside the face mask, the original outside it."""
        return torch.lerp(faces, self.paint(faces, identity), self.mask)
