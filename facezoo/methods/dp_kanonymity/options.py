"""Options of dp_kanonymity at use. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from facezoo.methods.options import Options, option
from facezoo.privacy.release import randomness_option


@dataclass(frozen=True)
class DPKAnonymityOptions(Options):
    """Which attributes the face gets."""

    method: ClassVar[str] = "dp_kanonymity"

    reference: str | None = option(
        None,
        kind="text",
        doc="Packed set of the people among whom the neighbours are looked for; its names tell them apart. Required. "
        "The guarantee is theirs.",
        source="book, algorithm 1: the training set",
    )
    selection: str = option(
        "neighbours",
        kind="choice",
        doc=(
            "neighbours: what the k nearest people have, by the exponential mechanism (chapter 4). t_closeness: as "
            "people in general have it, and the truth only so often that the answer stays within t of that "
            "(AnonymousNet)"
        ),
        source="book, algorithm 1; AnonymousNet (Li, Lin 2019)",
        choices=("neighbours", "t_closeness"),
    )
    k: int = option(
        100,
        kind="integer",
        doc="Neighbours that vote. At most gamma times the people of the reference set.",
        unit="people",
        source="book, Table 4.1: 100 and 200",
        minimum=1,
    )
    epsilon: float = option(
        0.05,
        kind="number",
        doc=(
            "Of each attribute's choice; 0 chooses blindly. It protects the people of the reference set, not the face "
            "in the picture (see the method's README)"
        ),
        source="book, Table 4.1: 0.05 and 0.1",
        minimum=0.0,
        maximum=100.0,
    )
    gamma: float = option(
        0.05,
        kind="number",
        doc="Each person of the reference set takes part with this probability, anew for every face.",
        source="book, 4.5.3: 0.05",
        minimum=1e-6,
        maximum=1.0,
    )
    tau: float = option(
        3.0,
        kind="number",
        doc="Votes that one neighbour has for all attributes together.",
        unit="votes",
        source="book, equation 4.4; its value is not given",
        minimum=0.1,
        maximum=1000.0,
    )
    t: float = option(
        0.2,
        kind="number",
        doc="Greatest distance of an answer's distribution from that of people in general; 0: the face plays no part.",
        source="ours; AnonymousNet gives none",
        minimum=0.0,
        maximum=1.0,
    )
    randomness: str = randomness_option()
