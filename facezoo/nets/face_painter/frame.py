"""The shape-free frame: textures of faces unwrapped by a triangle mesh, both ways, batched and differentiable.

Coordinates here are *crop units*: x and y from 0 to 1 over the sides of a picture, whatever its size (a pixel centre i
of a side of S pixels lies at (i + 0.5) / S). ``grid_sample`` wants them doubled minus one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Rendering", "TextureFrame", "sample"]

_RING = 1.22
"""Outer edge of the band in which a moved outline fades out, as a multiple of the outline's distance to its centre."""
_TEXTURED = 0.2
"""A triangle that is foreshortened to less than this part of its frontal area is not trusted to show its texture."""
_KEEP_OWN = 0.1
"""Where neither half shows a texel well, the face's own is taken."""
_CHUNK = 1 << 22
"""Pixel tests at a time when triangles are filled: bounds the memory."""


def sample(pictures: Tensor, places: Tensor) -> Tensor:
    """Bilinear values of ``(B, C, H, W)`` at ``(B, h, w, 2)`` in crop units; outside, the border's. -> (B, C, h, w)."""
    return functional.grid_sample(pictures, places * 2 - 1, padding_mode="border", align_corners=False)


@dataclass(frozen=True)
class Rendering:
    """A mesh drawn into the picture.

    Attributes:
        texture_places: ``(B, S, S, 2)`` where each pixel lies in the frame, in crop units; around the face, in
            the band, the frame's surroundings, and 0 beyond.
        source_places: ``(B, S, S, 2)`` where each pixel lies in the picture before the mesh was moved.
        inside: ``(B, 1, S, S)`` 1 on visible triangles of the face, 0 elsewhere.
        triangle: ``(B, S, S)`` int64, the face's triangle at each pixel; 0 outside the face too.
    """

    texture_places: Tensor
    source_places: Tensor
    inside: Tensor
    triangle: Tensor


def _cross(points: Tensor, triangles: Tensor) -> Tensor:
    """Twice the signed area: ``(B, N, 2)`` and ``(T, 3)`` -> ``(B, T)``."""
    a, b, c = (points[:, triangles[:, k]] for k in range(3))
    u, v = b - a, c - a
    return u[..., 0] * v[..., 1] - u[..., 1] * v[..., 0]


