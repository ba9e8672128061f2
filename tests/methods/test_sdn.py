"""SDN: losses by hand, size and cost of the paper's network, Algorithm 1's alternation, resume, use with keys."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import facezoo
from facezoo.core.configuration import build_strict
from facezoo.core.recipe import load_recipe
from facezoo.core.run import train
from facezoo.data.packed import PackedFaces
from facezoo.errors import CheckpointError, InputError, KeyMaterialError, RecordError, UnknownNameError
from facezoo.keys import Key
from facezoo.latent import fit_directions, plot_clusters
from facezoo.methods.attributed import latent, training
from facezoo.methods.attributed import losses as shared
from facezoo.methods.attributed import method as attributed_method
from facezoo.methods.attributed.model import Posterior
from facezoo.methods.base import FaceContext
from facezoo.methods.sdn import losses
from facezoo.methods.sdn.config import SDNConfig
from facezoo.methods.sdn.method import SDN
from facezoo.methods.sdn.networks import AnonymizationPass, SDNNetworks
from facezoo.methods.sdn.training import SDNTraining
from facezoo.nets.concealed_code import CodeEmbedder
from facezoo.nets.dosgan import ConditionedNorm, SourceBank, join_style, multiply_adds
from tests.labelled import OURS, SMALL, FewConvolutions, write_recipe

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")

KEY, OTHER = Key.from_bytes(bytes(range(32))), Key.from_bytes(bytes(range(1, 33)))
OWN = {"identity_blocks": 1, "erasing_blocks": 1, "reveal_width": 4, "reveal_identity_blocks": 1, "reveal_blocks": 1}
PAPER_WAY = {**SMALL, **OWN, "reveal_cells": True, "discriminator_ratio": 2, "alternate_batches": 6}
OUR_WAY = {**PAPER_WAY, **OURS, "generator_scale": 2, "discriminator_ratio": 1, "alternate_batches": 4}


class TestBlocks:
    def test_joining_by_hand(self):
        latent_map = torch.zeros(1, 3, 4, 4)
        style = torch.arange(16.0)[None]
        joined = join_style(latent_map, style)
        assert torch.equal(joined[0, 2], torch.arange(16.0).view(4, 4))
        coarse = join_style(latent_map, torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
        assert coarse[0, 1].tolist() == [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]]
        with pytest.raises(ValueError, match="does not lie on"):
            join_style(latent_map, torch.zeros(1, 9))

    def test_condition_survives_the_normalisation(self):
        """Planes in front of an instance normalisation would be subtracted again; here they scale and shift."""
        norm = ConditionedNorm(2, 3)
        x = torch.randn(1, 2, 8, 8)
        one, two = norm(x, torch.tensor([[1.0, 0, 0]])), norm(x, torch.tensor([[0, 1.0, 0]]))
        assert not torch.allclose(one.mean((2, 3)), two.mean((2, 3)))
        none = norm(x, torch.zeros(1, 3))
        assert torch.allclose(none.mean((2, 3)), torch.zeros(1, 2), atol=1e-5)
        assert torch.allclose(none.var((2, 3), unbiased=False), torch.ones(1, 2), atol=1e-3)

    def test_bank_lends_nobody(self):
        people = torch.nn.functional.normalize(torch.randn(300, 64, generator=torch.Generator().manual_seed(1)), dim=-1)
        bank = SourceBank(20, 64, 10)
        bank.fit(people * 8, torch.Generator().manual_seed(2))
        assert torch.allclose(bank.entries.norm(dim=1), torch.full((20,), 8.0), atol=1e-4)
        near = (bank.entries / 8) @ people.T
        assert near.max() < 0.75
        drawn = bank.draw(torch.rand(200, 3, generator=torch.Generator().manual_seed(3)))
        assert torch.allclose(drawn.norm(dim=1), torch.full((200,), 8.0), atol=1e-4)
        assert (drawn / 8 @ people.T).max() < 0.75
        with pytest.raises(ValueError, match="at least 10 people"):
            SourceBank(20, 64, 9)
        with pytest.raises(ValueError, match="9 people are too few"):
            bank.fit(people[:9], torch.Generator())


class TestLosses:
    logits = torch.log(torch.tensor([[0.7, 0.2, 0.1], [0.5, 0.25, 0.25]]))

    def test_extractor(self):
        target = torch.tensor([0, -1])  # the second person is of no class
        assert losses.extractor_loss(self.logits, None, target).item() == pytest.approx(-math.log(0.7) / 2)
        both = losses.extractor_loss(self.logits, self.logits.flip(1), target)
        assert both.item() == pytest.approx(-(math.log(0.7) + math.log(0.1)) / 2)

    def test_reconstruction(self):
        y = torch.zeros(1, 3, 2, 2)
        assert losses.reconstruction_loss(y, y + 0.5, None).item() == pytest.approx(0.5)
        assert losses.reconstruction_loss(y, y + 0.5, y - 0.25).item() == pytest.approx(0.75)

    def test_attributes(self):
        logits = torch.log(torch.tensor([[0.8, 0.2, 0.5, 0.25, 0.25]]))
        asked = losses.attribute_loss(logits, torch.tensor([[1, 2]]), (2, 3))
        assert asked.item() == pytest.approx(-math.log(0.2) - math.log(0.25))
        assert losses.attribute_loss(logits, torch.tensor([[-1, 0]]), (2, 3)).item() == pytest.approx(-math.log(0.5))
        assert losses.attribute_loss(logits, torch.tensor([[-1, -1]]), (2, 3)).item() == 0

    def test_sums(self):
        one, two = torch.tensor(1.0), torch.tensor(2.0)
        assert (
            losses.encoder_loss(one, two) == losses.decoder_loss(one, two) == losses.discriminator_loss(one, two) == 3
        )
        assert losses.total_loss(one, two, 10.0, 10.0).item() == 30
        assert losses.discriminator_identity_loss(torch.tensor([[1.0, -1.0]]), torch.zeros(1, 2)).item() == 1

    def test_reveal(self):
        y = torch.zeros(2, 1, 1, 2)
        revealed = torch.tensor([[[[0.6, 0.8]]], [[[0.0, 0.0]]]])
        # First face: root mean square sqrt(.5), mean absolute .7; second nothing. Means over both.
        assert losses.reveal_loss(y, revealed).item() == pytest.approx((math.sqrt(0.5) + 1e-4) / 2 + 0.35, abs=1e-4)
        y.requires_grad_()
        losses.reveal_loss(y, y.detach()).backward()
        assert torch.isfinite(y.grad).all()

    def test_false_reveal(self):
        assert losses.false_reveal_loss(self.logits, torch.tensor([1, 2])).item() == pytest.approx(
            -(math.log(0.2) + math.log(0.25)) / 2
        )

    def test_bounds(self):
        code, mean = torch.tensor([[1.0, 3.0]]), torch.tensor([[0.0, 1.0]])
        variance = torch.tensor(4.0)
        expected = sum(-0.5 * (d**2 / 4 + math.log(2 * math.pi * 4)) for d in (1.0, 2.0))
        for times in (1, 5):  # nats of one code, however many faces a batch has
            told = shared.gaussian_log_likelihood(code.expand(times, 2), mean.expand(times, 2), variance.log())
            assert told.item() == pytest.approx(expected)
        divergence = shared.standard_normal_divergence(torch.tensor([[2.0, 0.0], [2.0, 0.0]]), torch.tensor(0.25).log())
        each = 0.5 * (0.25 - 1 - math.log(0.25))
        assert divergence.item() == pytest.approx(2 + 2 * each)
        assert shared.standard_normal_divergence(torch.zeros(1, 3), torch.zeros(3)).item() == 0


class TestPaperSize:
    def test_shapes_and_cost(self):
        config = SDNConfig()
        assert (config.style_dim, config.style_features, config.password_bits) == (1024, 1008, 16)
        assert (config.lambda_en, config.lambda_de, config.discriminator_ratio) == (10, 10, 10)
        with torch.device("meta"):
            networks = SDNNetworks(config)
        face = torch.zeros(1, 3, 128, 128, device="meta")
        bits, wanted = (torch.zeros(1, n, dtype=torch.long, device="meta") for n in (16, 5))
        _, bottleneck = networks.en(face, bits, wanted, torch.zeros(1, 1008, device="meta"))
        assert bottleneck.shape == (1, 256, 32, 32)
        cost = multiply_adds(AnonymizationPass(networks), face, face, bits, wanted)
        assert cost == pytest.approx(13.09e9, rel=0.2)
        assert cost == pytest.approx(12.81e9, rel=0.01), "the README quotes this figure"

    def test_counter_by_hand(self):
        conv = torch.nn.Conv2d(3, 8, 3, padding=1, bias=False)
        assert multiply_adds(conv, torch.zeros(1, 3, 10, 10)) == 10 * 10 * 8 * 3 * 9


@pytest.fixture(autouse=True)
def _few_convolutions(monkeypatch):
    for room in (training, attributed_method):
        monkeypatch.setattr(room, "load_recogniser", lambda name: FewConvolutions())


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("sdn")


class TestAlternation:
    def test_ten_to_one_by_batches(self):
        module = SDNTraining({**PAPER_WAY, "discriminator_ratio": 10, "alternate_batches": 33})
        (phase,) = module.phases
        sides = "".join(phase.side(i)[0] for i in range(33))
        assert sides == ("d" * 10 + "g") * 3

    def test_only_the_side_whose_turn_it_is_learns(self, folder):
        """Ratio 2: batches 1 and 2 move EC and D alone, batch 3 moves En and De alone."""
        recipe = write_recipe(folder, "sdn", PAPER_WAY, batch_size=20)
        states = []
        for batches in (0, 2, 3):
            if batches:
                overrides = [f"config.alternate_batches={batches}"]
                run = train(recipe, output=folder / f"run{batches}", overrides=overrides, accelerator="cpu")
                states.append(torch.load(run.folder / "last.ckpt", weights_only=True)["state_dict"])
            else:
                states.append(SDNTraining(PAPER_WAY, seed=0).state_dict())

        def moved(a, b, name):
            keys = [k for k in a if k.startswith(name) and k.endswith("weight")]
            return any(not torch.equal(a[k], b[k]) for k in keys)

        judges, networks = ("model.extractor.", "discriminator."), ("model.encoder.", "model.decoder.", "posterior.")
        for name in judges:
            assert moved(states[0], states[1], name), name
        for name in networks:
            assert not moved(states[0], states[1], name), f"{name} moved in a discriminator batch"
            assert moved(states[1], states[2], name), name
        for key, value in states[1].items():
            # The spectral norm's power iteration runs in every forward pass; weights must not move.
            if key.startswith(judges) and not key.endswith(("._u", "._v")):
                assert torch.equal(value, states[2][key]), f"{key} moved in an encoder batch"
        # The bank was filled with a mixture of ten of the batch's people.
        assert states[1]["model.source_bank.entries"].abs().max() == 0
        assert states[2]["model.source_bank.entries"].abs().max() > 0

    def test_ablations_switch_terms(self, folder):
        names = {}
        for label, change in (
            ("all", {}),
            ("no dual inference", {"dual_inference": False}),
            ("no information terms", {"lambda_realism": 0.0, "lambda_recovery": 0.0, "lambda_marginal": 0.0}),
        ):
            recipe = write_recipe(folder, "sdn", {**PAPER_WAY, "alternate_batches": 3, **change})
            run = train(recipe, output=folder / label, accelerator="cpu")
            header, *rows = (run.folder / "log.csv").read_text().splitlines()
            names[label] = dict(zip(header.split(","), rows[-1].split(","), strict=True))
        assert float(names["all"]["alternate/total"]) != float(names["no dual inference"]["alternate/total"])
        assert {"alternate/mi_realism", "alternate/mi_recovery"} <= set(names["all"])
        assert not any("mi_" in name or "marginal" in name for name in names["no information terms"])


def rows_of(run) -> list[dict[str, str]]:
    with (run.folder / "log.csv").open() as stream:
        return list(csv.DictReader(stream))


class TestInformation:
    """The games (16) and (19): their sign, and whether they count."""

    @pytest.mark.parametrize("config", [PAPER_WAY, OUR_WAY], ids=["paper's way", "our way"])
    def test_each_term_has_its_share_of_the_gradient_and_none_is_nothing(self, folder, config):
        """As means over a code's numbers they were .00004 and less."""
        recipe = write_recipe(folder, "sdn", {**config, "alternate_batches": 6, "shares_every": 1})
        rows = rows_of(train(recipe, output=folder / str(len(config)), accelerator="cpu"))
        measured = [row for row in rows if row["alternate/share_en_realism"]]
        assert len(measured) == sum(bool(row["alternate/rec"]) for row in rows) >= 2
        for row in measured:
            shares = {n.removeprefix("alternate/share_"): float(v) for n, v in row.items() if "share_" in n and v}
            for network in ("en", "de"):
                mine = [value for name, value in shares.items() if name.startswith(network)]
                assert sum(mine) == pytest.approx(1, abs=1e-3)
            assert shares["en_realism"] > 1e-3
            assert shares["de_recovery"] > 2e-4
            assert shares["de_marginal"] > 1e-5, "a hundredth as many numbers as at the paper's size"
            assert shares["de_realism"] == 0, "De does not make the anonymized picture"

    def test_information_is_maximised_as_19_says(self, folder):
        totals = {}
        for weight in (0.0, 0.5):
            change = {"lambda_recovery": weight, "lambda_marginal": 0.0, "alternate_batches": 3, "shares_every": 0}
            recipe = write_recipe(folder, "sdn", {**PAPER_WAY, **change})
            totals[weight] = rows_of(train(recipe, output=folder / f"sign{weight}", accelerator="cpu"))[-1]
        told = float(totals[0.5]["alternate/mi_recovery"]) + float(totals[0.5]["alternate/mi_false"])
        moved = float(totals[0.5]["alternate/total"]) - float(totals[0.0]["alternate/total"])
        assert moved == pytest.approx(-0.5 * told, rel=1e-3)
        assert not any("share_" in name for name in totals[0.5])

    def test_the_code_of_the_original_knows_no_source_and_no_password(self, folder, monkeypatch):
        """The bottleneck behind the joining holds both: one set of faces has one code, whatever is drawn."""
        codes = []
        kept = Posterior.code
        monkeypatch.setattr(Posterior, "code", staticmethod(lambda latent: codes.append(latent) or kept(latent)))
        for name in ("draw_passwords", "draw_sources"):
            with monkeypatch.context() as patch:
                usual = getattr(training.AttributedTraining, name)
                patch.setattr(
                    training.AttributedTraining, name, lambda self, x, purpose, u=usual: u(self, x, purpose + "!")
                )
                recipe = write_recipe(folder, "sdn", {**PAPER_WAY, "alternate_batches": 3, "discriminator_ratio": 2})
                start = len(codes)
                module_seed = 5
                train(
                    recipe,
                    output=folder / name,
                    accelerator="cpu",
                    overrides=[f"train.seed={module_seed}", "config.extractor_learning_rate=0"],
                )
                assert len(codes) == start + 1
        assert torch.equal(codes[0], codes[1])


