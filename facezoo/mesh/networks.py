"""The two networks of the face mesh, written out: a face's 468 points, and an eye's iris.

Source: Kartynnik et al., "Real-time Facial Surface Geometry from Monocular Video on Mobile GPUs" (2019) and Ablavatski
et al., "Real-time Pupil Tracking from Monocular Video for Digital Puppetry" (2020); the layers are those of Google's
``face_landmark.tflite`` and ``iris_landmark.tflite`` (MediaPipe, Apache-2.0), from which ``scripts/convert_mesh.py``
took the weights. Both are stacks of residual blocks, then one head for each answer.

Both take pictures in [0, 1], RGB, and answer in pixels of their input, as the originals do (``facezoo.mesh.model``
turns them into the project's pixels). Parameters are frozen; gradients flow to the pictures.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from facezoo.recognition.layers import ChannelPReLU

__all__ = ["IrisNetwork", "MeshNetwork"]

#: Residual blocks of the mesh network's trunk, 192 -> 6 pixels: (channels out, stride).
_MESH_TRUNK = (
    (16, 1), (16, 1),
    (32, 2), (32, 1), (32, 1),
    (64, 2), (64, 1), (64, 1),
    (128, 2), (128, 1), (128, 1),
    (128, 2), (128, 1), (128, 1),
)  # fmt: skip

#: Blocks of its two heads, 6 -> 3 pixels, before their last 32 channels.
_MESH_POINTS = ((128, 2), (128, 1), (128, 1))
_MESH_FLAG = ((128, 2),)

#: Bottleneck blocks of the iris network's trunk, 64 -> 8 pixels: (channels out, stride).
_IRIS_TRUNK = (
    (64, 1), (64, 1), (64, 1), (64, 1),
    (128, 2), (128, 1), (128, 1), (128, 1), (128, 1),
    (128, 2),
)  # fmt: skip

#: Blocks of each of its two heads, 8 -> 2 pixels.
_IRIS_HEAD = ((128, 1), (128, 1), (128, 2), (128, 1), (128, 1), (128, 2), (128, 1), (128, 1))


def _shortcut(features: Tensor, channels: int, stride: int) -> Tensor:
    """What a block adds to its result: its input, halved by the largest value, with zeros for further channels."""
    if stride == 2:
        features = functional.max_pool2d(features, 2)
    more = channels - features.shape[1]
    return functional.pad(features, (0, 0, 0, 0, 0, more)) if more else features


class _HalvingConv(nn.Conv2d):
    """A 3 x 3 convolution of stride 2 that is padded below and at the right only (TensorFlow's "same")."""

    def __init__(self, inputs: int, outputs: int, groups: int = 1) -> None:
        super().__init__(inputs, outputs, 3, 2, groups=groups)

    def forward(self, features: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H / 2, W / 2), H and W even."""
        return super().forward(functional.pad(features, (0, 1, 0, 1)))


class _SeparableBlock(nn.Module):
    """Depthwise 3 x 3, then 1 x 1, plus the shortcut, then PReLU (the mesh network's block)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.outputs = outputs
        self.stride = stride
        self.depthwise = (
            _HalvingConv(inputs, inputs, inputs)
            if stride == 2
            else nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs)
        )
        self.pointwise = nn.Conv2d(inputs, outputs, 1)
        self.activation = ChannelPReLU(outputs)

    def forward(self, features: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H / stride, W / stride)."""
        result = self.pointwise(self.depthwise(features))
        activated: Tensor = self.activation(result + _shortcut(features, self.outputs, self.stride))
        return activated


class _BottleneckBlock(nn.Module):
    """Half the channels, PReLU, depthwise 3 x 3, all channels, plus the shortcut, then PReLU (the iris network's)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.outputs = outputs
        self.stride = stride
        middle = outputs // 2
        self.reduce = nn.Conv2d(inputs, middle, stride, stride)
        self.middle = ChannelPReLU(middle)
        self.depthwise = nn.Conv2d(middle, middle, 3, padding=1, groups=middle)
        self.expand = nn.Conv2d(middle, outputs, 1)
        self.activation = ChannelPReLU(outputs)

    def forward(self, features: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H / stride, W / stride)."""
        result = self.expand(self.depthwise(self.middle(self.reduce(features))))
        activated: Tensor = self.activation(result + _shortcut(features, self.outputs, self.stride))
        return activated


def _stack(block: type[nn.Module], inputs: int, table: tuple[tuple[int, int], ...]) -> nn.Sequential:
    """Blocks one after another, from a table of (channels out, stride)."""
    blocks = []
    for outputs, stride in table:
        blocks.append(block(inputs, outputs, stride))
        inputs = outputs
    return nn.Sequential(*blocks)


def _mesh_head(table: tuple[tuple[int, int], ...], answers: int) -> nn.Sequential:
    """(B, 128, 6, 6) -> (B, answers, 1, 1)."""
    return nn.Sequential(
        *_stack(_SeparableBlock, 128, table),
        nn.Conv2d(128, 32, 1),
        ChannelPReLU(32),
        _SeparableBlock(32, 32, 1),
        nn.Conv2d(32, answers, 3),
    )


def _iris_head(answers: int) -> nn.Sequential:
    """(B, 128, 8, 8) -> (B, answers, 1, 1)."""
    return nn.Sequential(*_stack(_BottleneckBlock, 128, _IRIS_HEAD), nn.Conv2d(128, answers, 2))


class _TwoHeads(nn.Module):
    """A trunk with two heads, frozen."""

    def __init__(self, trunk: nn.Sequential, first: nn.Sequential, second: nn.Sequential) -> None:
        super().__init__()
        self.trunk = trunk
        self.first = first
        self.second = second
        self.requires_grad_(False)
        self.eval()


class MeshNetwork(_TwoHeads):
    """468 points of a face, and whether there is one."""

    size = 192

    def __init__(self) -> None:
        stem = (_HalvingConv(3, 16), ChannelPReLU(16))
        trunk = nn.Sequential(*stem, *_stack(_SeparableBlock, 16, _MESH_TRUNK))
        super().__init__(trunk, _mesh_head(_MESH_POINTS, 468 * 3), _mesh_head(_MESH_FLAG, 1))

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Runs the network.

        Args:
            pictures: (B, 3, 192, 192) in [0, 1], RGB.

        Returns:
            Points (B, 468, 3) in pixels of the input (x, y, and depth: negative is nearer to the camera than the face's
            middle), and the flag (B,): a logit, positive for a face.
        """
        features = self.trunk(pictures)
        return self.first(features).view(-1, 468, 3), self.second(features).flatten()


class IrisNetwork(_TwoHeads):
    """71 points around an eye and 5 of its iris, for the eye at the left of an upright picture."""

    size = 64

    def __init__(self) -> None:
        stem = (_HalvingConv(3, 64), ChannelPReLU(64))
        trunk = nn.Sequential(*stem, *_stack(_BottleneckBlock, 64, _IRIS_TRUNK))
        super().__init__(trunk, _iris_head(71 * 3), _iris_head(5 * 3))

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Runs the network.

        Args:
            pictures: (B, 3, 64, 64) in [0, 1], RGB, of the eye at the left of the picture (mirror the other one).

        Returns:
            Points of the lids and brow (B, 71, 3), and of the iris (B, 5, 3): centre, then right, top, left and bottom
            of its rim; both in pixels of the input.
        """
        features = self.trunk(pictures)
        return self.first(features).view(-1, 71, 3), self.second(features).view(-1, 5, 3)
