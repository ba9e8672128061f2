"""Terms that both papers' losses are made of.

Sums over pixels or elements are means, so that weights do not depend on sizes. Information is the exception: a code's
numbers tell so many nats together, and their mean would be thousands of times less. Labels of -1 are unknown and count
as zero; the mean is still over the whole batch, so that several processes compute what one does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Mean ``-log p(target)`` over the batch; targets of -1 count as zero. ``(B, K)`` and ``(B,)`` -> scalar."""
    return functional.cross_entropy(logits.float(), target, ignore_index=-1, reduction="sum") / max(1, len(target))


def attribute_cross_entropy(logits: Tensor, wanted: Tensor, sizes: Sequence[int]) -> Tensor:
    """Cross-entropy of every attribute, summed over the attributes.

    Args:
        logits: ``(B, sum(sizes))``, the attributes' values side by side.
        wanted: ``(B, A)`` value indices, -1 where nothing is asked or known.
        sizes: Values of each attribute.
    """
    parts = torch.split(logits, list(sizes), dim=1)
    return torch.stack([cross_entropy(part, wanted[:, i]) for i, part in enumerate(parts)]).sum()


def gaussian_log_likelihood(code: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """``log q(c | picture)`` of a diagonal Gaussian in nats: summed over the code, mean over the batch.

    Up to the constant entropy of the code this is the lower bound of the mutual information (Barber and Agakov):
    ``I >= H(c) + <log q(c|.)>``. SDN (17), (18), (21); MfM (12), (18).
    """
    squared = (code - mean).square() * torch.exp(-log_variance)
    each: Tensor = -0.5 * (squared + log_variance + math.log(2 * math.pi))
    return each.flatten(1).sum(1).mean()


def standard_normal_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """``KL(N(mean, variance) || N(0, 1))`` in nats: summed over the bottleneck, mean over the batch.

    The upper bound of the mutual information through a noisy bottleneck, with the standard normal as marginal: SDN
    (20), MfM (17).
    """
    each: Tensor = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)
    return each.flatten(1).sum(1).mean()
