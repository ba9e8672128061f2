"""identity_rotation at use: anonymize and recover aligned faces with a key.

Paper: Wen, Liu, Song, Cao, Xie, "Face De-identification: Safeguarding Identities in the Digital Era" (Springer 2024),
chapter 6; Cao, Liu, Wen, Xie, Song, "Personalized and Invertible Face De-identification by Disentangled Identity
Information Manipulation", ICCV 2021.

``anonymize`` turns the face's identity vector toward the key's reference vector (6.16-6.18), paints a face of the new
identity inside the face mask, and hides an encrypted code in the picture. ``recover`` reads the code back: where its
tag fits the key the original is revealed from it; where it does not (wrong key, or a picture damaged too much), the
book's closed form (6.19-6.21) gives what that key says, which for a wrong key is somebody else.

Deviations from the book: see README.md in this folder.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from facezoo.concealment import placement
from facezoo.concealment.code import find_crops, read_code, write_code
from facezoo.keys import Key
from facezoo.methods.base import FaceContext, LearnedMethod, Recovered, check_faces
from facezoo.methods.checkpoints import checkpoint_config, fill_networks
from facezoo.methods.identity_rotation.config import IdentityRotationConfig
from facezoo.methods.identity_rotation.model import IdentityRotationNetworks
from facezoo.methods.identity_rotation.options import IdentityRotationOptions
from facezoo.methods.identity_rotation.painted import PaintedRotation
from facezoo.methods.identity_rotation.rotation import rotate, rotation_degrees, unrotate
from facezoo.methods.options import Options
from facezoo.recognition import load_recogniser

_REFERENCE = "identity_rotation/reference"


class IdentityRotation(LearnedMethod):
    """The trained method.

    Args:
        networks: Trained networks.
        recogniser: Frozen identity encoder of the training.
        options: Options for every call.
    """

    name: ClassVar[str] = "identity_rotation"
    reversible: ClassVar[bool] = True
    uses_key: ClassVar[bool] = True
    requires_key: ClassVar[bool] = True
    options_class: ClassVar[type[Options]] = IdentityRotationOptions

    def __init__(
        self, networks: IdentityRotationNetworks, recogniser: nn.Module, options: Options | None = None
    ) -> None:
        super().__init__(options)
        self.networks = networks.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.recogniser = recogniser
        self.identity_encoders = (networks.config.recogniser,)
        self.crop_size = networks.config.size
        self.device = torch.device("cpu")

    @classmethod
    def from_checkpoint(  # type: ignore[override]  # one method name, two kinds of checkpoints
        cls, folder: Path, manifest: dict[str, Any], options: Options | None = None
    ) -> Self | PaintedRotation:
        """Builds the networks of a checkpoint folder, strictly; with a face painter it is a ``PaintedRotation``.

        Raises:
            CheckpointError: the configuration or a file does not fit.
        """
        if manifest["config"].get("painter") == "face_painter":
            return PaintedRotation.from_checkpoint(folder, manifest, options)
        config = checkpoint_config(IdentityRotationConfig, folder, manifest)
        networks = IdentityRotationNetworks(config)
        fill_networks(networks.networks(), folder, manifest)
        return cls(networks, load_recogniser(config.recogniser), options)

    def to(self, device: torch.device | str) -> Self:
        """Moves networks and recogniser. Returns the method itself."""
        self.device = torch.device(device)
        self.networks.to(self.device)
        self.recogniser.to(self.device)
        return self

    # ------------------------------------------------------------------ the two calls
    @torch.no_grad()
    def anonymize(self, faces: Tensor, context: FaceContext) -> Tensor:
        """See ``Method.anonymize``; the face outside the mask stays, but for the code."""
        check_faces(faces, self.name, self.crop_size)
        key = self.require_key(context)
        options = cast(IdentityRotationOptions, self.resolve_options(context))
        if len(faces) == 0:
            return faces.clone()
        crops = self._on_device(faces)
        rotated = rotate(self.recogniser(crops), self._reference(key), rotation_degrees(options.level))
        result = self.networks.cover(crops, functional.normalize(rotated, dim=-1))
        if options.conceal:
            result = write_code(self.networks, crops, result, key)
        return result.clamp(-1, 1).to(faces)

    @torch.no_grad()
    def recover(self, faces: Tensor, context: FaceContext) -> Recovered:
        """See ``Method.recover``; ``verified`` says for each face whether the code's tag fits the key."""
        check_faces(faces, self.name, self.crop_size)
        key = self.require_key(context)
        options = cast(IdentityRotationOptions, self.resolve_options(context))
        if len(faces) == 0:
            return Recovered(faces.clone(), [])
        crops = self._on_device(faces)
        result, fits = crops.clone(), [False] * len(crops)
        if options.conceal:
            result, fits = read_code(self.networks, crops, key)
        rest = [i for i, fit in enumerate(fits) if not fit]
        if rest:
            result[rest] = self._closed_form(crops[rest], key, options.level)
        return Recovered(result.clamp(-1, 1).to(faces), list(fits) if options.conceal else [None] * len(fits))

    def _closed_form(self, crops: Tensor, key: Key, level: int) -> Tensor:
        """Recovery by the inverse rotation alone, equations (6.19)-(6.21)."""
        identity = unrotate(self.recogniser(crops), self._reference(key), rotation_degrees(level))
        return self.networks.cover(crops, identity)

    def _reference(self, key: Key) -> Tensor:
        """Unit reference vector f(p) of a key, ``(1, D)``: a draw from the training identities' distribution."""
        dim = self.networks.config.identity_dim
        normal = torch.from_numpy(key.unit_vector(_REFERENCE, dim)).to(self.device) * dim**0.5
        reference: Tensor = self.networks.identity_distribution(normal[None])
        return reference

    def _on_device(self, faces: Tensor) -> Tensor:
        return faces.to(self.device, torch.float32).contiguous(memory_format=torch.channels_last)

    # ------------------------------------------------------------------ whole pictures
    def place_crops(self, transforms: np.ndarray[Any, np.dtype[Any]]) -> np.ndarray[Any, np.dtype[Any]]:
        """Moves each crop to the nearest place of the grid that ``align_for_recovery`` searches (see ``placement``)."""
        return placement.snapped(transforms, self.networks.config.size)

    @torch.no_grad()
    def align_for_recovery(
        self,
        crop: Callable[[np.ndarray[Any, np.dtype[Any]]], Tensor],
        transforms: np.ndarray[Any, np.dtype[Any]],
        context: FaceContext,
    ) -> np.ndarray[Any, np.dtype[Any]]:
        """Finds the places of the crops by the code's pilots; see ``Method.align_for_recovery``."""
        return find_crops(
            self.networks, lambda moved: self._on_device(crop(moved)), transforms, self.networks.config.size
        )
