"""Piecewise affine warping between a face's landmarks and a reference shape.

The landmarks, together with eight fixed places on the border of the crop, are triangulated once, on the reference
shape (Delaunay, by the empty-circle rule). A picture is warped triangle by triangle: inside each the map is affine, so
straight lines stay straight and neighbouring triangles agree on their common edge.
"""

from __future__ import annotations

import functools
import itertools

import torch
from torch import Tensor
from torch.nn import functional

from facezoo.errors import InputError

__all__ = ["PiecewiseAffine", "delaunay"]

_MAXIMUM_POINTS = 100


def delaunay(points: Tensor) -> Tensor:
    """Triangles whose circumcircles hold no other point: (P, 2) -> (T, 3) int64.

    Every triple is tried, which is quick enough for the few landmarks of a face. Points on a common circle are moved
    apart by a fixed, tiny amount, so that each region is covered once.

    Raises:
        InputError: fewer than three points, or too many.
    """
    count = len(points)
    if not 3 <= count <= _MAXIMUM_POINTS:
        raise InputError(f"a triangulation takes 3 to {_MAXIMUM_POINTS} points, not {count}")
    exact = points.double()
    shift = torch.rand(count, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 0.5
    moved = exact + 1e-4 * (exact.max() - exact.min()) * shift
    triples = torch.tensor(list(itertools.combinations(range(count), 3)))
    a, b, c = (moved[triples[:, i]] for i in range(3))
    ab, ac = b - a, c - a
    twice_area = ab[:, 0] * ac[:, 1] - ab[:, 1] * ac[:, 0]
    usable = twice_area.abs() > 1e-9 * float(exact.max() - exact.min()) ** 2
    triples, a, ab, ac, twice_area = (t[usable] for t in (triples, a, ab, ac, twice_area))
    square_b, square_c = ab.square().sum(1), ac.square().sum(1)
    centre = torch.stack([ac[:, 1] * square_b - ab[:, 1] * square_c, ab[:, 0] * square_c - ac[:, 0] * square_b], 1)
    centre = centre / (2 * twice_area[:, None])
    radius = centre.square().sum(1)
    distance = (moved[None] - (a + centre)[:, None]).square().sum(2)
    own = functional.one_hot(triples, count).sum(1).bool()
    empty = ((distance > radius[:, None] * (1 - 1e-12)) | own).all(1)
    return triples[empty]


class PiecewiseAffine:
    """Warps between faces and one reference shape.

    Args:
        reference: (L, 2) landmarks x, y of the reference shape, in pixels.
        size: side of the pictures.
    """

    def __init__(self, reference: Tensor, size: int) -> None:
        self.reference = reference.double()
        self.size = size
        last = size - 1.0
        half = last / 2
        places = [(0, 0), (half, 0), (last, 0), (0, half), (last, half), (0, last), (half, last), (last, last)]
        self._border = torch.tensor(places, dtype=torch.float64)
        self.triangles = delaunay(self._with_border(self.reference))

    def _with_border(self, shape: Tensor) -> Tensor:
        # A landmark outside the crop would turn triangles over.
        return torch.cat([shape.double().clamp(1, self.size - 2), self._border])

    def to_reference(self, faces: Tensor, shapes: Tensor) -> Tensor:
        """Faces (B, 3, S, S) with landmarks (B, L, 2) -> their looks at the reference shape, the same shape."""
        return self._warped(faces, [(shape, self.reference) for shape in shapes])

    def from_reference(self, faces: Tensor, shapes: Tensor) -> Tensor:
        """Looks at the reference shape -> faces with these landmarks."""
        return self._warped(faces, [(self.reference, shape) for shape in shapes])

    def _warped(self, faces: Tensor, pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
        grids = torch.stack([self._grid(source, target) for source, target in pairs])
        return functional.grid_sample(
            faces, grids.to(faces), mode="bilinear", padding_mode="border", align_corners=True
        )

    def _grid(self, source: Tensor, target: Tensor) -> Tensor:
        """Where each pixel of the target shape comes from: (S, S, 2) in grid_sample's units."""
        triangle, weights = self._reference_places if target is self.reference else self._places(target)
        corners = self._with_border(source)[self.triangles]
        places = (weights[..., None] * corners[triangle]).sum(1)
        return (places / (self.size - 1) * 2 - 1).view(self.size, self.size, 2)

    @functools.cached_property
    def _reference_places(self) -> tuple[Tensor, Tensor]:
        """`_places` of the reference shape, which every face of a gallery is warped to."""
        return self._places(self.reference)

    def _places(self, shape: Tensor) -> tuple[Tensor, Tensor]:
        """The triangle that holds each pixel, (S * S,), and the pixel's barycentric weights in it, (S * S, 3)."""
        corners = self._with_border(shape)[self.triangles]
        axis = torch.arange(self.size, dtype=torch.float64)
        y, x = torch.meshgrid(axis, axis, indexing="ij")
        pixels = torch.stack([x, y], -1).view(-1, 2)
        origin, edges = corners[:, 0], corners[:, 1:] - corners[:, :1]
        # A triangle that a group's shape folded flat holds no pixel; without the ridge its matrix has no inverse.
        flat = edges.det().abs() < 1e-9
        edges = torch.where(flat[:, None, None], torch.eye(2, dtype=torch.float64), edges)
        # pixel = origin + local @ edges. Each matrix is inverted once: solving for each pixel is a hundred times the
        # work.
        local = (pixels[None] - origin[:, None]) @ torch.linalg.inv(edges)
        weights = torch.cat([1 - local.sum(-1, keepdim=True), local], -1)  # (T, S * S, 3) barycentric
        inside = weights.amin(-1)
        inside[flat] = -torch.inf
        best = inside.argmax(0)  # the triangle that holds a pixel, or the nearest one beside a seam
        return best, weights[best, torch.arange(len(pixels))]
