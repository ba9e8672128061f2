"""Losses of dp_kanonymity, equations (4.3) and (4.7)-(4.13)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional


def multilabel_loss(logits: Tensor, target: Tensor, known: Tensor, count: Tensor | None = None) -> Tensor:
    """Multi-label soft margin loss (4.3) over the labels that are known: ``(B, c)`` each -> scalar.

    With every label known this is ``torch.nn.MultiLabelSoftMarginLoss``. ``count`` is how many are known, where that is
    the average over several processes: their averaged gradients are then those of the whole batch.
    """
    each = functional.binary_cross_entropy_with_logits(logits, target, reduction="none") * known
    return each.sum() / (known.sum() if count is None else count).clamp(min=1)


def attribute_loss(logits: Tensor, target: Tensor) -> Tensor:
    """(4.10), (4.11): the sum over the attributes, the mean over the batch."""
    return functional.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(1).mean()


def gradient_penalty(critic: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, mix: Tensor) -> Tensor:
    """``E (|grad D(x)| - 1)^2`` at places between real and edited pictures, ``mix`` ``(B,)`` in [0, 1] (4.7)."""
    share = mix.to(real)[:, None, None, None]
    between = torch.lerp(real.detach(), fake.detach(), share).requires_grad_(True)
    (gradient,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    return (gradient.flatten(1).norm(dim=1) - 1).square().mean()


def discriminator_loss(
    real_score: Tensor, fake_score: Tensor, penalty: Tensor, attribute: Tensor, weight: float, weight_attribute: float
) -> Tensor:
    """(4.12), to be minimised: ``-(E D(real) - E D(fake)) + weight penalty + weight_attribute L_attr``.

    The book's (4.7) *adds* the penalty to what the discriminator maximises, which would reward breaking it. Here it is
    subtracted there, as in WGAN-GP.
    """
    return fake_score.mean() - real_score.mean() + weight * penalty + weight_attribute * attribute


def editor_loss(
    fake_score: Tensor, attribute: Tensor, reconstruction: Tensor, weight_attribute: float, weight_rec: float
) -> Tensor:
    """(4.13), to be minimised: ``-E D(fake) + weight_attribute L_attr + weight_rec L_rec``."""
    return -fake_score.mean() + weight_attribute * attribute + weight_rec * reconstruction


def reconstruction_loss(faces: Tensor, unchanged: Tensor) -> Tensor:
    """(4.9): mean absolute error of the edit that changes nothing."""
    return (faces - unchanged).abs().mean()
