"""The shape of a face taken apart: pose, expression, and what belongs to the person.

Pose is the similarity transform in space that brings the mean shape nearest to the mesh. What is left is split by two
orthogonal bases: *expression* is what differs between pictures of one person (the largest directions of the covariance
within people), *identity* what differs between people and is orthogonal to it (compare linear discriminant analysis).
So exchanging the identity part leaves mouth, eyes and pose where they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = [
    "POSE_NUMBERS",
    "Pose",
    "ShapeModel",
    "person_means",
    "principal_directions",
    "several_first",
    "within_people",
]


@dataclass(frozen=True)
class Pose:
    """A similarity transform for each face: ``points = scale * shape @ rotation.T + shift``.

    Attributes:
        rotation: ``(B, 3, 3)``.
        scale: ``(B, 1, 1)``.
        shift: ``(B, 1, 3)``.
    """

    rotation: Tensor
    scale: Tensor
    shift: Tensor

    def apply(self, shapes: Tensor) -> Tensor:
        """From the model's space into the picture, ``(B, N, 3)`` both."""
        return self.scale * shapes @ self.rotation.transpose(1, 2) + self.shift

    def remove(self, points: Tensor) -> Tensor:
        """From the picture into the model's space, ``(B, N, 3)`` both."""
        return (points - self.shift) @ self.rotation / self.scale

    @property
    def turn(self) -> Tensor:
        """``(B, 2)``: where the face's forward direction points, to the right and down; 0 from the front, at most 1."""
        return self.rotation[:, :2, 2]


POSE_NUMBERS = 6
_TURN_UNIT, _SIZE_UNIT, _SHIFT_UNIT = 0.35, 0.1, 0.05
"""Radians, logarithm of the size and crop units that count as one deviation of a pose."""


def rotation_vector(rotation: Tensor) -> Tensor:
    """Axis times angle in radians, ``(B, 3, 3)`` -> ``(B, 3)``, angles below half a turn."""
    skew = rotation - rotation.transpose(1, 2)
    axis = torch.stack([skew[:, 2, 1], skew[:, 0, 2], skew[:, 1, 0]], 1) / 2
    sine = axis.norm(dim=1, keepdim=True)
    cosine = (rotation.diagonal(dim1=1, dim2=2).sum(1, keepdim=True) - 1) / 2
    return axis * (torch.atan2(sine, cosine) / sine.clamp_min(1e-9))


def rotation_matrix(vector: Tensor) -> Tensor:
    """Inverse of ``rotation_vector``."""
    x, y, z = vector.unbind(1)
    zero = torch.zeros_like(x)
    return torch.linalg.matrix_exp(torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], 1).view(-1, 3, 3))


def fit_pose(points: Tensor, mean: Tensor) -> Pose:
    """The similarity that brings ``mean (N, 3)`` nearest to each of ``points (B, N, 3)`` (Umeyama, TPAMI 1991)."""
    centre, target = mean.mean(0), points.mean(1, keepdim=True)
    x, y = mean - centre, points - target
    u, s, vh = torch.linalg.svd(y.transpose(1, 2) @ x)
    sign = torch.ones_like(s)
    sign[:, 2] = torch.sign(torch.linalg.det(u @ vh))
    rotation = u * sign[:, None, :] @ vh
    scale = (s * sign).sum(1) / x.square().sum()
    shift = target - scale[:, None, None] * (centre @ rotation.transpose(1, 2))[:, None]
    return Pose(rotation, scale[:, None, None], shift)


def person_means(values: Tensor, person: Tensor) -> Tensor:
    """Mean of each person's rows, given back for every row: ``(N, F)`` and ``(N,)`` int64 -> ``(N, F)``."""
    _, place = torch.unique(person, return_inverse=True)
    count = torch.zeros(int(place.max()) + 1, dtype=values.dtype).index_add_(0, place, torch.ones_like(values[:, 0]))
    total = torch.zeros(len(count), values.shape[1], dtype=values.dtype).index_add_(0, place, values)
    return (total / count[:, None])[place]


def within_people(values: Tensor, person: Tensor) -> Tensor:
    """Differences to the own person's mean, of people with two or more pictures, unbiased: ``(M, F)``."""
    _, place, count = torch.unique(person, return_inverse=True, return_counts=True)
    several = count[place] > 1
    factor = (count / (count - 1).clamp_min(1)).sqrt().to(values.dtype)[place]
    return ((values - person_means(values, person)) * factor[:, None])[several]


def several_first(person: Tensor, most: int) -> Tensor:
    """Indices, in order, of at most ``most`` pictures: those of people with the most pictures are taken first."""
    _, place, count = torch.unique(person, return_inverse=True, return_counts=True)
    return count[place].argsort(descending=True, stable=True)[:most].sort().values


