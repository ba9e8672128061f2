"""k-Same-Select, k-Same-M, k-Same-furthest: the bound on published pixels, and what each form adds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from facezoo import registry
from facezoo.errors import InputError
from facezoo.faces import align
from facezoo.methods.base import FaceContext
from facezoo.methods.ksame.cluster import furthest_partners
from facezoo.methods.ksame.gallery import Gallery
from facezoo.methods.ksame.warp import PiecewiseAffine, delaunay

FORMS = ("ksame_select", "ksame_m", "ksame_furthest")
SIZE = 32


def gallery(people: int, seed: int = 0) -> Gallery:
    """Smooth invented faces with landmarks and two expressions."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(people, 3, 5, 5, generator=generator)
    images = (torch.nn.functional.interpolate(coarse, (SIZE, SIZE), mode="bilinear") * 255).round().to(torch.uint8)
    points = align.template(SIZE)[None] + np.random.default_rng(seed).uniform(-1, 1, (people, 5, 2))
    labels = {"expression": np.arange(people) % 2, "age": np.arange(people)}
    return Gallery(images.permute(0, 2, 3, 1).contiguous(), points=points, labels=labels)


def as_faces(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).float() / 127.5 - 1


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize(("people", "k"), [(23, 5), (16, 2), (11, 4)])
def test_each_published_face_stands_for_at_least_k_people(name, people, k):
    faces = gallery(people)
    method = registry.create(name, gallery=faces, k=k)
    published = ((method.anonymize(as_faces(faces.images), FaceContext()) + 1) * 127.5).round().numpy()
    _, counts = np.unique(published.reshape(people, -1), axis=0, return_counts=True)
    assert counts.min() >= k
    assert method.options_record(FaceContext())["guarantee"] == f"at least {k} people of the gallery share each face"


@pytest.mark.parametrize("name", FORMS)
def test_what_is_refused(name):
    faces = gallery(12)
    with pytest.raises(InputError, match="k=13 is more than the 12 people"):
        registry.create(name, gallery=faces, k=13)
    twice = Gallery(faces.images, np.minimum(np.arange(12), 10), points=faces.points, labels=faces.labels)
    with pytest.raises(InputError, match="one picture a person"):
        registry.create(name, gallery=twice, k=3)
    with pytest.raises(InputError, match=r"face 0 is no picture of the gallery.*protects its gallery only"):
        registry.create(name, gallery=faces, k=3).anonymize(as_faces(gallery(1, seed=5).images), FaceContext())


# Select


def test_select_keeps_the_label():
    faces = gallery(20)
    release = registry.create("ksame_select", gallery=faces, k=4).anonymize_gallery()
    for group in range(len(release.images)):
        assert len(set(faces.labels["expression"][release.cluster == group])) == 1
        mean = faces.images[release.cluster == group].astype(np.float64).mean(0)
        assert np.abs(mean - release.images[group]).max() <= 0.51


def test_select_refuses_a_label_of_too_few_and_one_that_is_not_there():
    with pytest.raises(InputError, match=r"only 5 people of the gallery have expression=1, fewer than k=6"):
        registry.create("ksame_select", gallery=gallery(11), k=6).anonymize_gallery()
    with pytest.raises(InputError, match=r"no label sex \(it has: age, expression\)"):
        registry.create("ksame_select", gallery=gallery(11), k=2, utility="sex")
    # Ages 0..22 in groups of twenty years: the three oldest cannot hide among themselves.
    with pytest.raises(InputError, match="only 3 people of the gallery have age_group=1"):
        registry.create("ksame_select", gallery=gallery(23), k=4, utility="age_group").anonymize_gallery()


# Furthest


def test_furthest_groups_swap_by_hand():
    # 0 with 1 and 2; furthest is 102, with 101 and 100; 50, 51, 52 are left and get the group furthest from them.
    line = torch.tensor([[0.0], [100], [1], [101], [2], [102], [50], [51], [52]])
    clusters, partner = furthest_partners(line, 3)
    assert clusters.tolist() == [0, 1, 0, 1, 0, 1, 2, 2, 2]
    assert partner.tolist() == [1, 0, 0]


def test_furthest_results_hold_none_of_their_own_people():
    faces = gallery(17)
    release = registry.create("ksame_furthest", gallery=faces, k=4).anonymize_gallery()
    for group in range(len(release.images)):
        own = release.cluster == group
        means = [faces.images[release.cluster == g].astype(float).mean(0) for g in range(len(release.images))]
        fits = [np.abs(mean - release.images[group]).max() <= 0.51 for mean in means]
        assert any(fits)
        assert not fits[group]
        assert own.sum() >= 4


def test_furthest_needs_two_groups():
    with pytest.raises(InputError, match="half the number of people"):
        registry.create("ksame_furthest", gallery=gallery(9), k=5).anonymize_gallery()


