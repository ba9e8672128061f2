"""``facezoo audit``: which faces of somebody's released pictures can still be recognised, whatever tool made them.

For each original the faces are found, by two detectors of different kinds and in facezoo's record where there is one,
and the released picture is looked at

* at the same places (also where no face is detected any more: a recogniser may still know what is there), and
* anywhere: at every face that is detected in it, which may have moved.

Each is compared with the face of the original by recognisers. A face that at least one of them takes for the original
is *recognised*; it was *missed* by the tool when it is still detected at its place as well.

Where a face is detected in the released picture only, the original is looked at there once more, closely, turned and
with low thresholds. What is found there is a face like the others. Where nothing is found, the tool left the pixels as
they were and the release stands a close look too, the detection is believed: what is shown is what was there. Else it
is the tool's cover, or a pattern, that looks like a face: listed, and no failure.

What cannot be judged fails: a file that is not read, a picture without an original, one of other proportions (its
places are unknown), one that holds other pictures besides. Nothing is left out of the denominator but originals without
a face and originals of which nothing was released, which are counted apart.

The thresholds are those of impostor pairs of real photographs (`THRESHOLDS`), never fitted on the audited pictures.
Control rows with known answers stand beside the figures.
"""

from __future__ import annotations

import io
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal

import cv2
import numpy as np
import numpy.typing as npt
import torch

from facezoo.errors import CheckpointError, FacezooError, InputError, NoFaceError, RecordError, UnknownNameError
from facezoo.evaluate.audit_pairs import Pair, Pairing
from facezoo.evaluate.judges import to_tensor
from facezoo.evaluate.looks import Looks
from facezoo.evaluate.protocol import hardware
from facezoo.evaluate.sanity import sanity_pictures
from facezoo.faces.align import crop_faces, similarity
from facezoo.faces.detect import Detector, DetectorOptions, Face, box_overlap, get_detector
from facezoo.faces.mask import face_mask
from facezoo.faces.picture import load_picture
from facezoo.frozen import load_lpips
from facezoo.metrics import rank_one, wilson
from facezoo.metrics import similarity as score_pairs
from facezoo.recognition import Recogniser, list_recognisers, load_recogniser

__all__ = [
    "THRESHOLDS",
    "Audit",
    "AuditSettings",
    "FaceVerdict",
    "PictureVerdict",
    "run_audit",
]

ByteArray = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]

THRESHOLDS: Final[Mapping[str, Mapping[float, float]]] = MappingProxyType(
    {
        "dlib": {1e-3: 0.5211, 1e-2: 0.6056},
        "foamliu": {1e-3: 0.3571, 1e-2: 0.2609},
        "sface": {1e-3: 0.3828, 1e-2: 0.3015},
    }
)
"""Judge -> false accept rate -> threshold in the judge's own unit (dlib: a distance; the others: a cosine).

Measured on the impostor pairs among the 1,261 pictures of 538 people of LFW's evaluation split
(MODEL_CARDS/results/identity_rotation.faces128.json has them with all digits)."""

_CROP = 128
_SAME_PLACE = 0.2
"""Boxes that overlap by so much (intersection over union) are one face: tools move a face's box a little."""

_SECOND_SCORE = 0.6
"""Confidence from which a face of an original counts that only the second detector sees."""
_CLOSE_SCORE = 0.3
"""Confidence from which a face counts when an original is looked at closely, where the release shows one."""
_CLOSE_FACE = 80.0
"""Size in pixels that a face has in the close look, where the original has them; at most four times its own."""
_TOUCHED_LEVELS = 10.0
"""Levels of 255 by which a pixel must differ, averaged over its neighbours, to count as changed (JPEG: below 5)."""
_TOUCHED_SHARE = 0.2
"""Share of a face's ellipse from which on what the detector sees there is partly the tool's cover."""
_OTHER_DETECTOR = {"yunet": "centerface", "centerface": "yunet"}

_CONTROL_FACES = 200
_RANKED_FACES = 3000
_SMALL_FACE = 32.0

_RECORDED = 2000
"""So many faces of a record are looked at; nobody's picture has more."""

Status = Literal["protected", "recognised", "missed"]