class TextureFrame(nn.Module):
    """Where each mesh point lies in the frame, and the tables that follow from it.

    Args:
        layout: ``(N, 2)`` places of the mesh points in the frame, in crop units; no triangle is turned over.
        shape: ``(N, 3)`` the mesh seen from the front, x right, y down, z away from the camera; any unit. Tells how
            large a triangle is when it is not foreshortened.
        triangles: ``(T, 3)`` corners of each triangle.
        mirror: ``(N,)`` index of each point's mirror image; the layout is symmetric.
        outline: indices of the outline, in order.
        size: side R of the frame in texels.
    """

    layout: Tensor
    area: Tensor
    triangles: Tensor
    mirror: Tensor
    outline: Tensor
    texel_triangle: Tensor
    texel_weights: Tensor
    valid: Tensor
    band: Tensor
    corner_count: Tensor
    ringed_layout: Tensor
    orientation: Tensor

    def __init__(
        self, layout: Tensor, shape: Tensor, triangles: Tensor, mirror: Tensor, outline: Tensor, size: int
    ) -> None:
        super().__init__()
        self.size = size
        corners = shape.float()[triangles]
        area = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0], dim=-1).norm(dim=-1)
        points, ring = len(layout), torch.arange(len(outline))
        following = (ring + 1) % len(outline)
        band = torch.cat(
            [
                torch.stack([outline[ring], points + ring, outline[following]], 1),
                torch.stack([outline[following], points + ring, points + following], 1),
            ]
        )
        outer = self._ring_of(layout.float()[None], outline)[0]
        ringed = torch.cat([layout.float(), outer])
        for name, value in (
            ("layout", layout.float()),
            ("area", area),
            ("triangles", triangles),
            ("mirror", mirror),
            ("outline", outline),
            ("band", band),
            ("ringed_layout", ringed),
            ("orientation", torch.sign(_cross(ringed[None], torch.cat([triangles, band])))),
            ("corner_count", torch.bincount(triangles.flatten(), minlength=len(layout)).float()),
        ):
            self.register_buffer(name, value, persistent=False)
        filled = self._fill(layout.float()[None], triangles, torch.zeros(1, len(layout)), size)
        weights = self._barycentric(layout.float()[None], triangles[filled.clamp_min(0)], size)
        self.register_buffer("texel_triangle", filled[0].clamp_min(0), persistent=False)
        self.register_buffer("texel_weights", weights[0], persistent=False)
        self.register_buffer("valid", (filled[0] >= 0).view(1, 1, size, size), persistent=False)

    # ------------------------------------------------------------------ picture -> texture
    def facing(self, points: Tensor) -> Tensor:
        """How much of its frontal area each triangle shows, ``(B, N, 2)`` -> ``(B, T)``; negative seen from behind.

        The unit is the median of the face, so that a face seen from the front has about 1 everywhere but at its rim.
        """
        shown = _cross(points, self.triangles) * self.orientation[:, : len(self.triangles)] / self.area
        return shown / shown.median(dim=1, keepdim=True).values.abs().clamp_min(1e-12)

    def to_texture(self, pictures: Tensor, points: Tensor) -> Tensor:
        """Unwraps faces; the half that the camera does not see is taken from the mirrored other half.

        Args:
            pictures: ``(B, C, S, S)``.
            points: ``(B, N, 2)`` mesh points in crop units.

        Returns:
            ``(B, C, R, R)``; texels outside the face hold whatever lies nearest.
        """
        corners = self.triangles[self.texel_triangle]
        places = (points[:, corners] * self.texel_weights[None, :, :, None]).sum(2)
        texture = sample(pictures, places.view(-1, self.size, self.size, 2))
        # Told at the corners and interpolated, so that no line stands in the texture where the better half changes.
        facing = self.facing(points)
        whole = facing.new_zeros(len(facing), len(self.layout))
        for k in range(3):
            whole = whole.index_add(1, self.triangles[:, k], facing)
        shown = ((whole / self.corner_count)[:, corners] * self.texel_weights).sum(2)
        trust = ((shown.view(-1, 1, self.size, self.size) - _TEXTURED) / _TEXTURED).clamp(0, 1)
        weight = (trust + _KEEP_OWN) / (trust + _KEEP_OWN + trust.flip(3) * (1 - trust))
        return torch.lerp(texture.flip(3), texture, weight)

    # ------------------------------------------------------------------ texture -> picture
    def render(self, points: Tensor, depth: Tensor, before: Tensor, size: int) -> Rendering:
        """Draws the mesh at ``points`` and a band around it, in which a moved outline fades out.

        Args:
            points: ``(B, N, 2)`` in crop units, where the mesh is to lie.
            depth: ``(B, N)``, larger is farther away.
            before: ``(B, N, 2)`` where the same points lie in the picture as it is.
            size: side S of the picture in pixels.
        """
        batch = len(points)
        ring_before = self._ring(before)
        everywhere = torch.cat([points, ring_before], 1)
        source = torch.cat([before, ring_before], 1)
        depth = torch.cat([depth, depth[:, self.outline] + depth.std() * 4], 1)  # the band lies behind the face
        triangles = torch.cat([self.triangles, self.band])
        with torch.no_grad():
            toward = _cross(everywhere, triangles) * self.orientation > 0
            filled = self._fill(everywhere, triangles, depth, size, toward)
        found = filled >= 0
        corners = triangles[filled.clamp_min(0)]
        weights = self._barycentric(everywhere, corners, size)
        index = corners.flatten(1)[..., None].expand(-1, -1, 2)
        source_places = (source.gather(1, index).view(batch, -1, 3, 2) * weights[..., None]).sum(2)
        texture_places = (self.ringed_layout[corners] * weights[..., None]).sum(2)
        own = self._pixel_centres(size, points.device)
        source_places = torch.where(found[..., None], source_places, own)
        face = found & (filled < len(self.triangles))
        return Rendering(
            torch.where(found[..., None], texture_places, torch.zeros_like(texture_places)).view(batch, size, size, 2),
            source_places.view(batch, size, size, 2),
            face.view(batch, 1, size, size).to(points.dtype),
            torch.where(face, filled, torch.zeros_like(filled)).view(batch, size, size),
        )

    def _ring(self, points: Tensor) -> Tensor:
        return self._ring_of(points, self.outline)

    @staticmethod
    def _ring_of(points: Tensor, indices: Tensor) -> Tensor:
        """The outer edge of the band, one point for each of the outline: ``(B, N, 2)`` -> ``(B, O, 2)``."""
        outline = points[:, indices]
        centre = outline.mean(1, keepdim=True)
        return centre + (outline - centre) * _RING

    # ------------------------------------------------------------------ filling triangles
    @staticmethod
    def _pixel_centres(size: int, device: torch.device) -> Tensor:
        """``(S * S, 2)`` crop units."""
        line = (torch.arange(size, device=device, dtype=torch.float32) + 0.5) / size
        y, x = torch.meshgrid(line, line, indexing="ij")
        return torch.stack([x, y], -1).view(-1, 2)

    def _barycentric(self, points: Tensor, corners: Tensor, size: int) -> Tensor:
        """Weights of the corners at each pixel's centre: ``(B, S * S, 3)``."""
        index = corners.flatten(1)[..., None].expand(-1, -1, 2)
        a, b, c = points.gather(1, index).view(len(points), -1, 3, 2).unbind(2)
        p = self._pixel_centres(size, points.device)[None] - a
        u, v = b - a, c - a
        whole = u[..., 0] * v[..., 1] - u[..., 1] * v[..., 0]
        whole = torch.where(whole.abs() < 1e-12, torch.full_like(whole, 1e-12), whole)
        second = (p[..., 0] * v[..., 1] - p[..., 1] * v[..., 0]) / whole
        third = (u[..., 0] * p[..., 1] - u[..., 1] * p[..., 0]) / whole
        return torch.stack([1 - second - third, second, third], -1)

    def _fill(self, points: Tensor, triangles: Tensor, depth: Tensor, size: int, drawn: Tensor | None = None) -> Tensor:
        """Which triangle each pixel's centre lies in: the nearest one of those drawn.

        Args:
            points: ``(B, N, 2)`` crop units.
            triangles: ``(T, 3)``.
            depth: ``(B, N)``.
            size: side in pixels.
            drawn: ``(B, T)``; None: all.

        Returns:
            ``(B, S * S)`` numbers of triangles, -1 where there is none.
        """
        batch, count = len(points), len(triangles)
        corners = points[:, triangles] * size - 0.5
        low = corners.amin(2).floor().clamp(-1, size)
        extent = (corners.amax(2).ceil().clamp(-1, size) - low).amax(-1)
        near = depth[:, triangles].mean(2)
        rank = near.argsort(1, descending=True).argsort(1)  # the nearest gets the highest number
        best = torch.full((batch, size * size), -1, dtype=torch.int64, device=points.device)
        wanted = torch.ones(batch, count, dtype=torch.bool, device=points.device) if drawn is None else drawn
        # Small and large triangles apart: the window is as wide as the widest of its group.
        for smallest, largest in ((-1.0, 8.0), (8.0, 20.0), (20.0, float(size + 1))):
            picked = (wanted & (extent > smallest) & (extent <= largest)).nonzero()
            if not len(picked):
                continue
            side = int(extent[picked[:, 0], picked[:, 1]].max()) + 1
            for part in torch.split(picked, max(1, _CHUNK // side**2)):
                self._fill_group(part, corners, low, rank, best, side, size)
        triangle = rank.argsort(1).gather(1, best.clamp_min(0))  # from the rank back to the triangle
        return torch.where(best >= 0, triangle, best)

    @staticmethod
    def _fill_group(
        picked: Tensor, corners: Tensor, low: Tensor, rank: Tensor, best: Tensor, side: int, size: int
    ) -> None:
        """Tests a window of ``side`` pixels for each picked triangle and keeps the highest rank at each pixel."""
        which, triangle = picked[:, 0], picked[:, 1]
        a, b, c = corners[which, triangle].unbind(1)
        window = torch.arange(side, device=corners.device, dtype=corners.dtype)
        x = low[which, triangle, 0, None, None] + window[None, None, :]
        y = low[which, triangle, 1, None, None] + window[None, :, None]

        def edge(p: Tensor, q: Tensor) -> Tensor:
            p, q = p[:, :, None, None], q[:, :, None, None]
            return (q[:, 0] - p[:, 0]) * (y - p[:, 1]) - (q[:, 1] - p[:, 1]) * (x - p[:, 0])

        one, two, three = edge(a, b), edge(b, c), edge(c, a)
        slack = 1e-4  # a pixel on a shared side belongs to both
        hit = ((one >= -slack) & (two >= -slack) & (three >= -slack)) | (
            (one <= slack) & (two <= slack) & (three <= slack)
        )
        hit &= (x >= 0) & (x < size) & (y >= 0) & (y < size)
        place = (which[:, None, None] * size * size + y.long() * size + x.long())[hit]
        value = rank[which, triangle][:, None, None].expand_as(hit)[hit]
        best.view(-1).scatter_reduce_(0, place, value, "amax")
