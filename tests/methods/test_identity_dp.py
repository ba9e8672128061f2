"""identity_dp: the noise is on the identity vector only, its scale is the proof's, and the record says what holds."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from facezoo import registry
from facezoo.errors import CheckpointError, InputError
from facezoo.hub.manifest import CHECKPOINTS, bundled_models, read_manifest, resolve_model
from facezoo.methods.base import FaceContext
from facezoo.methods.identity_dp.config import IdentityDPConfig
from facezoo.methods.identity_dp.method import IdentityDP, painter_of
from facezoo.methods.identity_dp.options import IdentityDPOptions
from facezoo.privacy.audit import privacy_loss
from facezoo.privacy.mechanisms import LaplaceMechanism
from facezoo.privacy.randomness import SeededBits

CONFIG = IdentityDPConfig(
    size=32,
    generator_scale=1,
    identity_dim=16,
    recogniser="none",
    generator_widths=(8, 8, 8),
    attribute_widths=(8, 8, 8),
    attribute_grid=4,
    linear_painter=False,
    generator_constants=False,
    greatest_l1=4.0,
    greatest_l1_faces=100,
)


class MeanRecogniser(nn.Module):
    """Sixteen numbers of a face: the means of its parts."""

    def forward(self, faces: torch.Tensor) -> torch.Tensor:
        return functional.normalize(functional.adaptive_avg_pool2d(faces, 4).mean(1).flatten(1) + 0.01, dim=-1)


@pytest.fixture
def method() -> IdentityDP:
    torch.manual_seed(0)
    return IdentityDP(painter_of(CONFIG), MeanRecogniser(), CONFIG)


def faces(count: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1


# The mechanism


def test_both_sensitivities_and_their_scale(method):
    sound = method.mechanism(IdentityDPOptions(epsilon=6.0))
    assert sound.scale == pytest.approx(2 * math.sqrt(16) / 6)
    assert sound.sensitivity.sound
    book = method.mechanism(IdentityDPOptions(epsilon=6.0, sensitivity="book"))
    assert book.scale == pytest.approx(4.0 / 6)
    assert not book.sensitivity.sound
    assert "NOT a bound" in book.sensitivity.reason


def test_the_face_reaches_the_identity_path_through_the_mechanism_only(method, monkeypatch):
    """With the mechanism's answer held fixed, what the recogniser says plays no part in the result."""
    held = functional.normalize(torch.randn(16, generator=torch.Generator().manual_seed(1)).double(), dim=0)
    monkeypatch.setattr(LaplaceMechanism, "release", lambda self, values, source=None: held)
    context = FaceContext(seed=1, options={"randomness": "seeded"})
    first = method.anonymize(faces(), context)
    method.recogniser = nn.Sequential(MeanRecogniser(), nn.Linear(16, 16))
    assert torch.equal(first, method.anonymize(faces(), context))


def test_noise_grows_as_epsilon_falls(method):
    """Cosine of the painted identity to the original's: near 1 at 800 for the book's vector, about 0 at .5."""
    painted: list[torch.Tensor] = []

    def paint(crops, identity):
        painted.append(identity)
        return crops * 0.5

    method.painter.cover = paint
    crops = faces(24)
    own = method.recogniser(crops)
    cosines = {}
    for epsilon in (0.5, 50, 800):
        options = {"randomness": "seeded", "identity": "noisy", "epsilon": epsilon}
        method.anonymize(crops, FaceContext(seed=2, options=options))
        assert torch.allclose(painted[-1].norm(dim=1), torch.ones(24), atol=1e-5)
        cosines[epsilon] = float((painted[-1] * own).sum(1).mean())
    assert abs(cosines[0.5]) < 0.2
    assert 0.2 < cosines[50] < 0.95
    assert cosines[800] > 0.98


def test_release_is_audited_at_its_epsilon(method):
    """The worst pair of identity vectors: what leaves the mechanism keeps epsilon, half the noise does not."""
    corner = torch.full((16,), 0.25, dtype=torch.float64)

    def statistic(mechanism: LaplaceMechanism, sign: int, seed: int) -> list[float]:
        source = SeededBits(seed)
        outputs = [mechanism.release(sign * corner, source) for _ in range(1200)]
        return [float((y + corner).abs().sum() - (y - corner).abs().sum()) for y in outputs]

    made = method.mechanism(IdentityDPOptions(epsilon=2.0))
    assert privacy_loss(statistic(made, 1, 3), statistic(made, -1, 4)).allows(2.0)
    weak = LaplaceMechanism(12.0, made.sensitivity, 16)
    assert not privacy_loss(statistic(weak, 1, 3), statistic(weak, -1, 4)).allows(2.0)


