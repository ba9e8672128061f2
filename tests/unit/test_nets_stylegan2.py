"""StyleGAN2's networks against the formulas of the papers, written out literally in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from facezoo.nets.stylegan2 import Discriminator, Generator, MappingNetwork, StyleGAN2Config, SynthesisNetwork
from facezoo.nets.stylegan2.discriminator import minibatch_std
from facezoo.nets.stylegan2.layers import EqualConv, EqualLinear, ModulatedConv, StyledLayer
from facezoo.nets.stylegan2.resampling import binomial_kernel, blur, downsample, upsample

SMALL = StyleGAN2Config(resolution=16, z_dim=6, w_dim=5, mapping_layers=2, channel_base=128, channel_max=12)
KERNEL = binomial_kernel(torch.float64)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(3)


def filtered(maps: Tensor, up: int = 1, down: int = 1, pad: tuple[int, int] = (0, 0), gain: float = 1.0) -> Tensor:
    """Zeros between pixels, zeros around, true convolution, every down-th pixel: the resampling as it is defined."""
    count, channels, height, width = maps.shape
    spread = maps.new_zeros(count, channels, height, up, width, up)
    spread[:, :, :, 0, :, 0] = maps
    spread = functional.pad(spread.reshape(count, channels, height * up, width * up), (*pad, *pad))
    kernel = KERNEL.flip(0, 1).expand(channels, 1, 4, 4) * gain
    return functional.conv2d(spread, kernel, groups=channels)[:, :, ::down, ::down]


def noisy_parameters(network: torch.nn.Module) -> None:
    """Moves every parameter off its start, so that biases and noise strengths count."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))


# ---------------------------------------------------------------- sizes
def test_latents_and_channels_of_the_published_sizes():
    paper = StyleGAN2Config(resolution=1024)
    assert [paper.channels(r) for r in paper.resolutions] == [512, 512, 512, 512, 512, 256, 128, 64, 32]
    assert [StyleGAN2Config(resolution=r).num_ws for r in (8, 64, 256, 1024)] == [4, 10, 14, 18]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"resolution": 48}, "power of two"),
        ({"resolution": 4}, "at least 8"),
        ({"w_dim": 0}, "w_dim"),
        ({"resolution": 64, "channel_base": 32}, "no channel at 64"),
    ],
)
def test_sizes_that_cannot_be_built_are_refused(wrong, says):
    with pytest.raises(ValueError, match=says):
        StyleGAN2Config(**wrong)


# ---------------------------------------------------------------- resampling
def test_resampling_is_the_binomial_filter_with_zeros_outside():
    maps = torch.randn(2, 3, 6, 8, dtype=torch.float64)
    assert torch.allclose(upsample(maps), filtered(maps, up=2, pad=(2, 1), gain=4), atol=1e-12)
    assert torch.allclose(downsample(maps), filtered(maps, down=2, pad=(1, 1)), atol=1e-12)
    assert torch.allclose(blur(maps, padding=1), filtered(maps, pad=(1, 1)), atol=1e-12)
    assert torch.allclose(blur(maps, padding=2, gain=4), filtered(maps, pad=(2, 2), gain=4), atol=1e-12)
    assert KERNEL.sum() == 1


def test_a_point_is_enlarged_to_the_filters_own_picture():
    point = torch.zeros(1, 1, 3, 3)
    point[0, 0, 1, 1] = 16.0
    line = torch.tensor([1.0, 3.0, 3.0, 1.0])
    assert torch.equal(upsample(point)[0, 0, 1:5, 1:5], torch.outer(line, line))


# ---------------------------------------------------------------- layers
def test_equalized_linear_by_hand():
    layer = EqualLinear(4, 1, bias=1.0, activate=True, learning_rate_multiplier=0.5)
    assert layer.bias.item() == 2.0  # so that times the multiplier it is 1
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 2.0, -3.0, 4.0]]))
    # sum 1 + 2 - 3 + 4 = 4, times .5 / sqrt(4) = 1, plus the bias 1; the leaky ReLU's gain is sqrt 2
    assert layer(torch.ones(1, 4)).item() == pytest.approx(2 * math.sqrt(2))
    assert layer(-torch.ones(1, 4) * 2).item() == pytest.approx(-0.2 * math.sqrt(2))


def test_equalized_weights_start_at_unit_variance_and_keep_that_of_the_input():
    layer = EqualConv(64, 256, 3, activate=False)
    assert layer.weight.std().item() == pytest.approx(1, abs=0.02)
    assert layer(torch.randn(2, 64, 12, 12))[:, :, 1:-1, 1:-1].std().item() == pytest.approx(1, abs=0.05)
    slow = EqualLinear(64, 64, learning_rate_multiplier=0.01)
    assert slow.weight.std().item() == pytest.approx(100, rel=0.05)


