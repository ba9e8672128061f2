"""Aligned crops: out of a picture, and back into it without a seam.

Geometry
    A face is brought to a fixed place by a similarity transform (turn, scale, shift; no mirror) which sends its five
    points to the ArcFace template, slightly shrunk into a 128 square so that forehead and chin are inside:
    ``point128 = (point112 - (56, 72)) * 0.945 + (64, 76)``. Coordinates are OpenCV's: (x, y), pixel centres at whole
    numbers. Transforms are 2x3 float64 matrices *from the picture to the crop*.

Why the resampling is chosen as it is
    A learned method hides a faint code in the pasted crop, and recovery crops the saved picture again with the same
    transform. So ``crop(paste(x))`` has to give ``x`` back, and the two kernels are chosen together: cropping is a
    bicubic warp on a grid about as fine as the picture, averaged down to the crop (no aliasing, and a gentle, easily
    inverted low-pass); pasting is a bicubic warp, followed by a few rounds of back-projection (crop what was pasted,
    add the enlarged difference) which undo what the two kernels swallow. (A Lanczos warp in place of the bicubic one
    takes five times as long, and after the back-projection nobody could tell.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from facezoo.errors import InputError
from facezoo.faces.mask import FloatArray, border_taper, face_mask

ByteArray = npt.NDArray[np.uint8]
DoubleArray = npt.NDArray[np.float64]

#: The ArcFace template: eye, eye, nose, mouth corner, mouth corner, left to right in an upright picture, 112 pixels.
TEMPLATE_112: DoubleArray = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]],
    dtype=np.float64,
)
TEMPLATE_112.setflags(write=False)

#: Rounds of back-projection in `paste_faces`: they leave an error below that of 8-bit rounding where the picture is
#: finer than the crop by this ratio, and as small a one as can be had where it is not (see `paste_faces`).
_REFINE_FINE, _REFINE_COARSE = 2, 3
_REFINE_RATIO = 1.25
#: Up to this ratio (picture pixels per crop pixel) a result that nobody reads again is enlarged linearly: three times
#: as fast, and next to one no different.
_LINEAR_UP_TO = 1.1
#: Gains of cropping after pasting, from the finest detail to the coarsest, for which the steps of the back-projection
#: are chosen (the finest detail passes about a third, and the kernels overshoot a little). Of the ranges tried, this
#: one was the best at native sizes from 0.7 to 3 of the crop.
_GAIN_RANGE = (0.35, 1.1)
#: A crop may reach this many times beyond the longer side of its picture before it is taken for a mistake.
_MAX_REACH = 4.0
#: From this ratio (picture pixels per crop pixel) on, the picture is averaged down before it is warped.
_PREREDUCE_FROM = 4.0
#: Pixels by which a crop's edge is repeated before it is enlarged: the reach of the cubic kernel and two to spare.
_PAD = 4


def template(size: int = 128) -> DoubleArray:
    """The five template points in a square crop.

    Args:
        size: side of the crop in pixels.

    Returns:
        (5, 2) float64, (x, y) in crop pixels.
    """
    return ((TEMPLATE_112 - (56.0, 72.0)) * 0.945 + (64.0, 76.0)) * (size / 128.0)


def similarity(points: npt.ArrayLike, size: int = 128) -> DoubleArray:
    """Least-squares similarity transform from the picture to the aligned crop.

    With points taken as complex numbers the similarity without reflection is ``w = a z + b``, whose least-squares
    solution is closed (it equals Umeyama 1991 with the reflection case excluded).

    Args:
        points: (5, 2), (x, y) in picture pixels; eye, eye, nose, mouth, mouth.
        size: side of the crop in pixels.

    Returns:
        (2, 3) float64 matrix; ``crop_xy = matrix[:, :2] @ picture_xy + matrix[:, 2]``.

    Raises:
        InputError: wrong shape, not finite, or all points in (nearly) one place.
    """
    source = np.asarray(points, dtype=np.float64)
    if source.shape != (5, 2) or not np.isfinite(source).all():
        raise InputError(f"five finite (x, y) points are needed to align a face, got an array of shape {source.shape}")
    z = source[:, 0] + 1j * source[:, 1]
    target = template(size)
    w = target[:, 0] + 1j * target[:, 1]
    z_mean, w_mean = z.sum() / 5.0, w.sum() / 5.0
    z_centred, w_centred = z - z_mean, w - w_mean
    spread = float(np.vdot(z_centred, z_centred).real)
    if spread < 1e-6:
        raise InputError("the five points of a face lie in one place; give eye, eye, nose, mouth, mouth")
    a = np.vdot(z_centred, w_centred) / spread
    if abs(a) < 1e-9:
        raise InputError("the five points do not look like a face; give eye, eye, nose, mouth, mouth left to right")
    b = w_mean - a * z_mean
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]], dtype=np.float64)


def alignment_error(points: npt.ArrayLike) -> float:
    """How badly five points fit the template: root mean square distance in pixels of the 128 crop.

    Frontal faces give 1 to 4, profiles up to about 10; points in the wrong order give 15 and more.
    """
    source = np.asarray(points, dtype=np.float64)
    residual = apply_transform(similarity(source, 128), source) - template(128)
    return float(np.sqrt(np.mean(np.sum(residual**2, axis=1))))


def apply_transform(transform: npt.ArrayLike, points: npt.ArrayLike) -> DoubleArray:
    """Send (N, 2) points through a (2, 3) transform; returns (N, 2) float64."""
    matrix = np.asarray(transform, dtype=np.float64)
    return np.asarray(points, dtype=np.float64) @ matrix[:, :2].T + matrix[:, 2]


def invert_transform(transform: npt.ArrayLike) -> DoubleArray:
    """The (2, 3) transform from the crop back to the picture."""
    (a, b, x), (c, d, y) = np.asarray(transform, dtype=np.float64).tolist()
    # Written out: numpy's general routines take ten times as long for two by two.
    scale = 1.0 / (a * d - b * c)
    return np.array(
        [[d * scale, -b * scale, (b * y - d * x) * scale], [-c * scale, a * scale, (c * x - a * y) * scale]],
        dtype=np.float64,
    )


def _determinant(matrix: DoubleArray) -> float:
    """Determinant of the left two columns."""
    return float(matrix[0, 0] * matrix[1, 1] - matrix[0, 1] * matrix[1, 0])


def native_ratio(transform: npt.ArrayLike) -> float:
    """Picture pixels per crop pixel: above 1 the crop shrinks the face, below 1 it enlarges it."""
    return 1.0 / math.sqrt(abs(_determinant(np.asarray(transform, dtype=np.float64))))


def crop_quad(transform: npt.ArrayLike, size: int) -> DoubleArray:
    """Corners of the crop in the picture: (4, 2) float64, from the crop's top left one, clockwise."""
    low, high = -0.5, size - 0.5
    corners = np.array([[low, low], [high, low], [high, high], [low, high]])
    return apply_transform(invert_transform(transform), corners)


