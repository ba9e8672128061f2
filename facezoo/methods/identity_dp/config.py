"""Configuration of identity_dp: the frozen networks that it paints with, and the book's sensitivity."""

from __future__ import annotations

import dataclasses
from typing import Literal

from facezoo.nets.face_painter.config import FacePainterConfig


@dataclasses.dataclass(frozen=True)
class IdentityDPConfig:
    """Plain numbers only. The networks are those of an identity_rotation checkpoint (stage I of the book).

    Attributes:
        size: Side of the aligned crop in pixels.
        generator_scale: The generator works on the crop shrunk by this factor.
        identity_dim: Length of the identity vector (book: 512, ArcFace; SFace: 128).
        recogniser: Frozen identity encoder, a name for ``load_recogniser``.
        generator_widths: Input width of each AAD block, coarsest first.
        attribute_widths: Widths of the attribute encoder's levels, coarsest first.
        attribute_grid: Pixels across of what the attribute encoder sees inside the face; 0: everything (book).
        linear_painter: Whether the generator adds to a linear guess of the face.
        generator_constants: Whether each level of the generator has a learned constant map.
        greatest_l1: Greatest l1 distance between identity vectors of real faces, the book's empirical sensitivity
            (5.12). No bound.
        greatest_l1_faces: Number of faces that it was measured on.
    """

    size: int
    generator_scale: int
    identity_dim: int
    recogniser: str
    generator_widths: tuple[int, ...]
    attribute_widths: tuple[int, ...]
    attribute_grid: int
    linear_painter: bool
    generator_constants: bool
    greatest_l1: float
    greatest_l1_faces: int

    def __post_init__(self) -> None:
        """Checks what would otherwise fail late.

        Raises:
            ValueError: Sizes that do not fit together.
        """
        levels = len(self.generator_widths)
        if len(self.attribute_widths) != levels:
            raise ValueError(f"{levels} generator widths but {len(self.attribute_widths)} attribute widths")
        if self.generator_scale < 1 or self.size % (self.generator_scale * 2 ** (levels - 1)):
            raise ValueError(f"size {self.size} does not fit {levels} levels at scale {self.generator_scale}")
        if not self.greatest_l1 > 0 or self.greatest_l1_faces < 2:
            raise ValueError("greatest_l1 must be above 0 and measured on two faces or more")


@dataclasses.dataclass(frozen=True)
class PaintedDPConfig(FacePainterConfig):
    """identity_dp on a face painter: its sizes, and the book's empirical sensitivity.

    Attributes:
        painter: says that the checkpoint is one of these.
        greatest_l1: as in ``IdentityDPConfig``.
        greatest_l1_faces: as in ``IdentityDPConfig``.
    """

    painter: Literal["face_painter"] = "face_painter"
    greatest_l1: float = 0.0
    greatest_l1_faces: int = 0

    def __post_init__(self) -> None:
        """Checks what would otherwise fail late.

        Raises:
            ValueError: sizes that do not fit together, or no measured distance.
        """
        super().__post_init__()
        if not self.greatest_l1 > 0 or self.greatest_l1_faces < 2:
            raise ValueError("greatest_l1 must be above 0 and measured on two faces or more")
