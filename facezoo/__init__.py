"""facezoo: a model zoo of face anonymizers.

::

    import facezoo

    anonymizer = facezoo.from_pretrained("identity_rotation.mesh128")
    key = facezoo.Key.from_passphrase("...")
    anonymizer.anonymize("group.jpg", key=key).save("group.anon.png")
    anonymizer.recover("group.anon.png", key=key).save("group.recovered.png")

Importing this package imports neither torch nor cv2 nor numpy: every name below is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_LAZY = {
    "Anonymizer": "facezoo.anonymizer",
    "CheckpointError": "facezoo.errors",
    "FaceReport": "facezoo.anonymizer",
    "FacezooError": "facezoo.errors",
    "InputError": "facezoo.errors",
    "Key": "facezoo.keys",
    "KeyMaterialError": "facezoo.errors",
    "ModelInfo": "facezoo.hub.models",
    "NoFaceError": "facezoo.errors",
    "OutputError": "facezoo.errors",
    "PictureRecord": "facezoo.records",
    "RecordError": "facezoo.errors",
    "Report": "facezoo.anonymizer",
    "Result": "facezoo.anonymizer",
    "UnknownNameError": "facezoo.errors",
    "from_pretrained": "facezoo.anonymizer",
    "list_methods": "facezoo.registry",
    "list_models": "facezoo.hub.models",
    "load_picture": "facezoo.faces.picture",
    "load_recogniser": "facezoo.recognition.loader",
    "read_key": "facezoo.keys",
    "register_method": "facezoo.registry",
}
"""Public name -> the module that holds it."""

__all__ = [
    "Anonymizer",
    "CheckpointError",
    "FaceReport",
    "FacezooError",
    "InputError",
    "Key",
    "KeyMaterialError",
    "ModelInfo",
    "NoFaceError",
    "OutputError",
    "PictureRecord",
    "RecordError",
    "Report",
    "Result",
    "UnknownNameError",
    "__version__",
    "from_pretrained",
    "list_methods",
    "list_models",
    "load_picture",
    "load_recogniser",
    "read_key",
    "register_method",
]

if TYPE_CHECKING:
    from facezoo.anonymizer import Anonymizer, FaceReport, Report, Result, from_pretrained
    from facezoo.errors import (
        CheckpointError,
        FacezooError,
        InputError,
        KeyMaterialError,
        NoFaceError,
        OutputError,
        RecordError,
        UnknownNameError,
    )
    from facezoo.faces.picture import load_picture
    from facezoo.hub.models import ModelInfo, list_models
    from facezoo.keys import Key, read_key
    from facezoo.recognition.loader import load_recogniser
    from facezoo.records import PictureRecord
    from facezoo.registry import list_methods, register_method


def __getattr__(name: str) -> object:
    """Load a public name on its first use (PEP 562)."""
    module = _LAZY.get(name)
    if module is None:
        raise AttributeError(f"module 'facezoo' has no attribute {name!r}")
    value = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, loaded or not."""
    return sorted(set(globals()) | set(__all__))
