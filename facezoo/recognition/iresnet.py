"""ArcFace's residual networks (insightface "iresnet"), for weights that a user brings.

Source of the layout: insightface ``recognition/arcface_torch/backbones/iresnet.py`` (Deng et al., "ArcFace", 2019).
112 x 112 RGB in [-1, 1], usually 512 numbers. The module names are those of insightface's state dicts, so that they
load strictly. insightface's pretrained weights are for non-commercial research; their licence is the user's business.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from facezoo.errors import CheckpointError
from facezoo.recognition.base import Recogniser
from facezoo.recognition.layers import ChannelPReLU
from facezoo.recognition.sface import arcface_window

__all__ = ["DEPTHS", "IResNet", "build_iresnet"]

#: Residual blocks of the four stages, by name.
DEPTHS = {
    "iresnet18": (2, 2, 2, 2),
    "iresnet34": (3, 4, 6, 3),
    "iresnet50": (3, 4, 14, 3),
    "iresnet100": (3, 13, 30, 3),
    "iresnet200": (6, 26, 60, 6),
}
_EPSILON = 1e-5


class _Block(nn.Module):
    """Normalise, convolve, normalise, PReLU, convolve, normalise; plus the shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs, eps=_EPSILON)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs, eps=_EPSILON)
        self.prelu = ChannelPReLU(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs, eps=_EPSILON)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs, eps=_EPSILON)
            )

    def forward(self, features: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H / stride, W / stride)."""
        result = self.prelu(self.bn2(self.conv1(self.bn1(features))))
        total: Tensor = self.bn3(self.conv2(result)) + self.downsample(features)
        return total


class IResNet(nn.Module):
    """The network: 112 x 112 RGB in [-1, 1] -> ``dim`` numbers, not normalised.

    Args:
        depth: blocks of the four stages.
        dim: length of the vector.
    """

    def __init__(self, depth: tuple[int, int, int, int], dim: int = 512) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64, eps=_EPSILON)
        self.prelu = ChannelPReLU(64)
        self.layer1 = self._stage(64, 64, depth[0])
        self.layer2 = self._stage(64, 128, depth[1])
        self.layer3 = self._stage(128, 256, depth[2])
        self.layer4 = self._stage(256, 512, depth[3])
        self.bn2 = nn.BatchNorm2d(512, eps=_EPSILON)
        self.fc = nn.Linear(512 * 7 * 7, dim)
        self.features = nn.BatchNorm1d(dim, eps=_EPSILON)

    @staticmethod
    def _stage(inputs: int, outputs: int, blocks: int) -> nn.Sequential:
        first = _Block(inputs, outputs, 2)
        return nn.Sequential(first, *[_Block(outputs, outputs, 1) for _ in range(blocks - 1)])

    def forward(self, pictures: Tensor) -> Tensor:
        """(B, 3, 112, 112) in [-1, 1], RGB -> (B, dim)."""
        features = self.prelu(self.bn1(self.conv1(pictures.contiguous(memory_format=torch.channels_last))))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            features = stage(features)
        embeddings: Tensor = self.features(self.fc(self.bn2(features).flatten(1)))
        return embeddings


def _depth(state: Mapping[str, Tensor]) -> tuple[int, int, int, int]:
    """Counts the blocks of each stage in a state dict."""

    def blocks(stage: int) -> int:
        prefix = f"layer{stage}."
        return len({name.split(".")[1] for name in state if name.startswith(prefix)})

    return blocks(1), blocks(2), blocks(3), blocks(4)


def build_iresnet(state: Mapping[str, Tensor], source: str) -> Recogniser:
    """Builds the recogniser from an insightface state dict; the depth is read from its names.

    Args:
        state: the state dict.
        source: where it came from, for messages.

    Raises:
        CheckpointError: if the stages have no known depth, or a tensor is missing, unknown or of another shape.
    """
    depth = _depth(state)
    name = next((name for name, blocks in DEPTHS.items() if blocks == depth), None)
    if name is None or "fc.weight" not in state:
        raise CheckpointError(f"{source} is no insightface iresnet: its stages have {depth} blocks; use r18 to r200.")
    network = IResNet(depth, dim=state["fc.weight"].shape[0])
    network.load_state_dict(dict(state), strict=True)
    network = network.to(memory_format=torch.channels_last)
    return Recogniser(name, network, arcface_window(), dim=network.fc.out_features, licence="of the user's weights")
