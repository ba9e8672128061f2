"""A face of a given identity in the place of another: the disentangling networks under one roof.

`identity_rotation` (book, chapter 6) and `identity_dp` (chapter 5) paint with the same networks; only what they do to
the identity vector in between differs. See `aad` for the attribute encoder and the generator themselves.

What the attribute path sees of a face is the privacy question of the whole family: with ``attribute_grid`` it is the
inside of the face at that many pixels across and everything outside the face mask; with 0 it is the whole picture, as
in the book.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from facezoo.nets.aad import AADGenerator, AttributeEncoder
from facezoo.nets.linear_painter import LinearPainter, coarse_face

_ADDED = 0.5
"""Largest change that the generator makes to the linear guess, of the [-1, 1] range."""


class IdentityDistribution(nn.Module):
    """Mean and covariance factor of the training identities: what a key's reference vector is drawn from.

    The book mixes ten random training identities for each password. A draw from the Gaussian of the same mean and
    covariance looks the same to the generator, needs no library of people, and lends nobody's identity.
    """

    mean: Tensor
    factor: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("factor", torch.eye(dim))

    @torch.no_grad()
    def fit(self, identities: Tensor) -> None:
        """Fits to ``(N, D)`` unit vectors (float64 inside; a little of the diagonal keeps the factor defined)."""
        z = functional.normalize(identities.double(), dim=-1)
        mean = z.mean(0)
        covariance = (z - mean).T @ (z - mean) / len(z)
        covariance += 1e-6 * covariance.diagonal().mean() * torch.eye(len(mean), dtype=z.dtype, device=z.device)
        self.mean.copy_(mean)
        self.factor.copy_(torch.linalg.cholesky(covariance))

    def forward(self, normal: Tensor) -> Tensor:
        """Standard normal ``(B, D)`` -> unit reference vectors ``(B, D)``."""
        return functional.normalize(self.mean + normal @ self.factor.T, dim=-1)

    def whiten(self, identities: Tensor) -> Tensor:
        """Unit identity vectors ``(B, D)`` -> numbers ``(B, D)`` that ``forward`` turns into them again."""
        rest = torch.linalg.solve_triangular(self.factor, (identities - self.mean).T, upper=False)
        return rest.T


class DisentangledPainter(nn.Module):
    """Attribute encoder, generator, linear guess and the distribution of identities.

    Args:
        size: Side of the crop in pixels.
        scale: The generator works on the crop shrunk by this factor.
        identity_dim: Length of the identity vector.
        generator_widths: Input width of each AAD block, coarsest first.
        attribute_widths: Widths of the attribute encoder's levels, coarsest first.
        attribute_grid: Pixels across of what the attribute encoder sees inside the face; 0: everything.
        linear_painter: Whether the generator adds to a linear guess of the face.
        constants: Whether each level of the generator has a learned constant map.
        mask: ``(size, size)`` soft face mask in [0, 1].
        generator_mask: The same at ``size / scale``.
    """

    mask: Tensor
    generator_mask: Tensor

    def __init__(
        self,
        *,
        size: int,
        scale: int,
        identity_dim: int,
        generator_widths: Sequence[int],
        attribute_widths: Sequence[int],
        attribute_grid: int,
        linear_painter: bool,
        constants: bool,
        mask: Tensor,
        generator_mask: Tensor,
    ) -> None:
        super().__init__()
        self.scale, self.attribute_grid = scale, attribute_grid
        start = size // scale // 2 ** (len(generator_widths) - 1)
        self.attribute_encoder = AttributeEncoder(attribute_widths)
        self.generator = AADGenerator(
            generator_widths, self.attribute_encoder.out_channels, identity_dim, start, constants=constants
        )
        self.painter: nn.Module = (
            LinearPainter(identity_dim, attribute_grid, size // scale) if linear_painter else nn.Identity()
        )
        self.identity_distribution = IdentityDistribution(identity_dim)
        self.register_buffer("generator_mask", generator_mask, persistent=False)
        self.register_buffer("mask", mask, persistent=False)

    def networks(self) -> dict[str, nn.Module]:
        """The networks by the names of their files."""
        return {name: child for name, child in self.named_children() if not isinstance(child, nn.Identity)}

    def shrink(self, faces: Tensor) -> Tensor:
        """Crops ``(B, 3, S, S)`` at the generator's size."""
        scale = self.scale
        return faces if scale == 1 else functional.avg_pool2d(faces, scale)

    def seen(self, small: Tensor, identity: Tensor) -> Tensor:
        """What the attribute encoder sees of faces at the generator's size that are to get ``identity``."""
        if isinstance(self.painter, LinearPainter):
            return torch.lerp(small, self.painter(identity, small), self.generator_mask)
        return coarse_face(small, self.generator_mask, self.attribute_grid)

    def paint_small(self, small: Tensor, identity: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The generator's picture at its own size, and the attribute maps (coarsest first) that it was painted from."""
        seen = self.seen(small, identity)
        maps: list[Tensor] = self.attribute_encoder(seen)
        picture: Tensor = self.generator(identity, maps).to(small.dtype)  # bfloat16 in mixed precision
        if isinstance(self.painter, LinearPainter):
            picture = (seen + _ADDED * picture).clamp(-1, 1)
        return picture, maps

    def paint(self, faces: Tensor, identity: Tensor) -> Tensor:
        """The generator's picture of ``identity`` with the attributes of ``faces``, both ``(B, 3, S, S)``."""
        picture, _ = self.paint_small(self.shrink(faces), identity)
        if self.scale == 1:
            return picture
        return functional.interpolate(picture, size=faces.shape[-2:], mode="bilinear", align_corners=False)

    def cover(self, faces: Tensor, identity: Tensor) -> Tensor:
        """Faces with another identity: the generator's picture inside the face mask, the original outside it."""
        return torch.lerp(faces, self.paint(faces, identity), self.mask)
