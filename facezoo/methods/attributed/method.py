"""What SDN and MfM share at use: key to password bits and sources, the register, the concealed code, recovery."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from facezoo.concealment import placement
from facezoo.concealment.register import open_text, seal_text
from facezoo.data.attributes import ATTRIBUTES, request_indices
from facezoo.errors import InputError, KeyMaterialError
from facezoo.keys import Key
from facezoo.methods.attributed.config import AttributedConfig
from facezoo.methods.attributed.model import AttributedNetworks
from facezoo.methods.attributed.options import AttributedOptions
from facezoo.methods.base import FaceContext, LearnedMethod, Recovered, check_faces
from facezoo.methods.checkpoints import checkpoint_config, fill_networks
from facezoo.methods.options import Options
from facezoo.nets.dosgan import FeatureExtractor
from facezoo.recognition import load_recogniser


class AttributedMethod(LearnedMethod):
    """Base of the two trained methods.

    Args:
        networks: Trained networks.
        options: Options for every call.
    """

    reversible: ClassVar[bool] = True
    uses_key: ClassVar[bool] = True
    requires_key: ClassVar[bool] = True
    config_class: ClassVar[type[AttributedConfig]]
    networks_class: ClassVar[Callable[..., AttributedNetworks]]

    def __init__(self, networks: AttributedNetworks, options: Options | None = None) -> None:
        super().__init__(options)
        self.networks = networks.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.config = networks.config
        self.crop_size = self.config.size
        self.identity_encoders = (self.config.recogniser,) if self.config.extractor == "recogniser" else ()
        self.device = torch.device("cpu")
        self._recogniser: nn.Module | None = None
        self._own_source: tuple[str, Tensor] | None = None

    @classmethod
    def from_checkpoint(cls, folder: Path, manifest: dict[str, Any], options: Options | None = None) -> Self:
        """Builds the networks of a checkpoint folder, strictly.

        Raises:
            CheckpointError: the configuration or a file does not fit.
        """
        config = checkpoint_config(cls.config_class, folder, manifest)
        networks = cls.networks_class(config)
        fill_networks(networks.networks(), folder, manifest)
        return cls(networks, options)

    def to(self, device: torch.device | str) -> Self:
        """Moves the networks. Returns the method itself."""
        self.device = torch.device(device)
        self.networks.to(self.device)
        if self._recogniser is not None:
            self._recogniser.to(self.device)
        self._own_source = None
        return self

    # ------------------------------------------------------------------ what the methods differ in
    @abc.abstractmethod
    def hide(
        self, faces: Tensor, bits: Tensor, attributes: Tensor, features: Tensor, degrees: Tensor | None = None
    ) -> Tensor:
        """Anonymized faces without the concealed code, ``(B, 3, S, S)``.

        Args:
            faces: Originals.
            bits: Password, ``(B, N)`` of 0 and 1.
            attributes: Requested values, ``(B, A)``, -1 where nothing is asked.
            features: Sources, ``(B, F)``.
            degrees: Edits in the latent space, ``(B, A)``.
        """

    @abc.abstractmethod
    def bottleneck(self, faces: Tensor, bits: Tensor, attributes: Tensor, features: Tensor) -> Tensor:
        """The latent that ``hide`` draws from, ``(B, C, H, W)``; arguments as there."""

    @abc.abstractmethod
    def reveal(
        self, saved: Tensor, bits: Tensor, attributes: Tensor, features: Tensor, phasors: Tensor | None
    ) -> Tensor:
        """Recovered faces from saved ones; ``features`` are any source's, ``phasors`` the decrypted code if any."""

    # ------------------------------------------------------------------ the two calls
    @torch.no_grad()
    def anonymize(self, faces: Tensor, context: FaceContext) -> Tensor:
        """See ``Method.anonymize``.

        Raises:
            UnknownNameError: an attribute that this checkpoint does not know.
            InputError: an unusable source picture, an edit of a direction that was not fitted.
            KeyMaterialError: no key, or a password of bits of another length than the checkpoint's.
        """
        check_faces(faces, self.name, self.crop_size)
        key = self.require_key(context)
        self._check_password(key)
        options = cast(AttributedOptions, self.resolve_options(context))
        degrees = self._degrees(options)
        indices = request_indices(options.request, self.config.attributes)
        if len(faces) == 0:
            return faces.clone()
        crops = self._on_device(faces)
        nonces = [self._nonce(key, crop) for crop in crops]
        attributes = self._attributes(crops, indices)
        features = self._sources(key, options, nonces)
        bits = self._bits(key, len(crops))
        result = self.hide(
            crops, bits, attributes, features, None if degrees is None else degrees.expand(len(crops), -1)
        )
        if self.config.keyed_code:
            secret = options.attributes or ""
            angles = self.networks.code_encoder(crops)
            phasors = self.networks.layout.encrypt(angles, [key] * len(crops), nonces, secret.encode())
            result = result + self.networks.code_embedder(result, phasors)
        return result.clamp(-1, 1).to(faces)

    @torch.no_grad()
    def recover(self, faces: Tensor, context: FaceContext) -> Recovered:
        """See ``Method.recover``; ``verified`` says whether key and attributes fit where the picture carries a code.

        Where they do not, somebody else is painted, from a source of the wrong key's own.

        Raises:
            RecordError: the register's entry was sealed with another key.
            UnknownNameError, KeyMaterialError: as in ``anonymize``.
        """
        check_faces(faces, self.name, self.crop_size)
        key = self.require_key(context)
        self._check_password(key)
        options = cast(AttributedOptions, self.resolve_options(context))
        if options.attributes is None and options.sealed_attributes is not None:
            text = open_text(key, f"{self.name}/register", options.sealed_attributes)
            options = options.updated({"attributes": text or None})
        indices = request_indices(options.request, self.config.attributes)
        if len(faces) == 0:
            return Recovered(faces.clone(), [])
        crops = self._on_device(faces)
        count = len(crops)
        bits, attributes = self._bits(key, count), torch.tensor([indices] * count, device=self.device).view(count, -1)
        # Any source does for a right password; for a wrong one it is the face that is shown instead.
        features = self._decoys(key, crops)
        if not self.config.keyed_code:
            revealed = self.reveal(crops, bits, attributes, features, None)
            return Recovered(revealed.clamp(-1, 1).to(faces), [None] * count)
        layout, secret = self.networks.layout, (options.attributes or "").encode()
        extracted = self.networks.code_extractor(crops)
        headers = [layout.read_header(phasors, key, secret) for phasors in extracted]
        fits = [fit for _, fit in headers]
        result = torch.empty_like(crops)
        right = [i for i, fit in enumerate(fits) if fit]
        if right:
            decrypted = torch.stack([layout.decrypt(extracted[i], key, headers[i][0], secret) for i in right])
            result[right] = self.reveal(crops[right], bits[right], attributes[right], features[right], decrypted)
        wrong = [i for i, fit in enumerate(fits) if not fit]
        if wrong:
            result[wrong] = self.hide(crops[wrong], bits[wrong], attributes[wrong], features[wrong])
        return Recovered(result.clamp(-1, 1).to(faces), list(fits))

    def options_record(self, context: FaceContext) -> dict[str, object]:
        """Register (sealed attributes, or none) and ``vary``; no attribute, source picture or edit in the clear."""
        options = cast(AttributedOptions, self.resolve_options(context))
        record: dict[str, object] = options.to_record()
        if options.register == "sealed" and options.attributes and context.key is not None:
            record["sealed_attributes"] = seal_text(context.key, f"{self.name}/register", options.attributes)
        return record

    def notes(self, faces: Tensor, context: FaceContext) -> list[tuple[str, ...]]:
        """For each face, which requests nobody will see; see ``Method.notes``."""
        check_faces(faces, self.name, self.crop_size)
        request = cast(AttributedOptions, self.resolve_options(context)).request
        return [self.unseen(request)] * len(faces)

    def unseen(self, request: Mapping[str, str]) -> tuple[str, ...]:
        """Requests that change nothing in the picture, in words; recovery needs them all the same."""
        if not self.config.content_grid:
            return ()
        return tuple(
            f"{name}={value} changes nothing that can be seen: this model paints the inside of the face only"
            for name, value in request.items()
            if ATTRIBUTES[name].outside
        )

    # ------------------------------------------------------------------ whole pictures
    def place_crops(self, transforms: np.ndarray[Any, np.dtype[Any]]) -> np.ndarray[Any, np.dtype[Any]]:
        """With a concealed code crops lie on a coarse grid, so that recovery can find them; see ``placement``."""
        return placement.snapped(transforms, self.config.size) if self.config.keyed_code else transforms

    @torch.no_grad()
    def align_for_recovery(
        self,
        crop: Callable[[np.ndarray[Any, np.dtype[Any]]], Tensor],
        transforms: np.ndarray[Any, np.dtype[Any]],
        context: FaceContext,
    ) -> np.ndarray[Any, np.dtype[Any]]:
        """Finds the places of the crops by the code's pilots; see ``Method.align_for_recovery``."""
        if not self.config.keyed_code:
            return transforms

        def read(moved: np.ndarray[Any, np.dtype[Any]]) -> Tensor:
            phasors: Tensor = self.networks.code_extractor(self._on_device(crop(moved))).cpu()
            return phasors

        layout = self.networks.layout
        return np.stack([placement.find(start, self.config.size, read, layout) for start in transforms])

    # ------------------------------------------------------------------ from the key
    def _check_password(self, key: Key) -> None:
        wanted = self.config.password_bits
        if key.kind == "bits" and key.strength_bits != wanted:
            raise KeyMaterialError(
                f"the password has {key.strength_bits:.0f} bits and this checkpoint works with {wanted}; give one "
                f"of {wanted} bits, or a passphrase or key file, from which {wanted} bits are derived"
            )

    def _bits(self, key: Key, count: int) -> Tensor:
        """Password bits of the key, the same for every face: ``(count, N)``."""
        bits = torch.from_numpy(key.bits(f"{self.name}/password", self.config.password_bits).astype(np.int64))
        return bits.to(self.device).expand(count, -1)

    def _nonce(self, key: Key, crop: Tensor) -> bytes:
        """4 bytes that depend on key and face."""
        pixels = ((crop.cpu().float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).contiguous()
        return key.tag(f"{self.name}/face", pixels.numpy().tobytes(), 4)

    def _sources(self, key: Key, options: AttributedOptions, nonces: list[bytes]) -> Tensor:
        if options.source_picture is not None:
            return self._source_of(options.source_picture).expand(len(nonces), -1)
        return self._drawn(key, "source", nonces if options.vary else [b""] * len(nonces))

    def _decoys(self, key: Key, crops: Tensor) -> Tensor:
        """Sources for recovery; coarse pixels vary them, so that a saved file of another quality gives the same."""
        coarse = (functional.adaptive_avg_pool2d(crops, 1) * 4).round().to(torch.int8).flatten(1)
        return self._drawn(key, "decoy", [row.cpu().numpy().tobytes() for row in coarse])

    def _drawn(self, key: Key, purpose: str, contexts: list[bytes]) -> Tensor:
        uniform = np.stack([key.uniform(f"{self.name}/{purpose}", 3, context=context) for context in contexts])
        return self.networks.source_bank.draw((torch.from_numpy(uniform).to(self.device) + 1) / 2)

    def _source_of(self, path: str) -> Tensor:
        """Features ``(1, F)`` of the one face in a user's picture.

        Raises:
            InputError: unreadable, or not exactly one face.
        """
        if self._own_source is None or self._own_source[0] != path:
            from facezoo.faces.align import crop_faces, similarity
            from facezoo.faces.detect import get_detector
            from facezoo.faces.picture import load_picture

            rgb = load_picture(path).pixels
            found = get_detector("yunet").detect(rgb)
            if len(found) != 1:
                raise InputError(
                    f"source picture {path}: needs exactly one face, found {len(found)}; crop it or choose another"
                )
            size = self.config.size
            crop = crop_faces(rgb, similarity(found[0].points, size)[None], size)
            face = torch.from_numpy(crop).permute(0, 3, 1, 2).float().div(127.5).sub(1).to(self.device)
            self._own_source = (path, self.features_of(face))
        return self._own_source[1]

    def features_of(self, faces: Tensor) -> Tensor:
        """``F_ext`` of aligned faces ``(B, 3, S, S)``: ``(B, F)``, of length sqrt(F)."""
        if isinstance(self.networks.extractor, FeatureExtractor):
            return self.networks.extractor.features(faces)
        if self._recogniser is None:
            self._recogniser = load_recogniser(self.config.recogniser).to(self.device)
        vectors: Tensor = self._recogniser(faces)
        return functional.normalize(vectors.float(), dim=-1) * vectors.shape[1] ** 0.5

    def _attributes(self, crops: Tensor, indices: list[int]) -> Tensor:
        """Requested values of every face, ``(B, A)``."""
        return torch.tensor([indices] * len(crops), device=self.device).view(len(crops), -1)

    def _degrees(self, options: AttributedOptions) -> Tensor | None:
        edits = options.edits()
        if not edits:
            return None
        directions = self.networks.latent_directions
        fitted = [
            name for i, name in enumerate(directions.attributes) if bool(directions.directions[i].abs().max() > 0)
        ]
        for name in edits:
            if name not in fitted:
                known = ", ".join(fitted) or "none"
                raise InputError(
                    f"{self.name}: there is no direction for {name} in this checkpoint (fitted: {known}); fit them "
                    "with: facezoo directions"
                )
        return torch.tensor([[edits.get(name, 0.0) for name in self.config.attributes]], device=self.device)

    def _on_device(self, faces: Tensor) -> Tensor:
        return faces.to(self.device, torch.float32).contiguous(memory_format=torch.channels_last)


def binary_attributes(names: tuple[str, ...]) -> tuple[str, ...]:
    """The attributes with two values, for which a direction means something."""
    return tuple(name for name in names if len(ATTRIBUTES[name].values) == 2)
