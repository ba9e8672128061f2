"""A tiny face painter with what it was fitted to: invented people on the canonical mesh, no network involved."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from facezoo.data.meshes import MESH_CONFIDENCE_FIELD, MESH_FIELD
from facezoo.data.packed import write_packed
from facezoo.frozen import FeatureNetwork
from facezoo.mesh import FaceMesh, MeshResult, topology
from facezoo.nets.face_painter.config import FacePainterConfig
from facezoo.nets.face_painter.frame import sample
from facezoo.nets.face_painter.painter import FacePainter

TINY = FacePainterConfig(
    size=96,
    frame_size=24,
    identity_dim=8,
    recogniser="sface",
    expressions=3,
    shape_traits=4,
    texture_traits=4,
    varying=2,
    details=6,
    personal_details=4,
    widths=(16, 16),
    ridge=1e-5,
    trait_faces=100,
    fit_faces=100,
)
PEOPLE, PICTURES = 16, 3


def canonical() -> Tensor:
    """The canonical face as in pictures: x right, y down, z away; centred, ``(468, 3)``."""
    shape = torch.from_numpy(topology.CANONICAL * (1.0, -1.0, -1.0)).float()
    return shape - shape.mean(0)


def placed(shapes: Tensor, yaw: float = 0.0, size: int = 128) -> Tensor:
    """Shapes ``(..., 468, 3)`` turned by ``yaw`` degrees, in pixels of an aligned crop."""
    angle = torch.deg2rad(torch.tensor(yaw))
    zero, one = torch.zeros(()), torch.ones(())
    turn = torch.stack([angle.cos(), zero, -angle.sin(), zero, one, zero, angle.sin(), zero, angle.cos()]).view(3, 3)
    return (shapes @ turn.T * 5.5 + torch.tensor([63.5, 66.0, 0.0])) * (size / 128)


def head(yaw: float = 0.0, size: int = 128) -> Tensor:
    """The canonical face in a crop: ``(1, 468, 3)`` pixels."""
    return placed(canonical()[None], yaw, size)


def units(mesh: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Points ``(B, N, 2)`` and depth ``(B, N)`` in crop units."""
    return (mesh[..., :2] + 0.5) / size, mesh[..., 2] / size


