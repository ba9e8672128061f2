"""How far recognisers are from knowing the demo's people again: one row a picture, and the table of the rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from facezoo.recognition.loader import load_recogniser

__all__ = ["THRESHOLD", "DemoRow", "Judge", "table"]

ByteArray = npt.NDArray[np.uint8]

THRESHOLD: Final = 0.6
"""dlib's own threshold: below this Euclidean distance its author takes two faces for the same person."""


@dataclass(frozen=True)
class DemoRow:
    """One way of treating the picture.

    Attributes:
        name: model, or what was done: "anonymized, key A".
        section: "original", "classics" or the learned model's name.
        picture: (H, W, 3) uint8.
        cosine: mean over the faces of SFace's cosine similarity to the original.
        euclidean: mean over the faces of dlib's distance to the original.
        recognised: number of faces taken for the original at `THRESHOLD`.
        faces: number of faces.
        seconds: time of the call, detection included.
        recovery: whether being taken for the original is what is wanted.
    """

    name: str
    section: str
    picture: ByteArray
    cosine: float
    euclidean: float
    recognised: int
    faces: int
    seconds: float
    recovery: bool = False


class Judge:
    """Compares faces with the original's by dlib's network and SFace, at the places where the original's faces are.

    Args:
        original: (H, W, 3) uint8 RGB.
        points: (N, 5, 2), the five points of each face in pixels.
    """

    def __init__(self, original: ByteArray, points: npt.NDArray[Any]) -> None:
        from facezoo.faces.align import similarity

        self._recognisers = (load_recogniser("dlib"), load_recogniser("sface"))
        self._transforms = np.stack([similarity(five, 128) for five in points])
        self._original = self._embed(original)

    def _embed(self, picture: ByteArray) -> list[npt.NDArray[np.float64]]:
        import torch

        from facezoo.faces.align import crop_faces_float

        crops = crop_faces_float(picture, self._transforms, 128)
        tensor = (torch.from_numpy(crops).permute(0, 3, 1, 2) / 127.5 - 1.0).clamp(-1.0, 1.0)
        with torch.inference_mode():
            return [np.asarray(network(tensor).double().numpy()) for network in self._recognisers]

    def row(self, name: str, section: str, picture: ByteArray, seconds: float, *, recovery: bool = False) -> DemoRow:
        """Judge one picture of the original's size."""
        (dlib, sface), (dlib_original, sface_original) = self._embed(picture), self._original
        lengths = np.linalg.norm(sface, axis=1) * np.linalg.norm(sface_original, axis=1)
        cosines = (sface * sface_original).sum(axis=1) / lengths
        distances = np.linalg.norm(dlib - dlib_original, axis=1)
        return DemoRow(
            name=name,
            section=section,
            picture=picture,
            cosine=float(cosines.mean()),
            euclidean=float(distances.mean()),
            recognised=int((distances < THRESHOLD).sum()),
            faces=len(distances),
            seconds=seconds,
            recovery=recovery,
        )


def table(rows: Sequence[DemoRow]) -> list[str]:
    """The rows as lines of text."""
    cells = [("MODEL", "DLIB DISTANCE", "TAKEN FOR ORIGINAL", "SFACE SIMILARITY", "SECONDS")]
    section = ""
    for row in rows:
        listed = row.section in ("original", "classics")
        if not listed and row.section != section:
            cells.append((row.section, "", "", "", ""))
        section = row.section
        cells.append(
            (
                row.name if listed else f"  {row.name}",
                f"{row.euclidean:.2f}",
                f"{row.recognised} of {row.faces}",
                f"{row.cosine:.2f}",
                f"{row.seconds:.1f}" if row.section != "original" else "",
            )
        )
    widths = [max(len(line[column]) for line in cells) for column in range(5)]
    return [
        (
            line[0].ljust(widths[0])
            + "".join("  " + text.rjust(width) for text, width in zip(line[1:], widths[1:], strict=True))
        ).rstrip()
        for line in cells
    ]
