"""The rates as ``torchmetrics.Metric``: batch by batch, on any device, summed over processes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional
from torchmetrics import Metric

from facezoo.errors import InputError

__all__ = ["RankOneRate", "VerifiedRate"]


class VerifiedRate(Metric):
    """Part of the pairs of embeddings that is taken for one person: similarity >= threshold.

    Args:
        threshold: a similarity, as ``thresholds_from_impostors`` gives it.
        metric: ``cosine`` or ``euclidean`` (similarity = minus the distance).

    Raises:
        InputError: unknown metric.
    """

    full_state_update = False
    higher_is_better = None  # protection wants it low, recovery high

    accepted: Tensor
    total: Tensor

    def __init__(self, threshold: float, metric: str = "cosine") -> None:
        super().__init__()
        if metric not in ("cosine", "euclidean"):
            raise InputError(f"The metric must be 'cosine' or 'euclidean', not {metric!r}.")
        self.threshold = threshold
        self.metric = metric
        self.add_state("accepted", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("total", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, first: Tensor, second: Tensor) -> None:
        """Adds pairs: two times (B, D). A pair that is not finite counts as not accepted, and counts."""
        if first.shape != second.shape or first.ndim != 2:
            raise InputError(
                f"Embeddings must be two times (B, D), not {tuple(first.shape)} and {tuple(second.shape)}."
            )
        first, second = first.double(), second.double()
        if self.metric == "cosine":
            scores = functional.cosine_similarity(first, second, dim=1, eps=1e-12)
        else:
            scores = -(first - second).norm(dim=1)
        self.accepted += (scores >= self.threshold).sum()
        self.total += len(first)

    def compute(self) -> Tensor:
        """The rate; NaN without pairs."""
        return self.accepted / self.total


class RankOneRate(Metric):
    """Part of the probes whose nearest gallery picture shows the same person.

    Args:
        gallery: (M, D) embeddings.
        identities: (M,) whole numbers: who is on each.
        metric: ``cosine`` or ``euclidean``.

    Raises:
        InputError: unknown metric, or sizes that do not fit.
    """

    full_state_update = False
    higher_is_better = None

    hits: Tensor
    total: Tensor

    def __init__(self, gallery: Tensor, identities: Tensor, metric: str = "cosine") -> None:
        super().__init__()
        if metric not in ("cosine", "euclidean"):
            raise InputError(f"The metric must be 'cosine' or 'euclidean', not {metric!r}.")
        if gallery.ndim != 2 or identities.shape != (len(gallery),):
            raise InputError(f"A gallery needs (M, D) and (M,), not {tuple(gallery.shape)}, {tuple(identities.shape)}.")
        self.metric = metric
        self.gallery = functional.normalize(gallery, dim=1) if metric == "cosine" else gallery
        self.identities = identities
        self.add_state("hits", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("total", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, probes: Tensor, identities: Tensor) -> None:
        """Adds probes (B, D) of the people (B,)."""
        gallery = self.gallery.to(probes)
        if self.metric == "cosine":
            nearest = (functional.normalize(probes, dim=1) @ gallery.T).argmax(1)
        else:
            nearest = torch.cdist(probes, gallery).argmin(1)
        self.hits += (self.identities.to(identities.device)[nearest.to(identities.device)] == identities).sum()
        self.total += len(probes)

    def compute(self) -> Tensor:
        """The rate; NaN without probes."""
        return self.hits / self.total