# --------------------------------------------------------------------------------------------------------------------
# resampling


@dataclass(frozen=True)
class _Window:
    """The part of a picture that a crop reads: pixels [x0, x1) x [y0, y1), which may reach beyond the border."""

    x0: int
    y0: int
    x1: int
    y1: int

    def clipped(self, height: int, width: int) -> _Window:
        return _Window(max(self.x0, 0), max(self.y0, 0), min(self.x1, width), min(self.y1, height))

    @property
    def empty(self) -> bool:
        return self.x1 <= self.x0 or self.y1 <= self.y0

    @property
    def slices(self) -> tuple[slice, slice]:
        return slice(self.y0, self.y1), slice(self.x0, self.x1)

    def within(self, outer: _Window) -> tuple[slice, slice]:
        """Index of this window in an array that holds `outer`."""
        return slice(self.y0 - outer.y0, self.y1 - outer.y0), slice(self.x0 - outer.x0, self.x1 - outer.x0)

    def meets(self, other: _Window) -> bool:
        return self.x0 < other.x1 and other.x0 < self.x1 and self.y0 < other.y1 and other.y0 < self.y1

    def union(self, other: _Window) -> _Window:
        return _Window(min(self.x0, other.x0), min(self.y0, other.y0), max(self.x1, other.x1), max(self.y1, other.y1))

    def intersection(self, other: _Window) -> _Window:
        return _Window(max(self.x0, other.x0), max(self.y0, other.y0), min(self.x1, other.x1), min(self.y1, other.y1))


