"""Makes a bundled checkpoint of what a training run exported: checkpoints/NAME, its card, the registry.

    python scripts/publish_checkpoint.py runs/NAME/checkpoint                       # weights, with the text of its card
    facezoo evaluate NAME --data packed/evaluation128.safetensors -o evaluated
    python scripts/publish_checkpoint.py runs/NAME/checkpoint --evaluation evaluated/evaluation.json

Where there is no evaluation yet, ``--curves`` takes the figures of ``facezoo curves NAME --vary epsilon=...``.
Where only the words changed: ``python scripts/publish_checkpoint.py checkpoints/NAME --evaluation
MODEL_CARDS/results/NAME.json``.

A generator of people is measured by ``scripts/evaluate_generator.py`` instead.

The words of the card are ``MODEL_CARDS/text/NAME.yaml``: its ``card`` sections, ``status``, ``version``, ``licences``,
``paper``, and
``training`` entries that the run cannot know (its history). Figures come from the evaluation only.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from facezoo.errors import FacezooError, InputError
from facezoo.files import atomic_write
from facezoo.hub import card, registry_file
from facezoo.hub.card import headline
from facezoo.hub.manifest import load_networks, read_manifest, verify_files, write_checkpoint

ROOT = Path(__file__).resolve().parents[1]
TEXT_KEYS = {"card", "status", "version", "training", "licences", "paper", "summary"}


def read_text(path: Path) -> dict[str, Any]:
    """The words of a card.

    Raises:
        InputError: no such file, or keys that mean nothing here.
    """
    try:
        text = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise InputError(f"{path} cannot be read ({error}); write the words of the card there") from error
    if not isinstance(text, dict) or set(text) - TEXT_KEYS:
        raise InputError(f"{path} must be a mapping with {', '.join(sorted(TEXT_KEYS))}")
    return text


def measured(results: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of a generator (scripts/evaluate_generator.py)."""
    return {"measured on": results["protocol"], **results["measured"]}


def figures_of_curves(path: Path, name: str) -> dict[str, str]:
    """The headline of a ``curves.json``: protection and detection for each value.

    Raises:
        InputError: of another model.
    """
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is no curves.json of facezoo curves ({error})") from error
    if held.get("model") != name:
        raise InputError(f"{path} is the curve of {held.get('model')}, not of {name}")
    shown = {"measured on": f"{held['n']} faces of {held['data']}, aligned crops; 95 % intervals"}
    for point in held["points"]:
        for column, title in (("psr", "PSR (dlib's distance above 0.6)"), ("detected", "faces detected")):
            figure = point[column]
            percent = f"{100 * figure['value']:.1f} % ({100 * figure['low']:.1f}-{100 * figure['high']:.1f})"
            shown[f"{title}, {held['option']} {point['value']:g}"] = percent
    return shown


def publish(exported: Path, evaluation: Path | None, root: Path = ROOT, curves: Path | None = None) -> Path:
    """Writes the checkpoint folder, the results, the card and the registry. Returns the folder.

    Raises:
        CheckpointError: the export is damaged.
        InputError: the card's words or the evaluation are missing or of another model.
        OutputError: something cannot be written.
    """
    manifest, _ = read_manifest(exported)
    verify_files(exported, manifest)
    name = manifest["name"]
    words = read_text(root / "MODEL_CARDS" / "text" / f"{name}.yaml")
    manifest["card"] |= words.get("card", {})  # the run has said where its labels come from
    manifest["training"] |= words.get("training", {})
    manifest |= {key: words[key] for key in ("status", "version", "licences", "paper", "summary") if key in words}
    manifest["metrics"] = {} if curves is None else figures_of_curves(curves, name)
    if evaluation is not None:
        try:
            results = json.loads(evaluation.read_text(encoding="utf-8"))
            if results["name"] != name:
                raise InputError(f"{evaluation} is the evaluation of {results['name']}, not of {name}")
            manifest["metrics"] = headline(results) if "facezoo_evaluation" in results else measured(results)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{evaluation} is no evaluation.json of facezoo evaluate ({error!r})") from error
        kept = root / "MODEL_CARDS" / "results" / f"{name}.json"
        # The tables of a generator's results are shown with their columns in the order of the file.
        text = json.dumps(results, indent=1, sort_keys="facezoo_evaluation" in results) + "\n"
        atomic_write(kept, text.encode(), overwrite=True, make_parents=True)
    folder = root / "checkpoints" / name
    # A file that lies in another checkpoint stays there.
    shared = {file.partition(".")[0]: entry["from"] for file, entry in manifest["files"].items() if "from" in entry}
    shared |= unchanged(manifest, root / "checkpoints")
    own = {name: state for name, state in load_networks(exported, manifest).items() if name not in shared}
    write_checkpoint(folder, manifest, own, overwrite=True, shared=shared)
    registry = registry_file.registry_text(root / "checkpoints")
    atomic_write(root / "checkpoints" / "registry.json", registry.encode(), overwrite=True)
    card.write_cards(root / "checkpoints", root / "MODEL_CARDS")
    return folder


def unchanged(manifest: Mapping[str, Any], checkpoints: Path) -> dict[str, str]:
    """Networks that the run took from a bundled checkpoint and left bit for bit as they were: network -> checkpoint.

    Raises:
        CheckpointError: that checkpoint is damaged.
    """
    start = manifest["training"].get("started_from", {}).get("name", "")
    if start in ("", manifest["name"]) or not (checkpoints / start).is_dir():
        return {}  # what went on from an earlier state of itself is no other checkpoint's
    theirs = read_manifest(checkpoints / start)[0]["files"]
    return {
        file.partition(".")[0]: theirs[file].get("from", start)
        for file, entry in manifest["files"].items()
        if file in theirs and theirs[file]["sha256"] == entry["sha256"]
    }


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("exported", type=Path, help="the checkpoint folder of a finished run")
    parser.add_argument("--evaluation", type=Path, help="evaluation.json of this checkpoint")
    parser.add_argument("--curves", type=Path, help="curves.json of this checkpoint, where there is no evaluation")
    arguments = parser.parse_args()
    try:
        print(publish(arguments.exported, arguments.evaluation, curves=arguments.curves))
    except FacezooError as error:
        print(f"facezoo: error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
