"""A user's ONNX recogniser as a judge: preprocessing from a yaml file beside it, ONNX Runtime, no gradients.

``my.onnx`` is read with ``my.yaml``; without one it is taken to be ArcFace-like (RGB, (x - 127.5) / 127.5, 112 pixels
aligned to the ArcFace template). Every line of the yaml is optional:

    name: my_net        # in tables; the file's name where it is left out
    metric: cosine      # or euclidean: how its authors compare
    channels: rgb       # or bgr
    layout: nchw        # or nhwc
    mean: 127.5         # one number or three (in the order of the channels), of values from 0 to 255
    std: 128.0          # likewise: the network gets (x - mean) / std
    window: arcface     # the ArcFace template at the network's size; or crop: the whole aligned crop
    output: embedding   # name of the output, where there are several
    threshold: 0.4      # published, in the network's own unit: stands beside those from impostors
    licence: MIT
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from facezoo.errors import CheckpointError, InputError
from facezoo.recognition.base import Metric, Recogniser
from facezoo.recognition.window import TemplateWindow

__all__ = ["OnnxNetwork", "OnnxPreprocessing", "build_onnx", "read_preprocessing"]

_ARCFACE_SIZE = 112

_CHOICES = {
    "metric": ("cosine", "euclidean"),
    "channels": ("rgb", "bgr"),
    "layout": ("nchw", "nhwc"),
    "window": ("arcface", "crop"),
}


@dataclass(frozen=True)
class OnnxPreprocessing:
    """What an ONNX recogniser wants to see; the module's text has the fields with their defaults.

    Raises:
        InputError: a value of the wrong kind or out of range.
    """

    name: str = ""
    metric: Metric = "cosine"
    channels: Literal["rgb", "bgr"] = "rgb"
    layout: Literal["nchw", "nhwc"] = "nchw"
    mean: tuple[float, float, float] = (127.5, 127.5, 127.5)
    std: tuple[float, float, float] = (127.5, 127.5, 127.5)
    window: Literal["arcface", "crop"] = "arcface"
    output: str = ""
    threshold: float | None = None
    licence: str = "of the user's weights"

    def __post_init__(self) -> None:
        """Refuses what would be found out in the middle of an evaluation."""
        for field, choices in _CHOICES.items():
            if getattr(self, field) not in choices:
                raise InputError(f"{field}: {getattr(self, field)!r} is none of {', '.join(choices)}")
        for field in ("name", "output", "licence"):
            if not isinstance(getattr(self, field), str):
                raise InputError(f"{field}: must be text, not {getattr(self, field)!r}")
        if min(self.std) <= 0:
            raise InputError(f"std: must be above 0, not {self.std}")


def _number(field: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{field}: {value!r} is no number")
    return float(value)


def _three(field: str, value: Any) -> tuple[float, float, float]:
    values = value if isinstance(value, list) else [value] * 3
    if len(values) != 3:
        raise InputError(f"{field}: one number or three are needed, not {len(values)}")
    first, second, third = (_number(field, entry) for entry in values)
    return first, second, third


def read_preprocessing(path: Path) -> OnnxPreprocessing:
    """Reads a judge's yaml file.

    Raises:
        InputError: it cannot be read, or a field is unknown or wrong; the message names the file and the field.
    """
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path} cannot be read as yaml: {' '.join(str(error).split())[:160]}") from None
    if content is None:
        content = {}
    known = [field.name for field in dataclasses.fields(OnnxPreprocessing)]
    if not isinstance(content, dict) or not set(content) <= set(known):
        unknown = sorted(map(str, set(content) - set(known))) if isinstance(content, dict) else [type(content).__name__]
        raise InputError(f"{path}: unknown field {', '.join(unknown)}; there are {', '.join(known)}")
    values: dict[str, Any] = dict(content)
    try:
        for field in ("mean", "std"):
            if field in values:
                values[field] = _three(field, values[field])
        if values.get("threshold") is not None:
            values["threshold"] = _number("threshold", values["threshold"])
        return OnnxPreprocessing(**values)
    except InputError as error:
        raise InputError(f"{path}: {error.message}") from None


class OnnxNetwork(nn.Module):
    """Runs an ONNX file on the CPU.

    Args:
        path: a file with one input (N or 1, 3, S, S) or (N or 1, S, S, 3), and an output (N or 1, D).
        preprocessing: what it wants to see.

    Raises:
        CheckpointError: if ``onnxruntime`` is missing, the file cannot be read, or its input has another shape.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, path: Path, preprocessing: OnnxPreprocessing | None = None) -> None:
        super().__init__()
        try:
            import onnxruntime
        except ImportError:
            raise CheckpointError(
                f"{path.name} needs ONNX Runtime: pip install onnxruntime, or give a .pt or .safetensors file."
            ) from None
        settings = OnnxPreprocessing() if preprocessing is None else preprocessing
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime raises its own, undocumented classes
            raise CheckpointError(f"{path} cannot be read as ONNX: {str(error)[:200]}") from None
        inputs = self.session.get_inputs()
        shape = list(inputs[0].shape) if inputs else []
        self.last = settings.layout == "nhwc"
        places = (3, 1, 2) if self.last else (1, 2, 3)
        found: list[Any] = [shape[place] for place in places] if len(shape) == 4 else [None, None]
        channels, *sides = found
        if len(inputs) != 1 or channels not in (3, None) or len(set(sides)) != 1 or not _is_side(sides[0]):
            wanted = "(N, S, S, 3)" if self.last else "(N, 3, S, S)"
            raise CheckpointError(
                f"{path} has the inputs {[i.shape for i in inputs]}; needed is one of {wanted} with S from 16 to 512 "
                "(set layout in the yaml beside it)."
            )
        outputs = [output.name for output in self.session.get_outputs()]
        if settings.output and settings.output not in outputs:
            raise CheckpointError(f"{path} has no output {settings.output!r}; it has {', '.join(outputs)}")
        self.output = settings.output or outputs[0]
        self.size: int = sides[0]
        self.bgr = settings.channels == "bgr"
        self.register_buffer("mean", torch.tensor(settings.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(settings.std).view(1, 3, 1, 1), persistent=False)
        self.input_name: str = inputs[0].name
        self.one_at_a_time = shape[0] == 1
        with torch.no_grad():
            self.dim = int(self(torch.zeros(1, 3, self.size, self.size)).shape[1])

    def forward(self, pictures: Tensor) -> Tensor:
        """(B, 3, S, S) in [-1, 1], RGB -> (B, dim), without a gradient.

        Raises:
            CheckpointError: if a gradient is wanted; it would silently be zero.
        """
        if pictures.requires_grad and torch.is_grad_enabled():
            raise CheckpointError("An ONNX recogniser has no gradients: use it as a judge, not as a training loss.")
        values = (pictures + 1) * 127.5
        if self.bgr:
            values = values.flip(1)
        values = (values - self.mean) / self.deviation
        if self.last:
            values = values.permute(0, 2, 3, 1)
        parts = torch.split(values, 1) if self.one_at_a_time else [values]
        outputs = [
            self.session.run([self.output], {self.input_name: np.ascontiguousarray(part.cpu().numpy())})[0]
            for part in parts
        ]
        return torch.from_numpy(np.concatenate(outputs).reshape(len(pictures), -1)).to(pictures.device)


def _is_side(value: object) -> bool:
    return isinstance(value, int) and 16 <= value <= 512


def build_onnx(path: Path, preprocessing: OnnxPreprocessing | None = None) -> Recogniser:
    """Builds the recogniser; see ``OnnxNetwork`` for what the file must be.

    Args:
        path: the ONNX file.
        preprocessing: what it wants to see; None: the yaml file of the same name beside it, or ArcFace's habits.

    Raises:
        CheckpointError: the ONNX file cannot be used.
        InputError: the yaml file cannot be used.
    """
    guessed = False
    if preprocessing is None:
        beside = path.with_suffix(".yaml")
        guessed = not beside.is_file()
        preprocessing = OnnxPreprocessing() if guessed else read_preprocessing(beside)
    network = OnnxNetwork(path, preprocessing)
    size = network.size
    if guessed and size != _ARCFACE_SIZE:
        raise CheckpointError(
            f"{path} wants {size} pixels; needed is one of {_ARCFACE_SIZE}, or {beside.name} beside it that says how "
            "faces are cut (window) and scaled (mean, std)"
        )
    if preprocessing.window == "arcface":
        # The crop is point128 = (point112 - (56, 72)) * 0.945 + (64, 76).
        window = TemplateWindow(size, 0.945 * 112 / size, 64 - 56 * 0.945, 76 - 72 * 0.945)
    else:
        window = TemplateWindow(size, 128 / size, 0.0, 0.0)
    published = () if preprocessing.threshold is None else (preprocessing.threshold,)
    return Recogniser(
        preprocessing.name or path.stem,
        network,
        window,
        dim=network.dim,
        licence=preprocessing.licence,
        metric=preprocessing.metric,
        published=published,
    )