def _reduction(transform: DoubleArray) -> int:
    """Whole-number factor by which the picture is averaged down before the warp."""
    ratio = native_ratio(transform)
    return int(ratio / 2.0) if ratio >= _PREREDUCE_FROM else 1


def _window(transform: DoubleArray, size: int, margin: int) -> _Window:
    """Bounding window of a crop, widened by `margin` and set on the grid of the reduction factor."""
    quad = crop_quad(transform, size)
    step = _reduction(transform)
    low = np.floor((quad.min(axis=0) - margin * step) / step) * step
    high = np.ceil((quad.max(axis=0) + margin * step + 1) / step) * step
    return _Window(int(low[0]), int(low[1]), int(high[0]), int(high[1]))


def _mirrored_span(low: int, high: int, length: int) -> tuple[int, int]:
    """Pixels [a, b) of an axis that [low, high) needs when the axis is mirrored beyond its ends."""
    a, b = max(low, 0), min(high, length)
    if low < 0:
        b = max(b, -low + 1)
    if high > length:
        a = min(a, 2 * length - high - 2)
    a, b = max(0, min(a, length - 1)), min(length, max(b, 1))
    return a, max(b, a + 1)


def _source_window(window: _Window, height: int, width: int) -> _Window:
    """The pixels inside the picture that a window needs, its mirror images included."""
    x0, x1 = _mirrored_span(window.x0, window.x1, width)
    y0, y1 = _mirrored_span(window.y0, window.y1, height)
    return _Window(x0, y0, x1, y1)


def _cut(image: npt.NDArray[np.generic], window: _Window) -> FloatArray:
    """Copy a window as float32; beyond the border the picture is mirrored."""
    height, width = image.shape[:2]
    source = _source_window(window, height, width)
    piece = np.ascontiguousarray(image[source.slices], dtype=np.float32)
    top, left = source.y0 - window.y0, source.x0 - window.x0
    bottom, right = window.y1 - source.y1, window.x1 - source.x1
    if max(top, left, bottom, right) > 0:
        grow = [max(0, side) for side in (top, bottom, left, right)]
        piece = cv2.copyMakeBorder(piece, *grow, cv2.BORDER_REFLECT_101).astype(np.float32, copy=False)
    # What was read only for its mirror image is dropped again.
    y, x = max(0, -top), max(0, -left)
    return piece[y : y + window.y1 - window.y0, x : x + window.x1 - window.x0]


def _average_down(image: FloatArray, step: int) -> FloatArray:
    """Mean over `step` x `step` blocks (whose number is whole)."""
    if step == 1:
        return image
    size = (image.shape[1] // step, image.shape[0] // step)
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA).astype(np.float32, copy=False)


def _shifted(transform: DoubleArray, window: _Window, step: int) -> DoubleArray:
    """The same transform, read from a window that was averaged down by `step`."""
    # Pixel (u, v) of the averaged window has its centre at window + step * u + (step - 1) / 2 of the picture.
    offset = np.array([window.x0, window.y0], dtype=np.float64) + (step - 1) / 2.0
    return _joined(transform[:, :2] * step, transform[:, :2] @ offset + transform[:, 2])


def _joined(linear: DoubleArray, shift: DoubleArray) -> DoubleArray:
    """(2, 2) and (2,) as one (2, 3) transform."""
    matrix = np.empty((2, 3), dtype=np.float64)
    matrix[:, :2], matrix[:, 2] = linear, shift
    return matrix


def _warp(source: FloatArray, to_source: DoubleArray, size: tuple[int, int], kernel: int, border: int) -> FloatArray:
    """Resample `source` at ``to_source @ (x, y, 1)`` for every target pixel, without aliasing.

    Args:
        source: (h, w) or (h, w, C) float32.
        to_source: (2, 3) transform from target to source pixels.
        size: (width, height) of the target.
        kernel: cv2 interpolation flag.
        border: cv2 border mode.

    Returns:
        (height, width[, C]) float32.
    """
    width, height = size
    spacing = math.sqrt(abs(_determinant(to_source)))
    # One sample a source pixel at least; 5 % short of that is still free of visible aliasing.
    fine = max(1, math.ceil(spacing - 0.05))
    if fine == 1:
        flags = kernel | cv2.WARP_INVERSE_MAP
        return cv2.warpAffine(source, to_source, (width, height), flags=flags, borderMode=border).astype(
            np.float32, copy=False
        )
    linear = to_source[:, :2] / fine
    shift = to_source[:, 2] - linear @ np.full(2, (fine - 1) / 2.0)
    warped = cv2.warpAffine(
        source,
        _joined(linear, shift),
        (width * fine, height * fine),
        flags=kernel | cv2.WARP_INVERSE_MAP,
        borderMode=border,
    )
    return cv2.resize(warped, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32, copy=False)


