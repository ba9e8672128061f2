"""Rotation of an identity vector toward a key's reference vector, and its closed-form inverse (book, 6.3)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

PRIVACY_LEVELS = 10


def rotation_degrees(level: int) -> int:
    """g(d): 70, 75, 80, 85 for d = 0..3 and 95, ..., 120 for d = 4..9; 90 is skipped because it cannot be undone.

    Raises:
        ValueError: ``level`` is not 0..9.
    """
    if level not in range(PRIVACY_LEVELS):
        raise ValueError(f"privacy level {level} is not one of 0..9")
    return 70 + 5 * level if level < 4 else 70 + 5 * (level + 1)


def rotate(identity: Tensor, reference: Tensor, degrees: Tensor | float) -> Tensor:
    """Rotated identity ``z cos(theta) + z_90 sin(theta)``, equations (6.16) and (6.17).

    ``z_90 = f - (z.f) z`` is not normalised in the book, so neither is the result: its squared length is
    ``1 - (z.f)^2 sin^2(theta)``. The generator normalises what it is given.

    Args:
        identity: ``(B, D)``, any length; normalised here.
        reference: ``(B, D)`` or ``(D,)`` reference of the key, any length; normalised here (with an un-normalised one
            theta would not be the angle and the inverse would fail).
        degrees: Angle in degrees, a number or ``(B,)``.

    Returns:
        ``(B, D)``.
    """
    z = functional.normalize(identity, dim=-1)
    f = functional.normalize(reference, dim=-1).expand_as(z)
    theta = torch.as_tensor(degrees, dtype=z.dtype, device=z.device) * (math.pi / 180)
    if theta.ndim:
        theta = theta[:, None]
    z_90 = f - (z * f).sum(-1, keepdim=True) * z
    return z * torch.cos(theta) + z_90 * torch.sin(theta)


def unrotate(rotated: Tensor, reference: Tensor, degrees: float) -> Tensor:
    """Identity before the rotation, equations (6.19) and (6.20).

    Exact for the un-normalised vector that ``rotate`` gives. A recogniser returns a unit vector of about the same
    direction; the result is then approximate, and its error grows with ``1 / |cos(theta)|``: levels 3 and 4 recover
    worst. (The unit vector alone does not determine the original: ``u.f`` as a function of ``z.f`` has a maximum.)

    Args:
        rotated: ``(B, D)``.
        reference: ``(B, D)`` or ``(D,)``; normalised here.
        degrees: The angle of the rotation.

    Returns:
        ``(B, D)`` unit vectors.
    """
    f = functional.normalize(reference, dim=-1).expand_as(rotated)
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    numerator = rotated - f * sine
    a = (cosine**2 - (numerator * rotated).sum(-1, keepdim=True)) / (sine * cosine)
    return functional.normalize(numerator / (cosine - a * sine), dim=-1)
