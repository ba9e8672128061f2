"""What every learned method does with its checkpoint folder: read the configuration, fill the networks, strictly."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from facezoo.core.configuration import build_strict
from facezoo.errors import CheckpointError, InputError
from facezoo.files import checkpoint_file

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
    """Fill each network from the safetensors file of its name, wherever the manifest says that it lies.

    Raises:
        CheckpointError: a file that is missing, damaged, or does not fit its network exactly.
    """
    for name, network in networks.items():
        path = checkpoint_file(folder, manifest, f"{name}.safetensors")
        try:
            network.load_state_dict(load_file(path), strict=True)
        except (OSError, SafetensorError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise CheckpointError(f"{path} does not fit its config ({reason}); get a fresh copy") from error
