"""identity_rotation with the face painter: the same rotation, in every channel that tells who somebody is.

The identity vector is rotated toward the key's reference as in the book. The painter's *traits* (shape of the face,
brows, lips, skin: what the vector does not tell) are rotated too, by an orthogonal matrix that the key chooses: the
same person becomes the same stranger in every picture, two people stay two, and the inverse is the transpose. Light,
pose and expression stay.

The code holds numbers and no picture: everything that the painter needs to paint the original again, some 350 numbers
on a lattice that nobody sees (``facezoo.concealment.lattice``). Where its tag does not fit the key, the closed form
(6.19)-(6.21) gives what that key says, which for a wrong key is somebody else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import torch
from torch import Tensor, nn

from facezoo.concealment import placement
from facezoo.concealment.lattice import LATTICE_CELL, Lattice
from facezoo.faces.mask import face_mask
from facezoo.keys import Key
from facezoo.mesh import FaceMesh, load_mesh
from facezoo.methods.base import FaceContext, LearnedMethod, Recovered, check_faces
from facezoo.methods.checkpoints import checkpoint_config, fill_networks
from facezoo.methods.face_painter.use import gray_as, meshes_of_crops, unsure_notes
from facezoo.methods.identity_rotation.config import PaintedRotationConfig
from facezoo.methods.identity_rotation.options import IdentityRotationOptions
from facezoo.methods.identity_rotation.rotation import rotate, rotation_degrees, unrotate
from facezoo.methods.options import Options
from facezoo.nets.face_painter.painter import FacePainter, FaceState
from facezoo.recognition import load_recogniser

_REFERENCE = "identity_rotation/reference"
_TRAITS = "identity_rotation/traits"
_CODE = "identity_rotation/lattice"


class PaintedRotation(LearnedMethod):
    """The method on a face painter's checkpoint; ``IdentityRotation.from_checkpoint`` gives it.

    Args:
        painter: trained face painter.
        recogniser: frozen identity encoder of the painter.
        config: steps of the code.
        options: options for every call.
    """

    name = "identity_rotation"
    reversible = True
    uses_key = True
    requires_key = True
    options_class: type[Options] = IdentityRotationOptions

    def __init__(
        self,
        painter: FacePainter,
        recogniser: nn.Module,
        config: PaintedRotationConfig,
        options: Options | None = None,
    ) -> None:
        super().__init__(options)
        self.painter = painter.eval().requires_grad_(False)
        self.painter.refiner.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.recogniser = recogniser
        self.identity_encoders = (config.recogniser,)
        self.crop_size = config.size
        self.lattice = Lattice(
            config.size,
            [r for n, detail in painter.told for r in [config.detail_repeats if detail else config.repeats] * n],
            config.step_inside,
            config.step_outside,
            torch.from_numpy(face_mask(config.size).copy()),
            _CODE,
        )
        self.device = torch.device("cpu")
        self.mesh: FaceMesh = load_mesh()

    @classmethod
    def from_checkpoint(cls, folder: Path, manifest: dict[str, Any], options: Options | None = None) -> Self:
        """Builds the painter of a checkpoint folder, strictly.

        Raises:
            CheckpointError: the configuration or a file does not fit.
        """
        config = checkpoint_config(PaintedRotationConfig, folder, manifest)
        painter = FacePainter(config)
        fill_networks(painter.networks(), folder, manifest)
        return cls(painter, load_recogniser(config.recogniser), config, options)

    def to(self, device: torch.device | str) -> Self:
        """Moves painter, recogniser and mesh. Returns the method itself."""
        self.device = torch.device(device)
        self.painter.to(self.device)
        self.recogniser.to(self.device)
        self.mesh = load_mesh(device=str(self.device))
        return self

    # ------------------------------------------------------------------ the two calls
    @torch.no_grad()
    def anonymize(self, faces: Tensor, context: FaceContext) -> Tensor:
        """See ``Method.anonymize``; outside the mesh the face stays, but for the code."""
        check_faces(faces, self.name, self.crop_size)
        key = self.require_key(context)
        options = cast(IdentityRotationOptions, self.resolve_options(context))
        if len(faces) == 0:
            return faces.clone()
        crops = self._on_device(faces)
        mesh, identity = self._mesh(crops), self._identity(crops)
        state = self.painter.observe(crops, mesh, identity)
        nonces = [self.lattice.layout.face_nonce(key, crop) for crop in crops]
        result = torch.cat(
            [self._turned(crops[i : i + 1], _row(state, i), key, options, nonces[i]) for i in range(len(crops))]
            if options.pseudonym == "picture"
            else [self._turned(crops, state, key, options, b"")]
        )
        result = gray_as(crops, result)
        if options.conceal:
            angles = self.lattice.angles(self.painter.describe(crops, mesh, identity)).cpu()
            phasors = self.lattice.layout.encrypt(angles, [key] * len(crops), nonces)
            result = self.lattice.write(result, phasors.to(result))
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
            phasors = self.lattice.read(crops).cpu()
            for i, read in enumerate(phasors):
                nonce, fits[i] = self.lattice.layout.read_header(read, key)
                if fits[i]:
                    decrypted = self.lattice.layout.decrypt(read, key, nonce)
                    numbers = self.lattice.numbers(decrypted, self.lattice.coherence(read))
                    result[i : i + 1] = self._recalled(crops[i : i + 1], numbers[None].to(crops), key, options, nonce)
        rest = [i for i, fit in enumerate(fits) if not fit]
        if rest:
            result[rest] = self._closed_form(crops[rest], key, options)
        result = gray_as(crops, result)
        return Recovered(result.clamp(-1, 1).to(faces), list(fits) if options.conceal else [None] * len(fits))

    # ------------------------------------------------------------------ rotation
    def _turned(
        self, crops: Tensor, state: FaceState, key: Key, options: IdentityRotationOptions, nonce: bytes
    ) -> Tensor:
        """Somebody else in the place of each face."""
        identity, own = self._stranger(state, key, options, nonce)
        return self.painter.paint(crops, state, identity, own).result

    def _stranger(
        self, state: FaceState, key: Key, options: IdentityRotationOptions, nonce: bytes
    ) -> tuple[Tensor, Tensor]:
        """Identity vector and traits after the rotation."""
        if options.pseudonym == "person":
            nonce = b""
        reference = self._reference(key, nonce)
        identity = rotate(state.identity, reference, rotation_degrees(options.level))
        limit = self.painter.config.trait_limit
        own = (state.own.clamp(-limit, limit) @ self._turn(key, nonce)).clamp(-limit, limit)
        return torch.nn.functional.normalize(identity, dim=-1), own

    def _recalled(
        self, crops: Tensor, numbers: Tensor, key: Key, options: IdentityRotationOptions, nonce: bytes
    ) -> Tensor:
        """The original again, from the numbers of the code; eyes and mouth inside come from the saved picture."""
        original, details = self.painter.recall(numbers)
        identity, own = self._stranger(original, key, options, nonce)
        saved = self.painter.disguised(original, identity, own)
        return self.painter.paint(crops, saved, original.identity, original.own, details=details).result

    def _closed_form(self, crops: Tensor, key: Key, options: IdentityRotationOptions) -> Tensor:
        """Recovery by the inverse rotations alone, equations (6.19)-(6.21) and the transpose.

        A picture of its own (``--pseudonym picture``) has no closed form: its nonce stands in the code.
        """
        state = self.painter.observe(crops, self._mesh(crops), self._identity(crops))
        identity = unrotate(state.identity, self._reference(key, b""), rotation_degrees(options.level))
        return self.painter.paint(crops, state, identity, state.own @ self._turn(key, b"").T).result

    def _reference(self, key: Key, nonce: bytes) -> Tensor:
        """Unit reference vector f(p), ``(1, D)``: a draw from the training identities' distribution."""
        dim = self.painter.config.identity_dim
        normal = torch.from_numpy(key.unit_vector(_with(_REFERENCE, nonce), dim)).to(self.device) * dim**0.5
        reference: Tensor = self.painter.identity_distribution(normal[None])
        return reference

    def _turn(self, key: Key, nonce: bytes) -> Tensor:
        """The orthogonal matrix of the traits, ``(T, T)``."""
        count = self.painter.config.traits
        drawn = torch.from_numpy(key.uniform(_TRAITS, (count, count), context=nonce)).double()
        q, r = torch.linalg.qr(drawn)
        return (q * torch.sign(r.diagonal())).float().to(self.device)

    # ------------------------------------------------------------------ seeing
    def _on_device(self, faces: Tensor) -> Tensor:
        return faces.to(self.device, torch.float32).contiguous(memory_format=torch.channels_last)

    def _identity(self, crops: Tensor) -> Tensor:
        return torch.nn.functional.normalize(self.recogniser(crops), dim=-1)

    def _mesh(self, crops: Tensor) -> Tensor:
        return meshes_of_crops(self.mesh, self.painter, crops)

    @torch.no_grad()
    def notes(self, faces: Tensor, context: FaceContext) -> list[tuple[str, ...]]:
        """Which faces the mesh was not sure of."""
        del context
        return unsure_notes(self.mesh, self._on_device(faces))

    # ------------------------------------------------------------------ whole pictures
    def place_crops(self, transforms: np.ndarray[Any, np.dtype[Any]]) -> np.ndarray[Any, np.dtype[Any]]:
        """Moves each crop to the nearest place of the grid that ``align_for_recovery`` searches (see ``placement``)."""
        return placement.snapped(transforms, self.painter.config.size, LATTICE_CELL)

    @torch.no_grad()
    def align_for_recovery(
        self,
        crop: Callable[[np.ndarray[Any, np.dtype[Any]]], Tensor],
        transforms: np.ndarray[Any, np.dtype[Any]],
        context: FaceContext,
    ) -> np.ndarray[Any, np.dtype[Any]]:
        """Finds the places of the crops by the code's pilots; see ``Method.align_for_recovery``."""
        del context
        size, layout = self.painter.config.size, self.lattice.layout

        def read(moved: np.ndarray[Any, np.dtype[Any]]) -> Tensor:
            return self.lattice.read(crop(moved).float()).cpu()

        return np.stack([placement.find(start, size, read, layout, LATTICE_CELL) for start in transforms])


def _with(purpose: str, nonce: bytes) -> str:
    return f"{purpose}/{nonce.hex()}" if nonce else purpose


def _row(state: FaceState, i: int) -> FaceState:
    """One face of a batch."""
    pose = dataclasses.replace(
        state.pose,
        rotation=state.pose.rotation[i : i + 1],
        scale=state.pose.scale[i : i + 1],
        shift=state.pose.shift[i : i + 1],
    )
    names = ("points", "depth", "shapes", "behaviour", "light", "own", "identity")
    return dataclasses.replace(state, pose=pose, **{name: getattr(state, name)[i : i + 1] for name in names})
