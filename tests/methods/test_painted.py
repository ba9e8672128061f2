"""identity_rotation and identity_dp on a face painter: what the key decides, what comes back, what plays no part."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from facezoo.faces.mask import border_taper
from facezoo.keys import Key
from facezoo.methods.base import FaceContext
from facezoo.methods.face_painter.use import UNSURE, gray_as
from facezoo.methods.identity_dp import painted as painted_dp
from facezoo.methods.identity_dp.config import PaintedDPConfig
from facezoo.methods.identity_dp.painted import PaintedIdentityDP
from facezoo.methods.identity_rotation import painted as painted_rotation
from facezoo.methods.identity_rotation.config import PaintedRotationConfig
from facezoo.methods.identity_rotation.painted import PaintedRotation
from facezoo.nets.face_painter.painter import FaceState, Person
from facezoo.privacy.randomness import SeededBits
from tests.labelled import FewConvolutions
from tests.painted import TINY, KnownMeshes, invented

KEY, OTHER = Key.from_bytes(bytes(range(32))), Key.from_bytes(bytes(range(1, 33)))
SIZES = {field.name: getattr(TINY, field.name) for field in dataclasses.fields(TINY)}


class KnownIdentities(FewConvolutions):
    """Identity vectors of the invented faces, and of any other picture what a few convolutions say."""

    def forward(self, faces: Tensor) -> Tensor:
        known = invented()
        distance, place = torch.cdist(faces.flatten(1), known.faces.flatten(1)).min(dim=1)
        return torch.where((distance < 1e-3)[:, None], known.identity[place], super().forward(faces))


@pytest.fixture
def rotation(monkeypatch) -> PaintedRotation:
    monkeypatch.setattr(painted_rotation, "load_mesh", lambda device="cpu": KnownMeshes())
    return PaintedRotation(invented().painter, KnownIdentities(8), PaintedRotationConfig(**SIZES))


@pytest.fixture
def faces() -> Tensor:
    return invented().faces[::9][:3].clone()


def context(key: Key | None = KEY, **options: object) -> FaceContext:
    return FaceContext(key=key, options=options)


def saved(pictures: Tensor) -> Tensor:
    return ((pictures + 1) * 127.5).round() / 127.5 - 1


def inside(method, faces: Tensor) -> Tensor:
    """Where a face is painted, ``(B, 3, S, S)`` bool."""
    known = invented()
    place = torch.cdist(faces.flatten(1), known.faces.flatten(1)).argmin(dim=1)
    state = method.painter.observe(faces, known.mesh[place], known.identity[place])
    return (method.painter.paint(faces, state, state.person).mask > 0.9).expand_as(faces)


def error(found: Tensor, faces: Tensor, where: Tensor) -> float:
    return float((found - faces).abs()[where].mean())


def test_a_key_makes_one_stranger_and_brings_the_original_back(rotation, faces):
    hidden = rotation.anonymize(faces, context())
    assert hidden.shape == faces.shape
    assert hidden.abs().max() <= 1
    assert torch.equal(hidden, rotation.anonymize(faces, context()))
    where = inside(rotation, faces)
    other = rotation.anonymize(faces, context(OTHER))
    assert error(hidden, faces, where) > 0.03
    assert error(hidden, other, where) > 0.02
    one = rotation.anonymize(faces[1:2], context())
    assert torch.allclose(one[0], hidden[1], atol=1e-3)

    right = rotation.recover(saved(hidden), context())
    wrong = rotation.recover(saved(hidden), context(OTHER))
    assert right.verified == [True] * 3
    assert wrong.verified == [False] * 3
    assert error(right.faces, faces, where) < 0.6 * error(wrong.faces, faces, where)
    assert error(right.faces, faces, where) < 0.6 * error(hidden, faces, where)
    mixed = rotation.recover(torch.cat([saved(hidden[:1]), faces[1:2]]), context())
    assert mixed.verified == [True, False], "a picture without a code"
    assert torch.allclose(mixed.faces[0], right.faces[0], atol=1e-4)
    plain = rotation.recover(saved(hidden), context(conceal=False))
    assert plain.verified == [None] * 3
    empty = rotation.recover(faces[:0], context())
    assert (len(empty.faces), empty.verified) == (0, [])
    assert len(rotation.anonymize(faces[:0], context())) == 0


def people_of(rotation: PaintedRotation, faces: Tensor, **options: object) -> list[Person]:
    """Who is painted, a face at a time."""
    seen: list[Person] = []
    paint = rotation.painter.paint

    def remembered(crops: Tensor, state: FaceState, person: Person, refine: bool = True):
        seen.append(person)
        return paint(crops, state, person, refine)

    rotation.painter.paint = remembered
    try:
        for face in faces:
            rotation.anonymize(face[None], context(**options))
    finally:
        del rotation.painter.paint
    return seen


def test_one_person_stays_one_or_becomes_another_in_every_picture(rotation):
    two = invented().faces[:2]  # two pictures of one person
    first, second = people_of(rotation, two, pseudonym="person")
    assert functional.cosine_similarity(first.identity, second.identity) > 0.9
    first, second = people_of(rotation, two, pseudonym="picture")
    assert functional.cosine_similarity(first.identity, second.identity) < 0.9
    again = people_of(rotation, two[:1], pseudonym="picture")[0]
    assert torch.equal(again.identity, first.identity), "the same picture, the same stranger"
    hidden = rotation.anonymize(two, context(pseudonym="picture"))
    right = rotation.recover(saved(hidden), context(pseudonym="picture"))
    assert right.verified == [True, True]
    where = inside(rotation, two)
    assert error(right.faces, two, where) < 0.6 * error(hidden, two, where)


def test_levels_turn_farther(rotation, faces):
    cosines = []
    own = KnownIdentities(8)(faces[:1])
    for level in (0, 9):
        (person,) = people_of(rotation, faces[:1], level=level)
        white = rotation.painter.identity_distribution.whiten
        cosines.append(float(functional.cosine_similarity(white(person.identity), white(own))))
    assert cosines[0] > cosines[1]


def test_without_the_code_nothing_changes_around_the_face(rotation, faces):
    hidden = rotation.anonymize(faces, context(conceal=False))
    known = invented()
    place = torch.cdist(faces.flatten(1), known.faces.flatten(1)).argmin(dim=1)
    touched = torch.zeros(3, 1, 96, 96, dtype=torch.bool)
    for i, mesh in enumerate(known.mesh[place]):
        centre = mesh[list(rotation.painter.frame.outline), :2].mean(0)
        reach = (mesh[list(rotation.painter.frame.outline), :2] - centre).norm(dim=1).max() * 1.22 + 1
        line = torch.arange(96.0)
        touched[i, 0] = (line[None] - centre[0]).square() + (line[:, None] - centre[1]).square() < reach**2
    far = ~touched.expand_as(faces)
    assert far.float().mean() > 0.05
    assert (hidden - faces)[far].abs().max() < 1e-4
    coded = rotation.anonymize(faces, context())
    change = (coded - hidden).abs() * 127.5
    assert change.max() < 25
    assert change.mean() > 0.1
    assert torch.from_numpy(border_taper(96).copy())[0, 0] == 0
    assert (coded - hidden)[..., :8, :].abs().max() < 1e-6


def test_gray_stays_gray(rotation, faces):
    gray = faces.mean(1, keepdim=True).expand(-1, 3, -1, -1).contiguous()
    mixed = torch.cat([gray[:1], faces[1:2]])
    hidden = rotation.anonymize(mixed, context())
    recovered = rotation.recover(saved(hidden), context()).faces
    for result in (hidden, recovered):
        spread = (result.amax(1) - result.amin(1)).flatten(1).amax(1)
        assert spread[0] < 0.03
        assert spread[1] > 0.05
    assert torch.equal(gray_as(faces, faces * 0.5), faces * 0.5)


@pytest.fixture
def dp(monkeypatch) -> PaintedIdentityDP:
    monkeypatch.setattr(painted_dp, "load_mesh", lambda device="cpu": KnownMeshes())
    config = PaintedDPConfig(**SIZES, greatest_l1=4.0, greatest_l1_faces=100)
    return PaintedIdentityDP(invented().painter, KnownIdentities(8), config)


@pytest.mark.parametrize("which", ["rotation", "dp"])
def test_what_the_mesh_does_not_find_is_painted_over_and_said(which, request, faces):
    method = request.getfixturevalue(which)
    strange = torch.full((1, 3, 96, 96), 0.9)  # far from all invented faces
    both = torch.cat([faces[:1], strange])
    given = context(conceal=False) if which == "rotation" else FaceContext(seed=1, options={"randomness": "seeded"})
    assert method.notes(both, given) == [(), (UNSURE,)]
    assert method.notes(both[:0], given) == []
    hidden = method.anonymize(both, given)
    mesh = invented().painter.portrait.mesh
    x, y = mesh[:, :2].mean(0).round().int().tolist()
    assert (hidden[1] - strange[0])[:, y - 20 : y + 20, x - 15 : x + 15].abs().mean() > 0.03


def test_noise_is_drawn_anew_and_the_same_seed_gives_it_again(dp, faces):
    seeded = FaceContext(seed=1, options={"randomness": "seeded"})
    hidden = dp.anonymize(faces, seeded)
    assert torch.equal(hidden, dp.anonymize(faces, seeded))
    assert torch.allclose(dp.anonymize(faces[1:2], seeded)[0], hidden[1], atol=1e-4)
    assert not torch.equal(hidden, dp.anonymize(faces, FaceContext(seed=2, options={"randomness": "seeded"})))
    assert not torch.equal(dp.anonymize(faces, FaceContext()), dp.anonymize(faces, FaceContext()))
    leaks = dp.guarantee(FaceContext()).leaks
    assert "18 numbers" in leaks
    assert "expression, pose" in leaks


def test_the_originals_traits_play_no_part(dp, monkeypatch):
    """Two faces alike but for traits of shape and texture, under one source: one person drawn, one mesh painted."""
    known, painter = invented(), dp.painter
    crop, mesh, identity = known.faces[:1], known.mesh[:1], known.identity[:1]
    state = painter.observe(crop, mesh, identity)
    shapes = painter.shape.exchange(state.shapes, torch.tensor([[0.3, -0.3, 0.2, 0.1]]))
    space = state.pose.apply(shapes)
    moved = torch.cat([space[..., :2] * 96 - 0.5, space[..., 2:] * 96], 2)
    assert (moved - mesh).norm(dim=-1).max() > 0.1
    seen: list[tuple[FaceState, Person]] = []
    paint = painter.paint

    def remembered(crops: Tensor, state: FaceState, person: Person, refine: bool = True):
        seen.append((painter.disguised(state, person), person))
        return paint(crops, state, person, refine)

    monkeypatch.setattr(painter, "paint", remembered)
    released = functional.normalize(torch.ones(1, 8), dim=1)
    for shape in (mesh, moved):
        monkeypatch.setattr(painted_dp, "meshes_of_crops", lambda network, painter, crops, shape=shape: shape)
        dp._painted(crop, released, identity, [SeededBits(b"one source")])
    (first, one), (second, other) = seen
    for name in ("identity", "own", "details"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    away = (first.points - second.points).norm(dim=-1).max() * 96
    assert away < 0.1 * (moved - mesh)[..., :2].norm(dim=-1).max() + 0.05
    # Another source, another person; the trait's limit holds.
    dp._painted(crop, released, identity, [SeededBits(b"another source")])
    assert not torch.equal(seen[2][1].own, one.own)
    assert seen[2][1].own.abs().max() <= TINY.trait_limit


def test_configurations_are_told_apart():
    assert (
        PaintedRotationConfig(**SIZES).painter
        == PaintedDPConfig(**SIZES, greatest_l1=1.0, greatest_l1_faces=2).painter
        == "face_painter"
    )
    with pytest.raises(ValueError, match="greatest_l1"):
        PaintedDPConfig(**SIZES)
