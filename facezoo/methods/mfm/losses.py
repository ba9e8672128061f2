"""MfM's losses, equations (1)-(7). The games' bounds (12), (17), (18) are in ``attributed.losses``.

F_d and F_p1 are the same picture, the face anonymized with the right password; F_r is the recovered one, F_wp1 and
F_wp2 come from wrong passwords, F_p2 from another right one. Sums over pixels or elements are means here. Labels of -1
are unknown and count as zero; the mean is still over the whole batch.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional

from facezoo.methods.attributed.losses import attribute_cross_entropy, cross_entropy


def appearance_loss(original: Tensor, anonymized: Tensor, recovered: Tensor, keep_share: float = 1.0) -> Tensor:
    """Equation (1): ``|F_d - I|_1 + |F_r - I|_1``; the first term times ``keep_share`` (paper: 1)."""
    return keep_share * (anonymized - original).abs().mean() + (recovered - original).abs().mean()


def attribute_loss(logits: Tensor, wanted: Tensor, sizes: Sequence[int]) -> Tensor:
    """One term of equation (2): ``-log V_cls(A | F)``; arguments as in ``attribute_cross_entropy``."""
    return attribute_cross_entropy(logits, wanted, sizes)


def identity_loss(
    recovered: Tensor, identity: Tensor, anonymized: Tensor, target: Tensor, mistaken: Tensor | None, proxy: Tensor
) -> Tensor:
    """Equation (3): the recovered face is i, the anonymized one t, the one of a wrong password k.

    Args:
        recovered: Identity logits of F_r, ``(B, K)``.
        identity: ID_i, ``(B,)``.
        anonymized: Logits of F_p1.
        target: ID_t.
        mistaken: Logits of F_wp1; None where none was drawn.
        proxy: ID_k.
    """
    loss = cross_entropy(recovered, identity) + cross_entropy(anonymized, target)
    return loss if mistaken is None else loss + cross_entropy(mistaken, proxy)


def distance(a: Tensor, b: Tensor) -> Tensor:
    """Equation (4b): ``max(0, cos(a, b))``, mean over the batch; ``(B, F)`` features."""
    return functional.relu(functional.cosine_similarity(a, b, dim=-1)).mean()


def feature_loss(first: Tensor, second: Tensor, wrong_first: Tensor, wrong_second: Tensor) -> Tensor:
    """Equation (4a): features of F_p1 against those of F_p2, F_wp1 and F_wp2."""
    return distance(first, second) + distance(first, wrong_first) + distance(first, wrong_second)


def recovered_loss(original: Tensor, recovered: Tensor) -> Tensor:
    """Equation (5): mean absolute difference of the classifier's features of I and F_r."""
    return (original - recovered).abs().mean()


def domain_loss(predicted: Tensor, features: Tensor) -> Tensor:
    """Equation (6): mean absolute difference of V's identity head and the classifier's features of F_p1."""
    return (predicted - features).abs().mean()
