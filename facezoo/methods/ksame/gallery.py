"""The gallery of k-Same: aligned faces, one picture a person."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from facezoo.data.packed import PackedFaces
from facezoo.errors import InputError

__all__ = ["LABELS", "Gallery"]

LABELS = ("sex", "age", "expression")
"""Labels that a packed set may bring."""


class Gallery:
    """Aligned faces of different people.

    Args:
        images: uint8 (N, S, S, 3) RGB, aligned to the template; an array, a memory map (read as needed) or a tensor.
        identity: (N,) integers, the person in each picture; None: every picture shows somebody else.
        points: (N, L, 2) landmarks in pixels of the picture, for methods that average shapes; None: unknown.
        labels: name -> (N,) integers, e.g. ``{"sex": ...}``, for methods that keep groups apart; -1: unknown.

    Attributes:
        images: as given; an array.
        identity: int64 (N,).
        points: float64 (N, L, 2), or None.
        labels: name -> int64 (N,).

    Raises:
        InputError: another shape or type.
    """

    def __init__(
        self,
        images: npt.NDArray[np.uint8] | Tensor,
        identity: npt.NDArray[Any] | Tensor | None = None,
        *,
        points: npt.NDArray[Any] | None = None,
        labels: Mapping[str, npt.NDArray[Any]] | None = None,
    ) -> None:
        pixels = images.detach().cpu().numpy() if isinstance(images, Tensor) else images
        shape: tuple[int, ...] = tuple(getattr(pixels, "shape", ()))
        if len(shape) != 4 or shape[1] != shape[2] or shape[3] != 3 or pixels.dtype != np.uint8:
            raise InputError(
                f"a gallery is uint8 (N, S, S, 3) in RGB, not {getattr(pixels, 'dtype', type(pixels).__name__)} {shape}"
            )
        people = np.arange(len(pixels)) if identity is None else np.asarray(identity)
        if people.shape != (len(pixels),) or not np.issubdtype(people.dtype, np.integer):
            raise InputError(f"a gallery's identity is one integer a picture ({len(pixels)},), not {people.shape}")
        self.images: npt.NDArray[np.uint8] = pixels
        self.identity: npt.NDArray[np.int64] = people.astype(np.int64)
        self.points: npt.NDArray[np.float64] | None = None
        if points is not None:
            landmarks = np.asarray(points, dtype=np.float64)
            if landmarks.ndim != 3 or len(landmarks) != len(pixels) or landmarks.shape[2] != 2:
                raise InputError(f"a gallery's points are (N, L, 2) for {len(pixels)} pictures, not {landmarks.shape}")
            if not np.isfinite(landmarks).all():
                raise InputError("a gallery's points must be finite")
            self.points = landmarks
        self.labels: dict[str, npt.NDArray[np.int64]] = {}
        for name, values in (labels or {}).items():
            column = np.asarray(values)
            if column.shape != (len(pixels),) or not np.issubdtype(column.dtype, np.integer):
                raise InputError(f"a gallery's label {name} is one integer a picture, not {column.shape}")
            self.labels[name] = column.astype(np.int64)

    @classmethod
    def from_packed(cls, path: str | os.PathLike[str]) -> Gallery:
        """Open a packed set (docs/contracts.md); pictures are read when needed.

        Raises:
            InputError: missing, damaged, or no packed set.
        """
        packed = PackedFaces(path)
        labels = {name: np.asarray(packed.array(name)) for name in LABELS if name in packed}
        points = np.asarray(packed.array("points")) if "points" in packed else None
        return cls(packed.images, packed.identity, points=points, labels=labels)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def size(self) -> int:
        """S, side of a picture in pixels."""
        return int(self.images.shape[1])

    def one_picture_a_person(self, repeated_people: str) -> Gallery:
        """The gallery with each person's first picture only, in the gallery's order.

        Args:
            repeated_people: "first", or "refuse" to raise when somebody has more pictures.

        Raises:
            InputError: somebody appears twice and ``repeated_people`` is "refuse", or one picture stands under two
                names: then k "people" could be one, and the guarantee empty.
        """
        _, first = np.unique(self.identity, return_index=True)
        if len(first) == len(self):
            single = self
        elif repeated_people == "refuse":
            raise InputError(
                f"the gallery shows {len(self) - len(first)} people's pictures more than once ({len(self)} pictures, "
                f"{len(first)} people); k-Same needs one picture a person: remove them or set repeated_people=first"
            )
        else:
            rows = np.sort(first)
            single = Gallery(
                self.images[rows],
                self.identity[rows],
                points=None if self.points is None else self.points[rows],
                labels={name: values[rows] for name, values in self.labels.items()},
            )
        seen: dict[bytes, int] = {}
        for row, digest in enumerate(single._digests):
            if digest in seen:
                raise InputError(
                    f"gallery people {single.identity[seen[digest]]} and {single.identity[row]} have the same picture; "
                    "k-Same counts people, so remove one of them"
                )
            seen[digest] = row
        return single

    @functools.cached_property
    def _digests(self) -> list[bytes]:
        return [hashlib.sha256(np.ascontiguousarray(image).tobytes()).digest() for image in self.images]

    @functools.cached_property
    def sha256(self) -> str:
        """Fingerprint of pictures and people, for records: 64 hex digits."""
        total = hashlib.sha256(f"{len(self)}:{self.size}:".encode())
        for digest in self._digests:
            total.update(digest)
        total.update(self.identity.astype("<i8").tobytes())
        return total.hexdigest()

    def faces(self, rows: Tensor) -> Tensor:
        """Pictures as a batch.

        Args:
            rows: (B,) integers.

        Returns:
            (B, 3, S, S) float32 in [-1, 1].
        """
        pixels = np.ascontiguousarray(self.images[rows.cpu().numpy()].transpose(0, 3, 1, 2))
        return torch.from_numpy(pixels).float() / 127.5 - 1
