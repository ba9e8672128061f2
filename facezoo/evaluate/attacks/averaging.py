"""Does the mean over many wrong answers come near the right one?

For a reversible method the wrong answers are recoveries of the saved picture with wrong keys: if they scatter about
the original, their mean tells what none of them does. For others they are releases of one picture under several keys
(or several draws of chance): what somebody gets who publishes a picture more than once.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from facezoo.errors import InputError
from facezoo.evaluate.attacks.base import Attack, ByteArray, IntArray, Outcome, Scene, percent

__all__ = ["AverageOverKeys"]

_FACES = 50


class AverageOverKeys(Attack):
    """Averages pixels over wrong keys, for 1, 2, 4, ... of them."""

    name = "average"
    judged = True
    summary = "the mean over recoveries with wrong keys (or over several releases): does it show the original?"
    unit = "wrong keys or releases a face"
    budget = 32

    def run(self, scene: Scene) -> Outcome:
        """See `Attack.run`."""
        if not scene.uses_key and scene.info is not None and self._is_fixed(scene):
            raise InputError(
                f"{scene.info.name} always gives the same picture: there is nothing to average; try --attack deblur or "
                "--attack inversion"
            )
        rows = scene.victims(_FACES)
        recovering = scene.reversible and scene.uses_key
        scene.stage("average", len(rows) * (self.spending.units + 2 * recovering + 1))
        originals = scene.crops(rows)
        released = scene.hide(originals, scene.keys("victims", 1))
        total = np.zeros(originals.shape, dtype=np.float64)
        steps: dict[str, Any] = {}
        count = 0
        for count in (number + 1 for number in self.spending):
            total += self._answer(scene, originals, released, count - 1, recovering)
            if count & (count - 1) == 0 or count == self.spending.units:
                steps[str(count)] = self._measure(scene, total / count, rows)
        if str(count) not in steps:
            steps[str(count)] = self._measure(scene, total / count, rows)
        figures: dict[str, Any] = {
            "averaged": "recoveries with wrong keys" if recovering else "releases",
            "answers": steps,
            "released": self._measure(scene, released.astype(np.float64), rows),
            "right_key": None,
            "chance": scene.chance(rows),
        }
        if recovering:
            right, _ = scene.recover(released, scene.keys("victims", 1)[0])
            figures["right_key"] = self._measure(scene, right.astype(np.float64), rows)
        return Outcome(len(rows), figures, self._finding(scene, figures, str(count)))

    @staticmethod
    def _is_fixed(scene: Scene) -> bool:
        picture = scene.crops(scene.victim_rows[:2])
        return bool((scene.hide(picture, [None], seed=0) == scene.hide(picture, [None], seed=1)).all())

    def _answer(
        self, scene: Scene, originals: ByteArray, released: ByteArray, number: int, recovering: bool
    ) -> ByteArray:
        if not scene.uses_key:
            return scene.hide(originals, [None], seed=number + 1)
        key = scene.attackers_key(number)
        if recovering:
            return scene.recover(released, key)[0]
        return scene.hide(originals, [key])

    @staticmethod
    def _measure(scene: Scene, pictures: Any, rows: IntArray) -> dict[str, Any]:
        rounded: ByteArray = pictures.round().clip(0, 255).astype(np.uint8)
        return {"judges": scene.likeness(rounded, rows), "psnr": scene.psnr(rounded, rows)}

    @staticmethod
    def _finding(scene: Scene, figures: dict[str, Any], last: str) -> str:
        steps = figures["answers"]
        main = scene.judges[0].main
        judge = max(steps[last]["judges"], key=lambda name: steps[last]["judges"][name]["taken"][main]["value"])

        def rate(part: dict[str, Any]) -> str:
            return percent(part["judges"][judge]["taken"][main])

        text = (
            f"{judge} takes the mean over {last} {figures['averaged']} for the original in {rate(steps[last])}, "
            f"one alone in {rate(steps['1'])}, the released picture in {rate(figures['released'])}"
        )
        return text if figures["right_key"] is None else f"{text}; with the right key {rate(figures['right_key'])}"
