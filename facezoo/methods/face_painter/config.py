"""Configuration of the face painter's training."""

from __future__ import annotations

import dataclasses

from facezoo.nets.face_painter.config import FacePainterConfig


@dataclasses.dataclass(frozen=True)
class FacePainterTrainingConfig(FacePainterConfig):
    """Sizes as in ``FacePainterConfig``, and the refiner's training.

    Attributes:
        features: frozen network whose features the discriminator sees: "alexnet" (that of LPIPS), or a timm name such
            as "tf_efficientnet_lite0".
        head_width: channels of the discriminator's heads.
        pixel_width: first width of the patch discriminator on the pixels.
        pixel_layers: its strided convolutions.
        learning_rate: Adam's, of refiner and discriminators.
        beta1: Adam.
        beta2: Adam.
        swap_share: part of each batch that is given a stranger: identity, traits and details turned at random.
        least_degrees: smallest turn of the identity vector.
        most_degrees: largest one.
        lambda_l1: mean absolute error on own identities, over the mask.
        lambda_lpips: LPIPS on own identities.
        lambda_tone: mean absolute difference to the linear guess at ``tone_grid`` pixels across on strangers: the
            refiner may sharpen, not repaint.
        tone_grid: see there.
        lambda_kept: mean absolute difference to the picture where eyes and mouth are kept, on foreign identities.
        lambda_adversarial: hinge loss of all discriminators.
        adversarial_warmup: batches over which that weight grows from zero.
        lambda_identity: ``1 - cos`` of painted and wanted identity vector on foreign identities.
        lambda_other: mean of ``relu(cos - other_margin)`` of the painted faces and the originals, over ``others``.
        other_margin: see there.
        others: more recognisers that shall not find the original, so that no pattern against a single one is learned.
        identity_every: batches of which one has the recognisers' losses; they cost more than the refiner.
        identity_rows: faces of such a batch that they look at.
        recogniser_jitter: largest random shift before a recogniser sees a picture, as a part of the size.
        refine_batches: length of the training.
    """

    features: str = "alexnet"
    head_width: int = 64
    pixel_width: int = 32
    pixel_layers: int = 3
    learning_rate: float = 3e-4
    beta1: float = 0.5
    beta2: float = 0.99
    swap_share: float = 0.5
    least_degrees: float = 80.0
    most_degrees: float = 120.0
    lambda_l1: float = 4.0
    lambda_lpips: float = 6.0
    lambda_tone: float = 4.0
    tone_grid: int = 16
    lambda_kept: float = 4.0
    lambda_adversarial: float = 0.6
    adversarial_warmup: int = 150
    lambda_identity: float = 1.0
    lambda_other: float = 0.0
    other_margin: float = 0.0
    others: tuple[str, ...] = ()
    identity_every: int = 4
    identity_rows: int = 4
    recogniser_jitter: float = 0.03
    refine_batches: int = 20_000

    def __post_init__(self) -> None:
        """Checks what would otherwise fail late.

        Raises:
            ValueError: values that do not fit together.
        """
        super().__post_init__()
        if not 0 < self.swap_share < 1:
            raise ValueError("swap_share must lie between 0 and 1: both kinds of rows are needed")
        if self.identity_every < 1 or self.identity_rows < 1:
            raise ValueError("identity_every and identity_rows must be at least 1")
