"""Choosing attributes: Poisson sample, nearest neighbours, votes, exponential mechanism; and t-closeness.

Everything here counts people, a row each (`reference.ReferenceSet.nearest` makes one row of somebody's pictures).
Sensitivity of the votes, which the book takes for 1: a person who joins or leaves the sample is one neighbour in and
another one out. Each of the two has at most 1 vote for one attribute and tau for all together (4.4), so over all
attributes the votes move by at most 2 tau in l1 (the book's global sensitivity). An attribute whose votes move by d
costs epsilon d / Delta q, so a face costs at most 2 tau epsilon / Delta q, before amplification by the sampling.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Tensor

from facezoo.errors import InputError
from facezoo.privacy.accounting import Cost, amplified_by_poisson_sampling
from facezoo.privacy.mechanisms import ExponentialMechanism
from facezoo.privacy.randomness import BitSource, bernoulli

UTILITY_SENSITIVITY = 1.0
"""Delta q of the exponential mechanism (book, 4.5.3); `selection_cost` says what follows."""


def poisson_sample(count: int, probability: float, source: BitSource) -> Tensor:
    """People of a set, each taken independently with the same probability: (n,) int64."""
    share = Fraction(probability)
    return torch.tensor([row for row in range(count) if bernoulli(source, share)], dtype=torch.int64)


def neighbour_votes(query: Tensor, features: Tensor, attributes: Tensor, k: int, tau: float) -> Tensor:
    """Votes of the k nearest for each attribute, with the tau-approximation (4.4).

    Args:
        query: ``(D,)`` phi(x).
        features: ``(N, D)`` of the sample, a row a person.
        attributes: ``(N, c)`` of 0 and 1, in the sample.
        k: how many neighbours; fewer where the sample has fewer.
        tau: most votes of one neighbour.

    Returns:
        ``(c,)`` float64.
    """
    square = (features.double() - query.double()).square().sum(1)
    nearest = attributes[torch.sort(square, stable=True).indices[:k]].double()
    each = nearest.sum(1, keepdim=True)
    return (nearest * (tau / each.clamp(min=tau))).sum(0)


def average_attributes(votes: Tensor, k: int, groups: Sequence[Sequence[int]]) -> Tensor:
    """The neighbours' average attributes R without any noise: ``(c,)`` votes -> ``(c,)`` of 0 and 1.

    What `private_attributes` chooses most often: the majority, and in a conflict group the attribute with most votes.
    A figure of the book (4.3) needs it; it is nothing to publish.
    """
    chosen = (votes > k / 2).long()
    for group in groups:
        members = torch.tensor(list(group))
        chosen[members] = 0
        chosen[members[int(votes[members].argmax())]] = 1
    return chosen


def private_attributes(
    votes: Tensor, k: int, epsilon: float, groups: Sequence[Sequence[int]], source: BitSource
) -> Tensor:
    """Attributes by the exponential mechanism (4.5, 4.6): ``(c,)`` votes -> ``(c,)`` of 0 and 1.

    An independent attribute is chosen between "with" (utility v) and "without" (k - v); of a conflict group exactly one
    attribute is chosen.
    """
    mechanism = ExponentialMechanism(epsilon, UTILITY_SENSITIVITY)
    chosen = torch.zeros(len(votes), dtype=torch.int64)
    in_groups = {index for group in groups for index in group}
    for index in range(len(votes)):
        if index not in in_groups:
            pair = torch.stack([k - votes[index], votes[index]])
            chosen[index] = mechanism.choose(pair, source)
    for group in groups:
        members = torch.tensor(list(group))
        chosen[members[mechanism.choose(votes[members], source)]] = 1
    return chosen


def selection_cost(epsilon: float, tau: float, count: int, gamma: float) -> Cost:
    """What one anonymized face costs a person of the reference set; see the module's text.

    Args:
        epsilon: of the mechanism.
        tau: of the approximation.
        count: number of attributes: nobody has more votes than these.
        gamma: sampling probability.
    """
    whole = 2 * min(tau, float(count)) * epsilon / UTILITY_SENSITIVITY
    return amplified_by_poisson_sampling(Cost(whole), gamma)


def t_close_attributes(
    truth: Tensor, frequency: Tensor, t: float, groups: Sequence[Sequence[int]], source: BitSource
) -> Tensor:
    """AnonymousNet's selection: attributes whose distribution, given the truth, is within t of the population's.

    With probability w the truth is told, else a draw from the population. The distribution of an answer is then at
    distance w |truth - frequency| from the population's (earth mover's, which for one bit is the difference, for a
    group the total variation); w is the greatest for which that is at most t, whatever the truth is.

    Args:
        truth: ``(c,)`` of 0 and 1.
        frequency: ``(c,)`` share of people who have each attribute.
        t: 0 to 1.
        groups: conflict groups; frequencies of a group are scaled to a sum of 1.
        source: of randomness.

    Raises:
        InputError: a frequency that is none.
    """
    if not bool(((frequency >= 0) & (frequency <= 1)).all()):
        raise InputError("frequencies lie between 0 and 1")
    limit = Fraction(t)
    chosen = torch.zeros(len(truth), dtype=torch.int64)
    in_groups = {index for group in groups for index in group}
    for index in range(len(truth)):
        if index in in_groups:
            continue
        share = Fraction(float(frequency[index]))
        told = min(Fraction(1), limit / max(share, 1 - share))
        chosen[index] = int(truth[index]) if bernoulli(source, told) else int(bernoulli(source, share))
    for group in groups:
        shares = [Fraction(float(frequency[index])) for index in group]
        total = sum(shares)
        shares = [share / total for share in shares] if total else [Fraction(1, len(group))] * len(group)
        furthest = 1 - min(shares)
        own = [place for place, index in enumerate(group) if int(truth[index]) == 1]
        told = min(Fraction(1), limit / furthest)
        if own and bernoulli(source, told):
            chosen[group[own[0]]] = 1
            continue
        rest = Fraction(1)
        for place, share in enumerate(shares):
            if place == len(shares) - 1 or bernoulli(source, share / rest):
                chosen[group[place]] = 1
                break
            rest -= share
    return chosen
