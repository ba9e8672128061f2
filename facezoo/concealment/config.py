"""What a method's configuration says about the code that its pictures carry."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class ConcealConfig:
    """Base of the configurations of methods whose pictures carry a code; all of it is ours.

    Attributes:
        code_channels: Phasors in each 4x4-pixel cell of the concealed code.
        conceal_width: Width of the concealing and revealing networks.
        conceal_blocks: Residual blocks of each of them.
        residual_limit: Largest change of a pixel by the concealed code, in units of the [-1, 1] range.
        conceal_learning_rate: Adam, of these networks.
        lambda_extract: Weight of the code's phasor error.
        lambda_reveal: Weight of the recovered picture's mean absolute error.
        lambda_reveal_ssim: Weight of 1 - SSIM of the recovered picture.
        lambda_residual: Weight of the mean squared residual.
        jpeg_share: Part of the batches that pass a simulated JPEG file.
        jpeg_quality_low: Lowest simulated quality.
        jpeg_quality_high: Highest simulated quality.
        shift_share: Part of the batches that are resampled (a recovery with slightly wrong landmarks or another scale).
        conceal_batches: Length of the phase in which these networks learn.
    """

    code_channels: int = 4
    conceal_width: int = 128
    conceal_blocks: int = 4
    residual_limit: float = 0.08
    conceal_learning_rate: float = 1e-3
    lambda_extract: float = 1.0
    lambda_reveal: float = 10.0
    lambda_reveal_ssim: float = 1.0
    lambda_residual: float = 10.0
    jpeg_share: float = 0.5
    jpeg_quality_low: int = 80
    jpeg_quality_high: int = 98
    shift_share: float = 0.2
    conceal_batches: int = 50_000