@pytest.mark.parametrize(("up", "kernel", "demodulate"), [(False, 3, True), (True, 3, True), (False, 1, False)])
def test_modulated_convolution_is_the_formula_of_the_paper(up, kernel, demodulate):
    """Equations 1 and 3, with weights of its own for each picture, and gradients by that way too."""
    conv = ModulatedConv(5, 7, kernel, w_dim=4, up=up, demodulate=demodulate).double()
    noisy_parameters(conv)
    maps = torch.randn(3, 5, 6, 6, dtype=torch.float64, requires_grad=True)
    w = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)

    def literal() -> Tensor:
        style = w @ (conv.style.weight / math.sqrt(4)).T + conv.style.bias
        pictures = []
        for x, s in zip(maps, style, strict=True):
            weight = conv.weight / math.sqrt(5 * kernel**2) * s[None, :, None, None]
            if demodulate:
                weight = weight / torch.sqrt(weight.square().sum((1, 2, 3), keepdim=True) + 1e-8)
            if up:
                large = functional.conv_transpose2d(x[None], weight.transpose(0, 1), stride=2)
                pictures.append(filtered(large, pad=(1, 1), gain=4))
            else:
                pictures.append(functional.conv2d(x[None], weight, padding=kernel // 2))
        return torch.cat(pictures)

    found, wanted = conv(maps, w), literal()
    assert torch.allclose(found, wanted, atol=1e-10)
    direction = torch.randn_like(wanted)
    inputs = [maps, w, conv.weight, conv.style.weight]
    for a, b in zip(
        torch.autograd.grad((found * direction).sum(), inputs),
        torch.autograd.grad((wanted * direction).sum(), inputs),
        strict=True,
    ):
        assert torch.allclose(a, b, atol=1e-9)


def test_demodulation_gives_unit_variance_whatever_the_style():
    conv = ModulatedConv(48, 64, 3, w_dim=8)
    with torch.no_grad():
        conv.style.bias.mul_(30)
    result = conv(torch.randn(4, 48, 16, 16), 5 * torch.randn(4, 8))
    assert result[:, :, 1:-1, 1:-1].std().item() == pytest.approx(1, abs=0.05)


def test_the_discriminators_halving_convolutions_are_filter_then_stride():
    maps = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    conv = EqualConv(4, 6, 3, down=True).double()
    noisy_parameters(conv)
    wanted = functional.conv2d(filtered(maps, pad=(2, 2)), conv.weight / 6, conv.bias, stride=2)
    wanted = functional.leaky_relu(wanted, 0.2) * math.sqrt(2) * 0.5
    assert torch.allclose(conv(maps, gain=0.5), wanted, atol=1e-10)
    skip = EqualConv(4, 6, 1, down=True, bias=False, activate=False).double()
    wanted = functional.conv2d(filtered(maps, pad=(1, 1)), skip.weight / 2)[:, :, ::2, ::2]
    assert torch.allclose(skip(maps, gain=0.5), wanted * 0.5, atol=1e-10)


# ---------------------------------------------------------------- generator
def test_mapping_normalises_z_and_then_applies_each_layer():
    mapping = MappingNetwork(4, 3, 2).double()
    noisy_parameters(mapping)
    z = torch.randn(5, 4, dtype=torch.float64)
    x = z / torch.sqrt(z.square().mean(1, keepdim=True) + 1e-8)
    for layer in mapping.layers:
        x = x @ (layer.weight * 0.01 / math.sqrt(layer.weight.shape[1])).T + layer.bias * 0.01
        x = torch.where(x > 0, x, 0.2 * x) * math.sqrt(2)
    assert torch.allclose(mapping(z), x, atol=1e-12)
    assert torch.allclose(mapping(7 * z), mapping(z), atol=1e-6)


def test_synthesis_uses_each_latent_where_the_paper_does():
    """Block k: first layer, second layer, colours take latents 2k - 1, 2k, 2k + 1; the smallest block 0 and 1."""
    synthesis = SynthesisNetwork(SMALL).double()
    noisy_parameters(synthesis)
    ws = torch.randn(2, SMALL.num_ws, SMALL.w_dim, dtype=torch.float64)
    small, middle, large = synthesis.blocks
    x = synthesis.constant.expand(2, -1, -1, -1)

    def layer(module: StyledLayer, maps: Tensor, w: Tensor) -> Tensor:
        maps = module.conv(maps, w) + module.noise_strength * module.noise_const
        maps = maps + module.bias[None, :, None, None]
        return torch.where(maps > 0, maps, 0.2 * maps) * math.sqrt(2)

    def colours(block, maps: Tensor, w: Tensor) -> Tensor:
        return block.to_rgb.conv(maps, w) + block.to_rgb.bias[None, :, None, None]

    x = layer(small.second, x, ws[:, 0])
    picture = colours(small, x, ws[:, 1])
    x = layer(middle.second, layer(middle.first, x, ws[:, 1]), ws[:, 2])
    picture = filtered(picture, up=2, pad=(2, 1), gain=4) + colours(middle, x, ws[:, 3])
    half = picture
    x = layer(large.second, layer(large.first, x, ws[:, 3]), ws[:, 4])
    whole = filtered(picture, up=2, pad=(2, 1), gain=4) + colours(large, x, ws[:, 5])
    assert torch.allclose(synthesis(ws), whole, atol=1e-10)
    assert torch.allclose(synthesis(ws, resolution=8), half, atol=1e-10)
    faded = filtered(picture, up=2, pad=(2, 1), gain=4) + 0.25 * colours(large, x, ws[:, 5])
    assert torch.allclose(synthesis(ws, fade=0.25), faded, atol=1e-10)


def test_noise_is_stored_drawn_given_or_absent():
    synthesis = SynthesisNetwork(SMALL)
    ws = torch.randn(3, SMALL.num_ws, SMALL.w_dim)
    assert torch.equal(synthesis(ws, "random"), synthesis(ws, "none"))  # strengths start at zero
    with torch.no_grad():
        for layer in synthesis.styled_layers:
            layer.noise_strength.fill_(0.5)
    assert torch.equal(synthesis(ws), synthesis(ws))
    assert not torch.allclose(synthesis(ws), synthesis(ws, "none"))
    rng = torch.Generator().manual_seed(5)
    drawn = synthesis(ws, "random", rng)
    again = torch.Generator().manual_seed(5)
    maps = [torch.randn(3, 1, size, size, generator=again) for size in synthesis.noise_sizes]
    assert torch.equal(synthesis(ws, maps), drawn)
    assert not torch.allclose(synthesis(ws, "random", rng), drawn)
    with pytest.raises(ValueError, match="5 layers take noise, but 4"):
        synthesis(ws, maps[:4])
    with pytest.raises(ValueError, match="'const', 'random'"):
        synthesis(ws, "loud")
    with pytest.raises(ValueError, match=r"ws must be \(B, 6, 5\)"):
        synthesis(ws[:, :5])


def test_truncation_moves_w_towards_its_mean_in_the_layers_asked_for():
    generator = Generator(SMALL)
    generator.w_mean.copy_(torch.randn(SMALL.w_dim))
    z = torch.randn(4, SMALL.z_dim)
    w = generator.mapping(z)
    assert torch.equal(generator.w(z)[:, 3], w)
    near = generator.w_mean + 0.3 * (w - generator.w_mean)
    assert torch.allclose(generator.w(z, 0.3)[:, 5], near, atol=1e-6)
    some = generator.w(z, 0.3, cutoff=2)
    assert torch.allclose(some[:, 1], near, atol=1e-6)
    assert torch.equal(some[:, 2], w)
    assert torch.allclose(generator(z, 0.0)[0], generator(z, 0.0)[3], atol=1e-6)


def test_the_mean_w_is_a_moving_average():
    generator = Generator(SMALL)
    for value in (1.0, 3.0):
        generator.move_w_mean(torch.full((SMALL.w_dim,), value), 0.9)
    assert torch.allclose(generator.w_mean, torch.full((SMALL.w_dim,), 0.1 * 0.9 + 0.3))
    assert "w_mean" in generator.state_dict()


# ---------------------------------------------------------------- discriminator
def test_minibatch_standard_deviation_by_hand():
    """Four pictures in two groups of two: 0 with 2, 1 with 3."""
    maps = torch.tensor([1.0, 10.0, 5.0, 10.0]).reshape(4, 1, 1, 1).repeat(1, 2, 3, 3)
    result = minibatch_std(maps, 2)
    assert result.shape == (4, 3, 3, 3)
    assert torch.equal(result[:, :2], maps)
    assert result[:, 2, 0, 0].tolist() == pytest.approx([2.0, 1e-4, 2.0, 1e-4])
    assert minibatch_std(maps[:1], 4)[0, 2].max().item() == pytest.approx(1e-4)
    with pytest.raises(ValueError, match="4 does not divide into groups of 3"):
        minibatch_std(maps, 3)


def test_shares_of_several_processes_form_the_same_groups():
    maps = torch.randn(16, 3, 2, 2)
    whole = minibatch_std(maps, 4)
    for rank in range(2):
        assert torch.allclose(minibatch_std(maps[rank::2], 4), whole[rank::2])


def test_discriminator_by_its_drawing():
    """Figure 7c: each block is two convolutions beside a filtered 1 x 1 skip, their sum over the root of two."""
    config = StyleGAN2Config(resolution=8, channel_base=64, channel_max=6, minibatch_std_group=2)
    network = Discriminator(config).double()
    noisy_parameters(network)
    pictures = torch.randn(4, 3, 8, 8, dtype=torch.float64)

    def conv(x: Tensor, weight: Tensor, bias: Tensor, **options: int) -> Tensor:
        weight = weight / math.sqrt(weight[0].numel())
        return functional.leaky_relu(functional.conv2d(x, weight, bias, **options), 0.2) * math.sqrt(2)

    x = conv(pictures, network.from_rgb.weight, network.from_rgb.bias)
    block = network.blocks[0]
    y = conv(x, block.first.weight, block.first.bias, padding=1)
    y = conv(filtered(y, pad=(2, 2)), block.second.weight, block.second.bias, stride=2)
    skip = functional.conv2d(filtered(x, pad=(1, 1), down=2), block.skip.weight / math.sqrt(6))
    x = minibatch_std((y + skip) / math.sqrt(2), 2)
    x = conv(x, network.last_conv.weight, network.last_conv.bias, padding=1).flatten(1)
    x = x @ (network.hidden.weight / math.sqrt(96)).T + network.hidden.bias
    x = functional.leaky_relu(x, 0.2) * math.sqrt(2)
    wanted = x @ (network.logit.weight / math.sqrt(6)).T + network.logit.bias
    assert torch.allclose(network(pictures), wanted[:, 0], atol=1e-10)


def test_growing_entries_of_the_discriminator():
    network = Discriminator(SMALL, entries=(8,)).double()
    pictures = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    small = downsample(pictures)
    # Nothing of the new block: what the half-size discriminator says of the half-size pictures.
    assert torch.allclose(network(pictures, fade=0.0), network(small), atol=1e-10)
    assert not torch.allclose(network(pictures), network(small))
    with pytest.raises(ValueError, match="4 pixels cannot enter"):
        network(torch.zeros(4, 3, 4, 4, dtype=torch.float64))


# ---------------------------------------------------------------- derivatives, formats
def test_second_derivatives_of_both_networks():
    """R1 and path length differentiate a gradient: checked by finite differences of the parameters."""
    config = StyleGAN2Config(
        resolution=8, z_dim=3, w_dim=3, mapping_layers=1, channel_base=16, channel_max=2, minibatch_std_group=2
    )
    network, generator = Discriminator(config).double(), Generator(config).double()
    noisy_parameters(network), noisy_parameters(generator)
    pictures = torch.randn(2, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    ws = torch.randn(2, config.num_ws, 3, dtype=torch.float64, requires_grad=True)
    direction = torch.randn(2, 3, 8, 8, dtype=torch.float64)

    def r1() -> Tensor:
        (gradient,) = torch.autograd.grad(network(pictures).sum(), pictures, create_graph=True)
        return gradient.square().sum()

    def path() -> Tensor:
        (gradient,) = torch.autograd.grad((generator.synthesis(ws) * direction).sum(), ws, create_graph=True)
        return gradient.square().sum()

    layer = generator.synthesis.blocks[1].first
    for penalty, parameter in (
        (r1, network.blocks[0].first.weight),
        (r1, network.from_rgb.weight),
        (path, layer.conv.weight),
        (path, layer.conv.style.weight),
    ):
        (exact,) = torch.autograd.grad(penalty(), parameter)
        step = torch.randn_like(parameter)
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.add_(sign * 1e-5 * step)
            values.append(penalty().item())
            with torch.no_grad():
                parameter.sub_(sign * 1e-5 * step)
        assert (values[0] - values[1]) / 2e-5 == pytest.approx((exact * step).sum().item(), rel=1e-4)


def test_channels_last_changes_nothing():
    generator, network = Generator(SMALL), Discriminator(SMALL)
    z = torch.randn(4, SMALL.z_dim)
    pictures = generator(z)
    logits = network(pictures)
    generator.to(memory_format=torch.channels_last), network.to(memory_format=torch.channels_last)
    assert torch.allclose(generator(z), pictures, atol=1e-5)
    assert torch.allclose(network(pictures), logits, atol=1e-5)


@pytest.mark.parametrize("resolution", [8, 32, 128])
def test_any_power_of_two(resolution):
    config = StyleGAN2Config(
        resolution=resolution, z_dim=8, w_dim=8, mapping_layers=1, channel_base=4 * resolution, channel_max=8
    )
    pictures = Generator(config)(torch.randn(4, 8))
    assert pictures.shape == (4, 3, resolution, resolution)
    assert pictures.std().item() < 3
    assert Discriminator(config)(pictures).shape == (4,)