class TestDraws:
    def test_a_source_is_never_the_person_in_the_picture(self, folder, monkeypatch):
        """Algorithm 1 has another person's identity; one in nine was the same here."""
        seen = []
        usual = training.AttributedTraining.draw_sources

        def watched(self, batch, purpose):
            sources = usual(self, batch, purpose)
            own = self._classes[batch["index"]]
            seen.extend((own == sources.identity)[own >= 0].tolist())
            return sources

        monkeypatch.setattr(training.AttributedTraining, "draw_sources", watched)
        train(write_recipe(folder, "sdn", PAPER_WAY, batch_size=12), output=folder / "sources", accelerator="cpu")
        assert len(seen) > 50
        assert not any(seen)

    def test_the_discriminator_sees_the_code_that_en_is_judged_with(self, folder, monkeypatch):
        calls = []
        usual = CodeEmbedder.forward
        monkeypatch.setattr(CodeEmbedder, "forward", lambda self, *given: calls.append(1) or usual(self, *given))
        recipe = write_recipe(folder, "sdn", {**OUR_WAY, "discriminator_ratio": 1, "alternate_batches": 1})
        train(recipe, output=folder / "judged", accelerator="cpu", overrides=["train.sheet_every_batches=100"])
        assert calls


@pytest.fixture(scope="module")
def trained(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "load_recogniser", lambda name: FewConvolutions())
        return train(write_recipe(folder, "sdn", OUR_WAY), output=folder / "ours", accelerator="cpu")


