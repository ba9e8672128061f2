"""What the training of SDN and MfM shares: labels, identities, sources, passwords, what a saved file does.

Whatever a batch draws comes from ``PhasedModule.generator_for`` for the batch of all processes, so that a resumed run
and one on several processes draw the same; means are over the batch, with unknown labels counted as nothing, so that
gradients averaged over processes are those of the whole batch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from facezoo.core import saved_file
from facezoo.core.batches import PackedBatches
from facezoo.core.phases import PhasedModule
from facezoo.data.attributes import ATTRIBUTES
from facezoo.data.embeddings import ensure_embeddings
from facezoo.data.labels import labels_of
from facezoo.data.shards import open_faces
from facezoo.errors import InputError
from facezoo.methods.attributed.config import AttributedConfig
from facezoo.methods.attributed.model import AttributedNetworks, RequestShift
from facezoo.nets.concealed_code import to_phasors, turn
from facezoo.nets.dosgan import FeatureExtractor
from facezoo.nets.linear_painter import LinearPainter
from facezoo.recognition import load_recogniser

_PAINTER_FACES = 8000
_PROTOTYPE_SCALE = 24.0
"""Cosine -> identity logit with a frozen recogniser (as cosine classifiers use)."""


@dataclasses.dataclass(frozen=True)
class Sources:
    """Sources x or z of a batch.

    Attributes:
        features: ``(B, F)``.
        identity: Class numbers ``(B,)``, -1 for people outside the classes and for mixtures.
        labels: Attribute labels ``(B, A)``, -1 unknown.
        images: Their pictures ``(B, 3, S, S)``, with the learned extractor only.
    """

    features: Tensor
    identity: Tensor
    labels: Tensor
    images: Tensor | None


@dataclasses.dataclass(frozen=True)
class Code:
    """A concealed code on its way: encrypted phasors as written, and the stream that turned them."""

    phasors: Tensor
    stream: Tensor


class AttributedTraining(PhasedModule):
    """Base of ``SDNTraining`` and ``MfMTraining``; subclasses set ``config`` and ``model`` and call ``_prepare``."""

    config: AttributedConfig
    model: AttributedNetworks
    labels_by_index = True

    def _prepare(self, config: AttributedConfig, seed: int) -> None:
        self.config, self.seed = config, seed
        self.embedding_field = f"embedding_{config.recogniser}"
        self.data_fields = (self.embedding_field,) if config.extractor == "recogniser" else ()
        self.picture_size = config.size
        self._recogniser: list[nn.Module] = []  # in lists: frozen or large, and no part of the checkpoint
        self._data: list[PackedBatches] = []
        self._labels = torch.zeros(0, len(config.attributes), dtype=torch.long)
        self._classes = torch.zeros(0, dtype=torch.long)
        self._embeddings = torch.zeros(0, config.feature_dim)
        self._prototypes = torch.zeros(0, config.feature_dim)
        self._classed = torch.zeros(0, dtype=torch.long)
        self._person = torch.zeros(0, dtype=torch.long)

    # ------------------------------------------------------------------ data
    def prepare_data_files(self, paths: Sequence[Path], device: torch.device) -> None:
        """Checks the labels, and adds the recogniser's vectors to the packed files, computed once.

        Raises:
            InputError: a set without labels of an attribute; or JPEG is to be simulated and kornia is missing.
        """
        if self.config.jpeg_share > 0:
            saved_file.jpeg_codec()
        for path in paths:
            labels_of(open_faces(path), self.config.attributes)
            if self.config.extractor == "recogniser":
                ensure_embeddings(path, self.config.recogniser, self.recogniser, device)

    def setup_data(self, data: PackedBatches) -> None:
        """Takes labels, identity classes and, with a frozen recogniser, all features.

        Raises:
            InputError: too few people for the bank.
        """
        c = self.config
        self._data = [data]
        self._labels = torch.from_numpy(np.concatenate([labels_of(s, c.attributes) for s in data.sets])).long()
        offset, people = 0, []
        for faces in data.sets:
            people.append(np.asarray(faces.identity, dtype=np.int64) + offset)
            offset += len(faces.identities)
        person = np.concatenate(people)
        self._person = torch.from_numpy(person)
        numbers, first, counts = np.unique(person, return_index=True, return_counts=True)
        if len(numbers) < c.bank_people:
            raise InputError(f"the set has {len(numbers)} people; sources are mixed from {c.bank_people}: add pictures")
        # The people with the most pictures, ties in the set's order, are the classes.
        chosen = numbers[np.argsort(-counts, kind="stable")][: c.identity_classes]
        table = np.full(offset, -1, dtype=np.int64)
        table[np.sort(chosen)] = np.arange(len(chosen))
        self._classes = torch.from_numpy(table[person])
        self._classed = torch.nonzero(self._classes >= 0)[:, 0]
        self._one_each = torch.from_numpy(first)
        if c.extractor == "recogniser":
            vectors = functional.normalize(torch.from_numpy(data.all(self.embedding_field)), dim=-1)
            self._embeddings = vectors * c.feature_dim**0.5
            sums = torch.zeros(len(chosen), c.feature_dim).index_add_(
                0, self._classes[self._classed], vectors[self._classed]
            )
            self._prototypes = functional.normalize(sums, dim=-1)
            generator = torch.Generator().manual_seed(self.seed)
            self.model.source_bank.fit(self._embeddings[self._one_each], generator)
        if isinstance(self.model.request_shift, RequestShift):
            self._fit_request_shift(data)
        if isinstance(self.model.painter, LinearPainter):
            self.model.painter.fit(self._painter_batches(data, self.model.painter.size))

    def _fit_request_shift(self, data: PackedBatches) -> None:
        assert isinstance(self.model.request_shift, RequestShift)  # noqa: S101 - the caller has looked
        chosen = torch.arange(0, len(data), max(1, len(data) // _PAINTER_FACES))
        grid, content = self.config.content_grid, []
        for part in tqdm(torch.split(chosen, 100), desc="request shifts", unit="batch", dynamic_ncols=True):
            content.append(functional.adaptive_avg_pool2d(self._pictures(part), grid))
        asked = self.model.one_hot(self._labels[chosen])
        self.model.request_shift.fit(asked, self._embeddings[chosen], torch.cat(content))

    def _painter_batches(self, data: PackedBatches, side: int) -> Iterator[tuple[Tensor, Tensor]]:
        chosen = range(0, len(data), max(1, len(data) // _PAINTER_FACES))
        for start in tqdm(range(0, len(chosen), 100), desc="linear painter", unit="batch", dynamic_ncols=True):
            indices = torch.tensor(list(chosen[start : start + 100]))
            faces = self._pictures(indices)
            vector = self.model.painter_vector(self._embeddings[indices], self._labels[indices])
            yield vector, functional.adaptive_avg_pool2d(faces, side)

    def _pictures(self, indices: Tensor) -> Tensor:
        images = self._data[0].__getitems__(indices.tolist())["image"]
        return images.float().div(127.5).sub(1)

    @property
    def recogniser(self) -> nn.Module:
        """The frozen recogniser, loaded on first use."""
        if not self._recogniser:
            self._recogniser.append(load_recogniser(self.config.recogniser).to(self.device))
        return self._recogniser[0]

    def inputs(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Pictures in [-1, 1], attribute labels and identity classes of a batch."""
        faces = batch["image"].float().div(127.5).sub(1).contiguous(memory_format=torch.channels_last)
        index = batch["index"].cpu()
        return faces, self._labels[index].to(faces.device), self._classes[index].to(faces.device)

    # ------------------------------------------------------------------ identities
    def features_of(self, faces: Tensor) -> Tensor:
        """``F_ext``: of the learned extractor, or of the frozen recogniser behind a random shift."""
        if isinstance(self.model.extractor, FeatureExtractor):
            return self.model.extractor.features(faces)
        rng = self.generator_for("jitter")
        offsets = (torch.rand(len(faces) * self.world_size, 2, generator=rng) * 2 - 1) * self.config.recogniser_jitter
        vectors: Tensor = self.recogniser(saved_file.jitter(faces, self.share(offsets)))
        return functional.normalize(vectors.float(), dim=-1) * vectors.shape[1] ** 0.5

    def own_features(self, faces: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """Features of the batch's own pictures; with a recogniser the ones computed once."""
        if isinstance(self.model.extractor, FeatureExtractor):
            return self.model.extractor.features(faces)
        return self._embeddings[batch["index"].cpu()].to(faces.device)

    def identity_logits(self, features: Tensor) -> Tensor:
        """``F_cls`` of features: the learned head, or cosines to the training people's mean vectors."""
        if isinstance(self.model.extractor, FeatureExtractor):
            return self.model.extractor.classify(features)
        unit = functional.normalize(features, dim=-1)
        return _PROTOTYPE_SCALE * unit @ self._prototypes.to(unit).T

    def draw_pictures(self, count: int, purpose: str) -> tuple[Tensor, Tensor]:
        """Pictures ``(B, 3, S, S)`` of people of the classes, and their class numbers."""
        rng = self.generator_for(purpose)
        place = torch.randint(len(self._classed), (count * self.world_size,), generator=rng)
        index = self.share(self._classed[place]).cpu()
        images = self._pictures(index).to(self.device).contiguous(memory_format=torch.channels_last)
        return images, self._classes[index].to(self.device)

    def draw_sources(self, batch: dict[str, Tensor], purpose: str) -> Sources:
        """A source for each face of this process's batch: another single person, or with a recogniser the bank's."""
        whole = len(batch["index"]) * self.world_size
        rng = self.generator_for(purpose)
        place = self.share(torch.randint(len(self._classed), (whole,), generator=rng)).cpu()
        index = self._others(place, self._person[batch["index"].cpu()])
        labels, identity = self._labels[index].to(self.device), self._classes[index].to(self.device)
        if isinstance(self.model.extractor, FeatureExtractor):
            images = self._pictures(index).to(self.device).contiguous(memory_format=torch.channels_last)
            return Sources(self.model.extractor.features(images), identity, labels, images)
        features = self._embeddings[index].to(self.device)
        mixed = self.share(torch.rand(whole, generator=rng) < self.config.source_mixed_share)
        drawn = self.model.source_bank.draw(self.share(torch.rand(whole, 3, generator=rng)))
        features = torch.where(mixed[:, None], drawn, features)
        unknown = torch.full_like(identity, -1)
        return Sources(
            features,
            torch.where(mixed, unknown, identity),
            torch.where(mixed[:, None], torch.full_like(labels, -1), labels),
            None,
        )

    def _others(self, place: Tensor, person: Tensor) -> Tensor:
        """Pictures of the classes from a place on, the first that does not show the person: all ``(B,)``."""
        for _ in range(len(self._classed)):
            own = self._person[self._classed[place]] == person
            if not bool(own.any()):
                break
            place = torch.where(own, (place + 1) % len(self._classed), place)
        return self._classed[place]

    @torch.no_grad()
    def refill_bank(self, features: Tensor, batch: dict[str, Tensor], position: int) -> None:
        """Learned extractor: overwrites one entry of the bank by a mixture of the batch's people, if there are enough.

        Args:
            features: Of this process's pictures, ``(B, F)``.
            batch: The batch, for who is in it; each person counts once.
            position: Running number of the call.
        """
        person = self._person[batch["index"].cpu()].to(features.device)
        if self.world_size > 1:
            gathered = cast(Tensor, self.all_gather(features)), cast(Tensor, self.all_gather(person))
            # Rank r holds every world_size-th row from r on: put the rows into the order of the whole batch.
            features, person = (g.transpose(0, 1).flatten(0, 1) for g in gathered)
        bank, rows, known = self.model.source_bank, [], set()
        for row, name in enumerate(person.tolist()):
            if name not in known:
                known.add(name)
                rows.append(row)
        if len(rows) < bank.people:
            return
        chosen = features[rows].float()
        centre, length = chosen.mean(0), features.shape[1] ** 0.5
        running = bank.entries[bank.entries.abs().sum(1) > 0].mean(0) if position else centre * 0
        mixture = chosen[: bank.people].mean(0)
        moved = running + bank.people**0.5 * (mixture - running)
        entry = functional.normalize(moved, dim=0) * length
        if position == 0:
            bank.entries[:] = entry  # none stays empty, however short the run is
        bank.entries[position % len(bank.entries)] = entry

    # ------------------------------------------------------------------ passwords and requests
    def draw_passwords(self, count: int, purpose: str) -> Tensor:
        """Random password bits ``(B, N)``."""
        rng = self.generator_for(purpose)
        return self.share(torch.randint(2, (count * self.world_size, self.config.password_bits), generator=rng))

    def draw_requests(self, source_labels: Tensor, purpose: str) -> Tensor:
        """Attributes asked for, ``(B, A)``: half of the faces the source's, half a random person's, some left open."""
        count, names = len(source_labels), len(self.config.attributes)
        whole = count * self.world_size
        rng = self.generator_for(purpose)
        other = self.share(self._labels[torch.randint(len(self._labels), (whole,), generator=rng)])
        own = self.share(torch.rand(whole, generator=rng) < 0.5) & (source_labels >= 0).any(1)
        asked = self.share(torch.rand(whole, names, generator=rng) < self.config.request_share)
        return torch.where(asked, torch.where(own[:, None], source_labels, other), torch.full_like(other, -1))

    def own_request(self, labels: Tensor, purpose: str) -> Tensor:
        """The request with which a face with its own features is to stay itself.

        Own labels with gaps; nothing where requests move the first guess, since they would move it twice.
        """
        return torch.full_like(labels, -1) if self.config.request_shift else self.with_gaps(labels, purpose)

    def with_gaps(self, labels: Tensor, purpose: str) -> Tensor:
        """Own labels with some left open, as in a request."""
        rng = self.generator_for(purpose)
        asked = torch.rand(len(labels) * self.world_size, labels.shape[1], generator=rng) < self.config.request_share
        return torch.where(self.share(asked), labels, torch.full_like(labels, -1))

    def other_passwords(self, bits: Tensor, purpose: str) -> Tensor:
        """Another password for every face ``(B, N)``, one bit apart in half of them."""
        count, n_bits = bits.shape
        whole = count * self.world_size
        rng = self.generator_for(purpose)
        random = self.share(torch.randint(2, (whole, n_bits), generator=rng))
        place = self.share(torch.randint(n_bits, (whole,), generator=rng))
        near = self.share(torch.rand(whole, generator=rng) < 0.5)
        one_apart = bits.clone()
        one_apart[torch.arange(count), place] ^= 1
        same = (random == bits).all(1)
        return torch.where((near | same)[:, None], one_apart, random)

    def spoil(self, bits: Tensor, attributes: Tensor, purpose: str) -> tuple[Tensor, Tensor]:
        """A wrong P^ for each face.

        In half of them another password, one bit apart in half of those; else another value of one attribute that is
        asked for, or another password where none is.
        """
        whole = len(bits) * self.world_size
        rng = self.generator_for(purpose)
        kind, pick, step = (self.share(torch.rand(whole, generator=rng)) for _ in range(3))
        wrong_bits = self.other_passwords(bits, f"{purpose} password")
        wrong_attributes = attributes.clone()
        keep_bits = torch.zeros(len(bits), dtype=torch.bool, device=bits.device)
        for row in torch.nonzero((kind >= 0.5) & (attributes >= 0).any(1))[:, 0].tolist():
            asked = torch.nonzero(attributes[row] >= 0)[:, 0]
            column = int(asked[int(pick[row] * len(asked))])
            values = len(ATTRIBUTES[self.config.attributes[column]].values)
            shift = 1 + int(step[row] * (values - 1))
            wrong_attributes[row, column] = (attributes[row, column] + shift) % values
            keep_bits[row] = True
        return torch.where(keep_bits[:, None], bits, wrong_bits), wrong_attributes

    # ------------------------------------------------------------------ the concealed code and the file
    def write_code(self, faces: Tensor, cover: Tensor) -> tuple[Tensor, Tensor, Code | None, Tensor]:
        """Hides the originals' code in the covers under random streams, as keys would give.

        Without a code the recovery's gradient reaches the anonymizing network, which is to learn what to hide. With one
        it need not, and must not: it would learn to paint smooth faces that disturb the code less.

        Returns:
            Pictures rounded to 8 bits, twice: as they are judged, with a gradient for the cover, and as they are saved,
            with one for the code. The code (None without one), and the mean squared change.
        """
        if not self.config.keyed_code:
            rounded = saved_file.to_8_bit(cover)
            return rounded, rounded, None, cover.new_zeros(())
        shown, cover = cover, cover.detach()
        layout = self.model.layout
        whole = len(faces) * self.world_size
        rng = self.generator_for("stream")
        stream = self.share(torch.rand(whole, layout.channels, layout.side, layout.side, generator=rng)) * 2 * math.pi
        encrypted = self.model.code_encoder(faces) + stream
        flat = encrypted.flatten(1).clone()
        flat[:, layout.pilots] = layout.pilot_angles.to(flat)
        phasors = to_phasors(flat.view_as(encrypted))
        residual = self.model.code_embedder(cover, phasors)
        judged = saved_file.to_8_bit(shown + residual.detach())
        return judged, saved_file.to_8_bit(cover + residual), Code(phasors, stream), residual.square().mean()

    def read_code(
        self, saved: Tensor, code: Code | None, help_share: float
    ) -> tuple[Tensor | None, Tensor | None, Tensor]:
        """Reads the code from saved pictures, with the right stream and with wrong ones.

        Args:
            saved: What came out of the file.
            code: As written.
            help_share: Probability that a face is given its true phasors with noise instead: early on the reader is
                still blind, and encoder and revealer learn meanwhile.

        Returns:
            Decrypted phasors, phasors decrypted with a wrong stream, and the mean squared error of the extraction.
        """
        if code is None:
            return None, None, saved.new_zeros(())
        layout = self.model.layout
        extracted = self.model.code_extractor(saved)
        error = functional.mse_loss(extracted, code.phasors)
        whole = len(saved) * self.world_size
        rng = self.generator_for("reading")
        helped = self.share(torch.rand(whole, generator=rng) < help_share)
        noise = self.share(torch.randn(whole, *code.phasors.shape[1:], generator=rng))
        wrong = self.share(torch.rand(whole, *code.stream.shape[1:], generator=rng)) * 2 * math.pi
        read = torch.where(helped[:, None, None, None], code.phasors + 0.3 * noise, extracted)
        mask = layout.payload_mask.to(saved.device).repeat(2, 1, 1)
        return turn(read, -code.stream) * mask, turn(read.detach(), -wrong) * mask, error

    def through_file(self, picture: Tensor, warm: bool) -> Tensor:
        """What happens to a saved picture: JPEG or resampling in a part of the batches, when ``warm`` is over."""
        c = self.config
        rng = self.generator_for("file")
        draw, amount = torch.rand(2, generator=rng).tolist()
        whole = len(picture) * self.world_size
        quality = torch.rand(whole, generator=rng) * (c.jpeg_quality_high - c.jpeg_quality_low) + c.jpeg_quality_low
        offsets = (torch.rand(whole, 2, generator=rng) - 0.5) / c.size
        if warm:
            return picture
        if draw < c.shift_share / 2:
            return saved_file.jitter(picture, self.share(offsets))
        if draw < c.shift_share:
            return saved_file.to_8_bit(saved_file.through_resize(picture, int(c.size * (0.8 + 0.6 * amount))))
        if draw < c.shift_share + c.jpeg_share:
            return saved_file.to_8_bit(saved_file.through_jpeg(picture, self.share(quality)))
        return picture

    def surrounding_losses(self, result: Tensor, faces: Tensor) -> Tensor:
        """``lambda_keep`` and ``lambda_tone`` terms of an anonymized face (ours)."""
        c = self.config
        total = result.new_zeros(())
        if c.lambda_keep:
            outside = 1 - self.model.mask
            total = total + c.lambda_keep * ((result - faces).abs() * outside).mean() / outside.mean()
        if c.lambda_tone:
            pooled = functional.adaptive_avg_pool2d(result, 4) - functional.adaptive_avg_pool2d(faces, 4)
            total = total + c.lambda_tone * pooled.abs().mean()
        return total

    def identity_losses(self, features: Tensor, source: Tensor, original: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """``lambda_source`` and ``lambda_away`` terms from features of result, source and original (ours)."""
        c = self.config
        to_source = functional.cosine_similarity(features, source, dim=-1)
        to_original = functional.cosine_similarity(features, original, dim=-1)
        total = c.lambda_source * (1 - to_source).mean()
        total = total + c.lambda_away * functional.relu(to_original - c.away_margin).mean()
        return total, {"cos_source": to_source.mean(), "cos_original": to_original.mean()}

    # ------------------------------------------------------------------ how much each term counts
    def measures_shares(self, turn: int) -> bool:
        """Whether the shares are measured in the generator batch of this number."""
        return self.config.shares_every > 0 and turn % self.config.shares_every == 0

    def eager_if(self, measured: bool) -> contextlib.AbstractContextManager[object]:
        """Compiled networks run uncompiled in a batch that is differentiated several times: they free what it needs."""
        return torch.compiler.set_stance("force_eager") if measured else contextlib.nullcontext()

    def bottleneck_noise(self, count: int, channels: int) -> Tensor:
        """Standard normal numbers at the recovering bottleneck, ``(B, channels, S/4, S/4)``."""
        side = self.config.size // 4
        rng = self.generator_for("bottleneck")
        return self.share(torch.randn(count * self.world_size, channels, side, side, generator=rng))

    def gradient_shares(self, terms: Mapping[str, Tensor], title: str, *networks: nn.Module) -> dict[str, Tensor]:
        """Each term's share of a network's gradient: the norm of its own over the sum of all terms' norms.

        Args:
            terms: The weighted terms by name, all of the loss.
            title: Of the network, for the log.
            networks: Its modules.
        """
        weights = [p for network in networks for p in network.parameters() if p.requires_grad]
        norms = {}
        for name, term in terms.items():
            if term.requires_grad:
                parts = torch.autograd.grad(term, weights, retain_graph=True, allow_unused=True)
                squares = [part.float().square().sum() for part in parts if part is not None]
                norms[name] = torch.stack(squares).sum().sqrt() if squares else term.new_zeros(())
        whole = torch.stack(list(norms.values())).sum().clamp_min(1e-30)
        return {f"share_{title}_{name}": norm / whole for name, norm in norms.items()}

    # ------------------------------------------------------------------ export
    def manifest_entries(self) -> dict[str, Any]:
        """What the checkpoint's manifest says about the method."""
        sources: dict[str, Any] = {}
        for faces in self._data[0].sets if self._data else ():
            sources |= json.loads(faces.metadata.get("attributes", "{}"))
        texts = []
        for name in self.config.attributes:
            if name in sources:
                entry = sources[name]
                agreed = entry.get("agreement")
                measured = "" if agreed is None else f" ({agreed:.0%} of {entry['compared']})"
                texts.append(f"{name}: {entry['source']}{measured}")
        return {
            "config": dataclasses.asdict(self.config),
            "crop_size": self.config.size,
            "preprocessing": {"range": [-1, 1], "template": "facezoo five points at 128", "colour": "RGB"},
            "card": {"Labels": "; ".join(texts) or "the set's own labels"},
        }

    def optimizers_list(self) -> Sequence[Any]:
        """Lightning's wrapped optimizers."""
        return cast(Sequence[Any], self.optimizers())

    @staticmethod
    def accuracy(logits: Tensor, labels: Tensor, sizes: Sequence[int]) -> Tensor:
        """Share of known attributes that logits ``(B, V)`` name right."""
        guessed = torch.stack([part.argmax(1) for part in torch.split(logits, list(sizes), dim=1)], dim=1)
        known = labels >= 0
        return ((guessed == labels) & known).sum() / known.sum().clamp_min(1)

    @staticmethod
    def logged(logs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Detached scalars."""
        return {name: value.detach() for name, value in logs.items()}
