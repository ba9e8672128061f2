"""Faces in whole pictures: reading, detecting, aligning, pasting back. numpy, OpenCV and Pillow; no torch."""

from __future__ import annotations

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
from facezoo.faces.mask import border_taper, face_mask
from facezoo.faces.picture import Picture, encode_picture, load_picture, save_picture

__all__ = [
    "TEMPLATE_112",
    "Detector",
    "DetectorOptions",
    "Face",
    "KeepList",
    "Picture",
    "apply_transform",
    "border_taper",
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
