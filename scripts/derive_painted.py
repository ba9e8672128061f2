"""Makes checkpoints of the methods that paint with a face painter: its networks, shared, not copied.

    python scripts/derive_painted.py face_painter.mesh128 --data packed/train128.safetensors

writes identity_rotation.mesh128 and identity_dp.mesh128 beside it. Neither has anything of its own to train: the
rotation, the code and the noise are closed forms. The words of the cards are ``MODEL_CARDS/text/NAME.yaml``; figures
come from ``--evaluation FILE`` (of either), measured with ``facezoo evaluate``.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from derive_identity_dp import book_sensitivity
from publish_checkpoint import ROOT, headline, read_text

from facezoo.core.configuration import build_strict
from facezoo.errors import FacezooError, InputError
from facezoo.files import atomic_write
from facezoo.hub import card, registry_file
from facezoo.hub.manifest import read_manifest, verify_files, write_checkpoint
from facezoo.methods.identity_dp.config import PaintedDPConfig
from facezoo.methods.identity_rotation.config import PaintedRotationConfig
from facezoo.nets.face_painter.config import FacePainterConfig

SUMMARIES = {
    "identity_rotation": "another face by key, expression kept, recovered from the saved picture (128 px, on a mesh)",
    "identity_dp": "Laplace noise on the identity vector, expression kept (128 px, on a mesh); no way back",
}


def configurations(manifest: Mapping[str, Any], data: Path) -> dict[str, dict[str, Any]]:
    """The configuration of each method on a painter's checkpoint."""
    sizes = {field.name for field in dataclasses.fields(FacePainterConfig)}
    shared = {key: value for key, value in manifest["config"].items() if key in sizes}
    greatest, count = book_sensitivity(data, shared["recogniser"])
    measured = {"greatest_l1": round(greatest, 6), "greatest_l1_faces": count}
    built = {
        "identity_rotation": build_strict(PaintedRotationConfig, shared, "identity_rotation"),
        "identity_dp": build_strict(PaintedDPConfig, {**shared, **measured}, "identity_dp"),
    }
    return {method: json.loads(json.dumps(dataclasses.asdict(config))) for method, config in built.items()}


def derive(source: str, data: Path, evaluations: Sequence[Path] = (), root: Path = ROOT) -> list[Path]:
    """Writes checkpoints, cards and registry. Returns the folders.

    Raises:
        FacezooError: as the parts say.
    """
    checkpoints = root / "checkpoints"
    manifest, _ = read_manifest(checkpoints / source)
    verify_files(checkpoints / source, manifest)
    if manifest["method"] != "face_painter":
        raise InputError(f"{source} is a checkpoint of {manifest['method']}, not of face_painter")
    results = {found["name"]: found for found in (json.loads(path.read_text("utf-8")) for path in evaluations)}
    networks = [Path(file).stem for file in manifest["files"]]
    folders = []
    for method, config in configurations(manifest, data).items():
        name = f"{method}.{source.partition('.')[2]}"
        words = read_text(root / "MODEL_CARDS" / "text" / f"{name}.yaml")
        derived = {
            "name": name,
            "method": method,
            "summary": SUMMARIES[method],
            "crop_size": manifest["crop_size"],
            "config": config,
            "preprocessing": manifest["preprocessing"],
            "licence": manifest["licence"],
            "training": {"painter": f"the networks of {source}, frozen", **words.get("training", {})},
            "card": words.get("card", {}),
            **{key: words[key] for key in ("status", "version", "licences", "paper") if key in words},
        }
        if name in results:
            derived["metrics"] = headline(results[name])
            text = (json.dumps(results[name], indent=1, sort_keys=True) + "\n").encode()
            atomic_write(root / "MODEL_CARDS" / "results" / f"{name}.json", text, overwrite=True)
        write_checkpoint(checkpoints / name, derived, {}, overwrite=True, shared=dict.fromkeys(networks, source))
        folders.append(checkpoints / name)
    registry = registry_file.registry_text(checkpoints)
    atomic_write(checkpoints / "registry.json", registry.encode(), overwrite=True)
    card.write_cards(checkpoints, root / "MODEL_CARDS")
    return folders


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", help="bundled face_painter checkpoint")
    parser.add_argument("--data", type=Path, required=True, help="packed training set with its identity vectors")
    parser.add_argument("--evaluation", type=Path, action="append", default=[], help="evaluation.json of a result")
    arguments = parser.parse_args()
    try:
        for folder in derive(arguments.source, arguments.data, arguments.evaluation):
            print(folder)
    except FacezooError as error:
        print(f"facezoo: error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
