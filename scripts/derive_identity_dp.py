"""Makes an identity_dp checkpoint of an identity_rotation checkpoint: the same networks, shared, not copied.

    python scripts/derive_identity_dp.py identity_rotation.faces128 --data packed/train128.safetensors

The book's stage I is what identity_rotation trains in its first phase. What is added here is the book's empirical
sensitivity (5.12): the greatest l1 distance between identity vectors of the training set. The words of the card are
``MODEL_CARDS/text/NAME.yaml``; figures come from ``--evaluation`` or, where there is none yet, from ``--curves``
(``facezoo curves NAME --vary epsilon=...``).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from publish_checkpoint import ROOT, figures_of_curves, headline, read_text
from torch.nn import functional

from facezoo.core.configuration import build_strict
from facezoo.data.packed import PackedFaces
from facezoo.errors import FacezooError, InputError
from facezoo.files import atomic_write
from facezoo.hub import card, registry_file
from facezoo.hub.manifest import read_manifest, verify_files, write_checkpoint
from facezoo.methods.identity_dp.config import IdentityDPConfig
from facezoo.methods.identity_dp.method import painter_of
from facezoo.privacy.sensitivity import greatest_seen

MEASURED_ON = 5000
"""Faces of the training set, evenly chosen, among which the greatest distance is looked for."""


def book_sensitivity(data: Path, recogniser: str) -> tuple[float, int]:
    """The greatest l1 distance between identity vectors, and among how many faces.

    Raises:
        InputError: the set has no vectors of this recogniser.
    """
    faces = PackedFaces(data)
    field = f"embedding_{recogniser}"
    if field not in faces:
        raise InputError(f"{data} has no {field}; a training run of identity_rotation adds it")
    rows = np.arange(0, len(faces), max(1, len(faces) // MEASURED_ON))
    vectors = functional.normalize(torch.from_numpy(np.array(faces.array(field))[rows]).double(), dim=-1)
    return greatest_seen(vectors, "l1").value, len(rows)


def derive(
    source: str, data: Path, evaluation: Path | None = None, curves: Path | None = None, root: Path = ROOT
) -> Path:
    """Writes checkpoint, card and registry. Returns the folder.

    Raises:
        FacezooError: as the parts say.
    """
    checkpoints = root / "checkpoints"
    manifest, _ = read_manifest(checkpoints / source)
    verify_files(checkpoints / source, manifest)
    if manifest["method"] != "identity_rotation":
        raise InputError(
            f"{source} is a checkpoint of {manifest['method']}; identity_dp paints with identity_rotation's"
        )
    name = f"identity_dp.{source.partition('.')[2]}"
    old = manifest["config"]
    greatest, count = book_sensitivity(data, old["recogniser"])
    fields = [field.name for field in dataclasses.fields(IdentityDPConfig) if field.name in old]
    values: dict[str, Any] = {key: old[key] for key in fields}
    config = build_strict(
        IdentityDPConfig, {**values, "greatest_l1": round(greatest, 6), "greatest_l1_faces": count}, name
    )
    words = read_text(root / "MODEL_CARDS" / "text" / f"{name}.yaml")
    derived = {
        "name": name,
        "method": "identity_dp",
        "summary": "Laplace noise on the identity vector (128 px, SFace identity); no way back",
        "crop_size": manifest["crop_size"],
        "config": json.loads(json.dumps(dataclasses.asdict(config))),
        "preprocessing": manifest["preprocessing"],
        "licence": manifest["licence"],
        "training": {"stage I": f"the networks of {source}, frozen", **words.get("training", {})},
        "card": words.get("card", {}),
        **{key: words[key] for key in ("status", "version") if key in words},
    }
    if evaluation is not None:
        results = json.loads(evaluation.read_text(encoding="utf-8"))
        if results["name"] != name:
            raise InputError(f"{evaluation} is the evaluation of {results['name']}, not of {name}")
        derived["metrics"] = headline(results)
        text = (json.dumps(results, indent=1, sort_keys=True) + "\n").encode()
        atomic_write(root / "MODEL_CARDS" / "results" / f"{name}.json", text, overwrite=True)
    elif curves is not None:
        derived["metrics"] = figures_of_curves(curves, name)
    shared = dict.fromkeys(painter_of(config).networks(), source)
    write_checkpoint(checkpoints / name, derived, {}, overwrite=True, shared=shared)
    registry = registry_file.registry_text(checkpoints)
    atomic_write(checkpoints / "registry.json", registry.encode(), overwrite=True)
    card.write_cards(checkpoints, root / "MODEL_CARDS")
    return checkpoints / name


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", help="bundled identity_rotation checkpoint")
    parser.add_argument("--data", type=Path, required=True, help="packed training set with its identity vectors")
    parser.add_argument("--evaluation", type=Path, help="evaluation.json of the result")
    parser.add_argument("--curves", type=Path, help="curves.json of the result over epsilon")
    arguments = parser.parse_args()
    try:
        print(derive(arguments.source, arguments.data, arguments.evaluation, arguments.curves))
    except FacezooError as error:
        print(f"facezoo: error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
