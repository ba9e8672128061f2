"""Can two anonymized pictures of one person be told to be the same person's? Nobody needs to know who it is."""

from __future__ import annotations

from typing import Any

import numpy as np

from facezoo.errors import InputError
from facezoo.evaluate.attacks.base import Attack, Floats, IntArray, Outcome, Scene, percent
from facezoo.metrics import bootstrap_mean, pairwise_similarity, wilson

__all__ = ["Linkability", "link"]


def link(gallery: Floats, probes: Floats, metric: str, seed: int) -> dict[str, Any]:
    """Row i of both is one person.

    Returns:
        ``rank_one``: part of the probes whose nearest gallery picture is their own person's (equal ones count
        against the attacker); ``auc``: the chance that a pair of one person is nearer than one of two people, with the
        bootstrap over probes. Both with interval.
    """
    scores = pairwise_similarity(probes, gallery, metric)
    own = np.diag(scores)
    others = scores[~np.eye(len(scores), dtype=np.bool_)].reshape(len(scores), -1)
    wins = (others < own[:, None]).mean(1) + (others == own[:, None]).mean(1) / 2
    return {
        "rank_one": wilson(int((others < own[:, None]).all(1).sum()), len(own)).to_dict(),
        "auc": bootstrap_mean(wins, seed).to_dict(),
    }


class Linkability(Attack):
    """Gallery and probe are anonymized pictures of the same people, under one key and under two."""

    name = "linkability"
    summary = "two anonymized pictures of one person, under one key and under two: do they look alike?"
    unit = "people"
    budget = 200

    def run(self, scene: Scene) -> Outcome:
        """See `Attack.run`."""
        first, second = self._pairs(scene)
        setups: dict[str, tuple[int, int]] = {"originals": (-1, -1), "one_key": (0, 0), "two_keys": (0, 1)}
        if not scene.uses_key:
            # No key: what remains is chance, which is fresh for each picture.
            setups = {"originals": (-1, -1), "anonymized": (0, 1)}
        scene.stage("hide", len(first) * 2 * (len(setups) - 1))
        keys = scene.keys("victims", 2)
        figures: dict[str, Any] = {"chance": 1 / len(first), "people": len(first), "setups": {}}
        for title, places in setups.items():
            sides = []
            for side, (rows, place) in enumerate(zip((first, second), places, strict=True)):
                pictures = scene.crops(rows)
                if place >= 0:
                    pictures = scene.hide(pictures, [keys[place % len(keys)]], seed=side)
                sides.append(pictures)
            figures["setups"][title] = {
                judge.name: link(
                    scene.embed(judge, sides[0]), scene.embed(judge, sides[1]), judge.metric, self.settings.seed
                )
                for judge in scene.judges
            }
        self.spending.spent = len(first)
        return Outcome(len(first), figures, self._finding(figures))

    def _pairs(self, scene: Scene) -> tuple[IntArray, IntArray]:
        """Two pictures of each of as many people as the budget allows."""
        rows = scene.random.permutation(scene.victim_rows)
        people: dict[int, list[int]] = {}
        for row in rows:
            people.setdefault(int(scene.identities[row]), []).append(int(row))
        pairs = [found[:2] for found in people.values() if len(found) > 1]
        pairs = pairs[: min(self.spending.units, self.settings.limit or self.spending.units)]
        if len(pairs) < 2:
            raise InputError(
                f"linkability needs at least two victims with two pictures, the set has {len(pairs)}: give another "
                "with --data"
            )
        both = np.asarray(pairs, dtype=np.int64)
        return both[:, 0], both[:, 1]

    @staticmethod
    def _finding(figures: dict[str, Any]) -> str:
        setups = figures["setups"]
        hidden = [title for title in setups if title != "originals"]
        judge = max(setups["originals"], key=lambda name: setups[hidden[0]][name]["rank_one"]["value"])
        parts = [f"{title.replace('_', ' ')} {percent(setups[title][judge]['rank_one'])}" for title in hidden]
        original = percent(setups["originals"][judge]["rank_one"])
        return f"{judge} links {', '.join(parts)} of the people; originals {original}, chance {figures['chance']:.1%}"
