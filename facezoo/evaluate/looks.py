"""How anonymized faces look: the figures of ``facezoo.metrics.looks`` over a set of saved pictures.

Figures are taken on crops of 128 pixels. Where a method works on smaller or larger crops, its result is brought to 128
as pasting does it: inside the face mask the result itself, outside it the original plus the change (``on_crops``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from facezoo.evaluate.judges import to_pictures, to_tensor
from facezoo.faces.mask import face_mask
from facezoo.frozen import lpips_remedy
from facezoo.mesh import load_mesh
from facezoo.metrics.cases import MeanMetric
from facezoo.metrics.looks import (
    CROP,
    DetailRatio,
    ExpressionKept,
    GazeError,
    GrainOutside,
    HalvesFrechet,
    MeshError,
    SeamStep,
    ToneShift,
    oval_features,
)
from facezoo.nets.lpips import LPIPS
from facezoo.recognition.window import TemplateWindow

__all__ = ["LOOKS", "Looks", "looks_cells", "looks_notes", "on_crops"]

#: Figures in the order of the tables: name in the JSON -> (title, digits, what is good).
LOOKS: Final[dict[str, tuple[str, int, str]]] = {
    "detail": ("detail", 2, ".85-1.15"),
    "grain": ("grain, dB", 1, ">= 45 with a hidden code, >= 55 without"),
    "mesh": ("mesh, %", 1, "<= 2.5"),
    "mouth": ("mouth", 2, ">= .85"),
    "eyes": ("eyes", 2, ">= .8"),
    "smile": ("smile", 2, ">= .9"),
    "gaze": ("gaze, %", 1, "<= 6"),
    "seam": ("seam", 2, "-.5 to .5"),
    "tone": ("tone", 1, "<= 3"),
    "frechet": ("Frechet distance / real", 2, "<= 1.2"),
}

#: Below this confidence of the mesh there is no face to measure.
_SURE: Final = 0.5
_NO_ALEXNET: Final = f"needs {lpips_remedy()}"

ByteArray = npt.NDArray[np.uint8]


def _resized(pictures: Tensor) -> Tensor:
    """Aligned crops of any size at 128 pixels."""
    return pictures if pictures.shape[2] == CROP else TemplateWindow(CROP, 1.0, 0.0, 0.0)(pictures)


def on_crops(results: ByteArray, seen: ByteArray, originals: ByteArray) -> ByteArray:
    """Results at 128 pixels, as pasting would bring them into a picture whose faces are that large.

    Args:
        results: (N, S, S, 3), the method's, as saved.
        seen: (N, S, S, 3), the originals as the method saw them.
        originals: (N, 128, 128, 3).

    Returns:
        (N, 128, 128, 3): ``results`` themselves where S is 128 and ``seen`` are the originals.
    """
    mask = torch.from_numpy(face_mask(CROP).copy())
    parts = []
    for result, before, original in zip(results, seen, originals, strict=True):
        enlarged, was = (_resized(to_tensor(picture[None])) for picture in (result, before))
        parts.append(to_pictures(enlarged + (1.0 - mask) * (to_tensor(original[None]) - was)))
    return np.concatenate(parts) if parts else originals.copy()


@dataclass(frozen=True)
class _Seen:
    """What the networks see in B crops: mesh points (NaN where there is no face), irises, AlexNet's features."""

    points: Tensor
    irises: Tensor
    features: Tensor | None


