"""The state dicts in which StyleGAN2s are published: rosinality's stylegan2-pytorch (also pSp) and NVIDIA's ADA code.

Both store the numbers that ours do: raw weights of unit variance that are scaled when used, convolutions the same way
round (the transposed ones too), and a [1, 3, 3, 1] filter beside them. What differs is names and shapes, so one list of
pairs translates either way. The filters that a file carries are compared with ours and not loaded.

Stored by neither, and so not found in a file: ``w_mean`` in a rosinality generator without ``latent_avg`` (it is then
estimated), and noise maps where they were left out (they stay as they are drawn here).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from facezoo.nets.stylegan2.config import StyleGAN2Config
from facezoo.nets.stylegan2.discriminator import Discriminator
from facezoo.nets.stylegan2.generator import Generator
from facezoo.nets.stylegan2.resampling import binomial_kernel

Network = TypeVar("Network", Generator, Discriminator)
Layout = Literal["rosinality", "nvidia"]
_ESTIMATE_FROM = 4096
"""Latents from which ``w_mean`` is estimated when a file has none."""


@dataclass(frozen=True)
class Pair:
    """One tensor in both layouts.

    Attributes:
        ours: name in this package's state dict.
        theirs: name in the published one.
        shape: theirs, where it is not ours.
        optional: whether published files may lack it.
    """

    ours: str
    theirs: str
    shape: tuple[int, ...] | None = None
    optional: bool = False


def generator_pairs(config: StyleGAN2Config, layout: Layout) -> list[Pair]:
    """Names of a generator's tensors in both layouts; ``w_mean`` is left to `load_published_generator`."""
    pairs: list[Pair] = []
    for i in range(config.mapping_layers):
        theirs = f"style.{i + 1}" if layout == "rosinality" else f"mapping.fc{i}"
        pairs += [Pair(f"mapping.layers.{i}.{part}", f"{theirs}.{part}") for part in ("weight", "bias")]
    channels = config.channels(4)
    if layout == "rosinality":
        pairs.append(Pair("synthesis.constant", "input.input"))
    else:
        pairs.append(Pair("synthesis.constant", "synthesis.b4.const", (channels, 4, 4)))
    noise_number = 0
    for block, size in enumerate(config.resolutions):
        ours = f"synthesis.blocks.{block}"
        inner = config.channels(size)
        for part in ("first", "second") if block else ("second",):
            inputs = config.channels(size // 2) if part == "first" else inner
            if layout == "rosinality":
                # Layers beyond the first are numbered through: convs.0 enlarges to 8 x 8, convs.1 stays there, ...
                theirs = "conv1" if block == 0 else f"convs.{2 * (block - 1) + (part == 'second')}"
                pairs += _rosinality_layer(f"{ours}.{part}", theirs, (1, inner, inputs, 3, 3))
                shape = (1, 1, size, size)
                pairs.append(Pair(f"{ours}.{part}.noise_const", f"noises.noise_{noise_number}", shape, optional=True))
                noise_number += 1
            else:
                theirs = f"synthesis.b{size}.{'conv0' if part == 'first' else 'conv1'}"
                pairs += _nvidia_layer(f"{ours}.{part}", theirs)
        if layout == "rosinality":
            theirs = "to_rgb1" if block == 0 else f"to_rgbs.{block - 1}"
            pairs += [
                Pair(f"{ours}.to_rgb.conv.weight", f"{theirs}.conv.weight", (1, 3, inner, 1, 1)),
                Pair(f"{ours}.to_rgb.conv.style.weight", f"{theirs}.conv.modulation.weight"),
                Pair(f"{ours}.to_rgb.conv.style.bias", f"{theirs}.conv.modulation.bias"),
                Pair(f"{ours}.to_rgb.bias", f"{theirs}.bias", (1, 3, 1, 1)),
            ]
        else:
            theirs = f"synthesis.b{size}.torgb"
            pairs += [
                Pair(f"{ours}.to_rgb.conv.weight", f"{theirs}.weight"),
                Pair(f"{ours}.to_rgb.conv.style.weight", f"{theirs}.affine.weight"),
                Pair(f"{ours}.to_rgb.conv.style.bias", f"{theirs}.affine.bias"),
                Pair(f"{ours}.to_rgb.bias", f"{theirs}.bias"),
            ]
    return pairs


def _rosinality_layer(ours: str, theirs: str, shape: tuple[int, ...]) -> list[Pair]:
    return [
        Pair(f"{ours}.conv.weight", f"{theirs}.conv.weight", shape),
        Pair(f"{ours}.conv.style.weight", f"{theirs}.conv.modulation.weight"),
        Pair(f"{ours}.conv.style.bias", f"{theirs}.conv.modulation.bias"),
        Pair(f"{ours}.noise_strength", f"{theirs}.noise.weight", (1,)),
        Pair(f"{ours}.bias", f"{theirs}.activate.bias"),
    ]


def _nvidia_layer(ours: str, theirs: str) -> list[Pair]:
    return [
        Pair(f"{ours}.conv.weight", f"{theirs}.weight"),
        Pair(f"{ours}.conv.style.weight", f"{theirs}.affine.weight"),
        Pair(f"{ours}.conv.style.bias", f"{theirs}.affine.bias"),
        Pair(f"{ours}.noise_strength", f"{theirs}.noise_strength"),
        Pair(f"{ours}.bias", f"{theirs}.bias"),
        Pair(f"{ours}.noise_const", f"{theirs}.noise_const", optional=True),
    ]


def discriminator_pairs(config: StyleGAN2Config, layout: Layout) -> list[Pair]:
    """Names of a discriminator's tensors in both layouts."""
    sides = list(reversed(config.resolutions[1:]))
    if layout == "rosinality":
        pairs = [Pair("from_rgb.weight", "convs.0.0.weight"), Pair("from_rgb.bias", "convs.0.1.bias")]
        for i in range(len(sides)):
            ours, theirs = f"blocks.{i}", f"convs.{i + 1}"
            pairs += [
                Pair(f"{ours}.first.weight", f"{theirs}.conv1.0.weight"),
                Pair(f"{ours}.first.bias", f"{theirs}.conv1.1.bias"),
                # A halving layer begins with its filter, so its convolution is number 1.
                Pair(f"{ours}.second.weight", f"{theirs}.conv2.1.weight"),
                Pair(f"{ours}.second.bias", f"{theirs}.conv2.2.bias"),
                Pair(f"{ours}.skip.weight", f"{theirs}.skip.1.weight"),
            ]
        last = {
            "last_conv.weight": "final_conv.0.weight",
            "last_conv.bias": "final_conv.1.bias",
            "hidden.weight": "final_linear.0.weight",
            "hidden.bias": "final_linear.0.bias",
            "logit.weight": "final_linear.1.weight",
            "logit.bias": "final_linear.1.bias",
        }
        return pairs + [Pair(ours, theirs) for ours, theirs in last.items()]
    pairs = [Pair(f"from_rgb.{part}", f"b{sides[0]}.fromrgb.{part}") for part in ("weight", "bias")]
    for i, side in enumerate(sides):
        for ours, theirs in (("first", "conv0"), ("second", "conv1")):
            pairs += [Pair(f"blocks.{i}.{ours}.{part}", f"b{side}.{theirs}.{part}") for part in ("weight", "bias")]
        pairs.append(Pair(f"blocks.{i}.skip.weight", f"b{side}.skip.weight"))
    for ours, theirs in (("last_conv", "conv"), ("hidden", "fc"), ("logit", "out")):
        pairs += [Pair(f"{ours}.{part}", f"b4.{theirs}.{part}") for part in ("weight", "bias")]
    return pairs


# ---------------------------------------------------------------------------------------------------------- reading


def layout_of(state: Mapping[str, Tensor]) -> Layout:
    """Which program wrote a state dict, generator or discriminator.

    Raises:
        ValueError: neither.
    """
    if "input.input" in state or "convs.0.0.weight" in state:
        return "rosinality"
    if "synthesis.b4.const" in state or "b4.out.weight" in state:
        return "nvidia"
    raise ValueError(
        "not a StyleGAN2 in rosinality's or NVIDIA's layout: none of input.input, convs.0.0.weight, "
        "synthesis.b4.const, b4.out.weight is in it"
    )


def load_published_generator(state: Mapping[str, Tensor], latent_mean: Tensor | None = None) -> Generator:
    """A generator from a published state dict.

    Args:
        state: Names to tensors, in either layout.
        latent_mean: ``latent_avg`` of a rosinality or pSp file, ``(w_dim,)`` or ``(num_ws, w_dim)``; None where there
            is none.

    Returns:
        The generator in float32.

    Raises:
        ValueError: not such a state dict, tensors missing, unknown or of another shape, a conditional generator, or
            another filter than [1, 3, 3, 1].
    """
    layout = layout_of(state)
    if any(name.startswith("mapping.embed") for name in state):
        raise ValueError("a generator with class labels; only unconditional ones can be loaded")
    network = _unfilled(Generator, generator_config(state, layout))
    missing = _load(network, generator_pairs(network.config, layout), state, layout, also=("mapping.w_avg",))
    if wrong := sorted(missing - {name for name in missing if name.endswith("noise_const")} - {"w_mean"}):
        raise ValueError(f"the state dict lacks {len(wrong)} tensors ({wrong[0]}, ...)")
    mean = state.get("mapping.w_avg", latent_mean)
    with torch.no_grad():
        for layer in network.synthesis.styled_layers:
            if any(name.endswith("noise_const") for name in missing):
                layer.noise_const.normal_(generator=torch.Generator().manual_seed(layer.noise_const.shape[-1]))
        if mean is None:
            z = torch.randn(_ESTIMATE_FROM, network.config.z_dim, generator=torch.Generator().manual_seed(0))
            network.w_mean.copy_(network.mapping(z).mean(0))
        else:
            network.w_mean.copy_(mean.float().reshape(-1, network.config.w_dim).mean(0))
    return network


def load_published_discriminator(state: Mapping[str, Tensor]) -> Discriminator:
    """A discriminator from a published state dict; as `load_published_generator`."""
    layout = layout_of(state)
    network = _unfilled(Discriminator, discriminator_config(state, layout))
    if wrong := sorted(_load(network, discriminator_pairs(network.config, layout), state, layout)):
        raise ValueError(f"the state dict lacks {len(wrong)} tensors ({wrong[0]}, ...)")
    return network


def generator_config(state: Mapping[str, Tensor], layout: Layout) -> StyleGAN2Config:
    """Sizes of a published generator, read from its tensors.

    Raises:
        ValueError: tensors missing, or channels that follow no ``channel_base / resolution``.
    """
    if layout == "rosinality":
        first = "style.1.weight"
        levels = 1 + _count(state, "to_rgbs.{}.conv.weight")
        widths = [_shape(state, "conv1.conv.weight")[1]]
        widths += [_shape(state, f"convs.{2 * i}.conv.weight")[1] for i in range(levels - 1)]
        layers = _count(state, "style.{}.weight", start=1)
    else:
        first = "mapping.fc0.weight"
        layers = _count(state, "mapping.fc{}.weight")
        levels = 1 + next((i for i in range(30) if f"synthesis.b{8 << i}.conv0.weight" not in state), 30)
        widths = [_shape(state, f"synthesis.b{4 << i}.conv1.weight")[0] for i in range(levels)]
    w_dim, z_dim = _shape(state, first)
    return _config(widths, z_dim=z_dim, w_dim=w_dim, mapping_layers=layers)


def discriminator_config(state: Mapping[str, Tensor], layout: Layout) -> StyleGAN2Config:
    """Sizes of a published discriminator; those of latents stay at their defaults."""
    if layout == "rosinality":
        count = _count(state, "convs.{}.conv1.0.weight", start=1)
        widths = [_shape(state, "final_conv.0.weight")[0]]
        widths += [_shape(state, f"convs.{i}.conv1.0.weight")[0] for i in range(count, 0, -1)]
    else:
        count = next((i for i in range(30) if f"b{8 << i}.conv0.weight" not in state), 30)
        widths = [_shape(state, "b4.conv.weight")[0]]
        widths += [_shape(state, f"b{8 << i}.conv0.weight")[0] for i in range(count)]
    return _config(widths)


def _config(widths: list[int], **sizes: int) -> StyleGAN2Config:
    """The sizes whose channels at 4, 8, ... are ``widths``."""
    resolution = 4 << (len(widths) - 1)
    config = StyleGAN2Config(
        resolution=resolution, channel_base=widths[-1] * resolution, channel_max=max(widths), **sizes
    )
    if [config.channels(side) for side in config.resolutions] != widths:
        raise ValueError(f"channels {widths} from 4 to {resolution} pixels are not a base divided by the resolution")
    return config


def _count(state: Mapping[str, Tensor], pattern: str, start: int = 0) -> int:
    return next(i for i in range(len(state) + 1) if pattern.format(start + i) not in state)


def _shape(state: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    if name not in state:
        raise ValueError(f"the state dict lacks {name}")
    return tuple(state[name].shape)


def _unfilled(kind: type[Network], config: StyleGAN2Config) -> Network:
    """A network whose numbers are not drawn yet: at 1024 pixels drawing takes longer than reading."""
    with torch.device("meta"):
        network = kind(config)
    return network.to_empty(device="cpu")


def _load(
    network: nn.Module, pairs: list[Pair], state: Mapping[str, Tensor], layout: Layout, also: tuple[str, ...] = ()
) -> set[str]:
    """Fills a network; returns the names of ours that the state dict has nothing for."""
    own = network.state_dict()
    loaded: dict[str, Tensor] = {}
    for pair in pairs:
        if pair.theirs not in state:
            continue
        value, wanted = state[pair.theirs], pair.shape or tuple(own[pair.ours].shape)
        if tuple(value.shape) != wanted:
            raise ValueError(f"{pair.theirs} has the shape {tuple(value.shape)} instead of {wanted}")
        loaded[pair.ours] = value.float().reshape(own[pair.ours].shape)
    unknown = sorted(set(state) - {pair.theirs for pair in pairs} - set(also))
    foreign = [name for name in unknown if not _is_filter(name, state[name], layout)]
    if foreign:
        raise ValueError(f"the state dict has {len(foreign)} unknown tensors ({foreign[0]}, ...)")
    network.load_state_dict(loaded, strict=False)
    return set(own) - set(loaded)


def _is_filter(name: str, value: Tensor, layout: Layout) -> bool:
    """Whether a tensor is the stored filter; its gain is that of enlarging by two, or none.

    Raises:
        ValueError: it is the filter's place, with another filter in it.
    """
    if not name.endswith(".kernel" if layout == "rosinality" else "resample_filter"):
        return False
    ours = binomial_kernel()
    if value.shape != ours.shape or not any(torch.allclose(value.float().cpu(), ours * gain) for gain in (1, 4)):
        raise ValueError(f"{name} is another resampling filter than [1, 3, 3, 1]")
    return True


# ---------------------------------------------------------------------------------------------------------- writing


def export_generator(network: Generator, layout: Layout) -> dict[str, Tensor]:
    """Our generator as the published programs store theirs; ``w_mean`` is in NVIDIA's layout only.

    The rosinality program keeps it beside the state dict, as ``latent_avg``.
    """
    state = _exported(network, generator_pairs(network.config, layout))
    filter_ = binomial_kernel()
    for side in network.config.resolutions:
        block = network.config.resolutions.index(side)
        if layout == "nvidia":
            for part in ("", ".conv0", ".conv1") if block else ("", ".conv1"):
                state[f"synthesis.b{side}{part}.resample_filter"] = filter_.clone()
        elif block:
            state[f"convs.{2 * (block - 1)}.conv.blur.kernel"] = filter_ * 4
            state[f"to_rgbs.{block - 1}.upsample.kernel"] = filter_ * 4
    if layout == "nvidia":
        state["mapping.w_avg"] = network.w_mean.detach().clone()
    return state


def export_discriminator(network: Discriminator, layout: Layout) -> dict[str, Tensor]:
    """Our discriminator as the published programs store theirs."""
    state = _exported(network, discriminator_pairs(network.config, layout))
    for i, side in enumerate(reversed(network.config.resolutions[1:])):
        if layout == "rosinality":
            state[f"convs.{i + 1}.conv2.0.kernel"] = binomial_kernel()
            state[f"convs.{i + 1}.skip.0.kernel"] = binomial_kernel()
        else:
            for part in (".conv0", ".conv1", ".skip", ""):
                state[f"b{side}{part}.resample_filter"] = binomial_kernel()
    if layout == "nvidia":
        for part in (f"b{network.config.resolution}.fromrgb", "b4.conv"):
            state[f"{part}.resample_filter"] = binomial_kernel()
    return state


def _exported(network: nn.Module, pairs: list[Pair]) -> dict[str, Tensor]:
    own = network.state_dict()
    return {pair.theirs: own[pair.ours].detach().clone().reshape(pair.shape or own[pair.ours].shape) for pair in pairs}
