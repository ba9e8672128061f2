"""Who is seen: distances, rates and angles between identity vectors, as ``torchmetrics.Metric``.

One convention, as in `facezoo.metrics.verification`: a *similarity*, larger for nearer faces (the cosine, or minus the
Euclidean distance for dlib-like recognisers). A vector that is not finite stands for a failed face.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional
from torchmetrics import Metric

from facezoo.errors import InputError
from facezoo.metrics.cases import MeanMetric, RateMetric, check_pairs, collected
from facezoo.metrics.intervals import Interval, wilson
from facezoo.metrics.verification import thresholds_from_scores

__all__ = [
    "IdentityDistance",
    "IdentityInvarianceScore",
    "KnownFactorFeatureAngle",
    "ProtectionRate",
    "RankOneRate",
    "TarAtFar",
    "VerifiedRate",
]

_METRICS = ("cosine", "euclidean")


def _check_metric(metric: str) -> None:
    if metric not in _METRICS:
        raise InputError(f"the metric must be 'cosine' or 'euclidean', not {metric!r}")


def _similarity(first: Tensor, second: Tensor, metric: str) -> Tensor:
    """(B, D) twice -> (B,) float64; NaN where a vector is not finite."""
    check_pairs(first, second, 2, "embeddings")
    first, second = first.double(), second.double()
    if metric == "cosine":
        return functional.cosine_similarity(first, second, dim=1, eps=1e-12)
    return -(first - second).norm(dim=1)


class IdentityDistance(MeanMetric):
    """Id-dis: mean distance between the identity vectors of two pictures (book, Eq 3.1).

    Args:
        metric: ``euclidean`` (dlib, FaceNet: the norm of the difference) or ``cosine`` (1 - cosine).

    Raises:
        InputError: unknown metric.
    """

    def __init__(self, metric: str = "cosine") -> None:
        super().__init__()
        _check_metric(metric)
        self.metric = metric

    def update(self, first: Tensor, second: Tensor) -> None:
        """Adds pairs: two times (B, D).

        Raises:
            InputError: two shapes, or values that are not finite (a failed face must be given the value that it
                deserves: an anonymized one counts as its own original, at distance 0).
        """
        scores = _similarity(first, second, self.metric)
        if not scores.isfinite().all():
            raise InputError("an identity vector is not finite: give a failed face the vector of what it counts as")
        self.keep((1 - scores) if self.metric == "cosine" else -scores)


class VerifiedRate(RateMetric):
    """Part of the pairs of embeddings that is taken for one person: similarity >= threshold.

    A pair that is not finite counts as not accepted, and counts: right for a recovery. For protection, where that
    would flatter, use `ProtectionRate`.

    Args:
        threshold: a similarity, as ``thresholds_from_impostors`` gives it.
        metric: ``cosine`` or ``euclidean`` (similarity = minus the distance).

    Raises:
        InputError: unknown metric.
    """

    def __init__(self, threshold: float, metric: str = "cosine") -> None:
        super().__init__()
        _check_metric(metric)
        self.threshold = threshold
        self.metric = metric

    def update(self, first: Tensor, second: Tensor) -> None:
        """Adds pairs: two times (B, D).

        Raises:
            InputError: two shapes.
        """
        self.count(_similarity(first, second, self.metric) >= self.threshold)


class ProtectionRate(RateMetric):
    """SPR, PSR, SDR: part of the anonymized pictures that is *not* taken for the original (book, Eq 3.2, 5.4.2).

    A face that failed (its vector is not finite) counts as not protected: fail closed.

    Args:
        threshold: a similarity; a pair with at least this much is one person. State where it comes from:
            ``thresholds_from_impostors``, or a published one (dlib: -0.6).
        metric: ``cosine`` or ``euclidean``.

    Raises:
        InputError: unknown metric.
    """

    higher_is_better = True

    def __init__(self, threshold: float, metric: str = "cosine") -> None:
        super().__init__()
        _check_metric(metric)
        self.threshold = threshold
        self.metric = metric

    def update(self, anonymized: Tensor, originals: Tensor) -> None:
        """Adds pairs: two times (B, D).

        Raises:
            InputError: two shapes.
        """
        scores = _similarity(anonymized, originals, self.metric)
        self.count(scores.isfinite() & (scores < self.threshold))


class TarAtFar(Metric):
    """True accept rates at false accept rates, with thresholds from impostor pairs (never from the pairs judged).

    Args:
        far: false accept rates in (0, 1).
        metric: ``cosine`` or ``euclidean``.

    Raises:
        InputError: unknown metric, or a rate out of range.
    """

    full_state_update = False
    higher_is_better: bool | None = None

    genuine: list[Tensor] | Tensor
    impostors: list[Tensor] | Tensor

    def __init__(self, far: Sequence[float] = (1e-2, 1e-3), metric: str = "cosine") -> None:
        super().__init__()
        _check_metric(metric)
        if not far or not all(0 < rate < 1 for rate in far):
            raise InputError(f"false accept rates lie between 0 and 1, not {tuple(far)}")
        self.far = tuple(float(rate) for rate in far)
        self.metric = metric
        self.set_dtype(torch.float64)
        self.add_state("genuine", [], dist_reduce_fx="cat")
        self.add_state("impostors", [], dist_reduce_fx="cat")

    def update(self, first: Tensor, second: Tensor, same: Tensor) -> None:
        """Adds pairs.

        Args:
            first: (B, D).
            second: (B, D).
            same: (B,) bool; where False, both must be *real* pictures, of two people: those pairs set the thresholds.

        Raises:
            InputError: other shapes, or an impostor pair that is not finite.
        """
        scores = _similarity(first, second, self.metric)
        if same.shape != scores.shape:
            raise InputError(f"{len(scores)} pairs need as many flags, not {tuple(same.shape)}")
        same = same.bool()
        if not scores[~same].isfinite().all():
            raise InputError("an impostor pair is not finite: thresholds need real pictures that can be embedded")
        if not isinstance(self.genuine, list) or not isinstance(self.impostors, list):
            raise InputError("this metric's processes are summed already: reset it before it is fed again")
        # A failed face is never accepted, and stays in the denominator.
        self.genuine.append(scores[same].nan_to_num(nan=-math.inf))
        self.impostors.append(scores[~same])

    def thresholds(self) -> dict[float, float]:
        """Similarity thresholds of the impostor pairs seen, by false accept rate.

        Raises:
            InputError: too few impostor pairs for a rate.
        """
        with self.sync_context(should_sync=self._to_sync):
            return thresholds_from_scores(collected(self.impostors).cpu().numpy(), self.far)

    def _rates(self) -> list[Interval]:
        scores = collected(self.genuine)
        limits = thresholds_from_scores(collected(self.impostors).cpu().numpy(), self.far)
        return [wilson(int((scores >= limits[rate]).sum()), len(scores)) for rate in self.far]

    def compute(self) -> Tensor:
        """(F,) rates in the order of ``far``, float64; NaN without genuine pairs.

        Raises:
            InputError: too few impostor pairs for a rate.
        """
        return torch.tensor([rate.value for rate in self._rates()], dtype=torch.float64)

    def intervals(self) -> dict[float, Interval]:
        """The rates with Wilson's intervals, by false accept rate, over all processes."""
        with self.sync_context(should_sync=self._to_sync):
            return dict(zip(self.far, self._rates(), strict=True))


