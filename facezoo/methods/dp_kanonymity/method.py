"""dp_kanonymity at use: attributes of the face's neighbours, chosen privately, edited into the face.

Book, chapter 4 ("Hiding among your neighbors", BMSB 2022), algorithm 1, with STGAN's editor; and AnonymousNet's
selection by t-closeness on the same editor. README.md says whom the guarantee is about (not the face in the picture).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Self, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from facezoo.data.packed import PackedFaces
from facezoo.errors import InputError
from facezoo.methods.base import FaceContext, LearnedMethod, check_faces
from facezoo.methods.checkpoints import checkpoint_config, fill_networks
from facezoo.methods.dp_kanonymity.config import DPKAnonymityConfig
from facezoo.methods.dp_kanonymity.model import DPKAnonymityNetworks
from facezoo.methods.dp_kanonymity.options import DPKAnonymityOptions
from facezoo.methods.dp_kanonymity.selection import (
    neighbour_votes,
    poisson_sample,
    private_attributes,
    selection_cost,
    t_close_attributes,
)
from facezoo.methods.options import Options
from facezoo.privacy.guarantee import Guarantee
from facezoo.privacy.release import SEEDED_REASON, source_for

_BATCH = 64


class DPKAnonymity(LearnedMethod):
    """The trained method.

    Args:
        networks: Trained networks.
        options: Options for every call.
    """

    name: ClassVar[str] = "dp_kanonymity"
    options_class: ClassVar[type[Options]] = DPKAnonymityOptions

    def __init__(self, networks: DPKAnonymityNetworks, options: Options | None = None) -> None:
        super().__init__(options)
        self.networks = networks.eval().requires_grad_(False)
        self.crop_size = networks.config.size
        self.device = torch.device("cpu")
        self._reference: tuple[str, Tensor, Tensor] | None = None

    @classmethod
    def from_checkpoint(cls, folder: Path, manifest: dict[str, Any], options: Options | None = None) -> Self:
        """Builds the networks of a checkpoint folder, strictly.

        Raises:
            CheckpointError: the configuration or a file does not fit.
        """
        config = checkpoint_config(DPKAnonymityConfig, folder, manifest)
        networks = DPKAnonymityNetworks(config)
        fill_networks(networks.networks(), folder, manifest)
        return cls(networks, options)

    def to(self, device: torch.device | str) -> Self:
        """Moves the networks. Returns the method itself."""
        self.device = torch.device(device)
        self.networks.to(self.device)
        return self

    # ------------------------------------------------------------------ the promise
    def guarantee(self, context: FaceContext) -> Guarantee | None:
        """What one call promises to the people of the reference set; t-closeness has no epsilon."""
        options = cast(DPKAnonymityOptions, self.resolve_options(context))
        if options.selection != "neighbours":
            return None
        cost = selection_cost(options.epsilon, options.tau, len(self.networks.config.rules), options.gamma)
        return Guarantee(
            cost=cost,
            protects="each person of the reference set who may be among the neighbours; not the face in the picture",
            neighbours="two reference sets that differ in one person",
            leaks=(
                "the face in the picture: the editor works on its own pixels, and changes the chosen attributes only; "
                "everything else of it stays"
            ),
            holds=options.randomness == "secure",
            reason=(
                f"votes move by at most {2 * options.tau:g} in all; sampled with probability {options.gamma:g}"
                if options.randomness == "secure"
                else SEEDED_REASON
            ),
            countable=False,  # a ledger is about the people in the pictures
        )

    def options_record(self, context: FaceContext) -> dict[str, object]:
        """Options, and in words what they promise to whom."""
        promise = self.guarantee(context)
        if promise is not None:
            return {**super().options_record(context), **promise.to_record()}
        options = cast(DPKAnonymityOptions, self.resolve_options(context))
        words = f"each attribute's answer is within t={options.t:g} of the reference set's frequencies"
        return {**super().options_record(context), "guarantee": f"t-closeness, about the attributes only: {words}"}

    # ------------------------------------------------------------------ the call
    @torch.no_grad()
    def anonymize(self, faces: Tensor, context: FaceContext) -> Tensor:
        """See ``Method.anonymize``; attributes are chosen anew for each face at each call."""
        check_faces(faces, self.name, self.crop_size)
        options = cast(DPKAnonymityOptions, self.resolve_options(context))
        features, attributes = self._people(options)
        if len(faces) == 0:
            return faces.clone()
        crops = faces.to(self.device, torch.float32)
        phi, logits = self.networks.classifier(crops)
        own = (logits > 0).long().cpu()
        chosen = torch.stack(
            [
                self._chosen(crop, one.cpu(), truth, features, attributes, options, context)
                for crop, one, truth in zip(crops, phi, own, strict=True)
            ]
        )
        return self.networks.editor(crops, (chosen - own).to(crops)).clamp(-1, 1).to(faces)

    def _chosen(
        self,
        crop: Tensor,
        phi: Tensor,
        truth: Tensor,
        features: Tensor,
        attributes: Tensor,
        options: DPKAnonymityOptions,
        context: FaceContext,
    ) -> Tensor:
        """Algorithm 1 for one face: ``(c,)`` of 0 and 1."""
        pixels = np.ascontiguousarray(crop.contiguous().cpu().numpy()).tobytes()
        source = source_for(options.randomness, context.seed, pixels)
        groups = self.networks.config.group_indices
        if options.selection == "t_closeness":
            return t_close_attributes(truth, attributes.double().mean(0), options.t, groups, source)
        rows = poisson_sample(len(features), options.gamma, source)
        votes = neighbour_votes(phi, features[rows], attributes[rows], options.k, options.tau)
        return private_attributes(votes, options.k, options.epsilon, groups, source)

    def _people(self, options: DPKAnonymityOptions) -> tuple[Tensor, Tensor]:
        """phi(x) and attributes of the reference set, computed once.

        Raises:
            InputError: no reference set, or one that is too small for k.
        """
        if options.reference is None:
            raise InputError(
                f"{self.name} needs people to hide among: reference=FILE.safetensors (facezoo prepare makes one)"
            )
        if self._reference is None or self._reference[0] != options.reference:
            people = PackedFaces(options.reference)
            parts = []
            size = self.networks.config.size
            for start in range(0, len(people), _BATCH):
                pixels = torch.from_numpy(people.batch(np.arange(start, min(start + _BATCH, len(people)))))
                crops = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1
                if crops.shape[-1] != size:
                    crops = functional.interpolate(crops, size=(size, size), mode="area")
                phi, logits = self.networks.classifier(crops.to(self.device))
                parts.append((phi.cpu(), (logits > 0).long().cpu()))
            if not parts:
                raise InputError(f"{self.name}: {options.reference} holds nobody to hide among")
            self._reference = (
                options.reference,
                torch.cat([phi for phi, _ in parts]),
                torch.cat([found for _, found in parts]),
            )
        _, features, attributes = self._reference
        expected = options.gamma * len(features)
        if options.selection == "neighbours" and options.k > expected:
            raise InputError(
                f"{self.name}: k={options.k} is more than the {expected:.0f} people that a sample of {options.gamma:g} "
                f"of the {len(features)} in the reference set has; use a smaller k, a greater gamma or a larger set"
            )
        return features, attributes
