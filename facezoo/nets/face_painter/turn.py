"""A rotation of every vector by the same angle, in planes that a key chooses.

The book turns an identity z toward a reference f: ``z cos(theta) + z_90 sin(theta)``, with ``z_90`` the part of f that
is orthogonal to z (6.16, 6.17). With one f for everybody all people turn toward the same stranger, and the angle is
undone only approximately. Here ``z_90 = J z`` with a skew-symmetric orthogonal J (``J J = -1``): it is orthogonal to
every z and as long, so the rotation is by exactly theta for everybody, keeps the distances between people, and its
inverse is its transpose.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["plane_rotation"]


def plane_rotation(drawn: Tensor, degrees: float) -> Tensor:
    """``cos(theta) I + sin(theta) J``: an orthogonal matrix for row vectors, ``rows @ matrix``.

    Args:
        drawn: ``(n, n)`` random numbers that choose the planes; n even. Any with independent rows will do.
        degrees: the angle.

    Returns:
        ``(n, n)`` float32. The sign of every column of its basis is fixed, so that it depends on ``drawn`` alone.

    Raises:
        ValueError: n is odd.
    """
    count = len(drawn)
    if count % 2:
        raise ValueError(f"a rotation in planes needs an even number of dimensions, not {count}")
    basis, triangle = torch.linalg.qr(drawn.double())
    basis = basis * torch.sign(triangle.diagonal())
    first, second = basis[:, 0::2], basis[:, 1::2]
    skew = second @ first.T - first @ second.T
    theta = math.radians(degrees)
    turned = math.cos(theta) * torch.eye(count, dtype=torch.float64, device=drawn.device) + math.sin(theta) * skew
    return turned.float()