@dataclass(frozen=True)
class AuditSettings:
    """How to audit.

    Attributes:
        judges: names or paths for ``load_recogniser``; empty: every recogniser that is found here.
        far: false accept rate of the thresholds, 1e-3 or 1e-2.
        thresholds: judge -> threshold in its own unit, instead of `THRESHOLDS`; needed for judges of one's own.
        trained_with: recognisers that took part in the training of the tool: as judges they are marked. Records of
            facezoo beside the released pictures are asked too.
        detector: name of the detector.
        minimum_face: smaller faces (shorter side of the box, pixels of the original) are not looked for. As in
            anonymizing.
        seed: of the control rows.
    """

    judges: tuple[str, ...] = ()
    far: float = 1e-3
    thresholds: Mapping[str, float] = field(default_factory=dict)
    trained_with: tuple[str, ...] = ()
    detector: str = "yunet"
    minimum_face: float = DetectorOptions().minimum_face
    seed: int = 0


@dataclass(frozen=True)
class FaceVerdict:
    """One face of an original.

    Attributes:
        box: in pixels of the original.
        found_in: where the detector found it.
        detected: whether a face is still detected at its place; None where the place is unknown.
        changed: mean absolute difference of the aligned crop, in levels of 255; None where the place is unknown.
        same_place: judge -> score at the same place, in the judge's own unit (None: the place is unknown).
        anywhere: judge -> best score among the faces detected in the released picture (None: there are none).
        recognised_by: judges that take it for the original.
        status: see the module.
    """

    box: tuple[float, float, float, float]
    found_in: Literal["original", "released"]
    detected: bool | None
    changed: float | None
    same_place: Mapping[str, float | None]
    anywhere: Mapping[str, float | None]
    recognised_by: tuple[str, ...]
    status: Status

    def score(self, judge: str, metric: str) -> float | None:
        """The score nearest to the original, of the two places."""
        known = [value for value in (self.same_place[judge], self.anywhere[judge]) if value is not None]
        if not known:
            return None
        return max(known) if metric == "cosine" else min(known)


@dataclass(frozen=True)
class PictureVerdict:
    """One picture.

    Attributes:
        name: see `Pair`.
        original: the file, or None.
        released: the file, or None.
        size: (width, height) of the original; None where it could not be read.
        released_size: of the released picture.
        faces: its faces.
        problem: why it could not be judged; "" where it could. Such a picture fails.
        warnings: what else was noticed.
        covers: boxes, in pixels of the original, that the detector takes for faces in the released picture, where the
            original has none and the tool changed the pixels.
    """

    name: str
    original: Path | None
    released: Path | None
    size: tuple[int, int] | None
    released_size: tuple[int, int] | None
    faces: tuple[FaceVerdict, ...]
    problem: str
    warnings: tuple[str, ...] = ()
    covers: tuple[tuple[float, float, float, float], ...] = ()

    @property
    def failed(self) -> bool:
        """Whether somebody is recognised, or it could not be judged."""
        return bool(self.problem) or any(face.status != "protected" for face in self.faces)


@dataclass
class _Seen:
    """What is kept of all pictures, for the figures about them together."""

    originals: dict[str, list[Floats]] = field(default_factory=dict)
    released: dict[str, list[Floats]] = field(default_factory=dict)
    crops: list[ByteArray] = field(default_factory=list)
    #: (2, 128, 128, 3): a face in the original, and its place in the released picture.
    places: list[ByteArray] = field(default_factory=list)


@dataclass(frozen=True)
class Audit:
    """The outcome.

    Attributes:
        pictures: one verdict a picture.
        summary: figures, judges, control rows, circumstances; plain JSON.
        control_scores: control row -> judge -> scores in its own unit, for the plots.
    """

    pictures: tuple[PictureVerdict, ...]
    summary: dict[str, Any]
    control_scores: Mapping[str, Mapping[str, list[float]]]

    @property
    def failed_percent(self) -> float:
        """Part of the pictures that fail, in percent."""
        return 100.0 * float(self.summary["pictures"]["failed"]["value"])


