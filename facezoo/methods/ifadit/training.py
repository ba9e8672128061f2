"""Training of iFADIT: phase I disentangles (E_Attr and M), phase II learns the transform (T and C).

Paper: Yuan et al., "iFADIT: Invertible Face Anonymization via Disentangled Identity Transform", section 3.5, losses
(12)-(22). Recogniser and generator are frozen always; in each phase so are the networks of the other.

What is ours, all of it off in the paper's recipe: a phase before the two in which the generator learns to draw given
faces (``adapt_batches``), identities of other faces in phase I (``swap_share``: reconstruction
alone does not make M listen to the identity), a mask (``masked``), the spherical flow, losses on latents and on C. In
both phases a part of the batch may be drawn by the generator (``generated_share``; in the paper all of it is).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from facezoo.concealment.code import CODE_NETWORKS
from facezoo.concealment.training import conceal_rows, conceal_step
from facezoo.core import saved_file
from facezoo.core.batches import PackedBatches
from facezoo.core.configuration import build_strict
from facezoo.core.phases import Phase, PhasedModule, Side
from facezoo.data.embeddings import check_identity_dim, ensure_embeddings
from facezoo.errors import InputError
from facezoo.methods.ifadit import losses
from facezoo.methods.ifadit.config import IFaditConfig
from facezoo.methods.ifadit.frozen import UNTRAINED, LossNetworks, load_generator, load_loss_networks
from facezoo.methods.ifadit.keygen import fit_whitening, random_noise
from facezoo.methods.ifadit.model import IFaditNetworks
from facezoo.nets.patch_discriminator import discriminator_loss, generator_loss
from facezoo.nets.stylegan2 import Discriminator
from facezoo.nets.stylegan2.discriminator import r1_penalty
from facezoo.recognition import load_recogniser

_ONE = ("attribute_encoder", "mapper")


class IFaditTraining(PhasedModule):
    """LightningModule of both phases, and of the one before them.

    Args:
        config: Plain dict of ``IFaditConfig``.
        seed: Seed of weights and of every random draw.

    Raises:
        InputError: Unknown key or wrong type in ``config``, or no recogniser.
    """

    trained_further: Mapping[str, Any] = {"generator": UNTRAINED}  # the model has it; its folder may be elsewhere

    def __init__(self, config: dict[str, Any], seed: int = 0) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.config = build_strict(IFaditConfig, config, "config")
        self.seed = seed
        c = self.config
        if not c.recogniser:
            raise InputError(
                "config.recogniser must name the identity encoder: a weight file (the paper's ArcFace gives 512 "
                "numbers), or sface with config.identity_dim=128"
            )
        # A recogniser may be given by its path; the field in the packed file is then named by the file.
        self.embedding_field = f"embedding_{Path(c.recogniser).stem}"
        self.data_fields = (self.embedding_field,)
        self.picture_size = c.size
        torch.manual_seed(seed)
        self.model = IFaditNetworks(c)
        self.shipped = tuple(self.model.networks())
        self._two = ("flow", "compensation") if c.compensate else ("flow",)
        if c.adapt_batches:
            self.discriminator = Discriminator(c.generator_config)
            self.batch_group = c.generator_config.minibatch_std_group
        both = c.disentangle_batches + c.transform_batches
        self.phases = (
            *((Phase("adapt", c.adapt_batches, (*_ONE, "generator", "discriminator")),) if c.adapt_batches else ()),
            *(
                (Phase("together", both, (*_ONE, *self._two)),)
                if c.single_phase
                else (
                    Phase("disentangle", c.disentangle_batches, _ONE),
                    Phase("transform", c.transform_batches, self._two),
                )
            ),
            *((Phase("conceal", c.conceal_batches, CODE_NETWORKS),) if c.code_channels else ()),
        )
        self._recogniser: list[nn.Module] = []  # in lists: frozen, and no part of the checkpoint
        self._loss_networks: list[LossNetworks] = []
        self._identities = torch.zeros(0, c.identity_dim)

    def networks(self) -> Mapping[str, nn.Module]:
        """All networks by name; the whitening never learns, the generator before phase I only."""
        return self.model.networks() | ({"discriminator": self.discriminator} if self.config.adapt_batches else {})

    def prepare_data_files(self, paths: Sequence[Path], device: torch.device) -> None:
        """Reads every frozen network, and adds the identity vectors to the packed files, computed once.

        Raises:
            InputError: a loss needs a network that is not there; told now and not hours later, in phase two.
            CheckpointError: the generator's checkpoint does not fit.
        """
        if self.config.conceal_batches and self.config.jpeg_share > 0:
            saved_file.jpeg_codec()
        load_generator(self.model.generator, self.config)
        self._loss_networks = [load_loss_networks(self.config)]
        for path in paths:
            ensure_embeddings(path, Path(self.config.recogniser).stem, self.recogniser, device)

    def setup_data(self, data: PackedBatches) -> None:
        """Takes the identity vectors, source of foreign identities, and fits the whitening of keys.

        Raises:
            InputError: vectors of another length than ``identity_dim``.
        """
        c = self.config
        self._identities = functional.normalize(torch.from_numpy(data.all(self.embedding_field)), dim=-1)
        check_identity_dim(self._identities, c.identity_dim, c.recogniser)
        figures = fit_whitening(
            self.model.key_whitening,
            self.model.generator.mapping,
            c.z_dim,
            samples=c.key_samples,
            shrinkage=c.key_shrinkage,
            when=c.key_whitening,
            limit=c.key_cosine_limit,
        )
        if self._trainer is None or self.global_rank == 0:
            print(figures)

    @property
    def recogniser(self) -> nn.Module:
        """The frozen identity encoder, loaded on first use."""
        if not self._recogniser:
            self._recogniser.append(load_recogniser(self.config.recogniser).to(self.device))
        return self._recogniser[0].to(self.device)

    @property
    def loss_networks(self) -> LossNetworks:
        """The frozen networks of the losses."""
        if not self._loss_networks:
            self._loss_networks.append(load_loss_networks(self.config))
        return self._loss_networks[0].to(self.device)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Two Adams, one a phase, two more for ``adapt_batches``, one for the code; each holds its own throughout."""
        c, nets = self.config, self.networks()
        found: list[torch.optim.Optimizer] = [
            torch.optim.Adam(
                [p for name in names for p in nets[name].parameters()], lr=c.learning_rate, betas=(c.beta1, c.beta2)
            )
            for names in (_ONE, self._two)
        ]
        if c.adapt_batches:
            # The mapping network is left as it is: keys and made people come from it.
            for network in (self.model.generator.synthesis, self.discriminator):
                found.append(torch.optim.Adam(network.parameters(), lr=c.adapt_learning_rate, betas=(0.0, 0.99)))
        if c.code_channels:
            parameters = [p for name in CODE_NETWORKS for p in nets[name].parameters()]
            found.append(torch.optim.Adam(parameters, lr=c.conceal_learning_rate, betas=(0.9, c.beta2)))
        return found

    # ------------------------------------------------------------------ steps
    def step(self, batch: dict[str, Tensor], phase: Phase, side: Side) -> dict[str, Tensor]:
        """One batch; ``batch`` has uint8 ``image`` ``(B, 3, S, S)`` and the embeddings ``(B, D)``."""
        # While the generator learns, nothing is learned from it; and people carry the code, not what it makes.
        share = 0.0 if phase.name in ("adapt", "conceal") else self.config.generated_share
        faces, identity, latents, made = self._inputs(batch, share)
        optimizers = cast(Sequence[Any], self.optimizers())
        if phase.name == "conceal":
            return conceal_step(self, self.model, self.config, optimizers[-1], faces, self._cover(faces, identity))
        logs: dict[str, Tensor] = {}
        total = torch.zeros((), device=faces.device)
        attributes: Tensor | None = None
        shown = faces
        if phase.name in ("adapt", "disentangle", "together"):
            attributes = self.model.attributes(faces)
            loss, found, shown = self._disentangle(faces, identity, attributes, latents, made)
            total, logs = total + loss, logs | found
        if phase.name == "adapt":
            self.discriminator.requires_grad_(False)
            logs["adversarial"] = generator_loss([self.discriminator(shown)], "log")
            self.discriminator.requires_grad_(True)
            total = total + self.config.lambda_adversarial * logs["adversarial"]
        if phase.name in ("transform", "together"):
            if attributes is None:
                with torch.no_grad():
                    attributes = self.model.attributes(faces)
            loss, found = self._transform(faces, identity, attributes)
            total, logs = total + loss, logs | found
        chosen = {
            "adapt": [*optimizers[:1], *optimizers[2:3]],
            "disentangle": optimizers[:1],
            "transform": optimizers[1:2],
            "together": optimizers[:2],
        }[phase.name]
        for optimizer in chosen:
            optimizer.zero_grad()
        self.manual_backward(total)
        for optimizer in chosen:
            if self.config.gradient_clip > 0:
                self.clip_gradients(
                    optimizer, gradient_clip_val=self.config.gradient_clip, gradient_clip_algorithm="norm"
                )
            optimizer.step()
        if phase.name == "adapt":
            logs |= self._discriminate(optimizers[3], self.model.shrink(faces), shown.detach())
        return {name: value.detach() for name, value in (logs | {"total": total}).items()}

    def _discriminate(self, optimizer: Any, real: Tensor, drawn: Tensor) -> dict[str, Tensor]:
        """The discriminator's side of a batch, with lazy R1."""
        c = self.config
        penalised = c.r1_gamma > 0 and self.batches_seen % c.r1_every == 0
        real = real.detach().requires_grad_(penalised)
        logits = self.discriminator(real)
        loss = discriminator_loss([logits], [self.discriminator(drawn)], "log")
        logs = {"discriminator": loss}
        if penalised:
            logs["r1"] = r1_penalty(logits, real)
            loss = loss + c.r1_gamma / 2 * c.r1_every * logs["r1"]
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        return logs

    def _inputs(self, batch: dict[str, Tensor], generated_share: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Faces in [-1, 1], identities, latents of the generator-made ones (0 elsewhere), and which those are."""
        c = self.config
        faces = batch["image"].float().div(127.5).sub(1).contiguous(memory_format=torch.channels_last)
        identity = functional.normalize(batch[self.embedding_field].float(), dim=-1)
        latents = torch.zeros(len(faces), c.generator_config.num_ws, c.w_dim, device=faces.device)
        made = self._spread(len(faces), generated_share)
        if not bool(made.any()):
            return faces, identity, latents, made
        rng = self.generator_for("made faces")
        noise = self.share(torch.randn(len(faces) * self.world_size, c.z_dim, generator=rng))[made]
        with torch.no_grad():
            drawn = self.model.generator.w(noise, c.generated_truncation).to(faces)
            pictures = saved_file.to_8_bit(self.model.enlarge(self.model.draw(drawn).float()))
            latents[made] = drawn
            faces[made] = pictures
            identity[made] = self.recogniser(pictures)
        return faces, identity, latents, made

    def _spread(self, count: int, share: float) -> Tensor:
        """Marks this process's part of ``share`` of the whole batch: evenly spread, the same for any processes."""
        place = torch.arange(count * self.world_size)
        return self.share(torch.floor((place + 1) * share) > torch.floor(place * share))

    def _disentangle(
        self, faces: Tensor, identity: Tensor, attributes: Tensor, latents: Tensor, made: Tensor
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """L_P1, equations (12)-(14); also what was drawn, ``(B, 3, R, R)``, as the losses see it."""
        c, model = self.config, self.model
        whole = len(faces) * self.world_size
        # Swapped rows are counted from the end of the batch, so that they are not always the generator's.
        swapped = self.share(torch.arange(whole) >= whole - round(whole * c.swap_share))
        rng = self.generator_for("other identities")
        other = self._identities[torch.randint(len(self._identities), (whole,), generator=rng)]
        if c.swap_random > 0:
            drawn_at_random = torch.rand(whole, generator=rng) < c.swap_random
            directions = functional.normalize(torch.randn(whole, c.identity_dim, generator=rng), dim=-1)
            other = torch.where(drawn_at_random[:, None], directions, other)
        target = torch.where(swapped[:, None], self.share(other), identity)
        own = (~swapped).float()
        # Means over a kind of row are divided by what a process has of it on average: the gradient averaged over the
        # processes is then that of the whole batch however the kinds fall on them.
        n_own = max(whole - round(whole * c.swap_share), 1) / self.world_size

        drawn = model.latents(target, attributes)
        small = model.shrink(faces)
        painted = self._frozen(model.draw, drawn)
        shown = torch.lerp(small, painted, model.generator_mask) if c.masked else painted
        vq = (losses.visual_quality(shown, small) * own).sum() / n_own
        result = model.enlarge(painted)
        result = model.blend(faces, result) if c.masked else result
        embedding = self._frozen(self.recogniser, result)
        ident = losses.absolute(embedding, target).mean()
        dissimilar = losses.dissimilar(embedding, target)
        total = c.lambda_vq * vq + c.lambda_id * ident + c.lambda_id_cosine * dissimilar.mean()
        logs = {
            "vq": vq,
            "identity": ident,
            "cos_own": ((1 - dissimilar) * own).sum() / n_own,
        }
        if c.swap_share > 0:
            n_swapped = max(whole - n_own * self.world_size, 1) / self.world_size
            logs["cos_foreign"] = ((1 - dissimilar) * (1 - own)).sum() / n_swapped
            kept = functional.cosine_similarity(embedding, identity, dim=-1)
            logs["cos_kept"] = (kept * (1 - own)).sum() / n_swapped
            if c.lambda_tone > 0:
                logs["tone"] = (losses.tone(shown, small) * (1 - own)).sum() / n_swapped
                total = total + c.lambda_tone * logs["tone"]
        networks = self.loss_networks
        if c.lambda_lm > 0 and networks.landmarks is not None:
            with torch.no_grad():
                points = networks.landmarks(faces)
            landmark = losses.semantic(networks.landmarks(result), points).mean()
            total, logs["landmarks"] = total + c.lambda_lm * landmark, landmark
        if c.lambda_lpips > 0 and networks.lpips is not None:
            perceptual = (networks.lpips(shown, small) * own).sum() / n_own
            total, logs["lpips"] = total + c.lambda_lpips * perceptual, perceptual
        if c.lambda_w > 0:
            weight = (made & ~swapped).float()
            error = ((drawn - latents).square().flatten(1).mean(1) * weight).sum() / len(faces)
            total, logs["w"] = total + c.lambda_w * error, error
        return total, logs, shown

    def _transform(self, faces: Tensor, identity: Tensor, attributes: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """L_P2, equations (15)-(22): two secrets, one for all people of the batch and one of their own each."""
        c, model, networks = self.config, self.model, self.loss_networks
        whole = len(faces) * self.world_size
        rng = self.generator_for("keys")
        noise = random_noise(whole + 1, c.z_dim, rng)
        with torch.no_grad():
            key = model.key_vector(noise[:1].to(faces.device)).expand(len(faces), -1)
            other_key = model.key_vector(self.share(noise[1:]))

        transformed = model.transform(identity, key)
        anonymized = self._finished(faces, self._paint(transformed, attributes))
        saved = saved_file.to_8_bit(anonymized)
        read = self._frozen(self.recogniser, saved)
        second = self._finished(faces, self._paint(model.transform(identity, other_key), attributes))
        second_read = self._frozen(self.recogniser, second)

        attributes_again = self._frozen(model.attributes, saved)
        compensated = model.compensate(read)
        recovered = self._finished(saved, self._paint(model.undo(compensated, key), attributes_again))
        wrong = self._finished(saved, self._paint(model.undo(compensated, other_key), attributes_again))
        recovered_identity = self._frozen(self.recogniser, recovered)
        wrong_identity = self._frozen(self.recogniser, wrong)

        anonymity = (losses.similar(read, identity).mean() + losses.similar(second_read, identity).mean()) / 2
        people = losses.diversity_of_people(read, self._gather(read), identity, self._gather(identity)).mean()
        keys = losses.similar(read, second_read).mean()
        right = losses.dissimilar(recovered_identity, identity).mean()
        not_right = losses.similar(wrong_identity, identity).mean()
        total = c.lambda_anon * anonymity + c.lambda_div * (people + keys) + c.lambda_deanon * (right + not_right)
        logs = {
            "cos_anonymized": anonymity,
            "cos_people": people,
            "cos_keys": keys,
            "cos_recovered": 1 - right,
            "cos_wrong": not_right,
            "l1_recovered": losses.absolute(recovered, faces).mean(),
        }
        if c.lambda_tone > 0:
            logs["tone"] = (losses.tone(anonymized, faces).mean() + losses.tone(second, faces).mean()) / 2
            total = total + c.lambda_tone * logs["tone"]
        if c.adapt_batches and c.lambda_adversarial > 0:
            # T would rather find identities that are easily read off a picture, in colours that no face has.
            shown = [model.shrink(picture) for picture in (anonymized, second, recovered)]
            logits = [self._frozen(self.discriminator, picture) for picture in shown]
            logs["adversarial"] = generator_loss(logits, "log")
            total = total + c.lambda_adversarial * logs["adversarial"]
        missed = losses.dissimilar(compensated, transformed).mean()
        logs["cos_compensated"] = 1 - missed
        if c.lambda_compensate > 0:
            total = total + c.lambda_compensate * missed
        if c.lambda_img > 0:
            known = losses.known_of(faces, networks)

            def terms(picture: Tensor, weights: tuple[float, ...]) -> Tensor:
                return self._frozen(lambda p: losses.image_terms(p, faces, networks, weights, known), picture)

            image = terms(recovered, c.recovered_weights) + terms(wrong, c.changed_weights)
            # Two anonymized pictures stand for the one of the paper.
            image = image + (terms(anonymized, c.changed_weights) + terms(second, c.changed_weights)) / 2
            logs["image"] = image.mean()
            total = total + c.lambda_img * logs["image"]
        return total, logs

    @torch.no_grad()
    def _cover(self, faces: Tensor, identity: Tensor) -> Tensor:
        """Anonymized faces under a random key each, as they are before a code."""
        noise = random_noise(len(faces) * self.world_size, self.config.z_dim, self.generator_for("keys"))
        turned = self.model.transform(identity, self.model.key_vector(self.share(noise)))
        return self.model.blend(faces, self.model.paint(turned, self.model.attributes(faces)))

    def _frozen(self, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """A network that gradients go through; with ``recompute`` its inner maps are not kept."""
        if self.config.recompute and torch.is_grad_enabled():
            return checkpoint(function, *inputs, use_reentrant=False)
        return function(*inputs)

    def _paint(self, identity: Tensor, attributes: Tensor) -> Tensor:
        """G(M(z, a)) at the size of crops."""
        return self._frozen(self.model.paint, identity, attributes)

    def _finished(self, faces: Tensor, painted: Tensor) -> Tensor:
        """What the losses see of a painted picture: as it is used, or as it is painted."""
        return self.model.blend(faces, painted) if self.config.masked else painted

    def _gather(self, mine: Tensor) -> Tensor:
        """Rows of all processes, detached."""
        if self.world_size == 1:
            return mine.detach()
        parts = [torch.empty_like(mine) for _ in range(self.world_size)]
        dist.all_gather(parts, mine.detach().contiguous())
        return torch.cat(parts)

    # ------------------------------------------------------------------ what a run shows and ships
    @torch.no_grad()
    def sample_sheet(self, batch: dict[str, Tensor], averaged: Mapping[str, nn.Module]) -> list[tuple[str, Tensor]]:
        """Originals, reconstruction, two keys, recovery with the right and a wrong one, and either part left out."""
        faces = batch["image"].float().div(127.5).sub(1)
        identity = functional.normalize(batch[self.embedding_field].float(), dim=-1)
        model = self.model
        live = {name: getattr(model, name) for name in averaged}
        try:
            for name, network in averaged.items():
                setattr(model, name, network)
            noise = random_noise(2, self.config.z_dim, torch.Generator().manual_seed(7)).to(faces.device)
            first, second = (k.expand(len(faces), -1) for k in model.key_vector(noise))
            attributes = model.attributes(faces)
            covers = [
                saved_file.to_8_bit(model.blend(faces, model.paint(model.transform(identity, k), attributes)))
                for k in (first, second)
            ]
            read, again = self.recogniser(covers[0]), model.attributes(covers[0])
            code = []
            if self.locate(self.batches_seen)[0].name == "conceal":
                code = conceal_rows(model, faces, covers[0], torch.Generator().manual_seed(7))
            return [
                ("original", faces),
                ("own identity", model.paint(identity, attributes)),
                ("another's identity", model.paint(identity.roll(1, 0), attributes)),
                ("key A", covers[0]),
                ("key B", covers[1]),
                ("recovered with A", model.blend(covers[0], model.paint(model.restore(read, first), again))),
                ("recovered with B (wrong)", model.blend(covers[0], model.paint(model.restore(read, second), again))),
                ("without identity", model.paint(torch.zeros_like(identity), attributes)),
                ("without attributes", model.paint(identity, torch.zeros_like(attributes))),
                *code,
            ]
        finally:
            for name, network in live.items():
                setattr(model, name, network)

    def manifest_entries(self) -> dict[str, Any]:
        """What the checkpoint's manifest says about the method: configuration and preprocessing."""
        return {
            "config": dataclasses.asdict(self.config),
            "crop_size": self.config.size,
            "preprocessing": {"range": [-1, 1], "template": "facezoo five points at 128", "colour": "RGB"},
        }
