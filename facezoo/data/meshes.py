"""Face meshes of a packed set, computed once and kept in its file."""

from __future__ import annotations

import os

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from facezoo.data.packed import PackedFaces
from facezoo.data.shards import add_arrays, open_faces
from facezoo.mesh import FaceMesh, load_mesh

__all__ = ["MESH_CONFIDENCE_FIELD", "MESH_FIELD", "ensure_meshes", "meshes_of"]

MESH_FIELD = "mesh"
"""Float32 (N, 468, 3): x, y in crop pixels, depth away from the camera in the same unit."""
MESH_CONFIDENCE_FIELD = "mesh_confidence"
"""Float32 (N,) in [0, 1]."""

_BATCH = 32


@torch.inference_mode()
def meshes_of(
    faces: PackedFaces, mesh: FaceMesh, device: torch.device | str = "cpu"
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Finds the mesh of every face of a set.

    Args:
        faces: the set.
        mesh: the mesh network, on ``device``.
        device: where to compute.

    Returns:
        ``(N, 468, 3)`` x, y and depth in crop pixels, and the confidences ``(N,)``.
    """
    points, confidences = [], []
    for start in tqdm(range(0, len(faces), _BATCH), desc="face meshes", unit="batch", dynamic_ncols=True):
        pixels = torch.from_numpy(faces.batch(np.arange(start, min(start + _BATCH, len(faces)))))
        found = mesh(pixels.to(device).permute(0, 3, 1, 2).float() / 127.5 - 1)
        points.append(torch.cat([found.points, found.depth[..., None]], 2).cpu().numpy())
        confidences.append(found.confidence.cpu().numpy())
    return np.concatenate(points), np.concatenate(confidences)


def ensure_meshes(path: str | os.PathLike[str], device: torch.device | str = "cpu") -> PackedFaces:
    """Opens a set, packed or in shards, and adds the meshes to its file when they are not there yet.

    Raises:
        InputError: not a packed set.
        OutputError: the file cannot be rewritten (disk full, read-only).
    """
    faces = open_faces(path)
    if MESH_FIELD not in faces or MESH_CONFIDENCE_FIELD not in faces:
        points, confidence = meshes_of(faces, load_mesh(device=device), device)
        add_arrays(path, {MESH_FIELD: points, MESH_CONFIDENCE_FIELD: confidence})
        faces = open_faces(path)
    return faces
