"""A learned method small enough for tests: reversible, keyed, with a checkpoint of two files.

It mirrors the crop's colours (x -> -g x with a learned g near 1) and adds a pattern that the key gives; recovery
subtracts the pattern of its key, so that a wrong key gives another picture.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from facezoo import registry
from facezoo.hub.manifest import load_networks, load_strictly, write_checkpoint
from facezoo.methods.base import FaceContext, LearnedMethod, Recovered, check_faces

SIZE = 64


class Gain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(3, 1, 1))


class TinySwap(LearnedMethod):
    name: ClassVar[str] = "tiny_swap"
    reversible: ClassVar[bool] = True
    uses_key: ClassVar[bool] = True
    requires_key: ClassVar[bool] = True
    crop_size = SIZE
    broken: ClassVar[str] = ""
    """"nan", "same" or "shape": how `anonymize` misbehaves."""

    def __init__(self, gain: Gain) -> None:
        super().__init__()
        self.network = gain

    @classmethod
    def from_checkpoint(cls, folder: Path, manifest: dict[str, Any]) -> Self:
        networks = load_networks(folder, manifest)
        gain = Gain()
        load_strictly(gain, networks["generator"], "tiny_swap/generator")
        return cls(gain.eval())

    def to(self, device: torch.device | str) -> Self:
        self.network.to(device)
        return self

    def _pattern(self, context: FaceContext) -> Tensor:
        # Coarse, so that it survives being pasted and cropped again.
        coarse = torch.from_numpy(self.require_key(context).uniform("tiny_swap/pattern", (1, 3, 8, 8)).copy())
        return nn.functional.interpolate(coarse, size=SIZE, mode="bicubic").clamp(-1, 1) * 0.45

    @torch.inference_mode()
    def anonymize(self, faces: Tensor, context: FaceContext) -> Tensor:
        check_faces(faces, self.name, SIZE)
        pattern = self._pattern(context)
        if self.broken == "same":
            return faces.clone()
        if self.broken == "shape":
            return faces[..., :-1]
        result = -0.5 * self.network.gain * faces + pattern
        if self.broken == "nan":
            result[-1, 0, 0, 0] = float("nan")
        return result

    @torch.inference_mode()
    def recover(self, faces: Tensor, context: FaceContext) -> Recovered:
        check_faces(faces, self.name, SIZE)
        raw = -2.0 * (faces - self._pattern(context)) / self.network.gain
        # The right pattern leaves a picture within [-1, 1]; a wrong one overshoots.
        overshoot = (raw.abs() - 1.0).clamp_min(0).mean(dim=(1, 2, 3))
        return Recovered(raw.clamp(-1, 1), [bool(value < 0.02) for value in overshoot])


@contextlib.contextmanager
def registered() -> Iterator[type[TinySwap]]:
    """The method in the registry, for as long as the block lasts."""
    registry.register_method(
        "tiny_swap", summary="for tests", learned=True, reversible=True, uses_key=True, requires_key=True
    )(TinySwap)
    try:
        yield TinySwap
    finally:
        TinySwap.broken = ""
        registry.unregister_method("tiny_swap")


def write_tiny_checkpoint(folder: Path, *, overwrite: bool = False) -> Path:
    """A checkpoint of it; the folder should be named tiny_swap.<tag>."""
    manifest = {
        "name": "tiny_swap.test",
        "method": "tiny_swap",
        "summary": "for tests",
        "crop_size": SIZE,
        "config": {"size": SIZE},
    }
    extra = nn.Linear(4, 4).state_dict()
    write_checkpoint(folder, manifest, {"generator": Gain().state_dict(), "extra": extra}, overwrite=overwrite)
    return folder
