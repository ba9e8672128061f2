"""The networks of identity_rotation under one roof, without training and without keys."""

from __future__ import annotations

import torch
from torch import nn

from facezoo.concealment.code import add_code_networks
from facezoo.concealment.phase_code import CodeLayout
from facezoo.faces.mask import face_mask
from facezoo.methods.identity_rotation.config import IdentityRotationConfig
from facezoo.nets.disentangled import DisentangledPainter


class IdentityRotationNetworks(DisentangledPainter):
    """The painter of faces, and the four networks of the concealed code."""

    code_encoder: nn.Module
    code_embedder: nn.Module
    code_extractor: nn.Module
    revealer: nn.Module
    layout: CodeLayout

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
        add_code_networks(
            self, c.code_channels, c.conceal_width, c.conceal_blocks, c.residual_limit, c.size, "identity_rotation/code"
        )
