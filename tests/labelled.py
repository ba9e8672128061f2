"""An invented labelled set, a stand-in for a recogniser, and the smallest configurations of SDN and MfM."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from facezoo.data.attributes import ATTRIBUTES
from facezoo.data.labels import label_field
from facezoo.data.packed import write_packed

NAMES = ("sex", "smiling", "hair")
SMALL: dict[str, Any] = {
    "size": 64,
    "width": 4,
    "cells": True,
    "password_bits": 8,
    "attributes": list(NAMES),
    "extractor_size": 32,
    "extractor_width": 8,
    "extractor_max_width": 16,
    "extractor_layers": 4,
    "identity_classes": 9,
    "discriminator_size": 32,
    "discriminator_width": 4,
    "discriminator_max_width": 8,
    "discriminator_layers": 3,
    "bank_entries": 4,
    "code_width": 8,
    "code_blocks": 1,
    "jpeg_share": 0.0,
    "shift_share": 0.0,
}
OURS: dict[str, Any] = {
    "extractor": "recogniser",
    "recogniser_dim": 128,
    "content_grid": 8,
    "linear_painter": True,
    "keyed_code": True,
    "norm_groups": 2,
    "style_modulation": True,
    "input_skip": True,
    "lambda_keep": 1.0,
    "lambda_tone": 1.0,
    "lambda_away": 1.0,
    "lambda_reveal_ssim": 0.1,
}
"""What the CPU recipes switch on beside the papers' networks."""


PAINTED: dict[str, Any] = {
    **{name: value for name, value in OURS.items() if name != "linear_painter"},
    "painter_generator_widths": [8, 8, 8],
    "painter_attribute_widths": [8, 8, 8],
    "painter_size": 32,
    "request_feature_strength": 3.0,
    "request_content_strength": 1.5,
}
"""The same with the face painter of ``painter_checkpoint`` in the place of the linear one."""


class FewConvolutions(nn.Module):
    """In the place of a recogniser: differentiable, and done in a moment."""

    def __init__(self, dim: int = 128) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8 * 6 * 6, dim)
        self.requires_grad_(False)

    def forward(self, faces: torch.Tensor) -> torch.Tensor:
        small = functional.interpolate(faces, size=(8, 8), mode="bilinear", antialias=True)
        return functional.normalize(self.head(torch.tanh(self.conv(small)).flatten(1)), dim=-1)


def labelled_set(path: Path, count: int = 24, size: int = 64, dim: int = 128) -> Path:
    """Invented faces of 12 people, two each, with labels of ``NAMES`` (some unknown) and vectors."""
    rng = np.random.default_rng(5)
    images = rng.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8).repeat(size // 8, 1).repeat(size // 8, 2)
    arrays: dict[str, Any] = {
        label_field(name): rng.integers(-1, len(ATTRIBUTES[name].values), count).astype(np.int16) for name in NAMES
    }
    vectors = rng.standard_normal((count, dim)).astype(np.float32)
    arrays["embedding_sface"] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    people = [f"person {i // 2:02d}" for i in range(count)]
    files = [f"{i:03d}.png" for i in range(count)]
    write_packed(path, iter(images), size=size, identities=people, files=files, arrays=arrays, source="invented")
    return path


def write_recipe(folder: Path, method: str, config: dict[str, Any], **settings: Any) -> Path:
    """A recipe with its data beside it."""
    data = folder / "set.safetensors"
    if not data.exists():
        labelled_set(data)
    path = folder / f"{method}_{len(list(folder.glob('*.yaml')))}.yaml"
    train = {"batch_size": 4, "sheet_every_batches": 100, "log_every_batches": 1, "tick_batches": 5, **settings}
    content = {"name": f"{method}.tiny", "method": method, "summary": "a test", "data": [str(data)]}
    path.write_text(json.dumps({**content, "train": train, "config": config}))
    return path


def painter_checkpoint(folder: Path, code_width: int = 8) -> Path:
    """An identity_rotation checkpoint of random networks, of the sizes of ``PAINTED``."""
    from facezoo.hub.manifest import write_checkpoint
    from facezoo.methods.identity_rotation.config import IdentityRotationConfig
    from facezoo.methods.identity_rotation.model import IdentityRotationNetworks

    torch.manual_seed(4)
    config = IdentityRotationConfig(
        size=64,
        generator_scale=2,
        identity_dim=128,
        generator_widths=(8, 8, 8),
        attribute_widths=(8, 8, 8),
        attribute_grid=8,
        linear_painter=True,
        generator_constants=True,
        conceal_width=code_width,
        conceal_blocks=1,
    )
    networks = IdentityRotationNetworks(config)
    manifest = {
        "name": "identity_rotation.tiny",
        "method": "identity_rotation",
        "summary": "untrained, for tests",
        "config": json.loads(json.dumps(dataclasses.asdict(config))),
        "crop_size": config.size,
    }
    write_checkpoint(folder, manifest, {name: part.state_dict() for name, part in networks.networks().items()})
    return folder


def untrained_checkpoint(folder: Path, method: str, **changes: Any) -> Path:
    """A checkpoint of random networks, as the CPU recipes switch them: for everything but what training brings."""
    from facezoo.core.configuration import build_strict
    from facezoo.hub.manifest import write_checkpoint
    from facezoo.methods.mfm.config import MfMConfig
    from facezoo.methods.mfm.networks import MfMNetworks
    from facezoo.methods.sdn.config import SDNConfig
    from facezoo.methods.sdn.networks import SDNNetworks

    torch.manual_seed(0)
    own: dict[str, Any] = {"generator_scale": 2, "identity_blocks": 1, "erasing_blocks": 1, "reveal_width": 4}
    own |= {"reveal_cells": True, "reveal_identity_blocks": 1, "reveal_blocks": 1}
    networks: nn.Module
    if method == "sdn":
        config: Any = build_strict(SDNConfig, {**SMALL, **OURS, **own, **changes}, "config")
        networks = SDNNetworks(config)
    else:
        blocks = {"content_blocks": 1, "decoder_blocks": 1, "classify_batches": 0}
        config = build_strict(MfMConfig, {**SMALL, **OURS, **blocks, **changes}, "config")
        networks = MfMNetworks(config)
    networks.source_bank.fit(torch.randn(40, 128), torch.Generator().manual_seed(0))
    manifest = {
        "name": f"{method}.tiny",
        "method": method,
        "summary": "untrained, for tests",
        "config": json.loads(json.dumps(dataclasses.asdict(config))),
        "crop_size": config.size,
    }
    states = {name: network.state_dict() for name, network in networks.networks().items()}
    write_checkpoint(folder, manifest, states)
    return folder
