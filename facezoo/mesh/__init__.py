"""The face mesh: 468 points of a face, its irises, its pose and what of it is visible.

``facezoo.mesh.topology`` needs no torch; every other name below is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from facezoo.mesh.geometry import eye_distance, head_pose, oval_mask, visible_triangles
    from facezoo.mesh.model import FaceMesh, MeshResult, list_meshes, load_mesh, picture_mesh, register_mesh

_LAZY = {
    "FaceMesh": "facezoo.mesh.model",
    "MeshResult": "facezoo.mesh.model",
    "eye_distance": "facezoo.mesh.geometry",
    "head_pose": "facezoo.mesh.geometry",
    "list_meshes": "facezoo.mesh.model",
    "load_mesh": "facezoo.mesh.model",
    "oval_mask": "facezoo.mesh.geometry",
    "picture_mesh": "facezoo.mesh.model",
    "register_mesh": "facezoo.mesh.model",
    "visible_triangles": "facezoo.mesh.geometry",
}
"""Public name -> the module that holds it."""

__all__ = [
    "FaceMesh",
    "MeshResult",
    "eye_distance",
    "head_pose",
    "list_meshes",
    "load_mesh",
    "oval_mask",
    "picture_mesh",
    "register_mesh",
    "visible_triangles",
]


def __getattr__(name: str) -> object:
    """Load a public name on its first use (PEP 562)."""
    module = _LAZY.get(name)
    if module is None:
        raise AttributeError(f"module 'facezoo.mesh' has no attribute {name!r}")
    value = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, loaded or not."""
    return sorted(set(globals()) | set(__all__))
