"""The projected discriminator's frozen projections, and the face painter's losses by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from facezoo.errors import CheckpointError
from facezoo.frozen import FeatureNetwork, load_features
from facezoo.methods.face_painter import losses
from facezoo.nets.projected_discriminator import ProjectedDiscriminator


def test_projections_stay_as_they_were_drawn():
    torch.manual_seed(0)
    network = ProjectedDiscriminator([5, 7], 8)
    before = [head.projection.weight.clone() for head in network.heads]
    for phase in (False, True):
        assert network.requires_grad_(phase) is network
        assert all(not head.projection.weight.requires_grad for head in network.heads)
        learning = [p for name, p in network.named_parameters() if "projection" not in name]
        assert {p.requires_grad for p in learning} == {phase}
    features = [torch.randn(2, 5, 6, 6, requires_grad=True), torch.randn(2, 7, 3, 3)]
    optimizer = torch.optim.Adam(network.parameters(), lr=0.1)
    logits = network(features)
    assert [tuple(one.shape) for one in logits] == [(2, 1, 6, 6), (2, 1, 3, 3)]
    sum(one.square().mean() for one in logits).backward()
    assert all(head.projection.weight.grad is None for head in network.heads)
    assert features[0].grad.abs().sum() > 0, "gradients go through them to the painter"
    changed = [p.detach().clone() for p in learning]
    optimizer.step()
    assert all(torch.equal(head.projection.weight, old) for head, old in zip(network.heads, before, strict=True))
    assert any(not torch.equal(p, old) for p, old in zip(learning, changed, strict=True))
    with pytest.raises(ValueError, match="shorter"):
        network(features[:1])


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_masked_l1_by_hand():
    a, b, w = rng(1).normal(size=(2, 3, 4, 4)), rng(2).normal(size=(2, 3, 4, 4)), rng(3).uniform(size=(2, 1, 4, 4))
    by_hand = (
        sum(
            abs(a[i, :, y, x] - b[i, :, y, x]).mean() * w[i, 0, y, x]
            for i in range(2)
            for y in range(4)
            for x in range(4)
        )
        / w.sum()
    )
    assert losses.masked_l1(*map(torch.from_numpy, (a, b, w))).item() == pytest.approx(by_hand)
    assert losses.masked_l1(torch.ones(1, 3, 2, 2), torch.zeros(1, 3, 2, 2), torch.zeros(1, 1, 2, 2)) == 0


def test_tone_by_hand():
    a, b, m = rng(1).normal(size=(2, 3, 8, 8)), rng(2).normal(size=(2, 3, 8, 8)), rng(3).uniform(size=(2, 1, 8, 8))
    pooled = (a - b).reshape(2, 3, 4, 2, 4, 2).mean(axis=(3, 5))
    found = losses.tone_distance(*map(torch.from_numpy, (a, b, m)), grid=4).item()
    assert found == pytest.approx(abs(pooled).mean() / m.mean())
    detail = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(4, 4).expand(1, 3, 8, 8)
    assert losses.tone_distance(detail, torch.zeros(1, 3, 8, 8), torch.ones(1, 1, 8, 8)) == 0, "detail is free"


def test_features_distance_by_hand():
    heads = nn.ModuleList(nn.Conv2d(c, 1, 1, bias=False) for c in (2, 3)).double()
    first = [torch.from_numpy(rng(i).normal(size=(2, c, 4, 4))) for i, c in enumerate((2, 3))]
    second = [torch.from_numpy(rng(9 + i).normal(size=(2, c, 4, 4))) for i, c in enumerate((2, 3))]
    by_hand = sum(
        ((a - b) ** 2 * head.weight.detach().view(1, -1, 1, 1)).sum(1).mean((1, 2))
        for a, b, head in zip(first, second, heads, strict=True)
    )
    assert torch.allclose(losses.features_distance(first, second, heads), by_hand)
    assert not losses.features_distance(first, first, heads).any()


def test_another_person_costs_nothing():
    a, b = rng(1).normal(size=(5, 6)), rng(2).normal(size=(5, 6))
    b[0] = a[0]
    cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    found = losses.other_person(torch.from_numpy(a), torch.from_numpy(b), 0.2).item()
    assert found == pytest.approx(np.maximum(cosines - 0.2, 0).mean())
    assert losses.other_person(torch.eye(3), torch.eye(3).roll(1, 0), 0.0) == 0


def test_a_feature_network_is_frozen_and_in_evaluation_mode():
    network = FeatureNetwork(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), (4,), None)
    assert not network.train().training
    assert not network.body.training
    assert not any(p.requires_grad for p in network.parameters())
    assert network.device == torch.device("cpu")


def test_missing_weights_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("FACEZOO_WEIGHTS", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(CheckpointError, match="the features of AlexNet need"):
        load_features("alexnet")
    pytest.importorskip("timm")
    with pytest.raises(CheckpointError, match="timm has no model 'no_such_net'"):
        load_features("no_such_net")
    with pytest.raises(CheckpointError, match=r"put tf_efficientnet_lite0.safetensors into"):
        load_features("tf_efficientnet_lite0")


def test_a_timm_backbone_is_read_by_name_or_in_order(tmp_path, monkeypatch):
    timm = pytest.importorskip("timm")
    monkeypatch.setenv("FACEZOO_WEIGHTS", str(tmp_path))
    torch.manual_seed(1)
    backbone = timm.create_model("resnet10t", pretrained=False, features_only=True)
    state = backbone.state_dict()
    wanted = None
    renamed = {f"x{i}": value for i, value in enumerate(state.values())}
    for content in (state, {k: v for k, v in renamed.items() if v.dim()}):
        torch.save(content, tmp_path / "resnet10t.pth")
        features = load_features("resnet10t")
        found = features(torch.zeros(1, 3, 32, 32) + 0.1)
        assert [f.shape[1] for f in found] == list(features.channels)
        wanted = wanted or found
        assert all(torch.allclose(a, b) for a, b in zip(found, wanted, strict=True))
    torch.save({"conv.weight": torch.zeros(3, 3)}, tmp_path / "resnet10t.pth")
    with pytest.raises(CheckpointError, match="does not hold the weights of this timm model"):
        load_features("resnet10t")
