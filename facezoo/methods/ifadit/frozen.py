"""The frozen networks that iFADIT's losses look through, and the generator: where they are found and how they are read.

None of them is shipped here. Nothing is skipped in silence: a loss with a weight above 0 whose network is not found is
an error that names the setting and the file.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from facezoo.errors import CheckpointError, InputError
from facezoo.files import sha256_file
from facezoo.frozen import PEPPA, fill, load_landmarks, load_lpips, load_parser, lpips_remedy, read_state
from facezoo.methods.ifadit.config import IFaditConfig
from facezoo.nets.stylegan2.generator import Generator

UNTRAINED: Final = "untrained"


# ---------------------------------------------------------------------- generator
def load_generator(network: Generator, config: IFaditConfig) -> None:
    """Fills the generator from the checkpoint folder that the configuration names.

    Raises:
        InputError: no folder is named.
        CheckpointError: it is damaged, of another method or of other sizes.
    """
    if config.generator == UNTRAINED:
        return
    if not config.generator:
        raise InputError(
            "iFADIT is trained on a trained generator: set config.generator to a checkpoint folder of stylegan2 "
            "(facezoo train recipes/stylegan2/faces64_cpu.yaml makes one)"
        )
    folder = Path(config.generator)
    try:
        manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        sizes, entry = dict(manifest["config"]), manifest["files"]["generator.safetensors"]
        method, digest = manifest["method"], entry["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder} is no checkpoint folder of stylegan2 ({error}); set config.generator to one"
        ) from error
    if method != "stylegan2":
        raise CheckpointError(f"{folder} holds {method}, not stylegan2; set config.generator to a stylegan2 checkpoint")
    wanted = dataclasses.asdict(config.generator_config)
    names = {"resolution": "generator_resolution"}
    for name in ("resolution", "z_dim", "w_dim", "mapping_layers", "channel_base", "channel_max"):
        if sizes.get(name) != wanted[name]:
            raise CheckpointError(
                f"{folder} has {name} {sizes.get(name)} and the recipe says {wanted[name]}; "
                f"set config.{names.get(name, name)}={sizes.get(name)}"
            )
    noise = sizes.get("sampling_noise", "const")
    if noise != config.generator_noise:
        raise CheckpointError(
            f"{folder} draws with noise maps {noise!r} and the recipe with {config.generator_noise!r}; "
            f"set config.generator_noise={noise}"
        )
    path = folder / "generator.safetensors"
    if not path.is_file() or sha256_file(path) != digest:
        raise CheckpointError(f"{path} is missing or damaged (its SHA-256 is not the manifest's); get a fresh copy")
    fill(network, {name: value.float() for name, value in read_state(path).items()}, path, "generator of these sizes")


# ---------------------------------------------------------------------- losses
def _refuse(config: IFaditConfig, network: Any, remedy: str) -> InputError:
    settings = ", ".join(f"config.{name}" for name in config.needs(network))
    return InputError(f"{settings} need {remedy}, or set the weight to 0")


@dataclasses.dataclass(frozen=True)
class LossNetworks:
    """What the losses look through; None where the configuration has no use for it."""

    landmarks: nn.Module | None
    lpips: nn.Module | None
    parser: nn.Module | None

    def to(self, device: torch.device) -> LossNetworks:
        """Moves the networks; returns them."""
        for network in (self.landmarks, self.lpips, self.parser):
            if network is not None:
                network.to(device)
        return self


def load_loss_networks(config: IFaditConfig) -> LossNetworks:
    """Loads what the configuration's weights ask for.

    Raises:
        InputError: a weight is above 0 and its network is not found.
        CheckpointError: a file is something else.
    """
    landmarks = load_landmarks(config.landmarks) if config.needs("landmarks") else None
    if config.needs("landmarks") and landmarks is None:
        raise _refuse(config, "landmarks", f"the landmark network: put {PEPPA} into a folder and set FACEZOO_WEIGHTS")
    perceptual = load_lpips(config.lpips, config.lpips_net) if config.needs("lpips") else None
    if config.needs("lpips") and perceptual is None:
        raise _refuse(config, "lpips", f"LPIPS with {lpips_remedy(config.lpips_net)}, or set config.lpips=FILE")
    parser = load_parser(config.parser) if config.needs("parser") else None
    if config.needs("parser") and parser is None:
        raise _refuse(config, "parser", "a face parser: set config.parser=FILE (BiSeNet, 19 classes)")
    return LossNetworks(landmarks, perceptual, parser)
