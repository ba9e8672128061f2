"""The interface that every method follows, classic or learned: same calls, same records.

A method sees aligned faces, never a whole picture: cutting out and pasting back are done by `facezoo.faces`, with the
mask that the method's `cover` names. So ``anonymize`` returns the *whole* crop changed, corners included.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, Self, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from facezoo.errors import InputError, KeyMaterialError
from facezoo.keys import Key
from facezoo.methods.options import Options
from facezoo.privacy.guarantee import Guarantee
from facezoo.registry import reversible_methods

__all__ = [
    "REFERENCE_SIZE",
    "ClassicMethod",
    "FaceContext",
    "LearnedMethod",
    "Method",
    "PeopleGenerator",
    "Recovered",
    "check_faces",
    "check_person",
]

ClassicOptions = TypeVar("ClassicOptions", bound=Options)

Cover = Literal["blend", "face", "soft", "sharp", "square", "changed"]
"""Which part of a method's result is pasted into the picture.

blend
    The face mask; around it the *change* is added and fades out. For results that look like the original around the
    face. (A blur would show the crop's border: what it changes there does not fade.)
face
    The face mask, and nothing around it. For other faces, whose surroundings are foreign to the picture.
soft, sharp
    The wide cover mask (all of the head that the crop holds) with a soft or a clean edge; nothing else changes.
square
    The whole crop.
changed
    Exactly the pixels that the method changed.
"""

REFERENCE_SIZE = 128
"""Lengths in options are pixels of a crop of this side; a crop of side S uses them times S / 128.

The crop is aligned to the template, so its side is a fixed multiple of the face: a length relative to the crop is a
length relative to the face, and a face gets the same treatment at 60 and at 600 pixels.
"""

_LARGEST_SEED = 2**63 - 1
_RANGE_TOLERANCE = 1e-3
"""Rounding in resampling and in half precision may leave [-1, 1] by this much; more is a picture in another range."""


@dataclass(frozen=True)
class FaceContext:
    """Everything a method may use besides the pixels.

    Attributes:
        points: (B, 5, 2) x and y of eye, eye, nose, mouth corner, mouth corner as seen from left to right, in pixels
            of the crop; None when unknown (the crop is then taken to follow the template exactly).
        key: the key; None when none was given.
        seed: for methods with chance and no key; the same seed gives the same result. Not a secret.
        options: changes to the method's own options for this call, checked by its options dataclass.
    """

    points: np.ndarray[Any, np.dtype[Any]] | None = None
    key: Key | None = None
    seed: int = 0
    options: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what would be taken for "no key" or "another seed" further down.

        Raises:
            KeyMaterialError: ``key`` is a text or anything else that is no `Key`.
            InputError: ``seed`` is no integer.
        """
        if self.key is not None and not isinstance(self.key, Key):
            raise KeyMaterialError(
                f"key must be a facezoo.Key, not {type(self.key).__name__}; make one with Key.from_passphrase(...)"
            )
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise InputError(f"seed must be an integer, not {type(self.seed).__name__}")


@dataclass(frozen=True)
class Recovered:
    """Recovered faces.

    Attributes:
        faces: (B, 3, S, S) in [-1, 1].
        verified: one entry a face: True or False where the method can tell that the key was right or wrong, None
            where it cannot.
    """

    faces: Tensor
    verified: list[bool | None]


def check_faces(faces: Tensor, method: str = "this method", size: int | None = None) -> None:
    """Refuse a batch that is not aligned faces in [-1, 1].

    Args:
        faces: to be checked; (B, 3, S, S), floating point. B = 0 is allowed.
        method: name for the message.
        size: the side S the method works at; None for any.

    Raises:
        InputError: another shape, type or range, or values that are not finite.
    """
    if not isinstance(faces, Tensor):
        raise InputError(f"{method}: faces must be a torch tensor (B, 3, S, S), not {type(faces).__name__}")
    if faces.ndim != 4 or faces.shape[1] != 3 or faces.shape[2] != faces.shape[3] or faces.shape[2] < 1:
        raise InputError(f"{method}: faces must have the shape (B, 3, S, S), not {tuple(faces.shape)}")
    if size is not None and faces.shape[-1] != size:
        raise InputError(f"{method}: works on crops of {size} pixels, not {faces.shape[-1]}; align the faces at {size}")
    if not faces.is_floating_point():
        raise InputError(f"{method}: faces must be floating point in [-1, 1]; convert 8-bit x by x / 127.5 - 1")
    if faces.numel():
        low, high = (bound.item() for bound in torch.aminmax(faces.detach()))
        # Written so that NaN, which compares false with everything, is refused too.
        if not (low >= -1 - _RANGE_TOLERANCE and high <= 1 + _RANGE_TOLERANCE):
            raise InputError(f"{method}: faces must lie in [-1, 1], not in [{low:.4g}, {high:.4g}]")


class Method(abc.ABC):
    """A way to make faces anonymous.

    Subclasses set the class attributes (they must equal the registry's entry) and define `anonymize`; reversible ones
    also `recover`. No method changes its input tensors, and the result for a face depends on nothing but that face,
    its points, the key or seed and the options: not on the rest of the batch.

    Attributes:
        name: as in the registry.
        learned: whether it needs a checkpoint.
        reversible: whether `recover` works.
        uses_key: whether a key changes the result.
        requires_key: whether it refuses to work without a key.
        options_class: the dataclass of its options.
        crop_size: side of the crops in pixels; None: any (the anonymizer then takes one near the face's own size).
        cover: which part of the result is pasted, see `Cover`.
        identity_encoders: recognisers that took part in the training; as judges of this method they are marked.
    """

    name: ClassVar[str]
    learned: ClassVar[bool] = False
    reversible: ClassVar[bool] = False
    uses_key: ClassVar[bool] = False
    requires_key: ClassVar[bool] = False
    options_class: ClassVar[type[Options]] = Options
    crop_size: int | None = None
    cover: ClassVar[Cover] = "blend"
    identity_encoders: tuple[str, ...] = ()

    def __init__(self, options: Options | None = None) -> None:
        """Keep the options.

        Args:
            options: of this method's `options_class`; None for the defaults.

        Raises:
            InputError: options of another method.
        """
        if options is None:
            options = self.options_class()
        if not isinstance(options, self.options_class):
            raise InputError(
                f"{self.name}: options must be a {self.options_class.__name__}, not {type(options).__name__}"
            )
        self.options = options

    @abc.abstractmethod
    def anonymize(self, faces: Tensor, context: FaceContext) -> Tensor:
        """Make faces anonymous.

        Args:
            faces: (B, 3, S, S) in [-1, 1], aligned to the template; not changed.
            context: key or seed, points, options of this call.

        Returns:
            (B, 3, S, S) in [-1, 1], of the same type and on the same device.

        Raises:
            InputError: faces, points or options that cannot be used.
            KeyMaterialError: no key where one is needed.
        """

    def recover(self, faces: Tensor, context: FaceContext) -> Recovered:
        """Bring faces back that `anonymize` made; irreversible methods refuse.

        Args:
            faces: (B, 3, S, S) in [-1, 1], cut out of the saved picture.
            context: the key, points, options.

        Returns:
            The faces, and what is known about the key.

        Raises:
            InputError: this method destroys the face, or the faces cannot be used.
            KeyMaterialError: no key where one is needed.
        """
        known = ", ".join(reversible_methods()) or "none is installed"
        raise InputError(
            f"{self.name} destroys the face, there is nothing to recover; reversible methods: {known} "
            "(or keep the originals encrypted in the record with --seal)"
        )

    def notes(self, faces: Tensor, context: FaceContext) -> list[tuple[str, ...]]:
        """Sentences for the user on each face that `anonymize` gets: what was not done as asked, say. None here.

        Args:
            faces: as for `anonymize`.
            context: as for `anonymize`.

        Returns:
            For each face, its sentences.
        """
        return [()] * len(faces)

    def place_crops(self, transforms: np.ndarray[Any, np.dtype[Any]]) -> np.ndarray[Any, np.dtype[Any]]:
        """Where the crops of a picture's faces lie, given where the detector's points put them. Unchanged here.

        A method whose recovery must find the crop again may move each one a little, to one of few possible places.
        The answer must depend on ``transforms`` only: recovery with a record repeats it.

        Args:
            transforms: (B, 2, 3) picture -> crop.

        Returns:
            (B, 2, 3) transforms to use.
        """
        return transforms

    def align_for_recovery(
        self,
        crop: Callable[[np.ndarray[Any, np.dtype[Any]]], Tensor],
        transforms: np.ndarray[Any, np.dtype[Any]],
        context: FaceContext,
    ) -> np.ndarray[Any, np.dtype[Any]]:
        """Refine where the faces lie when a picture is recovered without its record. Returns them unchanged here.

        Args:
            crop: cuts faces out of the picture: transforms (B, 2, 3) -> faces (B, 3, S, S) in [-1, 1].
            transforms: (B, 2, 3) picture -> crop, from the detector.
            context: as for `recover`.

        Returns:
            (B, 2, 3) transforms to use.
        """
        return transforms

    def resolve_options(self, context: FaceContext) -> Options:
        """This method's options with the call's changes.

        Raises:
            UnknownNameError: the call names an option that does not exist.
            InputError: a value of the wrong type or out of range.
        """
        return self.options.updated(context.options)

    def options_record(self, context: FaceContext) -> dict[str, object]:
        """What the picture's record says about the options: plain JSON values, no paths, no pictures, no secrets."""
        return self.resolve_options(context).to_record()

    def guarantee(self, context: FaceContext) -> Guarantee | None:
        """What one call promises for each face; None: nothing that could be proved. Here: None."""
        return None

    def require_key(self, context: FaceContext) -> Key:
        """The context's key.

        Raises:
            KeyMaterialError: there is none.
        """
        if context.key is None:
            raise KeyMaterialError(f"{self.name} needs a key: give a passphrase or a key file")
        return context.key


class ClassicMethod(Method, Generic[ClassicOptions]):
    """A method without networks: checks, precision and range are handled here, `change` does the work."""

    cover: ClassVar[Cover] = "soft"

    def anonymize(self, faces: Tensor, context: FaceContext) -> Tensor:
        """Make faces anonymous; see `Method.anonymize`.

        Half precision is computed in float32. Gradients are not kept: these methods are not trained.
        """
        check_faces(faces, self.name, self.crop_size)
        options = cast(ClassicOptions, self.resolve_options(context))
        if len(faces) == 0:
            return faces.clone()
        with torch.no_grad():
            exact = faces.to(torch.promote_types(faces.dtype, torch.float32))
            return self.change(exact, context, options).clamp(-1, 1).to(faces.dtype)

    @abc.abstractmethod
    def change(self, faces: Tensor, context: FaceContext, options: ClassicOptions) -> Tensor:
        """Change whole crops.

        Args:
            faces: (B, 3, S, S) in [-1, 1], float32 or float64, B at least 1; not to be changed in place.
            context: key, seed and points.
            options: those of the method with the call's changes.

        Returns:
            (B, 3, S, S); values outside [-1, 1] are clipped afterwards.

        Raises:
            InputError: points or options that cannot be used.
        """


class LearnedMethod(Method):
    """A method with trained networks, made from a checkpoint folder.

    What training needs (phases, networks, steps) is declared by the training module that the registry's entry names
    under `training`; this class is what runs afterwards.
    """

    learned: ClassVar[bool] = True

    @classmethod
    @abc.abstractmethod
    def from_checkpoint(cls, folder: Path, manifest: dict[str, Any]) -> Self:
        """Load the networks.

        Args:
            folder: the checkpoint folder; every file in the manifest has been checked against its sha256.
            manifest: the parsed ``manifest.json`` (docs/contracts.md).

        Returns:
            The method in evaluation mode on the CPU.

        Raises:
            CheckpointError: a network that does not fit exactly.
        """

    @abc.abstractmethod
    def to(self, device: torch.device | str) -> Self:
        """Move every network to a device. Returns the method itself."""


def check_person(seed: int, truncation: float) -> None:
    """Refuse what names no person of a `PeopleGenerator`.

    Raises:
        InputError: a seed that is no whole number from 0 to 2^63 - 1, or a truncation outside 0 to 1.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= _LARGEST_SEED:
        raise InputError(f"a seed is a whole number from 0 to {_LARGEST_SEED}, not {seed!r}")
    if not 0 <= truncation <= 1:
        raise InputError(f"truncation must be from 0 to 1, not {truncation}")


class PeopleGenerator(abc.ABC):
    """A trained generator of aligned faces of people who do not exist, made from a checkpoint folder.

    It is no `Method`: it sees no face and hides none. The registry's entry has the kind "generator".

    Attributes:
        name: name in the registry.
        size: side of the pictures in pixels.
    """

    name: ClassVar[str]
    size: int

    @classmethod
    @abc.abstractmethod
    def from_checkpoint(cls, folder: Path, manifest: dict[str, Any]) -> Self:
        """Load the networks; see `LearnedMethod.from_checkpoint`."""

    @abc.abstractmethod
    def to(self, device: torch.device | str) -> Self:
        """Move every network to a device. Returns the generator itself."""

    @abc.abstractmethod
    def person(self, seed: int, truncation: float) -> Tensor:
        """One person.

        Args:
            seed: which person, 0 or more; the same seed is the same person on every machine, up to rounding.
            truncation: 0 (always the mean face) to 1 (all the variety that was learned); smaller is likelier to look
                right.

        Returns:
            (3, S, S) in [-1, 1], aligned to the template, on the CPU.

        Raises:
            InputError: a seed or truncation out of range.
        """