class _Examiner:
    """The detector, the judges and their thresholds."""

    def __init__(self, settings: AuditSettings, judges: Sequence[Recogniser] | None) -> None:
        if judges is None:
            judges = [load_recogniser(name) for name in settings.judges or list_recognisers()]
        if not judges or len({judge.name for judge in judges}) != len(judges):
            raise InputError("an audit needs judges with different names")
        self.settings = settings
        self.judges = list(judges)
        self.thresholds = {judge.name: self._threshold(judge) for judge in self.judges}
        unknown = sorted(set(settings.thresholds) - set(self.thresholds))
        if unknown:
            raise InputError(f"a threshold is given for {', '.join(unknown)}, which is no judge of this audit")
        # Steadied points cost 10 ms a face and serve recovery; places of released pictures come from the original.
        self.detector: Detector = get_detector(
            settings.detector, DetectorOptions(minimum_face=settings.minimum_face, steady=False)
        )
        self.second: Detector = get_detector(
            _OTHER_DETECTOR.get(settings.detector, "yunet"),
            DetectorOptions(score_threshold=_SECOND_SCORE, minimum_face=settings.minimum_face, steady=False),
        )
        close = DetectorOptions(
            score_threshold=_CLOSE_SCORE, minimum_face=settings.minimum_face, rotations=True, steady=False
        )
        self.close: list[Detector] = [
            get_detector(name, close) for name in (settings.detector, _OTHER_DETECTOR.get(settings.detector, "yunet"))
        ]
        self.seen = _Seen({judge.name: [] for judge in self.judges}, {judge.name: [] for judge in self.judges})

    def _threshold(self, judge: Recogniser) -> float:
        given = self.settings.thresholds.get(judge.name)
        if given is not None:
            return float(given)
        known = THRESHOLDS.get(judge.name, {}).get(self.settings.far)
        if known is None:
            raise InputError(
                f"no threshold of {judge.name} at a false accept rate of {self.settings.far:g} is known here; "
                f"give one: --threshold {judge.name}=VALUE"
            )
        return known

    def embed(self, crops: ByteArray) -> dict[str, Floats]:
        """(N, 128, 128, 3) -> judge -> (N, D)."""
        with torch.inference_mode():
            faces = to_tensor(crops)
            return {judge.name: judge(faces).double().numpy() for judge in self.judges}

    def own_scores(self, judge: Recogniser, first: Floats, second: Floats) -> Floats:
        """Scores of pairs in the judge's own unit."""
        scores = score_pairs(first, second, judge.metric)
        return scores if judge.metric == "cosine" else -scores

    def accepts(self, judge: Recogniser, score: float | None, tries: int = 1) -> bool:
        """Whether a score means the same person.

        Args:
            judge: whose score.
            score: in its own unit.
            tries: of how many scores it is the best. The threshold is then that of a false accept rate so many times
                smaller (by the slope of `THRESHOLDS` over the logarithm of the rate), or every crowd would fail by
                chance. A judge without a known slope keeps its threshold.
        """
        if score is None:
            return False
        threshold = self.thresholds[judge.name]
        known = THRESHOLDS.get(judge.name)
        if known is not None and judge.name not in self.settings.thresholds and tries > 1:
            threshold += (known[1e-3] - known[1e-2]) * math.log10(tries)
        return score >= threshold if judge.metric == "cosine" else score <= threshold

    # One picture

    def examine(self, pair: Pair) -> PictureVerdict:
        """Judges a pair; what goes wrong with its files becomes its problem, never an error of the audit."""

        def ended(problem: str, **known: Any) -> PictureVerdict:
            entries: dict[str, Any] = {"size": None, "released_size": None, "faces": (), "warnings": (), **known}
            return PictureVerdict(pair.name, pair.original, pair.released, problem=problem, **entries)

        if pair.problem or pair.original is None or pair.released is None:
            return ended(pair.problem or "no partner")
        try:
            original = load_picture(pair.original).pixels
        except FacezooError as error:
            return ended(f"the original cannot be read: {_reason(error, pair.original)}")
        size = (original.shape[1], original.shape[0])
        try:
            picture = load_picture(pair.released)
        except FacezooError as error:
            return ended(f"the released picture cannot be read: {_reason(error, pair.released)}", size=size)
        released = picture.pixels
        released_size = (released.shape[1], released.shape[0])
        known: dict[str, Any] = {"size": size, "released_size": released_size}
        warnings: list[str] = []
        ratio = _common_ratio(size, released_size)
        if released_size != size and ratio is not None:
            warnings.append(f"resized from {size[0]}x{size[1]} to {released_size[0]}x{released_size[1]}")
        try:
            here = self._in_original(original, pair.released)
            there = self.detector.detect(released)
            places, covers = self._places(original, released, ratio, here, there)
            faces = self._faces(original, released, ratio, places, there, warnings)
        except FacezooError as error:
            return ended(f"its faces cannot be judged: {error}", **known, warnings=tuple(warnings))
        problem = "; ".join(_hidden_pictures(pair.released))
        if ratio is None:
            problem = (
                f"other proportions ({size[0]}x{size[1]} and {released_size[0]}x{released_size[1]}): the places of the "
                "faces are unknown"
            )
        return ended(problem, **known, faces=tuple(faces), warnings=tuple(warnings), covers=tuple(covers))

    def _in_original(self, original: ByteArray, released: Path) -> list[Face]:
        """The faces of an original: of both detectors, and those that facezoo's record of the release names."""
        found = list(self.detector.detect(original))
        more = [*self.second.detect(original), *_recorded(released, (original.shape[1], original.shape[0]))]
        for face in more:
            if not any(_same_face(face, other) for other in found):
                found.append(face)
        return found

    def _places(
        self, original: ByteArray, released: ByteArray, ratio: float | None, here: list[Face], there: list[Face]
    ) -> tuple[list[tuple[Face, Literal["original", "released"]]], list[tuple[float, float, float, float]]]:
        """What is judged, in pixels of the original, and detections that are only the tool's cover."""
        places: list[tuple[Face, Literal["original", "released"]]] = [(face, "original") for face in here]
        covers: list[tuple[float, float, float, float]] = []
        for face in there if ratio is not None else ():
            assert ratio is not None  # noqa: S101 (the line above)
            moved = _scaled(face, 1 / ratio)
            if any(_same_face(moved, other) for other, _ in places):
                continue
            closer = self._close_look(original, moved)
            if closer:
                fresh = [seen for seen in closer if not any(_same_face(seen, other) for other, _ in places)]
                places += [(seen, "released") for seen in fresh]
            elif self._left_alone(original, released, face, ratio):
                places.append((moved, "released"))
            else:
                covers.append(_plain(moved.box))
        return places, covers

    def _close_look(self, original: ByteArray, place: Face) -> list[Face]:
        """The faces that an original has at a place, when it is looked at closely; empty: none."""
        x0, y0, x1, y1 = place.box
        side = max(x1 - x0, y1 - y0)
        left, top = max(0, int(x0 - side)), max(0, int(y0 - side))
        part = original[top : max(top, int(y1 + side) + 1), left : max(left, int(x1 + side) + 1)]
        if 0 in part.shape:
            return []
        scale = min(4.0, max(1.0, _CLOSE_FACE / side))
        size = (round(part.shape[1] * scale), round(part.shape[0] * scale))
        view = np.ascontiguousarray(cv2.resize(part, size, interpolation=cv2.INTER_LINEAR)).astype(np.uint8, copy=False)
        found: list[Face] = []
        for detector in self.close:
            for seen in detector.detect(view):
                face = _shifted(_scaled(seen, 1 / scale), left, top)
                if _same_face(face, place) and not any(_same_face(face, other) for other in found):
                    found.append(face)
        return found

    def _left_alone(self, original: ByteArray, released: ByteArray, face: Face, ratio: float) -> bool:
        """Whether a face that only the release shows is of pixels that the tool left, and stands a close look there."""
        return self._touched(original, released, face, ratio) < _TOUCHED_SHARE and bool(
            self._close_look(released, face)
        )

    def _touched(self, original: ByteArray, released: ByteArray, face: Face, ratio: float) -> float:
        """Share of a face's ellipse, in the released picture, that the tool changed."""
        before = self._crops(original, [_scaled(face, 1 / ratio)])[0].astype(np.float32)
        after = self._crops(released, [face])[0].astype(np.float32)
        apart = cv2.blur(np.abs(before - after).max(axis=2), (5, 5))
        return float((apart > _TOUCHED_LEVELS)[face_mask(_CROP) > 0.5].mean())

    def _faces(
        self,
        original: ByteArray,
        released: ByteArray,
        ratio: float | None,
        places: list[tuple[Face, Literal["original", "released"]]],
        there: list[Face],
        warnings: list[str],
    ) -> list[FaceVerdict]:
        if not places:
            return []
        known = self._crops(original, [face for face, _ in places])
        same = None if ratio is None else self._crops(released, [_scaled(face, ratio) for face, _ in places])
        found = self._crops(released, there)
        parts = [known, *([] if same is None else [same]), *([found] if len(found) else [])]
        vectors = self.embed(np.concatenate(parts))
        count = len(places)
        small = sum(face.size < _SMALL_FACE for face, _ in places)
        if small:
            warnings.append(f"{small} faces below {_SMALL_FACE:g} pixels: recognisers know little about them")
        offset = count if same is None else 2 * count
        verdicts = []
        for row, (face, where) in enumerate(places):
            same_place: dict[str, float | None] = {}
            anywhere: dict[str, float | None] = {}
            recognised = []
            for judge in self.judges:
                embedded = vectors[judge.name]
                reference = embedded[row : row + 1]
                same_place[judge.name] = (
                    None
                    if same is None
                    else float(self.own_scores(judge, embedded[count + row : count + row + 1], reference)[0])
                )
                others = embedded[offset:]
                scores = self.own_scores(judge, others, np.repeat(reference, len(others), 0)) if len(others) else None
                anywhere[judge.name] = (
                    None if scores is None else float(scores.max() if judge.metric == "cosine" else scores.min())
                )
                if not all(np.isfinite(v) for v in (same_place[judge.name], anywhere[judge.name]) if v is not None):
                    raise InputError(f"{judge.name} gives no number for them")
                if self.accepts(judge, same_place[judge.name]) or self.accepts(
                    judge, anywhere[judge.name], len(others)
                ):
                    recognised.append(judge.name)
                self.seen.originals[judge.name].append(reference[0])
                if same is not None:
                    self.seen.released[judge.name].append(embedded[count + row])
                else:
                    best = (
                        0 if scores is None else int(scores.argmax() if judge.metric == "cosine" else scores.argmin())
                    )
                    self.seen.released[judge.name].append(others[best] if len(others) else np.zeros_like(reference[0]))
            detected = (
                None if ratio is None
                else any(box_overlap(_scaled(other, 1 / ratio).box, face.box) >= _SAME_PLACE for other in there)
            )  # fmt: skip
            status: Status = "protected" if not recognised else "missed" if detected else "recognised"
            changed = None if same is None else float(np.abs(known[row].astype(float) - same[row]).mean())
            if len(self.seen.crops) < _CONTROL_FACES:
                self.seen.crops.append(known[row])
            if same is not None and len(self.seen.places) < _CONTROL_FACES:
                self.seen.places.append(np.stack([known[row], same[row]]))
            box = (float(face.box[0]), float(face.box[1]), float(face.box[2]), float(face.box[3]))
            verdicts.append(FaceVerdict(box, where, detected, changed, same_place, anywhere, tuple(recognised), status))
        return verdicts

    @staticmethod
    def _crops(rgb: ByteArray, faces: Sequence[Face]) -> ByteArray:
        if not faces:
            return np.empty((0, _CROP, _CROP, 3), dtype=np.uint8)
        return crop_faces(rgb, [similarity(face.points, _CROP) for face in faces], _CROP)

    # All pictures together

    def controls(self) -> tuple[dict[str, Any], dict[str, dict[str, list[float]]]]:
        """Rows with known answers, on the first faces of the originals."""
        crops = np.stack(self.seen.crops)
        people = np.arange(len(crops))
        rows: dict[str, Any] = {}
        scores: dict[str, dict[str, list[float]]] = {}
        names = ["identity", "black_box", "heavy_blur", *(["other_person"] if len(crops) > 1 else [])]
        for name in names:
            pictures = sanity_pictures(name, crops, people, self.settings.seed)
            if name == "black_box":  # one picture stands for all
                vectors = {judge: np.repeat(v, len(crops), 0) for judge, v in self.embed(pictures[:1]).items()}
            elif name == "identity":
                vectors = {judge: np.stack(known[: len(crops)]) for judge, known in self.seen.originals.items()}
            else:
                parts = [self.embed(pictures[start : start + 16]) for start in range(0, len(pictures), 16)]
                vectors = {judge: np.concatenate([part[judge] for part in parts]) for judge in parts[0]}
            rows[name], scores[name] = {}, {}
            for judge in self.judges:
                known = np.stack(self.seen.originals[judge.name][: len(crops)])
                found = self.own_scores(judge, vectors[judge.name], known)
                rows[name][judge.name] = wilson(
                    sum(self.accepts(judge, float(score)) for score in found), len(found)
                ).to_dict()
                scores[name][judge.name] = [float(score) for score in found]
        return rows, scores

    def looks(self) -> dict[str, Any] | None:
        """How the first released faces look beside the originals, at the same places; None without a known place."""
        if not self.seen.places:
            return None
        pairs = np.stack(self.seen.places)
        return Looks(pairs[:, 0], np.arange(len(pairs)), load_lpips(), seed=self.settings.seed).measure(pairs[:, 1])

    def retrieved(self) -> dict[str, Any]:
        """Part of the faces whose nearest original among all originals of the folder is their own."""
        count = len(next(iter(self.seen.originals.values())))
        rows = np.arange(count)
        if count > _RANKED_FACES:
            rows = np.sort(np.random.default_rng(self.settings.seed).choice(count, _RANKED_FACES, replace=False))
        return {
            judge.name: rank_one(
                np.stack(self.seen.released[judge.name])[rows], rows, np.stack(self.seen.originals[judge.name])[rows],
                rows, judge.metric,
            ).to_dict()
            for judge in self.judges
        }  # fmt: skip


