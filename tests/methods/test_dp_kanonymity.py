"""dp_kanonymity: votes and choices by hand, losses and signs, freezing and the 5:1 alternation, resume, errors."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from facezoo.core.recipe import load_recipe
from facezoo.core.run import train
from facezoo.data.packed import write_packed
from facezoo.errors import CheckpointError, InputError
from facezoo.methods.base import FaceContext
from facezoo.methods.dp_kanonymity import losses
from facezoo.methods.dp_kanonymity.config import AttributeRule, DPKAnonymityConfig
from facezoo.methods.dp_kanonymity.method import AttributeChoices, DPKAnonymity
from facezoo.methods.dp_kanonymity.model import DPKAnonymityNetworks
from facezoo.methods.dp_kanonymity.networks import (
    AttributeEditor,
    EditDiscriminator,
    SelectiveTransferUnit,
    TimmClassifier,
)
from facezoo.methods.dp_kanonymity.selection import (
    average_attributes,
    neighbour_votes,
    poisson_sample,
    private_attributes,
    selection_cost,
    t_close_attributes,
)
from facezoo.methods.dp_kanonymity.training import DPKAnonymityTraining
from facezoo.privacy.audit import privacy_loss
from facezoo.privacy.randomness import SeededBits

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")

RECIPES = Path(__file__).parents[2] / "recipes" / "dp_kanonymity"
TINY = {
    "size": 32,
    "classifier_widths": [8, 8],
    "classifier_blocks": [1, 1],
    "classifier_bottleneck": False,
    "feature_dim": 8,
    "generator_widths": [8, 8, 8],
    "stu_levels": 2,
    "discriminator_widths": [8, 8, 8],
    "discriminator_hidden": 8,
}


def within(hits: float, count: int, probability: float) -> bool:
    return abs(hits / count - probability) < 5 * math.sqrt(probability * (1 - probability) / count)


# Selection


def test_votes_by_hand_with_the_tau_approximation():
    features = torch.tensor([[0.0], [1.0], [2.0], [9.0]])
    attributes = torch.tensor([[1, 0, 0], [1, 1, 1], [0, 1, 0], [1, 1, 1]])
    # k = 3: the nearest to 0 are rows 0, 1, 2; row 1 has three attributes and with tau 2 two thirds of a vote for each.
    votes = neighbour_votes(torch.tensor([0.0]), features, attributes, 3, 2.0)
    assert votes.tolist() == pytest.approx([1 + 2 / 3, 2 / 3 + 1, 2 / 3])
    assert neighbour_votes(torch.tensor([0.0]), features, attributes, 9, 100.0).tolist() == [3, 3, 2]
    # Nobody has more than tau votes in all: that is the sensitivity which the cost stands on.
    for row in range(4):
        alone = neighbour_votes(features[row], features[row : row + 1], attributes[row : row + 1], 1, 2.0)
        assert float(alone.sum()) <= 2.0


def test_poisson_sample_is_independent_of_the_others():
    source = SeededBits(1)
    sizes = [len(poisson_sample(50, 0.2, source)) for _ in range(400)]
    assert within(sum(sizes), 400 * 50, 0.2)
    assert np.var(sizes) == pytest.approx(50 * 0.2 * 0.8, rel=0.35), "binomial: not a sample of a fixed size"


def test_attributes_follow_equations_45_and_46():
    votes, k, epsilon, count = torch.tensor([7.0, 2.0, 6.0, 3.0]).double(), 10, 0.3, 4000
    source = SeededBits(2)
    chosen = torch.stack([private_attributes(votes, k, epsilon, [(2, 3)], source) for _ in range(count)])
    for index in (0, 1):
        v = float(votes[index])
        p = math.exp(epsilon * v / 2) / (math.exp(epsilon * v / 2) + math.exp(epsilon * (k - v) / 2))
        assert within(int(chosen[:, index].sum()), count, p)
    assert (chosen[:, 2:].sum(1) == 1).all(), "exactly one of a conflict group"
    p = math.exp(0.3 * 6 / 2) / (math.exp(0.3 * 6 / 2) + math.exp(0.3 * 3 / 2))
    assert within(int(chosen[:, 2].sum()), count, p)


def test_epsilon_zero_is_a_coin():
    votes = torch.tensor([10.0, 9.0, 0.0, 1.0]).double()
    source = SeededBits(3)
    chosen = torch.stack([private_attributes(votes, 10, 0.0, [(1, 2, 3)], source) for _ in range(3000)])
    assert within(int(chosen[:, 0].sum()), 3000, 0.5)
    assert all(within(int(chosen[:, index].sum()), 3000, 1 / 3) for index in (1, 2, 3))


def test_average_attributes_are_the_majority_and_one_of_each_group():
    votes = torch.tensor([7.0, 5.0, 2.0, 6.0, 3.0]).double()
    assert average_attributes(votes, 10, [(3, 4)]).tolist() == [1, 0, 0, 1, 0]
    # With much epsilon the mechanism says the same, ties apart.
    chosen = private_attributes(votes, 10, 90.0, [(3, 4)], SeededBits(4))
    assert chosen[[0, 2, 3, 4]].tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize(("epsilon", "passes"), [(0.5, True), (1.5, False)])
def test_the_worst_exchange_of_neighbours_is_audited_at_the_reported_cost(epsilon, passes):
    """One neighbour leaves with the vote for one attribute, another comes with the vote for the other.

    With one vote in all the loss is epsilon, half of the bound (which is reached where votes are lopsided), so it takes
    three times the epsilon to break it clearly.
    """
    reported = selection_cost(0.5, 1.0, 2, 1.0).epsilon
    assert reported == pytest.approx(1.0)
    outputs = []
    for seed, votes in enumerate(([1.0, 0.0], [0.0, 1.0])):
        source = SeededBits(30 + seed)
        told = [private_attributes(torch.tensor(votes).double(), 1, epsilon, [], source) for _ in range(4000)]
        outputs.append([float(2 * one[0] + one[1]) for one in told])
    assert privacy_loss(*outputs).allows(reported) is passes


def test_cost_counts_every_attribute_and_the_sampling():
    assert selection_cost(0.05, 3.0, 13, 1.0).epsilon == pytest.approx(0.3)
    assert selection_cost(0.05, 30.0, 13, 1.0).epsilon == pytest.approx(1.3), "nobody votes for more than there are"
    assert selection_cost(0.05, 3.0, 13, 0.05).epsilon == pytest.approx(math.log(1 + 0.05 * (math.exp(0.3) - 1)))


@pytest.mark.parametrize("t", [0.0, 0.2, 1.0])
def test_t_closeness(t):
    frequency, count = torch.tensor([0.3, 0.5, 0.2, 0.3]).double(), 3000
    for bit in (0, 1):
        truth = torch.tensor([bit, bit, 1 - bit, 0])
        source = SeededBits(4 + bit)
        chosen = torch.stack([t_close_attributes(truth, frequency, t, [(1, 2, 3)], source) for _ in range(count)])
        assert (chosen[:, 1:].sum(1) == 1).all()
        # The single attribute: w = min(1, t / .7), the distance w |truth - .3| is at most t.
        w = min(1.0, t / 0.7)
        wanted = w * bit + (1 - w) * 0.3
        assert abs(wanted - 0.3) <= t + 1e-12
        got = int(chosen[:, 0].sum())
        assert within(got, count, wanted) if 0 < wanted < 1 else got == wanted * count
        # The group: total variation to (.5, .2, .3) is w (1 - p) with w = min(1, t / .8).
        w = min(1.0, t / 0.8)
        own = 1 if bit else 2
        wanted = w + (1 - w) * float(frequency[own])
        got = int(chosen[:, own].sum())
        assert within(got, count, wanted) if wanted < 1 else got == count


# Configuration


def test_rules():
    assert AttributeRule.parse("young=age:<35") == AttributeRule("young", "age", None, True, 35)
    assert AttributeRule.parse("Bald=attributes[4]:1") == AttributeRule("Bald", "attributes", 4, False, 1)
    config = DPKAnonymityConfig(attributes=("a=x:1", "b=x:2", "c=x:3"), conflicts=("b c",))
    assert config.group_indices == ((1, 2),)
    for changes, message in (
        ({"attributes": ("a",)}, "must read"),
        ({"attributes": ("a=x:1", "a=x:2")}, "different names"),
        ({"conflicts": ("male bald",)}, "unknown attributes: bald"),
        ({"conflicts": ("male",)}, "two attributes"),
        ({"size": 100}, "halved"),
        ({"stu_levels": 5}, "stu_levels"),
    ):
        with pytest.raises(ValueError, match=message):
            DPKAnonymityConfig(**changes)


def test_paper_recipe_has_the_books_attributes_and_groups():
    recipe = load_recipe(RECIPES / "celeba128_paper.yaml")
    config = DPKAnonymityTraining(recipe.config | TINY | {"attributes": recipe.config["attributes"]}).config
    assert len(config.rules) == 13
    assert [len(group) for group in config.groups] == [3, 2]
    written = recipe.config
    assert (written["lambda_d_attribute"], written["lambda_g_attribute"], written["lambda_rec"]) == (1, 10, 100)


# Networks and losses


def test_transfer_unit_by_hand():
    """With all weights 0 the gates are one half and the candidate is 0: the output is half of what comes from below."""
    unit = SelectiveTransferUnit(2, 3, 1)
    with torch.no_grad():
        for parameter in unit.parameters():
            parameter.zero_()
        unit.up.bias.fill_(0.8)
    out, state = unit(torch.ones(1, 2, 4, 4), torch.ones(1, 3, 2, 2), torch.zeros(1, 1))
    assert torch.allclose(state, torch.tensor(0.4))
    assert torch.allclose(out, torch.tensor(0.4))


def test_editor_reads_the_change_everywhere_and_keeps_the_size():
    torch.manual_seed(0)
    editor = AttributeEditor((8, 8, 8), 2, 2)
    faces = torch.rand(2, 3, 32, 32) * 2 - 1
    same = editor(faces, torch.zeros(2, 2))
    other = editor(faces, torch.tensor([[1.0, 0], [0, 0]]))
    assert same.shape == faces.shape
    assert not torch.allclose(same[0], other[0])
    assert torch.allclose(same[1], other[1], atol=1e-6), "a face does not depend on its neighbours"


def test_multilabel_loss_is_torchs_where_all_is_known():
    logits = torch.tensor([[0.5, -1.0], [2.0, 0.0]])
    target = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert losses.multilabel_loss(logits, target, torch.ones(2, 2)) == pytest.approx(
        float(nn.MultiLabelSoftMarginLoss()(logits, target))
    )
    known = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    assert float(losses.multilabel_loss(logits, target, known)) == pytest.approx(math.log(1 + math.exp(-0.5)))
    assert float(losses.multilabel_loss(logits, target, torch.zeros(2, 2))) == 0


def test_gradient_penalty_by_hand_and_its_sign():
    real, fake = torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4)
    weight = torch.full((1, 3, 4, 4), 3 / math.sqrt(48))  # a linear critic with a gradient of length 3
    penalty = losses.gradient_penalty(lambda x: (x * weight).flatten(1).sum(1), real, fake, torch.rand(2))
    assert float(penalty) == pytest.approx(4.0, rel=1e-5)
    # What the discriminator minimises grows with the penalty: the book's sign would make it fall.
    arguments = (torch.tensor([1.0]), torch.tensor([0.25]))
    low, high = (
        losses.discriminator_loss(*arguments, torch.tensor(p), torch.tensor(0.5), 10.0, 1.0) for p in (0.0, 1.0)
    )
    assert float(low) == pytest.approx(0.25 - 1.0 + 0.5)
    assert float(high - low) == pytest.approx(10.0)
    total = losses.editor_loss(torch.tensor([0.25]), torch.tensor(0.5), torch.tensor(0.01), 10.0, 100.0)
    assert float(total) == pytest.approx(-0.25 + 5.0 + 1.0)


def test_penalty_reaches_the_discriminators_weights():
    torch.manual_seed(0)
    critic = EditDiscriminator((4, 4), 16, 4, 1)
    penalty = losses.gradient_penalty(
        lambda x: critic(x)[0], torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16), torch.rand(2)
    )
    penalty.backward()
    assert critic.body[0][0].weight.grad.abs().sum() > 0


# Training


def labelled(path: Path, count: int = 6) -> Path:
    rng = np.random.default_rng(5)
    images = rng.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)
    names = [f"p{i}" for i in range(count)]
    labels = {
        "sex": np.arange(count) % 2,
        "age": np.array([-1, *range(20, 20 + 10 * (count - 1), 10)]),
        "expression": np.full(count, -1),
    }
    arrays = {name: values.astype(np.int16) for name, values in labels.items()}
    write_packed(path, iter(images), size=32, identities=names, files=names, arrays=arrays, source="invented")
    return path


def recipe_file(folder: Path, classify: int, edit: int, **config: str) -> Path:
    content = {
        "name": "dp_kanonymity.tiny",
        "method": "dp_kanonymity",
        "summary": "a test",
        "data": [str(labelled(folder / "set.safetensors"))],
        "config": {**TINY, "classify_batches": classify, "edit_batches": edit, **config},
        "train": {"batch_size": 2, "seed": 3, "log_every_batches": 1, "tick_batches": 4, "sheet_every_batches": 100},
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_labels_unknown_and_below():
    module = DPKAnonymityTraining({**TINY})
    batch = {
        "sex": torch.tensor([1, 0, -1]),
        "age": torch.tensor([34, 35, -1]),
        "expression": torch.tensor([4, 3, -1]),
    }
    target, known = module.labels(batch)
    assert target[:2].tolist() == [[1, 1, 1], [0, 0, 0]]
    assert known.tolist() == [[1, 1, 1], [1, 1, 1], [0, 0, 0]]


class Watcher(DPKAnonymityTraining):
    """Notes which networks each batch changed."""

    changed: list[tuple[str, ...]]

    def step(self, batch, phase, side):
        before = {name: [p.clone() for p in net.parameters()] for name, net in self.networks().items()}
        logs = super().step(batch, phase, side)
        moved = tuple(
            name
            for name, net in self.networks().items()
            if any(not torch.equal(a, b) for a, b in zip(before[name], net.parameters(), strict=True))
        )
        Watcher.changed.append(moved)
        return logs


def test_phases_freeze_and_alternate_five_to_one(tmp_path, monkeypatch):
    monkeypatch.setattr("facezoo.core.run.training_class", lambda method: Watcher)
    Watcher.changed = []
    result = train(recipe_file(tmp_path, 2, 12), output=tmp_path / "run", accelerator="cpu")
    assert result.finished
    cycle = [("discriminator",)] * 5 + [("editor",)]
    assert Watcher.changed == [("classifier",)] * 2 + cycle * 2


def test_resume_equals_an_uninterrupted_run_and_the_export_works(tmp_path):
    recipe = recipe_file(tmp_path, 2, 6)
    whole = train(recipe, output=tmp_path / "whole", accelerator="cpu")
    first = train(recipe, output=tmp_path / "parts", accelerator="cpu", max_minutes=0)
    assert not first.finished
    second = train(recipe, output=tmp_path / "parts", accelerator="cpu")
    assert second.finished
    for name in ("classifier", "editor"):
        contents = [(run.checkpoint / f"{name}.safetensors").read_bytes() for run in (whole, second)]
        assert contents[0] == contents[1], name
    manifest = json.loads((second.checkpoint / "manifest.json").read_text())
    assert manifest["crop_size"] == 32
    method = DPKAnonymity.from_checkpoint(second.checkpoint, manifest)
    faces = torch.rand(2, 3, 32, 32) * 2 - 1
    seeded = {"randomness": "seeded", "reference": str(tmp_path / "set.safetensors"), "k": 3, "gamma": 0.9}
    for selection in ("neighbours", "t_closeness"):
        context = FaceContext(seed=1, options={**seeded, "selection": selection})
        results = method.anonymize(faces, context)
        assert torch.equal(results, method.anonymize(faces, context))
        assert torch.allclose(method.anonymize(faces[1:], context)[0], results[1], atol=1e-5)
        assert "none" in str(method.options_record(context)["guarantee"]) or selection == "t_closeness"
    (second.checkpoint / "editor.safetensors").write_bytes(b"no")
    with pytest.raises(CheckpointError, match="bytes instead of"):
        DPKAnonymity.from_checkpoint(second.checkpoint, manifest)


# A backbone of timm


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_any_timm_model_trains_ships_and_anonymizes(tmp_path, name):
    timm = pytest.importorskip("timm")
    torch.manual_seed(5)
    weights = timm.create_model(name, img_size=32) if name == "test_vit" else timm.create_model(name)
    torch.save(weights.state_dict(), tmp_path / "weights.pth")
    settings = {"classifier_backbone": name, "classifier_weights": str(tmp_path / "weights.pth")}
    module = DPKAnonymityTraining({**TINY, **settings})
    loaded = module.model.classifier.backbone.state_dict()  # without the thousand classes
    assert all(torch.equal(value, weights.state_dict()[key]) for key, value in loaded.items())
    assert len(loaded) == len(weights.state_dict()) - 2
    result = train(recipe_file(tmp_path, 2, 2, **settings), output=tmp_path / "run", accelerator="cpu")
    manifest = json.loads((result.checkpoint / "manifest.json").read_text())
    assert str(tmp_path) not in json.dumps(manifest["config"])
    (tmp_path / "weights.pth").unlink()
    method = DPKAnonymity.from_checkpoint(result.checkpoint, manifest)
    options = {"randomness": "seeded", "reference": str(tmp_path / "set.safetensors"), "k": 3, "gamma": 0.9}
    faces = torch.rand(2, 3, 32, 32) * 2 - 1
    results = method.anonymize(faces, FaceContext(seed=1, options=options))
    assert results.shape == faces.shape
    assert results.isfinite().all()


def test_a_timm_classifier_is_the_backbone_and_two_layers():
    timm = pytest.importorskip("timm")
    classifier = TimmClassifier("test_resnet", 32, 8, 3).eval()
    faces = torch.rand(2, 3, 32, 32) * 2 - 1
    config = classifier.backbone.pretrained_cfg
    seen = (faces / 2 + 0.5 - torch.tensor(config["mean"])[:, None, None]) / torch.tensor(config["std"])[:, None, None]
    whole = timm.create_model("test_resnet", num_classes=0).eval()
    whole.load_state_dict(classifier.backbone.state_dict())
    phi, logits = classifier(faces)
    torch.testing.assert_close(phi, classifier.feature(whole(seen)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logits, classifier.logits(phi.relu()))


def test_backbones_that_cannot_be_are_one_line(tmp_path, monkeypatch):
    pytest.importorskip("timm")
    with pytest.raises(CheckpointError, match="has no model 'resnet5000'"):
        DPKAnonymityTraining({**TINY, "classifier_backbone": "resnet5000"})
    with pytest.raises(InputError, match="name it as classifier_backbone"):
        DPKAnonymityTraining({**TINY, "classifier_weights": "x.pth"})
    torch.save({"fc.weight": torch.zeros(3)}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="does not hold the weights of this timm model"):
        DPKAnonymityTraining(
            {**TINY, "classifier_backbone": "test_resnet", "classifier_weights": str(tmp_path / "x.pth")}
        )
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(CheckpointError, match=r"needs timm .*pip install 'facezoo\[train\]'"):
        DPKAnonymityTraining({**TINY, "classifier_backbone": "test_resnet"})


def test_the_papers_recipe_has_the_papers_network():
    config = load_recipe(RECIPES / "celeba128_paper.yaml").config
    assert config["classifier_backbone"] == "resnet50"


# The method's refusals and words


@pytest.fixture
def method() -> DPKAnonymity:
    torch.manual_seed(0)
    config = DPKAnonymityConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in TINY.items()})
    return DPKAnonymity(DPKAnonymityNetworks(config))


def test_k_larger_than_the_sample_and_no_reference(method, tmp_path):
    path = str(labelled(tmp_path / "set.safetensors"))
    faces = torch.zeros(1, 3, 32, 32)
    with pytest.raises(InputError, match="needs people to hide among"):
        method.anonymize(faces, FaceContext())
    with pytest.raises(InputError, match=r"k=4 is more than the 3 people that a sample of 0\.5 of the 6"):
        method.anonymize(faces, FaceContext(options={"reference": path, "k": 4, "gamma": 0.5}))
    with pytest.raises(InputError, match="epsilon must be a number"):
        method.anonymize(faces, FaceContext(options={"reference": path, "epsilon": -0.1}))


def test_choices_are_those_of_the_edit_and_agreement_is_counted_by_hand(method, tmp_path):
    options = {"reference": str(labelled(tmp_path / "set.safetensors")), "k": 3, "gamma": 1.0, "randomness": "seeded"}
    context = FaceContext(seed=7, options=options)
    faces = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(2)) * 2 - 1
    choices = method.attribute_choices(faces, context)
    change = (choices.chosen - choices.predicted).float()
    assert torch.equal(method.anonymize(faces, context), method.networks.editor(faces, change).clamp(-1, 1))
    assert len(method.anonymize(faces[:0], context)) == 0
    by_hand = AttributeChoices(torch.tensor([[1, 0, 1, 1]]), torch.tensor([[1, 1, 1, 1]]), torch.tensor([[0, 1, 1, 1]]))
    assert {name: value.tolist() for name, value in by_hand.agreement().items()} == {
        "chosen_predicted": [0.5],
        "average_predicted": [0.75],
        "chosen_average": [0.75],
    }


def test_the_record_says_whom_the_guarantee_is_about(method):
    record = method.options_record(FaceContext(options={"reference": "/home/somebody/set.safetensors"}))
    assert "not the face in the picture" in str(record["guarantee"])
    assert "own pixels" in str(record["leaks"])
    assert "somebody" not in json.dumps(record)
    close = method.options_record(FaceContext(options={"selection": "t_closeness"}))
    assert "t=0.2" in str(close["guarantee"])
    assert not method.guarantee(FaceContext()).countable
