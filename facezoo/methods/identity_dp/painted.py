"""identity_dp with the face painter: a private identity vector, and traits that are drawn and not the person's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from facezoo.mesh import FaceMesh, load_mesh
from facezoo.methods.base import FaceContext
from facezoo.methods.checkpoints import checkpoint_config, fill_networks
from facezoo.methods.face_painter.use import gray_as, meshes_of_crops, unsure_notes
from facezoo.methods.identity_dp.config import PaintedDPConfig
from facezoo.methods.identity_dp.method import IdentityDP
from facezoo.methods.options import Options
from facezoo.nets.face_painter.painter import FacePainter, Person
from facezoo.privacy.randomness import BitSource
from facezoo.recognition import load_recogniser

_TRUNCATION = 0.7
"""Drawn traits are shrunk by this: rare combinations look least like anybody."""


class PaintedIdentityDP(IdentityDP):
    """The method on a face painter's checkpoint; ``IdentityDP.from_checkpoint`` gives it.

    Args:
        painter: trained face painter.
        recogniser: frozen identity encoder of the painter.
        config: of the checkpoint.
        options: options for every call.
    """

    painter: FacePainter  # type: ignore[assignment]
    config: PaintedDPConfig  # type: ignore[assignment]

    def __init__(
        self, painter: FacePainter, recogniser: nn.Module, config: PaintedDPConfig, options: Options | None = None
    ) -> None:
        super().__init__(painter, recogniser, config, options)  # type: ignore[arg-type]
        self.mesh: FaceMesh = load_mesh()

    @classmethod
    def from_checkpoint(
        cls, folder: Path, manifest: dict[str, Any], options: Options | None = None
    ) -> PaintedIdentityDP:
        """Builds the painter of a checkpoint folder, strictly.

        Raises:
            CheckpointError: the configuration or a file does not fit.
        """
        config = checkpoint_config(PaintedDPConfig, folder, manifest)
        painter = FacePainter(config)
        fill_networks(painter.networks(), folder, manifest)
        return cls(painter, load_recogniser(config.recogniser), config, options)

    def to(self, device: torch.device | str) -> PaintedIdentityDP:
        """Moves painter, recogniser and mesh. Returns the method itself."""
        super().to(device)
        self.mesh = load_mesh(device=str(self.device))
        return self

    def _unprotected(self) -> str:
        return (
            f"skin tone and the fall of light as a parabola a channel ({self.painter.texture.light_mean.numel()} "
            f"numbers), expression, pose, the shape of the face but for its {self.config.shape_traits} directions of "
            "identity, and the inside of eyes and mouth"
        )

    def _painted(self, crops: Tensor, identity: Tensor, vectors: Tensor, sources: Sequence[BitSource]) -> Tensor:
        """Traits are drawn anew from the same source as the noise; the original's are taken off and used nowhere."""
        c = self.config
        state = self.painter.observe(crops, meshes_of_crops(self.mesh, self.painter, crops), vectors.to(crops))
        own, details = [], []
        for source in sources:
            rng = torch.Generator().manual_seed(source.bits(62))
            own.append(torch.randn(c.traits, generator=rng) * _TRUNCATION)
            details.append(torch.randn(c.details, generator=rng) * _TRUNCATION)
            details[-1][c.personal_details :] = 0
        person = Person(identity, torch.stack(own).to(crops), torch.stack(details).to(crops))
        painted = self.painter.paint(crops, state, person)
        return gray_as(crops, painted.result)

    @torch.no_grad()
    def notes(self, faces: Tensor, context: FaceContext) -> list[tuple[str, ...]]:
        """Which faces the mesh was not sure of."""
        del context
        return unsure_notes(self.mesh, faces.to(self.device, torch.float32))
