"""Losses of the face painter (ours; the hinge loss is that of ``nets.patch_discriminator``)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["features_distance", "masked_l1", "other_person", "tone_distance"]


def masked_l1(result: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Mean absolute error over a soft region: ``(B, 3, S, S)`` twice, ``(B, 1, S, S)`` -> scalar; 0 for no region."""
    difference = (result - target).abs().mean(1, keepdim=True) * weight
    return difference.sum() / weight.sum().clamp_min(1.0)


def tone_distance(result: Tensor, guess: Tensor, mask: Tensor, grid: int = 4) -> Tensor:
    """Mean absolute difference of two pictures at ``grid`` x ``grid`` pixels, over the mask's share of the crop."""
    pooled = functional.adaptive_avg_pool2d(result, grid) - functional.adaptive_avg_pool2d(guess, grid)
    return pooled.abs().mean() / mask.mean().clamp_min(1e-3)


def features_distance(first: list[Tensor], second: list[Tensor], heads: torch.nn.ModuleList) -> Tensor:
    """LPIPS out of features that are there already: normalised maps of each layer and the heads -> ``(B,)``."""
    total = torch.zeros(len(first[0]), device=first[0].device)
    for a, b, head in zip(first, second, heads, strict=True):
        total = total + head((a - b).square()).mean((1, 2, 3))
    return total


def other_person(painted: Tensor, original: Tensor, margin: float) -> Tensor:
    """``relu(cos - margin)`` of embeddings ``(B, D)`` twice, mean: a recogniser shall not find the original."""
    return functional.relu(functional.cosine_similarity(painted, original, dim=-1) - margin).mean()
