"""Faces in whole pictures: reading, detecting, aligning, pasting back. numpy, OpenCV and Pillow; no torch.

Every name below is loaded when it is first used: training needs the masks of ``faces.mask``, which are numpy alone, on
machines that have no OpenCV.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from facezoo.faces.align import (
        TEMPLATE_112,
        apply_transform,
        crop_faces,
        crop_faces_float,
        paste_faces,
        similarity,
        template,
    )
    from facezoo.faces.detect import (
        Detector,
        DetectorOptions,
        Face,
        face_from_points,
        faces_from_boxes,
        get_detector,
        list_detectors,
        points_from_box,
        register_detector,
    )
    from facezoo.faces.keep import KeepList
    from facezoo.faces.mask import border_taper, cover_mask, face_mask
    from facezoo.faces.picture import Picture, encode_picture, load_picture, save_picture

_LAZY = {
    "Detector": "facezoo.faces.detect",
    "DetectorOptions": "facezoo.faces.detect",
    "Face": "facezoo.faces.detect",
    "KeepList": "facezoo.faces.keep",
    "Picture": "facezoo.faces.picture",
    "TEMPLATE_112": "facezoo.faces.align",
    "apply_transform": "facezoo.faces.align",
    "border_taper": "facezoo.faces.mask",
    "cover_mask": "facezoo.faces.mask",
    "crop_faces": "facezoo.faces.align",
    "crop_faces_float": "facezoo.faces.align",
    "encode_picture": "facezoo.faces.picture",
    "face_from_points": "facezoo.faces.detect",
    "face_mask": "facezoo.faces.mask",
    "faces_from_boxes": "facezoo.faces.detect",
    "get_detector": "facezoo.faces.detect",
    "list_detectors": "facezoo.faces.detect",
    "load_picture": "facezoo.faces.picture",
    "paste_faces": "facezoo.faces.align",
    "points_from_box": "facezoo.faces.detect",
    "register_detector": "facezoo.faces.detect",
    "save_picture": "facezoo.faces.picture",
    "similarity": "facezoo.faces.align",
    "template": "facezoo.faces.align",
}
"""Public name -> the module that holds it."""

__all__ = [
    "TEMPLATE_112",
    "Detector",
    "DetectorOptions",
    "Face",
    "KeepList",
    "Picture",
    "apply_transform",
    "border_taper",
    "cover_mask",
    "crop_faces",
    "crop_faces_float",
    "encode_picture",
    "face_from_points",
    "face_mask",
    "faces_from_boxes",
    "get_detector",
    "list_detectors",
    "load_picture",
    "paste_faces",
    "points_from_box",
    "register_detector",
    "save_picture",
    "similarity",
    "template",
]


def __getattr__(name: str) -> object:
    """Load a public name on its first use (PEP 562)."""
    module = _LAZY.get(name)
    if module is None:
        raise AttributeError(f"module 'facezoo.faces' has no attribute {name!r}")
    value = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, loaded or not."""
    return sorted(set(globals()) | set(__all__))