# M


def test_triangles_cover_the_square_once():
    points = torch.tensor([[0.0, 0], [4, 0], [0, 4], [4, 4], [1, 2]])
    triangles = delaunay(points)
    a, b, c = (points[triangles[:, i]] for i in range(3))
    area = 0.5 * ((b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0]).abs()
    assert float(area.sum()) == pytest.approx(16.0)
    assert (triangles == 4).any(1).sum() == 4


def test_warp_of_the_reference_shape_is_the_identity_and_landmarks_go_where_they_should():
    reference = torch.from_numpy(np.asarray(align.template(SIZE), dtype=np.float64))
    warp = PiecewiseAffine(reference, SIZE)
    faces = as_faces(gallery(1).images)
    assert torch.allclose(warp.to_reference(faces, reference[None]), faces, atol=1e-4)
    # A picture whose value is its own x: after the warp the landmarks' places hold the x they came from.
    ramp = torch.arange(SIZE).float().view(1, 1, 1, -1).expand(1, 3, SIZE, SIZE) / SIZE
    moved = reference.round() + torch.tensor([[2.0, 1], [-1, 0], [1, -2], [0, 1], [-2, 0]])
    target = PiecewiseAffine(reference.round(), SIZE)
    result = target.to_reference(ramp, moved[None])
    for (x, y), (from_x, _) in zip(reference.round().long().tolist(), moved.tolist(), strict=True):
        assert float(result[0, 0, y, x]) * SIZE == pytest.approx(from_x, abs=1e-3)
    # There and back.
    back = target.from_reference(result, moved[None])
    assert float((back - ramp).abs()[..., 4:-4, 4:-4].max()) * SIZE < 0.6


def test_warped_places_solve_the_affine_equations():
    """Each pixel in a triangle has the same barycentric coordinates in both shapes, found here one by one."""
    reference = torch.as_tensor(align.template(SIZE), dtype=torch.float64)
    warp = PiecewiseAffine(reference, SIZE)
    source = reference + torch.tensor([[1.0, -0.5], [-1.5, 0.25], [0.5, 1.0], [0.75, -1.0], [-0.25, 0.5]])
    grid = (warp._grid(source, reference) + 1) / 2 * (SIZE - 1)
    borders = warp._border
    sources, targets = torch.cat([source, borders]), torch.cat([reference, borders])
    checked = 0
    for triangle in warp.triangles:
        corners = torch.cat([targets[triangle], torch.ones(3, 1)], 1).T  # columns: x, y, 1 of a corner
        if float(corners.det().abs()) < 1e-6:
            continue  # three places of the border on one line
        for x, y in ((5, 9), (16, 16), (12, 20), (27, 3), (20, 25)):
            weights = torch.linalg.solve(corners, torch.tensor([x, y, 1.0], dtype=torch.float64))
            if float(weights.min()) > 1e-6:
                assert torch.allclose(grid[y, x], weights @ sources[triangle], atol=1e-9)
                checked += 1
    assert checked == 5


def test_m_averages_shapes_and_looks_apart():
    """People who look alike but hold their heads elsewhere: the pixel mean blurs, the model mean does not."""
    reference = np.asarray(align.template(SIZE), dtype=np.float64).round()
    shifts = np.array([[-2.0, 0], [2, 0], [0, 2], [0, -2]])
    picture = np.full((4, SIZE, SIZE, 3), 30, np.uint8)
    points = reference[None] + shifts[:, None]
    for person, five in enumerate(points.astype(int)):
        for x, y in five:
            picture[person, y - 1 : y + 2, x - 1 : x + 2] = 220
        picture[person, 0, 0] = person  # or they would be one picture under four names
    faces = Gallery(picture, points=points)
    sharp = registry.create("ksame_m", gallery=faces, k=4).anonymize_gallery().images[0]
    blurred = registry.create("ksame_pixel", gallery=faces, k=4).anonymize_gallery().images[0]
    eye = reference[0].astype(int)
    assert sharp[eye[1], eye[0], 0] > 190
    assert blurred[eye[1], eye[0], 0] < 150


def test_m_needs_landmarks_of_one_kind():
    faces = gallery(8)
    with pytest.raises(InputError, match="has no landmarks"):
        registry.create("ksame_m", gallery=Gallery(faces.images), k=2)
    many = Gallery(faces.images, points=np.concatenate([faces.points, faces.points + 3], 1))
    stranger = FaceContext(points=np.asarray(align.template(SIZE))[None])
    with pytest.raises(InputError, match="5 landmarks a face, but the gallery has 10"):
        registry.create("ksame_m", gallery=many, k=2, mode="open").anonymize(as_faces(faces.images[:1]), stranger)
