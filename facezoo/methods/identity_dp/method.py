"""identity_dp at use: Laplace noise on the identity vector, then a face painted from it.

Paper: Wen, Liu, Song, Cao, Xie, "Face De-identification: Safeguarding Identities in the Digital Era" (Springer 2024),
chapter 5; Wen, Song, Liu, Ding, Xie, "IdentityDP", Neurocomputing 501 (2022).

Stage I (the networks) is that of an identity_rotation checkpoint, frozen. Stage II adds noise to the identity vector
(5.11). Stage III paints (5.13). Everything after the noise is post-processing; the attribute path is not, and nothing
protects it: see README.md for what that means and for the deviations.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from facezoo.faces.mask import face_mask
from facezoo.methods.base import FaceContext, LearnedMethod, check_faces
from facezoo.methods.checkpoints import checkpoint_config, fill_networks
from facezoo.methods.identity_dp.config import IdentityDPConfig
from facezoo.methods.identity_dp.options import IdentityDPOptions
from facezoo.methods.options import Options
from facezoo.nets.disentangled import DisentangledPainter
from facezoo.privacy.accounting import Cost
from facezoo.privacy.guarantee import Guarantee
from facezoo.privacy.mechanisms import LaplaceMechanism
from facezoo.privacy.randomness import BitSource
from facezoo.privacy.release import SEEDED_REASON, source_for
from facezoo.privacy.sensitivity import Sensitivity, unit_sphere, unit_vectors
from facezoo.recognition import load_recogniser


def painter_of(config: IdentityDPConfig) -> DisentangledPainter:
    """The networks of a configuration, untrained."""
    c = config
    return DisentangledPainter(
        size=c.size,
        scale=c.generator_scale,
        identity_dim=c.identity_dim,
        generator_widths=c.generator_widths,
        attribute_widths=c.attribute_widths,
        attribute_grid=c.attribute_grid,
        linear_painter=c.linear_painter,
        constants=c.generator_constants,
        mask=torch.from_numpy(face_mask(c.size).copy()),
        generator_mask=torch.from_numpy(face_mask(c.size // c.generator_scale).copy()),
    )


class IdentityDP(LearnedMethod):
    """The method with its frozen networks.

    Args:
        painter: Trained networks; frozen here.
        recogniser: Frozen identity encoder of the training.
        config: Of the checkpoint.
        options: Options for every call.
    """

    name: ClassVar[str] = "identity_dp"
    options_class: ClassVar[type[Options]] = IdentityDPOptions

    def __init__(
        self,
        painter: DisentangledPainter,
        recogniser: nn.Module,
        config: IdentityDPConfig,
        options: Options | None = None,
    ) -> None:
        super().__init__(options)
        self.painter = painter.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.recogniser = recogniser
        self.config = config
        self.identity_encoders = (config.recogniser,)
        self.crop_size = config.size
        self.device = torch.device("cpu")

    @classmethod
    def from_checkpoint(cls, folder: Path, manifest: dict[str, Any], options: Options | None = None) -> IdentityDP:
        """Builds the networks of a checkpoint folder, strictly; with a face painter it is a ``PaintedIdentityDP``.

        Raises:
            CheckpointError: the configuration or a file does not fit.
        """
        if manifest["config"].get("painter") == "face_painter":
            from facezoo.methods.identity_dp.painted import PaintedIdentityDP

            return PaintedIdentityDP.from_checkpoint(folder, manifest, options)
        config = checkpoint_config(IdentityDPConfig, folder, manifest)
        painter = painter_of(config)
        fill_networks(painter.networks(), folder, manifest)
        return cls(painter, load_recogniser(config.recogniser), config, options)

    def to(self, device: torch.device | str) -> Self:
        """Moves networks and recogniser. Returns the method itself."""
        self.device = torch.device(device)
        self.painter.to(self.device)
        self.recogniser.to(self.device)
        return self

    # ------------------------------------------------------------------ the promise
    def sensitivity(self, options: IdentityDPOptions) -> Sensitivity:
        """What the noise is scaled by: the sphere's diameter in l1, or the book's greatest distance seen."""
        if options.sensitivity == "sound":
            return unit_sphere(self.config.identity_dim, "l1")
        reason = f"greatest distance among {self.config.greatest_l1_faces} faces (book, 5.12); NOT a bound for others"
        return Sensitivity(self.config.greatest_l1, "l1", False, reason)

    def mechanism(self, options: IdentityDPOptions) -> LaplaceMechanism:
        """The Laplace mechanism of one face, equation (5.11)."""
        return LaplaceMechanism(options.epsilon, self.sensitivity(options), self.config.identity_dim)

    def guarantee(self, context: FaceContext) -> Guarantee:
        """What one call promises for each face."""
        options = cast(IdentityDPOptions, self.resolve_options(context))
        bound = self.sensitivity(options)
        reason = f"sensitivity: {bound.reason}" if options.randomness == "secure" else SEEDED_REASON
        return Guarantee(
            cost=Cost(options.epsilon),
            protects="the identity vector that the face is painted from; not the attribute features",
            neighbours="any two faces in the place of each other (local model)",
            leaks=(
                f"what the attribute path sees is not protected: {self._unprotected()}, and "
                "the picture around the face mask (hair, ears, clothes, place)"
            ),
            holds=bound.sound and options.randomness == "secure",
            reason=reason,
        )

    def _unprotected(self) -> str:
        """What of the face's inside the painter sees, in words."""
        grid = self.config.attribute_grid
        inside = f"the inside of the face at {grid}x{grid} pixels" if grid else "the whole face"
        return f"{inside} (tone, light, rough expression, pose)"

    def options_record(self, context: FaceContext) -> dict[str, object]:
        """Options, and the guarantee in words."""
        return {**super().options_record(context), **self.guarantee(context).to_record()}

    # ------------------------------------------------------------------ the call
    @torch.no_grad()
    def anonymize(self, faces: Tensor, context: FaceContext) -> Tensor:
        """See ``Method.anonymize``; fresh noise for each face at each call."""
        check_faces(faces, self.name, self.crop_size)
        options = cast(IdentityDPOptions, self.resolve_options(context))
        if len(faces) == 0:
            return faces.clone()
        crops = faces.to(self.device, torch.float32).contiguous(memory_format=torch.channels_last)
        mechanism = self.mechanism(options)
        vectors = unit_vectors(self.recogniser(crops))
        released = []
        sources = [self._source(crop, options, context) for crop in crops]
        for vector, source in zip(vectors, sources, strict=True):
            noisy = mechanism.release(vector, source)
            released.append(self._identity(noisy, mechanism.scale, options, source))
        identity = torch.stack(released).to(crops)
        return self._painted(crops, identity, vectors, sources).clamp(-1, 1).to(faces)

    def _painted(self, crops: Tensor, identity: Tensor, vectors: Tensor, sources: Sequence[BitSource]) -> Tensor:
        """Faces with the released identities ``(B, D)``; of the original ones ``vectors`` nothing is used here."""
        del vectors, sources
        return self.painter.cover(crops, identity)

    def _source(self, crop: Tensor, options: IdentityDPOptions, context: FaceContext) -> BitSource:
        pixels = np.ascontiguousarray(crop.contiguous().cpu().numpy()).tobytes()
        return source_for(options.randomness, context.seed, pixels)

    def _identity(self, noisy: Tensor, scale: float, options: IdentityDPOptions, source: BitSource) -> Tensor:
        """The unit vector that is painted, from the noisy one alone: ``(D,)`` float64 -> ``(D,)``.

        "natural": training identities are about Gaussian with mean m and covariance S, the noise has the variance
        v = 2 scale^2 in each coordinate; given the noisy vector y an identity is then about Gaussian with the mean
        m + K (y - m) and the covariance S - K S, K = S (S + v)^-1. A draw of it is as varied as people are,
        whatever epsilon is, and never reads the original.
        """
        if options.identity == "natural":
            distribution = self.painter.identity_distribution
            mean, factor = distribution.mean.double(), distribution.factor.double()
            covariance = factor @ factor.T
            eye = torch.eye(len(mean), dtype=torch.float64, device=mean.device)
            gain = torch.linalg.solve(covariance + 2 * scale**2 * eye, covariance)  # K transposed: both are symmetric
            rest = covariance - gain.T @ covariance
            rest = (rest + rest.T) / 2 + 1e-9 * covariance.diagonal().mean() * eye
            generator = torch.Generator().manual_seed(source.bits(62))
            normal = torch.randn(len(mean), generator=generator, dtype=torch.float64).to(mean.device)
            noisy = mean + (noisy - mean) @ gain + torch.linalg.cholesky(rest) @ normal
        if float(noisy.norm()) < 1e-9:
            noisy = torch.ones_like(noisy)  # cannot happen but in theory; any direction that ignores the face will do
        return functional.normalize(noisy, dim=-1)
