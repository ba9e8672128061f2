"""Hatchling build hook: puts recipes/ and the checkpoints that one publishes with into the wheel, under facezoo/.

A package index takes files of up to 100 MiB, so the wheel carries the models of ``CHECKPOINTS`` only. Every other one
lies in checkpoints/ of a clone and is given by its folder: ``facezoo.from_pretrained("checkpoints/sdn.faces64")``.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

CHECKPOINTS = ("face_painter.mesh128", "identity_dp.mesh128", "identity_rotation.mesh128")


class BundleHook(BuildHookInterface):  # type: ignore[type-arg]
    """Adds what exists; `force-include` in pyproject.toml would fail on a folder that does not."""

    _scratch: Path | None = None

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Extend the list of files.

        Args:
            version: "standard", or "editable", which needs nothing: the folders are found at the repository's root.
            build_data: hatchling's table, changed in place.
        """
        if self.target_name != "wheel" or version == "editable":
            return
        included: dict[str, str] = build_data["force_include"]
        root = Path(self.root)
        if (root / "recipes").is_dir():
            included[str(root / "recipes")] = "facezoo/recipes"
        registry = root / "checkpoints" / "registry.json"
        if not registry.is_file():
            return
        table = json.loads(registry.read_text(encoding="utf-8"))
        table["models"] = {name: entry for name, entry in table["models"].items() if name in CHECKPOINTS}
        self._scratch = Path(tempfile.mkdtemp(prefix="facezoo-wheel-"))
        short = self._scratch / "registry.json"
        short.write_text(json.dumps(table, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        included[str(short)] = "facezoo/checkpoints/registry.json"
        for name in table["models"]:
            included[str(root / "checkpoints" / name)] = f"facezoo/checkpoints/{name}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove the shortened registry."""
        del version, build_data, artifact_path
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)
