"""Options of identity_dp at use. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from facezoo.methods.options import Options, option
from facezoo.privacy.release import randomness_option


@dataclass(frozen=True)
class IdentityDPOptions(Options):
    """The privacy budget of a face, and what the noise is scaled by."""

    method: ClassVar[str] = "identity_dp"

    epsilon: float = option(
        6.0,
        kind="number",
        doc=(
            "privacy loss of one face; smaller is more private. Below about 10 the identity is next to pure noise, "
            "above about 100 people become recognisable again. The same person in several pictures pays for each "
            "(see --budget)"
        ),
        source="book, section 5.4.4: 0.01 to 800, recommended 0.5 to 7; Table 5.1: 6 and 0.57",
        minimum=0.01,
        maximum=800,
    )
    sensitivity: str = option(
        "sound",
        kind="choice",
        doc=(
            "what the noise is scaled by. sound: 2 sqrt(dimensions), the diameter of the unit sphere in l1, which no "
            "two faces can exceed: epsilon is then a guarantee. book: the greatest distance that was seen among real "
            "faces (5.12), which is smaller; the noise is weaker by that factor and another face may exceed it, so "
            "that epsilon is nominal and the record says 'none'"
        ),
        source="sound: geometry of the sphere; book: equation 5.12",
        choices=("sound", "book"),
    )
    identity: str = option(
        "natural",
        kind="choice",
        doc=(
            "what becomes of the noisy vector before it is painted (post-processing, which costs no privacy). noisy: "
            "brought to length 1 only, as in the book. natural: an identity is drawn that is plausible for a real "
            "face given the noisy vector"
        ),
        source="noisy: book, equation 5.13; natural: ours, see the method's README",
        choices=("natural", "noisy"),
    )
    randomness: str = randomness_option()
