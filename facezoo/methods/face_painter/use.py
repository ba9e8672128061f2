"""What every method does that paints with the face painter: see the mesh, keep gray gray, say where it is unsure."""

from __future__ import annotations

import torch
from torch import Tensor

from facezoo.mesh import FaceMesh
from facezoo.nets.face_painter.painter import FacePainter

__all__ = ["UNSURE", "gray_as", "meshes_of_crops", "unsure_notes"]

UNSURE = "its features were not found (covered, in profile or blurred): a face was painted where one usually lies"

_SURE = 0.5
"""Confidence of the mesh below which a face is taken to lie where faces usually lie."""
_GRAY = 2.5 / 127.5
"""Largest difference of a gray picture's channels."""
_LUMA = (0.299, 0.587, 0.114)


def meshes_of_crops(network: FaceMesh, painter: FacePainter, crops: Tensor) -> Tensor:
    """Meshes of ``(B, 3, S, S)`` crops: x, y and depth in pixels, ``(B, N, 3)``.

    Where none is found it is the usual one: a face that a detector found is always painted over.
    """
    found = network(crops)
    mesh = torch.cat([found.points, found.depth[..., None]], 2)
    usual = painter.portrait.mesh * (crops.shape[-1] / painter.config.size)
    return torch.where((found.confidence >= _SURE)[:, None, None], mesh, usual)


def unsure_notes(network: FaceMesh, crops: Tensor) -> list[tuple[str, ...]]:
    """For each face, a sentence where the mesh is not sure of it."""
    if len(crops) == 0:
        return []
    return [() if sure else (UNSURE,) for sure in (network(crops).confidence >= _SURE).tolist()]


def gray_as(crops: Tensor, result: Tensor) -> Tensor:
    """Gray in, gray out: the brightness of those results whose crops have no colour; ``(B, 3, S, S)`` both."""
    gray = (crops.amax(1) - crops.amin(1)).flatten(1).amax(1) <= _GRAY
    luma = (result * result.new_tensor(_LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)
    return torch.where(gray[:, None, None, None], luma.expand_as(result), result)
