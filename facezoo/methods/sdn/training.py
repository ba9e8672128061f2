"""Training of SDN: Algorithm 1's alternation.

Paper: Pan, Chen, Wu, Electronics 2024, 13, 4398. ``discriminator_ratio`` batches train EC by (5) and D by (11), then
one batch trains En by (8) and De by (14); every batch is a fresh one. The clock of ``PhasedModule`` decides which side
a batch belongs to, so a resumed run and one on several processes alternate in the same places.

A batch's pictures are the targets I_y. Sources I_x and I_z are drawn by the clock from the whole set; with a frozen
recogniser in EC's place only their vectors are needed.
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
from facezoo.data.attributes import ATTRIBUTES, value_count
from facezoo.methods.attributed.losses import cross_entropy, standard_normal_divergence
from facezoo.methods.attributed.model import Posterior
from facezoo.methods.attributed.training import AttributedTraining, Sources
from facezoo.methods.sdn import losses
from facezoo.methods.sdn.config import SDNConfig
from facezoo.methods.sdn.networks import SDNNetworks
from facezoo.nets import patch_discriminator
from facezoo.nets.dosgan import FeatureExtractor, MultiTaskDiscriminator


@dataclasses.dataclass(frozen=True)
class Drawn:
    """What an encoder batch works with.

    Attributes:
        faces: y, ``(B, 3, S, S)``.
        x: The sources that the anonymized faces take after.
        z: The sources that a wrong P shows.
        own: Features of y.
        bits: The password.
        wanted: Attributes that are asked for.
        mine: Those with which y stays itself.
        position: Batches of the phase before this one.
        turn: Encoder batches before this one.
    """

    faces: Tensor
    x: Sources
    z: Sources
    own: Tensor
    bits: Tensor
    wanted: Tensor
    mine: Tensor
    position: int
    turn: int


class SDNTraining(AttributedTraining):
    """LightningModule of the alternation.

    Args:
        config: Plain dict of ``SDNConfig``.
        seed: Seed of weights and of every random draw.

    Raises:
        InputError: Unknown key or wrong type in ``config``.
    """

    config: SDNConfig
    model: SDNNetworks

    def __init__(self, config: dict[str, Any], seed: int = 0) -> None:
        super().__init__()
        self.save_hyperparameters()
        c = build_strict(SDNConfig, config, "config")
        self._prepare(c, seed)
        torch.manual_seed(seed)
        self.model = SDNNetworks(c)
        self.shipped = tuple(self.model.networks())
        self.starts_from = tuple(self.model.painting())
        self.sizes = [len(ATTRIBUTES[name].values) for name in c.attributes]
        self.discriminator = MultiTaskDiscriminator(
            c.discriminator_size,
            c.discriminator_width,
            c.discriminator_max_width,
            c.discriminator_layers,
            c.feature_dim,
            value_count(c.attributes),
        )
        self.posterior = Posterior(c.discriminator_width // 2, c.size, 4 * c.width, 4 * c.reveal_width, c.feature_dim)
        self.phases = (
            Phase(
                "alternate",
                c.alternate_batches,
                tuple(name for name in self.networks() if name not in self.starts_from),
                discriminator_batches=c.discriminator_ratio,
                judges=("extractor", "discriminator"),
            ),
        )

    def networks(self) -> Mapping[str, nn.Module]:
        """All networks by name."""
        return {**self.model.networks(), "discriminator": self.discriminator, "posterior": self.posterior}

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Three Adams: En, De and the posteriors; the concealed code's networks; EC and D."""
        c, nets = self.config, self.networks()
        code = [name for name in nets if name.startswith("code_")]
        judges = [name for name in ("extractor", "discriminator") if name in nets]
        rest = [name for name in nets if name not in (*code, *judges, "painter", *self.model.painting())]

        def parameters(names: list[str]) -> list[nn.Parameter]:
            return [p for name in names for p in nets[name].parameters()]

        betas = (c.beta1, c.beta2)
        optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Adam(parameters(rest), lr=c.learning_rate, betas=betas),
            torch.optim.Adam(parameters(judges), lr=c.extractor_learning_rate, betas=betas),
        ]
        if code:
            optimizers.append(torch.optim.Adam(parameters(code), lr=c.code_learning_rate, betas=(0.9, c.beta2)))
        return optimizers

    # ------------------------------------------------------------------ steps
    def step(self, batch: dict[str, Tensor], phase: Phase, side: Side) -> dict[str, Tensor]:
        """One batch of either side; ``batch`` has uint8 ``image`` ``(B, 3, S, S)`` and ``index`` ``(B,)``."""
        faces, labels, _ = self.inputs(batch)
        if side == "discriminator":
            return self._judges_batch(batch, faces, labels)
        return self._networks_batch(batch, faces, labels)

    def _judges_batch(self, batch: dict[str, Tensor], faces: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """EC by (5) and D by (11) and the games' V."""
        c = self.config
        optimizer = self.optimizers_list()[1]
        with optimizer.toggle_model():
            sources = self.draw_sources(batch, "x")
            bits = self.draw_passwords(len(faces), "password")
            wanted = self.draw_requests(sources.labels, "request")
            with torch.no_grad():
                cover, _ = self.model.en(faces, bits, wanted, sources.features)
                anonymized = self.write_code(faces, cover)[1]  # as it is saved: D judges En with the code in it
            total = faces.new_zeros(())
            logs: dict[str, Tensor] = {}
            if isinstance(self.model.extractor, FeatureExtractor):
                again = self.features_of(anonymized) if c.dual_inference else None
                loss_ec = losses.extractor_loss(
                    self.identity_logits(sources.features),
                    None if again is None else self.identity_logits(again),
                    sources.identity,
                )
                total = total + loss_ec
                logs["ec"] = loss_ec
            # The picture that (9) and the first term of (10) are about is "a real one": x with the learned extractor,
            # whose picture is at hand; else y, which is drawn from the same set.
            real = faces if sources.images is None else sources.images
            real_labels = labels if sources.images is None else sources.labels
            own = self.own_features(faces, batch) if sources.images is None else sources.features
            patches, predicted, attributes = self.discriminator(real)
            fake_patches, _, fake_attributes = self.discriminator(anonymized)
            loss_id = losses.discriminator_identity_loss(predicted, own.detach())
            loss_attr = losses.attribute_loss(attributes, real_labels, self.sizes)
            loss_attr = loss_attr + c.lambda_fake_attributes * losses.attribute_loss(
                fake_attributes, labels, self.sizes
            )
            value = patch_discriminator.discriminator_loss([patches], [fake_patches], c.adversarial)
            total = total + losses.discriminator_loss(loss_id, loss_attr) + c.lambda_adversarial * value
            optimizer.zero_grad()
            self.manual_backward(total)
            optimizer.step()
        right = self.accuracy(attributes, real_labels, self.sizes)
        return self.logged({**logs, "d_id": loss_id, "d_attr": loss_attr, "d_value": value, "attr_accuracy": right})

    def _networks_batch(self, batch: dict[str, Tensor], faces: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """En by (8), De by (14), the games (16) and (19)."""
        position = self.locate(self.batches_seen)[1]
        turn = position // (self.config.discriminator_ratio + 1)  # how many batches of this side there were before
        measured = self.measures_shares(turn)
        chosen = [o for i, o in enumerate(self.optimizers_list()) if i != 1]
        judges = [name for name in ("extractor", "discriminator") if name in self.networks()]
        for name in judges:
            self.networks()[name].requires_grad_(False)
        try:
            with self.eager_if(measured):
                drawn = self._draw(batch, faces, labels, position, turn)
                terms, logs = self._terms(drawn)
                total = torch.stack(list(terms.values())).sum()
                if measured:
                    m = self.model
                    logs |= self.gradient_shares(terms, "en", m.encoder, m.encoder_style)
                    logs |= self.gradient_shares(terms, "de", m.decoder, m.decoder_style)
                for optimizer in chosen:
                    optimizer.zero_grad()
                self.manual_backward(total)
                for optimizer in chosen:
                    self.clip_gradients(optimizer, gradient_clip_val=10.0, gradient_clip_algorithm="norm")
                    optimizer.step()
        finally:
            for name in judges:
                self.networks()[name].requires_grad_(True)
        if isinstance(self.model.extractor, FeatureExtractor):
            self.refill_bank(drawn.own, batch, turn)
        return self.logged({**logs, "total": total})

    def _draw(self, batch: dict[str, Tensor], faces: Tensor, labels: Tensor, position: int, turn: int) -> Drawn:
        """Sources, passwords and requests of an encoder batch."""
        x, z = self.draw_sources(batch, "x"), self.draw_sources(batch, "z")
        return Drawn(
            faces=faces,
            x=x,
            z=z,
            own=self.own_features(faces, batch).detach(),
            bits=self.draw_passwords(len(faces), "password"),
            wanted=self.draw_requests(x.labels, "request"),
            mine=self.own_request(labels, "own request"),
            position=position,
            turn=turn,
        )

    def _terms(self, d: Drawn) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """All terms of the loss, weighted, and what else is logged."""
        c, logs = self.config, dict[str, Tensor]()
        cover, _ = self.model.en(d.faces, d.bits, d.wanted, d.x.features.detach())
        anonymized, written, code, change = self.write_code(d.faces, cover)
        encoder, terms = self._encoder_terms(d, anonymized, logs)
        told = self.posterior.code(self.model.content(d.faces)) if c.lambda_realism or c.lambda_recovery else None

        warm_end = max(1.0, 0.1 * c.alternate_batches)
        saved = self.through_file(written, warm=d.position < warm_end)
        phasors, wrong_phasors, extract = self.read_code(saved, code, max(0.0, 1 - d.position / (3 * warm_end)))
        decoder, more = self._decoder_terms(d, saved, phasors, wrong_phasors, told, logs)
        terms |= more
        terms["equation_15"] = losses.total_loss(encoder, decoder, c.lambda_en, c.lambda_de)
        if code is not None:
            terms["code"] = c.lambda_extract * extract + c.lambda_residual * change
            logs |= {"extract": extract, "change": change.sqrt()}
        if told is not None and c.lambda_realism:  # (16)-(18): the anonymized picture keeps telling y's content code
            nats = self.posterior.told_by_anonymized(told, anonymized)
            terms["realism"] = -c.lambda_realism * nats
            logs["mi_realism"] = nats
        return terms, logs

    def _encoder_terms(self, d: Drawn, anonymized: Tensor, logs: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """(8): y from itself, y back from the anonymized face, attributes as asked; V; and what is ours."""
        c = self.config
        same, _ = self.model.en(d.faces, d.bits, d.mine, d.own)
        back = None
        if c.dual_inference and d.turn % c.back_every == 0:
            back, _ = self.model.en(anonymized, d.bits, d.mine, d.own)
        rec = losses.reconstruction_loss(d.faces, same, None)
        if back is not None:
            rec = rec + c.back_every * (losses.reconstruction_loss(d.faces, same, back) - rec)
        patches, _, attributes = self.discriminator(anonymized)
        attr = c.lambda_attribute * losses.attribute_loss(attributes, d.wanted, self.sizes)

        features = self.features_of(anonymized)
        source, cosines = self.identity_losses(features, d.x.features.detach(), d.own)
        if c.dual_inference and isinstance(self.model.extractor, FeatureExtractor):
            # En's side of the dual inference: the text has both sides minimise this cross-entropy.
            source = source + c.lambda_source * cross_entropy(self.identity_logits(features), d.x.identity)
        value = patch_discriminator.generator_loss([patches], c.adversarial)
        logs |= {
            "rec": (d.faces - same).abs().mean(),
            "attr": attr,
            "asked": self.accuracy(attributes, d.wanted, self.sizes),
            "value": value,
            **cosines,
        }
        terms = {
            "source": source,
            "surroundings": self.surrounding_losses(anonymized, d.faces),
            "value": c.lambda_adversarial * value,
        }
        return losses.encoder_loss(rec, attr), terms

    def _decoder_terms(
        self,
        d: Drawn,
        saved: Tensor,
        phasors: Tensor | None,
        wrong_phasors: Tensor | None,
        told: Tensor | None,
        logs: dict[str, Tensor],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(14): right and wrong P on the saved file; the game (19) with the bounds (20) and (21)."""
        c, terms = self.config, dict[str, Tensor]()
        z_features = d.z.features.detach()
        noise, log_variance = None, self.posterior.bottleneck_log_variance
        if c.lambda_marginal:
            noise = self.bottleneck_noise(len(saved), 4 * c.reveal_width) * (0.5 * log_variance).exp()
        revealed, bottleneck = self.model.de(saved, d.bits, d.wanted, z_features, phasors, noise)
        l1, dissimilarity = saved_file.reveal_loss(revealed, d.faces)
        logs |= {"l1": l1, "ssim": 1 - dissimilarity}
        if c.lambda_reveal_ssim:
            terms["ssim"] = c.lambda_de * c.lambda_reveal_ssim * dissimilarity
        if c.lambda_marginal:  # (20): what passes De's bottleneck, against the marginal r
            divergence = standard_normal_divergence(bottleneck.float(), log_variance)
            terms["marginal"] = c.lambda_marginal * divergence
            logs["kl_marginal"] = divergence
        if told is not None and c.lambda_recovery:  # (19) with P^ = P: the recovered picture tells y's content code
            nats = self.posterior.told_by_recovered(told, revealed)
            terms["recovery"] = -c.lambda_recovery * nats
            logs["mi_recovery"] = nats
        false = saved.new_zeros(())
        if c.lambda_false and d.turn % c.false_every == 0:
            false, wrong = self._false_terms(d, saved, wrong_phasors, logs)
            terms |= wrong
        return losses.decoder_loss(losses.reveal_loss(d.faces, revealed), c.lambda_false * c.false_every * false), terms

    def _false_terms(
        self, d: Drawn, saved: Tensor, wrong_phasors: Tensor | None, logs: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(13) and its V: a wrong P shows z; and (21) with P^ != P, whose picture tells z's code."""
        c = self.config
        wrong_bits, wrong_wanted = self.spoil(d.bits, d.wanted, "wrong")
        z_features = d.z.features.detach()
        mistaken, _ = self.model.de(saved, wrong_bits, wrong_wanted, z_features, wrong_phasors)
        features = self.features_of(saved_file.to_8_bit(mistaken))
        false = losses.false_reveal_loss(self.identity_logits(features), d.z.identity)
        patches, _, _ = self.discriminator(mistaken)
        value = patch_discriminator.generator_loss([patches], c.adversarial)
        terms = {"false_value": c.false_every * c.lambda_adversarial * value}
        logs |= {"false": false, "cos_false": functional.cosine_similarity(features, d.own, dim=-1).mean()}
        if c.lambda_recovery:
            nats = self.posterior.told_of_source(z_features, features)
            terms["false_recovery"] = -c.false_every * c.lambda_recovery * nats
            logs["mi_false"] = nats
        return false, terms

    # ------------------------------------------------------------------ what a run shows
    @torch.no_grad()
    def sample_sheet(self, batch: dict[str, Tensor], averaged: Mapping[str, nn.Module]) -> list[tuple[str, Tensor]]:
        """Originals, two passwords, requests, own features, recovery with the right and a wrong password."""
        faces, labels, _ = self.inputs(batch)
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
            cover, _ = model.en(faces, bits, nothing, a)
            rows = [("original", faces)]
            if self.config.content_grid:
                small = model.guess(model.shrink(faces), a, nothing)
                rows.append(("seen by En", functional.interpolate(small, size=faces.shape[-2:])))
            rows += [("password A", cover), ("password B", model.en(faces, other, nothing, b)[0])]
            for name, value in (("smiling", "yes"), ("hair", "blond"), ("sex", "female")):
                if name in self.config.attributes:
                    asked = nothing.clone()
                    asked[:, self.config.attributes.index(name)] = ATTRIBUTES[name].values.index(value)
                    rows.append((f"A, {name}={value}", model.en(faces, bits, asked, a)[0]))
            own = self.own_features(faces, batch)
            rows.append(("own features", model.en(faces, bits, labels, own)[0]))
            anonymized, _, code, _ = self.write_code(faces, cover)
            right, wrong, _ = self.read_code(anonymized, code, 0.0)
            if code is not None:
                rows.append(("10 x the code", (anonymized - cover).mul(10).clamp(-1, 1)))
            rows.append(("recovered with A", model.de(anonymized, bits, nothing, b, right)[0]))
            rows.append(("recovered with B", model.de(anonymized, other, nothing, b, wrong)[0]))
            return rows
        finally:
            for name, network in live.items():
                setattr(model, name, network)
