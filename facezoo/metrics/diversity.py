"""How different the faces are that one person gets under several keys."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from facezoo.errors import InputError

__all__ = ["Diversity", "key_diversity"]


@dataclass(frozen=True)
class Diversity:
    """Diversity over keys.

    Attributes:
        cosine: mean cosine to the original (as the iFADIT paper's Table 4 gives it beside the angle).
        kffa: mean angle in degrees between two results of one face; 90 for unrelated ones.
        between_keys: mean cosine between two results of one face.
        faces: number of faces.
        keys: results of each face.
    """

    cosine: float
    kffa: float
    between_keys: float
    faces: int
    keys: int


def key_diversity(results: npt.ArrayLike, originals: npt.ArrayLike) -> Diversity:
    """Known Factor Feature Angle and cosines (Li et al., ECCV 2022; here as the iFADIT paper, section 4.5, uses them).

    The face is the known factor, the key is not: the angle is between identity vectors of results of one face under two
    keys, averaged over all pairs of keys, then over faces.

    Args:
        results: (N, K, D) identity vectors of N faces under K keys, K at least 2; any lengths.
        originals: (N, D) those of the originals.

    Returns:
        The figures.

    Raises:
        InputError: other shapes, or values that are not finite.
    """
    made, real = np.asarray(results, dtype=np.float64), np.asarray(originals, dtype=np.float64)
    if made.ndim != 3 or made.shape[1] < 2 or not len(made) or real.shape != (len(made), made.shape[2]):
        raise InputError(f"diversity needs (N, K, D) with K >= 2 and (N, D), not {made.shape} and {real.shape}")
    if not (np.isfinite(made).all() and np.isfinite(real).all()):
        raise InputError("an identity vector is not finite: give a failed face a value of its own")
    made = made / np.maximum(np.linalg.norm(made, axis=-1, keepdims=True), 1e-12)
    real = real / np.maximum(np.linalg.norm(real, axis=-1, keepdims=True), 1e-12)
    pairs = np.triu_indices(made.shape[1], 1)
    cosines = np.einsum("nkd,nld->nkl", made, made)[:, pairs[0], pairs[1]].clip(-1, 1)
    return Diversity(
        cosine=float(np.einsum("nkd,nd->nk", made, real).mean()),
        kffa=float(np.degrees(np.arccos(cosines)).mean()),
        between_keys=float(cosines.mean()),
        faces=len(made),
        keys=made.shape[1],
    )
