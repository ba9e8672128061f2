"""Generators that others published: reading their files, and what a checkpoint of this package says of them.

The layouts are in `facezoo.nets.stylegan2.published`. Files are safetensors, or torch files that hold tensors only;
nothing in them is executed. NVIDIA's own ``.pkl`` files are programs and are refused: save ``G.state_dict()`` with
their code first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from facezoo.errors import CheckpointError
from facezoo.methods.stylegan2.config import StyleGAN2TrainingConfig
from facezoo.nets.stylegan2.generator import Generator
from facezoo.nets.stylegan2.published import load_published_generator

_GENERATORS = ("g_ema", "G_ema", "generator", "G", "g")
"""Under which name a training checkpoint keeps its generator; the averaged one comes first."""


def read_published(path: Path) -> Generator:
    """The generator in a published file.

    Args:
        path: A ``.safetensors`` file; or a torch file that is a state dict, rosinality's ``{"g_ema": ..., "latent_avg":
            ...}``, or pSp's ``{"state_dict": {"decoder. ..."}, "latent_avg": ...}``.

    Raises:
        CheckpointError: unreadable, not tensors only, or not a StyleGAN2.
    """
    try:
        content: Any = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    except SafetensorError as error:
        raise CheckpointError(f"{path} is no safetensors file ({error})") from error
    except Exception as error:  # zip, pickle and torch each raise their own
        raise CheckpointError(
            f"{path} is damaged, or holds more than tensors and is not read (a program could be in it); save the "
            "generator's state_dict() with the code that made it"
        ) from error
    state, mean = _generator_state(content)
    try:
        return load_published_generator(state, mean)
    except ValueError as error:
        raise CheckpointError(f"{path} cannot be used: {error}") from error


def published_manifest(network: Generator, path: Path, name: str, licence: str) -> dict[str, Any]:
    """What the manifest of a checkpoint of published weights says.

    Args:
        network: As `read_published` gives it.
        path: The file that it came from.
        name: Name of the model, ``stylegan2.tag``.
        licence: Under which the weights were published.
    """
    return {
        "name": name,
        "method": "stylegan2",
        "summary": f"people who do not exist, {network.config.resolution} px, published weights",
        "config": dataclasses.asdict(StyleGAN2TrainingConfig(**dataclasses.asdict(network.config))),
        "crop_size": network.config.resolution,
        "licence": licence,
        "training": {"source": f"published weights, file {path.name}"},
        "preprocessing": {"range": [-1, 1], "template": "that of the published training", "colour": "RGB"},
    }


def _generator_state(content: Any) -> tuple[dict[str, Tensor], Tensor | None]:
    """Finds the generator's tensors and the mean latent in what a file holds."""
    mean = content.get("latent_avg") if isinstance(content, Mapping) else None
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    for key in _GENERATORS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping):
        return {}, None
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if any(name.startswith("decoder.") for name in tensors):
        tensors = {name.removeprefix("decoder."): v for name, v in tensors.items() if name.startswith("decoder.")}
    tensors.pop("latent_avg", None)
    return tensors, mean if isinstance(mean, Tensor) else None
