"""The keep-list: people, given by example pictures, whose faces are left as they are.

A face is kept only when a recogniser takes it for one of the examples with some certainty. The thresholds are stricter
than those for unlocking a phone: a friend who is blurred is a smaller harm than a stranger who is shown.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from facezoo.errors import InputError, NoFaceError
from facezoo.faces.align import ByteArray, crop_faces, similarity
from facezoo.faces.detect import Detector, get_detector
from facezoo.faces.mask import FloatArray
from facezoo.faces.picture import PictureSource, load_picture
from facezoo.images.folders import walk_folder

if TYPE_CHECKING:
    from facezoo.recognition import Recogniser

#: Least cosine similarity to an example. SFace: same person about .5 to .8, others below .36 (OpenCV's threshold).
DEFAULT_COSINE = 0.5
#: Greatest Euclidean distance to an example. dlib: same person below .6 (its threshold), mostly .25 to .45.
DEFAULT_EUCLIDEAN = 0.45
_BATCH = 32


class KeepList:
    """People who are left as they are.

    Args:
        examples: (E, S, S, 3) uint8 aligned crops (see `crop_faces`), one or more a person, any number of people.
        recogniser: compares faces; None: SFace. torch is loaded when it is first used.
        threshold: cosine recognisers: least similarity, -1 to 1; Euclidean ones: greatest distance, above 0. None:
            `DEFAULT_COSINE` or `DEFAULT_EUCLIDEAN`.

    Raises:
        InputError: no examples, wrong shapes, or a threshold out of range.
    """

    def __init__(
        self,
        examples: npt.NDArray[np.generic],
        recogniser: Recogniser | None = None,
        threshold: float | None = None,
    ) -> None:
        crops = _checked(np.asarray(examples))
        if len(crops) == 0:
            raise InputError("the keep-list has no examples; give at least one picture of each person")
        if recogniser is None:
            from facezoo.recognition import load_recogniser

            recogniser = load_recogniser("sface")
        self.recogniser = recogniser
        self._cosine = recogniser.metric == "cosine"
        if threshold is None:
            threshold = DEFAULT_COSINE if self._cosine else DEFAULT_EUCLIDEAN
        if (self._cosine and not -1.0 < threshold <= 1.0) or (not self._cosine and threshold <= 0.0):
            raise InputError(f"{threshold} is no threshold for {recogniser.name}; leave it out for the default")
        self.threshold = float(threshold)
        self._examples = self._embed(crops)

    @classmethod
    def from_pictures(
        cls,
        pictures: Iterable[PictureSource],
        recogniser: Recogniser | None = None,
        threshold: float | None = None,
        detector: Detector | None = None,
    ) -> KeepList:
        """Make a keep-list from whole pictures with exactly one face each.

        Raises:
            NoFaceError: a picture without a face.
            InputError: a picture with several faces (which one is meant?), or one that cannot be read.
        """
        finder = detector or get_detector()
        crops = []
        for number, source in enumerate(pictures, start=1):
            name = str(source) if isinstance(source, str | os.PathLike) else f"example {number}"
            rgb = load_picture(source).pixels
            faces = finder.detect(rgb)
            if not faces:
                raise NoFaceError(f"{name}: no face was found in this example of the keep-list; give another picture")
            if len(faces) > 1:
                raise InputError(f"{name}: {len(faces)} faces in this example of the keep-list; cut one out")
            crops.append(crop_faces(rgb, [similarity(faces[0].points)])[0])
        examples = np.stack(crops) if crops else np.empty((0, 128, 128, 3), dtype=np.uint8)
        return cls(examples, recogniser, threshold)

    @classmethod
    def from_folder(
        cls,
        folder: str | os.PathLike[str],
        recogniser: Recogniser | None = None,
        threshold: float | None = None,
        detector: Detector | None = None,
    ) -> KeepList:
        """Make a keep-list from all pictures in a folder and its subfolders (or from one picture).

        Raises:
            InputError: no such folder, no picture in it, or a file in it that may be one and cannot be read; else as
                `from_pictures`.
        """
        root = Path(folder)
        if root.is_file():
            return cls.from_pictures([root], recogniser, threshold, detector)
        if not root.is_dir():
            raise InputError(f"{root} does not exist; give a folder with pictures of the people to keep")
        listing = walk_folder(root)
        if lost := [item for item in listing.left_out if item.counts]:
            # Somebody who was to be kept would be covered: better to say so than to leave an example out.
            raise InputError(f"{root / lost[0].name} {lost[0].reason}")
        if not listing.pictures:
            raise InputError(f"{root} holds no pictures; put one or more of each person to keep there")
        return cls.from_pictures([root / name for name in listing.pictures], recogniser, threshold, detector)

    def __len__(self) -> int:
        return len(self._examples)

    def scores(self, crops: npt.NDArray[np.generic]) -> FloatArray:
        """Closeness of each face to its nearest example.

        Args:
            crops: (B, S, S, 3) uint8 aligned crops.

        Returns:
            (B,) float32: cosine similarity (higher is nearer) or Euclidean distance (lower is nearer).
        """
        faces = _checked(np.asarray(crops))
        if len(faces) == 0:
            return np.empty(0, dtype=np.float32)
        vectors = self._embed(faces)
        if self._cosine:
            return (vectors @ self._examples.T).max(axis=1).astype(np.float32)
        apart = np.linalg.norm(vectors[:, None] - self._examples[None], axis=2)
        return apart.min(axis=1).astype(np.float32)

    def keeps(self, crops: npt.NDArray[np.generic]) -> npt.NDArray[np.bool_]:
        """Which faces belong to people of the list: (B,) bool. A score that is not a number keeps nothing."""
        scores = self.scores(crops)
        return scores >= self.threshold if self._cosine else scores <= self.threshold

    def _embed(self, crops: ByteArray) -> FloatArray:
        import torch

        vectors = []
        with torch.inference_mode():
            for start in range(0, len(crops), _BATCH):
                batch = torch.from_numpy(np.ascontiguousarray(crops[start : start + _BATCH])).permute(0, 3, 1, 2)
                vectors.append(self.recogniser(batch.float() / 127.5 - 1.0).float().cpu().numpy())
        return np.concatenate(vectors).astype(np.float32)


def _checked(crops: npt.NDArray[np.generic]) -> ByteArray:
    if crops.ndim != 4 or crops.shape[1] != crops.shape[2] or crops.shape[3] != 3 or crops.dtype != np.uint8:
        raise InputError(f"faces must be (B, S, S, 3) uint8 aligned crops, got {crops.dtype} of shape {crops.shape}")
    return crops.astype(np.uint8, copy=False)
