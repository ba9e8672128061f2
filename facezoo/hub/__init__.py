"""Checkpoints and where they come from: local folders, the bundled ones, the Hugging Face hub; model cards.

Importing this package imports neither torch nor huggingface_hub.
"""

from __future__ import annotations

from facezoo.hub.manifest import (
    ResolvedModel,
    bundled_models,
    load_networks,
    load_strictly,
    read_manifest,
    resolve_model,
    verify_files,
    write_checkpoint,
)

__all__ = [
    "ResolvedModel",
    "bundled_models",
    "load_networks",
    "load_strictly",
    "read_manifest",
    "resolve_model",
    "verify_files",
    "write_checkpoint",
]
