"""identity_rotation with the face painter: a rotation by one angle, in every channel that tells who somebody is.

The book turns the identity vector toward the key's reference, (6.16)-(6.18). Here the whitened vector is turned in
planes that the key chooses (``facezoo.nets.face_painter.turn``): by exactly the level's angle for everybody, the same
person becomes the same stranger in every picture, two people stay two, and the inverse is the transpose. The painter's
*traits* and *details* (shape, brows, lips, skin: what the vector does not tell) are turned likewise, by a right angle.
Light, pose and expression stay.

The code holds numbers and no picture: everything that the painter needs to paint the original again, some 350 numbers
on a lattice that nobody sees (``facezoo.concealment.lattice``). Where its tag does not fit the key, the turns back
give what that key says, which for a wrong key is somebody else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, cast

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
from facezoo.methods.identity_rotation.rotation import rotation_degrees
from facezoo.methods.options import Options
from facezoo.nets.face_painter.painter import FacePainter, Person, Turns
from facezoo.recognition import load_recogniser

_TURN = "identity_rotation/turn"
_CODE = "identity_rotation/lattice"
_TOLD_LIMIT = 3.0
"""Traits are told to a recovery up to so many deviations."""


class PaintedRotation(LearnedMethod):
    """The method on a face painter's checkpoint; ``IdentityRotation.from_checkpoint`` gives it.

    Args:
        painter: trained face painter.
        recogniser: frozen identity encoder of the painter.
        config: steps of the code.
        options: options for every call.
    """

    name: ClassVar[str] = "identity_rotation"
    reversible: ClassVar[bool] = True
    uses_key: ClassVar[bool] = True
    requires_key: ClassVar[bool] = True
    options_class: ClassVar[type[Options]] = IdentityRotationOptions

    def __init__(
        self,
        painter: FacePainter,
        recogniser: nn.Module,
        config: PaintedRotationConfig,
        options: Options | None = None,
    ) -> None:
        super().__init__(options)
        self.painter = painter.eval().requires_grad_(False)
        self.painter.refiner.to(memory_format=torch.channels_last)  # type: ignore[call-overload, unused-ignore]
        self.recogniser = recogniser
        self.config = config
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
        state = self.painter.observe(crops, self._mesh(crops), self._identity(crops), _TOLD_LIMIT)
        nonces = [self.lattice.layout.face_nonce(key, crop) for crop in crops]
        person = self._strangers(state.person, key, options, nonces)
        result = gray_as(crops, self.painter.paint(crops, state, person).result)
        if options.conceal:
            angles = self.lattice.angles(self.painter.describe(state)).cpu()
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
        result, told = crops.clone(), self._told(crops, key) if options.conceal else {}
        if told:
            rows, (numbers, nonces) = list(told), zip(*told.values(), strict=True)
            result[rows] = self._recalled(crops[rows], torch.stack(numbers).to(crops), key, options, nonces)
        fits = [i in told for i in range(len(crops))]
        rest = [i for i, fit in enumerate(fits) if not fit]
        if rest:
            result[rest] = self._closed_form(crops[rest], key, options)
        result = gray_as(crops, result)
        return Recovered(result.clamp(-1, 1).to(faces), list(fits) if options.conceal else [None] * len(fits))

    def _told(self, crops: Tensor, key: Key) -> dict[int, tuple[Tensor, bytes]]:
        """Numbers ``(N,)`` and nonce of those faces whose code fits the key, by their place in the batch."""
        told, layout = {}, self.lattice.layout
        for i, read in enumerate(self.lattice.read(crops).cpu()):
            nonce, fits = layout.read_header(read, key)
            if fits:
                numbers = self.lattice.numbers(layout.decrypt(read, key, nonce), self.lattice.coherence(read))
                told[i] = (numbers, nonce)
        return told

    # ------------------------------------------------------------------ rotation
    def _turns(self, key: Key, options: IdentityRotationOptions, nonce: bytes) -> Turns:
        """What the key makes of people; with ``--pseudonym picture`` of the nonce too."""
        context = nonce if options.pseudonym == "picture" else b""

        def draw(name: str, count: int) -> Tensor:
            return torch.from_numpy(key.uniform(f"{_TURN}/{name}", (count, count), context=context))

        degrees = rotation_degrees(options.level) + self.config.extra_degrees
        return Turns.drawn(draw, self.config, degrees, self.config.trait_degrees).to(self.device)

    def _strangers(self, person: Person, key: Key, options: IdentityRotationOptions, nonces: Sequence[bytes]) -> Person:
        """Who stands in the place of each of a batch; with ``--pseudonym picture`` each nonce has turns of its own."""
        limit = self.painter.config.trait_limit
        cut = Person(person.identity, person.own.clamp(-limit, limit), person.details.clamp(-limit, limit))
        if options.pseudonym == "person":
            return self.painter.stranger(cut, self._turns(key, options, b""))
        rows = [self.painter.stranger(_row(cut, i), self._turns(key, options, nonce)) for i, nonce in enumerate(nonces)]
        return Person(*(torch.cat(parts) for parts in zip(*map(_channels, rows), strict=True)))

    def _recalled(
        self, crops: Tensor, numbers: Tensor, key: Key, options: IdentityRotationOptions, nonces: Sequence[bytes]
    ) -> Tensor:
        """The original again, from the numbers of the code; eyes and mouth inside come from the saved picture."""
        original = self.painter.recall(numbers)
        saved = self.painter.disguised(original, self._strangers(original.person, key, options, nonces))
        return self.painter.paint(crops, saved, original.person).result

    def _closed_form(self, crops: Tensor, key: Key, options: IdentityRotationOptions) -> Tensor:
        """Recovery by the turns back alone.

        A picture of its own (``--pseudonym picture``) has no closed form: its nonce stands in the code.
        """
        state = self.painter.observe(crops, self._mesh(crops), self._identity(crops))
        back = self._turns(key, options, b"").inverse()
        return self.painter.paint(crops, state, self.painter.stranger(state.person, back)).result

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


def _channels(person: Person) -> tuple[Tensor, Tensor, Tensor]:
    return person.identity, person.own, person.details


def _row(person: Person, i: int) -> Person:
    """One of a batch."""
    return Person(*(channel[i : i + 1] for channel in _channels(person)))