def _reason(error: FacezooError, path: Path) -> str:
    """The message without this machine's folders."""
    return str(error).replace(str(path), path.name)


def _common_ratio(size: tuple[int, int], released: tuple[int, int]) -> float | None:
    """Released pixels for each pixel of the original, or None when the proportions differ by more than rounding."""
    ratio = (released[0] + released[1]) / (size[0] + size[1])
    fits = all(abs(have - ratio * was) <= 1.0 + 0.005 * have for have, was in zip(released, size, strict=True))
    return ratio if fits else None


def _scaled(face: Face, ratio: float) -> Face:
    """A face in a picture resized by the ratio (pixel centres at .5)."""
    if ratio == 1.0:
        return face
    x0, y0, x1, y1 = ((value + 0.5) * ratio - 0.5 for value in face.box)
    points = ((face.points.astype(np.float64) + 0.5) * ratio - 0.5).astype(np.float32)
    return Face((x0, y0, x1, y1), points, face.score)


def _shifted(face: Face, x: float, y: float) -> Face:
    """A face of a part of a picture, in the picture."""
    x0, y0, x1, y1 = face.box
    points = (face.points + np.array([x, y], dtype=np.float32)).astype(np.float32)
    return Face((x0 + x, y0 + y, x1 + x, y1 + y), points, face.score)


