"""SDN's networks: EC (extractor), En (identity and erasing network), De (identity and reveal network).

The discriminator D is ``facezoo.nets.dosgan.MultiTaskDiscriminator``; it belongs to the training only.
"""

from __future__ import annotations

from torch import Tensor, nn

from facezoo.methods.attributed.model import AttributedNetworks
from facezoo.methods.sdn.config import SDNConfig
from facezoo.nets.dosgan import Translator


class SDNNetworks(AttributedNetworks):
    """EC, En and De under one roof, without training and without keys."""

    config: SDNConfig

    def __init__(self, config: SDNConfig) -> None:
        super().__init__(config, "sdn/code")
        c = config
        style_dim = c.style_dim if c.style_modulation else 0
        self.encoder = Translator(
            c.width,
            c.identity_blocks,
            c.erasing_blocks,
            c.request_dim,
            cells=c.cells,
            groups=c.norm_groups,
            style_dim=style_dim,
        )
        self.decoder = Translator(
            c.reveal_width,
            c.reveal_identity_blocks,
            c.reveal_blocks,
            c.request_dim,
            cells=c.reveal_cells,
            groups=c.norm_groups,
            style_dim=style_dim,
            extra_channels=2 * c.code_channels if c.keyed_code else 0,
        )
        self.encoder_style = self.new_style_map()
        self.decoder_style = self.new_style_map()

    def en(
        self, faces: Tensor, bits: Tensor, attributes: Tensor, features: Tensor, degrees: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """``En(I, P, F)``: anonymized faces in [-1, 1] and the bottleneck.

        Args:
            faces: ``(B, 3, S, S)`` in [-1, 1].
            bits: Password, ``(B, N)`` of 0 and 1.
            attributes: ``(B, A)`` value indices, -1 where nothing is asked.
            features: ``F_ext`` of the source, ``(B, F)``.
            degrees: Edits in the latent space, ``(B, A)``.
        """
        condition = self.condition(bits, attributes)
        style = self.style(self.encoder_style, features, bits)
        small = self.shrink(faces)
        seen = self.guess(small, features, attributes, degrees) if self.config.content_grid else small
        latent = self.encoder.latent(seen, condition, style)
        if degrees is not None:
            latent = latent + self.latent_directions(degrees).to(latent.dtype)
        if self.config.content_grid:
            return self.paint_over(faces, seen, self.encoder.draw(latent, condition, style)), latent
        return self.finish(self.encoder, latent, condition, style, seen), latent

    def content(self, faces: Tensor) -> Tensor:
        """Content latent of originals ``(B, 3, S, S)`` before the joining, under no password and no request.

        What (16) and (19) call the latent code of the original: neither a source nor a password has a part in it.
        """
        return self.encoder.content(self.original(faces), faces.new_zeros(len(faces), self.config.request_dim))

    def de(
        self,
        saved: Tensor,
        bits: Tensor,
        attributes: Tensor,
        features: Tensor,
        phasors: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """``De(Q, P, F)``: recovered faces in [-1, 1] and the bottleneck; ``noise`` is added to the bottleneck."""
        condition = self.condition(bits, attributes)
        style = self.style(self.decoder_style, features, bits)
        latent = self.decoder.latent(saved, condition, style, phasors)
        noisy = latent if noise is None else latent + noise.to(latent.dtype)
        return self.finish(self.decoder, noisy, condition, style, saved), latent


class AnonymizationPass(nn.Module):
    """One anonymization, EC and En in a row: what Table 5 calls the cost of dual inference. For counting."""

    def __init__(self, networks: SDNNetworks) -> None:
        super().__init__()
        self.networks = networks

    def forward(self, faces: Tensor, source: Tensor, bits: Tensor, attributes: Tensor) -> Tensor:
        """``(B, 3, S, S)``, source pictures, bits, attributes -> anonymized faces."""
        features: Tensor = self.networks.extractor.features(source)  # type: ignore[operator]
        picture, _ = self.networks.en(faces, bits, attributes, features)
        return picture
