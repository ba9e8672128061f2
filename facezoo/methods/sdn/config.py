"""Configuration of SDN: what it shares with MfM (``AttributedConfig``) and its own numbers. Imports no torch."""

from __future__ import annotations

import dataclasses
from typing import Literal

from facezoo.methods.attributed.config import AttributedConfig


@dataclasses.dataclass(frozen=True)
class SDNConfig(AttributedConfig):
    """SDN's own fields; those of ``AttributedConfig`` come first.

    Attributes:
        identity_blocks: Residual blocks of En's identity network. The layer table is lost; four and four make EC and En
            (the pair that the paper calls dual inference, and whose cost its Table 5 gives) 12.8 G multiply-adds of
            the table's 13.09.
        erasing_blocks: Residual blocks of the erasing network.
        reveal_width: First width of De (paper: that of En).
        reveal_cells: De's stem and head as ``cells``.
        reveal_identity_blocks: Residual blocks of De's identity network.
        reveal_blocks: Residual blocks of the reveal network.
        discriminator_ratio: Discriminator and extractor batches for each encoder and decoder batch (Algorithm 1: ten).
        dual_inference: The exchange between EC and En: the second terms of (5) and (6), and the classification of the
            anonymized face as the source's on En's side. Off: an ablation.
        lambda_en: Weight of (8) (paper: 10).
        lambda_de: Weight of (14) (paper: 10).
        lambda_attribute: Weight of (7) within (8) (paper: 1).
        lambda_fake_attributes: Weight of the second term of (10) within (11) (paper: 1). It teaches the discriminator
            that an anonymized face still has the target's own attributes, against (7).
        lambda_false: Weight of (13) within (14) (paper: 1).
        false_every: (13) is computed in every n-th encoder batch, with n times the weight (paper: 1).
        back_every: Likewise the second term of (6) (paper: 1).
        lambda_realism: Weight lambda_1 of the mutual information in (16), a nat; not given. 0 with ``lambda_recovery``
            and ``lambda_marginal`` 0: an ablation.
        lambda_recovery: Weight lambda_2 of the mutual information in (19), a nat; not given.
        adversarial: Value function V of the games: "hinge" (chosen) or "log".
        alternate_batches: Length of the training in batches, of either side.
    """

    identity_blocks: int = 4
    erasing_blocks: int = 4
    reveal_width: int = 64
    reveal_cells: bool = False
    reveal_identity_blocks: int = 4
    reveal_blocks: int = 4

    discriminator_ratio: int = 10
    dual_inference: bool = True
    lambda_en: float = 10.0
    lambda_de: float = 10.0
    lambda_attribute: float = 1.0
    lambda_fake_attributes: float = 1.0
    lambda_false: float = 1.0
    false_every: int = 1
    back_every: int = 1
    lambda_realism: float = 0.1
    lambda_recovery: float = 0.02
    adversarial: Literal["hinge", "log"] = "hinge"

    alternate_batches: int = 440_000

    def __post_init__(self) -> None:
        """Checks what would otherwise fail late.

        Raises:
            ValueError: Values that do not fit together.
        """
        super().__post_init__()
        if self.discriminator_ratio < 1 or self.false_every < 1 or self.back_every < 1:
            raise ValueError("discriminator_ratio, false_every and back_every must be at least 1")
