"""People to hide among, from the measured set itself, for the methods that want some (k-Same, dp_kanonymity)."""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from facezoo.data.packed import PackedFaces
from facezoo.hub.manifest import resolve_model
from facezoo.methods.ksame.gallery import LABELS, Gallery
from facezoo.registry import load_options_class

__all__ = ["first_pictures", "own_people"]


def first_pictures(packed: PackedFaces) -> npt.NDArray[np.int64]:
    """Rows of everybody's first picture, in the set's order."""
    rows: npt.NDArray[np.int64] = np.sort(np.unique(np.asarray(packed.identity), return_index=True)[1]).astype(np.int64)
    return rows


def own_people(
    model: str, data: str | os.PathLike[str], options: Mapping[str, object], varied: str = ""
) -> tuple[dict[str, object], str]:
    """People to hide among, from the measured set itself, for a method that wants some and was given none.

    Args:
        model: as ``facezoo.from_pretrained`` takes it.
        data: packed set.
        options: that are given.
        varied: the option on the horizontal axis.

    Returns:
        The options that are added, and in words who the people are ("" where nothing was added).

    Raises:
        UnknownNameError: no such model.
    """
    kind = load_options_class(resolve_model(model).method)
    known = kind.documented()
    given = {*options, varied}
    if "gallery" in known and "gallery" not in given:
        packed = PackedFaces(data)
        rows = first_pictures(packed)
        labels = {name: np.asarray(packed.array(name))[rows] for name in LABELS if name in packed}
        points = None if packed.points is None else np.asarray(packed.points)[rows]
        gallery = Gallery(packed.batch(rows), np.asarray(packed.identity)[rows], points=points, labels=labels)
        return {"gallery": gallery}, f"gallery: the first pictures of the {len(rows)} people of the set"
    if "reference" in known and "reference" not in given:
        packed = PackedFaces(data)
        count = len(first_pictures(packed))
        added: dict[str, object] = {"reference": os.fspath(data)}
        people = f"reference: the {count} people of the set ({len(packed)} pictures), with the measured ones"
        defaults = kind.defaults()
        wanted, share = int(str(options.get("k", defaults["k"]))), float(str(defaults["gamma"]))
        if "gamma" not in given and varied != "k" and count * share < wanted <= count:
            # The method's own sample is for sets of many thousands; k people must be among those drawn.
            added["gamma"] = min(1.0, 2 * wanted / count)
            people += f", a sample of {added['gamma']:.2g} of them instead of {share:g}, or there would not be {wanted}"
        return added, people
    return {}, ""
