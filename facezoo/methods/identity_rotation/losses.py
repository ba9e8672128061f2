"""Losses of identity_rotation, equations (6.11)-(6.13) of the book."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


def identity_loss(embedding: Tensor, target: Tensor) -> Tensor:
    """``1 - cos`` a face, equation (6.11): ``(B, D)`` and ``(B, D)`` -> ``(B,)``."""
    return 1 - functional.cosine_similarity(embedding, target, dim=-1)


def attribute_loss(maps: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    """Half the squared difference of the attribute maps, equation (6.12), a face: -> ``(B,)``.

    The book sums over the elements of a map; we take their mean, so that the weight does not depend on the widths.
    """
    terms = [0.5 * (a - b).square().flatten(1).mean(1) for a, b in zip(maps, targets, strict=True)]
    return torch.stack(terms).sum(0)


def reconstruction_loss(result: Tensor, target: Tensor) -> Tensor:
    """Half the mean squared error, equation (6.13), a face: -> ``(B,)``; mean as in ``attribute_loss``."""
    return 0.5 * (result - target).square().flatten(1).mean(1)


def coarse_loss(result: Tensor, target: Tensor, grid: int = 4) -> Tensor:
    """Mean absolute difference at ``grid`` x ``grid`` pixels, a face: -> ``(B,)`` (ours)."""
    pooled = functional.adaptive_avg_pool2d(result, grid) - functional.adaptive_avg_pool2d(target, grid)
    return pooled.abs().flatten(1).mean(1)