def _read_crop(piece: FloatArray, to_crop: DoubleArray, size: int, kernel: int = cv2.INTER_CUBIC) -> FloatArray:
    """Crop out of a window that is already averaged down."""
    return _warp(piece, invert_transform(to_crop), (size, size), kernel, cv2.BORDER_REFLECT_101)


def _spread(
    crop: FloatArray, to_crop: DoubleArray, shape: tuple[int, int], kernel: int = cv2.INTER_CUBIC
) -> FloatArray:
    """Enlarge a crop onto a window of `shape` (height, width); well outside the crop the answer is 0."""
    # The edge is repeated by hand as far as the kernel reaches: cv2 fills what lies beyond a constant border at once,
    # but works its way through a repeated one pixel by pixel (most of a turned face's window).
    padded = cv2.copyMakeBorder(crop, _PAD, _PAD, _PAD, _PAD, cv2.BORDER_REPLICATE).astype(np.float32, copy=False)
    shifted = _joined(to_crop[:, :2], to_crop[:, 2] + _PAD)
    return _warp(padded, shifted, (shape[1], shape[0]), kernel, cv2.BORDER_CONSTANT)


def _inside(to_crop: DoubleArray, size: int, shape: tuple[int, int]) -> ByteArray:
    """1 for every pixel of a window whose centre lies within the outermost pixel centres of the crop, else 0."""
    quad = apply_transform(invert_transform(to_crop), [[0, 0], [size - 1, 0], [size - 1, size - 1], [0, size - 1]])
    inside = np.zeros(shape, dtype=np.uint8)
    # The corners are given to 1/65536 pixel; the polygon through the outermost pixel centres is filled, edge included.
    fixed = np.round(quad * 65536.0)
    if np.abs(fixed).max() < 2**31 - 1:
        cv2.fillConvexPoly(inside, fixed.astype(np.int32), 1, lineType=cv2.LINE_8, shift=16)
        return inside
    y, x = np.mgrid[0 : shape[0], 0 : shape[1]]
    position = apply_transform(to_crop, np.stack([x.ravel(), y.ravel()], axis=1)).reshape(*shape, 2)
    within = ((position >= 0) & (position <= size - 1)).all(axis=2)
    return np.asarray(within, dtype=np.uint8)


def _spread_weight(weight: FloatArray, to_crop: DoubleArray, shape: tuple[int, int], inside: ByteArray) -> FloatArray:
    """Enlarge a weight in [0, 1]; exactly 0 where `inside` is."""
    spread = _spread(weight, to_crop, shape, cv2.INTER_LINEAR)
    np.clip(spread, 0.0, 1.0, out=spread)
    spread *= inside
    return spread


def _threefold(weight: FloatArray) -> FloatArray:
    """A weight for each colour, (h, w) -> (h, w, 3): numpy takes far longer to broadcast over a last axis of three."""
    return cv2.merge([weight, weight, weight]).astype(np.float32, copy=False)


# --------------------------------------------------------------------------------------------------------------------
# the two calls


def _check_picture(rgb: npt.NDArray[np.generic]) -> None:
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8 or 0 in rgb.shape:
        raise InputError(f"a picture must be (H, W, 3) uint8 RGB, not {rgb.dtype} {rgb.shape}; use load_picture")


def _check_transforms(
    transforms: npt.ArrayLike | Sequence[npt.ArrayLike], size: int, height: int, width: int
) -> DoubleArray:
    matrices = np.asarray(transforms, dtype=np.float64).reshape(-1, 2, 3)
    for matrix in matrices:
        if not np.isfinite(matrix).all() or _determinant(matrix) <= 1e-12:
            raise InputError("a face's transform is not a similarity without mirroring; align it with similarity()")
        quad = crop_quad(matrix, size)
        reach = _MAX_REACH * max(height, width) + 64
        if np.abs(quad).max() > reach + max(height, width):
            raise InputError(f"a face's crop reaches far beyond the {width}x{height} picture; check its box or points")
    return matrices


