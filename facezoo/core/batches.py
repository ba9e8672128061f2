"""Batches of one or several sets, read straight from the packed files' memory maps or from the shards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

from facezoo.data.shards import open_faces
from facezoo.errors import InputError


class PackedBatches(Dataset[dict[str, Tensor]]):
    """Several packed sets as one list of faces; whole batches are fetched at once.

    Args:
        paths: Packed files or folders of shards; all have ``fields``.
        size: Side of the pictures that training wants; sets of another size are resized (area when shrinking).
        fields: Arrays to give beside ``image``.

    Raises:
        InputError: no set, or a set lacks a field.
    """

    def __init__(self, paths: Sequence[Path], size: int, fields: Sequence[str]) -> None:
        if not paths:
            raise InputError("the recipe names no packed set; make one with: facezoo prepare FOLDER -o SET.safetensors")
        self.sets = [open_faces(path) for path in paths]
        self.size, self.fields = size, tuple(fields)
        for faces in self.sets:
            missing = [field for field in self.fields if field not in faces]
            if missing:
                raise InputError(f"{faces.path} has no {', '.join(missing)}")
        self.ends = np.cumsum([len(faces) for faces in self.sets])

    def __len__(self) -> int:
        """Number of faces of all sets."""
        return int(self.ends[-1])

    def all(self, field: str) -> npt.NDArray[np.float32]:
        """One array of all sets, in order."""
        return np.concatenate([np.asarray(faces.array(field), dtype=np.float32) for faces in self.sets])

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """One face, as ``__getitems__`` gives it but without the batch dimension."""
        return {name: value[0] for name, value in self.__getitems__([index]).items()}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """``image`` uint8 ``(B, 3, S, S)``, ``index`` int64 ``(B,)`` and the fields, for a list of indices."""
        which = np.searchsorted(self.ends, indices, side="right")
        local = [int(i) - (int(self.ends[w - 1]) if w else 0) for i, w in zip(indices, which, strict=True)]
        images, fields = [], {name: [] for name in self.fields}  # type: ignore[var-annotated]
        for w, i in zip(which, local, strict=True):
            faces = self.sets[w]
            images.append(self._resized(torch.from_numpy(np.array(faces.images[i])).permute(2, 0, 1)))
            for name in self.fields:
                fields[name].append(torch.from_numpy(np.array(faces.array(name)[i])))
        batch = {"image": torch.stack(images), "index": torch.tensor(list(indices))}
        return batch | {name: torch.stack(rows) for name, rows in fields.items()}

    def _resized(self, image: Tensor) -> Tensor:
        if image.shape[-1] == self.size:
            return image
        mode = "area" if image.shape[-1] > self.size else "bicubic"
        resized = functional.interpolate(image[None].float(), size=(self.size, self.size), mode=mode)[0]
        return resized.round().clamp(0, 255).to(torch.uint8)


def as_batch(batch: Any) -> Any:
    """Collate function of a loader over ``PackedBatches``: the batch is one already."""
    return batch
