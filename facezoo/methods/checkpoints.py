"""What every learned method does with its checkpoint folder: read the configuration, fill the networks, strictly."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from facezoo.core.configuration import build_strict
from facezoo.errors import CheckpointError, InputError
from facezoo.files import checkpoint_file, network_files

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

    Raises:
        CheckpointError: a file that is missing, damaged, or does not fit its network exactly.
    """
    files = network_files(manifest)
    for name, network in networks.items():
        paths = [checkpoint_file(folder, manifest, file) for file in files.get(name, [f"{name}.safetensors"])]
        path = paths[0]
        try:
            state: dict[str, Tensor] = {}
            for path in paths:
                part = load_file(path)
                if twice := sorted(set(part) & set(state)):
                    raise RuntimeError(f"{twice[0]} is in two of its parts")
                state |= part
            network.load_state_dict(state, strict=True)
        except (OSError, SafetensorError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise CheckpointError(f"{path} does not fit its config ({reason}); get a fresh copy") from error
