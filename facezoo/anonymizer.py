"""The object a user holds: whole picture in, whole picture out, and back again.

The path of a picture: load, detect, align, cut out, **one** call of the method for all faces, paste back, check,
encode, write. Everything fails closed: when one face cannot be anonymized, nothing is written for that picture.

What is checked before a result exists:

* a face was found at all, and a second detector of another kind sees no face that would not be hidden: all five points
  and most of it;
* the method's answer is finite, has the right shape and differs from what went in, for every face;
* every face differs from the original in the finished picture too, after rounding to 8 bits: around each of its points
  and in most of it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import secrets
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from facezoo import registry
from facezoo.errors import CheckpointError, FacezooError, InputError, KeyMaterialError, NoFaceError, RecordError
from facezoo.faces import align
from facezoo.faces.coverage import changed_enough, is_covered
from facezoo.faces.detect import Detector, DetectorOptions, Face, Rotations, box_overlap, faces_from_boxes, get_detector
from facezoo.faces.mask import FACE_CENTRE_128, FACE_SEMI_AXES_128, cover_mask, face_mask
from facezoo.faces.picture import MAX_PIXELS, MetadataPolicy, Picture, encode_picture, gray_pixels, load_picture
from facezoo.files import atomic_write, check_output
from facezoo.hub.manifest import ResolvedModel, resolve_model, verify_files
from facezoo.images.formats import output_format
from facezoo.keys import Key
from facezoo.methods.base import Cover, FaceContext, LearnedMethod, Method, Recovered
from facezoo.records import (
    FaceRecord,
    PictureRecord,
    embed_record,
    find_record,
    open_face,
    picture_sha256,
    read_record,
    seal_faces,
    sidecar_path,
)
from facezoo.tags import input_tag

if TYPE_CHECKING:
    from facezoo.faces.keep import KeepList

__all__ = [
    "Anonymizer",
    "FaceReport",
    "MissedFaceError",
    "Report",
    "Result",
    "check_record_key",
    "from_pretrained",
    "recover_sealed",
]

Source = str | os.PathLike[str] | bytes | npt.NDArray[np.generic] | Picture
Verify = Literal["on", "add", "off"]
NoFace = Literal["refuse", "copy"]

ByteArray = npt.NDArray[np.uint8]
DoubleArray = npt.NDArray[np.float64]
Box = tuple[float, float, float, float]

_CROP_SIZES: Final = (32, 48, 64, 96, 128, 192, 256, 384, 512)
"""Crop sizes for methods that work at any size: the first that is at least as fine as the picture is taken."""

_BATCH_PIXELS: Final = 64 * 128 * 128
"""Faces of one picture go through a method in one batch up to this many pixels: 64 faces of 128; then in several."""

_HALF_LEVEL: Final = 0.5 / 127.5
"""Half of one 8-bit level in the [-1, 1] range: a change below it is lost in the saved picture."""

_WEAK_RECOVERY: Final = 0.6
"""Below this many picture pixels per crop pixel the saved picture holds too little of what a method hid in it."""

_POINTS_TOO_ODD: Final = 14.0
"""Root mean square misfit (pixels of the 128 template) from which five points are no longer trusted; see `align`."""

_GIVEN_SCORE: Final = 0.3
"""Confidence from which the points of a face are believed where the user says that there is one."""

_SECOND_SCORE: Final = 0.6
"""Confidence from which a face that only the second detector sees counts."""

_SECOND_SCORE_LARGE: Final = 0.45
_LARGE_FACE: Final = 0.15
"""The same for a face whose shorter side is at least this part of the picture's: whoever stands in front out of focus,
or masked, is seen with less confidence, and is what a viewer looks at."""

_SEARCHED_FACE: Final = 8.0
"""Faces are searched for down to this size in pixels; smaller ones that are found all the same count too."""

_SECOND_FACE: Final = 24.0
"""Shorter side in pixels from which such a face counts: smaller ones are below what recognisers work on. (The first
detector finds and anonymizes them all the same; the second look is the slower one and gets a coarser picture.)"""

_SEAL_HEADER: Final = struct.Struct("<4sIIII")
_SEAL_MAGIC: Final = b"FZR1"

_OTHER_DETECTOR: Final = {"yunet": "centerface", "centerface": "yunet"}


class MissedFaceError(NoFaceError):
    """The second detector sees a face that would have stayed as it is."""


@dataclass(frozen=True)
class FaceReport:
    """What is known about one face after a call.

    Attributes:
        box: (x0, y0, x1, y1) in pixels of the upright picture.
        score: the detector's confidence; 1.0 for given boxes or points.
        size: longer side of the face in pixels of the picture.
        origin: "detector", "second detector", "given" or "record".
        kept: the keep-list named this person: the face was left as it is.
        verified: after a recovery: True or False where the method can tell whether the key was right, else None.
        sealed: after a recovery: the face came out of the sealed original, without loss.
        warnings: sentences for the user.
    """

    box: tuple[float, float, float, float]
    score: float
    size: float
    origin: str = "detector"
    kept: bool = False
    verified: bool | None = None
    sealed: bool = False
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report:
    """What is known about a picture after a call.

    Attributes:
        faces: those that were processed, or kept.
        warnings: sentences about the whole picture.
        left_small: faces that were found and left as they are because they are smaller than ``min_face``.
    """

    faces: tuple[FaceReport, ...] = ()
    warnings: tuple[str, ...] = ()
    left_small: int = 0

    def summary(self) -> str:
        """All warnings in one line, those that several faces share said once; "" where there is none."""
        numbers: dict[str, list[int]] = {}
        for number, face in enumerate(self.faces, start=1):
            for text in face.warnings:
                numbers.setdefault(text, []).append(number)
        return "; ".join([*self.warnings, *(f"{_face_numbers(which)}: {text}" for text, which in numbers.items())])

    def lines(self) -> list[str]:
        """The report as lines for a terminal: one a face, then the warnings."""
        lines = []
        for number, face in enumerate(self.faces, start=1):
            notes = list(face.warnings)
            if face.kept:
                notes.insert(0, "kept as it is")
            if face.sealed:
                notes.insert(0, "restored from the sealed original")
            if face.verified is not None:
                notes.insert(0, "code verified" if face.verified else _not_verified(face))
            text = "; ".join(notes) or "ok"
            lines.append(f"face {number}: {text} (box {_box_text(face.box)}, score {face.score:.2f})")
        return lines + [f"warning: {text}" for text in self.warnings]


def _face_numbers(numbers: Sequence[int]) -> str:
    """Words like face 3; faces 1, 2 and 7; 391 faces (1, 2, 3, ...)."""
    if len(numbers) == 1:
        return f"face {numbers[0]}"
    if len(numbers) <= 4:
        return f"faces {', '.join(map(str, numbers[:-1]))} and {numbers[-1]}"
    return f"{len(numbers)} faces ({', '.join(map(str, numbers[:3]))}, ...)"


def _not_verified(face: FaceReport) -> str:
    """What a face whose code does not fit the key means; a record has told already that the key is the right one."""
    if face.origin == "record":
        return "NOT verified: the key is right but what the picture hides could not be read; expect a poor likeness"
    return "NOT verified: wrong key or a damaged picture"


@dataclass(frozen=True)
class Result:
    """A finished picture that is not saved yet.

    Attributes:
        picture: the picture.
        record: what `save` will write beside it (its hash of the saved file is filled in there); None after a
            recovery.
        report: faces and warnings.
    """

    picture: Picture
    record: PictureRecord | None
    report: Report
    _key: Key | None = field(default=None, repr=False, compare=False)

    def __repr__(self) -> str:
        """Size and faces; no pixels."""
        height, width = self.picture.pixels.shape[:2]
        return f"<facezoo.Result: {width}x{height}, {len(self.report.faces)} faces>"

    def save(
        self,
        path: str | os.PathLike[str],
        overwrite: bool = False,
        *,
        file_format: str | None = None,
        quality: int = 95,
        write_record: bool = True,
        record_path: str | os.PathLike[str] | None = None,
        embed: bool = False,
    ) -> Path:
        """Write the picture, and its record beside it: both or none.

        Args:
            path: the picture's file. The record goes to ``<path>.facezoo.json``.
            overwrite: whether existing files may be replaced.
            file_format: "png", "jpg", "webp", "avif", "tiff" or "bmp"; None: from the ending of ``path``.
            quality: of JPEG, AVIF and WebP, 1 to 100.
            write_record: whether the record's file is written.
            record_path: where to, instead of beside the picture.
            embed: whether the record is also put into the file (PNG only).

        Returns:
            The path.

        Raises:
            OutputError: a file exists or cannot be written; nothing is left behind.
            InputError: unknown ending, or ``embed`` with something else than a PNG.
        """
        target = Path(path)
        kind = output_format(target, file_format)
        if embed and kind != "png":
            raise InputError("only a PNG can carry its record: save as .png, or leave out --embed-record")
        sidecar = sidecar_path(target) if record_path is None else Path(record_path)
        with_sidecar = write_record and self.record is not None
        check_output(target, overwrite)
        if with_sidecar:
            check_output(sidecar, overwrite)
        data = encode_picture(self.picture, kind, quality)
        text = b""
        if self.record is not None:
            record = self._final_record(data)
            text = record.to_json().encode()
            if embed:
                data = embed_record(data, record)
        if not with_sidecar:
            return atomic_write(target, data, overwrite)
        # The sidecar first: a picture without its record could not be told from one that was made without.
        previous = sidecar.read_bytes() if sidecar.exists() else None
        atomic_write(sidecar, text, overwrite)
        try:
            return atomic_write(target, data, overwrite)
        except BaseException:
            if previous is None:
                sidecar.unlink(missing_ok=True)
            else:
                atomic_write(sidecar, previous, overwrite=True)
            raise

    def encode(self, file_format: str = "png", *, quality: int = 95) -> tuple[bytes, PictureRecord | None]:
        """The picture as a file's bytes, and the record that belongs to exactly these bytes; nothing is written.

        Args:
            file_format: as in `save`.
            quality: of JPEG, AVIF and WebP, 1 to 100.

        Raises:
            InputError: another format.
        """
        data = encode_picture(self.picture, output_format(Path("picture"), file_format), quality)
        return data, None if self.record is None else self._final_record(data)

    def _final_record(self, data: bytes) -> PictureRecord:
        assert self.record is not None  # noqa: S101 (the callers ask only where there is one)
        record = dataclasses.replace(self.record, picture_sha256=picture_sha256(data))
        return record.authenticated(self._key) if record.key_id is not None and self._key is not None else record


@dataclass
class _Found:
    """A face on its way through the picture."""

    face: Face
    origin: str
    warnings: list[str] = field(default_factory=list)


def from_pretrained(
    name: str | os.PathLike[str],
    *,
    revision: str | None = None,
    variant: str = "",
    token: str | None = None,
    detector: str = "yunet",
    threshold: float | None = None,
    rotations: Rotations = "auto",
    min_face: float = 0.0,
    device: str = "cpu",
    **options: object,
) -> Anonymizer:
    """Anonymizer for a model's name: a local folder, a bundled checkpoint, a classic, or a Hugging Face repository.

    Args:
        name: e.g. "identity_rotation.mesh128", "gaussian_blur", "runs/mine/export", "org/name" or "org/name@v1".
        revision: of a Hugging Face repository; a commit says for good what is loaded.
        variant: other weights than the averaged ones, where the checkpoint has them: "last".
        token: for a private repository; None: that of ``HF_TOKEN`` or of ``hf auth login``.
        detector: "yunet" or "centerface" (or one that was registered).
        threshold: confidence from which a face counts, 0 to 1; None: the detector's own.
        rotations: whether turned faces are searched for: "auto", True (small ones too) or False; see `DetectorOptions`.
        min_face: shorter side in pixels from which faces are treated. Smaller ones are left as they are, counted and
            named in the report; 0: every face that is found is treated.
        device: where a learned method runs, e.g. "cuda".
        **options: of the method, checked one by one; see ``facezoo info NAME``.

    Returns:
        The anonymizer.

    Raises:
        UnknownNameError: no such model or option.
        CheckpointError: a damaged or unreachable checkpoint.
        InputError: an option out of range.
    """
    return Anonymizer.from_model(
        resolve_model(name, revision=revision, variant=variant, token=token),
        detector=detector,
        threshold=threshold,
        rotations=rotations,
        min_face=min_face,
        device=device,
        options=options,
    )


class Anonymizer:
    """Anonymizes and recovers whole pictures with one method.

    Args:
        method: does the faces.
        model: name for records.
        checkpoint_sha256: of its weights and configuration (``hub.manifest.weights_sha256``); "" for methods
            without weights.
        detector: name of the detector that finds the faces.
        threshold: as in `from_pretrained`.
        rotations: as in `from_pretrained`.
        min_face: as in `from_pretrained`.
        options: changes to the method's options for every call.
        device: where a learned method runs.

    Raises:
        UnknownNameError: an option or a detector that does not exist.
        InputError: an option out of range.
    """

    def __init__(
        self,
        method: Method,
        *,
        model: str | None = None,
        checkpoint_sha256: str = "",
        detector: str = "yunet",
        threshold: float | None = None,
        rotations: Rotations = "auto",
        min_face: float = 0.0,
        options: Mapping[str, object] | None = None,
        device: str = "cpu",
    ) -> None:
        self.options: dict[str, object] = dict(options or {})
        method.options.updated(self.options)  # refuses what does not exist or is out of range, before any picture
        if isinstance(method, LearnedMethod) and device != "cpu":
            _check_device(device)
            self.method: Method = method.to(device)
        else:
            self.method = method
        self.device = device if isinstance(method, LearnedMethod) else "cpu"
        self.model = model or method.name
        self.checkpoint_sha256 = checkpoint_sha256
        self.detector = detector
        self._detectors: dict[tuple[str, DetectorOptions], Detector] = {}
        if not 0.0 <= min_face <= 10_000.0:
            raise InputError(f"min_face must be 0 to 10000 pixels, got {min_face}")
        self.min_face = min_face
        self._first_look = DetectorOptions(
            score_threshold=threshold,
            minimum_face=_SEARCHED_FACE,  # whatever min_face: what is left is counted
            keep_smaller=True,
            rotations=rotations,
            borders=True,
            # Steadier points matter where a face is found again in the anonymized picture.
            steady=self.method.reversible,
        )
        self._detector(detector, self._first_look)

    @classmethod
    def from_model(
        cls,
        model: ResolvedModel,
        *,
        detector: str = "yunet",
        threshold: float | None = None,
        rotations: Rotations = "auto",
        min_face: float = 0.0,
        device: str = "cpu",
        options: Mapping[str, object] | None = None,
    ) -> Anonymizer:
        """Load what `resolve_model` found: every file is checked against its hash first.

        Raises:
            CheckpointError: a damaged checkpoint, or one of a method that is not installed.
            InputError: a generator of people, which anonymizes nothing.
        """
        method: Method
        if model.folder is None or model.manifest is None:
            method = registry.create(model.method, **(options or {}))
        else:
            known = {info.name: info for info in registry.list_methods(kind=None)}
            if model.method in known:
                registry.require_anonymizer(model.method, model.name)
            if model.method not in known or not known[model.method].learned:
                raise CheckpointError(
                    f"{model.name} is a checkpoint of {model.method!r}, which this facezoo does not know as a learned "
                    "method; update facezoo or install the plug-in"
                )
            verify_files(model.folder, model.manifest)
            learned = registry.load_class(model.method)
            if not issubclass(learned, LearnedMethod):
                raise CheckpointError(
                    f"{model.method} cannot be loaded from a checkpoint; its class is no LearnedMethod"
                )
            method = learned.from_checkpoint(model.folder, dict(model.manifest))
        return cls(
            method,
            model=model.name,
            checkpoint_sha256=model.weights_sha256,
            detector=detector,
            threshold=threshold,
            rotations=rotations,
            min_face=min_face,
            options=options,
            device=device,
        )

    def __repr__(self) -> str:
        return f"<facezoo.Anonymizer: {self.model}, detector {self.detector}>"

    # ------------------------------------------------------------------------------------------------- whole pictures

    def anonymize(
        self,
        picture: Source,
        key: Key | None = None,
        *,
        boxes: npt.ArrayLike | None = None,
        points: npt.ArrayLike | None = None,
        keep: KeepList | str | os.PathLike[str] | None = None,
        seal: bool = False,
        verify: Verify = "on",
        no_face: NoFace = "refuse",
        metadata: MetadataPolicy = "drop",
        max_pixels: int = MAX_PIXELS,
        salt: bytes | None = None,
    ) -> Result:
        """Make every face of a picture anonymous.

        Args:
            picture: a path, the bytes of a file, an (H, W, 3) uint8 RGB array, or a loaded `Picture`.
            key: needed by keyed methods and for ``seal``.
            boxes: (N, 4) x0, y0, x1, y1 in pixels of the upright picture: these faces instead of detected ones. A
                method that draws a new face looks for the points of the old one in the box; others cover the box.
            points: (N, 5, 2) eye, eye, nose, mouth, mouth from left to right, instead of detected ones; with
                ``boxes`` or alone.
            keep: people who are left as they are: a `KeepList`, or a folder with pictures of them.
            seal: add each original face to the record, encrypted under the key: lossless recovery.
            verify: "on": a face that only a second detector sees is an error; "add": such a face is anonymized too;
                "off": no second look.
            no_face: what to do with a picture without faces: "refuse", or "copy" it unchanged (recorded).
            metadata: "drop"; "keep-safe" (nothing that locates or shows the original); or "keep-place" (GPS and photo
                spheres too, for mapping).
            max_pixels: bigger pictures are refused.
            salt: random salt of the record; a run over many pictures may share one (scrypt is then paid for once).

        Returns:
            The anonymized picture, its record and a report; nothing is written yet.

        Raises:
            NoFaceError: no face, or a face that only the second detector sees, or that the given boxes hide in part.
            InputError: an unusable picture, boxes or points.
            KeyMaterialError: a missing key, or something else than a `facezoo.Key`.
            FacezooError: the method failed on a face.
        """
        _check_key(key)
        if no_face not in ("refuse", "copy"):
            raise InputError(f"no_face must be refuse or copy, not {no_face!r}")
        if seal and key is None:
            raise KeyMaterialError("sealing needs a key: give a passphrase or a key file")
        if self.method.requires_key and key is None:
            raise KeyMaterialError(f"{self.model} needs a key: give a passphrase or a key file")
        loaded, origin_bytes = _load(picture, metadata, max_pixels)
        named_key = key if key is not None and (self.method.uses_key or seal) else None
        rgb = loaded.pixels
        height, width = rgb.shape[:2]

        found, small = self._find(rgb, boxes, points)
        second = self._second_look(rgb, found, small, verify, given=boxes is not None or points is not None)
        run: dict[str, object] = {
            "input": input_tag(origin_bytes, named_key),
            "detector": "given" if boxes is not None or points is not None else self.detector,
            "verify": second,
            "kept": 0,
        }
        left = _left_small(small, self.min_face)
        if small:
            run["left_small"] = len(small)
        if not found:
            if no_face != "copy":
                raise NoFaceError(
                    f"{left[0]}; lower --min-face, or say --allow-no-face copy|skip"
                    if left
                    else "no face was found; give the faces with --boxes, try --detector "
                    f"{_OTHER_DETECTOR.get(self.detector, 'yunet')}, or say --allow-no-face copy|skip"
                )
            run["no_face"] = "copy"
            record = self._record((width, height), [], {}, run, named_key, salt)
            warnings = (
                *left,
                "no face was found: the picture is unchanged" if not left else "the picture is unchanged",
            )
            return Result(loaded, record, Report(warnings=warnings, left_small=len(small)), named_key)

        # Bigger faces are nearer to the camera: they are pasted last where crops of different sizes meet.
        found.sort(key=lambda item: _extent(item.face.box))
        kept = self._kept(rgb, found, keep)
        chosen = [item for item, is_kept in zip(found, kept, strict=True) if not is_kept]
        run["kept"] = sum(kept)
        seed = secrets.randbits(62)
        base = FaceContext(points=None, key=key, seed=seed, options=self.options)
        output = self._apply(rgb, chosen, base) if chosen else rgb.copy()
        if loaded.gray:
            output = gray_pixels(output)
        rectangles = _changed_rectangles(
            rgb, output, chosen, [self._quad(item) for item in chosen], whole=self.method.cover != "changed"
        )

        faces = [FaceRecord.of(item.face.box, item.face.points, item.face.score) for item in chosen]
        record = self._record((width, height), faces, self.method.options_record(base), run, named_key, salt)
        if seal and key is not None:
            record = seal_faces(record, key, [_pack_rectangle(rgb, rectangle) for rectangle in rectangles])
        if named_key is not None:
            record = record.authenticated(named_key)  # and once more when the saved file's hash is known
        report = Report(
            tuple(
                FaceReport(
                    box=_plain_box(item.face.box),
                    score=float(item.face.score),
                    size=_extent(item.face.box),
                    origin=item.origin,
                    kept=is_kept,
                    warnings=tuple(item.warnings if is_kept else item.warnings + self._warnings(item, seal)),
                )
                for item, is_kept in zip(found, kept, strict=True)
            ),
            left,
            len(small),
        )
        return Result(dataclasses.replace(loaded, pixels=output), record, report, named_key)

    def recover(
        self,
        picture: Source,
        key: Key | None = None,
        *,
        record: PictureRecord | str | os.PathLike[str] | Literal[False] | None = None,
        check_key: bool = True,
        use_seal: bool = True,
        metadata: MetadataPolicy = "drop",
        max_pixels: int = MAX_PIXELS,
    ) -> Result:
        """Bring the original faces back.

        Args:
            picture: the anonymized picture: path, bytes, array or `Picture`.
            key: the key it was anonymized with.
            record: None: the sidecar, else the record inside the PNG, else without; False: without, from the picture
                alone; or a record or the path of one.
            check_key: whether a key that is not the record's is refused. Off, the network is run with the wrong key
                (which shows what an attacker would get).
            use_seal: whether sealed originals are used where the record has them.
            metadata: as in `anonymize`.
            max_pixels: as in `anonymize`.

        Returns:
            The recovered picture and a report; its ``record`` is None.

        Raises:
            KeyMaterialError: no key, something else than a key, or not the record's.
            RecordError: a damaged or foreign record.
            InputError: the method destroys faces, or an unusable picture.
            NoFaceError: no record, and no face was found.
            CheckpointError: the record was made with another checkpoint.
        """
        _check_key(key)
        found_record = _record_for(picture, record)
        if found_record is not None and key is not None and check_key:
            check_record_key(found_record, key)
        if found_record is not None and use_seal and key is not None and _is_sealed(found_record):
            return recover_sealed(picture, key, found_record, metadata=metadata)
        if not self.method.reversible:
            self.method.recover(torch.zeros(0, 3, 16, 16), FaceContext(key=key))
            raise InputError(f"{self.model} cannot be reversed")
        if key is None:
            raise KeyMaterialError("recovery needs the key that the picture was anonymized with")
        loaded, data = _load(picture, metadata, max_pixels)
        rgb = loaded.pixels
        warnings: list[str] = []
        options: Mapping[str, object] = self.options
        if found_record is not None:
            self._check_record(found_record, rgb)
            if not found_record.belongs_to(data) and not isinstance(picture, Picture | np.ndarray):
                warnings.append("this is not the very file that the record tells of; the recovery may be weaker")
            faces = [
                _Found(Face(face.box, np.asarray(face.points, np.float32), face.score), "record")
                for face in found_record.faces
            ]
            options = {**_method_options(found_record), **self.options}
        else:
            faces = _apart(self._find(rgb, None, None)[0])
            if not faces:
                raise NoFaceError("no face was found to recover; give the picture's record beside it")
            faces.sort(key=lambda item: _extent(item.face.box))
        if not faces:
            return Result(loaded, None, Report(warnings=("the record names no face: the picture is unchanged",)), None)
        context = FaceContext(points=None, key=key, seed=0, options=options)
        output, verified = self._restore(rgb, faces, context, refine_alignment=found_record is None)
        if loaded.gray:
            output = gray_pixels(output)
        report = Report(
            tuple(
                FaceReport(
                    box=_plain_box(item.face.box),
                    score=float(item.face.score),
                    size=_extent(item.face.box),
                    origin=item.origin,
                    verified=answer,
                    warnings=tuple(item.warnings),
                )
                for item, answer in zip(faces, verified, strict=True)
            ),
            tuple(warnings),
        )
        return Result(dataclasses.replace(loaded, pixels=output), None, report, None)

    # ------------------------------------------------------------------------------------------------- aligned tensors

    def anonymize_faces(
        self, faces: Tensor, key: Key | None = None, *, points: npt.ArrayLike | None = None, seed: int | None = None
    ) -> Tensor:
        """Make aligned faces anonymous.

        Args:
            faces: (B, 3, S, S) in [-1, 1], aligned to the template; S is the method's crop size where it has one.
            key: for keyed methods.
            points: (B, 5, 2) in crop pixels; None: as the template has them.
            seed: for methods with chance and no key; None: a fresh one.

        Returns:
            (B, 3, S, S) in [-1, 1].

        Raises:
            InputError, KeyMaterialError, FacezooError: as `anonymize`.
        """
        _check_key(key)
        chosen = secrets.randbits(62) if seed is None else seed
        return self._call(faces, FaceContext(_crop_points(points, faces), key, chosen, self.options))

    def recover_faces(self, faces: Tensor, key: Key | None = None, *, points: npt.ArrayLike | None = None) -> Recovered:
        """Bring aligned faces back; as `anonymize_faces`.

        Returns:
            The faces, and for each whether the key proved right (None where the method cannot tell).
        """
        _check_key(key)
        context = FaceContext(_crop_points(points, faces), key, 0, self.options)
        with torch.inference_mode():
            recovered = self.method.recover(faces.to(self.device), context)
        _check_faces_out(recovered.faces, faces, self.model)
        return Recovered(recovered.faces.to(faces.device), recovered.verified)

    # ------------------------------------------------------------------------------------------------- finding faces

    def _detector(self, name: str, options: DetectorOptions) -> Detector:
        """The detector, made once for each way of searching."""
        known = self._detectors.get((name, options))
        if known is None:
            known = self._detectors[(name, options)] = get_detector(name, options)
        return known

    def _find(
        self, rgb: ByteArray, boxes: npt.ArrayLike | None, points: npt.ArrayLike | None
    ) -> tuple[list[_Found], list[Face]]:
        """The faces to be treated, and those that were found but are smaller than ``min_face``."""
        if boxes is None and points is None:
            faces = _search(self._detector(self.detector, self._first_look), rgb)
            found = [_trusted(_Found(face, "detector")) for face in faces if face.size >= self.min_face]
            return found, [face for face in faces if face.size < self.min_face]
        given_boxes = None if boxes is None else _given(boxes, (4,), "boxes")
        given_points = None if points is None else _given(points, (5, 2), "points")
        if given_boxes is not None and given_points is not None and len(given_boxes) != len(given_points):
            raise InputError(f"{len(given_boxes)} boxes do not go with {len(given_points)} sets of points")
        height, width = rgb.shape[:2]
        found = []
        count = len(given_boxes) if given_boxes is not None else 0 if given_points is None else len(given_points)
        for index in range(count):
            if given_points is not None:
                five = given_points[index]
                box = given_boxes[index] if given_boxes is not None else _covered_box(five)
            else:
                assert given_boxes is not None  # noqa: S101 (one of the two is given)
                box = given_boxes[index]
                five = np.empty((0, 2))
            if not (box[0] < box[2] and box[1] < box[3]):
                raise InputError(f"box {index + 1} ({_box_text(box)}) has no area; give x0, y0, x1, y1")
            if box[2] <= 0 or box[3] <= 0 or box[0] >= width or box[1] >= height:
                raise InputError(f"box {index + 1} ({_box_text(box)}) lies outside the {width}x{height} picture")
            if len(five) == 0:
                five = self._points_in_box(rgb, box)
            found.append(_Found(Face(_plain_box(box), five.astype(np.float32), 1.0), "given"))
        return found, []

    def _points_in_box(self, rgb: ByteArray, box: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Five points for a given box: the face's own for methods that draw a face there, else such as cover it all."""
        if self.method.cover in ("blend", "face"):
            options = DetectorOptions(score_threshold=_GIVEN_SCORE, steady=self.method.reversible)
            (face,) = faces_from_boxes(rgb, [box.tolist()], self._detector(self.detector, options))
            if face.score > 0:
                return face.points.astype(np.float64)
        return _points_from_box(box)

    def _second_look(
        self, rgb: ByteArray, found: list[_Found], small: list[Face], verify: Verify, *, given: bool
    ) -> dict[str, object]:
        """Run the detector of the other kind; returns what the record says about it, and may extend what was found."""
        if verify == "off":
            return {"mode": "off"}
        if verify not in ("on", "add"):
            raise InputError(f"verify must be on, add or off, not {verify!r}")
        name = self.detector if given else _OTHER_DETECTOR.get(self.detector, "yunet")
        missed = self._missed(rgb, found, name)
        small.extend(
            face
            for face in missed
            if face.size < self.min_face and not any(box_overlap(face.box, other.box) > 0.2 for other in small)
        )
        missed = [face for face in missed if face.size >= self.min_face]
        if missed and verify == "on" and (found or given):
            where = ", ".join(f"{_extent(face.box):.0f} px at {_box_text(face.box)}" for face in missed[:4])
            raise MissedFaceError(
                f"{name} sees {len(missed)} more face(s) that would stay as they are, wholly or in part ({where}); "
                "nothing was written: anonymize them too with --verify add, give --boxes, or use --verify off if these "
                "are no faces"
            )
        if missed and verify == "on":
            raise MissedFaceError(
                f"{self.detector} found no face but {name} sees {len(missed)}; try --detector {name} or --verify add"
            )
        found.extend(_trusted(_Found(face, "second detector")) for face in missed)
        return {"mode": verify, "detector": name, "added": len(missed)}

    def _missed(self, rgb: ByteArray, found: list[_Found], name: str) -> list[Face]:
        """Faces that a detector sees and that the treatment of what was found would not hide."""
        # It takes only what it is fairly sure of, and is less strict with whoever stands in front.
        options = DetectorOptions(
            score_threshold=_SECOND_SCORE_LARGE,
            minimum_face=_SECOND_FACE,
            rotations=self._first_look.rotations,
            borders=True,
            steady=False,
        )
        large = _LARGE_FACE * min(rgb.shape[:2])
        seen = [
            face
            for face in _search(self._detector(name, options), rgb)
            if face.score >= (_SECOND_SCORE_LARGE if face.size >= large else _SECOND_SCORE)
        ]
        points = [item.face.points for item in found]
        return [face for face in seen if not is_covered(face, points, _covering_mask(self.method.cover), rgb.shape)]

    def _kept(self, rgb: ByteArray, found: list[_Found], keep: KeepList | str | os.PathLike[str] | None) -> list[bool]:
        if keep is None:
            return [False] * len(found)
        from facezoo.faces.keep import KeepList

        keeper = keep if isinstance(keep, KeepList) else KeepList.from_folder(keep)
        transforms = np.stack([align.similarity(item.face.points, 128) for item in found])
        return [bool(answer) for answer in keeper.keeps(align.crop_faces(rgb, transforms, 128))]

    def _warnings(self, item: _Found, seal: bool) -> list[str]:
        size = self.method.crop_size
        if not self.method.reversible or size is None or seal:
            return []
        if align.native_ratio(align.similarity(item.face.points, size)) >= _WEAK_RECOVERY:
            return []
        return ["so small that recovery from the picture alone will be weak (--seal keeps the original)"]

    # ------------------------------------------------------------------------------------------------- the method

    def _apply(self, rgb: ByteArray, found: list[_Found], context: FaceContext) -> ByteArray:
        """Anonymize the faces of a picture: crop, one call, paste."""
        if self.method.crop_size is not None:
            size = self.method.crop_size
            return self._apply_group(rgb, found, size, context)
        # Any size: each face near its own. Faces that overlap go one after another, each cut out of what the last
        # one left, so that a method which covers a part of the crop only (a bar) never brings a neighbour back.
        output = rgb
        groups: list[tuple[int, list[_Found], list[Box]]] = []
        for item in found:
            size, bounds = _own_size(item.face.points), _crop_bounds(item.face.points)
            for group_size, members, occupied in reversed(groups):
                if any(_boxes_meet(bounds, other) for other in occupied):
                    groups.append((size, [item], [bounds]))
                    break
                if group_size == size:
                    members.append(item)
                    occupied.append(bounds)
                    break
            else:
                groups.append((size, [item], [bounds]))
        for size, members, _ in groups:
            output = self._apply_group(output, members, size, context)
        return output

    def _transforms(self, found: list[_Found], size: int) -> DoubleArray:
        """Picture -> crop for each face, ``(B, 2, 3)``, where the method wants them."""
        transforms = np.stack([align.similarity(item.face.points, size) for item in found])
        placed = self.method.place_crops(transforms)
        if np.shape(placed) != transforms.shape or not np.isfinite(placed).all():
            raise FacezooError(f"{self.model} returned unusable transforms; nothing was written")
        return np.asarray(placed, dtype=np.float64)

    def _quad(self, item: _Found) -> DoubleArray:
        """Corners in the picture of the crop in which the method changes a face: (4, 2)."""
        size = self.method.crop_size or _own_size(item.face.points)
        return align.crop_quad(self._transforms([item], size)[0], size)

    def _apply_group(self, rgb: ByteArray, found: list[_Found], size: int, context: FaceContext) -> ByteArray:
        transforms = self._transforms(found, size)
        crops = align.crop_faces_float(rgb, transforms, size)
        points = _points_in_crops(found, transforms)
        faces = _to_tensor(crops)
        result = self._call(faces, dataclasses.replace(context, points=points))
        with torch.inference_mode():
            notes = self.method.notes(faces.to(self.device), dataclasses.replace(context, points=points))
        for item, texts in zip(found, notes, strict=True):
            item.warnings.extend(texts)
        return align.paste_faces(
            rgb,
            crops,
            _to_pixels(result),
            transforms,
            _cover(self.method.cover, faces, result),
            surround=self.method.cover == "blend",
            # Only a result that is read again from the picture needs the back-projection, most of the pasting.
            refine=None if self.method.reversible else 0,
        )

    def _call(self, faces: Tensor, context: FaceContext) -> Tensor:
        """The method in batches, its answer checked face by face."""
        pieces: list[Tensor] = []
        step = max(1, _BATCH_PIXELS // max(1, faces.shape[-1] ** 2))
        with torch.inference_mode():
            for start in range(0, len(faces), step):
                part = slice(start, start + step)
                points = None if context.points is None else context.points[part]
                answer = self.method.anonymize(faces[part].to(self.device), dataclasses.replace(context, points=points))
                pieces.append(answer.to(faces.device))
        result = faces if not pieces else pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        _check_faces_out(result, faces, self.model)
        changed = ((result - faces).abs().amax(dim=1) >= _HALF_LEVEL).cpu().numpy()
        whole = self.method.cover != "changed"  # and not a bar over the eyes
        for index in range(len(faces)):
            five = align.template(faces.shape[-1]) if context.points is None else context.points[index]
            if not changed[index].any() or (whole and not changed_enough(five, changed[index])):
                raise FacezooError(
                    f"{self.model} left a face, or much of it, as it was; nothing was written: use a stronger setting "
                    "or another model"
                )
        return result

    def _restore(
        self, rgb: ByteArray, found: list[_Found], context: FaceContext, *, refine_alignment: bool
    ) -> tuple[ByteArray, list[bool | None]]:
        """Recover the faces of a picture: crop, one call, paste."""
        size = self.method.crop_size
        if size is None:
            raise InputError(f"{self.model} is reversible but names no crop size; its class must set crop_size")
        transforms = self._transforms(found, size)
        if refine_alignment:
            crop: Callable[[npt.NDArray[Any]], Tensor] = lambda moved: _to_tensor(  # noqa: E731
                align.crop_faces_float(rgb, moved, size)
            ).to(self.device)
            with torch.inference_mode():
                moved = self.method.align_for_recovery(crop, transforms, context)
            if np.shape(moved) != transforms.shape or not np.isfinite(moved).all():
                raise FacezooError(f"{self.model} returned unusable transforms; nothing was written")
            transforms = np.asarray(moved, dtype=np.float64)
        crops = align.crop_faces_float(rgb, transforms, size)
        faces = _to_tensor(crops)
        points = _points_in_crops(found, transforms)
        pieces: list[Tensor] = []
        verified: list[bool | None] = []
        step = max(1, _BATCH_PIXELS // size**2)
        with torch.inference_mode():
            for start in range(0, len(faces), step):
                part = slice(start, start + step)
                answer = self.method.recover(
                    faces[part].to(self.device), dataclasses.replace(context, points=points[part])
                )
                pieces.append(answer.faces.to(faces.device))
                verified.extend(answer.verified)
        result = torch.cat(pieces)
        _check_faces_out(result, faces, self.model)
        return align.paste_faces(rgb, crops, _to_pixels(result), transforms, face_mask(size)), verified

    # ------------------------------------------------------------------------------------------------- records

    def _record(
        self,
        size: tuple[int, int],
        faces: Sequence[FaceRecord],
        method_options: Mapping[str, object],
        run: Mapping[str, object],
        key: Key | None,
        salt: bytes | None,
    ) -> PictureRecord:
        from facezoo import __version__

        record = PictureRecord(
            method=self.method.name,
            model=self.model,
            size=size,
            faces=tuple(faces),
            options={"method": dict(method_options), "run": dict(run)},
            checkpoint_sha256=self.checkpoint_sha256 or None,
            facezoo_version=__version__,
        )
        return record if key is None else record.with_key(key, salt)

    def _check_record(self, record: PictureRecord, rgb: ByteArray) -> None:
        if record.method != self.method.name:
            raise RecordError(f"the record was made by {record.method}; use --model {record.model}")
        if (record.checkpoint_sha256 or "") != self.checkpoint_sha256:
            raise CheckpointError(
                f"the record was made with another checkpoint of {record.method} ({record.model}, weights "
                f"{(record.checkpoint_sha256 or 'none')[:12]}); load that one, or go without the record"
            )
        if record.size != (rgb.shape[1], rgb.shape[0]):
            raise RecordError(
                f"the record is of a {record.size[0]}x{record.size[1]} picture and this one has "
                f"{rgb.shape[1]}x{rgb.shape[0]} pixels; go without the record (--no-record)"
            )


# --------------------------------------------------------------------------------------------------------- sealed faces


def recover_sealed(
    picture: Source,
    key: Key,
    record: PictureRecord,
    *,
    metadata: MetadataPolicy = "drop",
    max_pixels: int = MAX_PIXELS,
) -> Result:
    """Put the sealed originals back, bit by bit where the anonymized picture was saved without loss. Needs no model.

    Args:
        picture: the anonymized picture.
        key: the key it was sealed under.
        record: its record, with every face sealed.
        metadata: as in `Anonymizer.anonymize`.
        max_pixels: as in `Anonymizer.anonymize`.

    Raises:
        RecordError: another key, a changed record, or a picture of another size.
    """
    _check_key(key)
    check_record_key(record, key)
    loaded, data = _load(picture, metadata, max_pixels)
    output = loaded.pixels.copy()
    height, width = output.shape[:2]
    if record.size != (width, height):
        raise RecordError(
            f"the record is of a {record.size[0]}x{record.size[1]} picture and this one has {width}x{height} pixels; "
            "use the picture as it was saved"
        )
    reports: list[FaceReport] = []
    for index in reversed(range(len(record.faces))):
        face = record.faces[index]
        (x, y, w, h), original = _unpack_rectangle(open_face(record, index, key), width, height)
        output[y : y + h, x : x + w] = original
        reports.insert(
            0,
            FaceReport(
                _plain_box(face.box), face.score, _extent(face.box), origin="record", verified=True, sealed=True
            ),
        )
    warnings: tuple[str, ...] = ()
    if not isinstance(picture, Picture | np.ndarray) and not record.belongs_to(data):
        warnings = ("this is not the very file that the record tells of; around the faces it may differ",)
    return Result(dataclasses.replace(loaded, pixels=output), None, Report(tuple(reports), warnings), None)


def _pack_rectangle(rgb: ByteArray, rectangle: tuple[int, int, int, int]) -> bytes:
    """Original pixels of a rectangle: its place (four little-endian integers after a magic word), then a PNG."""
    from PIL import Image

    x, y, w, h = rectangle
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(rgb[y : y + h, x : x + w])).save(stream, "PNG")
    return _SEAL_HEADER.pack(_SEAL_MAGIC, x, y, w, h) + stream.getvalue()


def _unpack_rectangle(data: bytes, width: int, height: int) -> tuple[tuple[int, int, int, int], ByteArray]:
    from PIL import Image

    message = "a sealed face opened but does not hold a picture; it was made by another program"
    if len(data) < _SEAL_HEADER.size:
        raise RecordError(message)
    magic, x, y, w, h = _SEAL_HEADER.unpack(data[: _SEAL_HEADER.size])
    if magic != _SEAL_MAGIC or x + w > width or y + h > height or w < 1 or h < 1:
        raise RecordError(message)
    with Image.open(io.BytesIO(data[_SEAL_HEADER.size :])) as image:
        pixels = np.asarray(image.convert("RGB"))
    if pixels.shape != (h, w, 3):
        raise RecordError(message)
    return (x, y, w, h), pixels


def _is_sealed(record: PictureRecord) -> bool:
    return len(record.faces) > 0 and all(face.sealed is not None for face in record.faces)


def _changed_rectangles(
    before: ByteArray, after: ByteArray, found: list[_Found], quads: list[DoubleArray], *, whole: bool
) -> list[tuple[int, int, int, int]]:
    """For each face the smallest rectangle (x, y, w, h) that holds every pixel changed within its crop.

    Args:
        before: the picture.
        after: the finished picture.
        found: its faces.
        quads: (4, 2) corners of each face's crop in the picture.
        whole: whether the method changes whole faces, and not a bar over the eyes.

    Returns:
        The rectangles.

    Raises:
        FacezooError: a face, or much of it, is the same as before in the finished picture.
    """
    height, width = before.shape[:2]
    rectangles: list[tuple[int, int, int, int]] = []
    covered = np.zeros((height, width), dtype=bool)
    differs = before != after
    changed = differs[..., 0] | differs[..., 1] | differs[..., 2]  # a tenth of the time that .any(axis=2) takes
    for item, quad in zip(found, quads, strict=True):
        margin = 1  # for the rounding of the corners
        x0, y0 = np.maximum(np.floor(quad.min(axis=0)).astype(int) - margin, 0)
        x1, y1 = np.minimum(np.ceil(quad.max(axis=0)).astype(int) + margin + 1, (width, height))
        window = changed[y0:y1, x0:x1]
        hidden = x1 > x0 and y1 > y0 and window.any() and (not whole or changed_enough(item.face.points, changed))
        if not hidden:
            raise FacezooError(
                f"the face at {_box_text(item.face.box)} is not hidden in the finished picture; nothing was written: "
                "check its box, or use a stronger setting"
            )
        rows, columns = np.flatnonzero(window.any(axis=1)), np.flatnonzero(window.any(axis=0))
        left, top = int(x0 + columns[0]), int(y0 + rows[0])
        right, bottom = int(x0 + columns[-1]) + 1, int(y0 + rows[-1]) + 1
        covered[top:bottom, left:right] = True
        rectangles.append((left, top, right - left, bottom - top))
    if bool((changed & ~covered).any()):
        raise FacezooError("the picture changed outside every face; nothing was written: please report this")
    return rectangles


# --------------------------------------------------------------------------------------------------------- small parts


def _check_device(device: str) -> None:
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch has no one class for it
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"the device {device!r} cannot be used here ({reason[:120]}); use cpu") from error


