"""MfM's networks: the style classifier C of phase 1 and the one modifier M of phase 2.

The discriminator V is ``facezoo.nets.dosgan.MultiTaskDiscriminator`` and does not ship; a small ``attribute_reader``
does, because conflicts between a request and a face are found by looking at the face.
"""

from __future__ import annotations

import torch
from torch import Tensor

from facezoo.methods.attributed.model import AttributedNetworks
from facezoo.methods.mfm.config import MfMConfig
from facezoo.nets.dosgan import AttributeReader, Translator


class MfMNetworks(AttributedNetworks):
    """C and M under one roof, without training and without keys."""

    config: MfMConfig

    def __init__(self, config: MfMConfig) -> None:
        super().__init__(config, "mfm/code")
        c = config
        self.modifier = Translator(
            c.width,
            c.content_blocks,
            c.decoder_blocks,
            c.request_dim + 1,  # and one number for the direction
            cells=c.cells,
            groups=c.norm_groups,
            style_dim=c.style_dim if c.style_modulation else 0,
            extra_channels=2 * c.code_channels if c.keyed_code else 0,
        )
        self.modifier_style = self.new_style_map()
        self.attribute_reader = AttributeReader(
            c.discriminator_size, c.discriminator_width, 4 * c.discriminator_width, self.value_total
        )

    def content(self, faces: Tensor) -> Tensor:
        """Content latent of originals ``(B, 3, S, S)`` before the joining, under no password and no factors.

        The latent code c of (8) and (16): neither a source nor a password has a part in it.
        """
        condition = faces.new_zeros(len(faces), self.config.request_dim + 1)
        condition[:, -1] = -1.0  # the direction: hiding
        return self.modifier.content(self.original(faces), condition)

    def modify(
        self,
        faces: Tensor,
        bits: Tensor,
        attributes: Tensor,
        features: Tensor,
        *,
        recover: bool,
        phasors: Tensor | None = None,
        noise: Tensor | None = None,
        degrees: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """``M(I, C(F, A) ++ P)``: modified faces in [-1, 1] and the bottleneck.

        Args:
            faces: ``(B, 3, S, S)`` in [-1, 1]: originals, or saved anonymized faces.
            bits: Password, ``(B, N)`` of 0 and 1.
            attributes: ``(B, A)`` value indices, -1 where nothing is asked.
            features: Domain features of the source, ``(B, F)``.
            recover: The direction. The paper's network is told by nothing but its input; the one number more keeps it
                from guessing.
            phasors: Decrypted code, with ``keyed_code`` when recovering.
            noise: Added to the bottleneck.
            degrees: Edits in the latent space, ``(B, A)``.
        """
        direction = faces.new_full((len(faces), 1), 1.0 if recover else -1.0)
        condition = torch.cat([self.condition(bits, attributes), direction], dim=1)
        style = self.style(self.modifier_style, features, bits)
        hiding = bool(self.config.content_grid) and not recover
        seen = self.guess(faces, features, attributes, degrees) if hiding else faces
        latent = self.modifier.latent(seen, condition, style, phasors)
        if degrees is not None:
            latent = latent + self.latent_directions(degrees).to(latent.dtype)
        noisy = latent if noise is None else latent + noise.to(latent.dtype)
        if hiding:
            return self.paint_over(faces, seen, self.modifier.draw(noisy, condition, style)), latent
        return self.finish(self.modifier, noisy, condition, style, seen), latent
