"""Options of k-Same. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from facezoo.methods.options import Options, option

__all__ = [
    "KSameEigenOptions",
    "KSameFurthestOptions",
    "KSameModelOptions",
    "KSameOptions",
    "KSamePixelOptions",
    "KSameSelectOptions",
]


@dataclass(frozen=True)
class KSameOptions(Options):
    """Options that both forms share."""

    method: ClassVar[str] = "k-Same"

    gallery: object = option(
        None,
        kind="object",
        doc="The gallery: path of a packed set (see `facezoo prepare`), or a facezoo.methods.ksame.gallery.Gallery."
        " Required. Its people's faces are mixed into the results, so their consent is needed.",
    )
    k: int = option(
        10,
        kind="integer",
        doc="How many people share one face. At most the number of people in the gallery. Weak: 2.",
        unit="people",
        source="Newton et al. 2005 study 2..100; 10 bounds the risk at 10 %",
        minimum=2,
    )
    mode: str = option(
        "closed",
        kind="choice",
        doc="closed: only gallery pictures are accepted, and at least k people get the same face (the guarantee of the "
        "papers). open: any face, replaced by the mean of its k nearest gallery people, WITHOUT that guarantee.",
        source="closed: Newton et al. 2005; open: no paper guarantees anything",
        choices=("closed", "open"),
    )
    repeated_people: str = option(
        "refuse",
        kind="choice",
        doc="What to do when the gallery shows a person more than once: refuse the gallery, or keep the first picture.",
        source="book, section 3.1.2: k-Same assumes one picture a person",
        choices=("refuse", "first"),
    )


@dataclass(frozen=True)
class KSamePixelOptions(KSameOptions):
    """Options of ``ksame_pixel``."""

    method: ClassVar[str] = "ksame_pixel"


@dataclass(frozen=True)
class KSameEigenOptions(KSameOptions):
    """Options of ``ksame_eigen``."""

    method: ClassVar[str] = "ksame_eigen"

    components: int = option(
        100,
        kind="integer",
        doc="Eigenfaces kept (at most people - 1 exist).",
        unit="principal components",
        source="not given in the book; enough for recognisable expression and light",
        minimum=1,
        maximum=1000,
    )


@dataclass(frozen=True)
class KSameSelectOptions(KSameOptions):
    """Options of ``ksame_select``."""

    method: ClassVar[str] = "ksame_select"

    utility: str = option(
        "expression",
        kind="choice",
        doc="The label that a published face keeps: only people with the same value share a face. Every value that "
        "occurs in the gallery must have at least k people. Known to whoever sees the face, so it is not hidden.",
        source="Gross et al. 2005: expression or gender",
        choices=("sex", "age_group", "expression"),
    )


@dataclass(frozen=True)
class KSameModelOptions(KSameOptions):
    """Options of ``ksame_m``."""

    method: ClassVar[str] = "ksame_m"

    shape_weight: float = option(
        1.0,
        kind="number",
        doc="Weight of the shape against the appearance in the search for similar people; 0 compares looks only.",
        source="active appearance models weigh by variance; 1 does that here",
        minimum=0.0,
        maximum=100.0,
    )


@dataclass(frozen=True)
class KSameFurthestOptions(KSameOptions):
    """Options of ``ksame_furthest``."""

    method: ClassVar[str] = "ksame_furthest"