@pytest.fixture
def method(trained):
    manifest = json.loads((trained.checkpoint / "manifest.json").read_text())
    return SDN.from_checkpoint(trained.checkpoint, manifest)


def faces_of(count: int = 2, size: int = 64, seed: int = 0) -> torch.Tensor:
    coarse = torch.rand(count, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, (size, size), mode="bilinear") * 1.6 - 0.8


class Written(nn.Module):
    """Instead of the embedder: remembers the phasors, changes nothing."""

    def forward(self, cover: torch.Tensor, phasors: torch.Tensor) -> torch.Tensor:
        self.phasors = phasors
        return torch.zeros_like(cover)


class Read(nn.Module):
    """Instead of the extractor: the phasors as written, with noise. A few batches teach neither of the two."""

    def __init__(self, written: Written) -> None:
        super().__init__()
        self.written = written

    def forward(self, saved: torch.Tensor) -> torch.Tensor:
        phasors = self.written.phasors
        return phasors + 0.3 * torch.randn(phasors.shape, generator=torch.Generator().manual_seed(1))


def with_clean_channel(method):
    method.networks.code_embedder = Written()
    method.networks.code_extractor = Read(method.networks.code_embedder)
    return method


class TestTraining:
    def test_a_run_leaves_everything(self, trained):
        assert trained.finished
        assert trained.batches_seen == 4
        header = (trained.folder / "log.csv").read_text().splitlines()[0]
        for name in ("d_value", "attr_accuracy", "rec", "cos_source", "cos_original", "l1", "extract", "mi_realism"):
            assert f"alternate/{name}" in header
        assert "person" not in (trained.checkpoint / "manifest.json").read_text()
        assert {p.stem for p in trained.checkpoint.glob("*.safetensors")} == {
            *("source_bank", "painter", "code_encoder", "code_embedder", "code_extractor", "latent_directions"),
            *("encoder", "decoder", "encoder_style", "decoder_style"),
        }

    @pytest.mark.parametrize("config", [PAPER_WAY, OUR_WAY], ids=["paper's way", "our way"])
    def test_stopped_run_goes_on_bit_for_bit(self, folder, tmp_path, config):
        recipe = write_recipe(folder, "sdn", {**config, "alternate_batches": 4}, batch_size=10)
        whole = train(recipe, output=tmp_path / "whole", accelerator="cpu")
        for _ in range(4):
            pieces = train(recipe, output=tmp_path / "pieces", accelerator="cpu", max_minutes=0.0)
        a, b = (torch.load(r.folder / "last.ckpt", weights_only=True) for r in (whole, pieces))
        assert a["facezoo"] == b["facezoo"] == {"batches_seen": 4}
        for name, value in a["state_dict"].items():
            assert torch.equal(value, b["state_dict"][name]), name

    def test_wrong_requests_differ_from_right_ones(self):
        module = SDNTraining(PAPER_WAY, seed=0)
        module._labels = torch.zeros(1, 3, dtype=torch.long)
        bits = torch.randint(2, (400, 8), generator=torch.Generator().manual_seed(0))
        wanted = torch.randint(-1, 2, (400, 3), generator=torch.Generator().manual_seed(1))
        wrong_bits, wrong = module.spoil(bits, wanted, "wrong")
        other_bits, other = (wrong_bits != bits).sum(1), (wrong != wanted).sum(1)
        assert ((other_bits > 0) ^ (other > 0)).all(), "exactly one of password and attributes is wrong"
        assert (other <= 1).all()
        assert not (wrong[wanted < 0] >= 0).any(), "nothing is asked that was not asked"
        assert wrong.max() <= 3
        assert 0.4 < (other > 0).float().mean() < 0.6
        assert 0.15 < (other_bits == 1).float().mean() < 0.35


