"""The bundled recognisers against their originals, by committed vectors: needs neither ONNX Runtime nor dlib.

``scripts/recogniser_references.py`` made the file with the original programs and is where the pictures come from.
``test_recognition.py`` compares with the originals themselves where they are installed.
"""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from facezoo.recognition import load_recogniser

HERE = Path(__file__).parent
REFERENCES = json.loads((HERE / "recogniser_references.json").read_text())


@pytest.fixture(scope="module")
def script():
    path = HERE.parents[1] / "scripts" / "recogniser_references.py"
    spec = importlib.util.spec_from_file_location("recogniser_references", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("name", "size", "tolerance"), [("sface", 112, 1e-5), ("dlib", 150, 1e-6)])
def test_every_number_is_that_of_the_original(script, name: str, size: int, tolerance: float):
    pictures = script.reference_pictures(size)
    expected = REFERENCES[name]["embeddings"]
    assert list(pictures) == list(expected)
    pixels = torch.from_numpy(np.stack(list(pictures.values()))).permute(0, 3, 1, 2).float()
    with torch.no_grad():
        found = load_recogniser(name).network(pixels / 127.5 - 1)
    assert found.shape == (4, 128)
    wanted = torch.tensor(list(expected.values()))
    assert (found - wanted).abs().max() <= tolerance * (1 + wanted.abs().max())
    # The comparison is worth something: the pictures' vectors differ by far more than the tolerance.
    assert torch.pdist(wanted).min() > 1e3 * tolerance


def test_the_references_are_of_the_files_that_were_converted():
    source = (HERE.parents[1] / "scripts" / "convert_recognisers.py").read_text()
    for name in ("sface", "dlib"):
        (digest,) = re.findall(rf'^{name.upper()}_SHA256 = "([0-9a-f]+)"', source, re.MULTILINE)
        assert REFERENCES[name]["sha256"] == digest
