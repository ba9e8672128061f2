"""StyleGAN2's training and use: losses by hand, lazy penalties, growing, augmentation, resume, people."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import facezoo
from facezoo import registry
from facezoo.core.batches import PackedBatches
from facezoo.core.recipe import Recipe, TrainConfig
from facezoo.core.run import train
from facezoo.errors import CheckpointError, InputError
from facezoo.hub.manifest import read_manifest
from facezoo.hub.models import list_models
from facezoo.methods.stylegan2 import losses
from facezoo.methods.stylegan2.config import StyleGAN2TrainingConfig
from facezoo.methods.stylegan2.people import StyleGAN2
from facezoo.methods.stylegan2.training import StyleGAN2Training
from facezoo.nets.stylegan2 import Discriminator, Generator
from facezoo.nets.stylegan2.augment import AdaptiveStrength, Transforms, apply_transforms, draw_transforms
from facezoo.nets.stylegan2.discriminator import r1_penalty
from tests.core.toy import make_set

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")

TINY = {
    "resolution": 16,
    "z_dim": 8,
    "w_dim": 6,
    "mapping_layers": 2,
    "channel_base": 96,
    "channel_max": 8,
    "minibatch_std_group": 2,
    "growing": [8],
    "growing_batches": [2],
    "fade_batches": 2,
    "training_batches": 4,
    "learning_rate": 2e-3,
    "r1_gamma": 1.0,
    "r1_every": 2,
    "path_every": 3,
    "ada_target": 0.1,
    "ada_pictures": 40,
    "ada_every": 1,
}


# ---------------------------------------------------------------- losses
def test_logistic_losses_by_hand():
    real, fake = torch.tensor([0.0, math.log(3)]), torch.tensor([0.0, -math.log(3)])
    # -log sigmoid(0) = log 2, -log sigmoid(log 3) = log 4/3; the same two for the generated ones, mirrored
    half = (math.log(2) + math.log(4 / 3)) / 2
    assert losses.discriminator_loss(real, fake).item() == pytest.approx(2 * half)
    assert losses.generator_loss(fake).item() == pytest.approx((math.log(2) + math.log(4)) / 2)


def test_r1_by_hand():
    """D(x) = sum of a x^2 / 2 has the gradient a x; its squared norm's gradient by a is 2 a x^2."""
    pictures = torch.full((2, 3, 4, 4), 0.5, requires_grad=True)
    factor = torch.tensor(3.0, requires_grad=True)
    penalty = r1_penalty((factor * pictures.square() / 2).sum((1, 2, 3)), pictures)
    assert penalty.item() == pytest.approx(48 * 1.5**2)
    penalty.backward()
    assert factor.grad.item() == pytest.approx(48 * 2 * 3 * 0.25)


def test_path_length_is_that_of_the_jacobian():
    """A linear generator G(w) = A w: the length is |A^T y| / sqrt(pixels), here from A itself, per layer averaged."""
    torch.manual_seed(0)
    a = torch.randn(2, 5, 3 * 4 * 4, dtype=torch.float64)
    ws = torch.randn(3, 2, 5, dtype=torch.float64, requires_grad=True)
    pictures = torch.einsum("bld,ldp->bp", ws, a).reshape(3, 3, 4, 4)
    noise = torch.randn(3, 3, 4, 4, dtype=torch.float64)
    product = torch.einsum("ldp,bp->bld", a, noise.reshape(3, -1)) / 4
    wanted = (product.square().sum(2).sum(1) / 2).sqrt()
    lengths = losses.path_lengths(pictures, ws, noise)
    assert torch.allclose(lengths.double(), wanted, atol=1e-5)
    assert losses.path_penalty(torch.tensor([1.0, 4.0]), torch.tensor(2.0)).item() == 2.5


