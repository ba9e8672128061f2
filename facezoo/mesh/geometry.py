"""What can be computed from mesh points: the head's pose, which triangles are visible, a soft mask of the face.

All batched, on any device. Points are (x, y) in pixels of the crop, pixel centres at whole numbers; depths are in the
same unit, negative nearer to the camera.
"""

from __future__ import annotations

import torch
from torch import Tensor

from facezoo.errors import InputError
from facezoo.mesh.topology import CANONICAL, OUTER_EYE_CORNERS, OVAL, POSE_WEIGHTS, TRIANGLES

__all__ = ["eye_distance", "head_pose", "oval_mask", "visible_triangles"]

#: Side of the coarse depth picture in which triangles hide each other, and its extent in eye distances.
_DEPTH_CELLS = 48
_DEPTH_EXTENT = 2.4
#: A triangle is hidden where something lies this much nearer, in eye distances, beside what its own slope explains.
_HIDDEN_BY = 0.06
#: Places inside a triangle that are entered into the depth picture: all (i, j, k) / 4 with i + j + k = 4.
_LATTICE = tuple((i / 4, j / 4, (4 - i - j) / 4) for i in range(5) for j in range(5 - i))
#: Side of the coarse picture in which the distance to the oval is computed before it is enlarged.
_COARSE_MASK = 32


def eye_distance(points: Tensor) -> Tensor:
    """Distance of the outer eye corners, the measure of a face: (B, 468, 2) -> (B,), in the points' unit."""
    left, right = OUTER_EYE_CORNERS
    return (points[:, left] - points[:, right]).norm(dim=1)


def head_pose(points: Tensor, depth: Tensor) -> Tensor:
    """Which way a head looks: the rotation that brings the canonical face onto the points (weighted Procrustes).

    Args:
        points: (B, 468, 2) in pixels.
        depth: (B, 468) in pixels, negative nearer.

    Returns:
        (B, 3) yaw, pitch and roll in degrees. Yaw is positive when the face looks to the picture's right, pitch when it
        looks up, roll when the head is tilted clockwise as one sees it. Mirroring the picture changes the signs of yaw
        and roll. Yaw and pitch say where the nose points; the head is rolled about that direction.
    """
    # The canonical face with the picture's axes: x right, y down, z away from the camera.
    canonical = points.new_tensor(CANONICAL * (1.0, -1.0, -1.0))
    weights = points.new_tensor(POSE_WEIGHTS)
    weights = weights / weights.sum()
    shape = torch.cat([points, depth[..., None]], dim=2)
    centred = shape - (weights[:, None] * shape).sum(dim=1, keepdim=True)
    model = canonical - (weights[:, None] * canonical).sum(dim=0)
    u, _, vh = torch.linalg.svd(centred.transpose(1, 2) @ (weights[:, None] * model))
    sign = torch.ones_like(shape[:, 0])
    sign[:, 2] = torch.linalg.det(u @ vh).sign()
    rotation = (u * sign[:, None]) @ vh
    yaw = torch.atan2(-rotation[:, 0, 2], rotation[:, 2, 2])
    pitch = torch.asin(rotation[:, 1, 2].clamp(-1.0, 1.0))
    roll = torch.atan2(rotation[:, 1, 0], rotation[:, 1, 1])
    return torch.rad2deg(torch.stack([yaw, pitch, roll], dim=1))


