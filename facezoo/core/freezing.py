"""Layers that stay as they are while a trained model is adapted to few pictures.

A preset names parameters, not networks, so that it fits every method: each network that came from the checkpoint keeps
a part of its layers, bit by bit. Networks that start from random weights (a discriminator, which no checkpoint carries)
are never frozen.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from torch import nn

__all__ = ["PRESETS", "freeze_layers", "frozen_parameters"]

PRESETS: Final[dict[str, str]] = {
    "none": "every layer learns",
    "late": "the first half of every network's layers stays, the later ones learn",
    "biases": "only biases and scales learn (one number a channel); what every layer looks for stays",
}
"""What ``train.freeze`` may say. "late" is the idea of FreezeD (Mo et al., 2020), "biases" that of BitFit (2022)."""


def frozen_parameters(networks: Mapping[str, nn.Module], preset: str) -> dict[str, frozenset[str]]:
    """Names of the parameters that stay, by network.

    Args:
        networks: the networks that came from a checkpoint.
        preset: one of ``PRESETS``.

    Returns:
        For each network the names of its frozen parameters; at least one of every network learns.

    Raises:
        ValueError: no such preset.
    """
    if preset not in PRESETS:
        raise ValueError(f"freeze must be one of {', '.join(PRESETS)}, not {preset!r}")
    frozen: dict[str, frozenset[str]] = {}
    for name, network in networks.items():
        parameters = dict(network.named_parameters())
        chosen: Iterable[str] = ()
        if preset == "late":
            # Layers and not parameters are halved, so that a layer's weight and bias stay or learn together.
            layers = list(dict.fromkeys(parameter.rpartition(".")[0] for parameter in parameters))
            early = set(layers[: len(layers) // 2])
            chosen = [parameter for parameter in parameters if parameter.rpartition(".")[0] in early]
        elif preset == "biases":
            chosen = [parameter for parameter, value in parameters.items() if value.squeeze().dim() > 1]
        frozen[name] = frozenset(chosen) if len(set(chosen)) < len(parameters) else frozenset()
    return frozen


def freeze_layers(network: nn.Module, frozen: frozenset[str]) -> None:
    """Freezes parameters of a network that learns, and the running statistics of layers that are frozen whole."""
    for name, parameter in network.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)
            parameter.grad = None
    for module in network.modules():
        own = list(module.parameters(recurse=False))
        if own and not any(parameter.requires_grad for parameter in own):
            module.eval()
