"""Write ``checkpoints/registry.json`` from the manifests beside it: ``python -m facezoo.hub.registry_file [--check]``.

The registry lets ``facezoo list`` work without opening a checkpoint, and pins the hash of each manifest.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from facezoo.errors import CheckpointError, FacezooError
from facezoo.files import atomic_write
from facezoo.hub.manifest import CHECKPOINTS, MANIFEST_NAME, bundled_models, read_manifest, verify_files

__all__ = ["build_registry", "main", "registry_text"]


def build_registry(root: Path = CHECKPOINTS) -> dict[str, Any]:
    """Registry of every checkpoint folder in ``root``; each file's hash is checked on the way.

    Entries of the present registry that lie on the hub only (``"hub": {"repository": ..., "commit": ...}`` and no
    folder) are kept.

    Raises:
        CheckpointError: a checkpoint is damaged, or its folder does not have its name.
    """
    try:
        present = bundled_models(root)
    except CheckpointError:
        present = {}  # damaged, by a merge say: it is made anew from the folders
    models: dict[str, Any] = {
        name: entry
        for name, entry in present.items()
        if isinstance(entry.get("hub"), dict) and not (root / str(entry.get("folder", name)) / MANIFEST_NAME).is_file()
    }
    for folder in sorted(path.parent for path in root.glob(f"*/{MANIFEST_NAME}")):
        manifest, digest = read_manifest(folder)
        verify_files(folder, manifest, every_variant=True)
        if folder.name != manifest["name"]:
            raise FacezooError(f"{folder} holds the checkpoint {manifest['name']}; name the folder after it")
        models[manifest["name"]] = {
            "folder": folder.name,
            "manifest_sha256": digest,
            "method": manifest["method"],
            "status": manifest["status"],
            "summary": manifest["summary"],
            "crop_size": manifest["crop_size"],
            "licence": manifest["licence"],
            "bytes": sum(entry["bytes"] for entry in manifest["files"].values() if "from" not in entry),
        }
    return {"format": "facezoo-checkpoint-registry", "format_version": 1, "models": models}


def registry_text(root: Path = CHECKPOINTS) -> str:
    """The registry as the text of its file."""
    return json.dumps(build_registry(root), indent=2, sort_keys=True) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Write the registry, or with ``--check`` say whether the one on disk is stale (exit code 1)."""
    parser = argparse.ArgumentParser(description="Write checkpoints/registry.json from the manifests beside it.")
    parser.add_argument("--root", type=Path, default=CHECKPOINTS, help="folder of the checkpoints")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when the file is stale")
    arguments = parser.parse_args(argv)
    path: Path = arguments.root / "registry.json"
    try:
        text = registry_text(arguments.root)
        if arguments.check:
            if not path.is_file() or path.read_text(encoding="utf-8") != text:
                print(f"{path} is stale; run: python -m facezoo.hub.registry_file", file=sys.stderr)
                return 1
            return 0
        atomic_write(path, text.encode(), overwrite=True, make_parents=True)
    except FacezooError as error:
        print(f"facezoo: error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{path}: {len(json.loads(text)['models'])} checkpoints")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