def principal_directions(rows: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Largest principal directions of centred rows.

    Args:
        rows: ``(N, F)``.
        number: how many, at most N and F.

    Returns:
        Orthonormal directions ``(number, F)`` and the deviation along each ``(number,)``, largest first. Their signs
        are fixed: the entry of largest magnitude is positive.
    """
    if rows.shape[0] >= rows.shape[1]:
        variance, vectors = torch.linalg.eigh(rows.T @ rows / len(rows))
        directions = vectors.T.flip(0)[:number]
    else:
        variance, vectors = torch.linalg.eigh(rows @ rows.T / len(rows))
        directions = torch.nn.functional.normalize(vectors.T.flip(0)[:number] @ rows, dim=1)
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    return directions * torch.sign(largest), variance.flip(0)[:number].clamp_min(0).sqrt()


class ShapeModel(nn.Module):
    """Mean shape with the bases of expression and identity.

    Args:
        start: ``(N, 3)`` a mean face to begin with, x right, y down, z away; its unit becomes the model's.
        expressions: number of directions of expression.
        identities: number of directions of identity.
    """

    mean: Tensor
    expression: Tensor
    expression_deviation: Tensor
    identity: Tensor
    identity_deviation: Tensor
    usual_scale: Tensor
    usual_shift: Tensor

    def __init__(self, start: Tensor, expressions: int, identities: int) -> None:
        super().__init__()
        columns = start.numel()
        self.register_buffer("mean", start.float().clone())
        self.register_buffer("usual_scale", torch.ones(()))
        self.register_buffer("usual_shift", torch.zeros(2))
        for name, rows in (("expression", expressions), ("identity", identities)):
            self.register_buffer(name, torch.zeros(rows, columns))
            self.register_buffer(f"{name}_deviation", torch.ones(rows))

    def pose(self, points: Tensor) -> Pose:
        """Pose of ``(B, N, 3)`` mesh points (any unit, the same in x, y and z)."""
        return fit_pose(points, self.mean)

    def expressions(self, shapes: Tensor) -> Tensor:
        """Expression of shapes without pose ``(B, N, 3)`` in deviations: ``(B, E)``."""
        return (shapes - self.mean).flatten(1) @ self.expression.T / self.expression_deviation

    def identities(self, shapes: Tensor) -> Tensor:
        """Identity part of shapes without pose in deviations: ``(B, K)``."""
        return (shapes - self.mean).flatten(1) @ self.identity.T / self.identity_deviation

    def exchange(self, shapes: Tensor, change: Tensor) -> Tensor:
        """Adds ``change (B, K)`` deviations to the identity part; expression stays exactly as it is."""
        moved = (change * self.identity_deviation) @ self.identity
        return shapes + moved.view_as(shapes)

    def compose(self, expression: Tensor, identity: Tensor) -> Tensor:
        """Shapes without pose from deviations ``(B, E)`` and ``(B, K)``: ``(B, N, 3)``."""
        moved = (expression * self.expression_deviation) @ self.expression
        return self.exchange(self.mean + moved.view(-1, *self.mean.shape), identity)

    def pose_numbers(self, pose: Pose) -> Tensor:
        """A pose as about standard normal numbers ``(B, 6)``: turn about three axes, size, place."""
        vector = rotation_vector(pose.rotation) / _TURN_UNIT
        size = torch.log(pose.scale[:, 0] / self.usual_scale) / _SIZE_UNIT
        place = (pose.shift[:, 0, :2] - self.usual_shift) / _SHIFT_UNIT
        return torch.cat([vector, size, place], 1)

    def pose_from_numbers(self, numbers: Tensor) -> Pose:
        """Inverse of ``pose_numbers``; the depth, which no picture shows, is 0."""
        scale = torch.exp(numbers[:, 3:4, None] * _SIZE_UNIT) * self.usual_scale
        place = numbers[:, 4:6] * _SHIFT_UNIT + self.usual_shift
        shift = torch.cat([place, torch.zeros_like(place[:, :1])], 1)[:, None]
        return Pose(rotation_matrix(numbers[:, :3] * _TURN_UNIT), scale, shift)

    @torch.no_grad()
    def fit(self, points: Tensor, person: Tensor) -> None:
        """Fits mean and bases.

        Args:
            points: ``(N, P, 3)`` meshes of a training set.
            person: ``(N,)`` int64, who it is; people with several pictures tell expression from identity.
        """
        points = points.double()
        mean = self.mean.double()
        for _ in range(3):
            shapes = fit_pose(points, mean).remove(points)
            mean = shapes.mean(0)
        self.mean.copy_(mean)
        pose = fit_pose(points, mean)
        self.usual_scale.copy_(pose.scale.log().mean().exp())
        self.usual_shift.copy_(pose.shift[:, 0, :2].mean(0))
        rows = (shapes - mean).flatten(1)
        expression, deviation = principal_directions(within_people(rows, person), len(self.expression))
        across = person_means(rows, person)
        across = across - (across @ expression.T) @ expression
        identity, spread = principal_directions(across - across.mean(0), len(self.identity))
        for name, value in (
            ("expression", expression),
            ("expression_deviation", deviation),
            ("identity", identity),
            ("identity_deviation", spread),
        ):
            getattr(self, name).copy_(value.clamp_min(1e-6) if name.endswith("deviation") else value)
