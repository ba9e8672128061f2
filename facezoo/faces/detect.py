"""Finding faces, with five points each, in pictures of any size.

Two detectors are built in (`yunet`, the default, and `centerface`); others are added with `register_detector`. A
plug-in only has to find faces of 16 to 300 pixels in one picture (`find`); all around it is done here for each of them:
scales and tiles for small faces in big pictures, a margin for faces that fill the picture, turned pictures, duplicates.

Points are eye, eye, nose, mouth corner, mouth corner, left to right *in the upright face*: the person's right eye comes
first, also where the face stands on its head.
"""

from __future__ import annotations

import abc
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt

from facezoo.errors import InputError, UnknownNameError
from facezoo.faces.align import (
    ByteArray,
    alignment_error,
    apply_transform,
    crop_faces_float,
    invert_transform,
    similarity,
    template,
)
from facezoo.files import sha256_bytes

PointArray = npt.NDArray[np.float32]
Rotations = Literal["auto"] | bool

#: Longest side of a picture that is searched in one piece; bigger ones are searched in tiles as well.
_VIEW_SIDE = 1280
#: Longest side of the coarse view, in which faces that fill the picture have a size that the detectors know (measured:
#: 192 finds as many faces of 0.6 to 1.9 times the picture's height as 320 does, in a third of the time).
_COARSE_SIDE = 192
#: Overlap of tiles: faces up to this size lie whole in one of them, bigger ones are found in the whole view.
_TILE_OVERLAP = 192
#: Face size, in pixels, down to which the detectors are reliable (measured on shrunk portraits).
_RELIABLE_FACE = 16.0
#: Margin around the coarse view, as a part of its side: a face that fills the picture gets surroundings.
_COARSE_MARGIN = 0.2
#: Width of the mirrored margin as a part of the longest side of its view. In a mirrored border half a face becomes a
#: whole one (measured, YuNet, 148 LFW faces cut so that a third is visible: 139 found; with a repeated border 101, with
#: a gray one 65, without a margin 71).
_MIRROR_MARGIN = 0.1
#: Small pictures are enlarged by no more than this where turned faces are looked for.
_TURNED_SCALE = 1.4
#: Side of the view in which a doubtful face is turned, and by how much an upright answer is preferred.
_TURN_VIEW = 128
_TURN_BONUS = 0.03
#: So far below `sure_score` a detector's best face must lie for the picture to be searched in all turns in full detail.
_DOUBT = 0.12
#: Side of the view in which a face is looked at again, and its scale there against the 128 template.
_STEADY_VIEW = 96
_STEADY_SCALE = 0.6
#: A second look that moves a point further than this, in pixels of the 128 template, has seen something else.
_STEADY_REACH = 24.0

_WEIGHTS = {
    "face_detection_yunet_2023mar_int8bq.onnx": "49f000ec501fef24739071fc7e68267d32209045b6822c0c72dce1da25726f10",
    "centerface.onnx": "09189deaaf8646c5c51a68447e3c744ea1e211798155d4728c20507b9f5aefbc",
}


@dataclass(frozen=True)
class Face:
    """One face in a picture.

    Attributes:
        box: (x0, y0, x1, y1) in picture pixels; may reach beyond the border where the face does.
        points: (5, 2) float32, (x, y) in picture pixels: eye, eye, nose, mouth, mouth.
        score: the detector's confidence, 0 to 1; 1 for points given by the user; 0 for points estimated from a box.
    """

    box: tuple[float, float, float, float]
    points: PointArray
    score: float

    @property
    def size(self) -> float:
        """The shorter side of the box in pixels."""
        return min(self.box[2] - self.box[0], self.box[3] - self.box[1])


