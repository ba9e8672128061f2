"""``load_mesh``: the mesh of aligned faces, and of faces in whole pictures.

One model is built in (``mediapipe``); others are added with ``register_mesh``.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from facezoo.errors import InputError, UnknownNameError
from facezoo.mesh.geometry import head_pose
from facezoo.mesh.networks import IrisNetwork, MeshNetwork
from facezoo.mesh.topology import EYE_CORNERS, read_asset
from facezoo.recognition.window import TemplateWindow

__all__ = ["FaceMesh", "MediaPipeMesh", "MeshResult", "list_meshes", "load_mesh", "picture_mesh", "register_mesh"]

#: The mesh network sees these pixels of a crop of 128: columns 8 to 119, rows 16 to 127.
_WINDOW = 112.0
_WINDOW_X, _WINDOW_Y = 8.0, 16.0
#: What is added to the network's answer so that pixel centres are whole numbers. Measured: over faces of three sets and
#: their mirror images x + x' is 190.4 (LFW), 190.1 and 190.0 of 192 pixels, where 191 is symmetric.
_CENTRE = 0.4
#: The iris network sees a square around the eye, this many times as wide as the eye (MediaPipe's graph).
_IRIS_SCALE = 2.3


@dataclass(frozen=True)
class MeshResult:
    """The mesh of B faces. Pixels have their centres at whole numbers, as everywhere in ``facezoo.faces``.

    Attributes:
        points: (B, 468, 2) float32, (x, y) in pixels of the crop (or of the picture, for ``picture_mesh``).
        depth: (B, 468) float32 in the same pixels; negative is nearer to the camera than the head's middle.
        confidence: (B,) in [0, 1]: how sure the network is that there is a face.
        pose: (B, 3) yaw, pitch, roll in degrees; see ``facezoo.mesh.geometry.head_pose`` for the signs.
        irises: (B, 2, 5, 2) in the same pixels, or None where they were not asked for: the eye at the picture's left,
            then at its right; each its centre, then four points of its rim (towards the nose, above, away from the
            nose, below).
    """

    points: Tensor
    depth: Tensor
    confidence: Tensor
    pose: Tensor
    irises: Tensor | None = None


class FaceMesh(nn.Module, abc.ABC):
    """A frozen network that gives the 468 points of aligned faces; the base class of plug-ins.

    Parameters are frozen and it stays in evaluation mode whatever ``train()`` is called with. Gradients flow to the
    pictures.
    """

    def train(self, mode: bool = True) -> Self:
        """Stays in evaluation mode: what measures must not change while something else learns."""
        del mode
        return super().train(False)

    @abc.abstractmethod
    def forward(self, faces: Tensor, irises: bool = False) -> MeshResult:
        """Finds the mesh.

        Args:
            faces: (B, 3, S, S) in [-1, 1], RGB, aligned to the project's template, any S (128 is what it is made for).
            irises: whether to find the irises too.

        Returns:
            The mesh in pixels of the crop.

        Raises:
            InputError: not square pictures in a batch.
        """


class MediaPipeMesh(FaceMesh):
    """Google's face mesh and iris networks (2019 and 2020), bundled."""

    def __init__(self) -> None:
        from safetensors.torch import load

        super().__init__()
        step = _WINDOW / MeshNetwork.size
        self.window = TemplateWindow(
            MeshNetwork.size, step, _WINDOW_X + (step - 1.0) / 2.0, _WINDOW_Y + (step - 1.0) / 2.0
        )
        self.face = MeshNetwork()
        self.iris = IrisNetwork()
        for network, name in ((self.face, "face"), (self.iris, "iris")):
            network.load_state_dict({key: value.float() for key, value in load(read_asset(name)).items()})
            network.to(memory_format=torch.channels_last)

    def forward(self, faces: Tensor, irises: bool = False) -> MeshResult:
        """See ``FaceMesh.forward``."""
        windows = self.window(faces) * 0.5 + 0.5
        raw, flag = self.face(windows.contiguous(memory_format=torch.channels_last))
        scale = faces.shape[3] / 128.0
        raw = raw.float()
        offset = raw.new_tensor([self.window.start_x, self.window.start_y])
        points = ((raw[..., :2] + _CENTRE) * self.window.step + offset) * scale
        depth = raw[..., 2] * (self.window.step * scale)
        found = self._irises(faces, points) if irises else None
        return MeshResult(points, depth, torch.sigmoid(flag.float()), head_pose(points, depth), found)

    def _irises(self, faces: Tensor, points: Tensor) -> Tensor:
        """The irises of aligned faces: (B, 3, S, S) and (B, 468, 2) -> (B, 2, 5, 2)."""
        corners = points[:, torch.as_tensor(EYE_CORNERS, device=points.device)]  # B, eye, (outer, inner), xy
        # The network knows the eye at the left, from its outer corner to its inner one; the other eye is seen along the
        # same direction, which mirrors it: its own axis runs from outer to inner, too.
        across = corners[:, :, 1] - corners[:, :, 0]
        middle = corners.mean(dim=2)
        axis_x = across * (_IRIS_SCALE / 2.0)
        turned = torch.stack([-axis_x[..., 1], axis_x[..., 0]], dim=2)
        axis_y = turned * turned.new_tensor([1.0, -1.0])[None, :, None]
        frame = torch.stack([axis_x, axis_y], dim=3).flatten(0, 1)  # columns: half the square's sides
        centres = middle.flatten(0, 1)
        size = IrisNetwork.size
        place = (torch.arange(size, device=points.device, dtype=points.dtype) + 0.5) * (2.0 / size) - 1.0
        grid = torch.stack(torch.meshgrid(place, place, indexing="xy"), dim=2)
        positions = torch.einsum("bij,hwj->bhwi", frame, grid) + centres[:, None, None]
        positions = (positions + 0.5) * (2.0 / faces.shape[3]) - 1.0
        doubled = faces.float().repeat_interleave(2, dim=0)
        eyes = functional.grid_sample(doubled, positions, padding_mode="border", align_corners=False) * 0.5 + 0.5
        _, found = self.iris(eyes.contiguous(memory_format=torch.channels_last))
        relative = found[..., :2].float() * (2.0 / size) - 1.0
        return (relative @ frame.transpose(1, 2) + centres[:, None]).view(-1, 2, 5, 2)