def _plain(box: Sequence[float]) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = (float(value) for value in box)
    return (x0, y0, x1, y1)


def _same_face(first: Face, second: Face) -> bool:
    """Whether two detections are one face: the boxes agree, or each holds the other's middle."""
    if box_overlap(first.box, second.box) >= _SAME_PLACE:
        return True
    return _holds_middle(first.box, second.box) and _holds_middle(second.box, first.box)


def _holds_middle(box: Sequence[float], other: Sequence[float]) -> bool:
    x, y = (other[0] + other[2]) / 2, (other[1] + other[3]) / 2
    return box[0] <= x <= box[2] and box[1] <= y <= box[3]


def _recorded(released: Path, size: tuple[int, int]) -> list[Face]:
    """The faces that facezoo's record of a released picture names; none where there is no usable record."""
    from facezoo.records import find_record

    try:
        record = find_record(released)
    except FacezooError:
        return []
    if record is None or record.size != size:
        return []
    faces = [Face(face.box, np.asarray(face.points, np.float32), face.score) for face in record.faces[:_RECORDED]]
    return [face for face in faces if face.box[2] > 0 and face.box[3] > 0 and face.box[0] < size[0] > 0 < size[1]]


_BEHIND = re.compile(rb"ftyp(?:mp4|isom|iso\d|qt  |M4V|MSNV|avc1|heic|mif1)")
"""A clip or another picture in boxes, as phones put it behind a JPEG."""


