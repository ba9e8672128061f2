"""Training of MfM: phase 1 the style classifier, phase 2 the modifier with the classifier frozen.

Paper: Pan, Chen, Wu, Algorithm 1. In phase 2 the discriminator V learns in every batch but each fifth, in which the
modifier M learns by (7); every batch is a fresh one. The clock of ``PhasedModule`` decides which, so a resumed run and
one on several processes alternate in the same places. (The paper's listing also updates V in the fifth batch.)

A batch's pictures are the originals I (identity i). Sources t and k are drawn by the clock from the whole set.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from facezoo.core import saved_file
from facezoo.core.configuration import build_strict
from facezoo.core.phases import Phase, Side
from facezoo.data.attributes import ATTRIBUTES
from facezoo.methods.attributed.losses import cross_entropy, gaussian_log_likelihood, standard_normal_divergence
from facezoo.methods.attributed.model import Posterior
from facezoo.methods.attributed.training import AttributedTraining
from facezoo.methods.mfm import losses
from facezoo.methods.mfm.config import MfMConfig
from facezoo.methods.mfm.networks import MfMNetworks
from facezoo.nets import patch_discriminator
from facezoo.nets.dosgan import FeatureExtractor, MultiTaskDiscriminator


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
        self.posterior = Posterior(c.discriminator_width // 2, c.size, 4 * c.width, 4 * c.width)
        modify = tuple(name for name in self.networks() if name not in ("extractor", *self.starts_from))
        self.phases = (
            *((Phase("classify", c.classify_batches, ("extractor",)),) if c.extractor == "learned" else ()),
            Phase("modify", c.modify_batches, modify, discriminator_batches=c.discriminator_ratio),
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
                sources = self.draw_sources(len(faces), "t")
                bits = self.draw_passwords(len(faces), "password")
                wanted = self.draw_requests(sources.labels, "request")
                cover, _ = self.model.modify(faces, bits, wanted, sources.features, recover=False)
                anonymized = saved_file.to_8_bit(cover)
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
        learning = [o for i, o in enumerate(self.optimizers_list()) if i in ((0, 2) if c.keyed_code else (0,))]
        judges = (self.discriminator, self.model.attribute_reader)
        for judge in judges:
            judge.requires_grad_(False)
        try:
            count = len(faces)
            with torch.no_grad():
                t, k = self.draw_sources(count, "t"), self.draw_sources(count, "k")
                own = self.own_features(faces, batch)
            bits = self.draw_passwords(count, "password")
            wanted = self.draw_requests(t.labels, "request")
            logs: dict[str, Tensor] = {}

            cover, latent = self.model.modify(faces, bits, wanted, t.features, recover=False)
            anonymized, written, code, change = self.write_code(faces, cover)
            warm_end = max(1.0, 0.1 * c.modify_batches)
            saved = self.through_file(written, warm=position < warm_end)
            phasors, wrong_phasors, extract = self.read_code(saved, code, max(0.0, 1 - position / (3 * warm_end)))
            noise = None
            log_variance = self.posterior.bottleneck_log_variance
            if c.lambda_recovery:
                rng = self.generator_for("bottleneck")
                side = c.size // 4
                normal = self.share(torch.randn(count * self.world_size, 4 * c.width, side, side, generator=rng))
                noise = normal * (0.5 * log_variance).exp()
            recovered, bottleneck = self.model.modify(
                saved, bits, wanted, k.features, recover=True, phasors=phasors, noise=noise
            )

            features, features_r = self.features_of(anonymized), self.features_of(recovered)
            patches, predicted, attributes = self.discriminator(anonymized)
            _, _, attributes_r = self.discriminator(recovered)
            loss_b = losses.appearance_loss(faces, anonymized, recovered, c.keep_share)
            loss_attr = losses.attribute_loss(attributes, wanted, self.sizes)
            loss_attr = loss_attr + losses.attribute_loss(attributes_r, labels, self.sizes)
            loss_rec = losses.recovered_loss(own, features_r)
            loss_domain = losses.domain_loss(predicted, features)
            mistaken_logits: Tensor | None = None
            loss_feat = faces.new_zeros(())
            weight = c.variants_every
            if turn % c.variants_every == 0:
                # As at use, another password brings another source; wrong ones work on the saved face.
                second, _ = self.model.modify(
                    faces, self.spoil(bits, wanted, "second")[0], wanted, k.features, recover=False
                )
                wrong = [
                    self.model.modify(
                        saved, *self.spoil(bits, wanted, name), source, recover=True, phasors=wrong_phasors
                    )[0]
                    for name, source in (("wrong 1", k.features), ("wrong 2", t.features.roll(1, 0)))
                ]
                seen = [self.features_of(picture) for picture in (second, *wrong)]
                loss_feat = weight * losses.feature_loss(features, *seen)
                mistaken_logits = self.identity_logits(seen[1])
                logs["cos_wrong"] = functional.cosine_similarity(seen[1], own, dim=-1).mean()
            loss_adv = losses.identity_loss(
                self.identity_logits(features_r),
                identity,
                self.identity_logits(features),
                t.identity,
                mistaken_logits,
                k.identity,
            )
            value = patch_discriminator.generator_loss([patches], c.adversarial)
            ident, cosines = self.identity_losses(features, t.features, own)
            total = (
                c.lambda_b * loss_b
                + c.lambda_attribute_class * loss_attr
                + c.lambda_identity_class * loss_adv
                + c.lambda_feature * loss_feat
                + c.lambda_recovered * loss_rec
                + c.lambda_domain * loss_domain
                + c.lambda_adversarial * value
                + ident
                + self.surrounding_losses(anonymized, faces)
            )
            l1, dissimilarity = saved_file.reveal_loss(recovered, faces)
            if c.lambda_reveal_ssim:
                total = total + c.lambda_b * c.lambda_reveal_ssim * dissimilarity
            if code is not None:
                total = total + c.lambda_extract * extract + c.lambda_residual * change
                logs |= {"extract": extract, "change": change.sqrt()}
            if c.lambda_acceptability:  # (8), (10)-(12): the anonymized picture keeps telling the original's code
                told = gaussian_log_likelihood(
                    self.posterior.code(latent), self.posterior(anonymized), self.posterior.code_log_variance
                )
                total = total - c.lambda_acceptability * told
                logs["mi_acceptability"] = told
            if c.lambda_recovery:  # (17); and (18) for the wrong password, whose picture tells k's code
                divergence = standard_normal_divergence(bottleneck.float(), log_variance)
                total = total + c.lambda_recovery * divergence
                logs["mi_recovery"] = divergence
                if turn % c.variants_every == 0:
                    told = gaussian_log_likelihood(k.features, seen[1], self.posterior.source_log_variance)
                    total = total - weight * c.lambda_recovery * told
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
            self.refill_bank(own, batch, turn)
        logs |= {"b": loss_b, "attr": loss_attr, "adv": loss_adv, "feat": loss_feat, "rec": loss_rec, "l1": l1}
        logs |= {"domain": loss_domain, "value": value, "ssim": 1 - dissimilarity, "total": total, **cosines}
        logs["asked"] = self.accuracy(attributes, wanted, self.sizes)
        return self.logged(logs)

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