class TestUse:
    def test_a_request_that_nobody_will_see_is_said(self, method):
        """Hair lies outside of what the CPU and GPU recipes paint; the paper's network paints it."""
        faces, context = faces_of(), FaceContext(key=KEY, options={"attributes": "smiling=yes,hair=blond"})
        (note,), (same,) = method.notes(faces, context)
        assert note == same
        assert note.startswith("hair=blond changes nothing that can be seen")
        assert method.notes(faces, FaceContext(key=KEY, options={"attributes": "smiling=yes"})) == [(), ()]
        whole = build_strict(SDNConfig, PAPER_WAY, "config")
        assert SDN(SDNNetworks(whole)).notes(faces, context) == [(), ()]

    def test_same_key_same_face_and_one_bit_apart(self, method):
        faces = faces_of()
        result = method.anonymize(faces, FaceContext(key=KEY))
        assert torch.equal(result, method.anonymize(faces, FaceContext(key=KEY)))
        assert torch.allclose(result[:1], method.anonymize(faces[:1], FaceContext(key=KEY)), atol=1e-3)
        one, two = Key.from_bits("01100110"), Key.from_bits("01100111")
        a, b = (method.anonymize(faces, FaceContext(key=key)) for key in (one, two))
        assert (a - b).abs().mean() > 1e-3

    def test_attributes_change_the_face_and_are_part_of_the_secret(self, method):
        method = with_clean_channel(method)
        faces = faces_of()
        asked = FaceContext(key=KEY, options={"attributes": "smiling=yes,hair=blond"})
        plain = method.anonymize(faces, FaceContext(key=KEY))
        result = method.anonymize(faces, asked)
        assert not torch.equal(result, plain)
        assert method.recover(result, FaceContext(key=OTHER)).verified == [False, False]
        wrong = method.recover(result, FaceContext(key=KEY, options={"attributes": "smiling=no,hair=blond"}))
        assert wrong.verified == [False, False]
        assert method.recover(result, asked).verified == [True, True]

    def test_register(self, method):
        method = with_clean_channel(method)
        asked = FaceContext(key=KEY, options={"attributes": "smiling=yes"})
        record = method.options_record(asked)
        assert "smiling" not in json.dumps(record)
        result = method.anonymize(faces_of(), asked)
        assert method.recover(result, FaceContext(key=KEY, options=record)).verified == [True, True]
        with pytest.raises(RecordError, match="not sealed with this key"):
            method.recover(result, FaceContext(key=OTHER, options=record))
        kept = method.options_record(FaceContext(key=KEY, options={"attributes": "smiling=yes", "register": "none"}))
        assert kept == {"register": "none", "vary": True}
        assert method.recover(result, FaceContext(key=KEY, options=kept)).verified == [False, False]

    def test_refusals(self, method):
        faces = faces_of()
        with pytest.raises(KeyMaterialError, match="16 bits and this checkpoint works with 8"):
            method.anonymize(faces, FaceContext(key=Key.from_bits("0" * 16)))
        with pytest.raises(UnknownNameError, match=r"checkpoint called 'age'.*sex, smiling, hair"):
            method.anonymize(faces, FaceContext(key=KEY, options={"attributes": "age=old"}))
        with pytest.raises(InputError, match="contradictory"):
            method.anonymize(faces, FaceContext(key=KEY, options={"attributes": "sex=female,beard=yes"}))
        with pytest.raises(InputError, match="no direction for smiling"):
            method.anonymize(faces, FaceContext(key=KEY, options={"edit": "smiling=1"}))
        with pytest.raises(KeyMaterialError):
            method.anonymize(faces, FaceContext())

    def test_faces_vary_unless_told_otherwise(self, method):
        faces = faces_of(3)
        drawn = method._drawn(KEY, "source", [method._nonce(KEY, face) for face in faces])
        assert len({tuple(row.tolist()) for row in drawn}) == 3
        options = method.options.updated({"vary": False})
        same = method._sources(KEY, options, [b"a", b"b", b"c"])
        assert torch.equal(same[0], same[1])

    def test_own_source_picture(self, method, tmp_path):
        picture = Path(facezoo.__file__).parent / "assets" / "demo" / "astronaut.jpg"
        faces = faces_of()
        result = method.anonymize(faces, FaceContext(key=KEY, options={"source_picture": str(picture)}))
        assert not torch.equal(result, method.anonymize(faces, FaceContext(key=KEY)))
        assert "source_picture" not in method.options_record(
            FaceContext(key=KEY, options={"source_picture": str(picture)})
        )
        with pytest.raises(InputError, match=r"none\.png"):
            method.anonymize(faces, FaceContext(key=KEY, options={"source_picture": str(tmp_path / "none.png")}))

    def test_damaged_config_is_refused(self, trained):
        manifest = json.loads((trained.checkpoint / "manifest.json").read_text())
        manifest["config"]["reveal_width"] = 8
        with pytest.raises(CheckpointError, match="does not fit"):
            SDN.from_checkpoint(trained.checkpoint, manifest)


