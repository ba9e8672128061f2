"""Every metric class with data of its own: shared by the tests of one process and of two."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from facezoo import metrics

COUNT = 37


class Difference(nn.Module):
    """Stands for a network's distance."""

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return (first - second).square().mean((1, 2, 3))


@dataclass(frozen=True)
class Case:
    """A metric and COUNT cases for it, as rows of tensors."""

    make: Callable[[], Metric]
    rows: tuple[Tensor, ...]

    def feed(self, metric: Metric, start: int, stop: int) -> None:
        parts = [row[start:stop] for row in self.rows]
        if isinstance(metric, metrics.FrechetDistance):
            real = parts[1].bool()
            for side in (True, False):
                metric.update(parts[0][real == side], real=side)
        else:
            metric.update(*parts)


def cases() -> dict[str, Case]:
    random = torch.Generator().manual_seed(5)

    def normal(*shape: int) -> Tensor:
        return torch.randn(COUNT, *shape, generator=random)

    def whole(top: int, *shape: int) -> Tensor:
        return torch.randint(0, top, (COUNT, *shape), generator=random)

    first = normal(8)
    second = first + 0.7 * normal(8)
    pictures = normal(3, 16, 16).clamp(-1, 1)
    others = (pictures + 0.1 * normal(3, 16, 16)).clamp(-1, 1)
    points = normal(68, 2) * 20
    lost = points.clone()
    lost[3] = torch.nan
    angles = normal(3) * 100
    crops = normal(3, 128, 128).mul(0.3).clamp(-1, 1)
    changed = (crops + 0.1 * normal(3, 128, 128)).clamp(-1, 1)
    mesh = normal(468, 2) * 20
    moved = mesh + normal(468, 2)
    moved[5] = torch.nan
    irises = normal(2, 5, 2)
    return {
        "IdentityDistance": Case(lambda: metrics.IdentityDistance("euclidean"), (first, second)),
        "VerifiedRate": Case(lambda: metrics.VerifiedRate(0.8), (first, second)),
        "ProtectionRate": Case(lambda: metrics.ProtectionRate(0.8), (first, second)),
        "TarAtFar": Case(lambda: metrics.TarAtFar((0.1, 0.2)), (first, second, whole(2).bool())),
        "RankOneRate": Case(lambda: metrics.RankOneRate(second, torch.arange(COUNT)), (first, torch.arange(COUNT))),
        "KnownFactorFeatureAngle": Case(metrics.KnownFactorFeatureAngle, (normal(4, 8),)),
        "IdentityInvarianceScore": Case(
            metrics.IdentityInvarianceScore, (first, torch.arange(COUNT) % 3, torch.randperm(COUNT, generator=random))
        ),
        "DetectionRate": Case(metrics.DetectionRate, (whole(2).bool(),)),
        "BoxDistance": Case(metrics.BoxDistance, (normal(4), normal(4))),
        "LandmarkDistance": Case(metrics.LandmarkDistance, (points + 1, lost)),
        "PoseDistance": Case(metrics.PoseDistance, (angles, angles + 300)),
        "ExpressionDistance": Case(metrics.ExpressionDistance, (normal(10), normal(10))),
        "AttributeAccuracy": Case(lambda: metrics.AttributeAccuracy(("a", "b")), (whole(3, 2) - 1, whole(3, 2) - 1)),
        "PeakSignalToNoise": Case(metrics.PeakSignalToNoise, (others, pictures)),
        "StructuralSimilarity": Case(metrics.StructuralSimilarity, (others, pictures)),
        "MeanAbsoluteError": Case(metrics.MeanAbsoluteError, (others, pictures)),
        "NetworkDistance": Case(lambda: metrics.NetworkDistance(Difference(), "test"), (others, pictures)),
        "DetailRatio": Case(metrics.DetailRatio, (changed, crops)),
        "GrainOutside": Case(metrics.GrainOutside, (changed, crops)),
        "SeamStep": Case(metrics.SeamStep, (changed, crops)),
        "ToneShift": Case(metrics.ToneShift, (changed, crops)),
        "MeshError": Case(metrics.MeshError, (moved, mesh)),
        "ExpressionKept": Case(lambda: metrics.ExpressionKept("eyes"), (moved, mesh)),
        "GazeError": Case(metrics.GazeError, (moved, irises + 0.1, mesh, irises)),
        "HalvesFrechet": Case(lambda: metrics.HalvesFrechet(8), (second, first, whole(2).bool())),
        "FrechetDistance": Case(lambda: metrics.FrechetDistance("test", 8), (first, whole(2).bool())),
    }
