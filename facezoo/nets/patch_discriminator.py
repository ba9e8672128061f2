"""Multi-scale patch discriminators (book, equations 5.14 and 6.14; hinge form: chapter 8)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class PatchDiscriminator(nn.Module):
    """Strided 4x4 convolutions with spectral normalisation; one logit a patch."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        modules: list[nn.Module] = []
        c_in, c_out = 3, width
        for _ in range(layers):
            conv = nn.Conv2d(c_in, c_out, 4, stride=2, padding=1)
            modules += [nn.utils.parametrizations.spectral_norm(conv), nn.LeakyReLU(0.2)]
            c_in, c_out = c_out, min(2 * c_out, 8 * width)
        modules.append(nn.utils.parametrizations.spectral_norm(nn.Conv2d(c_in, 1, 3, padding=1)))
        self.body = nn.Sequential(*modules)

    def forward(self, faces: Tensor) -> Tensor:
        """``(B, 3, S, S)`` in [-1, 1] -> logits ``(B, 1, S / 2**layers, S / 2**layers)``."""
        logits: Tensor = self.body(faces)
        return logits


class MultiScaleDiscriminator(nn.Module):
    """The same discriminator at ``scales`` sizes, each half of the one before."""

    def __init__(self, width: int, layers: int, scales: int) -> None:
        super().__init__()
        self.scales = nn.ModuleList(PatchDiscriminator(width, layers) for _ in range(scales))

    def forward(self, faces: Tensor) -> list[Tensor]:
        """``(B, 3, S, S)`` in [-1, 1] -> logits of each scale."""
        logits = []
        for i, discriminator in enumerate(self.scales):
            if i:
                faces = functional.avg_pool2d(faces, 2)
            logits.append(discriminator(faces))
        return logits


def discriminator_loss(real: list[Tensor], fake: list[Tensor], form: str) -> Tensor:
    """Mean over scales of the log loss (6.14) or the hinge loss (8.28, as its text says).

    Args:
        real: Logits of real pictures, one tensor a scale.
        fake: Logits of generated pictures.
        form: ``"log"`` or ``"hinge"``.
    """
    if form == "hinge":
        terms = [functional.relu(1 - r).mean() + functional.relu(1 + f).mean() for r, f in zip(real, fake, strict=True)]
    else:
        terms = [
            functional.softplus(-r).mean() + functional.softplus(f).mean() for r, f in zip(real, fake, strict=True)
        ]
    return torch.stack(terms).mean()


def generator_loss(fake: list[Tensor], form: str) -> Tensor:
    """Generator's side: non-saturating log loss, or minus the logit for the hinge form; mean over scales."""
    terms = [(-f).mean() if form == "hinge" else functional.softplus(-f).mean() for f in fake]
    return torch.stack(terms).mean()