@dataclass(frozen=True)
class DetectorOptions:
    """How to search.

    Attributes:
        score_threshold: faces below this confidence are dropped; None: the detector's own (yunet 0.6, centerface 0.4).
            Both lie low on purpose: a hand that is blurred is a smaller harm than a face that is not.
        minimum_face: faces whose box's shorter side is below this many pixels are neither searched for nor reported.
            Halving it makes the search of a big picture up to four times as slow; raising it makes it faster.
        keep_smaller: report smaller ones too where they happen to be found.
        rotations: "auto": also search the picture turned by 90, 180 and 270 degrees, shrunk to the detector's
            `small_side`, and in full detail where the upright picture shows no face, or doubtful ones only; True: in
            full detail always; False: never. (Faces turned by up to about 45 degrees are found anyway.) Unless it is
            False, each face that the detector is not quite sure of is looked at in all four turns, because detectors
            find most faces that stand on their heads, but give them the points of upright ones.
        borders: also look at the picture with mirrored borders, in which a face of which a third is visible becomes a
            whole one.
        overlap: two boxes with a larger intersection over union than this are taken for one face.
        steady: look at each face again, aligned and mirrored, and average the points (10 ms a face). The points then
            depend less on where and how large a face is in its picture: over shifted, scaled and JPEG-coded versions
            of a picture the crop moves by 1.3 pixels of 128 and not by 2.9 (YuNet, LFW). Recovery without a record
            finds the same crop again because of this.
    """

    score_threshold: float | None = None
    minimum_face: float = 12.0
    keep_smaller: bool = False
    rotations: Rotations = "auto"
    borders: bool = False
    overlap: float = 0.35
    steady: bool = True

    def __post_init__(self) -> None:
        if self.score_threshold is not None and not 0.0 < self.score_threshold < 1.0:
            raise InputError(f"score_threshold must lie between 0 and 1, got {self.score_threshold}")
        if not 4.0 <= self.minimum_face <= 10_000.0:
            raise InputError(f"minimum_face must be 4 to 10000 pixels, got {self.minimum_face}")
        if self.rotations not in ("auto", True, False):
            raise InputError(f'rotations must be True, False or "auto", got {self.rotations!r}')
        if not 0.05 <= self.overlap <= 0.95:
            raise InputError(f"overlap must be 0.05 to 0.95, got {self.overlap}")


@dataclass(frozen=True)
class _Found:
    """A detection with what is needed to choose between duplicates."""

    face: Face
    rank: float = field(default=0.0)


