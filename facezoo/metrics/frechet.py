"""Fréchet distance between two sets of feature vectors (Heusel et al. 2017, with features that are named)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from facezoo.errors import InputError

__all__ = ["frechet_distance"]


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
    # The eigenvalues of C1 C2 are those of the symmetric C1^(1/2) C2 C1^(1/2), whose roots need no complex numbers.
    values, vectors = np.linalg.eigh(c1)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    cross = np.sqrt(np.clip(np.linalg.eigvalsh(root @ c2 @ root), 0, None)).sum()
    distance = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(c1) + np.trace(c2) - 2 * cross
    return max(float(distance), 0.0)
