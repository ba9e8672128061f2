"""Training of MfM: phase 1 the style classifier, phase 2 the modifier with the classifier frozen.

Paper: Pan, Chen, Wu, Algorithm 1. In phase 2 the discriminator V learns in every batch but each fifth, in which the
modifier M learns by (7); every batch is a fresh one. The clock of ``PhasedModule`` decides which, so a resumed run and
one on several processes alternate in the same places. (The paper's listing also updates V in the fifth batch.)

A batch's pictures are the originals I (identity i). Sources t and k are drawn by the clock from the whole set.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from facezoo.core import saved_file
from facezoo.core.configuration import build_strict
from facezoo.core.phases import Phase, Side
from facezoo.data.attributes import ATTRIBUTES
from facezoo.methods.attributed.losses import cross_entropy, standard_normal_divergence
from facezoo.methods.attributed.model import Posterior
from facezoo.methods.attributed.training import AttributedTraining, Sources
from facezoo.methods.mfm import losses
from facezoo.methods.mfm.config import MfMConfig
from facezoo.methods.mfm.networks import MfMNetworks
from facezoo.nets import patch_discriminator
from facezoo.nets.dosgan import FeatureExtractor, MultiTaskDiscriminator


@dataclasses.dataclass(frozen=True)
class Drawn:
    """What a modifier batch works with.

    Attributes:
        faces: The originals I, ``(B, 3, S, S)``.
        labels: Their attributes A_i.
        identity: ID_i, -1 outside the classes.
        t: The sources that the anonymized faces take after.
        k: The sources that a wrong password shows.
        own: C's features of I.
        bits: The password.
        wanted: Factors that are asked for.
        position: Batches of the phase before this one.
        turn: Modifier batches before this one.
    """

    faces: Tensor
    labels: Tensor
    identity: Tensor
    t: Sources
    k: Sources
    own: Tensor
    bits: Tensor
    wanted: Tensor
    position: int
    turn: int


class MfMTraining(AttributedTraining):
    """LightningModule of both phases.

    Args:
        config: Plain dict of ``MfMConfig``.
        seed: Seed of weights and of every random draw.

    Raises:
        InputError: Unknown key or wrong type in ``config``.
    """

    config: MfMConfig
    model: MfMNetworks

    def __init__(self, config: dict[str, Any], seed: int = 0) -> None:
        super().__init__()
        self.save_hyperparameters()
        c = build_strict(MfMConfig, config, "config")
        self._prepare(c, seed)
        torch.manual_seed(seed)
        self.model = MfMNetworks(c)
        self.shipped = tuple(self.model.networks())
        self.starts_from = tuple(self.model.painting())
        self.sizes = [len(ATTRIBUTES[name].values) for name in c.attributes]
        self.discriminator = MultiTaskDiscriminator(
            c.discriminator_size,
            c.discriminator_width,
            c.discriminator_max_width,
            c.discriminator_layers,
            c.feature_dim,
            self.model.value_total,
        )
        self.posterior = Posterior(c.discriminator_width // 2, c.size, 4 * c.width, 4 * c.width, c.feature_dim)
        modify = tuple(name for name in self.networks() if name not in ("extractor", *self.starts_from))
        self.phases = (
            *((Phase("classify", c.classify_batches, ("extractor",)),) if c.extractor == "learned" else ()),
            Phase(
                "modify",
                c.modify_batches,
                modify,
                discriminator_batches=c.discriminator_ratio,
                judges=("discriminator", "attribute_reader"),
            ),
        )

    def networks(self) -> Mapping[str, nn.Module]:
        """All networks by name."""
        return {**self.model.networks(), "discriminator": self.discriminator, "posterior": self.posterior}

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Adams of M and the posteriors, of V and the attribute reader, of the code's networks, of C."""
        c, nets = self.config, self.networks()
        code = [name for name in nets if name.startswith("code_")]
        judges = ["discriminator", "attribute_reader"]
        rest = [name for name in nets if name not in (*code, *judges, "extractor", "painter", *self.model.painting())]

        def parameters(names: list[str]) -> list[nn.Parameter]:
            return [p for name in names for p in nets[name].parameters()]

        betas = (c.beta1, c.beta2)
        optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Adam(parameters(rest), lr=c.learning_rate, betas=betas),
            torch.optim.Adam(parameters(judges), lr=c.extractor_learning_rate, betas=betas),
        ]
        if code:
            optimizers.append(torch.optim.Adam(parameters(code), lr=c.code_learning_rate, betas=(0.9, c.beta2)))
        if "extractor" in nets:
            optimizers.append(torch.optim.Adam(parameters(["extractor"]), lr=c.extractor_learning_rate, betas=betas))
        return optimizers

    # ------------------------------------------------------------------ steps
    def step(self, batch: dict[str, Tensor], phase: Phase, side: Side) -> dict[str, Tensor]:
        """One batch of either phase and side; ``batch`` has uint8 ``image`` ``(B, 3, S, S)`` and ``index`` ``(B,)``."""
        faces, labels, identity = self.inputs(batch)
        if phase.name == "classify":
            return self._classifier_batch(faces, identity)
        if side == "discriminator":
            return self._judges_batch(batch, faces, labels)
        return self._modifier_batch(batch, faces, labels, identity)

    def _classifier_batch(self, faces: Tensor, identity: Tensor) -> dict[str, Tensor]:
        """Phase 1: identity classification, on the batch's pictures of the classes and as many drawn ones."""
        optimizer = self.optimizers_list()[-1]
        drawn = self.draw_pictures(len(faces), "class")
        with optimizer.toggle_model():
            pictures, names = torch.cat([faces, drawn[0]]), torch.cat([identity, drawn[1]])
            logits = self.identity_logits(self.features_of(pictures))
            loss = cross_entropy(logits, names)
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        right = ((logits.argmax(1) == names) & (names >= 0)).sum() / (names >= 0).sum().clamp_min(1)
        return self.logged({"class": loss, "right": right})

    def _judges_batch(self, batch: dict[str, Tensor], faces: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """V: real against anonymized patches, attributes and identity features of real pictures."""
        c = self.config
        optimizer = self.optimizers_list()[1]
        with optimizer.toggle_model():
            with torch.no_grad():
                sources = self.draw_sources(batch, "t")
                bits = self.draw_passwords(len(faces), "password")
                wanted = self.draw_requests(sources.labels, "request")
                cover, _ = self.model.modify(faces, bits, wanted, sources.features, recover=False)
                anonymized = self.write_code(faces, cover)[1]  # as it is saved: V judges M with the code in it
                own = self.own_features(faces, batch)
            patches, predicted, attributes = self.discriminator(faces)
            fake_patches, _, _ = self.discriminator(anonymized)
            value = patch_discriminator.discriminator_loss([patches], [fake_patches], c.adversarial)
            loss_id = losses.domain_loss(predicted, own)
            loss_attr = losses.attribute_loss(attributes, labels, self.sizes)
            read = self.model.attribute_reader(faces)
            total = c.lambda_adversarial * value + loss_id + loss_attr + losses.attribute_loss(read, labels, self.sizes)
            optimizer.zero_grad()
            self.manual_backward(total)
            optimizer.step()
        logs = {"v_value": value, "v_id": loss_id, "v_attr": loss_attr}
        logs["attr_accuracy"] = self.accuracy(attributes, labels, self.sizes)
        logs["reader_accuracy"] = self.accuracy(read, labels, self.sizes)
        return self.logged(logs)

    def _modifier_batch(
        self, batch: dict[str, Tensor], faces: Tensor, labels: Tensor, identity: Tensor
    ) -> dict[str, Tensor]:
        """M by (7), the games (8) and (16)."""
        c = self.config
        position = self.locate(self.batches_seen)[1]
        turn = position // (c.discriminator_ratio + 1)  # how many batches of this side there were before
        measured = self.measures_shares(turn)
        learning = [o for i, o in enumerate(self.optimizers_list()) if i in ((0, 2) if c.keyed_code else (0,))]
        judges = (self.discriminator, self.model.attribute_reader)
        for judge in judges:
            judge.requires_grad_(False)
        try:
            with self.eager_if(measured):
                drawn = self._draw(batch, faces, labels, identity, position, turn)
                terms, logs = self._terms(drawn)
                total = torch.stack(list(terms.values())).sum()
                if measured:
                    logs |= self.gradient_shares(terms, "m", self.model.modifier, self.model.modifier_style)
                for optimizer in learning:
                    optimizer.zero_grad()
                self.manual_backward(total)
                for optimizer in learning:
                    self.clip_gradients(optimizer, gradient_clip_val=10.0, gradient_clip_algorithm="norm")
                    optimizer.step()
        finally:
            for judge in judges:
                judge.requires_grad_(True)
        if isinstance(self.model.extractor, FeatureExtractor):
            self.refill_bank(drawn.own, batch, turn)
        return self.logged({**logs, "total": total})

    @torch.no_grad()
    def _draw(
        self, batch: dict[str, Tensor], faces: Tensor, labels: Tensor, identity: Tensor, position: int, turn: int
    ) -> Drawn:
        """Sources, passwords and factors of a modifier batch."""
        t, k = self.draw_sources(batch, "t"), self.draw_sources(batch, "k")
        return Drawn(
            faces=faces,
            labels=labels,
            identity=identity,
            t=t,
            k=k,
            own=self.own_features(faces, batch),
            bits=self.draw_passwords(len(faces), "password"),
            wanted=self.draw_requests(t.labels, "request"),
            position=position,
            turn=turn,
        )

    def _terms(self, d: Drawn) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """All terms of the loss, weighted, and what else is logged."""
        c, logs = self.config, dict[str, Tensor]()
        cover, _ = self.model.modify(d.faces, d.bits, d.wanted, d.t.features, recover=False)
        anonymized, written, code, change = self.write_code(d.faces, cover)
        warm_end = max(1.0, 0.1 * c.modify_batches)
        saved = self.through_file(written, warm=d.position < warm_end)
        phasors, wrong_phasors, extract = self.read_code(saved, code, max(0.0, 1 - d.position / (3 * warm_end)))
        noise, log_variance = None, self.posterior.bottleneck_log_variance
        if c.lambda_marginal:
            noise = self.bottleneck_noise(len(saved), 4 * c.width) * (0.5 * log_variance).exp()
        recovered, bottleneck = self.model.modify(
            saved, d.bits, d.wanted, d.k.features, recover=True, phasors=phasors, noise=noise
        )
        features, features_r = self.features_of(anonymized), self.features_of(recovered)
        mistaken, terms = self._variant_terms(d, saved, wrong_phasors, features, logs)
        terms |= self._equation_7(d, anonymized, recovered, features, features_r, mistaken, logs)
        source, cosines = self.identity_losses(features, d.t.features, d.own)
        terms |= {"source": source, "surroundings": self.surrounding_losses(anonymized, d.faces)}
        l1, dissimilarity = saved_file.reveal_loss(recovered, d.faces)
        logs |= {"l1": l1, "ssim": 1 - dissimilarity, **cosines}
        if c.lambda_reveal_ssim:
            terms["ssim"] = c.lambda_b * c.lambda_reveal_ssim * dissimilarity
        if code is not None:
            terms["code"] = c.lambda_extract * extract + c.lambda_residual * change
            logs |= {"extract": extract, "change": change.sqrt()}
        if c.lambda_marginal:  # (17): what passes the bottleneck, against the marginal r
            divergence = standard_normal_divergence(bottleneck.float(), log_variance)
            terms["marginal"] = c.lambda_marginal * divergence
            logs["kl_marginal"] = divergence
        return terms | self._information_terms(d, anonymized, recovered, logs), logs

    def _equation_7(
        self,
        d: Drawn,
        anonymized: Tensor,
        recovered: Tensor,
        features: Tensor,
        features_r: Tensor,
        mistaken: Tensor | None,
        logs: dict[str, Tensor],
    ) -> dict[str, Tensor]:
        """(1)-(3), (5), (6) with their weights, and V; (4) is among the variants' terms."""
        c = self.config
        patches, predicted, attributes = self.discriminator(anonymized)
        _, _, attributes_r = self.discriminator(recovered)
        loss_b = losses.appearance_loss(d.faces, anonymized, recovered, c.keep_share)
        loss_attr = losses.attribute_loss(attributes, d.wanted, self.sizes)
        loss_attr = loss_attr + losses.attribute_loss(attributes_r, d.labels, self.sizes)
        loss_rec = losses.recovered_loss(d.own, features_r)
        loss_domain = losses.domain_loss(predicted, features)
        loss_adv = losses.identity_loss(
            self.identity_logits(features_r),
            d.identity,
            self.identity_logits(features),
            d.t.identity,
            mistaken,
            d.k.identity,
        )
        value = patch_discriminator.generator_loss([patches], c.adversarial)
        logs |= {"b": loss_b, "attr": loss_attr, "adv": loss_adv, "rec": loss_rec, "domain": loss_domain}
        logs |= {"value": value, "asked": self.accuracy(attributes, d.wanted, self.sizes)}
        return {
            "b": c.lambda_b * loss_b,
            "attr": c.lambda_attribute_class * loss_attr,
            "adv": c.lambda_identity_class * loss_adv,
            "rec": c.lambda_recovered * loss_rec,
            "domain": c.lambda_domain * loss_domain,
            "value": c.lambda_adversarial * value,
        }

    def _variant_terms(
        self, d: Drawn, saved: Tensor, wrong_phasors: Tensor | None, features: Tensor, logs: dict[str, Tensor]
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """(4) on the faces of another right password and of two wrong ones; (18) with P^ != P.

        Returns:
            Identity logits of F_wp1 for (3), None in a batch without these faces; and the weighted terms.
        """
        c = self.config
        if d.turn % c.variants_every:
            return None, {}
        # As at use, another password brings another source; wrong ones work on the saved face.
        second, _ = self.model.modify(
            d.faces, self.other_passwords(d.bits, "second"), d.wanted, d.k.features, recover=False
        )
        wrong = [
            self.model.modify(saved, *self.spoil(d.bits, d.wanted, name), source, recover=True, phasors=wrong_phasors)[
                0
            ]
            for name, source in (("wrong 1", d.k.features), ("wrong 2", d.t.features.roll(1, 0)))
        ]
        seen = [self.features_of(picture) for picture in (second, *wrong)]
        loss_feat = losses.feature_loss(features, *seen)
        terms = {"feat": c.variants_every * c.lambda_feature * loss_feat}
        logs |= {"feat": loss_feat, "cos_wrong": functional.cosine_similarity(seen[1], d.own, dim=-1).mean()}
        if c.lambda_recovery:
            nats = self.posterior.told_of_source(d.k.features, seen[1])
            terms["false_recovery"] = -c.variants_every * c.lambda_recovery * nats
            logs["mi_false"] = nats
        return self.identity_logits(seen[1]), terms

    def _information_terms(
        self, d: Drawn, anonymized: Tensor, recovered: Tensor, logs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """The games (8) and, with the right password, (16): both pictures keep telling the original's content code."""
        c, terms = self.config, dict[str, Tensor]()
        if not (c.lambda_acceptability or c.lambda_recovery):
            return terms
        told = self.posterior.code(self.model.content(d.faces))
        if c.lambda_acceptability:
            logs["mi_acceptability"] = self.posterior.told_by_anonymized(told, anonymized)
            terms["acceptability"] = -c.lambda_acceptability * logs["mi_acceptability"]
        if c.lambda_recovery:
            logs["mi_recovery"] = self.posterior.told_by_recovered(told, recovered)
            terms["recovery"] = -c.lambda_recovery * logs["mi_recovery"]
        return terms

    # ------------------------------------------------------------------ what a run shows
    @torch.no_grad()
    def sample_sheet(self, batch: dict[str, Tensor], averaged: Mapping[str, nn.Module]) -> list[tuple[str, Tensor]]:
        """Originals, two passwords, requests, recovery with the right and a wrong password."""
        faces, _, _ = self.inputs(batch)
        model, count = self.model, len(faces)
        averaged = {name: network for name, network in averaged.items() if name not in self.starts_from}
        live = {name: getattr(model, name) for name in averaged}
        try:
            for name, network in averaged.items():
                setattr(model, name, network)
            rng = torch.Generator().manual_seed(7)
            nothing = torch.full((count, len(self.config.attributes)), -1, device=faces.device)
            bits, other = (
                torch.randint(2, (1, self.config.password_bits), generator=rng).expand(count, -1).to(faces.device)
                for _ in range(2)
            )
            a, b = (model.source_bank.draw(torch.rand(count, 3, generator=rng).to(faces.device)) for _ in range(2))
            cover, _ = model.modify(faces, bits, nothing, a, recover=False)
            rows = [("original", faces)]
            if self.config.content_grid:
                rows.append(("seen by M", model.guess(faces, a, nothing)))
            rows += [("password A", cover), ("password B", model.modify(faces, other, nothing, b, recover=False)[0])]
            for name, value in (("smiling", "yes"), ("hair", "blond"), ("sex", "female")):
                if name in self.config.attributes:
                    asked = nothing.clone()
                    asked[:, self.config.attributes.index(name)] = ATTRIBUTES[name].values.index(value)
                    rows.append((f"A, {name}={value}", model.modify(faces, bits, asked, a, recover=False)[0]))
            anonymized, _, code, _ = self.write_code(faces, cover)
            right, wrong, _ = self.read_code(anonymized, code, 0.0)
            if code is not None:
                rows.append(("10 x the code", (anonymized - cover).mul(10).clamp(-1, 1)))
            recovered = model.modify(anonymized, bits, nothing, b, recover=True, phasors=right)[0]
            mistaken = model.modify(anonymized, other, nothing, b, recover=True, phasors=wrong)[0]
            return [*rows, ("recovered with A", recovered), ("recovered with B", mistaken)]
        finally:
            for name, network in live.items():
                setattr(model, name, network)
