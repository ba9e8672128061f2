"""What stands around a face that nobody has: soft surroundings by regression, light and place by chance."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Portrait"]


class Portrait(nn.Module):
    """Surroundings of a face from its identity and light, the distribution of light, and where a face usually lies.

    Args:
        identity_dim: length of the identity vector.
        light_dim: number of the light's coefficients.
        points: number of mesh points.
        grid: pixels across the surroundings: they are out of focus.
    """

    weight: Tensor
    light_mean: Tensor
    light_factor: Tensor
    mesh: Tensor

    def __init__(self, identity_dim: int, light_dim: int, points: int, grid: int = 32) -> None:
        super().__init__()
        self.grid = grid
        self.register_buffer("weight", torch.zeros(identity_dim + light_dim + 1, 3 * grid * grid))
        self.register_buffer("light_mean", torch.zeros(light_dim))
        self.register_buffer("light_factor", torch.eye(light_dim))
        self.register_buffer("mesh", torch.zeros(points, 3))

    def light(self, normal: Tensor) -> Tensor:
        """Standard normal ``(B, L)`` -> coefficients of light ``(B, L)``."""
        return self.light_mean + normal @ self.light_factor.T

    def surroundings(self, identity: Tensor, light: Tensor, size: int) -> Tensor:
        """``(B, D)`` unit vectors and ``(B, L)`` -> ``(B, 3, size, size)`` in [-1, 1]."""
        rows = torch.cat([identity * identity.shape[1] ** 0.5, light, torch.ones_like(light[:, :1])], 1)
        small = (rows @ self.weight).view(-1, 3, self.grid, self.grid)
        return functional.interpolate(small, size=(size, size), mode="bicubic", align_corners=False).clamp(-1, 1)

    @torch.no_grad()
    def fit(self, faces: Tensor, identity: Tensor, light: Tensor, meshes: Tensor) -> None:
        """Fits everything.

        Args:
            faces: ``(N, 3, grid, grid)`` in [-1, 1], shrunk.
            identity: ``(N, D)`` unit vectors.
            light: ``(N, L)``.
            meshes: ``(N, P, 3)`` in crop pixels; their mean is where a face lies.
        """
        rows = torch.cat([identity * identity.shape[1] ** 0.5, light, torch.ones_like(light[:, :1])], 1).double()
        penalty = 0.02 * len(rows) * torch.eye(rows.shape[1], dtype=rows.dtype)
        penalty[-1, -1] = 0  # the mean is not penalised
        self.weight.copy_(torch.linalg.solve(rows.T @ rows + penalty, rows.T @ faces.flatten(1).double()))
        self.light_mean.copy_(light.mean(0))
        centred = (light - light.mean(0)).double()
        covariance = centred.T @ centred / len(light)
        covariance += 1e-6 * covariance.diagonal().mean() * torch.eye(len(covariance), dtype=covariance.dtype)
        self.light_factor.copy_(torch.linalg.cholesky(covariance))
        self.mesh.copy_(meshes.mean(0))