def crop_faces_float(
    rgb: ByteArray,
    transforms: npt.ArrayLike | Sequence[npt.ArrayLike],
    size: int = 128,
    *,
    draft: bool = False,
) -> FloatArray:
    """Like `crop_faces`, without the rounding.

    Args:
        rgb: as for `crop_faces`.
        transforms: as for `crop_faces`.
        size: as for `crop_faces`.
        draft: interpolate linearly: free of aliasing too and three times as fast, but a little softer. For crops that
            are only looked at.

    Returns:
        (B, size, size, 3) float32 RGB in [0, 255].
    """
    _check_picture(rgb)
    height, width = rgb.shape[:2]
    matrices = _check_transforms(transforms, size, height, width)
    crops = np.empty((len(matrices), size, size, 3), dtype=np.float32)
    kernel = cv2.INTER_LINEAR if draft else cv2.INTER_CUBIC
    for index, matrix in enumerate(matrices):
        step = _reduction(matrix)
        window = _window(matrix, size, margin=4)
        piece = _average_down(_cut(rgb, window), step)
        crops[index] = _read_crop(piece, _shifted(matrix, window, step), size, kernel)
    return np.clip(crops, 0.0, 255.0, out=crops)


def crop_faces(rgb: ByteArray, transforms: npt.ArrayLike | Sequence[npt.ArrayLike], size: int = 128) -> ByteArray:
    """Aligned crops of all faces of a picture.

    Anti-aliased when a face is larger than the crop, bicubic when it is smaller; a face that is cut by the border is
    completed by the mirrored picture. Only the neighbourhood of each face is touched.

    Args:
        rgb: (H, W, 3) uint8 RGB.
        transforms: B transforms (2, 3) from the picture to the crop, see `similarity`.
        size: side of the crops in pixels.

    Returns:
        (B, size, size, 3) uint8 RGB.

    Raises:
        InputError: not a picture, not a similarity, or a crop that reaches far beyond the picture.
    """
    return np.rint(crop_faces_float(rgb, transforms, size)).astype(np.uint8)


@dataclass
class _Placed:
    """One face on its way back into the picture."""

    transform: DoubleArray
    window: _Window  # what may be written: the crop's bounding window inside the picture
    result: FloatArray
    mask: FloatArray
    change: FloatArray | None = None  # None: nothing is added outside the mask
    taper: FloatArray | None = None
    depth: FloatArray | None = None
    active: FloatArray | None = None


def _clusters(windows: list[_Window]) -> list[list[int]]:
    """Groups of faces whose windows meet, directly or through others."""
    group = list(range(len(windows)))

    def root(index: int) -> int:
        while group[index] != index:
            group[index] = group[group[index]]
            index = group[index]
        return index

    order = sorted(range(len(windows)), key=lambda index: windows[index].x0)
    for position, first in enumerate(order):
        for second in order[position + 1 :]:
            if windows[second].x0 >= windows[first].x1:
                break
            if windows[first].meets(windows[second]):
                group[root(second)] = root(first)
    clusters: dict[int, list[int]] = {}
    for index in range(len(windows)):
        clusters.setdefault(root(index), []).append(index)
    return list(clusters.values())


