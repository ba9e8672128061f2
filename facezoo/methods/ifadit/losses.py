"""Losses of iFADIT, equations (12)-(22); each gives one value a face, so that a batch can be weighted by rows.

Norms are means over their elements, so that the weights do not depend on sizes (the paper does not say which it uses).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional
from torchmetrics.functional.image import structural_similarity_index_measure

from facezoo.methods.ifadit.frozen import LossNetworks

_SSIM_SHARE, _L1_SHARE = 0.84, 0.16
_SAME_PERSON = 0.4
"""Cosine of two originals (SFace) above which they may show one person; such pairs are left out of L_Div."""


def visual_quality(result: Tensor, target: Tensor) -> Tensor:
    """L_VQ = .84 (1 - SSIM) + .16 |difference|, equation (12).

    Args:
        result: ``(B, 3, H, W)`` in [-1, 1], sides of at least 16.
        target: The same.
    """
    with torch.autocast(result.device.type, enabled=False):  # variances are differences of large numbers
        ssim = structural_similarity_index_measure(result.float(), target.float(), data_range=2.0, reduction="none")
    return _SSIM_SHARE * (1 - cast(Tensor, ssim)) + _L1_SHARE * absolute(result, target)


def absolute(first: Tensor, second: Tensor) -> Tensor:
    """Mean absolute difference a face."""
    return (first - second).abs().flatten(1).mean(1)


def similar(first: Tensor, second: Tensor) -> Tensor:
    """theta+ = max(0, cos), equation (16), of identity vectors ``(B, D)``: high where two faces are one person."""
    return functional.cosine_similarity(first, second, dim=-1).clamp(min=0)


def dissimilar(first: Tensor, second: Tensor) -> Tensor:
    """theta- = 1 - cos, equation (19), of identity vectors ``(B, D)``."""
    return 1 - functional.cosine_similarity(first, second, dim=-1)


def semantic(result_points: Tensor, points: Tensor) -> Tensor:
    """The landmark term of L_Sem, equation (13): mean absolute difference of points in parts of the side."""
    return absolute(result_points, points)


def diversity_of_people(mine: Tensor, everyone: Tensor, originals: Tensor, all_originals: Tensor) -> Tensor:
    """First term of L_Div, equation (17): anonymized faces of different people under one secret.

    With several processes each has a part of the batch. The others' vectors come without gradients; the value is that
    of the pairs of this part with all, and the gradient that of the mean over all pairs.

    Args:
        mine: ``(B, D)`` identity vectors of this process's anonymized faces.
        everyone: ``(W, D)`` those of the whole batch, detached; holds ``mine`` too.
        originals: ``(B, D)`` identity vectors of the originals.
        all_originals: ``(W, D)`` those of the whole batch. A pair whose originals may be one person is left out (so is
            a face with itself).

    Returns:
        ``(B,)`` mean over the other people; 0 for a face without any.
    """
    cosines = functional.normalize(mine, dim=-1) @ functional.normalize(everyone, dim=-1).T
    others = (functional.normalize(originals, dim=-1) @ functional.normalize(all_originals, dim=-1).T) < _SAME_PERSON
    values = (cosines.clamp(min=0) * others).sum(1) / others.sum(1).clamp(min=1)
    # In the mean over pairs each face stands twice, once on either side; here it has a gradient on one side only.
    return 2 * values - values.detach()


@torch.no_grad()
def known_of(target: Tensor, networks: LossNetworks) -> dict[str, Tensor]:
    """Landmarks and parse maps of the originals, which every picture of a batch is compared with."""
    known = {}
    if networks.landmarks is not None:
        known["landmarks"] = networks.landmarks(target)
    if networks.parser is not None:
        known["parser"] = networks.parser(target)
    return known


def image_terms(
    result: Tensor, target: Tensor, networks: LossNetworks, weights: Sequence[float], known: dict[str, Tensor]
) -> Tensor:
    """L_Img of one made picture, equation (20).

    Args:
        result: ``(B, 3, S, S)`` in about [-1, 1].
        target: The original.
        networks: Landmarks, LPIPS and parser; one with a weight of 0 may be None.
        weights: Of L1, LPIPS, landmarks and parser, equation (21).
        known: The originals' landmarks and parse maps, of ``known_of``.

    Returns:
        ``(B,)``.
    """
    total = weights[0] * absolute(result, target)
    if weights[1] > 0 and networks.lpips is not None:
        total = total + weights[1] * networks.lpips(result, target)
    if weights[2] > 0 and networks.landmarks is not None:
        total = total + weights[2] * absolute(networks.landmarks(result), known["landmarks"])
    if weights[3] > 0 and networks.parser is not None:
        difference = networks.parser(result) - known["parser"]
        # The norm of a zero vector has no gradient.
        total = total + weights[3] * (difference.square().flatten(1).mean(1) + 1e-12).sqrt()
    return total


def tone(result: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference of 4x4-pixel thumbnails (ours): ``(B, 3, S, S)`` twice -> ``(B,)``.

    Skin tone and light belong to the picture, or the pasted face shows.
    """
    return absolute(*(functional.adaptive_avg_pool2d(x, 4).flatten(1) for x in (result, target)))
