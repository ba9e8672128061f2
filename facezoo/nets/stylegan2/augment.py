"""Adaptive discriminator augmentation (Karras et al. 2020b, "Training GANs with limited data", section 3, appendix B).

The discriminator sees real and generated pictures only through random changes, each made with a probability p that
rises while the discriminator grows too sure of the real ones. This is the paper's set "bgc": pixel blitting, geometry
and colour. Written in torch and not with kornia, whose layers draw from the global random numbers: here every draw
comes from a generator that is given, for the whole batch of all processes at once, so that a resumed run and a run in
several processes draw what one uninterrupted process would.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclasses.dataclass(frozen=True)
class Transforms:
    """What happens to each picture of a batch.

    Attributes:
        geometry: ``(B, 3, 3)``, from places in the result to places in the source; both in units of half the picture,
            from -1 to 1, x before y.
        colour: ``(B, 4, 4)``, on ``(red, green, blue, 1)`` with colours in [-1, 1].
    """

    geometry: Tensor
    colour: Tensor

    def __getitem__(self, rows: slice) -> Transforms:
        """The transforms of some pictures."""
        return Transforms(self.geometry[rows], self.colour[rows])

    def to(self, other: Tensor) -> Transforms:
        """On the device and of the type of ``other``."""
        return Transforms(self.geometry.to(other), self.colour.to(other))


def draw_transforms(count: int, size: int, strength: float, generator: torch.Generator) -> Transforms:
    """Draws the changes of ``count`` pictures of ``size`` pixels; each change happens with probability ``strength``.

    Ranges are the paper's (appendix B, table 1): integer translation up to 1/8 of the picture, log-normal scales of
    sigma .2 ln 2, rotation by any angle, fractional translation of sigma 1/8; brightness of sigma .2, log-normal
    contrast of sigma .5 ln 2, luma flip, hue rotation by any angle, log-normal saturation of sigma ln 2.

    Args:
        count: Pictures.
        size: Side in pixels.
        strength: Probability p, 0 to 1.
        generator: Source of every draw; how many numbers are drawn does not depend on ``strength``.

    Returns:
        The transforms, float32 on the CPU.
    """

    def uniform() -> Tensor:
        return torch.rand(count, generator=generator)

    def normal() -> Tensor:
        return torch.randn(count, generator=generator)

    def maybe(value: Tensor, otherwise: float, probability: float = strength) -> Tensor:
        return torch.where(uniform() < probability, value, torch.tensor(otherwise))

    # Two rotations happen, before and after the stretching; together with probability p.
    p_rotation = 1 - math.sqrt(1 - strength)
    octave = math.log(2)
    geometry = _scaling(maybe(1 - 2 * torch.floor(2 * uniform()), 1.0), torch.ones(count))
    geometry = geometry @ _rotation(maybe(torch.floor(4 * uniform()), 0.0) * (math.pi / 2))
    shift_x, shift_y = ((uniform() * 2 - 1) / 8 * size).round(), ((uniform() * 2 - 1) / 8 * size).round()
    moved = uniform() < strength
    geometry = geometry @ _translation(shift_x * moved * (2 / size), shift_y * moved * (2 / size))
    scale = maybe(torch.exp(normal() * 0.2 * octave), 1.0)
    geometry = geometry @ _scaling(scale, scale)
    geometry = geometry @ _rotation(maybe((uniform() * 2 - 1) * math.pi, 0.0, p_rotation))
    stretch = maybe(torch.exp(normal() * 0.2 * octave), 1.0)
    geometry = geometry @ _scaling(stretch, 1 / stretch)
    geometry = geometry @ _rotation(maybe((uniform() * 2 - 1) * math.pi, 0.0, p_rotation))
    drift_x, drift_y = normal() / 8, normal() / 8
    moved = uniform() < strength
    geometry = geometry @ _translation(drift_x * moved * 2, drift_y * moved * 2)

    luma = torch.tensor([1.0, 1.0, 1.0, 0.0]) / math.sqrt(3)
    onto_luma = torch.outer(luma, luma)
    whole = torch.eye(4)
    brightness = maybe(normal() * 0.2, 0.0)
    colour = whole.repeat(count, 1, 1)
    colour[:, :3, 3] = brightness[:, None]
    contrast = maybe(torch.exp(normal() * 0.5 * octave), 1.0)
    colour = _diagonal(contrast) @ colour
    flip = maybe(torch.floor(2 * uniform()), 0.0)
    colour = (whole - 2 * onto_luma * flip[:, None, None]) @ colour
    colour = _hue(maybe((uniform() * 2 - 1) * math.pi, 0.0)) @ colour
    saturation = maybe(torch.exp(normal() * octave), 1.0)[:, None, None]
    # Saturation scales what is across the grey axis; the last row, which carries the brightness, stays.
    keep = onto_luma + torch.diag(torch.tensor([0.0, 0.0, 0.0, 1.0]))
    colour = (keep + (whole - keep) * saturation) @ colour
    return Transforms(geometry, colour)


def apply_transforms(pictures: Tensor, transforms: Transforms) -> Tensor:
    """Changes pictures; first derivatives only (grid_sample has no second ones).

    Pixels are read bilinearly at their own size, without the paper's wavelet filter at twice the size: what is not
    moved, or only mirrored, turned by right angles or shifted by whole pixels, then stays exact, and the scales drawn
    here are too small to alias much.

    Args:
        pictures: ``(B, 3, R, R)`` in [-1, 1].
        transforms: One row a picture.

    Returns:
        ``(B, 3, R, R)``, mirrored at the border; not clipped.
    """
    transforms = transforms.to(pictures)
    with torch.autocast(pictures.device.type, enabled=False):  # bfloat16 would round the places that are read
        exact = pictures if pictures.dtype == torch.float64 else pictures.float()
        theta = transforms.geometry[:, :2].to(exact)
        grid = functional.affine_grid(theta, list(pictures.shape), align_corners=False)
        moved = functional.grid_sample(exact, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
        colour = transforms.colour.to(exact)
        changed = torch.einsum("bij,bjhw->bihw", colour[:, :3, :3], moved) + colour[:, :3, 3, None, None]
    return changed.to(pictures.dtype)


class AdaptiveStrength(nn.Module):
    """The probability p, driven by how often the discriminator is right about real pictures.

    State is in buffers, so that it is saved and goes on exactly.

    Args:
        target: Mean sign of D(real) to hold (.6 in the paper).
        pictures: Pictures in which p may move from 0 to 1 (500,000 in the paper).
        every: Batches between moves (4 in the paper).
    """

    strength: Tensor
    signs: Tensor
    counted: Tensor
    batches: Tensor

    def __init__(self, target: float, pictures: int, every: int) -> None:
        super().__init__()
        self.target, self.pictures, self.every = target, pictures, every
        self.register_buffer("strength", torch.zeros((), dtype=torch.float64))
        self.register_buffer("signs", torch.zeros((), dtype=torch.float64))
        self.register_buffer("counted", torch.zeros((), dtype=torch.float64))
        self.register_buffer("batches", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def observe(self, signs: Tensor, count: int) -> None:
        """Takes a batch into account, and moves p when it is time.

        Args:
            signs: Sum of sign(D(real)) over the batch of all processes, scalar.
            count: Pictures in it.
        """
        self.signs += signs.double()
        self.counted += count
        self.batches += 1
        if int(self.batches) % self.every:
            return
        step = torch.sign(self.signs / self.counted - self.target) * self.counted / self.pictures
        self.strength.copy_((self.strength + step).clamp(0, 1))
        self.signs.zero_()
        self.counted.zero_()


def _matrix(*rows: tuple[Tensor | float, ...]) -> Tensor:
    """``(B, 3, 3)`` from the two upper rows; numbers stand for all pictures."""
    count = next(len(value) for row in rows for value in row if isinstance(value, Tensor))
    result = torch.eye(3).repeat(count, 1, 1)
    for i, row in enumerate(rows):
        for j, value in enumerate(row):
            result[:, i, j] = value
    return result


def _translation(x: Tensor, y: Tensor) -> Tensor:
    return _matrix((1.0, 0.0, x), (0.0, 1.0, y))


def _scaling(x: Tensor, y: Tensor) -> Tensor:
    return _matrix((x, 0.0, 0.0), (0.0, y, 0.0))


def _rotation(angle: Tensor) -> Tensor:
    return _matrix((torch.cos(angle), -torch.sin(angle), 0.0), (torch.sin(angle), torch.cos(angle), 0.0))


def _diagonal(factor: Tensor) -> Tensor:
    result = torch.eye(4).repeat(len(factor), 1, 1)
    for i in range(3):
        result[:, i, i] = factor
    return result


def _hue(angle: Tensor) -> Tensor:
    """Rotation about the grey axis (Rodrigues' formula)."""
    axis = torch.ones(3) / math.sqrt(3)
    cross = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / math.sqrt(3)
    cos, sin = torch.cos(angle)[:, None, None], torch.sin(angle)[:, None, None]
    result = torch.eye(4).repeat(len(angle), 1, 1)
    result[:, :3, :3] = cos * torch.eye(3) + sin * cross + (1 - cos) * torch.outer(axis, axis)
    return result
