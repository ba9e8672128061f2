"""A network that is trained to undo the method without the key: it knows everything but the key.

The attacker hides faces of other people with the same method under keys of its own, and trains a small U-Net from the
hidden picture to the original. What it makes of the victims' pictures is judged like a recovery.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn import functional

from facezoo.errors import InputError
from facezoo.evaluate.attacks.base import Attack, ByteArray, Outcome, Scene, percent
from facezoo.evaluate.judges import to_pictures, to_tensor
from facezoo.nets.unet import UNet
from facezoo.recognition import Recogniser, load_recogniser

__all__ = ["Inversion"]

_FACES = 200
_OWN = 4000
_KEYS = 64
_BATCH = 8
_IDENTITY_WEIGHT = 0.1
_RATE = 2e-3


class Inversion(Attack):
    """A U-Net from hidden to original pictures, trained on other people under other keys."""

    name = "inversion"
    judged = True
    summary = "a U-Net trained on other people's pairs to undo the method without the key"
    unit = "batches of 8 pairs"
    budget = 1500

    def run(self, scene: Scene) -> Outcome:
        """See `Attack.run`.

        Raises:
            InputError: the recogniser of the loss is the only judge.
        """
        identity = self._identity(scene)
        own = scene.attackers(_OWN)
        rows = scene.victims(_FACES)
        scene.stage("hide", len(rows))
        hidden = scene.hide(scene.crops(rows), scene.keys("victims", 16))
        scene.stage("train (faces)", 2 * _BATCH * self.spending.units)
        network, losses = self._train(scene, own, identity)
        scene.stage("invert", len(rows))
        parts = []
        with torch.inference_mode():
            for start in range(0, len(rows), self.settings.batch_size):
                faces = to_tensor(hidden[start : start + self.settings.batch_size], self.settings.device)
                parts.append(to_pictures(network(faces).clamp(-1, 1)))
                scene.bar.update(len(parts[-1]))
        inverted = np.concatenate(parts)
        figures: dict[str, Any] = {
            "chance": scene.chance(rows),
            "loss": {"first": losses[0], "last": float(np.mean(losses[-20:]))},
            "loss_recogniser": None if identity is None else identity.name,
            "released": {"judges": scene.likeness(hidden, rows), "psnr": scene.psnr(hidden, rows)},
            "inverted": {"judges": scene.likeness(inverted, rows), "psnr": scene.psnr(inverted, rows)},
        }
        return Outcome(len(rows), figures, self._finding(scene, figures))

    def _identity(self, scene: Scene) -> Recogniser | None:
        """The recogniser of the loss; it is no judge any more.

        Raises:
            InputError: no judge is left.
        """
        if self.settings.identity is None:
            return None
        identity = load_recogniser(self.settings.identity)
        if len(scene.judges) > 1:
            scene.judges = [judge for judge in scene.judges if judge.name != identity.name]
        if any(judge.name == identity.name for judge in scene.judges):
            raise InputError(
                f"{identity.name} is in the inversion network's loss and cannot be the only judge: add another with "
                "--judge, or train without it"
            )
        return identity.to(self.settings.device)

    def _train(self, scene: Scene, own: Any, identity: Recogniser | None) -> tuple[UNet, list[float]]:
        random = scene.generator("inversion")
        picks = np.random.default_rng(self.settings.seed)
        device = self.settings.device
        with torch.random.fork_rng():
            torch.manual_seed(int(torch.randint(2**31, (1,), generator=random)))
            network = UNet().to(device)
        optimizer = torch.optim.AdamW(network.parameters(), lr=_RATE, weight_decay=1e-4)
        keys = scene.keys("attacker", _KEYS)
        losses: list[float] = []
        for number in self.spending:
            # Falls to a twentieth over the budget, so that the end is fine work.
            share = number / self.spending.units
            for group in optimizer.param_groups:
                group["lr"] = _RATE * (1 - 0.95 * share)
            chosen = picks.choice(own, min(_BATCH, len(own)), replace=False)
            originals: ByteArray = scene.crops(np.sort(chosen), attackers=True)
            hidden = scene.hide(originals, [keys[int(picks.integers(len(keys)))]], seed=2 + number)
            wanted, seen = to_tensor(originals, device), to_tensor(hidden, device)
            if picks.random() < 0.5:
                wanted, seen = wanted.flip(3), seen.flip(3)
            made = network(seen)
            loss = functional.l1_loss(made, wanted)
            if identity is not None:
                target = identity(wanted)
                apart = 1 - functional.cosine_similarity(identity(made), target, dim=1)
                loss = loss + _IDENTITY_WEIGHT * apart.mean()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(float(loss.detach()))
            scene.bar.update(len(chosen))
        return network.eval(), losses

    def _finding(self, scene: Scene, figures: dict[str, Any]) -> str:
        main = scene.judges[0].main

        def taken(stage: str, judge: str) -> dict[str, Any]:
            rate: dict[str, Any] = figures[stage]["judges"][judge]["taken"][main]
            return rate

        judge = max((j.name for j in scene.judges), key=lambda name: taken("inverted", name)["value"])
        found = {
            stage: percent(figures[stage]["judges"][judge]["rank_one"]["with_original"])
            for stage in ("released", "inverted")
        }
        return (
            f"{judge} takes {percent(taken('inverted', judge))} of the inverted pictures for the original (released: "
            f"{percent(taken('released', judge))}) and finds it among all in {found['inverted']} (released: "
            f"{found['released']}, chance {figures['chance']['with_original']:.1%}); PSNR "
            f"{figures['inverted']['psnr']['value']:.1f} dB instead of {figures['released']['psnr']['value']:.1f}"
        )
