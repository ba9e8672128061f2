"""How near pictures are, as ``torchmetrics.Metric``: PSNR, SSIM, mean absolute error, LPIPS, PieAPP.

Pictures are (B, 3, H, W) in [-1, 1]. A picture with values that are not finite has no distance: it counts in
``missing`` (give a failed face a black picture instead, as the protocol does, and it counts as what it is).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from facezoo.errors import InputError
from facezoo.metrics.cases import MeanMetric, check_pairs
from facezoo.metrics.images import psnr, ssim

__all__ = ["MeanAbsoluteError", "NetworkDistance", "PeakSignalToNoise", "StructuralSimilarity"]


class PeakSignalToNoise(MeanMetric):
    """Mean PSNR in dB over pictures (book, Eq 3.3), each at most 100; not the PSNR of the mean error."""

    higher_is_better = True

    def update(self, results: Tensor, originals: Tensor) -> None:
        """Adds pairs of pictures.

        Raises:
            InputError: other shapes.
        """
        self.keep(psnr(results, originals))


class StructuralSimilarity(MeanMetric):
    """Mean SSIM over pictures (Wang et al. 2004: window of 11 pixels, sigma 1.5; book, Eq 3.4 with all weights 1)."""

    higher_is_better = True

    def update(self, results: Tensor, originals: Tensor) -> None:
        """Adds pairs of pictures, at least 11 pixels wide and high.

        Raises:
            InputError: other shapes.
        """
        self.keep(ssim(results, originals))


class MeanAbsoluteError(MeanMetric):
    """MAE: mean absolute difference of values in [0, 1] (half of that of ours, which span 2)."""

    higher_is_better = False

    def update(self, results: Tensor, originals: Tensor) -> None:
        """Adds pairs of pictures.

        Raises:
            InputError: other shapes.
        """
        check_pairs(results, originals, 4, "pictures")
        self.keep((results.double() - originals.double()).abs().mean((1, 2, 3)) / 2)


class NetworkDistance(MeanMetric):
    """Mean of a distance that a network gives for each pair: LPIPS (`load_lpips`), PieAPP (`load_pieapp`).

    The network's weights are part of a pickle of this metric, not of its state.

    Args:
        network: two times (B, 3, H, W) in [-1, 1], result and original -> (B,).
        name: what it is, for tables.

    Raises:
        InputError: an empty name.
    """

    higher_is_better = False

    def __init__(self, network: nn.Module, name: str) -> None:
        super().__init__()
        if not name:
            raise InputError("a network's distance needs a name for the tables")
        self.network = network
        self.name = name

    def update(self, results: Tensor, originals: Tensor) -> None:
        """Adds pairs of pictures.

        Raises:
            InputError: other shapes.
        """
        check_pairs(results, originals, 4, "pictures")
        with torch.inference_mode():
            self.keep(self.network(results.float(), originals.float()))