def _hidden_pictures(path: Path) -> list[str]:
    """Other pictures in a picture's file, which were not judged and may show what its pixels hide."""
    from PIL import ExifTags, Image

    found = []
    data = path.read_bytes()
    if data[:3] == b"\xff\xd8\xff" and _BEHIND.search(data, 1024):
        found.append("carries a clip behind the picture, which was not judged; remove it")
    try:
        with Image.open(io.BytesIO(data)) as image:
            directory = image.getexif().get_ifd(ExifTags.IFD.IFD1)
            pages = getattr(image, "n_frames", 1)
    except Exception:  # whatever a decoder says about metadata: the pixels were read
        return found
    if 0x0201 in directory:
        found.append("carries a preview picture in its EXIF data, which was not judged; remove the metadata")
    if pages > 1:
        found.append(f"holds {pages} pictures, of which the first alone was judged")
    return found


def _encoders(pairs: Sequence[Pair]) -> set[str]:
    """Recognisers that facezoo's records beside (or in) the released pictures name as part of the training."""
    from facezoo.hub.manifest import resolve_model
    from facezoo.records import find_record

    found: set[str] = set()
    asked: set[str] = set()
    for pair in pairs:
        if pair.released is None:
            continue
        try:
            record = find_record(pair.released)
            if record is None or record.model in asked:
                continue
            asked.add(record.model)
            manifest = resolve_model(record.model).manifest
        except (RecordError, InputError, CheckpointError, UnknownNameError):
            continue  # a foreign or damaged record says nothing about the training
        if manifest is not None and isinstance(manifest["config"].get("recogniser"), str):
            found.add(manifest["config"]["recogniser"])
    return found


