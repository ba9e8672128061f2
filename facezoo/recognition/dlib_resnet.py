"""dlib's face recogniser: a ResNet of 29 convolutions on chips of 150 x 150, 128 numbers a face.

Source: ``dlib_face_recognition_resnet_model_v1.dat`` (Davis King, dlib-models, CC0 1.0), as shipped in the package
face_recognition_models 0.3.0. Its author compares with the Euclidean distance: below 0.6 the same person (99.38 % on
LFW); 0.5 is the strict setting. dlib aligns a chip by five landmarks of its own; the window below is where such chips
lie, on average, in the project's crop.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from facezoo.recognition.base import Recogniser
from facezoo.recognition.window import TemplateWindow

__all__ = ["DLIB_MEAN_RGB", "DLIB_STRICT", "DLIB_THRESHOLD", "DlibResNet", "build_dlib"]

#: Euclidean distance below which dlib's author takes two faces for one person.
DLIB_THRESHOLD = 0.6

#: The stricter distance that surveys use.
DLIB_STRICT = 0.5

#: Mean colour that the network subtracts, 0..255 (dlib's ``input_rgb_image_sized``); the difference is divided by 256.
DLIB_MEAN_RGB = (122.782, 117.001, 104.298)

#: (channels, halves the size) of the residual blocks, from the picture on.
_BLOCKS = (
    (32, False), (32, False), (32, False),
    (64, True), (64, False), (64, False), (64, False),
    (128, True), (128, False), (128, False),
    (256, True), (256, False), (256, False),
    (256, True),
)  # fmt: skip


def dlib_window() -> TemplateWindow:
    """Where dlib's chip (150 pixels, padding 0.25) lies in the project's crop of 128."""
    return TemplateWindow(size=150, step=0.624, start_x=17.56, start_y=28.64, border="replicate")


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut without weights.

    Where the block halves the size, the shortcut is a 2 x 2 mean, and whichever of the two branches is smaller (in
    channels or in size) is filled up with zeros below and at the right, as dlib's ``add_prev`` does.

    Args:
        inputs: channels in.
        outputs: channels out.
        halves: whether the block halves the size.
    """

    def __init__(self, inputs: int, outputs: int, halves: bool) -> None:
        super().__init__()
        self.halves = halves
        self.first = nn.Conv2d(inputs, outputs, 3, stride=2 if halves else 1, padding=0 if halves else 1)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H', W')."""
        result: Tensor = self.second(functional.relu(self.first(features)))
        if self.halves:
            features = functional.avg_pool2d(features, 2, 2)
            rows = max(features.shape[2], result.shape[2])
            columns = max(features.shape[3], result.shape[3])
            result = functional.pad(result, (0, columns - result.shape[3], 0, rows - result.shape[2]))
            more = result.shape[1] - features.shape[1]
            features = functional.pad(features, (0, columns - features.shape[3], 0, rows - features.shape[2], 0, more))
        return functional.relu(result + features)


class DlibResNet(nn.Module):
    """The network: 150 x 150 RGB in [-1, 1] -> 128 numbers.

    The affine layers and the input's normalisation are folded into the convolutions (the first one has no padding, so
    this is exact).
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 7, stride=2)
        channels = 32
        blocks = []
        for outputs, halves in _BLOCKS:
            blocks.append(ResidualBlock(channels, outputs, halves))
            channels = outputs
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Linear(channels, 128, bias=False)

    def forward(self, pictures: Tensor) -> Tensor:
        """(B, 3, 150, 150) in [-1, 1], RGB -> (B, 128)."""
        features: Tensor = functional.relu(self.stem(pictures.contiguous(memory_format=torch.channels_last)))
        features = functional.max_pool2d(features, 3, 2)
        for block in self.blocks:
            features = block(features)
        embeddings: Tensor = self.head(features.mean((2, 3)))
        return embeddings


def build_dlib(tensors: Mapping[str, Tensor]) -> Recogniser:
    """Builds the recogniser from the bundled file, which is a state dict of ``DlibResNet``."""
    network = DlibResNet()
    network.load_state_dict(dict(tensors), strict=True)
    network = network.to(memory_format=torch.channels_last)
    return Recogniser("dlib", network, dlib_window(), dim=128, licence="CC0-1.0", metric="euclidean")
