"""k-Same: the bound is counted, on the published pixels, and nothing pretends to have it where it does not."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from facezoo import registry
from facezoo.data.packed import write_packed
from facezoo.errors import InputError
from facezoo.methods.base import FaceContext
from facezoo.methods.ksame.cluster import ksame_clusters, nearest_rows, people_per_cluster
from facezoo.methods.ksame.gallery import Gallery

NOTHING = FaceContext()
BOTH = pytest.mark.parametrize("name", ["ksame_pixel", "ksame_eigen"])


def pictures(people: int, size: int = 24, seed: int = 0) -> np.ndarray:
    """Smooth invented 'faces', each clearly different: uint8 (people, size, size, 3)."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(people, 3, 5, 5, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (size, size), mode="bilinear")
    return (smooth * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def as_faces(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).float() / 127.5 - 1


def as_pixels(faces: torch.Tensor) -> np.ndarray:
    return ((faces + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


# Grouping


@pytest.mark.parametrize(("people", "k"), [(2, 2), (7, 2), (23, 5), (29, 10), (19, 10), (10, 10), (60, 7)])
def test_every_group_has_at_least_k_and_fewer_than_2k(people, k):
    features = torch.rand(people, 6, generator=torch.Generator().manual_seed(people))
    clusters = ksame_clusters(features, k)
    sizes = torch.bincount(clusters)
    assert sizes.sum() == people
    assert sizes.min() >= k
    assert sizes.max() < 2 * k


def test_groups_are_nearest_neighbours_with_removal():
    # On a line: 0 takes 1 and 2; of the rest the first, 100, takes 101 and 102, not what is gone already.
    line = torch.tensor([[0.0], [100], [1], [101], [2], [102], [50], [51], [52]])
    assert ksame_clusters(line, 3).tolist() == [0, 1, 0, 1, 0, 1, 2, 2, 2]


def test_identical_features_do_not_break_the_bound():
    clusters = ksame_clusters(torch.zeros(11, 4), 3)
    assert torch.bincount(clusters).tolist() == [3, 3, 5]


@pytest.mark.parametrize("k", [1, 6, 0, -1])
def test_grouping_refuses_k_out_of_range(k):
    with pytest.raises(InputError, match="from 2 to the number of people"):
        ksame_clusters(torch.rand(5, 2), k)


def test_people_are_counted_not_pictures():
    clusters = torch.tensor([0, 0, 0, 1, 1])
    assert people_per_cluster(clusters, torch.tensor([4, 4, 4, 5, 6])).tolist() == [1, 2]


def test_nearest_rows_in_order():
    rows, squares = nearest_rows(torch.tensor([[3.0], [1.0], [2.0], [1.0]]), torch.tensor([[0.9]]), 3)
    assert rows.tolist() == [[1, 3, 2]]
    assert torch.allclose(squares[0], torch.tensor([0.01, 0.01, 1.21]))


# The closed set: the guarantee


@BOTH
@pytest.mark.parametrize(("people", "k"), [(23, 5), (12, 12), (16, 2)])
def test_each_published_face_stands_for_at_least_k_people(name, people, k):
    gallery = Gallery(pictures(people))
    method = registry.create(name, gallery=gallery, k=k)
    published = as_pixels(method.anonymize(as_faces(gallery.images), NOTHING))
    # Counted on the pixels that leave the house, not on the groups inside.
    _, counts = np.unique(published.reshape(people, -1), axis=0, return_counts=True)
    assert counts.min() >= k

    release = method.anonymize_gallery()
    assert np.array_equal(release.images[release.cluster], published)
    assert np.bincount(release.cluster).min() >= k


@BOTH
def test_a_recogniser_cannot_do_better_than_one_in_k(name):
    people, k = 40, 5
    images = pictures(people)
    published = registry.create(name, gallery=Gallery(images), k=k).anonymize(as_faces(images), NOTHING)
    for metric in (1, 2):
        distance = torch.cdist(published.flatten(1), as_faces(images).flatten(1), p=metric)
        assert (distance.argmin(1) == torch.arange(people)).float().mean() <= 1 / k


def test_pixel_surrogate_is_the_mean_of_its_group():
    images = pictures(9)
    method = registry.create("ksame_pixel", gallery=Gallery(images), k=3)
    release = method.anonymize_gallery()
    for group, picture in enumerate(release.images):
        mean = images[release.cluster == group].astype(np.float64).mean(0)
        assert np.abs(mean - picture).max() <= 0.51


def test_eigen_surrogate_is_the_projection_of_the_mean():
    images = pictures(20)
    few = registry.create("ksame_eigen", gallery=Gallery(images), k=4, components=3)
    release = few.anonymize_gallery()
    flat = as_faces(images).flatten(1).double()
    mean = flat.mean(0)
    basis = torch.linalg.svd(flat - mean, full_matrices=False).Vh[:3]
    for group, picture in enumerate(release.images):
        centre = flat[torch.from_numpy(release.cluster == group)].mean(0)
        wanted = mean + (centre - mean) @ basis.T @ basis
        assert (as_faces(picture[None]).flatten().double() - wanted.clamp(-1, 1)).abs().max() < 1.1 / 127.5


def test_eigen_with_all_components_is_the_pixel_mean():
    images = pictures(8)
    eigen = registry.create("ksame_eigen", gallery=Gallery(images), k=8, components=100).anonymize_gallery()
    pixel = registry.create("ksame_pixel", gallery=Gallery(images), k=8).anonymize_gallery()
    assert np.abs(eigen.images.astype(int) - pixel.images).max() <= 1


@BOTH
def test_closed_mode_knows_its_pictures_cut_again_at_another_size(name):
    images = pictures(12, size=32)
    method = registry.create(name, gallery=Gallery(images), k=4)
    direct = method.anonymize(as_faces(images), NOTHING)
    larger = torch.nn.functional.interpolate(as_faces(images), (80, 80), mode="bilinear", antialias=True)
    again = method.anonymize(larger, NOTHING)
    assert again.shape == larger.shape
    back = torch.nn.functional.interpolate(again, (32, 32), mode="bilinear", antialias=True)
    assert (back - direct).abs().mean() < 0.02


@BOTH
def test_closed_mode_refuses_a_stranger_and_names_the_other_mode(name):
    method = registry.create(name, gallery=Gallery(pictures(12)), k=4)
    faces = as_faces(np.concatenate([pictures(12)[:2], pictures(1, seed=9)]))
    with pytest.raises(InputError, match=r"face 2 is no picture of the gallery.*mode=open.*without the guarantee"):
        method.anonymize(faces, NOTHING)


# The open set: no guarantee


def test_open_mode_is_the_mean_of_the_k_nearest():
    images = pictures(15)
    stranger = as_faces(pictures(1, seed=4))
    result = registry.create("ksame_pixel", gallery=Gallery(images), k=3, mode="open").anonymize(stranger, NOTHING)
    distance = (as_faces(images) - stranger).flatten(1).norm(dim=1)
    wanted = as_faces(images)[distance.argsort()[:3]].mean(0)
    assert torch.allclose(result[0], wanted, atol=1e-5)


@BOTH
def test_open_mode_shows_nothing_of_the_new_face(name):
    # Everything in the result is a mix of gallery faces: with k = all people the new face plays no part at all.
    method = registry.create(name, gallery=Gallery(pictures(6)), k=6, mode="open")
    results = method.anonymize(as_faces(pictures(5, seed=3)), NOTHING)
    assert torch.allclose(results, results[:1].expand_as(results), atol=1e-6)


@BOTH
def test_record_says_whether_there_is_a_guarantee_and_nothing_of_the_path(name, tmp_path):
    path = tmp_path / "someones-faces.safetensors"
    images = pictures(6)
    names = [f"person{i}" for i in range(6)]
    write_packed(path, list(images), size=24, identities=names, files=names)
    method = registry.create(name, gallery=str(path), k=3)
    closed = method.options_record(NOTHING)
    opened = method.options_record(FaceContext(options={"mode": "open"}))
    assert closed["guarantee"] == "at least 3 people of the gallery share each face"
    assert opened["guarantee"] == "none (open set)"
    assert closed["gallery_people"] == 6
    assert len(closed["gallery_sha256"]) == 64
    text = json.dumps([closed, opened])
    assert "someones-faces" not in text
    assert "person0" not in text


# Galleries


def test_packed_file_and_tensor_give_the_same(tmp_path):
    images = pictures(10)
    names = [f"p{i}" for i in range(10)]
    write_packed(tmp_path / "g.safetensors", list(images), size=24, identities=names, files=names)
    packed = registry.create("ksame_pixel", gallery=tmp_path / "g.safetensors", k=3)
    tensor = registry.create("ksame_pixel", gallery=Gallery(torch.from_numpy(images)), k=3)
    assert np.array_equal(packed.anonymize_gallery().images, tensor.anonymize_gallery().images)


def test_missing_gallery_file_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="nowhere"):
        registry.create("ksame_pixel", gallery=str(tmp_path / "nowhere.safetensors"))


@BOTH
def test_person_shown_twice_counts_once(name):
    images = pictures(9)
    identity = np.array([0, 1, 2, 3, 3, 3, 4, 5, 6])
    method = registry.create(name, gallery=Gallery(images, identity), k=3, repeated_people="first")
    release = method.anonymize_gallery()
    assert release.identity.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert np.bincount(release.cluster).tolist() == [3, 4]
    # Person 3's second picture is no member: it would have to get the group's face of the first by recognition.
    with pytest.raises(InputError, match="no picture of the gallery"):
        method.anonymize(as_faces(images[4:5]), NOTHING)
    with pytest.raises(InputError, match="one picture a person"):
        registry.create(name, gallery=Gallery(images, identity), k=3)  # refused unless one asks for the first


def test_k_counts_people_and_not_pictures():
    gallery = Gallery(pictures(9), np.array([0, 0, 0, 0, 0, 1, 1, 1, 2]))
    assert registry.create("ksame_pixel", gallery=gallery, k=3, repeated_people="first")
    with pytest.raises(InputError, match="k=4 is more than the 3 people"):
        registry.create("ksame_pixel", gallery=gallery, k=4, repeated_people="first")


def test_one_picture_under_two_names_is_refused():
    images = pictures(6)
    images[4] = images[1]
    with pytest.raises(InputError, match="people 1 and 4 have the same picture"):
        registry.create("ksame_pixel", gallery=Gallery(images), k=2)


def test_k_may_change_by_call_and_is_checked_there():
    images = pictures(8)
    method = registry.create("ksame_pixel", gallery=Gallery(images), k=2)
    all_alike = method.anonymize(as_faces(images), FaceContext(options={"k": 8}))
    assert torch.equal(all_alike, all_alike[:1].expand_as(all_alike))
    with pytest.raises(InputError, match="k=9 is more than the 8 people"):
        method.anonymize(as_faces(images), FaceContext(options={"k": 9}))


@pytest.mark.parametrize(
    ("images", "identity"),
    [
        (np.zeros((3, 8, 8, 3), np.float32), None),
        (np.zeros((3, 8, 9, 3), np.uint8), None),
        (np.zeros((3, 3, 8, 8), np.uint8), None),
        (np.zeros((8, 8, 3), np.uint8), None),
        ([1, 2], None),
        (np.zeros((3, 8, 8, 3), np.uint8), np.zeros(2, np.int32)),
        (np.zeros((3, 8, 8, 3), np.uint8), np.zeros(3, np.float32)),
    ],
)
def test_malformed_gallery_is_refused(images, identity):
    with pytest.raises(InputError, match="gallery"):
        Gallery(images, identity)


@pytest.mark.parametrize("people", [0, 1])
def test_gallery_of_nobody_or_one_hides_nobody(people):
    with pytest.raises(InputError, match="hides nobody"):
        registry.create("ksame_pixel", gallery=Gallery(pictures(3)[:people]), k=2)


def test_gallery_of_the_wrong_type_is_refused():
    with pytest.raises(InputError, match="packed set's path or a Gallery, not int"):
        registry.create("ksame_pixel", gallery=3)