def _check_key(key: object) -> None:
    if key is not None and not isinstance(key, Key):
        raise KeyMaterialError(
            f"a key must be a facezoo.Key, not {type(key).__name__}; make one with facezoo.Key.from_passphrase(...) "
            "or facezoo.Key.from_file(...)"
        )


def check_record_key(record: PictureRecord, key: Key) -> None:
    """Refuses a key that is not the record's, and a record that was changed; records without a key pass.

    Raises:
        KeyMaterialError: another key.
        RecordError: a changed record.
    """
    if record.key_id is None:
        return
    if not record.matches_key(key):
        raise KeyMaterialError("this is not the key with which the picture was anonymized; give the right key")
    record.verify(key)


def _load(picture: Source, metadata: MetadataPolicy, max_pixels: int) -> tuple[Picture, bytes]:
    """The loaded picture, and the bytes that stand for its content."""
    if isinstance(picture, Picture):
        return picture, _pixel_bytes(picture.pixels)
    if isinstance(picture, np.ndarray):
        return load_picture(picture, metadata=metadata, max_pixels=max_pixels), _pixel_bytes(picture)
    if isinstance(picture, bytes):
        return load_picture(picture, metadata=metadata, max_pixels=max_pixels), picture
    loaded = load_picture(picture, metadata=metadata, max_pixels=max_pixels)
    return loaded, Path(picture).read_bytes()


