"""The phase in which a method's networks learn to write a code into finished covers and to read it back."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from facezoo.concealment.code import CodeNetworks
from facezoo.concealment.config import ConcealConfig
from facezoo.core import saved_file
from facezoo.core.phases import PhasedModule
from facezoo.nets.concealed_code import to_phasors, turn

_BEGINNING = 0.1
"""Part of the phase in which the reader is helped and files stay clean."""


def conceal_step(
    module: PhasedModule,
    networks: CodeNetworks,
    config: ConcealConfig,
    optimizer: Any,
    faces: Tensor,
    cover: Tensor,
) -> dict[str, Tensor]:
    """Trains the four networks of the code on one batch.

    Args:
        module: Whose clock, random numbers and backward pass are used.
        networks: The method's networks.
        config: Weights, files and length of the phase.
        optimizer: Of the four networks.
        faces: Originals ``(B, 3, S, S)`` in [-1, 1].
        cover: The same faces anonymized, without a gradient.

    Returns:
        What to log, detached.
    """
    c, layout = config, networks.layout
    whole = len(faces) * module.world_size
    rng = module.generator_for("stream")
    stream = module.share(torch.rand(whole, layout.channels, layout.side, layout.side, generator=rng)) * 2 * math.pi
    position = module.locate(module.batches_seen)[1]
    with optimizer.toggle_model():
        angles = networks.code_encoder(faces)
        encrypted = angles + stream
        flat = encrypted.flatten(1).clone()
        flat[:, layout.pilots] = layout.pilot_angles.to(flat)
        phasors = to_phasors(flat.view_as(encrypted))
        residual = networks.code_embedder(cover, phasors)
        saved = _saved(module, c, cover + residual, clean=position < _BEGINNING * c.conceal_batches)
        extracted = networks.code_extractor(saved)
        extract = functional.mse_loss(extracted, phasors)
        mask = layout.payload_mask.to(faces.device).repeat(2, 1, 1)
        # Early on the reader is still blind; a part of the batch is given the true phasors with noise instead, so
        # that code encoder and revealer learn meanwhile.
        help_share = max(0.0, 1 - position / max(1.0, _BEGINNING * c.conceal_batches))
        helped = module.share(torch.rand(whole, generator=rng) < help_share)
        noisy = phasors + 0.3 * module.share(torch.randn(whole, *phasors.shape[1:], generator=rng))
        read = torch.where(helped[:, None, None, None], noisy, extracted)
        revealed = networks.revealer(saved, turn(read, -stream) * mask)
        l1, dissimilarity = saved_file.reveal_loss(revealed, faces)
        change = residual.square().mean()
        total = (
            c.lambda_extract * extract
            + c.lambda_reveal * l1
            + c.lambda_reveal_ssim * dissimilarity
            + c.lambda_residual * change
        )
        optimizer.zero_grad()
        module.manual_backward(total)
        module.clip_gradients(optimizer, gradient_clip_val=1.0, gradient_clip_algorithm="norm")
        optimizer.step()
    psnr = -10 * torch.log10(functional.mse_loss(revealed.detach(), faces) / 4)
    logs = {"extract": extract, "l1": l1, "ssim": 1 - dissimilarity, "psnr": psnr, "residual": change.sqrt()}
    return {name: value.detach() for name, value in logs.items()}


@torch.no_grad()
def conceal_rows(
    networks: CodeNetworks, faces: Tensor, cover: Tensor, rng: torch.Generator
) -> list[tuple[str, Tensor]]:
    """Rows of a sample sheet: the cover with a code under a random stream, the face read back, the change enlarged."""
    angles = networks.code_encoder(faces)
    stream = torch.rand(angles.shape, generator=rng).to(angles) * 2 * math.pi
    saved = saved_file.to_8_bit(cover + networks.code_embedder(cover, to_phasors(angles + stream)))
    mask = networks.layout.payload_mask.to(faces.device).repeat(2, 1, 1)
    read = networks.code_extractor(saved)
    return [
        ("key A with the code", saved),
        ("recovered", networks.revealer(saved, turn(read, -stream) * mask)),
        ("10 x the code", (saved - cover).mul(10).clamp(-1, 1)),
    ]


def _saved(module: PhasedModule, config: ConcealConfig, picture: Tensor, *, clean: bool) -> Tensor:
    """What a file does to the picture: 8 bits always; JPEG or resampling in a part of the batches."""
    c = config
    rng = module.generator_for("file")
    draw, amount = torch.rand(2, generator=rng).tolist()
    if clean:
        return saved_file.to_8_bit(picture)  # first learn to read a clean file
    whole, size = len(picture) * module.world_size, picture.shape[-1]
    quality = torch.rand(whole, generator=rng) * (c.jpeg_quality_high - c.jpeg_quality_low) + c.jpeg_quality_low
    offsets = (torch.rand(whole, 2, generator=rng) - 0.5) / size  # up to half a pixel
    if draw < c.shift_share / 2:
        return saved_file.jitter(saved_file.to_8_bit(picture), module.share(offsets))
    if draw < c.shift_share:
        side = int(size * (0.75 + 0.75 * amount))
        return saved_file.to_8_bit(saved_file.through_resize(saved_file.to_8_bit(picture), side))
    if draw < c.shift_share + c.jpeg_share:
        return saved_file.to_8_bit(saved_file.through_jpeg(saved_file.to_8_bit(picture), module.share(quality)))
    return saved_file.to_8_bit(picture)