MeshFactory = Callable[[], FaceMesh]
_MESHES: dict[str, MeshFactory] = {}


def register_mesh(name: str, factory: MeshFactory) -> None:
    """Add a mesh model under a name.

    Args:
        name: what ``load_mesh`` calls it.
        factory: makes the model on the CPU; usually the subclass of ``FaceMesh`` itself.

    Raises:
        InputError: the name is taken.
    """
    if name in _MESHES:
        raise InputError(f"a mesh named {name!r} is registered already; choose another name")
    _MESHES[name] = factory


def list_meshes() -> list[str]:
    """Names of all mesh models."""
    return sorted(_MESHES)


@lru_cache(maxsize=8)
def load_mesh(name: str = "mediapipe", device: str | torch.device = "cpu") -> FaceMesh:
    """A mesh model, made once for each device and shared: do not move it.

    Args:
        name: "mediapipe", or a registered one.
        device: where it shall run.

    Raises:
        UnknownNameError: no such model.
        CheckpointError: its weights are missing or damaged.
    """
    if name not in _MESHES:
        raise UnknownNameError(f"there is no mesh {name!r}; choose one of: {', '.join(list_meshes())}")
    # The first caller may stand in inference mode; weights that were made there would allow no gradient for anybody.
    with torch.inference_mode(False):
        return _MESHES[name]().to(device)


register_mesh("mediapipe", MediaPipeMesh)


def picture_mesh(
    rgb: npt.NDArray[np.uint8], five_points: npt.ArrayLike, model: FaceMesh | None = None, *, irises: bool = False
) -> MeshResult:
    """The mesh of faces in a whole picture.

    Args:
        rgb: (H, W, 3) uint8 RGB.
        five_points: (B, 5, 2) in picture pixels, as a detector gives them (``Face.points``).
        model: what finds the mesh; None: ``load_mesh()``.
        irises: whether to find the irises too.

    Returns:
        The mesh in picture pixels; the pose is that in the picture, too.

    Raises:
        InputError: no picture, or points that are no face.
    """
    from facezoo.faces.align import crop_faces_float, invert_transform, similarity

    network = model or load_mesh()
    points = np.asarray(five_points, dtype=np.float64).reshape(-1, 5, 2)
    size = 256  # the network sees 192 pixels of 224 of such a crop
    transforms = [similarity(face, size) for face in points]
    device = next(network.parameters()).device
    crops = torch.from_numpy(crop_faces_float(rgb, np.array(transforms).reshape(-1, 2, 3), size))
    with torch.inference_mode():
        result = network(crops.to(device).permute(0, 3, 1, 2) / 127.5 - 1.0, irises)
        back = np.array([invert_transform(matrix) for matrix in transforms]).reshape(-1, 2, 3)
        matrices = torch.as_tensor(back, device=device, dtype=torch.float32)
        linear, shift = matrices[:, :, :2].transpose(1, 2), matrices[:, None, :, 2]
        moved = result.points @ linear + shift
        depth = result.depth * torch.linalg.det(linear).sqrt()[:, None]
        eyes = None if result.irises is None else (result.irises.flatten(1, 2) @ linear + shift).view(-1, 2, 5, 2)
        return replace(result, points=moved, depth=depth, pose=head_pose(moved, depth), irises=eyes)
