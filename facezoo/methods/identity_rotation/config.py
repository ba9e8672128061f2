"""Configuration of identity_rotation: every number of the networks, the losses and the phases, with its source."""

from __future__ import annotations

import dataclasses
from typing import Literal

from facezoo.concealment.config import ConcealConfig
from facezoo.nets.face_painter.config import FacePainterConfig


@dataclasses.dataclass(frozen=True)
class PaintedRotationConfig(FacePainterConfig):
    """identity_rotation on a face painter: its sizes, and the code's steps. Nothing of it is trained here.

    Attributes:
        painter: says that the checkpoint is one of these.
        step_inside: step of the code's lattice on the face, in levels of 255.
        step_outside: step elsewhere.
        extra_degrees: added to the level's angle: what stands around the face pulls a recogniser back to the original.
        trait_degrees: angle by which traits and details are turned; beyond a right angle for the same reason.
        repeats: angles that tell each number of the code.
        detail_repeats: the same for the numbers of details, which matter least.
    """

    painter: Literal["face_painter"] = "face_painter"
    step_inside: float = 16.0
    step_outside: float = 12.0
    extra_degrees: float = 20.0
    trait_degrees: float = 105.0
    repeats: int = 8
    detail_repeats: int = 4


@dataclasses.dataclass(frozen=True)
class IdentityRotationConfig(ConcealConfig):
    """Plain numbers only, so that checkpoints load with ``weights_only=True``.

    The code of the pictures and phase 2, in which it is learned, are described in ``ConcealConfig``.

    Attributes:
        size: Side of the aligned crop in pixels (book: 256).
        generator_scale: The generator works on the crop shrunk by this factor; its picture is enlarged again (bilinear,
            the last "BU x2" of the book's table 8.3). 1 in the book; 2 quarters the cost of phase 1 on a CPU.
        identity_dim: Length of the identity vector (book: 512, ArcFace; SFace: 128).
        recogniser: Frozen identity encoder, a name for ``load_recogniser``.
        generator_widths: Input width of the eight AAD blocks, coarsest first (book: 1024 x4, 512, 256, 128, 64).
        attribute_widths: Widths of the attribute encoder's levels, coarsest first (not given in the book; FaceShifter:
            1024, 1024, 512, 256, 128, 64, 32 on the way down).
        linear_painter: The attribute encoder sees, inside the face, the linear guess of the face of the *target*
            identity instead of the coarse face, and the generator adds to that guess (ours).
        generator_constants: Adds a learned constant map at each level of the generator (ours).
        attribute_grid: The attribute encoder sees the inside of the face at this many pixels across, so that identity
            cannot leak through the attribute maps; 0: the whole picture, as in the book.
        masked: In phase 1 the losses see the picture as it is used, the generator's inside the face mask and the
            original outside it; false: the generator's whole picture, as in the book.
        discriminator_width: First width of a patch discriminator.
        discriminator_layers: Strided convolutions of a patch discriminator.
        discriminator_scales: Number of discriminators m (not given in the book).

        learning_rate: Adam, lr 4e-4 (book, 6.4.1).
        beta1: Adam, 0 (book).
        beta2: Adam, .999 (book).
        lambda_adv: .1 (book, 6.4.1).
        lambda_id: 5 (book).
        lambda_attr: 10 (book).
        lambda_rec: 10 (book; on half the mean squared error).
        lambda_l1: Weight of the mean absolute error (ours; 0 in the book).
        lambda_coarse: Weight of the mean absolute difference of result and original at 4x4 pixels, on the faces with a
            foreign identity (ours; 0 in the book): skin tone and light belong to the picture, or the pasted face shows.
        adversarial: "log" (book, 6.14) or "hinge" (book, 8.28's text).
        adversarial_start: Batches before the discriminator joins (ours; 0 in the book).
        swap_share: Part of each batch that is given a foreign or rotated identity (book's training: self only for the
            reconstruction, two random faces for the visual check).
        swap_every: Batches of which one has the losses (6.11) and (6.12), on all its faces, and foreign identities
            (book: 1); on a CPU the loss's recogniser costs more than the generator.
        recogniser_jitter: Largest random shift, as a part of the size, before the loss's recogniser sees a picture:
            an adversarial pattern does not survive it, a changed face does.

        disentangle_batches: Length of phase 1.
    """

    size: int = 256
    generator_scale: int = 1
    identity_dim: int = 512
    recogniser: str = "sface"
    generator_widths: tuple[int, ...] = (1024, 1024, 1024, 1024, 512, 256, 128, 64)
    attribute_widths: tuple[int, ...] = (1024, 1024, 512, 256, 128, 64, 32, 32)
    linear_painter: bool = False
    generator_constants: bool = False
    attribute_grid: int = 0
    masked: bool = False
    discriminator_width: int = 64
    discriminator_layers: int = 4
    discriminator_scales: int = 3

    learning_rate: float = 4e-4
    beta1: float = 0.0
    beta2: float = 0.999
    lambda_adv: float = 0.1
    lambda_id: float = 5.0
    lambda_attr: float = 10.0
    lambda_rec: float = 10.0
    lambda_l1: float = 0.0
    lambda_coarse: float = 0.0
    adversarial: Literal["log", "hinge"] = "log"
    adversarial_start: int = 0
    swap_share: float = 0.25
    swap_every: int = 1
    recogniser_jitter: float = 0.03

    disentangle_batches: int = 200_000

    def __post_init__(self) -> None:
        """Checks what would otherwise fail late.

        Raises:
            ValueError: Sizes that do not fit together.
        """
        levels = len(self.generator_widths)
        if len(self.attribute_widths) != levels:
            raise ValueError(f"{levels} generator widths but {len(self.attribute_widths)} attribute widths")
        if self.generator_scale < 1 or self.size % self.generator_scale:
            raise ValueError(f"size {self.size} is not a multiple of generator_scale {self.generator_scale}")
        if self.generator_size % 2 ** (levels - 1):
            raise ValueError(f"size {self.generator_size} cannot be halved {levels - 1} times")
        if self.size % 16:
            raise ValueError("size must be a multiple of 16 (JPEG's blocks with halved colour)")
        if self.linear_painter and not self.attribute_grid:
            raise ValueError("linear_painter needs an attribute_grid: it works from the coarse face")
        if not 0 <= self.swap_share <= 1:
            raise ValueError("swap_share is a part between 0 and 1")

    @property
    def generator_size(self) -> int:
        """Side of the generator's pictures in pixels."""
        return self.size // self.generator_scale

    @property
    def start(self) -> int:
        """Resolution of the coarsest level."""
        return int(self.generator_size // 2 ** (len(self.generator_widths) - 1))
