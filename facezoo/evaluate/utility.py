"""What is left for other uses of a picture: is a face found, and where, compared with the original."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from facezoo.errors import InputError
from facezoo.faces.detect import Detector, DetectorOptions, get_detector
from facezoo.metrics import bootstrap_mean, wilson

__all__ = ["Found", "compare_found", "find_faces", "utility_row"]

ByteArray = npt.NDArray[np.uint8]

_GREY = 128


@dataclass(frozen=True)
class Found:
    """The largest face of a picture, in pixels of the crop.

    Attributes:
        box: x0, y0, x1, y1.
        points: (5, 2).
    """

    box: npt.NDArray[np.float64]
    points: npt.NDArray[np.float64]


def find_faces(pictures: ByteArray, detector: Detector) -> list[Found | None]:
    """The largest face of each crop (N, S, S, 3), on a grey margin of half its size: detectors expect surroundings."""
    side = pictures.shape[1]
    margin = side // 2
    found: list[Found | None] = []
    for picture in pictures:
        canvas = np.full((side + 2 * margin, side + 2 * margin, 3), _GREY, dtype=np.uint8)
        canvas[margin : margin + side, margin : margin + side] = picture
        faces = detector.detect(canvas)
        if not faces:
            found.append(None)
            continue
        face = max(faces, key=lambda f: (f.box[2] - f.box[0]) * (f.box[3] - f.box[1]))
        box = np.asarray(face.box, dtype=np.float64) - margin
        found.append(Found(box, np.asarray(face.points, dtype=np.float64) - margin))
    return found


def compare_found(originals: list[Found | None], results: list[Found | None], seed: int = 0) -> dict[str, Any]:
    """Detection rate and distances (iFADIT paper, Table 2: mean absolute difference of coordinates).

    Args:
        originals: what is found on the originals; a picture without a face there is left out altogether.
        results: what is found on the results.
        seed: of the bootstrap.

    Returns:
        ``detected``, ``box_l1`` and ``points_l1`` (pixels of the crop, where both are found), with 95 % intervals.

    Raises:
        InputError: lists of two lengths, or no original with a face.
    """
    if len(originals) != len(results):
        raise InputError(f"{len(originals)} originals cannot be compared with {len(results)} results")
    known = [(a, b) for a, b in zip(originals, results, strict=True) if a is not None]
    if not known:
        raise InputError("the detector finds no face on any original; there is nothing to compare")
    both = [(a, b) for a, b in known if b is not None]
    boxes = [float(np.abs(a.box - b.box).mean()) for a, b in both]
    points = [float(np.abs(a.points - b.points).mean()) for a, b in both]
    return {
        "detected": wilson(len(both), len(known)).to_dict(),
        "box_l1": bootstrap_mean(boxes, seed).to_dict(),
        "points_l1": bootstrap_mean(points, seed).to_dict(),
    }


def utility_row(originals: ByteArray, results: ByteArray, name: str, seed: int = 0) -> dict[str, Any]:
    """``compare_found`` of two sets of crops (N, S, S, 3) by one detector."""
    smallest = max(4.0, originals.shape[1] / 4)
    options = DetectorOptions(minimum_face=smallest, rotations=False)
    detector = get_detector(name, options)
    row = compare_found(find_faces(originals, detector), find_faces(results, detector), seed)
    return {"detector": name, "options": asdict(options), **row}
