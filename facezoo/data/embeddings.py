"""Identity vectors of a packed set, computed once and kept in its file."""

from __future__ import annotations

import os

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from tqdm import tqdm

from facezoo.data.packed import PackedFaces
from facezoo.data.shards import add_arrays, open_faces
from facezoo.errors import InputError

__all__ = ["check_identity_dim", "embeddings_of", "ensure_embeddings"]

_BATCH = 32


@torch.inference_mode()
def embeddings_of(
    faces: PackedFaces, recogniser: nn.Module, device: torch.device | str = "cpu"
) -> npt.NDArray[np.float32]:
    """Embeds every face of a set.

    Args:
        faces: The set.
        recogniser: ``(B, 3, S, S)`` in [-1, 1] -> ``(B, D)``; moved to ``device`` here.
        device: Where to compute.

    Returns:
        ``(N, D)`` float32.
    """
    recogniser = recogniser.to(device)
    rows = []
    for start in tqdm(range(0, len(faces), _BATCH), desc="identity vectors", unit="batch", dynamic_ncols=True):
        pixels = torch.from_numpy(faces.batch(np.arange(start, min(start + _BATCH, len(faces)))))
        pixels = pixels.to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
        rows.append(recogniser(pixels).float().cpu().numpy())
    return np.concatenate(rows)


def ensure_embeddings(
    path: str | os.PathLike[str], name: str, recogniser: nn.Module, device: torch.device | str = "cpu"
) -> PackedFaces:
    """Opens a set, packed or in shards, and adds ``embedding_<name>`` to its file when it is not there yet.

    Raises:
        InputError: not a packed set.
        OutputError: the file cannot be rewritten (disk full, read-only).
    """
    faces = open_faces(path)
    field = f"embedding_{name}"
    if field not in faces:
        vectors = embeddings_of(faces, recogniser, device)
        add_arrays(path, {field: vectors})
        faces = open_faces(path)
    return faces


def check_identity_dim(vectors: Tensor, dim: int, name: str) -> None:
    """Refuses a configuration whose identity vectors have another length than its recogniser gives.

    Args:
        vectors: ``(N, D)``, of the set.
        dim: ``config.identity_dim``.
        name: ``config.recogniser``.

    Raises:
        InputError: D is not ``dim``.
    """
    if vectors.shape[1] != dim:
        raise InputError(
            f"config.identity_dim is {dim}, but the vectors of {name!r} have {vectors.shape[1]} numbers: set "
            f"config.identity_dim={vectors.shape[1]}, or name another config.recogniser"
        )
