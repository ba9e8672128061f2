"""dp_kanonymity at use: attributes of the face's neighbours, chosen privately, edited into the face.

Book, chapter 4 ("Hiding among your neighbors", BMSB 2022), algorithm 1, with STGAN's editor; and AnonymousNet's
selection by t-closeness on the same editor. README.md says whom the guarantee is about (not the face in the picture).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import numpy as np
import torch
from torch import Tensor

from facezoo.errors import InputError
from facezoo.methods.base import FaceContext, LearnedMethod, check_faces
from facezoo.methods.checkpoints import checkpoint_config, fill_networks
from facezoo.methods.dp_kanonymity.config import DPKAnonymityConfig
from facezoo.methods.dp_kanonymity.model import DPKAnonymityNetworks
from facezoo.methods.dp_kanonymity.options import DPKAnonymityOptions
from facezoo.methods.dp_kanonymity.reference import ReferenceSet
from facezoo.methods.dp_kanonymity.selection import (
    average_attributes,
    neighbour_votes,
    poisson_sample,
    private_attributes,
    selection_cost,
    t_close_attributes,
)
from facezoo.methods.options import Options
from facezoo.privacy.guarantee import Guarantee
from facezoo.privacy.release import SEEDED_REASON, source_for


@dataclass(frozen=True)
class AttributeChoices:
    """What algorithm 1 did with some faces; each ``(B, c)`` int64 of 0 and 1.

    Attributes:
        predicted: P, what the classifier sees.
        average: R, what the neighbours (or, for t-closeness, people in general) mostly have; no noise protects it.
        chosen: O, what the faces get.
    """

    predicted: Tensor
    average: Tensor
    chosen: Tensor

    def agreement(self) -> dict[str, Tensor]:
        """Attribute accuracy (4.14) of each face, the lines of the book's figures 4.3 and 4.4: ``(B,)`` in [0, 1]."""
        return {
            "chosen_predicted": (self.chosen == self.predicted).double().mean(1),
            "average_predicted": (self.average == self.predicted).double().mean(1),
            "chosen_average": (self.chosen == self.average).double().mean(1),
        }


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
        self._reference: tuple[str, ReferenceSet] | None = None

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
        count = len(self.networks.config.rules)
        cost = selection_cost(options.epsilon, options.tau, count, options.gamma)
        return Guarantee(
            cost=cost,
            protects="each person of the reference set who may be among the neighbours; not the face in the picture",
            neighbours="two reference sets of which one has one person more, with all pictures of that person",
            leaks=(
                "the face in the picture: the editor works on its own pixels, and changes the chosen attributes only; "
                "everything else of it stays. And, where the networks were trained on the reference set, what their "
                "weights tell of it"
            ),
            holds=options.randomness == "secure",
            reason=(
                f"a person votes once, with one picture; votes move by at most {2 * min(options.tau, count):g} in all; "
                f"people are sampled with probability {options.gamma:g}"
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
        choices = self.attribute_choices(faces, context)
        if len(faces) == 0:
            return faces.clone()
        crops = faces.to(self.device, torch.float32)
        return self.networks.editor(crops, (choices.chosen - choices.predicted).to(crops)).clamp(-1, 1).to(faces)

    @torch.no_grad()
    def attribute_choices(self, faces: Tensor, context: FaceContext) -> AttributeChoices:
        """What the faces have, what their neighbours have and what they are to get; for figures.

        Args:
            faces: as for ``anonymize``.
            context: as for ``anonymize``.

        Raises:
            InputError: no reference set, or one that is too small for k.
        """
        check_faces(faces, self.name, self.crop_size)
        options = cast(DPKAnonymityOptions, self.resolve_options(context))
        reference = self._people(options)
        if len(faces) == 0:
            nothing = torch.zeros(0, len(self.networks.config.rules), dtype=torch.int64)
            return AttributeChoices(nothing, nothing, nothing)
        phi, logits = self.networks.classifier(faces.to(self.device, torch.float32))
        own = (logits > 0).long().cpu()
        found = [
            self._chosen(crop, one.cpu(), truth, reference, options, context)
            for crop, one, truth in zip(faces.float(), phi, own, strict=True)
        ]
        average, chosen = (torch.stack(parts) for parts in zip(*found, strict=True))
        return AttributeChoices(own, average, chosen)

    def _chosen(
        self,
        crop: Tensor,
        phi: Tensor,
        truth: Tensor,
        reference: ReferenceSet,
        options: DPKAnonymityOptions,
        context: FaceContext,
    ) -> tuple[Tensor, Tensor]:
        """Algorithm 1 for one face: R and O, each ``(c,)`` of 0 and 1."""
        pixels = np.ascontiguousarray(crop.contiguous().cpu().numpy()).tobytes()
        source = source_for(options.randomness, context.seed, pixels)
        groups = self.networks.config.group_indices
        if options.selection == "t_closeness":
            frequency = reference.frequencies()
            return average_attributes(frequency, 1, groups), t_close_attributes(
                truth, frequency, options.t, groups, source
            )
        features, attributes = reference.nearest(phi)
        people = poisson_sample(len(reference), options.gamma, source)
        votes = neighbour_votes(phi, features[people], attributes[people], options.k, options.tau)
        return average_attributes(votes, options.k, groups), private_attributes(
            votes, options.k, options.epsilon, groups, source
        )

    def _people(self, options: DPKAnonymityOptions) -> ReferenceSet:
        """The reference set, looked at once.

        Raises:
            InputError: no reference set, one that cannot be accounted for, or one that is too small for k.
        """
        if options.reference is None:
            raise InputError(
                f"{self.name} needs people to hide among: reference=FILE.safetensors (facezoo prepare makes one)"
            )
        if self._reference is None or self._reference[0] != options.reference:
            self._reference = (
                options.reference,
                ReferenceSet.read(options.reference, self.networks.config.size, self._classified),
            )
        reference = self._reference[1]
        expected = options.gamma * len(reference)
        if options.selection == "neighbours" and options.k > expected:
            raise InputError(
                f"{self.name}: k={options.k} is more than the {expected:.0f} people that a sample of {options.gamma:g} "
                f"of the {len(reference)} in the reference set has; use a smaller k, a greater gamma or a larger set"
            )
        return reference

    def _classified(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        """phi(x) ``(B, D)`` and logits ``(B, c)`` of crops, on the CPU."""
        phi, logits = self.networks.classifier(crops.to(self.device))
        return phi.cpu(), logits.cpu()
