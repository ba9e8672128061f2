"""Hatchling build hook: puts the repository's checkpoints/ and recipes/ into the wheel, under facezoo/."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

BUNDLED = ("checkpoints", "recipes")


class BundleHook(BuildHookInterface):  # type: ignore[type-arg]
    """Adds the folders of ``BUNDLED`` that exist; `force-include` in pyproject.toml would fail on one that does not."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Extend the list of files.

        Args:
            version: "standard", or "editable", which needs nothing: the folders are found at the repository's root.
            build_data: hatchling's table, changed in place.
        """
        if self.target_name != "wheel" or version == "editable":
            return
        for name in BUNDLED:
            folder = Path(self.root) / name
            if folder.is_dir():
                build_data["force_include"][str(folder)] = f"facezoo/{name}"
