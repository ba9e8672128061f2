"""A budget for each person over many pictures: the same person twice costs twice, and what is spent is refused.

The ledger is a JSON file. A release is charged *before* its picture is written: when the run stops in between, the
budget is spent and nothing was shown, never the other way round. Each charge takes a lock, reads the file anew, checks,
and replaces it in one step, so several workers (or runs) may share a ledger, and a run that was stopped goes on where
it was. Charges are summed (basic composition): an upper bound whatever the releases were.

Imports no torch.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from facezoo.errors import InputError, OutputError
from facezoo.files import atomic_write
from facezoo.privacy.accounting import Cost
from facezoo.privacy.guarantee import Guarantee

__all__ = ["EVERYONE", "BudgetSpentError", "Ledger", "Spent"]

EVERYONE: Final = "everyone"
"""The account of a run that does not know who is in a picture: all faces count as one person, the safe side."""

_FORMAT: Final = "facezoo-budget"
_ROUNDING: Final = 1e-9


class BudgetSpentError(InputError):
    """The budget of a person does not suffice for this release."""


@dataclass(frozen=True)
class Spent:
    """What was spent on one person.

    Attributes:
        epsilon: sum.
        delta: sum.
        releases: number of faces that were published.
    """

    epsilon: float = 0.0
    delta: float = 0.0
    releases: int = 0


class Ledger:
    """A ledger file.

    Args:
        path: the file; made with the first charge.
        budget: of each person; None: the one that the file holds.

    Raises:
        InputError: a damaged file, another budget than the file's, or neither a file nor a budget.
    """

    def __init__(self, path: str | os.PathLike[str], budget: Cost | None = None) -> None:
        self.path = Path(path)
        if budget is not None and not budget.epsilon > 0:
            raise InputError(f"a budget is an epsilon above 0, not {budget.epsilon:g}")
        held = self._read()
        if held is None and budget is None:
            raise InputError(f"there is no ledger {self.path}: say what each person's budget is with --budget")
        if held is not None and budget is not None and held[0] != budget:
            raise InputError(
                f"the ledger {self.path} was made for a budget of {_text(held[0])} and not of {_text(budget)}; a "
                "budget that grows is none: use that one, or a new ledger for other pictures"
            )
        self.budget: Cost = held[0] if held is not None else budget or Cost(0.0)

    def spent(self, person: str = EVERYONE) -> Spent:
        """What was spent on a person."""
        held = self._read()
        return held[1].get(person, Spent()) if held else Spent()

    def check(self, person: str, guarantee: Guarantee | None, faces: int = 1) -> None:
        """Refuse a release that could not be paid for.

        Raises:
            BudgetSpentError: too little is left.
            InputError: the method promises nothing that could be counted.
        """
        self._after(self.spent(person), person, self._countable(guarantee), faces)

    def charge(self, person: str, guarantee: Guarantee | None, faces: int) -> Spent:
        """Pay for some faces of a person; call it before they are shown to anybody.

        Args:
            person: whose account; `EVERYONE` where nobody knows.
            guarantee: of one face.
            faces: how many.

        Returns:
            What is spent now.

        Raises:
            BudgetSpentError: too little is left; nothing is charged.
            InputError: the method promises nothing that could be counted, or a damaged ledger.
            OutputError: the ledger cannot be written.
        """
        cost = self._countable(guarantee)
        if faces < 1:
            return self.spent(person)
        with self._locked():
            held = self._read()
            accounts = held[1] if held else {}
            accounts[person] = self._after(accounts.get(person, Spent()), person, cost, faces)
            content = {
                "format": _FORMAT,
                "format_version": 1,
                "budget": {"epsilon": self.budget.epsilon, "delta": self.budget.delta},
                "people": {
                    name: {"epsilon": s.epsilon, "delta": s.delta, "releases": s.releases}
                    for name, s in sorted(accounts.items())
                },
            }
            atomic_write(self.path, (json.dumps(content, indent=1) + "\n").encode(), overwrite=True)
        return accounts[person]

    def _after(self, before: Spent, person: str, cost: Cost, faces: int) -> Spent:
        after = Spent(before.epsilon + faces * cost.epsilon, before.delta + faces * cost.delta, before.releases + faces)
        room = 1 + _ROUNDING
        if after.epsilon > self.budget.epsilon * room or after.delta > self.budget.delta * room:
            raise BudgetSpentError(
                f"the privacy budget of {person} is spent: {_text(Cost(before.epsilon, before.delta))} of "
                f"{_text(self.budget)} in {before.releases} faces, and {faces} more would cost "
                f"{_text(Cost(faces * cost.epsilon, min(faces * cost.delta, math.nextafter(1, 0))))}; "
                "nothing was written for this picture"
            )
        return after

    @staticmethod
    def _countable(guarantee: Guarantee | None) -> Cost:
        if guarantee is None:
            raise InputError("this method has no epsilon that a budget could count; leave out --budget")
        if not guarantee.holds or not guarantee.countable:
            raise InputError(
                f"these settings promise nothing that a budget could count ({guarantee.reason}); leave out --budget or "
                "choose settings with a guarantee"
            )
        return guarantee.cost

    def _read(self) -> tuple[Cost, dict[str, Spent]] | None:
        """Budget and accounts; None where there is no file."""
        try:
            text = self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot read the ledger {self.path} ({error}); without it nothing is released") from error
        try:
            content = json.loads(text)
            if content["format"] != _FORMAT or content["format_version"] != 1:
                raise ValueError("another format")
            budget = Cost(float(content["budget"]["epsilon"]), float(content["budget"]["delta"]))
            accounts = {
                str(name): Spent(float(entry["epsilon"]), float(entry["delta"]), int(entry["releases"]))
                for name, entry in content["people"].items()
            }
            if any(not (s.epsilon >= 0 and s.delta >= 0 and s.releases >= 0) for s in accounts.values()):
                raise ValueError("a sum is negative")
        except (ValueError, KeyError, TypeError, AttributeError, InputError) as error:
            # A ledger that is started anew would forget what is spent.
            raise InputError(
                f"the ledger {self.path} is damaged ({error}); bring it back from a copy, nothing is released without"
            ) from error
        return budget, accounts

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """One process at a time."""
        lock = self.path.with_name(f"{self.path.name}.lock")
        try:
            with lock.open("a+b") as stream:
                if sys.platform == "win32":
                    import msvcrt

                    msvcrt.locking(stream.fileno(), msvcrt.LK_LOCK, 1)
                else:
                    import fcntl

                    fcntl.flock(stream, fcntl.LOCK_EX)
                yield
        except OSError as error:
            raise OutputError(f"cannot lock the ledger {self.path}: {error.strerror or error}") from error


def _text(cost: Cost) -> str:
    return f"epsilon {cost.epsilon:g}" + (f", delta {cost.delta:g}" if cost.delta else "")