class Detector(abc.ABC):
    """Base class of detectors: subclasses implement `find`; users call `detect`.

    Args:
        options: how to search.
    """

    name: str = ""
    default_threshold: float = 0.5
    #: From this confidence on a face is upright for sure; below it is looked at in all four turns.
    sure_score: float = 1.0
    #: Longest side, in pixels, of the views with a mirrored border, and of those in which turned faces are looked for.
    small_side: int = 640

    def __init__(self, options: DetectorOptions | None = None) -> None:
        self.options = options or DetectorOptions()

    @abc.abstractmethod
    def find(self, rgb: ByteArray, threshold: float) -> list[Face]:
        """Find upright faces of about 16 to 300 pixels in one picture of at most about 1300 pixels a side.

        Args:
            rgb: (H, W, 3) uint8 RGB, contiguous, at least 32 pixels a side.
            threshold: lowest confidence to report.

        Returns:
            Faces in pixels of `rgb`; duplicates are allowed.
        """

    @property
    def threshold(self) -> float:
        """The confidence below which faces are dropped."""
        given = self.options.score_threshold
        return self.default_threshold if given is None else given

    def detect(self, rgb: ByteArray) -> list[Face]:
        """Find all faces of a picture.

        Args:
            rgb: (H, W, 3) uint8 RGB of any size.

        Returns:
            Faces without duplicates, from left to right. Empty when there is none.

        Raises:
            InputError: `rgb` is not a picture.
        """
        _checked_shape(rgb)
        found = self._search(rgb, tiles=True, borders=self.options.borders)
        if self.options.rotations is not False:
            found += self._turned(rgb, found)
        return self._finished(rgb, found)

    def _finished(self, rgb: ByteArray, found: list[_Found]) -> list[Face]:
        """Each face once, of the size that is wanted, upright and with steady points, from left to right."""
        faces = [item.face for item in _without_duplicates(found, self.options.overlap)]
        if not self.options.keep_smaller:
            faces = [face for face in faces if face.size >= self.options.minimum_face]
        if self.options.rotations is not False:
            faces = [face if face.score >= self.sure_score else self._set_upright(rgb, face) for face in faces]
        if self.options.steady:
            faces = [replace(face, points=self._steadied(rgb, face.points)) for face in faces]
        return sorted(faces, key=lambda face: (face.box[0], face.box[1]))

    def detect_across_seam(self, rgb: ByteArray) -> list[Face]:
        """Faces that begin at the right border of a picture and go on at its left one: those on the seam of a panorama.

        Args:
            rgb: (H, W, 3) uint8 RGB of any size.

        Returns:
            Each face twice, once for each border, with a box that reaches beyond it. Empty for a picture less than
            twice as wide as high: no panorama of 360 degrees.

        Raises:
            InputError: `rgb` is not a picture.
        """
        height, width = _checked_shape(rgb)
        if width < 2 * height:
            return []
        half = -(-height // 3)
        strip = np.concatenate([rgb[:, width - half :], rgb[:, :half]], axis=1)
        # No finer than the picture itself is searched.
        finest = self._scales(rgb)[1]
        scale = min(finest, _VIEW_SIDE / max(strip.shape[:2]))
        found = self._view(strip, scale, 0.0)
        if finest > scale * 1.1:
            found += self._tiles(strip, finest)
        across = [item for item in found if item.face.box[0] < half < item.face.box[2]]
        faces = self._finished(strip, across)
        return [_moved(face, shift, 0.0) for face in faces for shift in (width - half, -half)]

    def _turned(self, rgb: ByteArray, upright: list[_Found]) -> list[_Found]:
        """Faces of the picture turned by 90, 180 and 270 degrees, in pixels of the upright one."""
        doubtful = all(item.face.score < self.sure_score - _DOUBT for item in upright)
        full = self.options.rotations is True or doubtful
        # Beside upright candidates a turned one must be a little surer (measured, YuNet: what is no face gets up to
        # .63, a small tilted face .66 and more).
        least = self.threshold + 0.125 * (1.0 - self.threshold) if upright and self.options.rotations == "auto" else 0.0
        height, width = rgb.shape[:2]
        # Shrunk before it is turned: the big picture is read once.
        scale = min(self._scales(rgb)[0], self.small_side / max(height, width), _TURNED_SCALE)
        view, scale_x, scale_y = (rgb, 1.0, 1.0) if full else _resized(rgb, scale)
        found = []
        for turns in (1, 2, 3):
            turned = np.ascontiguousarray(np.rot90(view, turns))
            # Tiles of turned pictures are searched only on demand: three more passes over 5,000 pixels are slow.
            if self.options.rotations is True:
                seen = self._search(turned, tiles=True, borders=self.options.borders)
            elif full:
                seen = self._search(turned, tiles=False, borders=False)
            else:  # a turned face that fills the picture has no sure upright one beside it
                seen = self._view(turned, 1.0, 0.0)
            for item in seen:
                if item.face.score < least:
                    continue
                face = _turn_back(item.face, turns, view.shape[0], view.shape[1])
                found.append(replace(item, face=_mapped(face, scale_x, scale_y, 0.0, 0.0)))
        return found

    def _set_upright(self, rgb: ByteArray, face: Face) -> Face:
        """Look at a doubtful face in all four turns: detectors find turned faces too, with points as if upright."""
        x0, y0, x1, y1 = face.box
        half = 0.8 * max(x1 - x0, y1 - y0)
        scale = _TURN_VIEW / (2 * half)
        centre = np.array([(x0 + x1) / 2, (y0 + y1) / 2])
        shift = _TURN_VIEW / 2 - scale * centre
        to_view = np.array([[scale, 0.0, shift[0]], [0.0, scale, shift[1]]])
        try:
            view = _look(rgb, to_view, _TURN_VIEW)
        except InputError:  # the box lies far outside: the face stays as it was found
            return face
        best, best_score = face, -1.0
        for turns in range(4):
            for found in self.find(np.ascontiguousarray(np.rot90(view, turns)), 0.5 * self.threshold):
                turned = _turn_back(found, turns, _TURN_VIEW, _TURN_VIEW)
                points = apply_transform(invert_transform(to_view), turned.points)
                # The upright answer is preferred: another must be clearly better.
                score = found.score + (_TURN_BONUS if turns == 0 else 0.0)
                if np.abs(points.mean(axis=0) - centre).max() < 0.5 * half and score > best_score:
                    best_score = score
                    best = face if turns == 0 else replace(face, points=points.astype(np.float32))
        return best

    def _steadied(self, rgb: ByteArray, points: PointArray) -> PointArray:
        """Points averaged over an aligned view of the face and its mirror image, twice."""
        current = points.astype(np.float64)
        for _ in range(2):
            try:
                to_template = similarity(current, 128)
                linear = to_template[:, :2] * _STEADY_SCALE
                # The middle of the face, a little above the nose tip, goes to the middle of the view.
                shift = to_template[:, 2] * _STEADY_SCALE + _STEADY_VIEW / 2 - np.array([64.0, 66.0]) * _STEADY_SCALE
                to_view = np.hstack([linear, shift[:, None]])
                view = _look(rgb, to_view, _STEADY_VIEW)
            except InputError:  # points that are no face, or lie far outside: they stay as the detector gave them
                return points
            back = invert_transform(to_view)
            seen: list[npt.NDArray[np.float64]] = []
            for mirrored in (False, True):
                found = self.find(np.ascontiguousarray(view[:, ::-1]) if mirrored else view, 0.5 * self.threshold)
                if found:
                    middle = min(
                        found, key=lambda face: float(np.abs(face.points.mean(axis=0) - _STEADY_VIEW / 2).sum())
                    )
                    places = middle.points.astype(np.float64)
                    if mirrored:
                        places = (places * (-1.0, 1.0) + (_STEADY_VIEW - 1.0, 0.0))[[1, 0, 2, 4, 3]]
                    seen.append(apply_transform(back, places))
            if len(seen) < 2:
                return current.astype(np.float32)
            steadied = np.mean(seen, axis=0)
            moved = np.linalg.norm(
                apply_transform(to_template, steadied) - apply_transform(to_template, current), axis=1
            )
            if moved.max() > _STEADY_REACH:
                return current.astype(np.float32)
            current = steadied
        return current.astype(np.float32)

    def _scales(self, rgb: ByteArray) -> tuple[float, float]:
        """Scale of the view of the whole picture, and the finest one that is worth a look."""
        longest = max(rgb.shape[:2])
        # Fine enough that the smallest wanted face has the size the detector is reliable at; at most doubled.
        finest = min(2.0, _RELIABLE_FACE / self.options.minimum_face)
        if longest * min(finest, 1.0) > _VIEW_SIDE:
            finest = min(finest, 1.0)
        elif longest * finest > _VIEW_SIDE:
            finest = max(1.0, _VIEW_SIDE / longest)
        return min(finest, _VIEW_SIDE / longest), finest

    def _search(self, rgb: ByteArray, *, tiles: bool, borders: bool) -> list[_Found]:
        whole, finest = self._scales(rgb)
        found: list[_Found] = []
        mirrored = min(whole, self.small_side / max(rgb.shape[:2]))
        if borders:
            found += self._view(rgb, mirrored, _MIRROR_MARGIN, mirror=True)
        if not borders or whole > mirrored:
            found += self._view(rgb, whole, 0.0)
        found += self._view(rgb, min(whole, _COARSE_SIDE / max(rgb.shape[:2])), _COARSE_MARGIN)
        if tiles and finest > whole * 1.1:
            found += self._tiles(rgb, finest)
        return found

    def _view(self, rgb: ByteArray, scale: float, margin: float, *, mirror: bool = False) -> list[_Found]:
        view, scale_x, scale_y = _resized(rgb, scale)
        border = round(margin * max(view.shape[:2]))
        # The detectors' strides need 32 pixels; very small pictures get a wider border.
        border = max(border, -(-(64 - min(view.shape[:2])) // 2) if min(view.shape[:2]) < 64 else 0)
        if border:
            kind = cv2.BORDER_REFLECT if mirror else cv2.BORDER_REPLICATE
            view = cv2.copyMakeBorder(view, border, border, border, border, kind).astype(np.uint8)
        found = []
        for face in self.find(np.ascontiguousarray(view), self.threshold):
            mapped = _mapped(face, scale_x, scale_y, -border, -border)
            if mirror:
                mapped = _out_of_the_mirror(mapped, rgb.shape)
                # A corner is mirrored twice: anything becomes a symmetric pattern there.
                if _in_a_corner(mapped.box, rgb.shape) and face.score < 0.5 * (1.0 + self.threshold):
                    continue
            found.append(_Found(mapped, face.score))
        return found

    def _tiles(self, rgb: ByteArray, scale: float) -> list[_Found]:
        height, width = rgb.shape[:2]
        side = round(_VIEW_SIDE / scale)
        found: list[_Found] = []
        for x0, y0, x1, y1 in _tile_boxes(width, height, side, round(_TILE_OVERLAP / scale)):
            view, scale_x, scale_y = _resized(rgb[y0:y1, x0:x1], scale)
            for face in self.find(np.ascontiguousarray(view), self.threshold):
                # A face that is cut by the edge of a tile loses against the whole one of a neighbour or of the
                # whole view, but stays when it is the only one.
                edge = 0.02 * max(x1 - x0, y1 - y0)
                mapped = _mapped(face, scale_x, scale_y, 0.0, 0.0)
                box = mapped.box
                cut = (
                    (box[0] < edge and x0 > 0)
                    or (box[1] < edge and y0 > 0)
                    or (box[2] > x1 - x0 - edge and x1 < width)
                    or (box[3] > y1 - y0 - edge and y1 < height)
                )
                found.append(_Found(_moved(mapped, x0, y0), face.score - (0.5 if cut else 0.0)))
        return found


def _checked_shape(rgb: ByteArray) -> tuple[int, int]:
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8 or 0 in rgb.shape:
        raise InputError(f"a picture must be (H, W, 3) uint8 RGB, got {rgb.dtype} of shape {rgb.shape}")
    return rgb.shape[0], rgb.shape[1]


def _look(rgb: ByteArray, to_view: npt.NDArray[np.float64], size: int) -> ByteArray:
    """A square view of a face for the detector; raises InputError where `crop_faces` does."""
    return np.rint(crop_faces_float(rgb, [to_view], size, draft=True)[0]).astype(np.uint8)


def _resized(rgb: ByteArray, scale: float) -> tuple[ByteArray, float, float]:
    """Resize; returns the view and the exact scales in x and y."""
    height, width = rgb.shape[:2]
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    if size == (width, height):
        return rgb, 1.0, 1.0
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    view = cv2.resize(rgb, size, interpolation=method).astype(np.uint8, copy=False)
    return view, size[0] / width, size[1] / height


def _mapped(face: Face, scale_x: float, scale_y: float, shift_x: float, shift_y: float) -> Face:
    """From view pixels to picture pixels."""
    x0, y0, x1, y1 = face.box
    scales = np.array([scale_x, scale_y], dtype=np.float32)
    shift = np.array([shift_x, shift_y], dtype=np.float32)
    points = (face.points + shift + 0.5) / scales - 0.5
    box = ((x0 + shift_x) / scale_x, (y0 + shift_y) / scale_y, (x1 + shift_x) / scale_x, (y1 + shift_y) / scale_y)
    return Face(box, points.astype(np.float32), face.score)


def _moved(face: Face, x: float, y: float) -> Face:
    x0, y0, x1, y1 = face.box
    points = (face.points + np.array([x, y], dtype=np.float32)).astype(np.float32)
    return replace(face, box=(x0 + x, y0 + y, x1 + x, y1 + y), points=points)


def _in_a_corner(box: Sequence[float], shape: tuple[int, ...]) -> bool:
    """Whether a quarter or more of a box's width and of its height lies beyond the picture's border."""
    height, width = shape[:2]
    x0, y0, x1, y1 = box
    return max(-x0, x1 - width) > 0.25 * (x1 - x0) and max(-y0, y1 - height) > 0.25 * (y1 - y0)


def _out_of_the_mirror(face: Face, shape: tuple[int, ...]) -> Face:
    """A face whose middle lies beyond the picture's border was seen in the mirror: it is sent back inside."""
    height, width = shape[:2]
    x0, y0, x1, y1 = face.box
    points = face.points
    if not 0 <= x0 + x1 <= 2 * width:
        edge = 0 if x0 + x1 < 0 else width
        x0, x1 = 2 * edge - x1, 2 * edge - x0
        points = (points * (-1, 1) + (2 * edge - 1, 0)).astype(np.float32)[[1, 0, 2, 4, 3]]
    if not 0 <= y0 + y1 <= 2 * height:
        edge = 0 if y0 + y1 < 0 else height
        y0, y1 = 2 * edge - y1, 2 * edge - y0
        # Upside down in the mirror: where its points were seen says little about the real one's.
        points = points_from_box((x0, y0, x1, y1))
    return Face((x0, y0, x1, y1), points, face.score)


def _tile_boxes(width: int, height: int, side: int, overlap: int) -> Iterator[tuple[int, int, int, int]]:
    """Tiles of about `side` pixels which overlap by at least `overlap` and cover the picture evenly."""

    def starts(length: int) -> list[tuple[int, int]]:
        if length <= side:
            return [(0, length)]
        count = -(-(length - overlap) // (side - overlap))
        step = (length - side) / (count - 1)
        return [(round(index * step), round(index * step) + side) for index in range(count)]

    for y0, y1 in starts(height):
        for x0, x1 in starts(width):
            yield x0, y0, min(x1, width), min(y1, height)


def _turn_back(face: Face, turns: int, height: int, width: int) -> Face:
    """Undo ``np.rot90(picture, turns)`` for a face found in the turned picture; height, width: of the upright one."""
    corners = np.array([[face.box[0], face.box[1]], [face.box[2], face.box[3]]], dtype=np.float32)

    def back(points: PointArray, last: float) -> PointArray:
        # `last` is 1 for pixel centres (the last one is size - 1) and 0 for box edges.
        x, y = points[:, 0], points[:, 1]
        if turns == 1:
            x, y = width - last - y, x
        elif turns == 2:
            x, y = width - last - x, height - last - y
        else:
            x, y = y, height - last - x
        return np.stack([x, y], axis=1).astype(np.float32)

    ends = back(corners, 0.0)
    low, high = ends.min(axis=0), ends.max(axis=0)
    box = (float(low[0]), float(low[1]), float(high[0]), float(high[1]))
    return Face(box, back(face.points, 1.0), face.score)


def box_overlap(first: Sequence[float], second: Sequence[float]) -> float:
    """Intersection over union of two boxes (x0, y0, x1, y1)."""
    across = min(first[2], second[2]) - max(first[0], second[0])
    down = min(first[3], second[3]) - max(first[1], second[1])
    if across <= 0 or down <= 0:
        return 0.0
    common = across * down
    areas = (first[2] - first[0]) * (first[3] - first[1]) + (second[2] - second[0]) * (second[3] - second[1])
    return float(common / max(areas - common, 1e-9))


def _without_duplicates(found: list[_Found], overlap: float) -> list[_Found]:
    """Keep the highest ranked of detections that are one face: overlapping boxes, or features in one place."""
    kept: list[tuple[_Found, float, float]] = []
    for item in sorted(found, key=lambda entry: entry.rank, reverse=True):
        x, y = (item.face.points.sum(axis=0) / 5.0).tolist()
        for other, other_x, other_y in kept:
            if math.hypot(x - other_x, y - other_y) < 0.2 * min(item.face.size, other.face.size):
                break
            if box_overlap(item.face.box, other.face.box) > overlap:
                break
        else:
            kept.append((item, x, y))
    return [item for item, _, _ in kept]


# --------------------------------------------------------------------------------------------------------------------
# the two built-in detectors


def _read_weights(file: str) -> bytes:
    data = (resources.files("facezoo") / "assets" / "detection" / file).read_bytes()
    if sha256_bytes(data) != _WEIGHTS[file]:
        raise InputError(f"the detector's file {file} is damaged; install facezoo again")
    return data


class YuNet(Detector):
    """YuNet (Wu, Peng, Yu 2023; OpenCV Zoo, Apache-2.0/MIT) through OpenCV: small, fast, five points.

    The weights are the int8 build `face_detection_yunet_2023mar_int8bq`.
    """

    name = "yunet"
    default_threshold = 0.6
    sure_score = 0.92  # measured: upright portraits .94 to .95, the same turned upside down .79 to .89

    def __init__(self, options: DetectorOptions | None = None) -> None:
        super().__init__(options)
        self._data = np.frombuffer(_read_weights("face_detection_yunet_2023mar_int8bq.onnx"), dtype=np.uint8)
        # cv2's detector keeps its input size and buffers: one for each thread.
        self._local = threading.local()

    def find(self, rgb: ByteArray, threshold: float) -> list[Face]:
        """See `Detector.find`."""
        height, width = rgb.shape[:2]
        net = getattr(self._local, "net", None)
        if net is None:
            net = cv2.FaceDetectorYN.create("onnx", self._data, np.empty(0, np.uint8), (width, height))
            net.setNMSThreshold(0.4)
            net.setTopK(5000)
            self._local.net = net
        net.setInputSize((width, height))
        net.setScoreThreshold(threshold)
        _, rows = net.detect(cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))
        if rows is None:
            return []
        return [
            Face(
                (float(row[0]), float(row[1]), float(row[0] + row[2]), float(row[1] + row[3])),
                row[4:14].reshape(5, 2).astype(np.float32),
                float(row[14]),
            )
            for row in rows
            if np.isfinite(row).all()
        ]


class CenterFace(Detector):
    """CenterFace (Xu et al. 2019, MIT) through OpenCV's dnn module: slower, an independent second opinion.

    The network puts out a heat map, log sizes, offsets and points at a stride of 4.
    """

    name = "centerface"
    default_threshold = 0.4
    sure_score = 0.85
    small_side = 320  # it is six times as slow as YuNet
    _outputs = ("537", "538", "539", "540")

    def __init__(self, options: DetectorOptions | None = None) -> None:
        super().__init__(options)
        self._data = np.frombuffer(_read_weights("centerface.onnx"), dtype=np.uint8)
        self._local = threading.local()

    def find(self, rgb: ByteArray, threshold: float) -> list[Face]:
        """See `Detector.find`."""
        height, width = rgb.shape[:2]
        padded = cv2.copyMakeBorder(rgb, 0, -height % 32, 0, -width % 32, cv2.BORDER_REPLICATE)
        net = self._net(padded.shape[:2])
        net.setInput(cv2.dnn.blobFromImage(padded))
        heat, size, offset, points = (out[0] for out in net.forward(self._outputs))
        heat = heat[0]
        # A peak is the largest value of its 3x3 neighbourhood; the rest of the duplicates is removed by the caller.
        peaks = (heat > threshold) & (heat >= cv2.dilate(heat, np.ones((3, 3), np.uint8)))
        faces = []
        for row, column in zip(*np.nonzero(peaks), strict=True):
            tall, wide = np.exp(np.minimum(size[:, row, column], 10.0)) * 4.0
            centre_y, centre_x = (np.array([row, column]) + offset[:, row, column] + 0.5) * 4.0
            x0, y0 = float(centre_x - wide / 2), float(centre_y - tall / 2)
            relative = points[:, row, column].reshape(5, 2)
            places = np.stack([relative[:, 1] * wide + x0, relative[:, 0] * tall + y0], axis=1).astype(np.float32)
            face = Face((x0, y0, float(x0 + wide), float(y0 + tall)), places, float(heat[row, column]))
            if np.isfinite(places).all() and min(wide, tall) > 1 and centre_x < width and centre_y < height:
                faces.append(face)
        return faces

    def _net(self, shape: tuple[int, int]) -> cv2.dnn.Net:
        """A network for one input shape: after a change of shape OpenCV 4.14 gives wrong answers for this graph."""
        nets: dict[tuple[int, int], cv2.dnn.Net] | None = getattr(self._local, "nets", None)
        if nets is None:
            nets = self._local.nets = {}
        if shape not in nets:
            while len(nets) >= 8:  # up to 30 MB each with their buffers; a picture takes five shapes
                nets.pop(next(iter(nets)))
            nets[shape] = cv2.dnn.readNetFromONNX(self._data)
        return nets[shape]


DetectorFactory = Callable[[DetectorOptions | None], Detector]
_DETECTORS: dict[str, DetectorFactory] = {}


def register_detector(name: str, factory: DetectorFactory) -> None:
    """Add a detector under a name.

    Args:
        name: what `get_detector` and the command line call it.
        factory: called with the options (or None), returns the detector; usually the subclass of `Detector` itself.

    Raises:
        InputError: the name is taken.
    """
    if name in _DETECTORS:
        raise InputError(f"a detector named {name!r} is registered already; choose another name")
    _DETECTORS[name] = factory


def list_detectors() -> list[str]:
    """Names of all detectors."""
    return sorted(_DETECTORS)


def get_detector(name: str = "yunet", options: DetectorOptions | None = None) -> Detector:
    """Make a detector.

    Args:
        name: "yunet", "centerface", or a registered one.
        options: how to search.

    Raises:
        UnknownNameError: no such detector.
    """
    if name not in _DETECTORS:
        raise UnknownNameError(f"there is no detector {name!r}; choose one of: {', '.join(list_detectors())}")
    return _DETECTORS[name](options)


register_detector("yunet", YuNet)
register_detector("centerface", CenterFace)


# --------------------------------------------------------------------------------------------------------------------
# faces that the user gives

#: The five points in a detector's box, as parts of its width and height: median over YuNet's boxes of LFW faces
#: (CenterFace's differ by at most 0.025).
_POINTS_IN_BOX = np.array([[0.267, 0.387], [0.726, 0.373], [0.494, 0.58], [0.3, 0.74], [0.704, 0.73]])
#: Width of that box over its height.
_BOX_ASPECT = 0.75
#: A detection is taken for the face of a given box from this overlap on: users draw boxes of many kinds.
_BOX_MATCH = 0.3


def points_from_box(box: Sequence[float]) -> PointArray:
    """Five points of an upright frontal face, estimated from its box alone.

    The face is taken to fill the box from the middle of the forehead to the chin, as detectors' boxes do; in a box of
    another shape it is centred, with the larger of the two sizes that the sides suggest, so that it is rather covered
    too much than too little.

    Args:
        box: (x0, y0, x1, y1) in picture pixels.

    Returns:
        (5, 2) float32 in picture pixels.

    Raises:
        InputError: the box has no area.
    """
    x0, y0, x1, y1 = (float(value) for value in box)
    if not (np.isfinite([x0, y0, x1, y1]).all() and x1 > x0 and y1 > y0):
        raise InputError(f"a box needs finite x0 < x1 and y0 < y1, got {tuple(box)}")
    tall = max(y1 - y0, (x1 - x0) / _BOX_ASPECT)
    wide = tall * _BOX_ASPECT
    corner = np.array([(x0 + x1 - wide) / 2, (y0 + y1 - tall) / 2])
    mirrored = _POINTS_IN_BOX[[1, 0, 2, 4, 3]] * (-1.0, 1.0) + (1.0, 0.0)
    symmetric = (_POINTS_IN_BOX + mirrored) / 2
    return (corner + symmetric * (wide, tall)).astype(np.float32)


def faces_from_boxes(rgb: ByteArray, boxes: Sequence[Sequence[float]], detector: Detector | None = None) -> list[Face]:
    """Faces for boxes that the user gives: every box gives a face, whatever a detector thinks of it.

    The surroundings of the box are searched, at a scale at which its face has a good size. When a detection matches
    the box, its points are taken (and its score); else they are estimated from the box (score 0).

    Args:
        rgb: (H, W, 3) uint8 RGB.
        boxes: (x0, y0, x1, y1) each, in picture pixels.
        detector: finds the points; None: YuNet with a low threshold.

    Returns:
        One face for each box, in the same order, with the box as it was given.

    Raises:
        InputError: a box without area, or outside the picture.
    """
    finder = detector or get_detector("yunet", DetectorOptions(score_threshold=0.3, rotations="auto"))
    height, width = rgb.shape[:2]
    faces = []
    for box in boxes:
        x0, y0, x1, y1 = (float(value) for value in box)
        estimated = points_from_box((x0, y0, x1, y1))
        if x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height:
            raise InputError(f"the box {tuple(box)} lies outside the {width}x{height} picture")
        margin = 0.6 * max(x1 - x0, y1 - y0)
        left, top = max(0, round(x0 - margin)), max(0, round(y0 - margin))
        region = rgb[top : min(height, round(y1 + margin)), left : min(width, round(x1 + margin))]
        view, scale_x, scale_y = _resized(region, min(3.0, 120.0 / max(x1 - x0, y1 - y0)))
        best = Face((x0, y0, x1, y1), estimated, 0.0)
        overlap = _BOX_MATCH
        for found in finder.detect(np.ascontiguousarray(view)):
            moved = _moved(_mapped(found, scale_x, scale_y, 0.0, 0.0), left, top)
            common = box_overlap(moved.box, (x0, y0, x1, y1))
            if common > overlap:
                best, overlap = replace(moved, box=(x0, y0, x1, y1)), common
        faces.append(best)
    return faces


def face_from_points(points: npt.ArrayLike) -> Face:
    """A face from five points that the user gives, with the box that detectors would draw.

    Eyes or mouth corners given right to left are put in order: the order that fits the template better is taken.

    Args:
        points: (5, 2), (x, y) in picture pixels.

    Raises:
        InputError: wrong shape, not finite, or all in one place.
    """
    given = np.asarray(points, dtype=np.float64)
    swapped = given[[1, 0, 2, 4, 3]] if given.shape == (5, 2) else given
    ordered = swapped if alignment_error(swapped) < alignment_error(given) else given
    # The box of the template face, sent back into the picture.
    eyes = template(128)[:2]
    wide = (eyes[1, 0] - eyes[0, 0]) / (_POINTS_IN_BOX[1, 0] - _POINTS_IN_BOX[0, 0])
    x0 = eyes[0, 0] - _POINTS_IN_BOX[0, 0] * wide
    y0 = eyes[:, 1].mean() - _POINTS_IN_BOX[:2, 1].mean() * wide / _BOX_ASPECT
    quad = np.array([[x0, y0], [x0 + wide, y0], [x0 + wide, y0 + wide / _BOX_ASPECT], [x0, y0 + wide / _BOX_ASPECT]])
    corners = apply_transform(invert_transform(similarity(ordered, 128)), quad)
    ends = (*corners.min(axis=0), *corners.max(axis=0))
    return Face((float(ends[0]), float(ends[1]), float(ends[2]), float(ends[3])), ordered.astype(np.float32), 1.0)
