"""The grouping of k-Same, with removal."""

from __future__ import annotations

import torch
from torch import Tensor

from facezoo.errors import InputError

__all__ = ["furthest_partners", "ksame_clusters", "nearest_rows", "people_per_cluster"]

_PART = 1024
"""Rows compared at once: bounds the memory of the differences."""


def nearest_rows(features: Tensor, query: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The nearest gallery rows by Euclidean distance; equal distances in the gallery's order.

    Each query is compared alone, with the differences themselves: the expanded square (a² - 2ab + b²) rounds
    differently with the batch's size, and a tie must not fall differently in another batch.

    Args:
        features: (N, D).
        query: (B, D).
        count: rows wanted for each query, at most N.

    Returns:
        rows (B, count), nearest first, and squared distances (B, count).
    """
    rows, squares = [], []
    for one in query:
        starts = range(0, len(features), _PART)
        square = torch.cat([(features[start : start + _PART] - one).square().sum(1) for start in starts])
        value, row = torch.sort(square, stable=True)
        rows.append(row[:count])
        squares.append(value[:count])
    return torch.stack(rows), torch.stack(squares)


def ksame_clusters(features: Tensor, k: int) -> Tensor:
    """Group a closed set so that every group has at least k members.

    Newton, Sweeney and Malin (2005): take the first face that is left, group it with its k - 1 nearest among those
    left, remove the group, repeat. When fewer than 2 k are left they form one group (k to 2 k - 1 members), because a
    smaller remainder would break the bound.

    Args:
        features: (N, D), one row a person.
        k: at least 2, at most N.

    Returns:
        (N,) int64, the group of each row, groups numbered from 0.

    Raises:
        InputError: k out of range.
    """
    total = len(features)
    if not 2 <= k <= total:
        raise InputError(f"k must be from 2 to the number of people in the gallery ({total}), not {k}")
    clusters = torch.full((total,), -1, dtype=torch.int64)
    norms = features.square().sum(1)
    group = 0
    remaining = total
    while remaining >= 2 * k:
        free = clusters < 0
        seed = int(torch.nonzero(free)[0])
        # The expanded square without the seed's own norm, which changes no order; one pass over the features.
        distance = norms - 2 * (features @ features[seed])
        distance[~free] = torch.inf
        distance[seed] = -torch.inf
        clusters[torch.sort(distance, stable=True).indices[:k]] = group
        group += 1
        remaining -= k
    clusters[clusters < 0] = group
    return clusters


def people_per_cluster(clusters: Tensor, identity: Tensor) -> Tensor:
    """How many different people each group holds.

    Args:
        clusters: (N,) int64, numbered from 0 without gaps.
        identity: (N,) int64.

    Returns:
        (groups,) int64.
    """
    pairs = torch.unique(torch.stack([clusters, identity], 1), dim=0)
    return torch.bincount(pairs[:, 0])


def furthest_partners(features: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Groups that swap faces: everybody gets the mean of a group that is far away.

    Meng and Sun (2014): take the first face that is left with its k - 1 nearest, and the face furthest from it with
    *its* k - 1 nearest; each of the two groups gets the mean of the other; remove both, repeat. Of what is left at the
    end (fewer than 2 k), k or more form a group that gets the mean of the group furthest from it; fewer join the last
    group.

    Args:
        features: (N, D), one row a person.
        k: at least 2; there must be two groups, so at most N / 2.

    Returns:
        (N,) int64 group of each row, and (groups,) int64 whose mean each group gets: never its own.

    Raises:
        InputError: k out of range.
    """
    total = len(features)
    if not 2 <= k <= total // 2:
        raise InputError(f"k must be from 2 to half the number of people in the gallery ({total}), not {k}")
    clusters = torch.full((total,), -1, dtype=torch.int64)
    partner: list[int] = []

    def distances(row: int) -> Tensor:
        return (features - features[row]).square().sum(1)

    def take(seed: int) -> None:
        order = distances(seed)
        order[clusters >= 0] = torch.inf
        order[seed] = -torch.inf
        clusters[torch.sort(order, stable=True).indices[:k]] = len(partner)

    while int((clusters < 0).sum()) >= 2 * k:
        seed = int(torch.nonzero(clusters < 0)[0])
        first = len(partner)
        take(seed)
        partner.append(first + 1)
        far = distances(seed)
        far[clusters >= 0] = -torch.inf
        take(int(far.argmax()))
        partner.append(first)
    left = torch.nonzero(clusters < 0)[:, 0]
    if len(left) >= k:
        clusters[left] = len(partner)
        means = torch.stack([features[clusters == group].mean(0) for group in range(len(partner))])
        partner.append(int((means - features[left].mean(0)).square().sum(1).argmax()))
    elif len(left):
        clusters[left] = len(partner) - 1
    return clusters, torch.tensor(partner)
