"""Published state dicts: every name and shape at 256 and 1024, and the pictures that the published programs would draw.

The programs themselves are written out literally here, in float64, from what their layouts mean: one kernel a picture,
the stored filter applied by zeros, padding and a convolution.
"""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from facezoo.errors import CheckpointError
from facezoo.generate import load_generator
from facezoo.methods.stylegan2.published import read_published
from facezoo.nets.stylegan2 import Discriminator, Generator, StyleGAN2Config
from facezoo.nets.stylegan2.discriminator import minibatch_std
from facezoo.nets.stylegan2.published import (
    export_discriminator,
    export_generator,
    layout_of,
    load_published_discriminator,
    load_published_generator,
)

SMALL = StyleGAN2Config(resolution=16, z_dim=6, w_dim=5, mapping_layers=3, channel_base=128, channel_max=12)
both_layouts = pytest.mark.parametrize("layout", ["rosinality", "nvidia"])


def shaken(network: torch.nn.Module) -> torch.nn.Module:
    with torch.no_grad():
        for value in (*network.parameters(), *network.buffers()):
            value.add_(0.3 * torch.randn_like(value))
    return network


@pytest.fixture
def generator() -> Generator:
    torch.manual_seed(1)
    return shaken(Generator(SMALL))


# ------------------------------------------------------------------------------- the published programs, literally
def filtered(x: Tensor, kernel: Tensor, pad: tuple[int, int], up: int = 1, down: int = 1) -> Tensor:
    count, channels, height, width = x.shape
    spread = x.new_zeros(count, channels, height, up, width, up)
    spread[:, :, :, 0, :, 0] = x
    spread = functional.pad(spread.reshape(count, channels, height * up, width * up), (*pad, *pad))
    kernel = kernel.to(x).flip(0, 1).expand(channels, 1, 4, 4)
    return functional.conv2d(spread, kernel, groups=channels)[:, :, ::down, ::down]


def lrelu(x: Tensor) -> Tensor:
    return functional.leaky_relu(x, 0.2) * math.sqrt(2)


def linear(x: Tensor, state: dict[str, Tensor], name: str, multiplier: float = 1.0) -> Tensor:
    weight = state[f"{name}.weight"].double() * multiplier / math.sqrt(x.shape[1])
    return x @ weight.T + state[f"{name}.bias"].double() * multiplier


