"""The best linear guess of a face, and the coarse view that it starts from."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional


def coarse_face(faces: Tensor, mask: Tensor, grid: int) -> Tensor:
    """Replaces the inside of the face by a version of ``grid`` pixels across; outside it stays.

    What the attribute encoder is allowed to know: pose, light, skin tone and a rough expression, not the identity.

    Args:
        faces: ``(B, 3, S, S)``.
        mask: ``(S, S)`` soft face mask.
        grid: Pixels across the crop; 0 returns the faces unchanged.
    """
    if grid == 0:
        return faces
    coarse = functional.adaptive_avg_pool2d(faces, grid)
    coarse = functional.interpolate(coarse, size=faces.shape[-2:], mode="bilinear", align_corners=False)
    return torch.lerp(faces, coarse, mask)


class LinearPainter(nn.Module):
    """Best linear guess of a face from its identity vector and its coarse version: ridge regression, no training.

    The attribute encoder sees this guess instead of the blurred face, and the generator adds to it. So a face of the
    given identity stands in its place from the first batch on, and the networks need only make it real.

    Args:
        identity_dim: Length of the identity vector.
        grid: Pixels across the coarse version.
        size: Side of the picture.
    """

    def __init__(self, identity_dim: int, grid: int, size: int) -> None:
        super().__init__()
        self.grid, self.size = grid, size
        self.linear = nn.Linear(identity_dim + 3 * grid * grid, 3 * size * size)

    def features(self, identity: Tensor, faces: Tensor) -> Tensor:
        """``(B, D)`` and ``(B, 3, S, S)`` -> ``(B, D + 3 grid^2)``, all of about unit variance."""
        coarse = functional.adaptive_avg_pool2d(faces, self.grid).flatten(1)
        return torch.cat([identity * identity.shape[1] ** 0.5, coarse], dim=1)

    def forward(self, identity: Tensor, faces: Tensor) -> Tensor:
        """Guess at ``(B, 3, S, S)`` in [-1, 1]; of ``faces`` only the coarse version is used."""
        with torch.autocast(faces.device.type, enabled=False):  # a regression solved in float64 is read in float32
            flat: Tensor = self.linear(self.features(identity, faces))
        return flat.view(-1, 3, self.size, self.size).clamp(-1, 1).contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    def fit(self, batches: Iterable[tuple[Tensor, Tensor]], ridge: float = 0.02) -> None:
        """Solves the regression.

        Args:
            batches: ``(identity (B, D), faces (B, 3, S, S))``.
            ridge: Weight of the penalty, as a part of the mean variance of a feature, for each picture.
        """
        columns = self.linear.in_features + 1
        gram = torch.zeros(columns, columns, dtype=torch.float64)
        moment = torch.zeros(columns, self.linear.out_features, dtype=torch.float64)
        count = 0
        for identity, faces in batches:
            features = torch.cat([self.features(identity, faces), torch.ones(len(faces), 1)], dim=1)
            gram += (features.T @ features).double()
            moment += (features.T @ faces.flatten(1)).double()
            count += len(faces)
        penalty = ridge * count * torch.eye(columns, dtype=torch.float64)
        penalty[-1, -1] = 0  # the mean is not penalised
        solution = torch.linalg.solve(gram + penalty, moment)
        self.linear.weight.copy_(solution[:-1].T)
        self.linear.bias.copy_(solution[-1])
