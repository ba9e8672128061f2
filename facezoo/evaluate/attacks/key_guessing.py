"""What guessing the key costs: the time of one guess times the number of keys, and a dictionary that is really tried.

One guess is one scrypt with the parameters that protect a user's passphrase, and one recovery to see whether it was
right. The passphrases of the trial are the commonest ones; the victim's is one of them, drawn with the seed.
"""

from __future__ import annotations

import math
import time
from typing import Any, Final

import numpy as np

from facezoo.errors import InputError
from facezoo.evaluate.attacks.base import Attack, Outcome, Scene
from facezoo.keys import KdfParams, Key
from facezoo.metrics import bootstrap_mean

__all__ = ["COMMON_PASSPHRASES", "KEY_SPACES", "KeyGuessing"]

COMMON_PASSPHRASES: Final = (
    "123456", "123456789", "12345678", "password", "qwerty123", "qwerty", "111111", "12345", "secret", "123123",
    "1234567890", "1234567", "000000", "abc123", "password1", "iloveyou", "11111111", "dragon", "monkey", "123123123",
)  # fmt: skip
"""The head of every published list of leaked passwords."""

KEY_SPACES: Final = {
    "top 1,000 passwords": math.log2(1e3),
    "six digits (the book's form)": 6 * math.log2(10),
    "16 bits (SDN, MfM)": 16.0,
    "top 10 million passwords": math.log2(1e7),
    "8 random letters and digits": 8 * math.log2(62),
    "5 random words of 7,776": 5 * math.log2(7776),
    "key file": 256.0,
}
"""Bits of each way to choose a key."""

_SECONDS_A_YEAR: Final = 365.25 * 24 * 3600


class KeyGuessing(Attack):
    """Times guesses, works out what whole key spaces cost, and tries a dictionary."""

    name = "key_guessing"
    summary = "what one guess costs, what whole key spaces cost, and whether common passphrases are found"
    unit = "guesses"
    budget = 20

    def run(self, scene: Scene) -> Outcome:
        """See `Attack.run`.

        Raises:
            InputError: the method has no key, or none that a guess could be checked with.
        """
        if not scene.uses_key:
            raise InputError("this method has no key, so there is none to guess: try --attack inversion")
        if not scene.reversible:
            raise InputError("this method has no way back, so a guess cannot be checked: try --attack average")
        words = self.settings.dictionary or COMMON_PASSPHRASES
        place = int(np.random.default_rng(self.settings.seed).integers(min(len(words), self.spending.units)))
        picture = scene.crops(scene.victims(2)[:1])
        scene.stage("guess", 1 + min(len(words), self.spending.units))
        released = scene.hide(picture, [Key.from_passphrase(words[place])])
        derive, check = [], []
        found_at: int | None = None
        told: list[bool | None] = []
        for number in self.spending:
            if number >= len(words):
                self.spending.spent = number
                break
            started = time.process_time()  # of this process: a busy machine makes no guess dearer
            key = Key.from_passphrase(words[number])
            derived = time.process_time()
            _, verdict = scene.recover(released, key)
            derive.append(derived - started)
            check.append(time.process_time() - derived)
            told.append(verdict[0])
            if verdict[0] is True:
                found_at = number + 1
                break
        seconds = bootstrap_mean(np.asarray(derive) + np.asarray(check), self.settings.seed)
        kdf = KdfParams()
        figures: dict[str, Any] = {
            "seconds_a_guess": seconds.to_dict(),
            "seconds_of_scrypt": bootstrap_mean(derive, self.settings.seed).to_dict(),
            "seconds_of_recovery": bootstrap_mean(check, self.settings.seed).to_dict(),
            "scrypt": kdf.to_dict(),
            "memory_mib_a_guess": 128 * kdf.n * kdf.r / 2**20,
            # What a machine of its own saves at most is the recovery: scrypt is the part that cannot be left out.
            "spaces": {
                name: {"bits": bits, "core_years_to_half": _core_years(bits, float(np.median(derive)))}
                for name, bits in KEY_SPACES.items()
            },
            "dictionary": {
                "words": len(words),
                "tried": len(told),
                "victim_is_word": place + 1,
                "found_at_word": found_at,
                "method_tells": any(verdict is not None for verdict in told),
            },
        }
        return Outcome(len(derive), figures, self._finding(figures, place))

    @staticmethod
    def _finding(figures: dict[str, Any], place: int) -> str:
        digits = figures["spaces"]["six digits (the book's form)"]["core_years_to_half"]
        words = figures["spaces"]["5 random words of 7,776"]["core_years_to_half"]
        found = figures["dictionary"]["found_at_word"]
        if not figures["dictionary"]["method_tells"]:
            trial = "the method does not tell a right key from a wrong one, so the attacker must look at each recovery"
        elif found is None:
            tried = figures["dictionary"]["tried"]
            trial = f"the passphrase at place {place + 1} of the dictionary was not found in {tried} guesses"
        else:
            trial = f"a common passphrase (place {place + 1}) was found at guess {found}"
        return (
            f"{figures['seconds_a_guess']['value']:.2f} s a guess on one core: six digits fall in "
            f"{digits * 365.25:.1f} core-days, five random words in {words:.1e} core-years; {trial}"
        )


def _core_years(bits: float, seconds: float) -> float:
    """Processor-years until half of the keys are tried."""
    return 2 ** (bits - 1) * seconds / _SECONDS_A_YEAR
