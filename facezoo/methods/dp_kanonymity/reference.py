"""The reference set of dp_kanonymity: people, each with one picture or several.

The guarantee is about a person, so a person is the unit of everything that is counted: one takes part or not with all
of one's pictures, and votes once, with the picture that is nearest to the face in question.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from facezoo.data.packed import PackedFaces
from facezoo.errors import InputError

__all__ = ["ReferenceSet"]

_BATCH = 64


@dataclass(frozen=True)
class ReferenceSet:
    """People who vote.

    Attributes:
        features: ``(N, D)`` phi(x) of each picture.
        attributes: ``(N, c)`` int64 of 0 and 1.
        people: ``(N,)`` int64, the person in each picture: 0 to the number of people - 1, each at least once.
    """

    features: Tensor
    attributes: Tensor
    people: Tensor

    def __len__(self) -> int:
        """Number of people."""
        return int(self.people.max()) + 1

    def nearest(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """Each person's picture nearest to ``query`` ``(D,)``: ``(P, D)`` features and ``(P, c)`` attributes.

        What a person contributes depends on that person's own pictures only, so that a person more or less is a row
        more or less.
        """
        square = (self.features.double() - query.double()).square().sum(1)
        order = torch.sort(square, stable=True).indices
        _, first = np.unique(self.people[order].numpy(), return_index=True)
        rows = order[torch.from_numpy(first)]
        return self.features[rows], self.attributes[rows]

    def frequencies(self) -> Tensor:
        """Share of the people who have each attribute, ``(c,)`` float64; somebody's pictures count as their mean."""
        sums = torch.zeros(len(self), self.attributes.shape[1], dtype=torch.float64)
        sums.index_add_(0, self.people, self.attributes.double())
        return (sums / torch.bincount(self.people)[:, None]).mean(0)

    @classmethod
    def read(
        cls, path: str | os.PathLike[str], size: int, classifier: Callable[[Tensor], tuple[Tensor, Tensor]]
    ) -> ReferenceSet:
        """Reads a packed set and looks at every picture once.

        Args:
            path: packed set.
            size: side of the classifier's crops, pixels.
            classifier: ``(B, 3, size, size)`` in [-1, 1] -> features ``(B, D)`` and logits ``(B, c)``, on the CPU.

        Raises:
            InputError: no packed set, nobody in it, or one picture under two names: then what one person contributes
                cannot be told, and no epsilon holds for anybody.
        """
        packed = PackedFaces(path)
        if len(packed) == 0:
            raise InputError(f"dp_kanonymity: {path} holds nobody to hide among")
        _, people = np.unique(np.asarray(packed.identity), return_inverse=True)
        owner: dict[bytes, int] = {}
        features, attributes = [], []
        for start in range(0, len(packed), _BATCH):
            rows = np.arange(start, min(start + _BATCH, len(packed)))
            pictures = packed.batch(rows)
            for row, picture in zip(rows, pictures, strict=True):
                digest = hashlib.sha256(np.ascontiguousarray(picture).tobytes()).digest()
                if owner.setdefault(digest, int(row)) != row and people[owner[digest]] != people[row]:
                    raise InputError(
                        f"dp_kanonymity: pictures {owner[digest]} and {row} of {path} are the same under two names; "
                        "the guarantee is a person's, so somebody must not have two votes: remove one of them"
                    )
            crops = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
            if crops.shape[-1] != size:
                crops = functional.interpolate(crops, size=(size, size), mode="area")
            phi, logits = classifier(crops)
            features.append(phi)
            attributes.append((logits > 0).long())
        return cls(torch.cat(features), torch.cat(attributes), torch.from_numpy(people).long())
