"""Options of identity_rotation at use. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from facezoo.methods.options import Options, option


@dataclass(frozen=True)
class IdentityRotationOptions(Options):
    """Privacy level and whether the picture carries the code it is recovered from."""

    method: ClassVar[str] = "identity_rotation"

    level: int = option(
        4,
        kind="integer",
        doc=(
            "privacy level d: the identity is turned by 70, 75, 80, 85, 95, ..., 120 degrees; near 90 the result tells "
            "least about the original (beyond it, it is the original's opposite)"
        ),
        source="book, section 6.4.1; default: the level whose cosine to the original is smallest",
        minimum=0,
        maximum=9,
    )
    conceal: bool = option(
        True,
        kind="flag",
        doc="hide the encrypted code in the picture; off: the book's method alone, with its weak closed-form recovery",
        source="ours, see the method's README",
    )
    pseudonym: str = option(
        "person",
        kind="choice",
        doc=(
            "person: one person becomes the same stranger in every picture under a key, so a data set keeps who is "
            "who (and anybody can link the pictures); picture: another stranger in every picture, which links less. "
            "Only for models that paint on a mesh"
        ),
        source="ours",
        choices=("person", "picture"),
    )
