"""Writing the code into pictures with a key, reading it back, and finding the crops that carry it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from facezoo.concealment import placement
from facezoo.concealment.phase_code import CodeLayout
from facezoo.keys import Key
from facezoo.nets.concealed_code import CELL, CodeEmbedder, CodeEncoder, CodeExtractor, Revealer

CODE_NETWORKS = ("code_encoder", "code_embedder", "code_extractor", "revealer")
"""Names of the networks in a method's checkpoint."""


class CodeNetworks(Protocol):
    """A method's networks, as far as they carry a code."""

    code_encoder: nn.Module
    code_embedder: nn.Module
    code_extractor: nn.Module
    revealer: nn.Module
    layout: CodeLayout


def add_code_networks(
    networks: nn.Module, channels: int, width: int, blocks: int, limit: float, size: int, purpose: str
) -> None:
    """Gives a method's networks the four of the code and its layout (``CodeNetworks``).

    Args:
        networks: The method's.
        channels: Phasors in each 4x4-pixel cell.
        width: Width of the networks.
        blocks: Residual blocks of reader and revealer; encoder and embedder have one less.
        limit: Largest change of a pixel, in units of the [-1, 1] range.
        size: Side of the crop in pixels.
        purpose: The method's own purpose for the key's expansions, e.g. "identity_rotation/code".
    """
    networks.code_encoder = CodeEncoder(channels, width, max(1, blocks - 1))
    networks.code_embedder = CodeEmbedder(channels, width, max(1, blocks - 1), limit)
    networks.code_extractor = CodeExtractor(channels, width, blocks)
    networks.revealer = Revealer(channels, width, blocks)
    networks.layout = CodeLayout(channels, size // CELL, purpose)  # type: ignore[assignment]


def write_code(networks: CodeNetworks, originals: Tensor, covers: Tensor, key: Key) -> Tensor:
    """Hides what the originals are recovered from in the anonymized faces; both ``(B, 3, S, S)`` in [-1, 1].

    Returns:
        The covers with the code, unclipped.
    """
    nonces = [networks.layout.face_nonce(key, crop) for crop in originals]
    angles = networks.code_encoder(originals)
    phasors = networks.layout.encrypt(angles, [key] * len(originals), nonces)
    changed: Tensor = covers + networks.code_embedder(covers, phasors)
    return changed


def read_code(networks: CodeNetworks, saved: Tensor, key: Key) -> tuple[Tensor, list[bool]]:
    """Reveals the originals of those faces ``(B, 3, S, S)`` whose code fits the key.

    Returns:
        Pictures ``(B, 3, S, S)``, unclipped; where the tag does not fit (wrong key, or a picture damaged too much), the
        saved one. And for each face whether it fits.
    """
    layout = networks.layout
    extracted = networks.code_extractor(saved)
    headers = [layout.read_header(phasors, key) for phasors in extracted]
    fits = [fit for _, fit in headers]
    result = saved.clone()
    if rows := [i for i, fit in enumerate(fits) if fit]:
        decrypted = torch.stack([layout.decrypt(extracted[i], key, headers[i][0]) for i in rows])
        result[rows] = networks.revealer(saved[rows], decrypted)
    return result, fits


def find_crops(
    networks: CodeNetworks,
    crop: Callable[[np.ndarray[Any, np.dtype[Any]]], Tensor],
    transforms: np.ndarray[Any, np.dtype[Any]],
    size: int,
) -> np.ndarray[Any, np.dtype[Any]]:
    """Finds the places of crops by the code's pilots; see ``Method.align_for_recovery``.

    A crop without readable pilots stays where the detector put it; its code will then not fit any key.

    Args:
        networks: Networks whose code the picture carries.
        crop: Transforms ``(B, 2, 3)`` -> crops on the networks' device.
        transforms: Where a detector puts the faces, ``(N, 2, 3)``.
        size: Side of the crop in pixels.
    """

    def read(moved: np.ndarray[Any, np.dtype[Any]]) -> Tensor:
        phasors: Tensor = networks.code_extractor(crop(moved)).cpu()
        return phasors

    return np.stack([placement.find(start, size, read, networks.layout) for start in transforms])