def _figures(pictures: Sequence[PictureVerdict], withheld: int) -> dict[str, Any]:
    faces = [face for picture in pictures for face in picture.faces]
    known = [face for face in faces if face.detected is not None]
    return {
        "pictures": {
            "all": len(pictures),
            "failed": wilson(sum(picture.failed for picture in pictures), len(pictures)).to_dict(),
            "not_judged": sum(bool(picture.problem) for picture in pictures),
            "withheld": withheld,
            "without_a_face": sum(not picture.faces and not picture.problem for picture in pictures),
            "resized": sum(
                picture.size != picture.released_size and not picture.problem
                for picture in pictures
                if picture.released_size is not None
            ),
        },
        "faces": {
            "all": len(faces),
            "recognised": wilson(sum(face.status != "protected" for face in faces), len(faces)).to_dict(),
            "missed": wilson(sum(face.status == "missed" for face in faces), len(faces)).to_dict(),
            "still_detected": wilson(sum(bool(face.detected) for face in known), len(known)).to_dict(),
            "untouched": sum(face.changed == 0.0 for face in faces),
            "found_in_released_only": sum(face.found_in == "released" for face in faces),
            "covers_taken_for_faces": sum(len(picture.covers) for picture in pictures),
        },
    }


def _notes(controls: Mapping[str, Any], independent: int, far: float, judges: int, faces: int) -> list[str]:
    notes = []
    for judge, rate in controls["identity"].items():
        if rate["value"] < 1.0:
            notes.append(f"{judge} does not take every original for itself: its figures are not to be trusted.")
    for judge, rate in controls["black_box"].items():
        if rate["value"] > 0.0:
            notes.append(f"{judge} takes black boxes for the original: its figures are not to be trusted.")
    if independent < 2:
        notes.append(
            f"Only {independent} judges took no part in the tool's training: at least 2 are needed for a claim."
        )
    notes.append(
        f"By chance alone about {faces * judges * far:.1f} of the {faces} faces would be taken for the original at one "
        f"place ({judges} judges, false accept rate {far:g}), and more where several faces are in a picture."
    )
    return notes


