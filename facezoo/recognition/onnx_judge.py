"""A user's ONNX recogniser as a judge: ArcFace's habits, ONNX Runtime, no gradients."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from facezoo.errors import CheckpointError
from facezoo.recognition.base import Recogniser
from facezoo.recognition.sface import arcface_window

__all__ = ["OnnxNetwork", "build_onnx"]


class OnnxNetwork(nn.Module):
    """Runs an ONNX file on the CPU.

    Args:
        path: a file with one input (N or 1, 3, 112, 112), RGB in [-1, 1], and one output (N or 1, D).

    Raises:
        CheckpointError: if ``onnxruntime`` is missing, the file cannot be read, or its input has another shape.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        try:
            import onnxruntime
        except ImportError:
            raise CheckpointError(
                f"{path.name} needs ONNX Runtime: pip install onnxruntime, or give a .pt or .safetensors file."
            ) from None
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime raises its own, undocumented classes
            raise CheckpointError(f"{path} cannot be read as ONNX: {str(error)[:200]}") from None
        inputs = self.session.get_inputs()
        shape = inputs[0].shape if inputs else []
        if len(inputs) != 1 or len(shape) != 4 or shape[1] not in (3, None) or set(shape[2:]) != {112}:
            raise CheckpointError(
                f"{path} has the inputs {[i.shape for i in inputs]}; needed is one of (N, 3, 112, 112)."
            )
        self.input_name: str = inputs[0].name
        self.one_at_a_time = shape[0] == 1
        with torch.no_grad():
            self.dim = int(self(torch.zeros(1, 3, 112, 112)).shape[1])

    def forward(self, pictures: Tensor) -> Tensor:
        """(B, 3, 112, 112) in [-1, 1], RGB -> (B, dim), without a gradient.

        Raises:
            CheckpointError: if a gradient is wanted; it would silently be zero.
        """
        if pictures.requires_grad and torch.is_grad_enabled():
            raise CheckpointError("An ONNX recogniser has no gradients: use it as a judge, not as a training loss.")
        parts = torch.split(pictures, 1) if self.one_at_a_time else [pictures]
        outputs = [self.session.run(None, {self.input_name: part.cpu().numpy()})[0] for part in parts]
        return torch.from_numpy(np.concatenate(outputs).reshape(len(pictures), -1)).to(pictures.device)


def build_onnx(path: Path) -> Recogniser:
    """Builds the recogniser; see ``OnnxNetwork`` for what the file must be."""
    network = OnnxNetwork(path)
    return Recogniser(path.stem, network, arcface_window(), dim=network.dim, licence="of the user's weights")