def _pixel_bytes(pixels: npt.NDArray[np.generic]) -> bytes:
    head = json.dumps([list(pixels.shape), str(pixels.dtype)]).encode()
    return head + hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).digest()


def _record_for(
    picture: Source, record: PictureRecord | str | os.PathLike[str] | Literal[False] | None
) -> PictureRecord | None:
    if record is False:
        return None
    if isinstance(record, PictureRecord):
        return record
    if isinstance(record, str | os.PathLike):
        return read_record(record)
    if record is not None:
        raise RecordError(f"a record is a path, a PictureRecord, False or None, not {type(record).__name__}")
    if isinstance(picture, str | os.PathLike) and Path(picture).is_file():
        return find_record(picture)
    return None


def _method_options(record: PictureRecord) -> dict[str, object]:
    options = record.options.get("method", {})
    return dict(options) if isinstance(options, Mapping) else {}


def _to_tensor(crops: npt.NDArray[np.float32]) -> Tensor:
    """(B, S, S, 3) in [0, 255] -> (B, 3, S, S) in [-1, 1]."""
    tensor = torch.from_numpy(np.ascontiguousarray(crops, dtype=np.float32)).permute(0, 3, 1, 2)
    return (tensor / 127.5).sub_(1.0).clamp_(-1.0, 1.0).contiguous()