# ---------------------------------------------------------------- augmentation
def numbers(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_no_strength_changes_nothing():
    pictures = torch.randn(4, 3, 16, 16)
    drawn = draw_transforms(4, 16, 0.0, numbers())
    assert torch.allclose(drawn.geometry, torch.eye(3).expand(4, 3, 3), atol=1e-6)
    assert torch.allclose(drawn.colour, torch.eye(4).expand(4, 4, 4), atol=1e-6)
    assert torch.allclose(apply_transforms(pictures, drawn), pictures, atol=1e-4)


def test_mirror_quarter_turn_and_whole_pixels_are_exact():
    pictures = torch.randn(1, 3, 8, 8)

    def with_geometry(rows: list[list[float]]) -> Tensor:
        return apply_transforms(pictures, Transforms(torch.tensor([rows]), torch.eye(4)[None]))

    assert torch.allclose(with_geometry([[-1, 0, 0], [0, 1, 0], [0, 0, 1]]), pictures.flip(3), atol=1e-5)
    turned = with_geometry([[0, -1, 0], [1, 0, 0], [0, 0, 1]])
    assert torch.allclose(turned, pictures.rot90(1, (2, 3)), atol=1e-5) or torch.allclose(
        turned, pictures.rot90(-1, (2, 3)), atol=1e-5
    )
    shifted = with_geometry([[1, 0, 2 * 2 / 8], [0, 1, 0], [0, 0, 1]])  # read two pixels to the right
    assert torch.allclose(shifted[..., :6], pictures[..., 2:], atol=1e-5)
    assert torch.allclose(shifted[..., 6:], pictures[..., [7, 6]], atol=1e-5)  # mirrored at the border


def test_drawn_geometry_and_colours_are_what_the_paper_names():
    drawn = draw_transforms(4000, 64, 1.0, numbers())
    linear = drawn.geometry[:, :2, :2]
    scale = torch.linalg.det(linear).abs().sqrt()
    assert scale.log().std().item() == pytest.approx(0.2 * math.log(2), rel=0.1)
    # Hue, flip and saturation keep grey grey: only brightness and contrast act on it.
    grey = drawn.colour[:, :3, :3].sum(2)
    assert torch.allclose(grey.std(1), torch.zeros(4000), atol=1e-4)
    unit = torch.tensor([1.0, -1.0, 0.0]) / math.sqrt(2)
    saturation = (drawn.colour[:, :3, :3] @ unit).norm(dim=1) / grey.mean(1).abs()
    assert saturation.log().std().item() == pytest.approx(math.log(2), rel=0.1)
    assert (grey.mean(1) < 0).float().mean().item() == pytest.approx(0.5, abs=0.05)  # luma flips


def test_each_change_happens_with_the_probability_asked_for():
    drawn = draw_transforms(4000, 64, 0.2, numbers())
    same_colour = (drawn.colour - torch.eye(4)).abs().amax((1, 2)) < 1e-5
    # five colour changes, of which the luma flip is none in half of the cases
    assert same_colour.float().mean().item() == pytest.approx(0.8**4 * 0.9, abs=0.03)


def test_augmentation_lets_gradients_through():
    pictures = torch.randn(2, 3, 8, 8, requires_grad=True)
    apply_transforms(pictures, draw_transforms(2, 8, 1.0, numbers())).sum().backward()
    assert pictures.grad.abs().sum() > 0


def test_strength_follows_the_sign_of_d():
    strength = AdaptiveStrength(target=0.6, pictures=100, every=2)
    for signs, wanted in (
        (8, 0.0),
        (8, 0.2),
        (10, 0.2),
        (10, 0.4),
        (2, 0.4),
        (5, 0.2),
        (-9, 0.2),
        (-9, 0.0),
        (-9, 0.0),
    ):
        strength.observe(torch.tensor(float(signs)), 10)
        assert strength.strength.item() == pytest.approx(wanted), signs


# ---------------------------------------------------------------- training
@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return make_set(tmp_path_factory.mktemp("set") / "set.safetensors", count=16, size=16)


def recipe(folder: Path, data: Path, **config: object) -> Path:
    settings = TrainConfig(batch_size=4, log_every_batches=1, sheet_every_batches=100, tick_batches=4, ema_decay=0.9)
    whole = Recipe("stylegan2.tiny", "stylegan2", "a test", {**TINY, **config}, settings, (str(data),))
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(dataclasses.asdict(whole)))
    return path


def state_of(run: Path) -> dict[str, Tensor]:
    content = torch.load(run / "last.ckpt", weights_only=True)
    return {
        **content["state_dict"],
        **{f"ema {k}": v for k, v in content["facezoo_ema"]["networks"]["generator"].items()},
    }


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory, data) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    result = train(recipe(folder, data), output=folder / "run", accelerator="cpu")
    assert result.finished
    return folder / "run"


def test_resume_equals_uninterrupted(tmp_path, data, whole_run):
    """Stopped after every second batch: in the small phase, while fading, between lazy penalties, with ADA moving."""
    path = recipe(tmp_path, data)
    for until in (2, 4, 6):
        # The time limit of zero stops after one batch.
        for _ in range(2):
            result = train(path, output=tmp_path / "run", accelerator="cpu", max_minutes=0)
        assert result.batches_seen == until
    assert result.finished
    wanted, found = state_of(whole_run), state_of(tmp_path / "run")
    assert found.keys() == wanted.keys()
    different = [name for name in wanted if not torch.equal(found[name], wanted[name])]
    assert different == []
    assert wanted["path_mean"] > 0
    with (tmp_path / "run" / "log.csv").open() as stream:
        strengths = [float(row["grow8/ada"] or row["train/ada"]) for row in csv.DictReader(stream)]
    assert max(strengths) > 0, "the augmentation took part"
    assert len(set(strengths)) > 2


