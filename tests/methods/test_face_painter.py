"""The first guess of SDN and MfM by a trained face painter, and requests that move what it paints from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional

from facezoo.core.configuration import build_strict
from facezoo.core.run import train
from facezoo.errors import InputError
from facezoo.hub.manifest import load_networks, read_manifest
from facezoo.methods.attributed import training
from facezoo.methods.attributed.model import RequestShift
from facezoo.methods.sdn.config import SDNConfig
from facezoo.methods.sdn.networks import SDNNetworks
from tests.labelled import PAINTED, SMALL, FewConvolutions, painter_checkpoint, write_recipe

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")

SDN = {"identity_blocks": 1, "erasing_blocks": 1, "reveal_width": 4, "generator_scale": 2}
SDN |= {"reveal_cells": True, "reveal_identity_blocks": 1, "reveal_blocks": 1, "discriminator_ratio": 1}
MFM = {"content_blocks": 1, "decoder_blocks": 1, "classify_batches": 0, "discriminator_ratio": 1}


def test_shifts_are_the_differences_of_one_attribute_with_the_others_held():
    """Exact linear data in which smiling faces are mostly women: the smile's shift must not carry the woman's."""
    rng = torch.Generator().manual_seed(0)
    sex = torch.randint(2, (4000,), generator=rng)
    smiling = torch.where(torch.rand(4000, generator=rng) < 0.8, 1 - sex, sex)
    asked = torch.cat([functional.one_hot(sex, 2), functional.one_hot(smiling, 2)], dim=1).float()
    feature = torch.tensor([1.0, 0.0, 0.0]) * sex[:, None] + torch.tensor([0.0, 2.0, 0.0]) * smiling[:, None]
    content = (0.5 * smiling.float())[:, None, None, None].expand(-1, 3, 2, 2)
    shift = RequestShift(4, 3, 2)
    shift.fit(asked, feature, content, ridge=1e-9)
    female, male, serious, smile = torch.eye(4)
    assert torch.allclose(shift((male - female)[None])[0], torch.tensor([[1.0, 0.0, 0.0]]), atol=1e-4)
    moved, coarse = shift((smile - serious)[None])
    assert torch.allclose(moved, torch.tensor([[0.0, 2.0, 0.0]]), atol=1e-4)
    assert torch.allclose(coarse, torch.full((1, 3, 2, 2), 0.5), atol=1e-4)
    # The two values of an attribute share the difference: asking for either moves away from the other.
    assert torch.allclose(shift(smile[None])[0], -shift(serious[None])[0], atol=1e-4)
    assert not shift(torch.zeros(1, 4))[0].any()


@pytest.fixture
def networks() -> SDNNetworks:
    torch.manual_seed(1)
    built = SDNNetworks(build_strict(SDNConfig, {**SMALL, **PAINTED, **SDN}, "config")).eval()
    # Fitted painters change faces; a random one only needs to change them differently for each identity.
    built.request_shift.content.copy_(torch.randn(built.request_shift.content.shape))
    return built


@torch.no_grad()
def test_the_guess_is_the_painters_face_inside_the_mask(networks):
    faces = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(2)) * 2 - 1
    features = torch.randn(2, 128, generator=torch.Generator().manual_seed(3))
    nothing, asked = torch.full((2, 3), -1), torch.tensor([[1, -1, -1], [1, -1, -1]])
    small = networks.shrink(faces)
    guess = networks.guess(small, features, nothing)
    painted, _ = networks.face_painter.paint_small(small, functional.normalize(features, dim=-1))
    assert torch.equal(guess, torch.lerp(small, painted, networks.generator_mask))
    outside = networks.generator_mask < 1e-6
    assert torch.equal(guess[..., outside], small[..., outside])
    assert not torch.equal(networks.guess(small, features, asked), guess)
    # Edits are parts of requests: +2 is the second value, -2 the first, and what is between lies between.
    degrees = torch.tensor([[2.0, 0.0, 0.0]] * 2)
    assert torch.equal(networks.guess(small, features, nothing, degrees), networks.guess(small, features, asked))
    assert torch.equal(networks.guess(small, features, nothing, 0 * degrees), guess)
    half = networks.guess(small, features, nothing, degrees / 2)
    assert not torch.equal(half, guess)
    assert not torch.equal(half, networks.guess(small, features, asked))
    networks.request_shift.content[0] = -networks.request_shift.content[1]  # as fitting makes them
    networks.request_shift.features[0] = -networks.request_shift.features[1]
    minus = networks.guess(small, features, nothing, -degrees)
    assert torch.allclose(minus, networks.guess(small, features, torch.tensor([[0, -1, -1]] * 2)), atol=1e-5)
    # A password of bits moves nothing here: it acts in the network behind the guess.
    zero = networks.en(faces, torch.zeros(2, 8).long(), nothing, features)[0]
    one = networks.en(faces, torch.ones(2, 8).long(), nothing, features)[0]
    assert not torch.equal(zero, one)
    assert set(networks.painting()) == {"attribute_encoder", "generator", "painter"} <= set(networks.networks())


@pytest.mark.parametrize(("method", "own", "length"), [("sdn", SDN, "alternate"), ("mfm", MFM, "modify")])
def test_the_painter_comes_from_its_checkpoint_and_stays(method, own, length, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(training, "load_recogniser", lambda name: FewConvolutions())
    recipe = write_recipe(tmp_path, method, {**SMALL, **PAINTED, **own, f"{length}_batches": 4}, batch_size=2)
    with pytest.raises(InputError, match=r"does not train \(attribute_encoder, generator, painter\): .*--init"):
        train(recipe, output=tmp_path / "run", accelerator="cpu")
    start = painter_checkpoint(tmp_path / "painter")
    with pytest.raises(InputError, match="must give attribute_encoder, generator, painter too"):
        train(recipe, output=tmp_path / "run", accelerator="cpu", init_from=start, init_networks=("code_encoder",))
    first = train(recipe, output=tmp_path / "run", accelerator="cpu", init_from=start, max_minutes=0)
    assert not first.finished
    run = train(recipe, output=tmp_path / "run", accelerator="cpu")  # goes on without being told again
    assert run.finished
    before, after = (load_networks(f, read_manifest(f)[0]) for f in (start, run.checkpoint))
    for name in ("attribute_encoder", "generator", "painter"):
        for key, value in after[name].items():
            assert torch.equal(value.float(), before[name][key].half().float()), (name, key)
    # The hidden code starts there too, and learns.
    assert any(
        not torch.equal(v.float(), before["code_extractor"][k].half().float())
        for k, v in after["code_extractor"].items()
    )
    assert after["request_shift"]["features"].abs().max() > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"linear_painter": True}, "has a linear_painter of its own"),
        ({"painter_attribute_widths": [8, 8]}, "as many levels"),
        ({"painter_size": 48}, "must divide size"),
        ({"request_content_strength": -1.0}, "must not be negative"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    with pytest.raises((ValueError, InputError), match=message):
        build_strict(SDNConfig, {**SMALL, **PAINTED, **SDN, **change}, "config")