def shape_directions(number: int, seed: int) -> Tensor:
    """Orthonormal directions of the shape ``(number, 1404)`` that are no similarity transform, to first order."""
    shape = canonical().double()
    axes = torch.eye(3, dtype=torch.float64)
    moves = [axis.expand(468, 3) for axis in axes]
    moves += [torch.linalg.cross(axis.expand(468, 3), shape) for axis in axes] + [shape]
    rigid = torch.stack([move.flatten() for move in moves])
    drawn = torch.randn(number, rigid.shape[1], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    basis = torch.linalg.qr(torch.cat([rigid, drawn]).T).Q
    return basis[:, 7:].T.float()


@dataclasses.dataclass(frozen=True)
class Invented:
    """Invented pictures and the painter that was fitted to them.

    Attributes:
        painter: fitted; its refiner is untrained and changes nothing.
        faces: ``(N, 3, S, S)`` in [-1, 1].
        mesh: ``(N, 468, 3)`` in crop pixels.
        identity: ``(N, D)`` unit vectors.
        person: ``(N,)`` who it is.
    """

    painter: FacePainter
    faces: Tensor
    mesh: Tensor
    identity: Tensor
    person: Tensor


@functools.cache
def invented() -> Invented:
    """Invented people, ``PICTURES`` of each; computed once."""
    torch.manual_seed(0)
    painter, rng, count = FacePainter(TINY).eval(), torch.Generator().manual_seed(1), PEOPLE * PICTURES
    person = torch.arange(PEOPLE).repeat_interleave(PICTURES)

    def each(*size: int) -> Tensor:
        return torch.randn(PEOPLE, *size, generator=rng)[person]

    def every(*size: int) -> Tensor:
        return torch.randn(count, *size, generator=rng)

    directions = shape_directions(7, seed=2)
    amounts = torch.cat([each(4), every(3)], 1)
    mesh = placed(canonical() + (amounts @ directions).view(-1, 468, 3), size=TINY.size)
    line = torch.linspace(-1, 1, TINY.frame_size)
    y, x = torch.meshgrid(line, line, indexing="ij")
    light = 0.1 * every(3, 1, 1) + 0.1 * every(3, 1, 1) * x + 0.1 * every(3, 1, 1) * y
    pattern = each(3, 4, 4) * 0.15 + every(3, 4, 4) * 0.02
    texture = light + functional.interpolate(pattern, size=(24, 24), mode="bicubic", align_corners=True)
    points, depth = units(mesh, TINY.size)
    drawn = painter.frame.render(points, depth, points, TINY.size)
    around = functional.interpolate(every(3, 4, 4) * 0.2, size=(96, 96), mode="bicubic")
    faces = torch.lerp(around, sample(texture, drawn.texture_places), drawn.inside).clamp(-1, 1)
    faces = ((faces * 127.5 + 127.5).round() - 127.5) / 127.5
    identity = functional.normalize(each(8) + 0.05 * every(8), dim=1)
    batches = [(faces[at : at + 16], mesh[at : at + 16], identity[at : at + 16]) for at in range(0, count, 16)]
    painter.fit(batches, mesh, person, identity)
    return Invented(painter.requires_grad_(False), faces, mesh, identity, person)


class KnownMeshes(FaceMesh):
    """In the place of the mesh network: knows the invented faces by their nearest picture, and nobody else.

    A face that was painted over lies nearest to the picture it stands in, for its surroundings are that picture's.
    """

    def forward(self, faces: Tensor, irises: bool = False) -> MeshResult:
        """See ``FaceMesh.forward``."""
        del irises
        known = invented()
        around = torch.ones(TINY.size, TINY.size, dtype=torch.bool)
        around[8:-8, 8:-8] = False
        distance = torch.cdist(faces[..., around].flatten(1), known.faces[..., around].flatten(1))
        nearest, place = distance.min(dim=1)
        mesh = known.mesh[place]
        sure = (nearest / around.sum() ** 0.5 < 0.3).float()
        return MeshResult(mesh[..., :2], mesh[..., 2], sure, torch.zeros(len(faces), 3))


class _Stages(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(9)
        self.first, self.second = nn.Conv2d(3, 4, 4, stride=4), nn.Conv2d(4, 6, 3, stride=2)

    def forward(self, pictures: Tensor) -> list[Tensor]:
        first = torch.tanh(self.first(pictures))
        return [first, self.second(first)]


def stub_features(lpips: bool = True) -> FeatureNetwork:
    """Two convolutions, with heads that make a distance of them."""
    heads = nn.ModuleList(nn.Conv2d(c, 1, 1, bias=False) for c in (4, 6))
    for head in heads:
        nn.init.constant_(head.weight, 0.1)
    return FeatureNetwork(_Stages(), (4, 6), heads if lpips else None)


def packed(path: Path, meshes: bool = True, size: int = TINY.size, dim: int = TINY.identity_dim) -> Path:
    """The invented faces as a packed set; enlarged, and with longer identity vectors, where that is asked for."""
    known = invented()
    faces = functional.interpolate(known.faces, size=(size, size), mode="bilinear")
    pixels = ((faces + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    longer = functional.pad(known.identity, (0, dim - TINY.identity_dim))
    arrays = {"embedding_sface": longer.numpy()}
    if meshes:
        scale, half = size / TINY.size, torch.tensor([0.5, 0.5, 0.0])
        moved = (known.mesh + half) * scale - half
        arrays |= {MESH_FIELD: moved.numpy(), MESH_CONFIDENCE_FIELD: np.ones(len(pixels), np.float32)}
    names = [f"person {i:02d}" for i in known.person.tolist()]
    files = [f"{i:03d}.png" for i in range(len(pixels))]
    write_packed(path, iter(pixels), size=size, identities=names, files=files, arrays=arrays, source="invented")
    return path
