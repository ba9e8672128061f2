"""Verification and retrieval with embeddings.

One convention everywhere: a *similarity*, larger for nearer faces. For ``cosine`` recognisers it is the cosine, for
``euclidean`` ones (dlib) minus the distance, so that one rule serves both: accepted when similarity >= threshold. The
thresholds that are shown to people are in the recogniser's own unit (``Threshold`` of ``facezoo.evaluate`` converts).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from facezoo.errors import InputError
from facezoo.metrics.intervals import Interval, wilson

__all__ = [
    "accepted",
    "pairwise_similarity",
    "rank_one",
    "rank_one_hits",
    "similarity",
    "thresholds_from_impostors",
    "thresholds_from_scores",
    "verified_rate",
]

Embeddings = npt.NDArray[np.floating]
Labels = npt.NDArray[np.integer]
Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

#: Rows of a similarity matrix that are computed at a time.
_BLOCK = 512


def _checked(metric: str, *arrays: npt.ArrayLike) -> list[Floats]:
    if metric not in ("cosine", "euclidean"):
        raise InputError(f"The metric must be 'cosine' or 'euclidean', not {metric!r}.")
    result = [np.asarray(array, dtype=np.float64) for array in arrays]
    for array in result:
        if array.ndim != 2 or array.shape[1] != result[0].shape[1]:
            raise InputError(f"Embeddings must be (N, D) of one D, not {[a.shape for a in result]}.")
        if not np.isfinite(array).all():
            raise InputError("An embedding is not finite: a failed face must be counted as a failure, not compared.")
    if metric == "cosine":
        # A vector of length 0 is similar to nothing: it stays 0.
        result = [array / np.maximum(np.linalg.norm(array, axis=1, keepdims=True), 1e-12) for array in result]
    return result


def similarity(first: npt.ArrayLike, second: npt.ArrayLike, metric: str = "cosine") -> Floats:
    """Similarity of pairs.

    Args:
        first: (N, D).
        second: (N, D); row i is compared with row i.
        metric: ``cosine`` (any lengths; the cosine) or ``euclidean`` (minus the distance).

    Returns:
        (N,) float64; larger is nearer.

    Raises:
        InputError: unknown metric, other shapes, or values that are not finite.
    """
    left, right = _checked(metric, first, second)
    if left.shape != right.shape:
        raise InputError(f"{len(left)} embeddings cannot be paired with {len(right)}.")
    if metric == "cosine":
        return (left * right).sum(axis=1)
    return -np.linalg.norm(left - right, axis=1)


def pairwise_similarity(first: npt.ArrayLike, second: npt.ArrayLike, metric: str = "cosine") -> Floats:
    """Similarity of every row of ``first`` with every row of ``second``.

    Returns:
        (N, M) float64; see ``similarity``.

    Raises:
        InputError: as ``similarity``.
    """
    left, right = _checked(metric, first, second)
    products = left @ right.T
    if metric == "cosine":
        return products
    squares = (left**2).sum(1)[:, None] + (right**2).sum(1)[None] - 2 * products
    return -np.sqrt(np.maximum(squares, 0))


def thresholds_from_scores(scores: npt.ArrayLike, far: Sequence[float] = (1e-2, 1e-3)) -> dict[float, float]:
    """Thresholds at which a given part of impostor pairs is accepted.

    Args:
        scores: (N,) similarities of impostor pairs of real pictures.
        far: false accept rates in (0, 1).

    Returns:
        As `thresholds_from_impostors`.

    Raises:
        InputError: a rate out of range, or fewer than ``1 / far`` pairs.
    """
    ordered = np.sort(np.asarray(scores, dtype=np.float64).reshape(-1))[::-1]
    thresholds: dict[float, float] = {}
    for rate in far:
        if not 0 < rate < 1:
            raise InputError(f"A false accept rate lies between 0 and 1, not at {rate}.")
        allowed = int(np.floor(rate * len(ordered) + 1e-9))
        if allowed < 1:
            raise InputError(
                f"{len(ordered)} impostor pairs cannot give a threshold at FAR {rate:g}: "
                f"at least {int(np.ceil(1 / rate))} are needed; use more pictures of more people."
            )
        # Just above the best pair that must be refused; pairs of equal score are refused together.
        thresholds[float(rate)] = float(np.nextafter(ordered[allowed], np.inf))
    return thresholds


def thresholds_from_impostors(
    embeddings: npt.ArrayLike, identities: npt.ArrayLike, far: Sequence[float] = (1e-2, 1e-3), metric: str = "cosine"
) -> dict[float, float]:
    """Thresholds at which a given part of all impostor pairs is accepted.

    Every pair of pictures of two different people is an impostor pair. Pictures must be real ones (never the
    anonymized pictures that will be judged).

    Args:
        embeddings: (N, D) of real pictures.
        identities: (N,) who is on each.
        far: false accept rates in (0, 1).
        metric: see ``similarity``.

    Returns:
        For each rate the smallest threshold t (a similarity) for which ``similarity >= t`` accepts at most
        ``far * number of impostor pairs`` of them, rounded down.

    Raises:
        InputError: if there are fewer than ``1 / far`` impostor pairs: the rate could not be told from 0.
    """
    (vectors,) = _checked(metric, embeddings)
    people = np.asarray(identities).reshape(-1)
    if len(people) != len(vectors):
        raise InputError(f"{len(vectors)} embeddings, but {len(people)} identities.")
    parts: list[Floats] = []
    for start in range(0, len(vectors), _BLOCK):
        rows = np.arange(start, min(start + _BLOCK, len(vectors)))
        later = np.arange(len(vectors))[None] > rows[:, None]
        impostors = later & (people[None] != people[rows][:, None])
        parts.append(pairwise_similarity(vectors[rows], vectors, metric)[impostors])
    return thresholds_from_scores(np.concatenate(parts) if parts else np.empty(0), far)


def accepted(first: npt.ArrayLike, second: npt.ArrayLike, threshold: float, metric: str = "cosine") -> Flags:
    """Whether each pair is taken for one person: ``similarity >= threshold``.

    Returns:
        (N,) bool.

    Raises:
        InputError: as ``similarity``.
    """
    return similarity(first, second, metric) >= threshold


def verified_rate(first: npt.ArrayLike, second: npt.ArrayLike, threshold: float, metric: str = "cosine") -> Interval:
    """Part of the pairs that is taken for one person, with Wilson's interval.

    Raises:
        InputError: as ``similarity``.
    """
    flags = accepted(first, second, threshold, metric)
    return wilson(int(flags.sum()), len(flags))


def rank_one_hits(
    probes: npt.ArrayLike,
    probe_identities: npt.ArrayLike,
    gallery: npt.ArrayLike,
    gallery_identities: npt.ArrayLike,
    metric: str = "cosine",
    excluded: npt.ArrayLike | None = None,
) -> Flags:
    """Whether the nearest gallery picture of each probe shows the probe's person.

    Args:
        probes: (N, D).
        probe_identities: (N,).
        gallery: (M, D).
        gallery_identities: (M,).
        metric: see ``similarity``.
        excluded: (N,) index of the one gallery picture that a probe must not be compared with (its own original), or
            None.

    Returns:
        (P,) bool for the P probes whose person is in the gallery (after the exclusion); others cannot be found and
        are left out. Equal similarities count for the gallery picture that comes first.

    Raises:
        InputError: as ``similarity``.
    """
    matrix = pairwise_similarity(probes, gallery, metric)
    same = np.asarray(probe_identities).reshape(-1)[:, None] == np.asarray(gallery_identities).reshape(-1)[None]
    if excluded is not None:
        rows, columns = np.arange(len(matrix)), np.asarray(excluded, dtype=np.int64)
        matrix[rows, columns] = -np.inf
        same[rows, columns] = False
    possible = same.any(axis=1)
    return same[np.arange(len(matrix)), matrix.argmax(axis=1)][possible]


def rank_one(
    probes: npt.ArrayLike,
    probe_identities: npt.ArrayLike,
    gallery: npt.ArrayLike,
    gallery_identities: npt.ArrayLike,
    metric: str = "cosine",
    excluded: npt.ArrayLike | None = None,
) -> Interval:
    """Rank-1 rate with Wilson's interval; see ``rank_one_hits``."""
    hits = rank_one_hits(probes, probe_identities, gallery, gallery_identities, metric, excluded)
    return wilson(int(hits.sum()), len(hits))
