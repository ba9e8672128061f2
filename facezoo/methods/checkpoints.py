"""What every learned method does with its checkpoint folder: read the configuration, fill the networks, strictly."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from facezoo.core.configuration import build_strict
from facezoo.errors import CheckpointError, InputError
from facezoo.hub.manifest import load_networks, load_strictly

__all__ = ["checkpoint_config", "fill_networks"]

Config = TypeVar("Config")


def checkpoint_config(kind: type[Config], folder: Path, manifest: Mapping[str, Any]) -> Config:
    """The method's configuration dataclass out of a checkpoint's manifest.

    Raises:
        CheckpointError: an unknown key, or a value of another type or out of range.
    """
    try:
        return build_strict(kind, manifest["config"], f"{folder}: config")
    except InputError as error:
        raise CheckpointError(f"{error}; get a fresh copy of the checkpoint") from error


def fill_networks(networks: Mapping[str, nn.Module], folder: Path, manifest: Mapping[str, Any]) -> None:
    """Fill each network from the safetensors files of its name, wherever the manifest says that they lie.

    The bytes that are loaded are the bytes that are hashed, see `load_networks`.

    Raises:
        CheckpointError: a file that is missing, damaged, altered or not finite, or does not fit its network exactly.
    """
    states = load_networks(folder, manifest, names=list(networks))
    for name, network in networks.items():
        if name not in states:
            raise CheckpointError(
                f"{folder / name}.safetensors is not in the manifest, so the checkpoint does not fit its method; get a "
                "fresh copy"
            )
        load_strictly(network, states[name], f"{folder / name}.safetensors")
