"""Parrot recognition: the attacker's recogniser learns what anonymized faces look like.

After Newton, Sweeney and Malin (IEEE TKDE 2005): a method that fools a recogniser trained on real faces may still be
read by one that is trained on anonymized ones. Here a head behind each judge learns to map an anonymized face's vector
to that of its original, on other people; then it is asked for the victims among all originals.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from facezoo.evaluate.attacks.base import Attack, Floats, IntArray, Outcome, Scene, percent
from facezoo.evaluate.judges import Judge
from facezoo.metrics import rank_one, thresholds_from_impostors, wilson

__all__ = ["Parrot", "ParrotHead"]

_FACES = 300
_OWN = 2000
_BATCH = 128
_TEMPERATURE = 0.07
_RIDGE = 0.05
"""In parts of the mean square of a component."""


class ParrotHead(nn.Module):
    """A linear map and a small network beside it; untrained it gives its input back.

    Args:
        dim: length of the vectors.
        hidden: width of the network.
    """

    def __init__(self, dim: int, hidden: int = 256) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, dim, bias=False)
        self.entry = nn.Linear(dim, hidden)
        self.exit = nn.Linear(hidden, dim)
        with torch.no_grad():
            self.linear.weight.copy_(torch.eye(dim))
            for parameter in self.exit.parameters():
                parameter.zero_()

    def start(self, seen: Tensor, wanted: Tensor) -> None:
        """Sets the linear map to the least squares solution of pairs (N, D), with ridge towards leaving all as it is.

        Adam moves a weight by its learning rate a step at most: a method that turns vectors round would need
        thousands of steps to follow.
        """
        x, y = seen.double(), wanted.double()
        squares = x.T @ x
        ridge = _RIDGE * squares.trace() / len(squares) + 1e-9
        solution = torch.linalg.solve(squares + ridge * torch.eye(len(squares), dtype=x.dtype), x.T @ (y - x))
        with torch.no_grad():
            self.linear.weight.copy_((torch.eye(len(squares), dtype=x.dtype) + solution).T)

    def forward(self, vectors: Tensor) -> Tensor:
        """(B, D) -> (B, D) of length 1."""
        return functional.normalize(self.linear(vectors) + self.exit(functional.gelu(self.entry(vectors))), dim=1)


class Parrot(Attack):
    """A head for each judge, trained on the attacker's own pairs."""

    name = "parrot"
    summary = "a recogniser whose head is trained on anonymized pictures of other people"
    unit = "batches of 128 pairs a judge"
    budget = 500

    def run(self, scene: Scene) -> Outcome:
        """See `Attack.run`."""
        own = scene.attackers(_OWN)
        rows = scene.victims(_FACES)
        scene.stage("hide", 2 * len(own) + len(rows))
        theirs = scene.crops(own, attackers=True)
        keys = scene.keys("attacker", 16)
        releases = [scene.hide(theirs, keys[shift:] + keys[:shift], seed=1 + shift) for shift in range(2)]
        hidden = scene.hide(scene.crops(rows), scene.keys("victims", 16))
        scene.stage("train the head", self.spending.units * len(scene.judges))
        figures: dict[str, Any] = {"chance": scene.chance(rows), "judges": {}}
        who = np.asarray(scene.attacker_data.identity, dtype=np.int64)[own]
        for judge in scene.judges:
            gallery = scene.gallery(judge)
            originals = scene.embed(judge, theirs)
            # Vectors of Euclidean recognisers are not centred: all of them point the same way.
            mean = originals.mean(0, keepdims=True)
            seen = np.concatenate([scene.embed(judge, made) for made in releases])
            head = self._train(scene, judge, seen - mean, np.tile(originals - mean, (2, 1)), np.tile(who, 2))
            probes = scene.embed(judge, hidden) - mean
            with torch.inference_mode():
                learned = head(_unit(probes)).double().numpy()
            figures["judges"][judge.name] = {
                "before": self._measure(scene, probes, gallery - mean, rows),
                "after": self._measure(scene, learned, gallery - mean, rows),
            }
        return Outcome(len(rows), figures, self._finding(figures))

    def _train(self, scene: Scene, judge: Judge, seen: Floats, wanted: Floats, who: IntArray) -> ParrotHead:
        """Maps ``seen`` to ``wanted`` among the others of a batch (InfoNCE; same people are no negatives)."""
        random = scene.generator(f"parrot/{judge.name}")
        with torch.random.fork_rng():
            torch.manual_seed(int(torch.randint(2**31, (1,), generator=random)))
            head = ParrotHead(seen.shape[1])
        first, second, people = _unit(seen), _unit(wanted), torch.from_numpy(who)
        head.start(first, second)
        optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3, weight_decay=1e-2)
        for _ in self.spending:
            chosen = torch.randint(len(first), (min(_BATCH, len(first)),), generator=random)
            logits = head(first[chosen]) @ second[chosen].T / _TEMPERATURE
            same = people[chosen][:, None] == people[chosen][None]
            itself = torch.eye(len(chosen), dtype=torch.bool)
            loss = functional.cross_entropy(logits.masked_fill(same & ~itself, -1e4), torch.arange(len(chosen)))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            scene.bar.update(1)
        return head.eval()

    def _measure(self, scene: Scene, probes: Floats, gallery: Floats, rows: IntArray) -> dict[str, Any]:
        """Rank-1 among originals and the part taken for the original, by cosines of centred vectors."""
        people = scene.identities
        arguments = (probes, people[rows], gallery, people)
        threshold = thresholds_from_impostors(gallery, people, (self.settings.far,))[self.settings.far]
        unit = _unit(probes).double().numpy()
        taken = (unit * _unit(gallery[rows]).double().numpy()).sum(1) >= threshold
        return {
            "with_original": rank_one(*arguments).to_dict(),
            "other_pictures": rank_one(*arguments, excluded=rows).to_dict(),
            "taken": wilson(int(taken.sum()), len(taken)).to_dict(),
        }

    @staticmethod
    def _finding(figures: dict[str, Any]) -> str:
        judges = figures["judges"]
        judge = max(judges, key=lambda name: judges[name]["after"]["with_original"]["value"])
        after, before = judges[judge]["after"], judges[judge]["before"]
        chance = figures["chance"]
        return (
            f"{judge} with a trained head finds the original among all in {percent(after['with_original'])} (untrained "
            f"{percent(before['with_original'])}, chance {chance['with_original']:.1%}), by other pictures of the "
            f"person in {percent(after['other_pictures'])} (untrained {percent(before['other_pictures'])})"
        )


def _unit(vectors: Floats) -> Tensor:
    return functional.normalize(torch.from_numpy(vectors).float(), dim=1)
