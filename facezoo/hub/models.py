"""The models a user can name: methods without weights, and checkpoints of learned methods. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from facezoo import registry
from facezoo.hub.manifest import CHECKPOINTS, RECOMMENDED, bundled_models, resolve_model

__all__ = ["FLAGSHIP", "ModelInfo", "flagship_of", "list_models", "model_info"]

FLAGSHIP: Final = "identity_rotation.mesh128"
"""The model that the demo shows large and ``facezoo list`` recommends; `flagship_of` chooses where it is not there."""


@dataclass(frozen=True)
class ModelInfo:
    """One line of ``facezoo list``.

    Attributes:
        name: what ``--model`` takes.
        kind: "classic", "learned" or "generator" (makes people, anonymizes nothing).
        reversible: whether the right key brings the face back without sealed originals.
        uses_key: whether the key changes the result.
        status: "stable", "experimental", "trained", ...; "no checkpoint" for a learned method without a bundled one.
        summary: one line.
        method: name in the registry.
    """

    name: str
    kind: str
    reversible: bool
    uses_key: bool
    status: str
    summary: str
    method: str

    def to_dict(self) -> dict[str, object]:
        """Plain dict for JSON."""
        return {
            "name": self.name,
            "kind": self.kind,
            "reversible": self.reversible,
            "uses_key": self.uses_key,
            "status": self.status,
            "summary": self.summary,
            "method": self.method,
        }


def list_models(root: Path = CHECKPOINTS) -> list[ModelInfo]:
    """Every model: bundled checkpoints first, then learned methods without one, the classics, the generators.

    Raises:
        CheckpointError: the registry of the bundled checkpoints is damaged.
    """
    methods = {info.name: info for info in registry.list_methods(kind=None)}
    bundled = bundled_models(root)
    learned: list[ModelInfo] = []
    for name, entry in sorted(bundled.items()):
        info = methods.get(str(entry.get("method")))
        if info is None:
            continue
        learned.append(
            ModelInfo(
                name=name,
                kind=_kind(info),
                reversible=info.reversible,
                uses_key=info.uses_key,
                status=str(entry.get("status", "")),
                summary=str(entry.get("summary") or info.summary),
                method=info.name,
            )
        )
    with_checkpoint = {model.method for model in learned}
    missing = [
        ModelInfo(info.name, _kind(info), info.reversible, info.uses_key, "no checkpoint", info.summary, info.name)
        for info in methods.values()
        if info.learned and info.name not in with_checkpoint
    ]
    classics = [
        ModelInfo(info.name, "classic", info.reversible, info.uses_key, info.status, info.summary, info.name)
        for info in methods.values()
        if not info.learned
    ]
    weighted = learned + missing
    generators = [model for model in weighted if model.kind == "generator"]
    return [model for model in weighted if model.kind != "generator"] + classics + generators


def _kind(info: registry.MethodInfo) -> str:
    return "generator" if info.kind == "generator" else "learned"


def model_info(name: str, root: Path = CHECKPOINTS) -> ModelInfo:
    """The line of one model.

    Raises:
        UnknownNameError: no such model.
    """
    models = {model.name: model for model in list_models(root)}
    if name in models:
        return models[name]
    of_method = [model for model in models.values() if model.method == name]
    of_method = [model for model in of_method if model.name in RECOMMENDED] or of_method
    if len(of_method) == 1:
        return of_method[0]
    raise registry.unknown_name("model", name, models)


def flagship_of(sources: Sequence[str]) -> str:
    """The model to show first: `FLAGSHIP`, else the keyed and reversible one that recovers best, else the first.

    Args:
        sources: what `resolve_model` understands.

    Returns:
        The model's name; "" when there is none.

    Raises:
        UnknownNameError: one of them does not exist.
        CheckpointError: one of them is damaged.
    """
    models = [resolve_model(source) for source in sources]
    reversible = {info.name for info in registry.list_methods() if info.reversible and info.uses_key}

    def rank(place: int) -> tuple[bool, bool, float, int]:
        model = models[place]
        metrics: Mapping[str, Any] = (model.manifest or {}).get("metrics", {})
        psnr = str(metrics.get("PSNR, png, dB", "0")).split()[0]
        return model.name == FLAGSHIP, model.method in reversible, float(psnr), -place

    return models[max(range(len(models)), key=rank)].name if models else ""