def _to_pixels(faces: Tensor) -> npt.NDArray[np.float32]:
    """(B, 3, S, S) in [-1, 1] -> (B, S, S, 3) float32 in [0, 255]; not rounded: that is done once, after the paste."""
    pixels = (faces.float() + 1.0).mul_(127.5).clamp_(0.0, 255.0).permute(0, 2, 3, 1).contiguous()
    return np.asarray(pixels.cpu().numpy(), dtype=np.float32)


def _check_faces_out(result: Tensor, faces: Tensor, model: str) -> None:
    if result.shape != faces.shape:
        raise FacezooError(
            f"{model} returned faces of shape {tuple(result.shape)} for {tuple(faces.shape)}; nothing was written"
        )
    if not bool(torch.isfinite(result).all()):
        raise FacezooError(f"{model} returned values that are not finite; nothing was written")


def _cover(cover: Cover, faces: Tensor, result: Tensor) -> npt.NDArray[np.float32]:
    """The mask, or a mask a face, with which results are pasted: see `facezoo.methods.base.Cover`."""
    size = faces.shape[-1]
    if cover == "blend" or cover == "face":
        return face_mask(size)
    if cover == "changed":
        changed = (result != faces).any(dim=1)
        return np.asarray(changed.float().cpu().numpy(), dtype=np.float32)
    return cover_mask(size, cover)


