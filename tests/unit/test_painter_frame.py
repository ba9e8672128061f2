"""The shape-free frame: textures out of pictures and back, what covers what, profiles, and the band around a face."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from facezoo.mesh import topology
from facezoo.nets.face_painter.config import FacePainterConfig
from facezoo.nets.face_painter.frame import Rendering, TextureFrame, sample
from facezoo.nets.face_painter.painter import FacePainter
from tests.painted import TINY, head, units


@pytest.fixture(scope="module")
def frame() -> TextureFrame:
    small = {
        "expressions": 2,
        "shape_traits": 2,
        "texture_traits": 2,
        "varying": 1,
        "details": 2,
        "personal_details": 2,
        "widths": (16,),
    }
    return FacePainter(FacePainterConfig(frame_size=96, **small)).frame


def smooth(size: int, seed: int = 0) -> Tensor:
    """A soft picture with no symmetry, ``(1, 3, size, size)``."""
    coarse = torch.rand(1, 3, 5, 5, generator=torch.Generator().manual_seed(seed)) * 1.6 - 0.8
    return functional.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=False)


def drawn(frame: TextureFrame, yaw: float = 0.0, size: int = 128) -> tuple[Tensor, Tensor, Rendering]:
    points, depth = units(head(yaw, size), size)
    return points, depth, frame.render(points, depth, points, size)


def centres(size: int) -> Tensor:
    line = (torch.arange(size) + 0.5) / size
    y, x = torch.meshgrid(line, line, indexing="ij")
    return torch.stack([x, y], -1)[None]


def filled(polygons: np.ndarray, size: int, wider: int) -> Tensor:
    """Union of polygons ``(K, n, 2)`` in crop units as ``(size, size)`` bool, grown by ``wider`` pixels."""
    canvas = np.zeros((size, size), np.uint8)
    for polygon in polygons:
        cv2.fillPoly(canvas, [np.round((polygon * size - 0.5) * 16).astype(np.int32)], 1, shift=4)
    return torch.from_numpy(cv2.dilate(canvas, np.ones((2 * wider + 1, 2 * wider + 1), np.uint8))).bool()


@pytest.mark.parametrize("size", [128, 256])
def test_a_texture_comes_back_as_the_picture_it_was_taken_from(frame, size):
    picture = smooth(size)
    points, _, rendering = drawn(frame, size=size)
    back = sample(frame.to_texture(picture, points), rendering.texture_places)
    width = size // 8 + 1
    within = functional.avg_pool2d(rendering.inside, width, 1, width // 2) > 0.999  # the rim is taken from both halves
    assert within.float().mean() > 0.2
    error = (back - picture).abs()[within.expand(1, 3, -1, -1)]
    assert error.mean() < 0.003
    assert error.quantile(0.99) < 0.03  # beside the nose's wings, some texels are hidden
    assert (picture - picture.flip(3)).abs()[within.expand(1, 3, -1, -1)].mean() > 0.1, "a mirrored one would be seen"


def test_both_sizes_show_the_same_face(frame):
    small, large = drawn(frame, 20, 128)[2], drawn(frame, 20, 256)[2]
    assert (functional.avg_pool2d(large.inside, 2) - small.inside).abs().mean() < 0.02
    both = (functional.avg_pool2d(large.inside, 2) == 1) & (small.inside == 1)
    places = functional.avg_pool2d(large.texture_places.permute(0, 3, 1, 2), 2) - small.texture_places.permute(
        0, 3, 1, 2
    )
    assert places.abs()[both.expand(1, 2, -1, -1)].mean() < 0.003


def quad_frame(size: int = 16) -> TextureFrame:
    """Two triangles."""
    layout = torch.tensor([[0.2, 0.2], [0.8, 0.2], [0.8, 0.8], [0.2, 0.8]])
    shape = torch.cat([layout, torch.zeros(4, 1)], 1)
    triangles = torch.tensor([[0, 1, 2], [0, 2, 3]])
    return TextureFrame(layout, shape, triangles, torch.tensor([1, 0, 3, 2]), torch.arange(4), size)


def test_triangles_are_filled_as_by_hand():
    frame = quad_frame()
    rng = np.random.default_rng(3)
    for _ in range(5):
        points = np.array([[0.2, 0.2], [0.8, 0.2], [0.8, 0.8], [0.2, 0.8]]) + rng.uniform(-0.15, 0.15, (4, 2))
        tensor = torch.tensor(points, dtype=torch.float32)[None]
        rendering = frame.render(tensor, torch.zeros(1, 4), tensor, 24)
        for row in range(24):
            for column in range(24):
                centre = (np.array([column, row]) + 0.5) / 24
                weights = [
                    np.linalg.solve(np.vstack([points[list(t)].T, np.ones(3)]), np.append(centre, 1.0))
                    for t in ((0, 1, 2), (0, 2, 3))
                ]
                least = [w.min() for w in weights]
                if min(abs(value) for value in least) < 2e-3:
                    continue  # on an edge
                hit = [k for k in range(2) if least[k] > 0]
                assert rendering.inside[0, 0, row, column] == len(hit)
                if hit:
                    assert rendering.triangle[0, row, column] == hit[0]
                    wanted = weights[hit[0]] @ frame.layout[frame.triangles[hit[0]]].double().numpy()
                    assert rendering.texture_places[0, row, column].numpy() == pytest.approx(wanted, abs=1e-4)


def test_the_nearest_triangle_covers_the_others():
    layout = torch.tensor([[0.1, 0.1], [0.4, 0.1], [0.1, 0.4], [0.6, 0.6], [0.9, 0.6], [0.6, 0.9]])
    triangles = torch.tensor([[0, 1, 2], [3, 4, 5]])
    shape = torch.cat([layout, torch.zeros(6, 1)], 1)
    frame = TextureFrame(layout, shape, triangles, torch.arange(6), torch.tensor([0, 1, 2]), 16)
    points = torch.tensor([[0.1, 0.1], [0.8, 0.1], [0.1, 0.8]]).repeat(2, 1)[None]
    for near in (0, 1):
        depth = torch.ones(1, 6)
        depth[0, 3 * near : 3 * near + 3] = 0.5
        rendering = frame.render(points, depth, points, 32)
        assert rendering.inside.sum() > 100
        assert (rendering.triangle[rendering.inside[:, 0] > 0] == near).all()


def symmetric_texture(frame: TextureFrame) -> Tensor:
    line = (torch.arange(frame.size) + 0.5) / frame.size
    y, x = torch.meshgrid(line, line, indexing="ij")
    across = (x - 0.5).abs()
    return torch.stack([torch.cos(9 * across), torch.sin(5 * y + 4 * across), 0.8 - 3 * across])[None] * 0.8


@pytest.mark.parametrize("yaw", [60.0, -60.0, 90.0, -90.0])
def test_the_hidden_half_is_the_mirrored_visible_one(frame, yaw):
    """A symmetric face seen from the side, on a white ground: its whole texture is known again."""
    texture = symmetric_texture(frame)
    points, _, rendering = drawn(frame, yaw)
    picture = torch.where(rendering.inside > 0, sample(texture, rendering.texture_places), torch.ones(1))
    found = frame.to_texture(picture, points)
    # The two halves, but for the line between them and the rim, which neither shows.
    y, x = torch.meshgrid(*[(torch.arange(frame.size) + 0.5) / frame.size] * 2, indexing="ij")
    region = ((x - 0.5).abs() > 0.08) & ((x - 0.5).abs() < 0.28) & ((y - 0.5).abs() < 0.25)
    error = (found - texture).abs().mean(1)[0]
    left, right = error[region & (x < 0.5)].mean(), error[region & (x > 0.5)].mean()
    assert min(left, right) < 0.03
    assert max(left, right) < 0.12  # at 60 degrees the nose covers a little of the far cheek
    if abs(yaw) == 90:
        return  # there the hidden half lies exactly behind the other
    corners = frame.triangles[frame.texel_triangle]
    direct = sample(picture, (points[:, corners] * frame.texel_weights[None, :, :, None]).sum(2).view(1, 96, 96, 2))
    without = (direct - texture).abs().mean(1)[0]
    assert max(without[region & (x < 0.5)].mean(), without[region & (x > 0.5)].mean()) > 2 * max(left, right)


@pytest.mark.parametrize("yaw", [0.0, 60.0, 90.0])
def test_only_what_the_camera_sees_is_painted(frame, yaw):
    points, _, rendering = drawn(frame, yaw)
    silhouette = filled(points[0][frame.triangles].numpy(), 128, 1)
    inside = rendering.inside[0, 0] > 0
    assert inside.float().mean() > 0.1
    assert not (inside & ~silhouette).any()
    seen = rendering.triangle[0][inside].unique()
    assert (frame.facing(points)[0, seen] > 0).all()
    assert not rendering.triangle[0][~inside].any()
    if yaw == 0.0:
        assert frame.facing(points).median() == pytest.approx(1.0)


def test_a_mesh_that_did_not_move_moves_nothing(frame):
    for yaw in (0.0, 45.0, 90.0):
        _, _, rendering = drawn(frame, yaw)
        assert torch.allclose(rendering.source_places, centres(128), atol=2e-5)


def test_a_moved_outline_fades_out_in_the_band(frame):
    before, depth = units(head(), 128)
    centre = before[:, frame.outline].mean(1, keepdim=True)
    after = centre + (before - centre) * 0.93
    rendering = frame.render(after, depth, before, 128)
    moved = (rendering.source_places - centres(128)) * 128
    ring = frame._ring(before)[0].numpy()
    outside = ~filled(ring[None], 128, 1)
    assert outside.float().mean() > 0.05
    assert not moved[0][outside].any()
    assert moved.norm(dim=-1)[rendering.inside[:, 0] > 0].max() > 2
    steps = max(moved.diff(dim=axis).norm(dim=-1).max() for axis in (1, 2))
    assert steps < 0.8, "the surroundings are torn"
    assert (rendering.inside.sum() / frame.render(before, depth, before, 128).inside.sum()) < 0.95


def test_gradients_reach_pictures_and_points(frame):
    points, depth = units(head(15), 128)
    picture, points = smooth(128).requires_grad_(), points.requires_grad_()
    frame.to_texture(picture, points).square().mean().backward()
    for leaf in (picture, points):
        assert leaf.grad.isfinite().all()
        assert leaf.grad.abs().sum() > 0
    before = points.detach().clone().requires_grad_()
    points.grad = None
    rendering = frame.render(points, depth, before, 128)
    (rendering.texture_places.square().mean() + rendering.source_places.square().mean()).backward()
    for leaf in (points, before):
        assert leaf.grad.isfinite().all()
        assert leaf.grad.abs().sum() > 0


def test_a_batch_is_its_faces(frame):
    meshes = torch.cat([head(yaw) for yaw in (-50.0, 0.0, 35.0)])
    points, depth = units(meshes, 128)
    together = frame.render(points * 0.98 + 0.01, depth, points, 128)
    pictures = torch.cat([smooth(128, seed) for seed in range(3)])
    textures = frame.to_texture(pictures, points)
    for i in range(3):
        one = frame.render(points[i : i + 1] * 0.98 + 0.01, depth[i : i + 1], points[i : i + 1], 128)
        assert torch.equal(one.triangle[0], together.triangle[i])
        assert torch.equal(one.inside[0], together.inside[i])
        assert torch.allclose(one.source_places[0], together.source_places[i], atol=1e-5)
        assert torch.allclose(textures[i], frame.to_texture(pictures[i : i + 1], points[i : i + 1])[0], atol=1e-5)


def test_the_layout_is_symmetric_and_whole(frame):
    mirrored = frame.layout[frame.mirror] * torch.tensor([-1.0, 1.0]) + torch.tensor([1.0, 0.0])
    assert torch.allclose(mirrored, frame.layout, atol=1e-6)
    assert torch.equal(frame.valid, frame.valid.flip(3))
    assert 0.4 < frame.valid.float().mean() < 0.95
    assert len(topology.OVAL) == len(frame.outline)
    assert FacePainter(TINY).frame.valid.shape == (1, 1, 24, 24)
