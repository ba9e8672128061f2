"""The part of the configuration that SDN and MfM have in common. Imports no torch."""

from __future__ import annotations

import dataclasses
from typing import Literal

from facezoo.data.attributes import check_names, value_count


@dataclasses.dataclass(frozen=True)
class AttributedConfig:
    """Plain numbers only, so that checkpoints load with ``weights_only=True``. Defaults are the papers' where they say.

    Attributes:
        size: Side of the aligned crop in pixels (papers: 128).
        generator_scale: The anonymizing network works on the crop shrunk by this factor and changes the full crop
            (ours; 1 in the papers). Needs ``content_grid``.
        width: First width of the translators; the latent has four times as many channels (papers: 64 -> 256x32x32).
        cells: Sub-pixel stem and head instead of 7x7 and strided convolutions (ours, for CPUs).
        norm_groups: Groups of the normalisations; 0: instance normalisation (papers).
        style_modulation: The style vector also acts on the decoder's normalisations (ours).
        input_skip: A translator's output starts from its input (ours; the papers' start from nothing).
        password_bits: N bits of the password, part of the style vector (papers: N is free; SDN tests 16).
        attributes: Attributes of the vocabulary that can be asked for.

        extractor: "learned": EC / C of the papers, trained here; "recogniser": a frozen recogniser's identity vector in
            its place (ours, for sets with few pictures a person; a pre-trained part that SDN does without).
        recogniser: Name for ``load_recogniser``.
        recogniser_dim: Length of its vectors (SFace: 128).
        extractor_size: Side of the pictures that the learned extractor sees.
        extractor_width: First width of the learned extractor.
        extractor_max_width: Most channels of it.
        extractor_layers: Its stride-2 convolutions (papers: 6).
        extractor_residual: Residual layers behind them (SDN: 0, MfM: 3).
        identity_classes: Identities that are told apart: the people with the most pictures (FaceScrub: 530). Pictures
            of others take no part in the classification.
        discriminator_size: Side of the pictures that the discriminator sees.
        discriminator_width: Its first width.
        discriminator_max_width: Most channels of it.
        discriminator_layers: Its stride-2 convolutions.
        bank_entries: Sources that ship with the checkpoint.
        bank_people: People mixed into each of them, at least 10.

        content_grid: The anonymizing network sees the inside of the face at this many pixels across, so that identity
            cannot leak past the features (ours); 0: the whole face (papers).
        linear_painter: It sees the linear guess of the wanted face instead of the coarse one (ours).
        painter_generator_widths: Input widths of the AAD generator of a trained, frozen face painter (that of
            identity_rotation), which paints the source's face instead of the linear guess (ours); empty: none.
        painter_attribute_widths: Widths of its attribute encoder's levels.
        painter_size: Side of the pictures that it paints.
        request_feature_strength: A request also moves the features that the first guess is painted from by this many
            times the mean difference of faces with that value (ours); 0: not.
        request_content_strength: The same for the coarse content.
        added: Largest change that it makes to what it sees, of the [-1, 1] range, with ``content_grid``.
        keyed_code: What recovery needs is hidden as an encrypted code in the picture instead of being left to the
            networks (ours): see the method's README.
        code_channels: Phasors in each 4x4-pixel cell of the code.
        code_width: Width of the code's networks.
        code_blocks: Residual blocks of each of them.
        residual_limit: Largest change of a pixel by the code, of the [-1, 1] range.

        learning_rate: Adam (not given in the papers).
        extractor_learning_rate: Adam of extractor and discriminator.
        code_learning_rate: Adam of the code's networks.
        beta1: Adam.
        beta2: Adam.
        lambda_adversarial: Weight of the patches' real/fake term (not given; Eq 15 and Eq 7 print none, the games do).
        lambda_source: Weight of 1 - cos(features of the anonymized face, the source's) (ours; the dual inference of
            the papers states the aim and prints no term for the anonymizing side).
        lambda_away: Weight of the cosine to the original's features above ``away_margin`` (ours).
        away_margin: See ``lambda_away``.
        lambda_keep: Weight of the mean absolute change outside the face (ours).
        lambda_tone: Weight of the mean absolute change at 4x4 pixels (ours).
        lambda_extract: Weight of the code's phasor error.
        lambda_residual: Weight of the code's mean squared change.
        lambda_reveal_ssim: Weight of 1 - SSIM of the recovered picture (ours).
        lambda_marginal: Weight of the divergence of the recovering bottleneck from the standard normal, the upper bound
            in SDN's (20) and MfM's (17), which the papers' text wants small; no weight is given, and no sign: see the
            method's README.
        shares_every: Generator batches between two measurements of each term's share of the gradient; 0: none.
        request_share: Probability that an attribute is asked for in training; else it is left open.
        source_mixed_share: Share of the sources in training that come from the bank, with ``extractor: recogniser``.
        recogniser_jitter: Largest random shift, as a part of the size, before the recogniser sees a picture.
        jpeg_share: Part of the batches that pass a simulated JPEG file.
        jpeg_quality_low: Lowest simulated quality.
        jpeg_quality_high: Highest simulated quality.
        shift_share: Part of the batches that are resampled.
    """

    size: int = 128
    generator_scale: int = 1
    width: int = 64
    cells: bool = False
    norm_groups: int = 0
    style_modulation: bool = False
    input_skip: bool = False
    password_bits: int = 16
    attributes: tuple[str, ...] = ("sex", "age", "smiling", "hair", "skin")

    extractor: Literal["learned", "recogniser"] = "learned"
    recogniser: str = "sface"
    recogniser_dim: int = 128
    extractor_size: int = 128
    extractor_width: int = 64
    extractor_max_width: int = 2048
    extractor_layers: int = 6
    extractor_residual: int = 0
    identity_classes: int = 530
    discriminator_size: int = 128
    discriminator_width: int = 64
    discriminator_max_width: int = 1024
    discriminator_layers: int = 6
    bank_entries: int = 256
    bank_people: int = 10

    content_grid: int = 0
    linear_painter: bool = False
    painter_generator_widths: tuple[int, ...] = ()
    painter_attribute_widths: tuple[int, ...] = ()
    painter_size: int = 64
    request_feature_strength: float = 0.0
    request_content_strength: float = 0.0
    added: float = 0.7
    keyed_code: bool = False
    code_channels: int = 4
    code_width: int = 48
    code_blocks: int = 2
    residual_limit: float = 0.08

    learning_rate: float = 1e-4
    extractor_learning_rate: float = 1e-4
    code_learning_rate: float = 1e-3
    beta1: float = 0.5
    beta2: float = 0.999
    lambda_adversarial: float = 1.0
    lambda_source: float = 1.0
    lambda_away: float = 0.0
    away_margin: float = 0.1
    lambda_keep: float = 0.0
    lambda_tone: float = 0.0
    lambda_extract: float = 1.0
    lambda_residual: float = 10.0
    lambda_reveal_ssim: float = 0.0
    lambda_marginal: float = 1e-6
    shares_every: int = 200
    request_share: float = 0.5
    source_mixed_share: float = 0.5
    recogniser_jitter: float = 0.03
    jpeg_share: float = 0.2
    jpeg_quality_low: int = 85
    jpeg_quality_high: int = 98
    shift_share: float = 0.1

    def __post_init__(self) -> None:
        """Checks what would otherwise fail late.

        Raises:
            ValueError: Values that do not fit together.
        """
        check_names(self.attributes)
        if self.size % 16 or self.generator_size * self.generator_scale != self.size or self.generator_size % 4:
            raise ValueError(f"size {self.size} must be a multiple of 16 and generator_scale must divide it evenly")
        if self.generator_scale > 1 and not self.content_grid:
            raise ValueError("generator_scale above 1 needs a content_grid: the picture keeps its own detail then")
        if self.linear_painter and not (self.content_grid and self.extractor == "recogniser"):
            raise ValueError(
                "linear_painter needs a content_grid and extractor: recogniser, whose vectors it starts from"
            )
        if self.face_painter:
            if self.linear_painter or not (self.content_grid and self.extractor == "recogniser"):
                raise ValueError(
                    "a face painter needs a content_grid and extractor: recogniser, and has a linear_painter of its own"
                )
            if len(self.painter_generator_widths) != len(self.painter_attribute_widths):
                raise ValueError("painter_generator_widths and painter_attribute_widths must have as many levels")
            if self.size % self.painter_size or self.painter_size % 2 ** (len(self.painter_generator_widths) - 1):
                raise ValueError(f"painter_size {self.painter_size} must divide size and be halved by every level")
        if min(self.request_feature_strength, self.request_content_strength) < 0:
            raise ValueError("request_feature_strength and request_content_strength must not be negative")
        if self.request_shift and not self.content_grid:
            raise ValueError("request_feature_strength and request_content_strength need a content_grid")
        if not 1 <= self.password_bits < self.style_dim:
            raise ValueError(f"password_bits must be from 1 to {self.style_dim - 1}: bits are part of the style vector")
        for name, side, layers in (
            ("extractor", self.extractor_size, self.extractor_layers),
            ("discriminator", self.discriminator_size, self.discriminator_layers),
        ):
            if side % 2**layers:
                raise ValueError(f"{name}_size {side} cannot be halved {layers} times")
        if self.bank_people < 10:
            raise ValueError("bank_people must be at least 10, so that nobody's identity is lent")
        if not (0 <= self.request_share <= 1 and 0 <= self.source_mixed_share <= 1):
            raise ValueError("request_share and source_mixed_share are parts between 0 and 1")

    @property
    def face_painter(self) -> bool:
        """Whether a trained face painter makes the first guess."""
        return bool(self.painter_generator_widths)

    @property
    def request_shift(self) -> bool:
        """Whether requests move what the first guess is painted from."""
        return max(self.request_feature_strength, self.request_content_strength) > 0

    @property
    def generator_size(self) -> int:
        """Side of the anonymizing network's pictures in pixels."""
        return self.size // self.generator_scale

    @property
    def style_dim(self) -> int:
        """Length of the style vector: one number a place of the latent (papers: 32 x 32 = 1024)."""
        return (self.generator_size // 4) ** 2

    @property
    def style_features(self) -> int:
        """Features in the style vector: all of it but the password's bits."""
        return self.style_dim - self.password_bits

    @property
    def feature_dim(self) -> int:
        """Length of a source's features."""
        return self.recogniser_dim if self.extractor == "recogniser" else self.style_features

    @property
    def request_dim(self) -> int:
        """Length of password and attributes as a condition."""
        return self.password_bits + value_count(self.attributes)
