"""MfM: losses by hand, phases, the frozen classifier, every fifth batch, conflicting factors."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest
import torch

from facezoo.core.configuration import build_strict
from facezoo.core.recipe import load_recipe
from facezoo.core.run import train
from facezoo.errors import InputError
from facezoo.keys import Key
from facezoo.methods.attributed import method as attributed_method
from facezoo.methods.attributed import training
from facezoo.methods.base import FaceContext
from facezoo.methods.mfm import losses
from facezoo.methods.mfm.config import MfMConfig
from facezoo.methods.mfm.method import MfM
from facezoo.methods.mfm.networks import MfMNetworks
from facezoo.methods.mfm.training import MfMTraining
from tests.labelled import OURS, SMALL, FewConvolutions, write_recipe
from tests.methods.test_sdn import faces_of, with_clean_channel

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")

KEY, OTHER = Key.from_bytes(bytes(range(32))), Key.from_bytes(bytes(range(1, 33)))
PAPER_WAY = {
    **SMALL,
    "extractor_residual": 1,
    "content_blocks": 1,
    "decoder_blocks": 1,
    "classify_batches": 2,
    "modify_batches": 5,
}
OUR_WAY = {**PAPER_WAY, **OURS, "classify_batches": 0, "discriminator_ratio": 1, "modify_batches": 4}


@pytest.fixture(autouse=True)
def _few_convolutions(monkeypatch):
    for room in (training, attributed_method):
        monkeypatch.setattr(room, "load_recogniser", lambda name: FewConvolutions())


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("mfm")


class TestLosses:
    def test_appearance(self):
        i = torch.zeros(1, 1, 2, 2)
        assert losses.appearance_loss(i, i + 0.5, i - 0.25).item() == pytest.approx(0.75)
        assert losses.appearance_loss(i, i + 0.5, i - 0.25, keep_share=0.0).item() == pytest.approx(0.25)

    def test_identity(self):
        half, tenth = torch.log(torch.tensor([[0.5, 0.5]])), torch.log(torch.tensor([[0.1, 0.9]]))
        i, t, k = torch.tensor([0]), torch.tensor([0]), torch.tensor([1])
        expected = -math.log(0.5) - math.log(0.1) - math.log(0.9)
        assert losses.identity_loss(half, i, tenth, t, tenth, k).item() == pytest.approx(expected)
        assert losses.identity_loss(half, i, tenth, t, None, k).item() == pytest.approx(-math.log(0.05))

    def test_features(self):
        a, b = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])
        assert losses.distance(a, b).item() == 0
        assert losses.distance(a, -a).item() == 0, "opposite is far enough"
        assert losses.distance(a, 3 * a).item() == pytest.approx(1)
        assert losses.feature_loss(a, a, b, a + b / 2).item() == pytest.approx(1 + 0 + 0.5**0.5)
        assert losses.recovered_loss(a, b).item() == pytest.approx(1.5)
        assert losses.domain_loss(a, a).item() == 0

    def test_attributes(self):
        logits = torch.log(torch.tensor([[0.8, 0.2]]))
        assert losses.attribute_loss(logits, torch.tensor([[1]]), (2,)).item() == pytest.approx(-math.log(0.2))


class TestConfig:
    def test_the_paper_s_weights(self):
        c = MfMConfig()
        weights = (c.lambda_b, c.lambda_attribute_class, c.lambda_identity_class, c.lambda_feature)
        assert (*weights, c.lambda_recovered, c.lambda_domain) == (20, 20, 1, 10, 20, 20)
        assert (c.style_dim, c.extractor_layers, c.extractor_residual) == (1024, 6, 3)
        with torch.device("meta"):
            networks = MfMNetworks(c)
        face = torch.zeros(1, 3, 128, 128, device="meta")
        bits, wanted = (torch.zeros(1, n, dtype=torch.long, device="meta") for n in (16, 5))
        picture, bottleneck = networks.modify(face, bits, wanted, torch.zeros(1, 1008, device="meta"), recover=False)
        assert picture.shape == face.shape
        assert bottleneck.shape == (1, 256, 32, 32)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"generator_scale": 2, "content_grid": 8}, "generator_scale must be 1"),
            ({"content_grid": 8}, "needs keyed_code"),
            ({"extractor": "recogniser", "recogniser_dim": 128, "classify_batches": 1}, "classify_batches to 0"),
            ({"bank_people": 9}, "at least 10"),
            ({"attributes": ("sex", "nose")}, "no attribute 'nose'"),
        ],
    )
    def test_what_does_not_fit(self, change, message):
        with pytest.raises(ValueError, match=message):
            MfMConfig(**change)


class TestPhases:
    def test_modifier_in_every_fifth_batch(self):
        module = MfMTraining({**PAPER_WAY, "modify_batches": 15})
        classify, modify = module.phases
        assert classify.train == ("extractor",)
        assert "extractor" not in modify.train
        assert "".join(modify.side(i)[0] for i in range(15)) == "ddddgddddgddddg"

    def test_classifier_frozen_bit_for_bit_in_phase_two(self, folder):
        recipe = write_recipe(folder, "mfm", PAPER_WAY, batch_size=12)
        states = [MfMTraining(PAPER_WAY, seed=0).state_dict()]
        for batches in (0, 4, 5):
            run = train(
                recipe,
                output=folder / f"run{batches}",
                overrides=[f"config.modify_batches={batches}"],
                accelerator="cpu",
            )
            states.append(torch.load(run.folder / "last.ckpt", weights_only=True)["state_dict"])
        start, classified, judged, modified = states
        for key, value in start.items():
            if key.startswith("model.extractor.") and key.endswith("conv.weight"):
                assert not torch.equal(value, classified[key]), f"{key} did not learn in phase one"
            if key.startswith("model.extractor."):
                assert torch.equal(classified[key], modified[key]), f"{key} moved in phase two"
            elif value.is_floating_point():
                assert torch.equal(value, classified[key]), f"{key} moved in phase one"
            weight = key.endswith("weight")
            if key.startswith("model.modifier.") and weight:
                assert torch.equal(value, judged[key]), f"{key} moved in a discriminator batch"
                # (the extra input and the condition may get no gradient in one batch; convolutions do)
                assert not key.endswith("conv.weight") or not torch.equal(judged[key], modified[key]), key
            if key.startswith("model.attribute_reader.") and weight:
                assert not torch.equal(value, judged[key]), f"{key} did not learn"
                assert torch.equal(judged[key], modified[key]), f"{key} moved in a modifier batch"

    @pytest.mark.parametrize("config", [PAPER_WAY, OUR_WAY], ids=["paper's way", "our way"])
    def test_stopped_run_goes_on_bit_for_bit(self, folder, tmp_path, config):
        recipe = write_recipe(folder, "mfm", config, batch_size=10)
        whole = train(recipe, output=tmp_path / "whole", accelerator="cpu")
        for _ in range(whole.batches_seen):
            pieces = train(recipe, output=tmp_path / "pieces", accelerator="cpu", max_minutes=0.0)
        a, b = (torch.load(r.folder / "last.ckpt", weights_only=True) for r in (whole, pieces))
        assert a["facezoo"] == b["facezoo"]
        for name, value in a["state_dict"].items():
            assert torch.equal(value, b["state_dict"][name]), name


@pytest.fixture(scope="module")
def checkpoint(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "load_recogniser", lambda name: FewConvolutions())
        recipe = write_recipe(folder, "mfm", OUR_WAY)
        return train(recipe, output=folder / "ours", accelerator="cpu").checkpoint


@pytest.fixture
def method(checkpoint):
    return MfM.from_checkpoint(checkpoint, json.loads((checkpoint / "manifest.json").read_text()))


class TestVariants:
    def test_another_right_password_is_another_password(self, folder, monkeypatch):
        """F_p2 of (4): in half of the rows it had the very same bits."""
        calls = []
        usual = MfMNetworks.modify

        def watched(self, faces, bits, *given, recover, **more):
            calls.append((recover, torch.is_grad_enabled(), bits))
            return usual(self, faces, bits, *given, recover=recover, **more)

        monkeypatch.setattr(MfMNetworks, "modify", watched)
        config = {**PAPER_WAY, "modify_batches": 2, "discriminator_ratio": 1, "classify_batches": 0}
        train(write_recipe(folder, "mfm", config, batch_size=24), output=folder / "second", accelerator="cpu")
        first, second = [bits for recover, learning, bits in calls if learning and not recover]
        apart = (first != second).sum(1)
        assert (apart > 0).all()
        assert 0.15 < (apart == 1).float().mean() < 0.85, "half of them one bit apart"

    def test_information_terms_have_a_share(self, folder):
        config = {**PAPER_WAY, "modify_batches": 2, "discriminator_ratio": 1, "classify_batches": 0, "shares_every": 1}
        run = train(write_recipe(folder, "mfm", config), output=folder / "shares", accelerator="cpu")
        with (run.folder / "log.csv").open() as stream:
            row = list(csv.DictReader(stream))[-1]
        shares = {name.removeprefix("modify/share_m_"): float(v) for name, v in row.items() if "share_" in name}
        assert sum(shares.values()) == pytest.approx(1, abs=1e-3)
        for name in ("acceptability", "recovery", "marginal"):
            assert shares[name] > 2e-4, name


class TestUse:
    def test_there_and_back(self, method):
        method = with_clean_channel(method)
        faces = faces_of()
        asked = FaceContext(key=KEY, options={"attributes": "smiling=yes"})
        result = method.anonymize(faces, asked)
        assert result.shape == faces.shape
        assert method.recover(result, asked).verified == [True, True]
        assert method.recover(result, FaceContext(key=KEY)).verified == [False, False]
        assert method.recover(result, FaceContext(key=OTHER, options={"attributes": "smiling=yes"})).verified == [
            False,
            False,
        ]
        assert method.recover(result, FaceContext(key=KEY, options=method.options_record(asked))).verified == [True] * 2

    def test_conflicts_with_the_face_are_resolved_and_reported(self, folder):
        """A reader that sees a woman everywhere: the mustache is dropped, the smile stays."""
        config = build_strict(MfMConfig, {**OUR_WAY, "attributes": ["sex", "smiling", "mustache"]}, "config")
        method = MfM(MfMNetworks(config))
        with torch.no_grad():
            method.networks.attribute_reader.head.weight.zero_()
            method.networks.attribute_reader.head.bias.copy_(torch.tensor([9.0, 0, 0, 0, 0, 0]))
        faces = faces_of()
        context = FaceContext(key=KEY, options={"attributes": "smiling=yes,mustache=yes"})
        assert (
            method.notes(faces, context)
            == [("mustache=yes was dropped: a mustache on a female face (the face looks female)",)] * 2
        )
        assert method._attributes(faces, [-1, 1, 1]).tolist() == [[-1, 1, -1]] * 2
        assert method.notes(faces, FaceContext(key=KEY)) == [(), ()]
        # An unsure reader decides nothing.
        with torch.no_grad():
            method.networks.attribute_reader.head.bias.zero_()
        assert method.notes(faces, context) == [(), ()]

    def test_contradictory_values_are_refused_all_the_same(self, method):
        with pytest.raises(InputError, match="contradictory"):
            method.anonymize(faces_of(), FaceContext(key=KEY, options={"attributes": "smiling=yes,smiling=no"}))


@pytest.mark.parametrize("path", sorted(Path(__file__).parents[2].glob("recipes/mfm/*.yaml")), ids=lambda p: p.stem)
def test_recipes_parse_and_build(path):
    config = build_strict(MfMConfig, load_recipe(path).config, "config")
    assert config.size == 128
    assert config.bank_people >= 10
