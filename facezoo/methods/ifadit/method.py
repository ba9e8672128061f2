"""iFADIT at use: anonymize and recover aligned faces with a key.

Paper: Yuan et al., "iFADIT: Invertible Face Anonymization via Disentangled Identity Transform", equations (9)-(11).

``anonymize``: G(M(T(E_ID(X), s), E_Attr(X))) inside the face mask. ``recover``: G(M(T^-1(C(E_ID(X')), s), E_Attr(X')))
from the saved picture X'; its mask comes from X' too. A wrong key gives somebody else, and nothing in the picture says
whether a key was right: ``verified`` is None.

A model with ``code_channels`` (ours) hides an encrypted code in the picture too. Where its tag fits the key the
original is revealed from it; where it does not, the flow gives what that key says.

Deviations from the paper: see README.md in this folder.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from facezoo.concealment import placement
from facezoo.concealment.code import find_crops, read_code, write_code
from facezoo.errors import InputError
from facezoo.faces.mask import border_taper
from facezoo.frozen import load_landmarks, load_parser
from facezoo.keys import Key
from facezoo.methods.base import FaceContext, LearnedMethod, Recovered, check_faces
from facezoo.methods.checkpoints import checkpoint_config, fill_networks
from facezoo.methods.ifadit.config import IFaditConfig
from facezoo.methods.ifadit.keygen import key_noise
from facezoo.methods.ifadit.model import IFaditNetworks
from facezoo.methods.ifadit.options import IFaditOptions
from facezoo.methods.options import Options
from facezoo.recognition import load_recogniser

_REFINE_RATE = 0.02
_REFINE_KEEP = 0.02
_FOREHEAD = 0.45
"""How far above the brows the mask of 68 landmarks reaches, as a part of the distance from brows to chin."""


class IFadit(LearnedMethod):
    """The trained method.

    Args:
        networks: Trained networks, the generator among them.
        recogniser: Frozen identity encoder of the training.
        options: Options for every call.
    """

    name: ClassVar[str] = "ifadit"
    reversible: ClassVar[bool] = True
    uses_key: ClassVar[bool] = True
    requires_key: ClassVar[bool] = True
    options_class: ClassVar[type[Options]] = IFaditOptions

    def __init__(self, networks: IFaditNetworks, recogniser: nn.Module, options: Options | None = None) -> None:
        super().__init__(options)
        self.networks = networks.eval().requires_grad_(False)
        self.recogniser = recogniser
        self.identity_encoders = (networks.config.recogniser,)
        self.crop_size = networks.config.size
        self.device = torch.device("cpu")
        self._segmenters: dict[str, nn.Module] = {}

    @classmethod
    def from_checkpoint(cls, folder: Path, manifest: dict[str, Any], options: Options | None = None) -> Self:
        """Builds the networks of a checkpoint folder, strictly.

        Raises:
            CheckpointError: the configuration or a file does not fit.
        """
        config = checkpoint_config(IFaditConfig, folder, manifest)
        networks = IFaditNetworks(config)
        fill_networks(networks.networks(), folder, manifest)
        return cls(networks, load_recogniser(config.recogniser), options)

    def to(self, device: torch.device | str) -> Self:
        """Moves networks and recogniser. Returns the method itself."""
        self.device = torch.device(device)
        for network in (self.networks, self.recogniser, *self._segmenters.values()):
            network.to(self.device)
        return self

    # ------------------------------------------------------------------ the two calls
    @torch.no_grad()
    def anonymize(self, faces: Tensor, context: FaceContext) -> Tensor:
        """See ``Method.anonymize``; the picture outside the mask stays."""
        check_faces(faces, self.name, self.crop_size)
        key = self.require_key(context)
        options = cast(IFaditOptions, self.resolve_options(context))
        if len(faces) == 0:
            return faces.clone()
        crops = self._on_device(faces)
        mask = self._mask(crops, options)
        identity = self.recogniser(crops)
        attributes = self._attributes(crops, identity, options.refine_steps)
        painted = self.networks.paint(self.networks.transform(identity, self._key_vector(key, len(crops))), attributes)
        result = self.networks.blend(crops, painted, mask)
        if self._carries_code(options):
            result = write_code(self.networks, crops, result, key)
        return result.clamp(-1, 1).to(faces)

    @torch.no_grad()
    def recover(self, faces: Tensor, context: FaceContext) -> Recovered:
        """See ``Method.recover``; ``verified`` says whether the code's tag fits, and is None for a picture without one.

        By the flow alone the method cannot tell a right key from a wrong one.
        """
        check_faces(faces, self.name, self.crop_size)
        key = self.require_key(context)
        options = cast(IFaditOptions, self.resolve_options(context))
        if len(faces) == 0:
            return Recovered(faces.clone(), [])
        crops = self._on_device(faces)
        if not self._carries_code(options):
            return Recovered(self._undone(crops, key, options).clamp(-1, 1).to(faces), [None] * len(faces))
        result, fits = read_code(self.networks, crops, key)
        if rest := [i for i, fit in enumerate(fits) if not fit]:
            result[rest] = self._undone(crops[rest], key, options)
        return Recovered(result.clamp(-1, 1).to(faces), list(fits))

    def _undone(self, crops: Tensor, key: Key, options: IFaditOptions) -> Tensor:
        """Recovery by the inverse flow, equation (10)."""
        shown = self.networks.compensate(self.recogniser(crops))
        # The picture at hand was painted with the transformed identity: that is what its attributes are fitted with.
        attributes = self._attributes(crops, shown, options.refine_steps)
        identity = self.networks.undo(shown, self._key_vector(key, len(crops)))
        return self.networks.blend(crops, self.networks.paint(identity, attributes), self._mask(crops, options))

    def _carries_code(self, options: IFaditOptions) -> bool:
        return options.conceal and self.networks.config.code_channels > 0

    # ------------------------------------------------------------------ whole pictures
    def place_crops(self, transforms: np.ndarray[Any, np.dtype[Any]]) -> np.ndarray[Any, np.dtype[Any]]:
        """With a code crops lie on a coarse grid, so that recovery can find them; see ``placement``."""
        config = self.networks.config
        return placement.snapped(transforms, config.size) if config.code_channels else transforms

    @torch.no_grad()
    def align_for_recovery(
        self,
        crop: Callable[[np.ndarray[Any, np.dtype[Any]]], Tensor],
        transforms: np.ndarray[Any, np.dtype[Any]],
        context: FaceContext,
    ) -> np.ndarray[Any, np.dtype[Any]]:
        """Finds the places of the crops by the code's pilots; see ``Method.align_for_recovery``."""
        if not self._carries_code(cast(IFaditOptions, self.resolve_options(context))):
            return transforms
        size = self.networks.config.size
        return find_crops(self.networks, lambda moved: self._on_device(crop(moved)), transforms, size)

    # ------------------------------------------------------------------ what a picture is made of
    @torch.no_grad()
    def reconstruct(self, faces: Tensor, context: FaceContext | None = None) -> Tensor:
        """Phase I alone: G(M(z, a)), nothing changed; tells the encoder's losses from those of the key's way."""
        return self._decode(faces, context, keep_identity=True, keep_attributes=True)

    @torch.no_grad()
    def de_identity(self, faces: Tensor, context: FaceContext | None = None) -> Tensor:
        """Decoded with the identity at zero (paper, section 4.5): what the attributes alone show."""
        return self._decode(faces, context, keep_identity=False, keep_attributes=True)

    @torch.no_grad()
    def de_attributes(self, faces: Tensor, context: FaceContext | None = None) -> Tensor:
        """Decoded with the attributes at zero, the mean face's: what the identity alone shows."""
        return self._decode(faces, context, keep_identity=True, keep_attributes=False)

    def _decode(
        self, faces: Tensor, context: FaceContext | None, *, keep_identity: bool, keep_attributes: bool
    ) -> Tensor:
        """The generator's whole picture, without the original's background."""
        check_faces(faces, self.name, self.crop_size)
        options = cast(IFaditOptions, self.resolve_options(context or FaceContext()))
        crops = self._on_device(faces)
        identity = self.recogniser(crops)
        attributes = self._attributes(crops, identity, options.refine_steps)
        painted = self.networks.paint(
            identity if keep_identity else torch.zeros_like(identity),
            attributes if keep_attributes else torch.zeros_like(attributes),
        )
        return painted.clamp(-1, 1).to(faces)

    def _key_vector(self, key: Key, count: int) -> Tensor:
        noise = key_noise(key, self.networks.config.z_dim).to(self.device)
        return self.networks.key_vector(noise).expand(count, -1)

    def _attributes(self, crops: Tensor, identity: Tensor, steps: int) -> Tensor:
        """Attribute latents, fitted to each picture by ``steps`` steps of Adam.

        Each face's own loss is added up, and Adam works number by number, so that a face does not depend on its
        neighbours in the batch.
        """
        networks = self.networks
        start = networks.attributes(crops)
        if steps == 0:
            return start
        # The evaluation calls from inference mode, whose tensors can have no gradient.
        with torch.inference_mode(False), torch.enable_grad():
            first, identity = start.clone(), identity.clone()
            small, mask = networks.shrink(crops.clone()), networks.generator_mask
            latents = first.clone().requires_grad_(True)
            optimizer = torch.optim.Adam([latents], lr=_REFINE_RATE)
            for _ in range(steps):
                error = (networks.draw(networks.latents(identity, latents)) - small) * mask
                blurred = functional.avg_pool2d(error, 4)
                per_face = error.abs().flatten(1).mean(1) + blurred.abs().flatten(1).mean(1)
                per_face = per_face + _REFINE_KEEP * (latents - first).square().flatten(1).mean(1)
                (gradient,) = torch.autograd.grad(per_face.sum(), latents)
                latents.grad = gradient
                optimizer.step()
            return latents.detach()

    # ------------------------------------------------------------------ masks
    def _mask(self, crops: Tensor, options: IFaditOptions) -> Tensor:
        """Soft masks of the pictures at hand, ``(S, S)`` or ``(B, 1, S, S)``, 0 on the crop's border."""
        if options.mask == "template":
            return self.networks.mask
        size = crops.shape[-1]
        if options.mask == "parser":
            hard = (self._segmenter(options).face_probability(crops)[:, 0] > 0.5).float().cpu().numpy()  # type: ignore[operator]
        else:
            points = self._segmenter(options)(crops).cpu().numpy() * size
            hard = np.stack([_hull(face, size) for face in points])
        sigma = options.mask_blur * size / 128
        soft = [cv2.GaussianBlur(m, (0, 0), sigma) if sigma > 0 else m for m in hard]
        stacked = torch.from_numpy(np.stack(soft) * border_taper(size)).to(crops)
        return stacked[:, None].clamp(0, 1)

    def _segmenter(self, options: IFaditOptions) -> nn.Module:
        name = options.mask if options.mask == "landmarks" else f"parser {options.parser_file}"
        if name not in self._segmenters:
            network: nn.Module | None
            if options.mask == "landmarks":
                network = load_landmarks()
                remedy = "put peppa_slim160_68.pth into a folder and set FACEZOO_WEIGHTS"
            else:
                network = load_parser(options.parser_file) if options.parser_file else None
                remedy = "set parser_file to BiSeNet weights"
            if network is None:
                raise InputError(f"ifadit: mask={options.mask} needs a network: {remedy}, or use mask=template")
            self._segmenters[name] = network.to(self.device)
        return self._segmenters[name]

    def _on_device(self, faces: Tensor) -> Tensor:
        return faces.to(self.device, torch.float32).contiguous()


def _hull(points: np.ndarray[Any, np.dtype[Any]], size: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Mask of 68 points ``(68, 2)`` in pixels: their hull, with the brows' points raised to the forehead too."""
    brows = points[17:27].copy()
    brows[:, 1] -= _FOREHEAD * (points[8, 1] - brows[:, 1].mean())
    outline = cv2.convexHull(np.concatenate([points, brows]).astype(np.float32)).round().astype(np.int32)
    mask = np.zeros((size, size), dtype=np.float32)
    cv2.fillConvexPoly(mask, outline, 1.0)
    return mask
