"""Sharpening: how much of a blur, a pixelation or a noise one linear filter takes back.

The attacker hides faces of its own with the same method and fits the filter that brings them nearest to their
originals (Wiener's filter, its spectra taken from those pairs, one a colour). Beside it stands plain sharpening, which
needs no pairs. The strength of either is chosen on the attacker's own faces, never on the victims'.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from facezoo.evaluate.attacks.base import Attack, ByteArray, Floats, Outcome, Scene, percent
from facezoo.evaluate.judges import to_tensor
from facezoo.metrics import psnr

__all__ = ["Deblurring", "WienerFilter", "sharpen"]

_FACES = 200
_NOISE = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
"""Regularisation of the filter, in parts of the mean power of the hidden pictures."""
_AMOUNTS = (0.5, 1.0, 2.0, 4.0)
_SIGMA = 1 / 64
"""Width of the sharpening's blur, in parts of the crop's side."""

Spectra = npt.NDArray[np.complex128]


class WienerFilter:
    """The linear filter, the same at every place, that maps hidden pictures to their originals best.

    ``H = mean(conj(Y) X) / (mean |Y|^2 + noise * power)`` for spectra Y of the hidden and X of the original pictures
    (Wiener 1949), with the mean colours taken off. Pictures are mirrored at their border.

    Args:
        hidden: (N, S, S, 3) uint8.
        originals: the same.
    """

    def __init__(self, hidden: ByteArray, originals: ByteArray) -> None:
        self.pad = max(1, hidden.shape[1] // 4)
        self.mean_hidden = hidden.mean((0, 1, 2))
        self.mean_original = originals.mean((0, 1, 2))
        seen = self._spectra(hidden - self.mean_hidden)
        wanted = self._spectra(originals - self.mean_original)
        self.cross: Spectra = (np.conj(seen) * wanted).mean(0)
        self.power: Floats = (np.abs(seen) ** 2).mean(0)

    def _spectra(self, pictures: Floats) -> Spectra:
        edge = (self.pad, self.pad)
        return np.fft.fft2(np.pad(pictures, ((0, 0), edge, edge, (0, 0)), mode="symmetric"), axes=(1, 2))

    def apply(self, hidden: ByteArray, noise: float) -> ByteArray:
        """Filters (N, S, S, 3) uint8."""
        # The last summand is for pictures of one colour, whose power is 0.
        response = self.cross / (self.power + noise * self.power.mean((0, 1), keepdims=True) + 1e-9)
        result = np.fft.ifft2(self._spectra(hidden - self.mean_hidden) * response, axes=(1, 2)).real
        inner = slice(self.pad, self.pad + hidden.shape[1])
        return (result[:, inner, inner] + self.mean_original).round().clip(0, 255).astype(np.uint8)


def sharpen(pictures: ByteArray, amount: float) -> ByteArray:
    """Unsharp masking of (N, S, S, 3) uint8: adds ``amount`` times what a blur takes away."""
    sigma = pictures.shape[1] * _SIGMA
    exact = pictures.astype(np.float64)
    blurred = np.stack([cv2.GaussianBlur(picture, (0, 0), sigma) for picture in exact])
    return (exact + amount * (exact - blurred)).round().clip(0, 255).astype(np.uint8)


class Deblurring(Attack):
    """A filter fitted on the attacker's own pairs, and plain sharpening."""

    name = "deblur"
    judged = True
    summary = "the linear filter that undoes the method best, fitted on other people, and plain sharpening"
    unit = "pairs of the attacker's own faces"
    budget = 200

    def run(self, scene: Scene) -> Outcome:
        """See `Attack.run`."""
        own = scene.attackers(self.spending.units)
        rows = scene.victims(_FACES)
        scene.stage("hide", len(own) + len(rows))
        theirs = scene.crops(own, attackers=True)
        hidden_own = scene.hide(theirs, scene.keys("attacker", 8), seed=1)
        hidden = scene.hide(scene.crops(rows), scene.keys("victims", 8))
        self.spending.spent = len(own)
        cut = max(1, 3 * len(own) // 4)
        fitted = WienerFilter(hidden_own[:cut], theirs[:cut])
        chosen = {
            "filter": self._best(_NOISE, fitted.apply, hidden_own[cut:], theirs[cut:]),
            "sharpened": self._best(_AMOUNTS, sharpen, hidden_own[cut:], theirs[cut:]),
        }
        pictures = {
            "released": hidden,
            "filter": fitted.apply(hidden, chosen["filter"]),
            "sharpened": sharpen(hidden, chosen["sharpened"]),
        }
        figures: dict[str, Any] = {
            "strength": chosen,
            "chance": scene.chance(rows),
            "pictures": {
                title: {"judges": scene.likeness(made, rows), "psnr": scene.psnr(made, rows)}
                for title, made in pictures.items()
            },
        }
        return Outcome(len(rows), figures, self._finding(scene, figures["pictures"]))

    @staticmethod
    def _best(
        strengths: tuple[float, ...],
        attempt: Callable[[ByteArray, float], ByteArray],
        hidden: ByteArray,
        originals: ByteArray,
    ) -> float:
        """The strength whose result is nearest to the attacker's held-out originals."""
        wanted = to_tensor(originals)
        scores = [float(psnr(to_tensor(attempt(hidden, strength)), wanted).mean()) for strength in strengths]
        return strengths[int(np.argmax(scores))]

    @staticmethod
    def _finding(scene: Scene, found: dict[str, Any]) -> str:
        main = scene.judges[0].main

        def rate(title: str, judge: str) -> dict[str, Any]:
            taken: dict[str, Any] = found[title]["judges"][judge]["taken"][main]
            return taken

        judge = max((j.name for j in scene.judges), key=lambda name: rate("filter", name)["value"])
        return (
            f"{judge} takes {percent(rate('filter', judge))} for the original after the fitted filter, "
            f"{percent(rate('sharpened', judge))} after sharpening and {percent(rate('released', judge))} as released; "
            f"PSNR {found['filter']['psnr']['value']:.1f} dB instead of {found['released']['psnr']['value']:.1f}"
        )
