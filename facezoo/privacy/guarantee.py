"""What a method promises about one anonymized face, in numbers and in words. Goes into the record and to the ledger."""

from __future__ import annotations

from dataclasses import dataclass

from facezoo.privacy.accounting import Cost

__all__ = ["Guarantee"]


@dataclass(frozen=True)
class Guarantee:
    """The promise for one face.

    Attributes:
        cost: epsilon and delta that one release of one face spends.
        protects: what the numbers are about.
        neighbours: which two inputs cannot be told apart.
        leaks: what the result may tell all the same.
        holds: whether the numbers hold; false with a sensitivity that is no bound, or with seeded noise.
        reason: why they hold, or why not.
        countable: whether releases add up in a budget; false for metric privacy, whose epsilon is for a distance of 1.
    """

    cost: Cost
    protects: str
    neighbours: str
    leaks: str
    holds: bool
    reason: str
    countable: bool = True

    def to_record(self) -> dict[str, object]:
        """Plain JSON values, in words: nothing that is not kept looks like a number that is."""
        if not self.holds:
            return {"guarantee": f"none: {self.reason}", "leaks": self.leaks}
        delta = f", delta {self.cost.delta:g}" if self.cost.delta else ""
        return {
            "guarantee": f"epsilon {self.cost.epsilon:g}{delta} for each face, about {self.protects}; {self.reason}",
            "neighbours": self.neighbours,
            "leaks": self.leaks,
        }