def test_every_network_learns_in_every_phase(whole_run, data):
    start = StyleGAN2Training(TINY).state_dict()
    end = state_of(whole_run)
    still = [
        name
        for name, value in start.items()
        if name.startswith(("generator", "discriminator"))
        and "noise_const" not in name
        and torch.equal(end[name], value)
    ]
    assert still == []
    constants = [name for name in start if "noise_const" in name]
    assert constants
    assert all(torch.equal(end[name], start[name]) for name in constants)


def test_penalties_come_when_they_are_due_and_weigh_what_they_should(data):
    """One batch with and one without: the gradients differ by interval times weight times the penalty's own."""
    batch = PackedBatches([data], 16, ()).__getitems__(list(range(4)))
    config = {**TINY, "growing": [], "growing_batches": [], "fade_batches": 0, "ada_target": 0.0, "mirror": False}

    def gradients(**changes: object) -> tuple[dict[str, Tensor], StyleGAN2Training, dict[str, Tensor]]:
        module = StyleGAN2Training({**config, **changes})
        with torch.no_grad():
            module.path_mean.fill_(0.7)
        found: dict[str, Tensor] = {}
        optimizers = [_NoStep(net) for net in (module.generator, module.discriminator)]
        module.optimizers = lambda: optimizers
        module.manual_backward = lambda loss: loss.backward()
        logs = module.step(batch, module.phases[0], "both")
        for name, optimizer in zip(("generator", "discriminator"), optimizers, strict=True):
            found |= {f"{name}.{key}": value for key, value in optimizer.gradients.items()}
        return found, module, logs

    plain, module, logs = gradients(r1_gamma=0.0, path_weight=0.0)
    assert not {"r1", "path"} & logs.keys()
    with_r1, _, logs = gradients(r1_gamma=5.0, r1_every=16, path_weight=0.0)
    real = (batch["image"].float() / 127.5 - 1).requires_grad_()
    (picture_gradient,) = torch.autograd.grad(module.discriminator(real).sum(), real, create_graph=True)
    r1 = picture_gradient.square().sum((1, 2, 3)).mean()
    assert logs["r1"].item() == pytest.approx(r1.item(), rel=1e-4)
    parameters = dict(module.discriminator.named_parameters())
    for name in ("from_rgb.weight", "blocks.1.first.weight", "hidden.weight"):
        (own,) = torch.autograd.grad(r1, parameters[name], retain_graph=True)
        difference = with_r1[f"discriminator.{name}"] - plain[f"discriminator.{name}"]
        assert torch.allclose(difference, 16 * 5 / 2 * own, rtol=1e-3, atol=1e-5), name
    with_path, _, logs = gradients(r1_gamma=0.0, path_weight=2.0, path_every=4)
    half, _, _ = gradients(r1_gamma=0.0, path_weight=1.0, path_every=4)
    assert logs["path"] > 0
    for name, value in with_path.items():
        if name.startswith("discriminator"):
            assert torch.allclose(value, plain[name], rtol=1e-4, atol=1e-6), name
        else:
            assert torch.allclose(value - plain[name], 2 * (half[name] - plain[name]), rtol=2e-2, atol=1e-4), name
    assert any(not torch.allclose(with_path[n], plain[n]) for n in plain)


class _NoStep:
    """In an optimizer's place: keeps the gradients and moves nothing."""

    def __init__(self, network: torch.nn.Module) -> None:
        self.network, self.gradients = network, {}

    def toggle_model(self):
        return contextlib.nullcontext()

    def zero_grad(self) -> None:
        self.network.zero_grad()

    def step(self) -> None:
        self.gradients = {n: p.grad.clone() for n, p in self.network.named_parameters() if p.grad is not None}


def test_style_mixing_and_the_mean_w():
    module = StyleGAN2Training({**TINY, "style_mixing": 1.0, "w_mean_decay": 0.5})
    ws = module._latents(64, "latent")
    layers = module.config.network.num_ws
    changes = (ws[:, 1:] != ws[:, :-1]).any(2)
    assert (changes.sum(1) == 1).all(), "one crossover a picture"
    assert changes.any(0).all(), f"anywhere in the {layers} layers"
    first = ws[:, 0].mean(0)
    assert torch.allclose(module.generator.w_mean, 0.5 * first, atol=1e-5)
    module.batches_seen += 1
    assert not torch.equal(module._latents(64, "latent"), ws)
    pure = StyleGAN2Training({**TINY, "style_mixing": 0.0})._latents(8, "latent")
    assert torch.equal(pure, pure[:, :1].expand_as(pure))