class RankOneRate(RateMetric):
    """Part of the probes whose nearest gallery picture shows the same person.

    Args:
        gallery: (M, D) embeddings.
        identities: (M,) whole numbers: who is on each.
        metric: ``cosine`` or ``euclidean``.

    Raises:
        InputError: unknown metric, or sizes that do not fit.
    """

    def __init__(self, gallery: Tensor, identities: Tensor, metric: str = "cosine") -> None:
        super().__init__()
        _check_metric(metric)
        if gallery.ndim != 2 or identities.shape != (len(gallery),):
            raise InputError(f"a gallery needs (M, D) and (M,), not {tuple(gallery.shape)}, {tuple(identities.shape)}")
        self.metric = metric
        self.gallery = functional.normalize(gallery, dim=1) if metric == "cosine" else gallery
        self.identities = identities

    def update(self, probes: Tensor, identities: Tensor) -> None:
        """Adds probes (B, D) of the people (B,).

        Raises:
            InputError: sizes that do not fit.
        """
        if probes.ndim != 2 or probes.shape[1] != self.gallery.shape[1] or identities.shape != (len(probes),):
            raise InputError(f"probes need (B, D) and (B,), not {tuple(probes.shape)}, {tuple(identities.shape)}")
        gallery = self.gallery.to(probes)
        if self.metric == "cosine":
            nearest = (functional.normalize(probes, dim=1) @ gallery.T).argmax(1)
        else:
            nearest = torch.cdist(probes, gallery).argmin(1)
        self.count(self.identities.to(identities.device)[nearest.to(identities.device)] == identities)


