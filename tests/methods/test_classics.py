"""The classics do what their names say, at the strength that is asked for, at every size."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from facezoo import registry
from facezoo.errors import InputError
from facezoo.keys import Key
from facezoo.methods.base import FaceContext
from facezoo.methods.classics.config import BOOK_SETTINGS
from facezoo.methods.classics.smooth import area_matrix, gaussian_matrix, linear_matrix

NOTHING = FaceContext()
KEY = Key.from_bytes(bytes(range(32)))
OTHER_KEY = Key.from_bytes(bytes(range(1, 33)))


def scene(size: int, batch: int = 2) -> torch.Tensor:
    """Smooth shapes, edges and fine grain: like a face to a filter."""
    generator = torch.Generator().manual_seed(5)
    coarse = torch.rand(batch, 3, 6, 6, generator=generator)
    faces = functional.interpolate(coarse, (size, size), mode="bicubic") + 0.1 * torch.rand(
        batch, 3, size, size, generator=generator
    )
    faces[:, :, size // 3 : size // 3 + max(1, size // 10)] = 0
    return faces.clamp(0, 1) * 2 - 1


def points(size: int, turn: float = 0.0, batch: int = 2) -> np.ndarray:
    """The template's five points, turned by some degrees about the crop's centre."""
    template = np.array([[47.27, 56.81], [80.57, 56.63], [64.0, 75.8], [50.3, 95.2], [77.9, 95.1]])
    angle = math.radians(turn)
    rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    turned = (template - 64) @ rotation.T + 64
    return np.broadcast_to(turned * size / 128, (batch, 5, 2)).copy()


# Blur


def plain_gaussian(faces: torch.Tensor, sigma: float) -> torch.Tensor:
    """The definition, pixel by pixel, with a mirrored border."""
    reach = math.ceil(4 * sigma)
    offsets = torch.arange(-reach, reach + 1, dtype=torch.float64)
    weights = torch.exp(-0.5 * (offsets / sigma) ** 2)
    weights /= weights.sum()
    size = faces.shape[-1]
    index = torch.arange(-reach, size + reach) % (2 * size)
    index = torch.where(index >= size, 2 * size - 1 - index, index)
    wide = faces.double()[:, :, index][..., index]
    kernel = weights.view(1, 1, -1, 1).expand(3, 1, -1, 1)
    wide = functional.conv2d(wide, kernel, groups=3)
    return functional.conv2d(wide, kernel.transpose(2, 3), groups=3)


@pytest.mark.parametrize(
    ("size", "sigma"), [(64, 4.0), (128, 2.0), (128, 16.0), (128, 60.0), (200, 12.0), (33, 9.0), (16, 200.0)]
)
def test_blur_equals_its_definition(size, sigma):
    faces = scene(size)
    blurred = registry.create("gaussian_blur", sigma=sigma).anonymize(faces, NOTHING)
    wanted = plain_gaussian(faces, sigma * size / 128)
    assert (blurred - wanted).abs().max() < 0.1 / 127.5, "a tenth of an 8-bit level"


def test_wide_blur_leaves_no_fine_structure():
    faces = scene(128)
    blurred = registry.create("gaussian_blur").anonymize(faces, NOTHING)
    assert (blurred[..., 1:] - blurred[..., :-1]).abs().max() < 0.05
    assert torch.allclose(blurred.mean((2, 3)), faces.mean((2, 3)), atol=0.02)


@pytest.mark.parametrize(
    ("name", "options"), [("gaussian_blur", {}), ("low_resolution", {}), ("pixelation", {"block": 16})]
)
def test_strength_follows_the_face_not_the_pixels(name, options):
    # The same picture at 64 and at 256 must be hidden alike: compare after bringing both to 64.
    large = scene(256)
    small = functional.interpolate(large, (64, 64), mode="area")
    method = registry.create(name, **options)
    from_large = functional.interpolate(method.anonymize(large, NOTHING), (64, 64), mode="area")
    assert (from_large - method.anonymize(small, NOTHING)).abs().mean() < 0.02


def test_matrices_keep_a_flat_picture_flat():
    for size, cells in ((7, 3), (16, 16), (128, 7), (5, 1)):
        assert np.allclose(area_matrix(size, cells).sum(1), 1)
        assert np.allclose(linear_matrix(size, cells).sum(1), 1)
        assert (area_matrix(size, cells) >= 0).all()
    places = np.arange(9) + 0.5
    assert np.allclose(gaussian_matrix(places, places, 9, 400.0), 1 / 9), "a blur wider than the crop gives its mean"


# Pixelation and low resolution


@pytest.mark.parametrize(("size", "block", "cells"), [(128, 16, 8), (128, 8, 16), (100, 16, 8), (256, 4, 32)])
def test_pixelation_has_square_cells_of_their_mean(size, block, cells):
    faces = scene(size)
    mosaic = registry.create("pixelation", block=block).anonymize(faces, NOTHING)
    edges = [-(-cell * size // cells) for cell in range(cells + 1)]
    for top, bottom in ((edges[0], edges[1]), (edges[3], edges[4])):
        for left, right in ((edges[2], edges[3]), (edges[-2], edges[-1])):
            part = mosaic[:, :, top:bottom, left:right]
            wanted = faces[:, :, top:bottom, left:right].mean((2, 3), keepdim=True)
            assert torch.allclose(part, wanted.expand_as(part), atol=1e-5)
    assert len(torch.unique(mosaic[0, 0])) <= cells * cells


def test_pixelation_never_hands_back_a_tiny_crop():
    faces = scene(8)
    mosaic = registry.create("pixelation", block=4).anonymize(faces, NOTHING)
    assert torch.equal(mosaic[..., 0], mosaic[..., 1]), "cells of two pixels although 128 / 4 cells were asked for"
    assert not torch.allclose(mosaic, faces, atol=0.05)


def test_low_resolution_holds_no_more_than_its_cells():
    # The result lies in the span of cells x cells numbers a channel, so the rank of a channel is at most `cells`.
    result = registry.create("low_resolution", cells=5).anonymize(scene(96), NOTHING)
    assert torch.linalg.matrix_rank(result[0, 0].double(), rtol=1e-5) <= 5


def test_low_resolution_on_a_crop_smaller_than_its_cells_is_the_crop():
    faces = scene(6)
    assert torch.allclose(registry.create("low_resolution", cells=7).anonymize(faces, NOTHING), faces, atol=1e-5)


# Box and bar


def test_black_box_leaves_nothing():
    result = registry.create("black_box").anonymize(scene(40), NOTHING)
    assert (result == -1).all()
    red = registry.create("black_box", color=(255, 0, 51)).anonymize(scene(40), NOTHING)
    assert torch.allclose(red[0, :, 0, 0], torch.tensor([1.0, -1.0, 51 / 127.5 - 1]))


@pytest.mark.parametrize("turn", [0, 20, -35, 90])
@pytest.mark.parametrize("size", [64, 200])
def test_eye_bar_covers_both_eyes_along_their_line(turn, size):
    faces = torch.full((2, 3, size, size), 0.5)
    where = points(size, turn)
    result = registry.create("eye_bar").anonymize(faces, FaceContext(points=where))
    black = result[0, 0] == -1
    eyes, nose, mouth = where[0, :2], where[0, 2], where[0, 3:].mean(0)
    distance = np.hypot(*(eyes[1] - eyes[0]))
    for x, y in eyes:
        yy, xx = np.mgrid[:size, :size]
        around = np.hypot(xx - x, yy - y) < 0.3 * distance
        assert black.numpy()[around].all(), "a disc around each eye is covered"
    for x, y in (nose, mouth):
        assert not black[int(y + 0.5), int(x + 0.5)]
    assert (result[0][:, ~black] == 0.5).all(), "outside the bar nothing changes"


def test_eye_bar_without_points_takes_the_template():
    faces = scene(128)
    bar = registry.create("eye_bar")
    given = bar.anonymize(faces, FaceContext(points=points(128)))
    assert (bar.anonymize(faces, NOTHING) != given).float().mean() < 0.01


def test_eye_bar_of_a_turned_head_is_not_smaller():
    where = points(128)
    where[:, 1, 0] = where[:, 0, 0] + 8  # the eyes nearly behind each other
    faces = torch.zeros(2, 3, 128, 128)
    profile = (registry.create("eye_bar").anonymize(faces, FaceContext(points=where)) == -1).sum()
    frontal = (registry.create("eye_bar").anonymize(faces, FaceContext(points=points(128))) == -1).sum()
    assert profile > 0.9 * frontal


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda where: where[:1], "shape"),
        (lambda where: where[:, :4], "shape"),
        (lambda where: where * np.nan, "finite"),
        (lambda where: where * 0 + 30, "one place"),
        (lambda where: where + 500, "outside the crop"),
        (lambda where: where - 500, "outside the crop"),
    ],
)
def test_eye_bar_refuses_points_that_would_leave_the_eyes_open(change, message):
    with pytest.raises(InputError, match=message):
        registry.create("eye_bar").anonymize(scene(128), FaceContext(points=change(points(128))))


# Noise


def test_noise_has_the_strength_asked_for():
    faces = torch.zeros(4, 3, 128, 128)
    faces += torch.linspace(-0.01, 0.01, 4).view(4, 1, 1, 1)
    for context in (NOTHING, FaceContext(key=KEY)):
        noise = registry.create("pixel_noise", sigma=15, grain=1).anonymize(faces, context) - faces
        assert abs(noise.std().item() * 127.5 - 15) < 0.2
        assert abs(noise.mean().item() * 127.5) < 0.2
        neighbours = (noise[..., 1:] * noise[..., :-1]).mean() / noise.var()
        assert abs(neighbours) < 0.02


def test_noise_grain_scales_with_the_crop():
    faces = torch.zeros(1, 3, 256, 256)
    noise = registry.create("pixel_noise", sigma=20, grain=4).anonymize(faces, NOTHING)[0, 0]
    cells = noise.view(32, 8, 32, 8)
    assert (cells == cells[:, :1, :, :1]).all()
    assert len(torch.unique(noise)) > 1000


def test_noise_comes_from_key_or_seed_and_from_the_face():
    method = registry.create("pixel_noise", sigma=20, grain=1)
    faces = scene(32)

    def result(**context):
        return method.anonymize(faces, FaceContext(**context))

    assert torch.equal(result(key=KEY), result(key=KEY))
    assert torch.equal(result(key=KEY, seed=1), result(key=KEY, seed=2)), "with a key the seed plays no part"
    assert not torch.equal(result(key=KEY), result(key=OTHER_KEY))
    assert torch.equal(result(seed=1), result(seed=1))
    assert not torch.equal(result(seed=1), result(seed=2))
    assert not torch.equal(result(seed=0), result(key=KEY))

    # Two pictures under one key must not share their noise, or their difference would be free of it.
    nearly = faces * 0.5
    nearly[:, 0, 0, 0] += 0.02
    noise = method.anonymize(nearly, FaceContext(key=KEY)) - nearly
    other = method.anonymize(faces * 0.5, FaceContext(key=KEY)) - faces * 0.5
    alike = torch.corrcoef(torch.stack([noise[0].flatten(), other[0].flatten()]))[0, 1]
    assert abs(alike) < 0.1


def test_zero_noise_is_the_picture():
    faces = scene(32)
    assert torch.allclose(registry.create("pixel_noise", sigma=0).anonymize(faces, NOTHING), faces)


# All


@pytest.mark.parametrize("row", sorted(BOOK_SETTINGS))
def test_book_settings_are_valid(row):
    name, options = BOOK_SETTINGS[row]
    result = registry.create(name, **options).anonymize(scene(64), NOTHING)
    assert not torch.equal(result, scene(64))


@pytest.mark.parametrize("name", ["gaussian_blur", "pixelation", "low_resolution", "pixel_noise"])
def test_default_is_stronger_than_the_books_weak_settings(name):
    faces = scene(128)
    change = (registry.create(name).anonymize(faces, NOTHING) - faces).abs().mean()
    for other, options in BOOK_SETTINGS.values():
        if other == name and options != {"sigma": 20.0}:
            assert change > (registry.create(name, **options).anonymize(faces, NOTHING) - faces).abs().mean()


def test_options_of_a_call_override_those_of_the_method():
    faces = scene(64)
    weak = registry.create("gaussian_blur", sigma=1)
    strong = registry.create("gaussian_blur", sigma=16)
    context = FaceContext(options={"sigma": 16})
    assert torch.equal(weak.anonymize(faces, context), strong.anonymize(faces, NOTHING))
    assert weak.options_record(context) == {"sigma": 16.0}
    assert weak.options.sigma == 1.0
