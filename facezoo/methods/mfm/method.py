"""MfM at use: anonymize and recover aligned faces with a password and a set of factors.

Paper: Pan, Chen, Wu, "Multi-factor Modifier" (the text's title and numbers: see README.md in this folder, which also
lists the deviations).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar, cast

import torch
from torch import Tensor

from facezoo.data.attributes import ATTRIBUTES, request_indices, resolve
from facezoo.methods.attributed.config import AttributedConfig
from facezoo.methods.attributed.method import AttributedMethod
from facezoo.methods.attributed.model import AttributedNetworks
from facezoo.methods.base import FaceContext, check_faces
from facezoo.methods.mfm.config import MfMConfig
from facezoo.methods.mfm.networks import MfMNetworks
from facezoo.methods.mfm.options import MfMOptions
from facezoo.methods.options import Options

SURE = 0.7
"""Probability from which the attribute reader's word about a face counts against a request."""


class MfM(AttributedMethod):
    """The trained method."""

    name: ClassVar[str] = "mfm"
    options_class: ClassVar[type[Options]] = MfMOptions
    config_class: ClassVar[type[AttributedConfig]] = MfMConfig
    networks_class: ClassVar[Callable[..., AttributedNetworks]] = MfMNetworks
    networks: MfMNetworks

    def hide(
        self, faces: Tensor, bits: Tensor, attributes: Tensor, features: Tensor, degrees: Tensor | None = None
    ) -> Tensor:
        """``M(I, C(F, A) ++ P)``; see ``AttributedMethod.hide``."""
        return self.networks.modify(faces, bits, attributes, features, recover=False, degrees=degrees)[0]

    def bottleneck(self, faces: Tensor, bits: Tensor, attributes: Tensor, features: Tensor) -> Tensor:
        """See ``AttributedMethod.bottleneck``."""
        return self.networks.modify(faces, bits, attributes, features, recover=False)[1]

    def reveal(
        self, saved: Tensor, bits: Tensor, attributes: Tensor, features: Tensor, phasors: Tensor | None
    ) -> Tensor:
        """The same network on the saved face; see ``AttributedMethod.reveal``."""
        return self.networks.modify(saved, bits, attributes, features, recover=True, phasors=phasors)[0]

    # ------------------------------------------------------------------ conflicting factors
    def notes(self, faces: Tensor, context: FaceContext) -> list[tuple[str, ...]]:
        """For each face, which factors were dropped and why, and which nobody will see."""
        check_faces(faces, self.name, self.crop_size)
        request = cast(MfMOptions, self.resolve_options(context)).request
        if not request or len(faces) == 0:
            return [()] * len(faces)
        resolved = [resolve(request, seen) for seen in self.read_attributes(self._on_device(faces))]
        return [(*dropped, *self.unseen(kept)) for kept, dropped in resolved]

    @torch.no_grad()
    def read_attributes(self, faces: Tensor) -> list[dict[str, str]]:
        """Attributes of real faces ``(B, 3, S, S)``, those that the reader is sure of."""
        sizes = [len(ATTRIBUTES[name].values) for name in self.config.attributes]
        parts = self.networks.attribute_reader(faces).split(sizes, dim=1)
        seen: list[dict[str, str]] = [{} for _ in faces]
        for name, part in zip(self.config.attributes, parts, strict=True):
            probability, value = part.softmax(dim=1).max(dim=1)
            for row, (p, v) in enumerate(zip(probability.tolist(), value.tolist(), strict=True)):
                if p >= SURE:
                    seen[row][name] = ATTRIBUTES[name].values[v]
        return seen

    def _attributes(self, crops: Tensor, indices: list[int]) -> Tensor:
        """Requested values of every face, conflicts resolved: ``(B, A)``."""
        names = self.config.attributes
        request: Mapping[str, str] = {
            name: ATTRIBUTES[name].values[index] for name, index in zip(names, indices, strict=True) if index >= 0
        }
        if not request:
            return super()._attributes(crops, indices)
        rows = [request_indices(resolve(request, seen)[0], names) for seen in self.read_attributes(crops)]
        return torch.tensor(rows, device=self.device).view(len(crops), -1)
