"""How far a query can move between neighbours: the number that noise is scaled by.

A sensitivity is a *bound*: no input of any kind may exceed it, or the proof says nothing. Two ways give one here:
projecting every value onto a set of known size (a ball, a box), and knowing the set already (a recogniser's vectors
have length one). "The greatest difference in our test set" is no bound, since the next face may differ more;
such a figure exists here too, since the book uses it, but it carries ``sound=False`` and everything that it enters says
so.

Neighbours are, throughout, two *single inputs* (local model: replace this face by any other face).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from facezoo.errors import InputError

__all__ = [
    "Norm",
    "Sensitivity",
    "ball",
    "box",
    "clip_to_ball",
    "greatest_seen",
    "project_to_l1_ball",
    "unit_sphere",
    "unit_vectors",
]

Norm = Literal["l1", "l2"]


@dataclass(frozen=True)
class Sensitivity:
    """The greatest distance between the query's values on two neighbours.

    Attributes:
        value: the distance.
        norm: in which norm.
        sound: whether it is a bound for *all* inputs; false for a figure that was measured on some.
        reason: why it holds, or why not; goes into records.
    """

    value: float
    norm: Norm
    sound: bool
    reason: str

    def __post_init__(self) -> None:
        """Refuse what no noise can be scaled by.

        Raises:
            InputError: a value that is not finite and above 0, or an unknown norm.
        """
        if self.norm not in ("l1", "l2"):
            raise InputError(f"a sensitivity is in the norm l1 or l2, not {self.norm!r}")
        if not (math.isfinite(self.value) and self.value > 0):
            raise InputError(f"a sensitivity must be finite and above 0, not {self.value}")


def _checked_dim(dim: int) -> int:
    if dim < 1:
        raise InputError(f"a vector has at least one coordinate, not {dim}")
    return dim


def unit_sphere(dim: int, norm: Norm) -> Sensitivity:
    """Of vectors of Euclidean length 1: 2 in l2; 2 sqrt(dim) in l1 (reached by two opposite corners of the cube)."""
    value = 2.0 if norm == "l2" else 2.0 * math.sqrt(_checked_dim(dim))
    return Sensitivity(value, norm, True, f"diameter of the unit sphere of {dim} dimensions in {norm}")


def ball(radius: float, norm: Norm) -> Sensitivity:
    """Of vectors that were clipped to a ball of this radius in the same norm: its diameter."""
    return Sensitivity(2.0 * radius, norm, True, f"diameter of the {norm} ball of radius {radius:g}")


def box(count: int, low: float, high: float, norm: Norm) -> Sensitivity:
    """Of ``count`` coordinates, each clipped to [low, high].

    Raises:
        InputError: an empty box.
    """
    if not low < high:
        raise InputError(f"a box needs low < high, not {low:g} and {high:g}")
    side = high - low
    value = side * (_checked_dim(count) if norm == "l1" else math.sqrt(_checked_dim(count)))
    return Sensitivity(value, norm, True, f"{count} values, each in [{low:g}, {high:g}]")


def greatest_seen(vectors: Tensor, norm: Norm, *, block: int = 256) -> Sensitivity:
    """The greatest distance within a set of vectors: the book's (5.12), and NOT a bound.

    Args:
        vectors: ``(N, D)``, at least two.
        norm: of the distance.
        block: rows compared at a time.

    Raises:
        InputError: fewer than two vectors.
    """
    if vectors.ndim != 2 or len(vectors) < 2:
        raise InputError(f"the greatest distance needs two vectors or more (N, D), not {tuple(vectors.shape)}")
    order = 1.0 if norm == "l1" else 2.0
    exact = vectors.detach().double()
    parts = [torch.cdist(exact[i : i + block], exact, p=order).max() for i in range(0, len(exact), block)]
    reason = f"greatest distance among {len(vectors)} vectors; NOT a bound for other faces"
    return Sensitivity(float(torch.stack(parts).max()), norm, False, reason)


def unit_vectors(vectors: Tensor) -> Tensor:
    """``(B, D)`` brought to length 1 in float64.

    Raises:
        InputError: a vector that is zero or not finite has no direction; noise would not hide which one it was.
    """
    exact = vectors.detach().double()
    lengths = exact.norm(dim=-1, keepdim=True)
    if not bool(torch.isfinite(exact).all()) or bool((lengths < 1e-12).any()):
        raise InputError("a vector is zero or not finite and has no direction; the face cannot be used")
    return exact / lengths


def _checked(vectors: Tensor, radius: float) -> Tensor:
    """The vectors in float64."""
    if not (math.isfinite(radius) and radius > 0):
        raise InputError(f"a ball needs a finite radius above 0, not {radius}")
    exact = vectors.detach().double()
    if not bool(torch.isfinite(exact).all()):
        raise InputError("values that are not finite cannot be clipped")
    return exact


def clip_to_ball(vectors: Tensor, radius: float, norm: Norm) -> Tensor:
    """Shorten ``(B, D)`` vectors that are longer than the radius; the others stay. Float64.

    Raises:
        InputError: values that are not finite, or a radius that is not above 0.
    """
    exact = _checked(vectors, radius)
    lengths = exact.norm(p=1.0 if norm == "l1" else 2.0, dim=-1, keepdim=True)
    return exact * (radius / lengths.clamp(min=radius))


def project_to_l1_ball(vectors: Tensor, radius: float) -> Tensor:
    """The nearest point of the l1 ball in Euclidean distance, for each of ``(B, D)``; float64.

    Keeps large coordinates better than scaling. Duchi et al., "Efficient projections onto the l1-ball", ICML 2008.

    Raises:
        InputError: as `clip_to_ball`.
    """
    exact = _checked(vectors, radius)
    size = exact.abs()
    ordered, _ = size.sort(dim=-1, descending=True)
    sums = ordered.cumsum(-1) - radius
    place = torch.arange(1, exact.shape[-1] + 1, dtype=exact.dtype, device=exact.device)
    count = (ordered * place > sums).sum(-1, keepdim=True).clamp(min=1)
    threshold = (sums.gather(-1, count - 1) / count).clamp(min=0)
    inside = size.sum(-1, keepdim=True) <= radius
    return torch.where(inside, exact, exact.sign() * (size - threshold).clamp(min=0))