def test_natural_identities_are_drawn_from_what_is_known(method):
    """Little noise: the noisy vector itself. Much noise: the training identities' distribution, whatever it says."""
    distribution = method.painter.identity_distribution
    factor = 0.2 * torch.eye(16)
    factor[0, 0] = 0.5
    distribution.factor.copy_(factor)
    distribution.mean.copy_(0.5 * functional.one_hot(torch.tensor(3), 16))
    options = IdentityDPOptions(identity="natural")
    vector = functional.normalize(torch.randn(16, generator=torch.Generator().manual_seed(2)).double(), dim=0)
    exact = method._identity(vector, 1e-6, options, SeededBits(5))
    assert float(exact @ vector) > 0.9999
    draws = torch.stack([method._identity(100 * vector, 1e4, options, SeededBits(6 + i)) for i in range(300)])
    raw_first = draws[:, 0].abs().mean() / draws[:, 1].abs().mean()
    assert 2.0 < float(raw_first) < 3.2, "its spread is that of the training identities, .5 to .2"
    assert float(draws[:, 3].mean()) > 0.3, "and its mean theirs"


def test_noise_is_fresh_unless_it_is_seeded(method):
    assert not torch.equal(*(method.anonymize(faces(), FaceContext(seed=7)) for _ in range(2)))
    seeded = FaceContext(seed=7, options={"randomness": "seeded"})
    twin = faces(1).expand(2, -1, -1, -1)
    assert torch.equal(*(method.anonymize(faces(), seeded) for _ in range(2)))
    both = method.anonymize(twin, seeded)
    assert torch.allclose(both[0], both[1], atol=1e-6)


def test_networks_are_frozen(method):
    assert not any(parameter.requires_grad for parameter in method.painter.parameters())
    before = {name: value.clone() for name, value in method.painter.state_dict().items()}
    method.anonymize(faces().requires_grad_(), FaceContext())
    assert all(torch.equal(before[name], value) for name, value in method.painter.state_dict().items())


# Words


def test_the_record_states_the_guarantee_in_words(method):
    record = method.options_record(FaceContext())
    assert str(record["guarantee"]).startswith("epsilon 6 for each face, about the identity vector")
    assert "not the attribute features" in str(record["guarantee"])
    assert "4x4 pixels" in str(record["leaks"])
    json.dumps(record)
    for options, words in (({"sensitivity": "book"}, "NOT a bound"), ({"randomness": "seeded"}, "seed")):
        weak = method.options_record(FaceContext(options=options))
        assert str(weak["guarantee"]).startswith("none")
        assert words in str(weak["guarantee"])


def test_the_difference_is_explained_where_the_user_chooses():
    doc = IdentityDPOptions.documented()["sensitivity"].doc
    assert "no two faces can exceed" in " ".join(doc.split())
    assert "nominal" in doc


@pytest.mark.parametrize("epsilon", [0, -1, 0.009, 801, math.nan, math.inf])
def test_epsilon_out_of_range(epsilon):
    with pytest.raises(InputError, match=r"epsilon must be a number from 0\.01 to 800"):
        IdentityDPOptions(epsilon=epsilon)


def test_it_cannot_be_undone(method):
    with pytest.raises(InputError, match="nothing to recover"):
        method.recover(faces(), FaceContext())
    assert not registry.method_info("identity_dp").reversible


# The checkpoint


@pytest.mark.parametrize("name", [name for name in bundled_models() if name.startswith("identity_dp.")])
def test_bundled_weights_are_those_of_the_other_checkpoint_and_stored_once(name):
    found = resolve_model(name)
    assert not list(found.folder.glob("*.safetensors"))
    owners = {entry["from"] for entry in found.manifest["files"].values()}
    assert len(owners) == 1
    other, _ = read_manifest(CHECKPOINTS / owners.pop())
    for file, entry in found.manifest["files"].items():
        assert entry["sha256"] == other["files"][file]["sha256"]
    assert found.manifest["config"]["greatest_l1"] < 2 * math.sqrt(found.manifest["config"]["identity_dim"])
    method = IdentityDP.from_checkpoint(found.folder, dict(found.manifest))
    assert method.crop_size == found.manifest["crop_size"]


def test_damaged_config_is_a_checkpoint_error(tmp_path):
    with pytest.raises(CheckpointError, match="unknown key"):
        IdentityDP.from_checkpoint(tmp_path, {"config": {"nonsense": 1}, "files": {}})
