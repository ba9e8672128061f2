"""Configuration of MfM: what it shares with SDN (``AttributedConfig``) and its own numbers. Imports no torch."""

from __future__ import annotations

import dataclasses
from typing import Literal

from facezoo.methods.attributed.config import AttributedConfig


@dataclasses.dataclass(frozen=True)
class MfMConfig(AttributedConfig):
    """MfM's own fields; those of ``AttributedConfig`` come first.

    Attributes:
        content_blocks: Residual blocks of the content encoder (the layer table is lost; as SDN's).
        decoder_blocks: Residual blocks of the decoder.
        discriminator_ratio: Discriminator batches for each modifier batch (paper: the modifier in every fifth: 4).
        lambda_b: Weight of (1) (paper: 20).
        lambda_attribute_class: Weight of (2) (paper: 20).
        lambda_identity_class: Weight lambda_adv of (3) (paper: 1).
        lambda_feature: Weight of (4) (paper: 10).
        lambda_recovered: Weight of (5) (paper: 20).
        lambda_domain: Weight of (6) (paper: 20).
        keep_share: Weight of the anonymized face's term within (1) (paper: 1): how near it must stay to the original.
        variants_every: The further faces of (3) and (4), of another password and of wrong ones, are drawn in every n-th
            modifier batch, with n times the weight (paper: 1).
        lambda_acceptability: Weight lambda_1 of the mutual information in the game (8), a nat; not given.
        lambda_recovery: Weight lambda_2 of the mutual information in the game (16), a nat; not given.
        adversarial: Value function V of the games: "hinge" (chosen) or "log".
        classify_batches: Length of phase 1, the style classifier; 0 with a frozen recogniser.
        modify_batches: Length of phase 2, of either side.
    """

    extractor_residual: int = 3
    extractor_max_width: int = 512
    content_blocks: int = 4
    decoder_blocks: int = 4

    discriminator_ratio: int = 4
    lambda_b: float = 20.0
    lambda_attribute_class: float = 20.0
    lambda_identity_class: float = 1.0
    lambda_feature: float = 10.0
    lambda_recovered: float = 20.0
    lambda_domain: float = 20.0
    keep_share: float = 1.0
    variants_every: int = 1
    lambda_acceptability: float = 0.5
    lambda_recovery: float = 0.02
    adversarial: Literal["hinge", "log"] = "hinge"

    classify_batches: int = 100_000
    modify_batches: int = 400_000

    def __post_init__(self) -> None:
        """Checks what would otherwise fail late.

        Raises:
            ValueError: Values that do not fit together.
        """
        super().__post_init__()
        if self.discriminator_ratio < 1 or self.variants_every < 1:
            raise ValueError("discriminator_ratio and variants_every must be at least 1")
        if self.extractor == "recogniser" and self.classify_batches:
            raise ValueError("a frozen recogniser needs no phase 1: set classify_batches to 0")
        if self.generator_scale != 1:
            raise ValueError("MfM's one modifier also recovers the full crop: generator_scale must be 1")
        if self.content_grid and not self.keyed_code:
            raise ValueError("content_grid needs keyed_code: the one modifier could not recover what it may not see")