def _points_in_crops(found: list[_Found], transforms: DoubleArray) -> npt.NDArray[np.float32]:
    return np.stack(
        [align.apply_transform(matrix, item.face.points) for matrix, item in zip(transforms, found, strict=True)]
    ).astype(np.float32)


def _crop_points(points: npt.ArrayLike | None, faces: Tensor) -> npt.NDArray[np.float32] | None:
    if not isinstance(faces, Tensor):
        raise InputError(f"aligned faces are a torch tensor (B, 3, S, S) in [-1, 1], not {type(faces).__name__}")
    if points is None:
        return None
    array = np.asarray(points, dtype=np.float32)
    if array.shape != (len(faces), 5, 2):
        raise InputError(f"points must have the shape ({len(faces)}, 5, 2), not {array.shape}")
    return array


def _given(values: npt.ArrayLike, shape: tuple[int, ...], what: str) -> npt.NDArray[np.float64]:
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{what} must be numbers of the shape (N, {', '.join(map(str, shape))})") from error
    if array.size == 0:
        return np.zeros((0, *shape))
    if array.shape[1:] != shape or not np.isfinite(array).all():
        raise InputError(f"{what} must be finite numbers of the shape (N, {', '.join(map(str, shape))})")
    return array


def _points_from_box(box: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Five upright points such that the face mask covers the box: its middle on the mask's, at least its size."""
    x0, y0, x1, y1 = np.asarray(box, dtype=np.float64)
    (cx, cy), (a, b) = FACE_CENTRE_128, FACE_SEMI_AXES_128
    scale = max((x1 - x0) / (2 * a), (y1 - y0) / (2 * b))
    return (align.template(128) - (cx, cy)) * scale + ((x0 + x1) / 2, (y0 + y1) / 2)


def _covered_box(points: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Bounding box of what the face mask covers for these points, in the picture."""
    back = align.invert_transform(align.similarity(points, 128))
    (cx, cy), (a, b) = FACE_CENTRE_128, FACE_SEMI_AXES_128
    angles = np.linspace(0.0, 2.0 * np.pi, 33)
    outline = np.stack([cx + a * np.cos(angles), cy + b * np.sin(angles)], axis=1)
    placed = align.apply_transform(back, outline)
    return np.concatenate([placed.min(axis=0), placed.max(axis=0)])


def _search(detector: Detector, rgb: ByteArray) -> list[Face]:
    """All faces of a picture. One that lies on the seam of a panorama comes twice, in place of its two halves."""
    faces = detector.detect(rgb)
    across = detector.detect_across_seam(rgb)
    if not across:
        return faces
    width = rgb.shape[1]
    # The part of each that lies in the picture: halves were found there, if at all.
    parts = [(max(face.box[0], 0.0), face.box[1], min(face.box[2], float(width)), face.box[3]) for face in across]
    inside = [(max(face.box[0], 0.0), face.box[1], min(face.box[2], float(width)), face.box[3]) for face in faces]
    return across + [
        face
        for face, box in zip(faces, inside, strict=True)
        if not any(box_overlap(box, part) > 0.35 for part in parts)
    ]


def _apart(found: list[_Found]) -> list[_Found]:
    """Of what was found, without what lies by half or more in a surer face.

    The search before an anonymization would rather cover a place twice; a recovery would paint a face over a forehead.
    """
    kept: list[_Found] = []
    for item in sorted(found, key=lambda entry: entry.face.score, reverse=True):
        left, top, right, bottom = item.face.box
        own = max((right - left) * (bottom - top), 1e-9)
        common = (
            max(0.0, min(right, other.face.box[2]) - max(left, other.face.box[0]))
            * max(0.0, min(bottom, other.face.box[3]) - max(top, other.face.box[1]))
            for other in kept
        )
        if all(area < 0.5 * own for area in common):
            kept.append(item)
    return kept


def _left_small(small: Sequence[Face], min_face: float) -> tuple[str, ...]:
    """The sentence about faces that are smaller than the user wants them treated; none where there are none."""
    if not small:
        return ()
    places = ", ".join(f"{face.size:.0f} px at {_box_text(face.box)}" for face in small[:4])
    more = ", ..." if len(small) > 4 else ""
    noun = "face" if len(small) == 1 else "faces"
    return (f"{len(small)} {noun} below {min_face:g} px found and left as found ({places}{more})",)


def _covering_mask(cover: Cover) -> npt.NDArray[np.float32]:
    """Where in an aligned crop a method hides a face; a bar over the eyes is taken to hide what it is meant to."""
    if cover in ("blend", "face"):
        return face_mask(128)
    return cover_mask(128, "square" if cover == "square" else "sharp")


def _trusted(item: _Found) -> _Found:
    """Replace five points that do not look like a face, or lie elsewhere than the box, by upright ones from the box."""
    face = item.face
    try:
        odd = (
            align.alignment_error(face.points) > _POINTS_TOO_ODD
            or box_overlap(_plain_box(_covered_box(face.points)), face.box) < 0.25
        )
    except InputError:
        odd = True
    if odd:
        item.face = dataclasses.replace(face, points=_points_from_box(face.box).astype(np.float32))
        item.warnings.append("its landmarks look wrong: the whole box is covered instead")
    return item


def _own_size(points: npt.ArrayLike) -> int:
    side = 128.0 * align.native_ratio(align.similarity(points, 128))
    return next((size for size in _CROP_SIZES if size >= side * 0.95), _CROP_SIZES[-1])


def _crop_bounds(points: npt.ArrayLike) -> Box:
    """Bounding box of a face's crop in the picture."""
    quad = align.crop_quad(align.similarity(points, 128), 128)
    return _plain_box(np.concatenate([quad.min(axis=0), quad.max(axis=0)]))


def _boxes_meet(first: Box, second: Box) -> bool:
    return first[0] < second[2] and second[0] < first[2] and first[1] < second[3] and second[1] < first[3]


def _extent(box: npt.ArrayLike) -> float:
    values = np.asarray(box, dtype=np.float64)
    return float(max(values[2] - values[0], values[3] - values[1]))


def _plain_box(box: npt.ArrayLike) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = (float(value) for value in np.asarray(box, dtype=np.float64))
    return (x0, y0, x1, y1)


def _box_text(box: npt.ArrayLike) -> str:
    return ",".join(f"{value:.0f}" for value in np.asarray(box, dtype=np.float64))