def paste_faces(
    rgb: ByteArray,
    originals: npt.NDArray[np.generic] | None,
    results: npt.NDArray[np.generic],
    transforms: npt.ArrayLike | Sequence[npt.ArrayLike],
    mask: FloatArray | None = None,
    *,
    surround: bool = True,
    refine: int | None = None,
) -> ByteArray:
    """Put changed crops back into their picture.

    Inside the mask the picture is replaced by the enlarged result, so that nothing of the original's own detail stays.
    Outside the mask only the *change* (result - original crop) is added, fading out towards the border of the crop:
    the surroundings keep their own resolution, and there is no seam. That is for results which resemble the original
    around the face; for others (a blur, a black box) ``surround=False`` leaves everything outside the mask as it is.
    Where masks of neighbours overlap, each pixel goes to the face in whose mask it lies deeper.

    Then ``refine`` rounds of back-projection add what cropping the pasted picture again would miss. Measured on
    crops of 128 with a code of white noise (sigma 4 of 255) added, PSNR of crop(saved picture) against the result
    inside the mask, without and with the default rounds (tests/unit/test_faces_align.py holds the lines):

    ============================  =====  =====  =====  =====  =====
    native size / crop size        0.7    1      1.5    2      3
    ============================  =====  =====  =====  =====  =====
    turned by 7 degrees, dB       39/39  43/50  46/64  47/67  47/69
    turned by 20 degrees, dB      39/39  43/48  46/64  47/67  47/69
    ============================  =====  =====  =====  =====  =====

    (8-bit rounding alone allows 59; above that the re-cropped 8-bit values are the same but for a few. A face
    smaller than the crop has fewer pixels than the code.) Crops that did not change come back inside the mask at
    44 dB and more, and bit-identical outside it.

    Args:
        rgb: (H, W, 3) uint8 RGB; not changed.
        originals: (B, S, S, 3) crops as `crop_faces` gave them, 0..255; None: cropped here. Not used where nothing is
            added outside the mask.
        results: (B, S, S, 3) changed crops, uint8 or float in 0..255.
        transforms: B transforms (2, 3), the ones the crops were made with.
        mask: (S, S) float in [0, 1], or (B, S, S) for one a face; None: `face_mask`.
        surround: whether the change is added outside the mask.
        refine: rounds of back-projection, 0 to 20; None: 2, and 3 for faces not much larger than the crop.

    Returns:
        (H, W, 3) uint8 RGB. A pixel outside every crop, and one outside the masks whose neighbourhood did not
        change, is bit-identical.

    Raises:
        InputError: shapes that do not belong together, or what `crop_faces` refuses.
    """
    _check_picture(rgb)
    height, width = rgb.shape[:2]
    changed = np.asarray(results)
    if changed.ndim != 4 or changed.shape[1] != changed.shape[2] or changed.shape[3] != 3:
        raise InputError(f"results must be (B, S, S, 3) crops, got an array of shape {changed.shape}")
    size = changed.shape[1]
    matrices = _check_transforms(transforms, size, height, width)
    if len(matrices) != len(changed):
        raise InputError(f"{len(changed)} crops do not go with {len(matrices)} transforms")
    if not np.isfinite(changed).all():
        raise InputError("a changed crop holds values that are not numbers; nothing was pasted")
    if refine is not None and not 0 <= refine <= 20:
        raise InputError(f"refine must be 0 to 20 rounds, got {refine}")
    if originals is None:
        before = crop_faces_float(rgb, matrices, size) if surround else changed
    else:
        before = np.asarray(originals)
    if before.shape != changed.shape:
        raise InputError(f"originals of shape {before.shape} do not go with results of shape {changed.shape}")
    weight = face_mask(size) if mask is None else np.asarray(mask, dtype=np.float32)
    fits = weight.shape in ((size, size), (len(changed), size, size))
    if not fits or (weight.size and not (weight.min() >= 0 and weight.max() <= 1)):
        raise InputError(f"the mask must be ({size}, {size}), or one of that size a face, with values in [0, 1]")
    weights = np.broadcast_to(weight, (len(changed), size, size))

    output = rgb.copy()
    windows = [_window(matrix, size, margin=0).clipped(height, width) for matrix in matrices]
    visible = [index for index, window in enumerate(windows) if not window.empty]
    for cluster in _clusters([windows[index] for index in visible]):
        members = [visible[index] for index in cluster]
        faces = [
            _place(
                matrices[index],
                windows[index],
                before[index] if surround else None,
                changed[index],
                weights[index],
                len(members) > 1,
            )
            for index in members
        ]
        if refine == 0 and len(faces) == 1 and faces[0].change is None:
            _replace(output, faces[0])
        else:
            _paste_cluster(output, faces, refine)
    return output