def run_audit(
    pairing: Pairing,
    settings: AuditSettings | None = None,
    *,
    judges: Sequence[Recogniser] | None = None,
    advance: Callable[[], None] = lambda: None,
) -> Audit:
    """Judges every pair.

    Args:
        pairing: see ``pair_folders``.
        settings: see `AuditSettings`; None: the defaults.
        judges: recognisers; None: those of the settings.
        advance: called after each picture.

    Returns:
        The outcome.

    Raises:
        InputError: no threshold for a judge, or nothing to judge.
        NoFaceError: the originals that could be read show no face at all.
    """
    settings = settings or AuditSettings()
    examiner = _Examiner(settings, judges)
    started = time.time()
    pictures = tuple(_examined(examiner, pairing.pairs, advance))
    if not pictures:
        raise InputError("nothing was released of any original; there is nothing to judge")
    if not any(picture.faces for picture in pictures) and not any(picture.problem for picture in pictures):
        raise NoFaceError("no face was found in any original, nor in what was released; there is nothing to judge")
    marked = {*settings.trained_with, *_encoders(pairing.pairs)}
    names = [judge.name for judge in examiner.judges]
    controls: dict[str, Any] = {}
    control_scores: dict[str, dict[str, list[float]]] = {}
    retrieved: dict[str, Any] = {}
    figures = _figures(pictures, len(pairing.withheld))
    notes: list[str] = []
    if examiner.seen.crops:
        controls, control_scores = examiner.controls()
        retrieved = examiner.retrieved()
        independent = sum(name not in marked for name in names)
        notes = _notes(controls, independent, settings.far, len(names), figures["faces"]["all"])
    else:
        notes.append("No face could be judged: every picture has a problem.")
    summary = {
        "facezoo_audit": 1,
        **figures,
        "withheld": list(pairing.withheld),
        "left_out": len(pairing.others),
        "judges": {
            judge.name: {
                "metric": judge.metric,
                "threshold": examiner.thresholds[judge.name],
                "took_part_in_training": judge.name in marked,
                "recognised": wilson(
                    sum(judge.name in face.recognised_by for picture in pictures for face in picture.faces),
                    figures["faces"]["all"],
                ).to_dict(),
            }
            for judge in examiner.judges
        },
        "retrieved": retrieved,
        "controls": controls,
        "looks": examiner.looks(),
        "far": settings.far,
        "detector": {"name": settings.detector, "minimum_face": settings.minimum_face},
        "seed": settings.seed,
        "seconds": time.time() - started,
        "hardware": hardware("cpu"),
        "notes": notes,
    }
    return Audit(pictures, summary, control_scores)


def _examined(examiner: _Examiner, pairs: Sequence[Pair], advance: Callable[[], None]) -> Iterator[PictureVerdict]:
    for pair in pairs:
        yield examiner.examine(pair)
        advance()


def face_record(face: FaceVerdict) -> dict[str, Any]:
    """A verdict as plain JSON."""
    return asdict(face) | {
        "box": [round(value, 1) for value in face.box],
        "same_place": dict(face.same_place),
        "anywhere": dict(face.anywhere),
    }


def crop_of(path: Path, box: Sequence[float], ratio: float, side: int) -> bytes | None:
    """A face with some surroundings as a small JPEG, for the report; None where it cannot be cut out."""
    from PIL import Image

    try:
        image = Image.fromarray(load_picture(path).pixels)
    except FacezooError:
        return None
    x0, y0, x1, y1 = (value * ratio for value in box)
    margin = 0.25 * max(x1 - x0, y1 - y0)
    edges = (
        max(0, int(x0 - margin)), max(0, int(y0 - margin)),
        min(image.width, int(x1 + margin)), min(image.height, int(y1 + margin)),
    )  # fmt: skip
    if edges[2] <= edges[0] or edges[3] <= edges[1]:
        return None
    cut = image.crop(edges)
    cut.thumbnail((side, side))
    stream = io.BytesIO()
    cut.save(stream, "JPEG", quality=85)
    return stream.getvalue()
