"""Where a method's noise comes from: the option and the source that every private method shares. Imports no torch."""

from __future__ import annotations

from typing import Any

from facezoo.methods.options import option
from facezoo.privacy.randomness import BitSource, SecureBits, SeededBits

__all__ = ["SEEDED_REASON", "randomness_option", "source_for"]

SEEDED_REASON = "the noise was drawn from a seed, whoever knows it takes it off"


def randomness_option() -> Any:  # like dataclasses.field: the field's annotation gives the type
    """The option ``randomness`` of a private method."""
    return option(
        "secure",
        kind="choice",
        doc=(
            "secure: noise from the operating system's generator; nobody can repeat it. seeded: noise that the call's "
            "seed decides, for tests and figures only: the record then says that there is no guarantee"
        ),
        source="ours; see docs/privacy.md",
        choices=("secure", "seeded"),
    )


def source_for(randomness: str, seed: int, face: bytes) -> BitSource:
    """The noise of one face.

    Args:
        randomness: the option's value.
        seed: the call's; used by "seeded" only.
        face: the face's pixels; with "seeded", two faces get different noise and none depends on its neighbours.
    """
    return SecureBits() if randomness == "secure" else SeededBits(b"%d:" % seed + face)