def _place(
    transform: DoubleArray,
    window: _Window,
    before: npt.NDArray[np.generic] | None,
    after: npt.NDArray[np.generic],
    mask: FloatArray,
    crowded: bool,
) -> _Placed:
    """Bring one face's result and weights into the picture's geometry."""
    size = mask.shape[0]
    result = np.clip(after.astype(np.float32), 0.0, 255.0)
    to_crop = _shifted(transform, window, 1)
    shape = (window.y1 - window.y0, window.x1 - window.x0)
    inside = _inside(to_crop, size, shape)
    placed = _Placed(
        transform=transform,
        window=window,
        result=result,
        mask=_spread_weight(mask, to_crop, shape, inside),
    )
    if crowded:
        depth = cv2.distanceTransform((mask > 0).astype(np.uint8), cv2.DIST_L2, 5)
        placed.depth = _spread(
            np.asarray(depth / max(float(depth.max()), 1e-6), np.float32), to_crop, shape, cv2.INTER_LINEAR
        )
    if before is None:
        return placed
    change = result - before.astype(np.float32)
    touched = (change != 0).any(axis=2)
    if not touched.any():
        return placed
    placed.change = change
    placed.taper = _spread_weight(border_taper(size), to_crop, shape, inside)
    if not touched.all():
        # The enlarging kernel reaches two crop pixels and more are lost in between; beyond four an unchanged
        # surrounding must stay untouched.
        near = cv2.dilate(touched.astype(np.uint8), np.ones((9, 9), np.uint8)).astype(np.float32)
        placed.active = _spread_weight(cv2.blur(near, (3, 3)) * near, to_crop, shape, inside)
    return placed


def _replace(output: ByteArray, face: _Placed) -> None:
    """Paste a face that stands alone, and that nobody reads again, into `output`, in place."""
    to_crop = _shifted(face.transform, face.window, 1)
    kernel = cv2.INTER_LINEAR if native_ratio(face.transform) <= _LINEAR_UP_TO else cv2.INTER_CUBIC
    pasted = _spread(face.result, to_crop, face.mask.shape, kernel)
    place = output[face.window.slices]
    pasted -= place
    pasted *= _threefold(face.mask)
    pasted += place
    place[...] = np.rint(np.clip(pasted, 0.0, 255.0, out=pasted), out=pasted)


def _paste_cluster(output: ByteArray, faces: list[_Placed], refine: int | None) -> None:
    """Paste faces that may overlap one another into `output`, in place."""
    height, width = output.shape[:2]
    size = faces[0].result.shape[0]
    reads = [_window(face.transform, size, margin=4) for face in faces]
    area = faces[0].window
    for face, read in zip(faces, reads, strict=True):
        area = area.union(face.window).union(_source_window(read, height, width))
    area = _aligned(area, max(_reduction(face.transform) for face in faces)).clipped(height, width)
    picture = output[area.slices].astype(np.float32)
    inside, outside = _shares(faces)

    canvas = picture.copy()
    for face, replace, add in zip(faces, inside, outside, strict=True):
        where = face.window.within(area)
        to_crop = _shifted(face.transform, face.window, 1)
        delta = _spread(face.result, to_crop, replace.shape)
        delta -= picture[where]
        delta *= _threefold(replace)
        if face.change is not None and add is not None:
            added = _spread(face.change, to_crop, replace.shape)
            added *= _threefold(add)
            delta += added
        canvas[where] += delta
    np.clip(canvas, 0.0, 255.0, out=canvas)

    for face, read, replace, add in zip(faces, reads, inside, outside, strict=True):
        rounds = refine
        if rounds is None:
            rounds = _REFINE_FINE if native_ratio(face.transform) >= _REFINE_RATIO else _REFINE_COARSE
        if rounds:
            share = replace
            if add is not None:
                share = replace + (add if face.active is None else add * face.active)
            _back_project(canvas, area, face, read, share, (height, width), rounds)
    output[area.slices] = np.rint(canvas, out=canvas)


def _aligned(window: _Window, step: int) -> _Window:
    """Widen a window to whole blocks of `step`."""
    return _Window(
        window.x0 // step * step, window.y0 // step * step, -(-window.x1 // step) * step, -(-window.y1 // step) * step
    )


def _shares(faces: list[_Placed]) -> tuple[list[FloatArray], list[FloatArray | None]]:
    """For each face the weight with which it replaces, and the weight with which its change is added."""
    if len(faces) == 1:
        face = faces[0]
        return [face.mask], [None if face.taper is None else (1.0 - face.mask) * face.taper]
    inside: list[FloatArray] = []
    outside: list[FloatArray | None] = []
    for face in faces:
        assert face.depth is not None  # noqa: S101 (set for every face of a crowded cluster)
        cover = face.mask.copy()
        taper_sum = np.zeros_like(face.mask) if face.taper is None else face.taper.copy()
        own = _claim(face.mask, face.depth)
        claims = own.copy()
        for other in faces:
            if other is face or not face.window.meets(other.window):
                continue
            assert other.depth is not None  # noqa: S101
            common = face.window.intersection(other.window)
            here, there = common.within(face.window), common.within(other.window)
            cover[here] = np.maximum(cover[here], other.mask[there])
            if other.taper is not None:
                taper_sum[here] += other.taper[there]
            claims[here] += _claim(other.mask[there], other.depth[there])
        inside.append((cover * own / np.maximum(claims, 1e-12)).astype(np.float32))
        if face.taper is None:
            outside.append(None)
        else:
            outside.append(((1.0 - cover) * face.taper / np.maximum(taper_sum, 1.0)).astype(np.float32))
    return inside, outside


