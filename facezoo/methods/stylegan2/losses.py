"""Losses of StyleGAN2 beside R1: logistic, path length. All in float32, whatever the precision of the networks."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional


def generator_loss(fake: Tensor) -> Tensor:
    """Non-saturating logistic loss (Goodfellow et al. 2014): mean of ``-log sigmoid(D(G(z)))``; logits ``(B,)``."""
    return functional.softplus(-fake.float()).mean()


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Logistic loss: means of ``-log sigmoid(D(x))`` and ``-log(1 - sigmoid(D(G(z))))``, added; logits ``(B,)``."""
    return functional.softplus(-real.float()).mean() + functional.softplus(fake.float()).mean()


def path_lengths(pictures: Tensor, ws: Tensor, noise: Tensor) -> Tensor:
    """Length of the Jacobian's product with a random picture (Karras et al. 2020, equation 4).

    Args:
        pictures: ``(B, 3, R, R)``, computed from ``ws``.
        ws: ``(B, L, w_dim)`` that require a gradient.
        noise: ``(B, 3, R, R)``, normal; divided here by the root of the number of pixels.

    Returns:
        ``(B,)`` with a graph: the norm over w_dim, root mean square over the layers.
    """
    scale = 1 / math.sqrt(pictures.shape[2] * pictures.shape[3])
    (gradient,) = torch.autograd.grad((pictures * noise).sum() * scale, ws, create_graph=True)
    return gradient.float().square().sum(2).mean(1).sqrt()


def path_penalty(lengths: Tensor, mean: Tensor) -> Tensor:
    """Mean squared distance of the path lengths ``(B,)`` from their moving average (equation 4)."""
    return (lengths - mean).square().mean()
