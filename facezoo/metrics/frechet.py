"""Fréchet distance between two sets of feature vectors (Heusel et al. 2017, with features that are named)."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchmetrics import Metric

from facezoo.errors import InputError

__all__ = ["INCEPTION", "FrechetDistance", "frechet_distance", "gaussian_distance", "moments"]

Floats = npt.NDArray[np.float64]

INCEPTION = "Inception-2015-12-05"
"""Name of the features with which the distance is called FID (pool3 of pt_inception-2015-12-05, 2,048 numbers)."""


def frechet_distance(first: npt.ArrayLike, second: npt.ArrayLike) -> float:
    """Squared Wasserstein-2 distance of the Gaussians with the sets' means and covariances.

    ``|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))``. Its value depends on the features and on the number of pictures
    (small sets look further apart), so both belong beside it. FID is this with Inception's features.

    Args:
        first: (N, D), N at least 2.
        second: (M, D), M at least 2.

    Returns:
        The distance, 0 for equal statistics.

    Raises:
        InputError: other shapes, or values that are not finite.
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise InputError(f"features must be (N, D) and (M, D) with at least 2 rows, not {a.shape} and {b.shape}")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise InputError("the features hold values that are not finite")
    c1, c2 = np.atleast_2d(np.cov(a, rowvar=False)), np.atleast_2d(np.cov(b, rowvar=False))
    return gaussian_distance(a.mean(0), c1, b.mean(0), c2)


def gaussian_distance(mean1: Floats, covariance1: Floats, mean2: Floats, covariance2: Floats) -> float:
    """Squared Wasserstein-2 distance of two Gaussians: means (D,), covariances (D, D)."""
    # The eigenvalues of C1 C2 are those of the symmetric C1^(1/2) C2 C1^(1/2), whose roots need no complex numbers.
    values, vectors = np.linalg.eigh(covariance1)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    cross = np.sqrt(np.clip(np.linalg.eigvalsh(root @ covariance2 @ root), 0, None)).sum()
    distance = np.square(mean1 - mean2).sum() + np.trace(covariance1) + np.trace(covariance2) - 2 * cross
    return max(float(distance), 0.0)


def moments(total: Tensor, products: Tensor, count: int) -> tuple[Floats, Floats]:
    """Mean (D,) and covariance (D, D) out of the sums of ``count`` vectors and of their outer products."""
    mean = total / count
    covariance = (products - count * torch.outer(mean, mean)) / (count - 1)
    return mean.cpu().numpy(), covariance.cpu().numpy()


class FrechetDistance(Metric):
    """Frechet distance between two sets of pictures by named features.

    It is FID only with the features of `facezoo.metrics.networks.load_inception`; with any others `title` names them
    ("FD-MobileNetV2"). Only sums are kept (float64), so neither chunks nor processes change the value beyond rounding.

    Args:
        features: name of the features, for tables.
        size: their number D; the sums need 16 D^2 bytes.

    Raises:
        InputError: an empty name, or a size below 1.
    """

    full_state_update = False
    higher_is_better = False

    sums: Tensor
    products: Tensor
    counts: Tensor

    def __init__(self, features: str, size: int) -> None:
        super().__init__()
        if not features or size < 1:
            raise InputError(f"a Frechet distance needs the features' name and size, not {features!r} and {size}")
        self.features = features
        self.size = size
        self.set_dtype(torch.float64)
        self.add_state("sums", torch.zeros(2, size, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("products", torch.zeros(2, size, size, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(2, dtype=torch.long), dist_reduce_fx="sum")

    @property
    def title(self) -> str:
        """What the value is called: FID or FD-<features>."""
        return "FID" if self.features == INCEPTION else f"FD-{self.features}"

    def update(self, vectors: Tensor, real: bool) -> None:
        """Adds pictures of one set.

        Args:
            vectors: (B, D) features.
            real: whether they are of the originals.

        Raises:
            InputError: another shape, or values that are not finite.
        """
        if vectors.ndim != 2 or vectors.shape[1] != self.size:
            raise InputError(f"features must be (B, {self.size}), not {tuple(vectors.shape)}")
        if not vectors.isfinite().all():
            raise InputError("the features hold values that are not finite")
        rows, side = vectors.detach().to(self.sums), int(real)
        self.sums[side] += rows.sum(0)
        self.products[side] += rows.T @ rows
        self.counts[side] += len(rows)

    def compute(self) -> Tensor:
        """The distance, float64; NaN with fewer than two pictures in a set."""
        if int(self.counts.min()) < 2:
            return torch.tensor(math.nan, dtype=torch.float64)
        first, second = (moments(*sums) for sums in zip(self.sums, self.products, self.counts.tolist(), strict=True))
        return torch.tensor(gaussian_distance(*first, *second), dtype=torch.float64)