def rosinality_picture(state: dict[str, Tensor], z: Tensor) -> Tensor:
    """Generator.forward of stylegan2-pytorch with stored noise and no truncation."""
    w = z / torch.sqrt(z.square().mean(1, keepdim=True) + 1e-8)
    for i in range(1, 1 + SMALL.mapping_layers):
        w = lrelu(linear(w, state, f"style.{i}", 0.01))

    def modulated(x: Tensor, name: str, demodulate: bool = True) -> Tensor:
        weight = state[f"{name}.weight"].double()
        style = linear(w, state, f"{name}.modulation")
        weight = weight / math.sqrt(weight[0, 0].numel()) * style[:, None, :, None, None]
        if demodulate:
            weight = weight * torch.rsqrt(weight.square().sum((2, 3, 4), keepdim=True) + 1e-8)
        pictures = []
        for one, kernel in zip(x, weight, strict=True):
            if f"{name}.blur.kernel" in state:
                y = functional.conv_transpose2d(one[None], kernel.transpose(0, 1), stride=2)
                pictures.append(filtered(y, state[f"{name}.blur.kernel"], (1, 1)))
            else:
                pictures.append(functional.conv2d(one[None], kernel, padding=kernel.shape[-1] // 2))
        return torch.cat(pictures)

    def styled(x: Tensor, name: str, number: int) -> Tensor:
        x = modulated(x, f"{name}.conv")
        x = x + state[f"{name}.noise.weight"].double() * state[f"noises.noise_{number}"].double()
        return lrelu(x + state[f"{name}.activate.bias"].double()[None, :, None, None])

    def colours(x: Tensor, name: str) -> Tensor:
        return modulated(x, f"{name}.conv", demodulate=False) + state[f"{name}.bias"].double()

    x = state["input.input"].double().repeat(len(z), 1, 1, 1)
    x = styled(x, "conv1", 0)
    picture = colours(x, "to_rgb1")
    for i in range(2):
        x = styled(x, f"convs.{2 * i}", 2 * i + 1)
        x = styled(x, f"convs.{2 * i + 1}", 2 * i + 2)
        picture = filtered(picture, state[f"to_rgbs.{i}.upsample.kernel"], (2, 1), up=2)
        picture = picture + colours(x, f"to_rgbs.{i}")
    return picture


def nvidia_picture(state: dict[str, Tensor], z: Tensor) -> Tensor:
    """Generator.forward of stylegan2-ada-pytorch with noise_mode="const"; its convolutions keep the weights raw."""
    w = z / torch.sqrt(z.square().mean(1, keepdim=True) + 1e-8)
    for i in range(SMALL.mapping_layers):
        w = lrelu(linear(w, state, f"mapping.fc{i}", 0.01))

    def modulated(x: Tensor, name: str, up: bool, demodulate: bool) -> Tensor:
        weight = state[f"{name}.weight"].double()
        style = linear(w, state, f"{name}.affine")
        if not demodulate:
            style = style / math.sqrt(weight[0].numel())
        pictures = []
        for one, s in zip(x, style, strict=True):
            kernel = weight * s[None, :, None, None]
            if demodulate:
                kernel = kernel * torch.rsqrt(kernel.square().sum((1, 2, 3), keepdim=True) + 1e-8)
            if up:
                y = functional.conv_transpose2d(one[None], kernel.transpose(0, 1), stride=2)
                pictures.append(filtered(y, state[f"{name}.resample_filter"] * 4, (1, 1)))
            else:
                pictures.append(functional.conv2d(one[None], kernel, padding=kernel.shape[-1] // 2))
        return torch.cat(pictures)

    def styled(x: Tensor, name: str, up: bool) -> Tensor:
        x = modulated(x, name, up, demodulate=True)
        x = x + state[f"{name}.noise_const"].double() * state[f"{name}.noise_strength"].double()
        return lrelu(x + state[f"{name}.bias"].double()[None, :, None, None])

    picture = None
    x = state["synthesis.b4.const"].double().repeat(len(z), 1, 1, 1)
    for size in (4, 8, 16):
        block = f"synthesis.b{size}"
        if size > 4:
            x = styled(x, f"{block}.conv0", up=True)
        x = styled(x, f"{block}.conv1", up=False)
        colours = modulated(x, f"{block}.torgb", up=False, demodulate=False)
        colours = colours + state[f"{block}.torgb.bias"].double()[None, :, None, None]
        if picture is None:
            picture = colours
        else:
            picture = filtered(picture, state[f"{block}.resample_filter"] * 4, (2, 1), up=2) + colours
    return picture


def logits(state: dict[str, Tensor], pictures: Tensor, layout: str) -> Tensor:
    """Both programs' residual discriminator at 16 pixels."""

    def conv(x: Tensor, weight: str, bias: str | None, kernel: str | None = None) -> Tensor:
        w = state[weight].double() / math.sqrt(state[weight][0].numel())
        if kernel is not None and w.shape[-1] == 3:
            x = functional.conv2d(filtered(x, state[kernel], (2, 2)), w, stride=2)
        elif kernel is not None:
            x = functional.conv2d(filtered(x, state[kernel], (1, 1)), w, stride=2)
        else:
            x = functional.conv2d(x, w, padding=w.shape[-1] // 2)
        return x if bias is None else lrelu(x + state[bias].double()[None, :, None, None])

    if layout == "rosinality":
        x = conv(pictures, "convs.0.0.weight", "convs.0.1.bias")
        for i in (1, 2):
            y = conv(x, f"convs.{i}.conv1.0.weight", f"convs.{i}.conv1.1.bias")
            y = conv(y, f"convs.{i}.conv2.1.weight", f"convs.{i}.conv2.2.bias", f"convs.{i}.conv2.0.kernel")
            x = (y + conv(x, f"convs.{i}.skip.1.weight", None, f"convs.{i}.skip.0.kernel")) / math.sqrt(2)
        x = conv(minibatch_std(x, 4), "final_conv.0.weight", "final_conv.1.bias").flatten(1)
        return linear(lrelu(linear(x, state, "final_linear.0")), state, "final_linear.1")[:, 0]
    x = conv(pictures, "b16.fromrgb.weight", "b16.fromrgb.bias")
    for side in (16, 8):
        y = conv(x, f"b{side}.conv0.weight", f"b{side}.conv0.bias")
        y = conv(y, f"b{side}.conv1.weight", f"b{side}.conv1.bias", f"b{side}.conv1.resample_filter")
        x = (y + conv(x, f"b{side}.skip.weight", None, f"b{side}.skip.resample_filter")) * math.sqrt(0.5)
    x = conv(minibatch_std(x, 4), "b4.conv.weight", "b4.conv.bias").flatten(1)
    return linear(lrelu(linear(x, state, "b4.fc")), state, "b4.out")[:, 0]


@both_layouts
def test_a_published_file_draws_what_its_own_program_would(layout, generator):
    state = export_generator(generator, layout)
    again = load_published_generator(state, generator.w_mean.repeat(SMALL.num_ws, 1)).double()
    z = torch.randn(3, SMALL.z_dim, dtype=torch.float64)
    wanted = (rosinality_picture if layout == "rosinality" else nvidia_picture)(state, z)
    assert torch.allclose(again(z), wanted, atol=1e-6)
    assert wanted.std() > 0.1
    for name, value in generator.state_dict().items():
        assert torch.allclose(again.state_dict()[name].float(), value, atol=1e-6), name


@both_layouts
def test_a_published_discriminator_says_what_its_own_program_would(layout):
    torch.manual_seed(2)
    network = shaken(Discriminator(SMALL))
    state = export_discriminator(network, layout)
    again = load_published_discriminator(state).double()
    pictures = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    assert torch.allclose(again(pictures), logits(state, pictures, layout), atol=1e-9)


# ------------------------------------------------------------------------------------------------- published sizes
# From the programs' own definitions: names and shapes at the ends of the lists.
SHAPES = {
    ("rosinality", 256): {
        "convs.10.conv.weight": (1, 128, 256, 3, 3),
        "convs.11.conv.weight": (1, 128, 128, 3, 3),
        "convs.10.conv.blur.kernel": (4, 4),
        "noises.noise_12": (1, 1, 256, 256),
        "to_rgbs.5.upsample.kernel": (4, 4),
        "to_rgbs.5.bias": (1, 3, 1, 1),
        "style.8.weight": (512, 512),
    },
    ("rosinality", 1024): {
        "convs.14.conv.weight": (1, 32, 64, 3, 3),
        "convs.15.conv.modulation.weight": (32, 512),
        "to_rgbs.7.conv.weight": (1, 3, 32, 1, 1),
        "conv1.noise.weight": (1,),
    },
    ("nvidia", 256): {
        "synthesis.b256.conv0.weight": (128, 256, 3, 3),
        "synthesis.b256.conv1.noise_const": (256, 256),
        "synthesis.b4.const": (512, 4, 4),
        "mapping.fc7.bias": (512,),
        "mapping.w_avg": (512,),
    },
    ("nvidia", 1024): {
        "synthesis.b1024.conv1.affine.weight": (32, 512),
        "synthesis.b1024.conv1.noise_strength": (),
        "synthesis.b1024.torgb.weight": (3, 32, 1, 1),
    },
}


def generated(config: StyleGAN2Config) -> Generator:
    """A generator of a published size; a number of its own fills each tensor, which is faster than drawing them."""
    with torch.device("meta"):
        network = Generator(config)
    network.to_empty(device="cpu")
    with torch.no_grad():
        for number, value in enumerate((*network.parameters(), *network.buffers())):
            value.fill_(number / 64)
    return network


@pytest.mark.parametrize(("layout", "resolution"), list(SHAPES))
def test_files_of_the_published_sizes(layout, resolution, tmp_path):
    network = generated(StyleGAN2Config(resolution=resolution))
    state = export_generator(network, layout)
    for name, shape in SHAPES[layout, resolution].items():
        assert tuple(state[name].shape) == shape, name
    if layout == "rosinality":
        path = tmp_path / "stylegan2.pt"
        torch.save({"g_ema": state, "latent_avg": network.w_mean}, path)
    else:
        path = tmp_path / "stylegan2.safetensors"
        save_file(state, path)
    del state
    again = read_published(path)
    assert again.config == StyleGAN2Config(resolution=resolution)
    wanted, found = network.state_dict(), again.state_dict()
    assert found.keys() == wanted.keys()
    different = [name for name in wanted if not torch.allclose(found[name], wanted[name], atol=1e-6)]
    assert different == []


def test_published_discriminators_at_1024_have_the_names_of_both_programs():
    with torch.device("meta"):
        network = Discriminator(StyleGAN2Config(resolution=1024))
    rosinality, nvidia = (export_discriminator(network, layout) for layout in ("rosinality", "nvidia"))
    assert tuple(rosinality["convs.8.conv2.1.weight"].shape) == (512, 512, 3, 3)
    assert tuple(rosinality["convs.1.skip.1.weight"].shape) == (64, 32, 1, 1)
    assert tuple(rosinality["final_conv.0.weight"].shape) == (512, 513, 3, 3)
    assert tuple(nvidia["b1024.fromrgb.weight"].shape) == (32, 3, 1, 1)
    assert tuple(nvidia["b4.fc.weight"].shape) == (512, 8192)
    assert "convs.9.conv1.0.weight" not in rosinality
    assert "b512.fromrgb.weight" not in nvidia


# ------------------------------------------------------------------------------------------------ files, odd and wrong
def test_files_as_psp_and_trainings_write_them(generator, tmp_path):
    state = export_generator(generator, "rosinality")
    mean = generator.w_mean
    contents = {
        "plain.pt": state,
        "training.pt": {"g_ema": state, "g": {}, "d": {}, "latent_avg": mean},
        "psp.pt": {
            "state_dict": {"encoder.x": torch.zeros(1), **{f"decoder.{k}": v for k, v in state.items()}},
            "latent_avg": mean.repeat(SMALL.num_ws, 1),
        },
    }
    for name, content in contents.items():
        torch.save(content, tmp_path / name)
        again = read_published(tmp_path / name)
        assert torch.equal(again.synthesis.constant, generator.synthesis.constant), name
        if name != "plain.pt":
            assert torch.allclose(again.w_mean, mean), name
    # Without a mean in the file it is that of many latents: nearer than any single one.
    plain = read_published(tmp_path / "plain.pt")
    w = plain.mapping(torch.randn(2000, SMALL.z_dim))
    assert (plain.w_mean - w.mean(0)).norm() < 0.1 * w.std(0).norm()


def test_noise_maps_may_be_missing(generator):
    state = {k: v for k, v in export_generator(generator, "nvidia").items() if not k.endswith("noise_const")}
    again = load_published_generator(state)
    assert torch.equal(again.synthesis.constant, generator.synthesis.constant)


@both_layouts
def test_what_does_not_fit_is_refused(layout, generator):
    state = export_generator(generator, layout)
    weight = "convs.1.conv.weight" if layout == "rosinality" else "synthesis.b8.conv1.weight"
    kernel = next(name for name in state if name.endswith(("kernel", "resample_filter")))
    assert layout_of(state) == layout
    for changed, says in (
        ({k: v for k, v in state.items() if k != weight}, "lacks"),
        ({**state, "surplus.weight": torch.zeros(2)}, r"1 unknown tensors \(surplus.weight"),
        ({**state, weight: state[weight][..., :2]}, "has the shape"),
        ({**state, kernel: torch.ones(4, 4) / 16}, "another resampling filter"),
        ({**state, "mapping.embed.weight": torch.zeros(2)}, "class labels"),
        ({"weight": torch.zeros(3)}, "not a StyleGAN2"),
    ):
        with pytest.raises(ValueError, match=says):
            load_published_generator(changed)


def test_channels_that_follow_no_rule_are_refused():
    odd = StyleGAN2Config(resolution=16, z_dim=6, w_dim=5, mapping_layers=1, channel_base=64, channel_max=12)
    state = export_generator(Generator(odd), "nvidia")  # 12, 8, 4 channels
    state["synthesis.b8.conv1.weight"] = torch.zeros(7, 7, 3, 3)
    with pytest.raises(ValueError, match=r"channels \[12, 7, 4\]"):
        load_published_generator(state)


def test_unreadable_files_are_one_line_and_nothing_is_executed(tmp_path):
    class Harmful:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    torch.save({"g_ema": Harmful()}, tmp_path / "harmful.pt")
    (tmp_path / "cut.safetensors").write_bytes(b"12")
    torch.save([1, 2], tmp_path / "list.pt")
    for name, says in (
        ("harmful.pt", "more than tensors"),
        ("cut.safetensors", "no safetensors file"),
        ("missing.pt", "cannot read"),
        ("list.pt", "not a StyleGAN2"),
    ):
        with pytest.raises(CheckpointError, match=says):
            read_published(tmp_path / name)
    assert not (tmp_path / "executed").exists()


def test_the_script_makes_a_checkpoint_that_generates(generator, tmp_path, repository):
    state = export_generator(generator, "nvidia")
    save_file(state, tmp_path / "published.safetensors")
    words = [tmp_path / "published.safetensors", "-o", tmp_path / "out", "--name", "stylegan2.other", "--licence", "X"]
    script = [sys.executable, repository / "scripts" / "convert_stylegan2.py", *words]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    people, title = load_generator(str(tmp_path / "out"))
    assert title.startswith("stylegan2.other")
    z = torch.randn(1, SMALL.z_dim, generator=torch.Generator().manual_seed(3))
    assert torch.allclose(people.person(3, 0.5), generator(z, 0.5)[0].clamp(-1, 1), atol=1e-5)
    again = subprocess.run(script, capture_output=True, text=True, check=False)
    assert again.returncode == 7
    assert again.stderr.startswith("facezoo: error: ")
