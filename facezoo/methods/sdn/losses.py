"""SDN's losses, equations (5)-(15). The games' variational terms (16)-(21) are in ``attributed.losses``.

The paper's ``bce`` is the cross-entropy of two distributions, ``-sum y log p``. Sums over pixels or elements are means
here, so that weights do not depend on sizes. Labels of -1 are unknown and count as zero; the mean is still over the
whole batch, so that several processes compute what one does.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from facezoo.methods.attributed.losses import attribute_cross_entropy, cross_entropy


def extractor_loss(source_logits: Tensor, anonymized_logits: Tensor | None, identity: Tensor) -> Tensor:
    """Equation (5): EC names the source x in x's own picture and, dual inference, in the anonymized one."""
    loss = cross_entropy(source_logits, identity)
    return loss if anonymized_logits is None else loss + cross_entropy(anonymized_logits, identity)


def reconstruction_loss(target: Tensor, own: Tensor, back: Tensor | None) -> Tensor:
    """Equation (6): y from y with its own features, and from the anonymized y with y's features (dual inference)."""
    loss = (target - own).abs().mean()
    return loss if back is None else loss + (target - back).abs().mean()


def attribute_loss(logits: Tensor, wanted: Tensor, sizes: Sequence[int]) -> Tensor:
    """Equation (7), and each term of (10); arguments as in ``attribute_cross_entropy``.

    The paper's text has the source's attributes as the target of (7) and the target's in Algorithm 1; both are cases of
    what is asked for, which is what this is called with.
    """
    return attribute_cross_entropy(logits, wanted, sizes)


def encoder_loss(reconstruction: Tensor, attribute: Tensor) -> Tensor:
    """Equation (8)."""
    return reconstruction + attribute


def discriminator_identity_loss(predicted: Tensor, features: Tensor) -> Tensor:
    """Equation (9): mean absolute difference of D's identity head and EC's features of the same picture.

    The head predicts F_ext, the layer that F_cls is a linear map of: one over thousands of identities would be most of
    the discriminator.
    """
    return (predicted - features).abs().mean()


def discriminator_loss(identity: Tensor, attributes: Tensor) -> Tensor:
    """Equation (11): (9) + (10)."""
    return identity + attributes


def reveal_loss(target: Tensor, revealed: Tensor) -> Tensor:
    """Equation (12): Euclidean (root mean square of a picture) and mean absolute distance of the recovered face."""
    difference = revealed - target
    # 1e-8 keeps the root's slope finite where nothing is left to learn.
    euclidean = (difference.square().flatten(1).mean(1) + 1e-8).sqrt().mean()
    return euclidean + difference.abs().mean()


def false_reveal_loss(logits: Tensor, identity: Tensor) -> Tensor:
    """Equation (13): with a wrong password or attributes the result shows z."""
    return cross_entropy(logits, identity)


def decoder_loss(reveal: Tensor, false_reveal: Tensor) -> Tensor:
    """Equation (14)."""
    return reveal + false_reveal


def total_loss(encoder: Tensor, decoder: Tensor, lambda_en: float, lambda_de: float) -> Tensor:
    """Equation (15)."""
    return lambda_en * encoder + lambda_de * decoder
