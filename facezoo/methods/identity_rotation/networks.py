"""What identity_rotation alone needs: the distribution of identities that a key's reference is drawn from.

Its other networks are shared: ``facezoo.nets.aad``, ``facezoo.nets.concealed_code``, ``facezoo.nets.linear_painter``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class IdentityDistribution(nn.Module):
    """Mean and covariance factor of the training identities: what a key's reference vector is drawn from.

    The book mixes ten random training identities for each password. A draw from the Gaussian of the same mean and
    covariance looks the same to the generator, needs no library of people, and lends nobody's identity.
    """

    mean: Tensor
    factor: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("factor", torch.eye(dim))

    @torch.no_grad()
    def fit(self, identities: Tensor) -> None:
        """Fits to ``(N, D)`` unit vectors (float64 inside; a little of the diagonal keeps the factor defined)."""
        z = functional.normalize(identities.double(), dim=-1)
        mean = z.mean(0)
        covariance = (z - mean).T @ (z - mean) / len(z)
        covariance += 1e-6 * covariance.diagonal().mean() * torch.eye(len(mean), dtype=z.dtype, device=z.device)
        self.mean.copy_(mean)
        self.factor.copy_(torch.linalg.cholesky(covariance))

    def forward(self, normal: Tensor) -> Tensor:
        """Standard normal ``(B, D)`` -> unit reference vectors ``(B, D)``."""
        return functional.normalize(self.mean + normal @ self.factor.T, dim=-1)