class Looks:
    """Measures pictures against the same originals, whose meshes and features are found once.

    Args:
        originals: (N, S, S, 3) uint8 RGB, aligned, any S.
        identities: (N,) who is on each: the halves of the Frechet distance share nobody.
        alexnet: weights of the Frechet distance's features; None: that figure is absent.
        seed: of the halves and the bootstrap.
        batch_size: faces at a time.
        device: where networks compute.
    """

    def __init__(
        self,
        originals: ByteArray,
        identities: npt.NDArray[np.integer],
        alexnet: LPIPS | None,
        *,
        seed: int = 0,
        batch_size: int = 16,
        device: str = "cpu",
    ) -> None:
        self.originals = np.concatenate([to_pictures(_resized(to_tensor(picture[None]))) for picture in originals])
        self.seed = seed
        self.batch_size = batch_size
        self.device = device
        self.alexnet = alexnet
        people, of = np.unique(identities, return_inverse=True)
        order = np.random.default_rng(seed).permutation(len(people))
        self.second_half = torch.from_numpy(order[of] % 2 == 1)
        self._known: list[_Seen] | None = None

    def _see(self, pictures: Tensor) -> _Seen:
        with torch.inference_mode():
            mesh = load_mesh(device=self.device)(pictures.to(self.device), irises=True)
            features = None if self.alexnet is None else oval_features(self.alexnet, pictures)
        points = mesh.points.masked_fill(mesh.confidence[:, None, None] < _SURE, torch.nan).cpu()
        irises = points.new_empty(0) if mesh.irises is None else mesh.irises.cpu()
        return _Seen(points, irises, features)

    def measure(
        self,
        pictures: ByteArray,
        failed: npt.NDArray[np.bool_] | None = None,
        advance: Callable[[int], None] = lambda faces: None,
    ) -> dict[str, Any]:
        """All figures of a set of results.

        Args:
            pictures: (N, 128, 128, 3), result i of original i, as saved and decoded again.
            failed: (N,) for which faces there is no result; they count as missing.
            advance: told how many faces were looked at, originals included when they are seen first.

        Returns:
            For each name of ``LOOKS`` an interval with ``missing``; for ``frechet`` its ``value``, that of the real
            halves, their ratio and n, or the reason why it is absent.
        """
        means: dict[str, MeanMetric] = {
            "detail": DetailRatio(), "grain": GrainOutside(), "seam": SeamStep(), "tone": ToneShift(),
        }  # fmt: skip
        mesh, gaze, frechet = MeshError(), GazeError(), HalvesFrechet()
        kept = {"mouth": ExpressionKept("mouth"), "eyes": ExpressionKept("eyes"), "smile": ExpressionKept("smile")}
        known = self._known_originals(advance)
        for number, start in enumerate(range(0, len(pictures), self.batch_size)):
            rows = slice(start, start + self.batch_size)
            result, original = to_tensor(pictures[rows]), to_tensor(self.originals[rows])
            seen, before = self._see(result), known[number]
            lost = torch.zeros(len(result), dtype=torch.bool) if failed is None else torch.from_numpy(failed[rows])
            result = result.masked_fill(lost[:, None, None, None], torch.nan)
            points = seen.points.masked_fill(lost[:, None, None], torch.nan)
            for figure in means.values():
                figure.update(result, original)
            mesh.update(points, before.points)
            for measure in kept.values():
                measure.update(points, before.points)
            gaze.update(points, seen.irises, before.points, before.irises)
            if seen.features is not None and before.features is not None:
                frechet.update(
                    seen.features.masked_fill(lost[:, None], torch.nan), before.features, self.second_half[rows]
                )
            advance(len(result))
        measured: dict[str, MeanMetric | ExpressionKept] = {**means, "mesh": mesh, **kept, "gaze": gaze}
        figures: dict[str, Any] = {
            name: {**metric.interval(self.seed).to_dict(), "missing": int(metric.missing)}
            for name, metric in measured.items()
        }
        figures["frechet"] = self._frechet(frechet)
        return {name: figures[name] for name in LOOKS}

    def _known_originals(self, advance: Callable[[int], None]) -> list[_Seen]:
        if self._known is None:
            self._known = []
            for start in range(0, len(self.originals), self.batch_size):
                pictures = self.originals[start : start + self.batch_size]
                self._known.append(self._see(to_tensor(pictures)))
                advance(len(pictures))
        return self._known

    def _frechet(self, metric: HalvesFrechet) -> dict[str, Any]:
        counted = {"n": int(metric.counts[:2].sum()), "missing": int(metric.missing)}
        if self.alexnet is None:
            return {"value": None, "absent": _NO_ALEXNET, **counted}
        distance, real = float(metric.compute()), metric.real()
        if np.isnan(distance) or real <= 0.0:
            return {"value": None, "absent": "needs two faces in each half", **counted}
        features = "AlexNet conv5 over the oval"
        return {"value": distance / real, "distance": distance, "real": real, "features": features, **counted}


def looks_cells(figures: Mapping[str, Any], intervals: bool = True) -> list[str]:
    """The figures as cells of a table, in the order of ``LOOKS``; "-" where there is none."""
    cells = []
    for name, (_, digits, _) in LOOKS.items():
        figure = figures[name]
        if figure["value"] is None:
            cells.append("-")
            continue
        # Adding 0 makes a rounded -0.0 a plain 0.
        value, low, high = (
            None if figure.get(end) is None else round(figure[end], digits) + 0.0 for end in ("value", "low", "high")
        )
        text = f"{value:.{digits}f}"
        if intervals and low is not None:
            text += f" ({low:.{digits}f}{'-' if low >= 0 else ' to '}{high:.{digits}f})"
        if name == "frechet":
            text += f" ({figure['distance']:.1f} / {figure['real']:.1f})"
        cells.append(text)
    return cells


def looks_notes(subjects: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What a reader of the table must know: figures that are absent, and faces that have none.

    Args:
        subjects: name -> a part with ``looks``.
    """
    parts = {name: part["looks"] for name, part in subjects.items() if part.get("looks") is not None}
    lines = sorted({f"{LOOKS['frechet'][0]}: {part['frechet']['absent']}." for part in parts.values()
                    if part["frechet"].get("absent")})  # fmt: skip
    for name, part in parts.items():
        missing = {figure: entry.get("missing", 0) for figure, entry in part.items()}
        if any(missing.values()):
            told = ", ".join(f"{LOOKS[figure][0]} {count}" for figure, count in missing.items() if count)
            lines.append(f"{name}: faces without a figure (failed, or no mesh is found in the result): {told}.")
    return [item for line in lines for item in (line, "")]