def _claim(mask: FloatArray, depth: FloatArray) -> FloatArray:
    """How strongly a face claims a pixel: steep in its depth in the mask, so that overlaps split near their middle."""
    return np.where(mask > 0, np.power(np.clip(depth, 1e-3, 1.0), 8), 0.0).astype(np.float32)


def _steps(rounds: int) -> list[float]:
    """Step sizes of the back-projection: the Chebyshev steps for gains of `_GAIN_RANGE`, the small ones first."""
    low, high = _GAIN_RANGE
    angles = [math.pi * (2 * index + 1) / (2 * rounds) for index in range(rounds)]
    return [1.0 / ((high + low) / 2.0 + (high - low) / 2.0 * math.cos(angle)) for angle in angles]


def _back_project(
    canvas: FloatArray,
    area: _Window,
    face: _Placed,
    read: _Window,
    share: FloatArray,
    picture_shape: tuple[int, int],
    rounds: int,
) -> None:
    """Add to the canvas what a crop of it would miss of the face's result."""
    size = face.result.shape[0]
    step = _reduction(face.transform)
    local = _Window(read.x0 - area.x0, read.y0 - area.y0, read.x1 - area.x0, read.y1 - area.y0)
    piece = _average_down(_cut(canvas, local), step)
    own = face.window
    inner, own_local = own.within(read), own.within(area)
    share_piece = np.zeros((read.y1 - read.y0, read.x1 - read.x0), dtype=np.float32)
    share_piece[inner] = share
    share_piece = _average_down(share_piece, step)
    to_crop = _shifted(face.transform, read, step)
    # Where little or nothing may be written (the taper, the edge of a hard mask) nothing is asked for either: the
    # difference there would never vanish, and its enlargement would ring into the face.
    writable = cv2.erode(_read_crop(share_piece, to_crop, size, cv2.INTER_LINEAR), np.ones((3, 3), np.uint8))
    writable = np.asarray(np.clip(writable, 0.0, 1.0), dtype=np.float32)
    if read.clipped(*picture_shape) != read:
        writable *= _stored(face.transform, size, picture_shape)
    wanted = np.zeros_like(face.result)
    writable_colours, share_colours = _threefold(writable), _threefold(share_piece)
    for step_size in _steps(rounds):
        missing = face.result - _read_crop(piece, to_crop, size)
        missing *= writable_colours
        missing *= np.float32(step_size)
        if step > 1:
            wanted += missing
        more = _spread(missing, to_crop, piece.shape[:2])
        more *= share_colours
        more += piece
        piece = np.clip(more, 0.0, 255.0, out=more)
    if step == 1:
        # Where the share is 0 the piece is what the canvas was.
        canvas[own_local] = piece[inner]
        return
    enlarged = _spread(wanted, _shifted(face.transform, own, 1), share.shape)
    enlarged *= _threefold(share)
    enlarged += canvas[own_local]
    canvas[own_local] = np.clip(enlarged, 0.0, 255.0, out=enlarged)


def _stored(transform: DoubleArray, size: int, picture_shape: tuple[int, int]) -> FloatArray:
    """1 for crop pixels inside the picture; those beyond its border are mirror images, where nothing can be stored."""
    height, width = picture_shape
    back = invert_transform(transform)
    index = np.arange(size, dtype=np.float64)
    x = back[0, 0] * index[None, :] + (back[0, 1] * index[:, None] + back[0, 2])
    y = back[1, 0] * index[None, :] + (back[1, 1] * index[:, None] + back[1, 2])
    return ((x >= -0.5) & (x <= width - 0.5) & (y >= -0.5) & (y <= height - 0.5)).astype(np.float32)
