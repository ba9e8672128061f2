"""LPIPS (Zhang et al., "The Unreasonable Effectiveness of Deep Features", CVPR 2018, version 0.1).

The distance of two pictures is the weighted squared difference of their normalised features, averaged over places and
summed over the network's layers. Networks and heads are those of the package ``lpips``; the backbone's ImageNet
weights, which its wheel does not hold, are put in by ``facezoo.frozen.load_lpips``.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Final, Literal, get_args

import torch
from torch import Tensor, nn

from facezoo.errors import CheckpointError

__all__ = ["LPIPS", "LPIPSNet"]

LPIPSNet = Literal["alex", "vgg", "squeeze"]
_CLASSES: Final = {"alex": "alexnet", "vgg": "vgg16", "squeeze": "squeezenet"}


def _package() -> ModuleType:
    """The package ``lpips``, imported when an LPIPS is made and not before: it brings torchvision.

    Raises:
        CheckpointError: it is not installed, or its torchvision does not fit torch.
    """
    try:
        import lpips
    except ImportError as error:
        raise CheckpointError(f"LPIPS needs the package lpips ({error}): pip install 'facezoo[eval]'") from None
    except RuntimeError as error:  # torchvision::nms does not exist
        raise CheckpointError(
            f"LPIPS needs a torchvision that fits torch {torch.__version__} ({str(error).splitlines()[0]}): "
            "install both in one step, pip install --upgrade 'facezoo[eval]'"
        ) from None
    return lpips


class LPIPS(nn.Module):
    """Perceptual distance; frozen, and in evaluation mode always.

    The heads hold the package's weights; the backbone's are random until ``load_layers`` puts them in.

    Args:
        net: AlexNet, VGG-16 or SqueezeNet 1.1.

    Attributes:
        net: The same.
        channels: Of the features of each layer.
        heads: A convolution of 1x1 for each layer: what its squared differences weigh.

    Raises:
        ValueError: Another network.
        CheckpointError: The package lpips is missing or does not work.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, net: LPIPSNet = "alex") -> None:
        super().__init__()
        if net not in get_args(LPIPSNet):
            raise ValueError(f"LPIPS has the networks {', '.join(get_args(LPIPSNet))}, not {net!r}")
        self.net = net
        package = _package()
        # On no device at first: the package builds torchvision's whole classifiers (VGG: 550 MB) and keeps a part.
        with warnings.catch_warnings(), torch.device("meta"):
            warnings.simplefilter("ignore")  # it names torchvision's arguments as they once were
            backbone = getattr(package.pretrained_networks, _CLASSES[net])(pretrained=False)
        self.backbone: nn.Module = backbone.to_empty(device="cpu")
        for layer in self.backbone.modules():
            if isinstance(layer, nn.Conv2d):
                layer.reset_parameters()
        heads = Path(str(package.__file__)).parent / "weights" / "v0.1" / f"{net}.pth"
        state = torch.load(heads, map_location="cpu", weights_only=True)
        weights = [state[f"lin{layer}.model.1.weight"] for layer in range(len(state))]
        self.channels = tuple(int(weight.shape[1]) for weight in weights)
        self.heads = nn.ModuleList(nn.Conv2d(width, 1, 1, bias=False) for width in self.channels)
        for head, weight in zip(self.heads, weights, strict=True):
            head.load_state_dict({"weight": weight})
        # ImageNet's mean and deviation, for pictures in [-1, 1].
        self.register_buffer("mean", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False).eval()

    def load_layers(self, layers: Mapping[str, Tensor]) -> None:
        """Puts the backbone's weights in.

        Args:
            layers: Weights and biases of its convolutions, named with their numbers in order, as in torchvision's state
                dict (``features.0.weight``, ``features.3.squeeze.bias``); the numbers themselves do not matter.

        Raises:
            ValueError: Other tensors than this backbone's.
        """
        own = self.backbone.state_dict()
        pairs = list(zip(sorted(own, key=_in_order), sorted(layers, key=_in_order), strict=False))
        if len(own) != len(layers) or any(own[a].shape != layers[b].shape for a, b in pairs):
            raise ValueError(f"{len(layers)} tensors, or their shapes, are not those of {_CLASSES[self.net]}")
        self.backbone.load_state_dict({a: layers[b] for a, b in pairs})

    def train(self, mode: bool = True) -> LPIPS:
        """Stays in evaluation mode."""
        del mode
        super().train(False)
        return self

    def activations(self, pictures: Tensor) -> list[Tensor]:
        """The backbone's features after its rectifiers, of ``(B, 3, H, W)`` in [-1, 1], H and W at least 32."""
        return list(self.backbone((pictures - self.mean) / self.deviation))

    def maps(self, pictures: Tensor) -> list[Tensor]:
        """The same, each place's features divided by their norm, as LPIPS compares them."""
        return [x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10) for x in self.activations(pictures)]

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Distance of each pair: two times ``(B, 3, H, W)`` in [-1, 1] -> ``(B,)``; 0 for equal ones."""
        total = torch.zeros(len(first), device=first.device)
        for a, b, head in zip(self.maps(first), self.maps(second), self.heads, strict=True):
            total = total + head((a - b).square()).mean((1, 2, 3))
        return total


def _in_order(name: str) -> list[tuple[int, str]]:
    """Sorts layer 2 before layer 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
