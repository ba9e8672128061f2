"""A discriminator on the features of a frozen network (Sauer et al., "Projected GANs Converge Faster", NeurIPS 2021).

What a network trained on photographs already sees (edges, skin, eyes) need not be learned again by a discriminator from
nothing: small heads on its frozen features tell real from painted after a few hundred batches. As in the paper each
stage goes through a fixed random 1x1 convolution first, so that a head cannot look at a few strong channels only; the
mixing across stages is left out.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

__all__ = ["ProjectedDiscriminator"]


class _Head(nn.Module):
    """Fixed random projection, then three spectrally normalised convolutions: one logit a place."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(width_in, width, 1, bias=False)
        nn.init.normal_(self.projection.weight, std=width_in**-0.5)
        self.projection.requires_grad_(False)
        self.body = nn.Sequential(
            spectral_norm(nn.Conv2d(width, width, 3, padding=1)),
            nn.LeakyReLU(0.2),
            spectral_norm(nn.Conv2d(width, width, 3, padding=1)),
            nn.LeakyReLU(0.2),
            spectral_norm(nn.Conv2d(width, 1, 1)),
        )

    def requires_grad_(self, requires_grad: bool = True) -> _Head:
        """The projection stays frozen whatever the phase says."""
        super().requires_grad_(requires_grad)
        self.projection.weight.requires_grad_(False)
        return self

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.body(self.projection(features))
        return logits


class ProjectedDiscriminator(nn.Module):
    """One head for each stage of a frozen feature network.

    Args:
        channels: channels of each stage.
        width: channels of the heads.
    """

    def __init__(self, channels: Sequence[int], width: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(_Head(c, width) for c in channels)

    def requires_grad_(self, requires_grad: bool = True) -> ProjectedDiscriminator:
        """All but the fixed projections."""
        for head in self.heads:
            head.requires_grad_(requires_grad)
        return self

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Stages' features ``(B, C_i, H_i, W_i)`` -> logits ``(B, 1, H_i, W_i)`` of each."""
        return [head(f) for head, f in zip(self.heads, features, strict=True)]