def test_growing_follows_the_clock():
    module = StyleGAN2Training(TINY)
    stages = [module.stage(batch) for batch in range(7)]
    assert stages == [(8, 1.0), (8, 1.0), (16, 0.0), (16, 0.5), (16, 1.0), (16, 1.0), (16, 1.0)]
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    small = module._real(images, 8)
    wanted = functional.avg_pool2d(images.float() / 127.5 - 1, 2)
    assert all(
        torch.allclose(a, b, atol=1e-5) or torch.allclose(a, b.flip(2), atol=1e-5)
        for a, b in zip(small, wanted, strict=True)
    )


def test_settings_that_would_fail_late_are_one_line(data, tmp_path):
    path = recipe(tmp_path, data)
    with pytest.raises(InputError, match="a batch of 3 pictures a process does not divide into the 2"):
        train(path, output=tmp_path / "run", accelerator="cpu", overrides=["train.batch_size=3"])
    module = StyleGAN2Training(TINY)
    module.on_train_start()
    module.discriminator.compile()
    with pytest.raises(InputError, match=r"train\.compile=false"):
        module.on_train_start()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"growing": [4]}, "double up to the resolution"),
        ({"growing": [8], "growing_batches": []}, "1 sizes in growing but 0"),
        ({"r1_every": 0}, "r1_every"),
        ({"style_mixing": 1.5}, "style_mixing"),
        ({"resolution": 20}, "power of two"),
    ],
)
def test_configurations_that_cannot_work(wrong, says):
    with pytest.raises(ValueError, match=says):
        StyleGAN2TrainingConfig(**{"resolution": 16, "growing_batches": (1,), "growing": (8,), **wrong})


# ---------------------------------------------------------------- the checkpoint, people
def test_the_checkpoint_holds_the_averaged_generator(whole_run):
    manifest, _ = read_manifest(whole_run / "checkpoint")
    assert list(manifest["files"]) == ["generator.safetensors"]
    people = StyleGAN2.from_checkpoint(whole_run / "checkpoint", manifest)
    averages = {name.removeprefix("ema "): v for name, v in state_of(whole_run).items() if name.startswith("ema ")}
    for name, value in people.network.state_dict().items():
        assert torch.equal(value, averages[name].half().float()), name
    assert people.network.w_mean.abs().sum() > 0


def test_a_seed_is_a_person(whole_run):
    manifest, _ = read_manifest(whole_run / "checkpoint")
    people = StyleGAN2.from_checkpoint(whole_run / "checkpoint", manifest)
    one, again, other = people.person(5, 0.7), people.person(5, 0.7), people.person(6, 0.7)
    assert one.shape == (3, 16, 16)
    assert one.abs().max() <= 1
    assert torch.equal(one, again)
    assert not torch.allclose(one, other)
    assert torch.equal(people.person(5, 0.0), people.person(6, 0.0)), "without variety there is one face"
    for seed, truncation in ((-1, 0.7), (1.5, 0.7), (2**63, 0.7), (1, 1.1), (1, float("nan"))):
        with pytest.raises(InputError):
            people.person(seed, truncation)


def test_a_checkpoint_that_does_not_fit(whole_run):
    manifest, _ = read_manifest(whole_run / "checkpoint")
    with pytest.raises(CheckpointError, match="does not fit"):
        StyleGAN2.from_checkpoint(whole_run / "checkpoint", {**manifest, "config": {**manifest["config"], "w_dim": 7}})
    with pytest.raises(CheckpointError, match="unknown key"):
        StyleGAN2.from_checkpoint(whole_run / "checkpoint", {**manifest, "config": {"wdim": 7}})


def test_a_generator_is_listed_and_anonymizes_nothing(whole_run):
    assert "stylegan2" not in [info.name for info in registry.list_methods()]
    assert "stylegan2" in [info.name for info in registry.list_methods("generator")]
    (line,) = [model for model in list_models() if model.method == "stylegan2"]
    assert line.kind == "generator"
    with pytest.raises(InputError, match=r"anonymizes nothing; use it with: facezoo generate --model stylegan2\.tiny"):
        facezoo.from_pretrained(str(whole_run / "checkpoint"))
    for call in (registry.load_class, registry.create):
        with pytest.raises(InputError, match="facezoo generate"):
            call("stylegan2")
    with pytest.raises(InputError, match="makes no people; generators: face_painter, stylegan2"):
        registry.load_generator_class("pixelation")


def test_paper_sizes():
    """Trainable parameters at 1024 pixels as NVIDIA's code prints them: 30370060 with 8 mapping layers, 29012513."""
    config = StyleGAN2TrainingConfig(resolution=1024).network
    with torch.device("meta"):
        counts = [sum(p.numel() for p in kind(config).parameters()) for kind in (Generator, Discriminator)]
    assert counts == [30_370_060, 29_012_513]
