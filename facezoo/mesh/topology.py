"""The face mesh's 468 points by name, its triangles, its mirror image and its canonical shape. No torch.

Source: MediaPipe's canonical face model (Apache-2.0), as ``scripts/convert_mesh.py`` read it. Left and right are those
of the picture: ``EYES[0]`` is the eye at the left of an upright picture, the person's right one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from facezoo.errors import CheckpointError
from facezoo.files import sha256_bytes

__all__ = [
    "BROWS",
    "CANONICAL",
    "EYES",
    "EYE_CORNERS",
    "INNER_LIPS",
    "LIPS",
    "MIRROR",
    "NOSE",
    "OUTER_EYE_CORNERS",
    "OVAL",
    "POINTS",
    "POSE_WEIGHTS",
    "TRIANGLES",
    "UV",
    "read_asset",
]

ASSETS: Final = Path(__file__).resolve().parents[1] / "assets" / "mesh"

#: sha256 of the bundled files (scripts/convert_mesh.py prints them).
BUNDLED: Final = {
    "canonical": "41a68be20606421723e4b2d5d12301c9088141122c9fc616f34d574b09335143",
    "face": "53941033abc1dbaac4057ea50c2d71b578bacceab5a51ed09697eac3959ba12a",
    "iris": "d17e343249c41ac2a08c97afdee202c9a0106a920a4a448ca2688119b7f5f3f6",
}


def read_asset(name: str) -> bytes:
    """The content of a bundled file after checking its sha256.

    Args:
        name: "canonical", "face" or "iris".

    Raises:
        CheckpointError: it is missing or damaged.
    """
    path = ASSETS / f"{name}.safetensors"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"the mesh file {path} cannot be read ({error.strerror}); reinstall facezoo") from None
    if sha256_bytes(content) != BUNDLED[name]:
        raise CheckpointError(f"the mesh file {path} is damaged (its sha256 differs); reinstall facezoo")
    return content


def _canonical() -> dict[str, npt.NDArray[np.generic]]:
    """The bundled canonical mesh; its arrays are read-only."""
    from safetensors.numpy import load

    tensors = load(read_asset("canonical"))
    for values in tensors.values():
        values.setflags(write=False)
    return tensors


def _mirror(points: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """For each point the one that stands in its place in the mirrored shape (which is exactly symmetric)."""
    distances = np.abs(points[:, None] * (-1.0, 1.0, 1.0) - points[None]).sum(axis=2)
    found = distances.argmin(axis=1)
    found.setflags(write=False)
    return found


_TENSORS = _canonical()

#: Number of points.
POINTS: Final = 468

#: (468, 3) float32: the canonical face in its own unit (about a centimetre): x to the picture's right, y up, z towards
#: the camera; the outer corners of the eyes are 8.89 apart.
CANONICAL: Final[npt.NDArray[np.float32]] = _TENSORS["points"].astype(np.float32, copy=False)

#: (468, 2) float32 in [0, 1]: the points in the canonical texture, x to the right, y *up* from the lower edge.
UV: Final[npt.NDArray[np.float32]] = _TENSORS["uv"].astype(np.float32, copy=False)

#: (468,) float32: how much each point counts when the head's pose is found (0 for most; few that move in speech).
POSE_WEIGHTS: Final[npt.NDArray[np.float32]] = _TENSORS["pose_weights"].astype(np.float32, copy=False)

#: (898, 3) int64: corners of the triangles. They cover the face to its oval, eyes and mouth included, and each is
#: listed counter-clockwise as one who looks at the face sees it: ``(b - a) x (c - a)`` is negative in pixels (y down).
TRIANGLES: Final[npt.NDArray[np.int64]] = _TENSORS["triangles"].astype(np.int64)
TRIANGLES.setflags(write=False)

#: (468,) int64: the mirrored face's point ``i`` is the face's point ``MIRROR[i]``, x mirrored.
MIRROR: Final[npt.NDArray[np.int64]] = _mirror(CANONICAL)

#: The border of the mesh, a closed line of 36 points from the middle of the forehead, clockwise in the picture.
OVAL: Final = (
    10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377,
    152, 148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109,
)  # fmt: skip

#: Outer edge of the lips, closed, from the left corner over the upper lip; and the edge of the mouth's opening.
LIPS: Final = (
    61, 185, 40, 39, 37, 0, 267, 269, 270, 409, 291, 375, 321, 405, 314, 17, 84, 181, 91, 146,
)  # fmt: skip
INNER_LIPS: Final = (
    78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308, 324, 318, 402, 317, 14, 87, 178, 88, 95,
)  # fmt: skip

#: Edges of the lids, closed, each from its outer corner over the upper lid: the eye at the picture's left, the other.
EYES: Final = (
    (33, 246, 161, 160, 159, 158, 157, 173, 133, 155, 154, 153, 145, 144, 163, 7),
    (263, 466, 388, 387, 386, 385, 384, 398, 362, 382, 381, 380, 374, 373, 390, 249),
)

#: (outer, inner) corner of each eye, and the two outer ones, whose distance is the measure of a face.
EYE_CORNERS: Final = ((33, 133), (263, 362))
OUTER_EYE_CORNERS: Final = (33, 263)

#: Each brow: its upper edge from the outside to the middle, then its lower edge back.
BROWS: Final = (
    (70, 63, 105, 66, 107, 55, 65, 52, 53, 46),
    (300, 293, 334, 296, 336, 285, 295, 282, 283, 276),
)

#: Ridge, tip, wings and bottom of the nose.
NOSE: Final = (168, 6, 197, 195, 5, 4, 1, 19, 94, 2, 98, 97, 326, 327, 129, 358, 64, 294, 48, 278)