def visible_triangles(points: Tensor, depth: Tensor) -> Tensor:
    """Which triangles a camera sees: those that face it and that nothing nearer covers.

    Covering is decided in a coarse picture of the nearest depth (48 x 48 over the face), at each triangle's middle.

    Args:
        points: (B, 468, 2) in pixels.
        depth: (B, 468) in pixels, negative nearer.

    Returns:
        (B, 898) bool, in the order of ``TRIANGLES``. Not differentiable.
    """
    with torch.no_grad():
        corners = torch.cat([points, depth[..., None]], dim=2)[:, torch.tensor(TRIANGLES, device=points.device)]
        first, second = corners[:, :, 1] - corners[:, :, 0], corners[:, :, 2] - corners[:, :, 0]
        facing = first[..., 0] * second[..., 1] - first[..., 1] * second[..., 0] < 0
        # Eye distances in space: those of a profile are close to each other in the picture.
        size = _space_size(points, depth)[:, None]
        cell = size * (_DEPTH_EXTENT / _DEPTH_CELLS)
        corner = (points.amin(dim=1) + points.amax(dim=1))[:, None] / 2 - size[..., None] * (_DEPTH_EXTENT / 2)

        def cells(places: Tensor) -> Tensor:
            column_row = ((places - corner[:, None]) / cell[..., None, None]).long().clamp(0, _DEPTH_CELLS - 1)
            return (column_row[..., 1] * _DEPTH_CELLS + column_row[..., 0]).flatten(1)

        samples = torch.einsum("lc,btcx->btlx", points.new_tensor(_LATTICE), corners)
        values = samples[..., 2].masked_fill(~facing[..., None], torch.inf)
        nearest = points.new_full((len(points), _DEPTH_CELLS**2), torch.inf)
        nearest.scatter_reduce_(1, cells(samples[..., :2]), values.flatten(1), "amin")
        own = corners.mean(dim=2, keepdim=True)
        before = nearest.gather(1, cells(own[..., :2]))
        # A steep triangle's depth changes within its cell by this much.
        normal = torch.linalg.cross(first, second)
        slope = normal[..., :2].norm(dim=2) / normal[..., 2].abs().clamp_min(1e-6)
        return facing & (own[..., 0, 2] - before < _HIDDEN_BY * size + slope * cell)


def _space_size(points: Tensor, depth: Tensor) -> Tensor:
    """Distance of the outer eye corners in space: (B,), in pixels."""
    left, right = OUTER_EYE_CORNERS
    flat = (points[:, left] - points[:, right]).square().sum(dim=1)
    return (flat + (depth[:, left] - depth[:, right]).square()).sqrt()


def oval_mask(points: Tensor, size: int, softness: float = 4.0) -> Tensor:
    """A soft mask of the face itself: 1 inside the mesh's border, 0 outside, a ramp across it.

    Where a turned face's own outline lies inside the border (nose before cheek), the border counts all the same.

    Args:
        points: (B, 468, 2) in pixels of the mask, as of a crop of ``size``.
        size: side of the mask.
        softness: width of the ramp in pixels, half of it on either side of the border.

    Returns:
        (B, 1, size, size) in [0, 1], differentiable in ``points``.

    Raises:
        InputError: no batch of mesh points, or a size or softness that is not positive.
    """
    if points.ndim != 3 or points.shape[1:] != (468, 2):
        raise InputError(f"an oval mask needs mesh points (B, 468, 2), got the shape {tuple(points.shape)}")
    if size < 1 or softness <= 0:
        raise InputError(f"an oval mask needs a positive size and softness, got {size} and {softness}")
    side = min(size, _COARSE_MASK)
    step = size / side
    axis = (torch.arange(side, device=points.device, dtype=points.dtype) + 0.5) * step - 0.5
    border = points[:, list(OVAL)]
    distance = _signed_distance(border, axis)[:, None]
    if side < size:
        distance = torch.nn.functional.interpolate(distance, size=(size, size), mode="bilinear", align_corners=False)
    ramp = (distance / softness + 0.5).clamp(0.0, 1.0)
    return ramp * ramp * (3.0 - 2.0 * ramp)


def _signed_distance(polygon: Tensor, axis: Tensor) -> Tensor:
    """Distance to a polygon, positive inside: (B, K, 2) corners and (n,) pixel positions -> (B, n, n)."""
    start, end = polygon, polygon.roll(-1, dims=1)
    edge = end - start
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    # (B, n, n, K), by coordinate: memory for one more axis would be doubled.
    from_x, from_y = x[..., None] - start[:, None, None, :, 0], y[..., None] - start[:, None, None, :, 1]
    edge_x, edge_y = edge[:, None, None, :, 0], edge[:, None, None, :, 1]
    along = ((from_x * edge_x + from_y * edge_y) / (edge_x**2 + edge_y**2).clamp_min(1e-9)).clamp(0.0, 1.0)
    squared = (from_x - along * edge_x).square() + (from_y - along * edge_y).square()
    distance = squared.amin(dim=3).clamp_min(1e-9).sqrt()
    crosses = (start[:, None, None, :, 1] > y[..., None]) != (end[:, None, None, :, 1] > y[..., None])
    left_of = from_x * edge_y < from_y * edge_x
    inside = (crosses & (left_of == (edge_y > 0))).sum(dim=3) % 2 == 1
    return torch.where(inside, distance, -distance)
