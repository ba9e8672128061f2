"""The networks of identity_rotation under one roof, without training and without keys."""

from __future__ import annotations

import torch

from facezoo.concealment.phase_code import CodeLayout
from facezoo.faces.mask import face_mask
from facezoo.methods.identity_rotation.config import IdentityRotationConfig
from facezoo.nets.concealed_code import CELL, CodeEmbedder, CodeEncoder, CodeExtractor, Revealer
from facezoo.nets.disentangled import DisentangledPainter


class IdentityRotationNetworks(DisentangledPainter):
    """The painter of faces, and the four networks of the concealed code."""

    def __init__(self, config: IdentityRotationConfig) -> None:
        c = config
        super().__init__(
            size=c.size,
            scale=c.generator_scale,
            identity_dim=c.identity_dim,
            generator_widths=c.generator_widths,
            attribute_widths=c.attribute_widths,
            attribute_grid=c.attribute_grid,
            linear_painter=c.linear_painter,
            constants=c.generator_constants,
            mask=torch.from_numpy(face_mask(c.size).copy()),
            generator_mask=torch.from_numpy(face_mask(c.generator_size).copy()),
        )
        self.config = c
        width, blocks = c.conceal_width, c.conceal_blocks
        self.code_encoder = CodeEncoder(c.code_channels, width, max(1, blocks - 1))
        self.code_embedder = CodeEmbedder(c.code_channels, width, max(1, blocks - 1), c.residual_limit)
        self.code_extractor = CodeExtractor(c.code_channels, width, blocks)
        self.revealer = Revealer(c.code_channels, width, blocks)
        self.layout = CodeLayout(c.code_channels, c.size // CELL, "identity_rotation/code")