class KnownFactorFeatureAngle(MeanMetric):
    """KFFA: mean angle in degrees between results of one face under two keys (as the iFADIT paper, section 4.5).

    The face is the known factor, the key is not. The mean is over all pairs of keys, then over faces; 90 is what
    unrelated faces have. Source of the measure: Li et al., ECCV 2022.
    """

    higher_is_better = True

    def update(self, results: Tensor) -> None:
        """Adds faces: (B, K, D) identity vectors of B faces under K keys, K at least 2.

        Raises:
            InputError: another shape, or values that are not finite.
        """
        if results.ndim != 3 or results.shape[1] < 2:
            raise InputError(f"KFFA needs (B, K, D) with K >= 2, not {tuple(results.shape)}")
        if not results.isfinite().all():
            raise InputError("an identity vector is not finite: give a failed face the vector of what it counts as")
        vectors = functional.normalize(results.double(), dim=2, eps=1e-12)
        first, second = torch.triu_indices(results.shape[1], results.shape[1], 1)
        cosines = (vectors @ vectors.transpose(1, 2))[:, first, second].clamp(-1, 1)
        self.keep(cosines.arccos().rad2deg().mean(1))


class IdentityInvarianceScore(Metric):
    """Mean identity distance between each two subsequent frames of a clip (book, 3.3.2.2, after Balaji et al.).

    Low: the anonymized face stays one person. Frames may come in any order and be spread over processes, for each
    brings its place. A gap in the numbering (a frame without a face) is no pair: it is counted in `gaps`.

    Args:
        metric: ``cosine`` (1 - cosine) or ``euclidean``.

    Raises:
        InputError: unknown metric.
    """

    full_state_update = False
    higher_is_better: bool | None = False

    vectors: list[Tensor] | Tensor
    places: list[Tensor] | Tensor
    width: Tensor

    def __init__(self, metric: str = "cosine") -> None:
        super().__init__()
        _check_metric(metric)
        self.metric = metric
        self.set_dtype(torch.float64)
        # Flat, because a process without frames takes part with an empty tensor of one dimension.
        self.add_state("vectors", [], dist_reduce_fx="cat")
        self.add_state("places", [], dist_reduce_fx="cat")
        self.add_state("width", torch.tensor(0), dist_reduce_fx="max")

    def update(self, frames: Tensor, clips: Tensor, numbers: Tensor) -> None:
        """Adds frames.

        Args:
            frames: (B, D) identity vectors.
            clips: (B,) which clip, 0 to 2**31.
            numbers: (B,) which frame of it, 0 to 2**21.

        Raises:
            InputError: other shapes, values that are not finite, or vectors of another length than before.
        """
        if frames.ndim != 2 or clips.shape != (len(frames),) or numbers.shape != (len(frames),):
            raise InputError(
                f"frames need (B, D), (B,) and (B,), not {tuple(frames.shape)}, {tuple(clips.shape)}, "
                f"{tuple(numbers.shape)}"
            )
        if not frames.isfinite().all():
            raise InputError("an identity vector is not finite: leave out a frame without a face, its number shows it")
        if int(self.width) not in (0, frames.shape[1]):
            raise InputError(f"identity vectors of {frames.shape[1]} after {int(self.width)} numbers")
        if not isinstance(self.vectors, list) or not isinstance(self.places, list):
            raise InputError("this metric's processes are summed already: reset it before it is fed again")
        self.width = torch.full_like(self.width, frames.shape[1])
        self.vectors.append(frames.detach().double().flatten())
        # float64 holds every whole number up to 2**53 exactly.
        self.places.append(clips.double() * 2**22 + numbers.double())

    def _pairs(self) -> tuple[Tensor, int]:
        places = collected(self.places)
        if len(places) == 0:
            return torch.zeros(0, dtype=torch.float64), 0
        order = places.argsort()
        vectors = collected(self.vectors).reshape(len(places), -1)[order]
        steps = places[order].diff()
        following = steps == 1
        same_clip = (places[order] / 2**22).floor().diff() == 0
        scores = _similarity(vectors[1:][following], vectors[:-1][following], self.metric)
        return (1 - scores) if self.metric == "cosine" else -scores, int((same_clip & ~following).sum())

    def compute(self) -> Tensor:
        """The mean distance, float64; NaN without two frames that follow each other."""
        distances, _ = self._pairs()
        return distances.mean() if len(distances) else torch.tensor(math.nan, dtype=torch.float64)

    def gaps(self) -> int:
        """Pairs that are missing because a frame between was not given, over all processes."""
        with self.sync_context(should_sync=self._to_sync):
            return self._pairs()[1]

    def interval(self, seed: int = 0) -> Interval:
        """The mean with its bootstrap interval. Frames of one clip are not independent: it is too narrow."""
        from facezoo.metrics.intervals import bootstrap_mean

        with self.sync_context(should_sync=self._to_sync):
            return bootstrap_mean(self._pairs()[0].cpu().numpy(), seed)
