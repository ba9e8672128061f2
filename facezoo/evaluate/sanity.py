"""Subjects with known answers: a benchmark that judges them wrongly is broken."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from facezoo.errors import InputError

__all__ = ["SANITY_ROWS", "sanity_pictures"]

ByteArray = npt.NDArray[np.uint8]

#: Names of the rows, and what each must show.
SANITY_ROWS = {
    "identity": "the picture itself: about 0 % protected",
    "black_box": "nothing left: 100 % protected",
    "other_person": "a random other person's picture: taken for the original at about the false accept rate",
    "heavy_blur": "Gaussian blur of a tenth of the crop: mostly protected",
}


def _other_people(identities: npt.NDArray[np.integer], seed: int) -> npt.NDArray[np.int64]:
    """For each picture the index of one that shows somebody else."""
    random = np.random.default_rng(seed)
    chosen = np.empty(len(identities), dtype=np.int64)
    for index, person in enumerate(identities):
        others = np.flatnonzero(identities != person)
        if len(others) == 0:
            raise InputError("The evaluation needs pictures of at least two people.")
        chosen[index] = random.choice(others)
    return chosen


def sanity_pictures(name: str, originals: ByteArray, identities: npt.NDArray[np.integer], seed: int) -> ByteArray:
    """Makes the pictures of a sanity row.

    Args:
        name: a name of ``SANITY_ROWS``.
        originals: (N, S, S, 3) uint8.
        identities: (N,) who is on each.
        seed: of the choice of other people.

    Returns:
        (N, S, S, 3) uint8.

    Raises:
        InputError: if there is only one person.
    """
    if name == "identity":
        return originals.copy()
    if name == "black_box":
        return np.zeros_like(originals)
    if name == "other_person":
        return originals[_other_people(identities, seed)]
    if name != "heavy_blur":
        raise InputError(f"No sanity row is called {name!r}; there are {', '.join(SANITY_ROWS)}.")
    blur = ImageFilter.GaussianBlur(originals.shape[1] / 10)
    return np.stack([np.asarray(Image.fromarray(picture).filter(blur)) for picture in originals])
