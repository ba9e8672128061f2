"""Sizes of the face painter."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class FacePainterConfig:
    """Plain numbers only, so that checkpoints load with ``weights_only=True``.

    Attributes:
        size: side of the aligned crop in pixels.
        frame_size: side of the texture in texels.
        identity_dim: length of the identity vector.
        recogniser: frozen identity encoder, a name for ``load_recogniser``.
        expressions: directions of the shape that belong to expression and stay.
        shape_traits: directions of the shape that belong to the person and are exchanged.
        texture_traits: directions of the texture that belong to the person beyond its identity vector.
        varying: directions of the texture that differ between pictures of one person and are no traits.
        details: further directions of the texture.
        personal_details: how many of them are given to strangers; only a recovery uses the others.
        trait_limit: traits are cut to this many deviations: a pair of glasses must not become a person's skin.
        keep_eyes: how much of the inside of the eyes is taken from the picture, 0 to 1: gaze is what a face does, and
            a little of who it is.
        keep_mouth: the same for the inside of the mouth.
        widths: channels of the refiner at half the crop's size, a quarter, and so on.
        ridge: penalty of the linear painter, as a part of a feature's variance, for each picture.
        trait_faces: number of faces that texture traits are taken from.
        fit_faces: number of faces that the linear painter is fitted to, people with several pictures first; each takes
            6 bytes a texel of memory meanwhile.
    """

    size: int = 128
    frame_size: int = 128
    identity_dim: int = 128
    recogniser: str = "sface"
    expressions: int = 20
    shape_traits: int = 16
    texture_traits: int = 48
    varying: int = 16
    details: int = 120
    personal_details: int = 72
    trait_limit: float = 2.0
    keep_eyes: float = 0.5
    keep_mouth: float = 1.0
    widths: tuple[int, ...] = (48, 96, 160, 224)
    ridge: float = 0.001
    trait_faces: int = 4000
    fit_faces: int = 14_000

    def __post_init__(self) -> None:
        """Checks what would otherwise fail late.

        Raises:
            ValueError: sizes that do not fit together.
        """
        if self.size % 2 ** len(self.widths):
            raise ValueError(f"size {self.size} cannot be halved {len(self.widths)} times")
        if self.identity_dim % 2 or self.traits % 2 or self.personal_details % 2:
            raise ValueError(
                "identity_dim, shape_traits + texture_traits and personal_details must be even: they turn in planes"
            )
        if not 0 <= self.personal_details <= self.details:
            raise ValueError(f"personal_details must be from 0 to details={self.details}, not {self.personal_details}")
        if self.frame_size < 16:
            raise ValueError("frame_size must be at least 16 texels")

    @property
    def traits(self) -> int:
        """Number of traits of shape and texture together."""
        return self.shape_traits + self.texture_traits