class TestLatentSpace:
    def test_principal_components_come_back(self):
        basis = torch.randn(3, 200, generator=torch.Generator().manual_seed(0))
        data = torch.randn(30, 3, generator=torch.Generator().manual_seed(1)) @ basis + 2
        pca = latent.PCA.fit(data, 10)
        assert len(pca.components) == 3
        assert torch.allclose(pca.components @ pca.components.T, torch.eye(3), atol=1e-4)
        assert torch.allclose(pca.decompress(pca.compress(data)), data, atol=1e-2)

    def test_support_vectors_by_hand(self):
        """Points at +-1 on the first axis: the widest margin's normal is that axis, the offset nothing."""
        data = torch.tensor([[1.0, 0.3], [1.0, -0.3], [-1.0, 0.3], [-1.0, -0.3]])
        normal, offset = latent.linear_svm(data, torch.tensor([1.0, 1, -1, -1]), penalty=1e4)
        assert normal[0].item() == pytest.approx(1, abs=0.01)
        assert abs(normal[1].item()) < 1e-3
        assert abs(offset.item()) < 1e-3
        with pytest.raises(ValueError, match="with and without"):
            latent.linear_svm(data, torch.ones(4))

    def test_direction_leads_from_one_class_to_the_other(self):
        rng = torch.Generator().manual_seed(0)
        labels = torch.randint(2, (100,), generator=rng)
        data = 0.2 * torch.randn(100, 50, generator=rng)
        data[:, 7] += 2.0 * labels
        pca = latent.PCA.fit(data, 20)
        direction, share = latent.attribute_direction(pca, pca.compress(data), labels)
        assert share == 1.0
        assert direction[7].item() == pytest.approx(1.0, abs=0.15), "two degrees are the way between the classes"
        assert direction.norm() < 1.2

    def test_tsne_keeps_neighbours_together(self):
        rng = torch.Generator().manual_seed(0)
        data = torch.cat([torch.randn(20, 5, generator=rng) + 12 * torch.eye(5)[i] for i in range(3)])
        flat = latent.tsne(data, perplexity=8, steps=200)
        nearest = (torch.cdist(flat, flat) + 1e9 * torch.eye(60)).argmin(1)
        assert (nearest // 20 == torch.arange(60) // 20).float().mean() > 0.95

    def test_commands(self, trained, folder, tmp_path):
        data = folder / "set.safetensors"
        shares = fit_directions(trained.checkpoint, data, tmp_path / "edited")
        assert set(shares) == {"sex", "smiling"}
        anonymizer = facezoo.from_pretrained(str(tmp_path / "edited"), edit="smiling=+2")
        plain = facezoo.from_pretrained(str(tmp_path / "edited"))
        faces = torch.from_numpy(np.array(PackedFaces(data).images[:2])).permute(0, 3, 1, 2).float() / 127.5 - 1
        assert not torch.equal(anonymizer.anonymize_faces(faces, KEY), plain.anonymize_faces(faces, KEY))
        assert (tmp_path / "edited" / "directions.png").stat().st_size > 1000
        for path in plot_clusters(trained.checkpoint, data, tmp_path / "plots", attribute="hair"):
            assert path.stat().st_size > 1000
        with pytest.raises(facezoo.errors.OutputError):
            fit_directions(trained.checkpoint, data, tmp_path / "edited")


@pytest.mark.parametrize("path", sorted(Path(__file__).parents[2].glob("recipes/sdn/*.yaml")), ids=lambda p: p.stem)
def test_recipes_parse_and_build(path):
    recipe = load_recipe(path)
    with torch.device("meta"):
        from facezoo.core.configuration import build_strict

        config = build_strict(SDNConfig, recipe.config, "config")
    assert config.size == 128
    assert config.bank_people >= 10
