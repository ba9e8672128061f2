"""The face painter's closed forms: pose, shape, texture, light, traits, turns, and a face told in numbers."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from facezoo.errors import InputError
from facezoo.methods.face_painter.people import FacePainterPeople
from facezoo.nets.disentangled import IdentityDistribution
from facezoo.nets.face_painter.config import FacePainterConfig
from facezoo.nets.face_painter.painter import FacePainter, Person, TraitModel, Turns
from facezoo.nets.face_painter.refiner import Refiner
from facezoo.nets.face_painter.shape import (
    Pose,
    ShapeModel,
    fit_pose,
    person_means,
    rotation_matrix,
    rotation_vector,
    several_first,
    within_people,
)
from facezoo.nets.face_painter.texture import TextureModel
from facezoo.nets.face_painter.turn import plane_rotation
from tests.painted import TINY, canonical, head, invented, shape_directions


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Pose


def poses(count: int, seed: int) -> Pose:
    vectors = torch.randn(count, 3, generator=rng(seed), dtype=torch.float64)
    scale = torch.rand(count, 1, 1, generator=rng(seed + 1), dtype=torch.float64) + 0.5
    shift = torch.randn(count, 1, 3, generator=rng(seed + 2), dtype=torch.float64)
    return Pose(rotation_matrix(vectors * 0.8), scale, shift)


def test_rotations_and_their_vectors_are_inverse():
    vectors = functional.normalize(torch.randn(50, 3, generator=rng(0), dtype=torch.float64), dim=1)
    vectors = vectors * torch.linspace(0.0, 3.1, 50, dtype=torch.float64)[:, None]
    matrices = rotation_matrix(vectors)
    assert torch.allclose(matrices @ matrices.transpose(1, 2), torch.eye(3).double().expand(50, 3, 3))
    assert torch.allclose(torch.linalg.det(matrices), torch.ones(50).double())
    assert torch.allclose(rotation_vector(matrices), vectors, atol=1e-6)
    quarter = rotation_matrix(torch.tensor([[0.0, 0.0, math.pi / 2]]))[0]  # x to y
    assert torch.allclose(quarter @ torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 1.0, 0.0]), atol=1e-6)


def test_the_pose_of_a_known_similarity_is_found():
    mean, wanted = canonical().double(), poses(5, 1)
    points = wanted.apply(mean.expand(5, -1, -1))
    found = fit_pose(points, mean)
    for name in ("rotation", "scale", "shift"):
        assert torch.allclose(getattr(found, name), getattr(wanted, name), atol=1e-9), name
    assert torch.allclose(found.remove(points), mean.expand(5, -1, -1), atol=1e-9)
    assert torch.allclose(found.turn, wanted.rotation[:, :2, 2])
    mirrored = fit_pose(points * torch.tensor([-1.0, 1.0, 1.0]), mean)
    assert torch.allclose(torch.linalg.det(mirrored.rotation), torch.ones(5).double()), "never a mirror image"


def test_pose_numbers_come_back_but_for_the_depth():
    model, wanted = ShapeModel(canonical(), 2, 2).double(), poses(6, 4)
    model.usual_scale.fill_(0.8)
    model.usual_shift.copy_(torch.tensor([0.3, -0.2]))
    numbers = model.pose_numbers(wanted)
    assert numbers.shape == (6, 6)
    found = model.pose_from_numbers(numbers)
    assert torch.allclose(found.rotation, wanted.rotation, atol=1e-6)
    assert torch.allclose(found.scale, wanted.scale)
    assert torch.allclose(found.shift[..., :2], wanted.shift[..., :2])
    assert not found.shift[..., 2].any()


# Shape


@pytest.fixture(scope="module")
def people() -> tuple[Tensor, Tensor, Tensor]:
    """Meshes of 40 people, three of each, made of two expressions and two differences between people."""
    person = torch.arange(40).repeat_interleave(3)
    directions = shape_directions(4, seed=7)
    expression = torch.randn(120, 2, generator=rng(8)) * torch.tensor([4.0, 2.0])
    identity = torch.randn(40, 2, generator=rng(9))[person] * torch.tensor([6.0, 3.0])
    shapes = canonical() + (torch.cat([expression, identity], 1) @ directions).view(120, 468, 3)
    pose = Pose(rotation_matrix(torch.randn(120, 3, generator=rng(10)) * 0.2), torch.tensor(0.05), torch.tensor(0.5))
    return pose.apply(shapes), person, directions


@pytest.fixture(scope="module")
def shape_model(people) -> ShapeModel:
    points, person, _ = people
    model = ShapeModel(canonical(), 2, 2)
    model.fit(points, person)
    return model


def test_expression_and_identity_are_told_apart(people, shape_model):
    _, _, directions = people
    for planted, found in ((directions[:2], shape_model.expression), (directions[2:], shape_model.identity)):
        assert torch.linalg.svdvals(planted @ found.T).min() > 0.97
    assert (shape_model.expression @ shape_model.identity.T).abs().max() < 1e-6
    assert torch.allclose(shape_model.expression_deviation, torch.tensor([4.0, 2.0]), rtol=0.2)
    assert torch.allclose(shape_model.identity_deviation, torch.tensor([6.0, 3.0]), rtol=0.35)
    assert shape_model.usual_scale == pytest.approx(0.05, rel=0.05)
    assert torch.allclose(shape_model.usual_shift, torch.full((2,), 0.5), atol=0.02)


def test_an_exchange_of_identity_leaves_the_expression(people, shape_model):
    points, _, _ = people
    model = ShapeModel(canonical(), 2, 2).double()
    model.load_state_dict(shape_model.state_dict())
    # Exactly orthogonal bases, as far as doubles go: what is left is no rounding of the bases.
    model.expression.copy_(torch.linalg.qr(model.expression.T).Q.T)
    model.identity.sub_(model.identity @ model.expression.T @ model.expression)
    shapes = model.pose(points.double()).remove(points.double())
    changed = model.exchange(shapes, torch.full((120, 2), 2.5, dtype=torch.float64))
    assert (changed - shapes).abs().max() > 0.1
    assert torch.allclose(model.expressions(changed), model.expressions(shapes), atol=1e-10)
    assert torch.allclose(model.identities(changed) - model.identities(shapes), torch.full((), 2.5).double(), atol=1e-4)


def test_shapes_are_composed_of_what_is_read_from_them(shape_model):
    expression, identity = torch.randn(5, 2, generator=rng(1)), torch.randn(5, 2, generator=rng(2))
    shapes = shape_model.compose(expression, identity)
    assert torch.allclose(shape_model.expressions(shapes), expression, atol=1e-4)
    assert torch.allclose(shape_model.identities(shapes), identity, atol=1e-4)
    assert torch.allclose(shape_model.compose(torch.zeros(1, 2), torch.zeros(1, 2))[0], shape_model.mean)


def test_people_are_grouped():
    values = torch.tensor([[1.0], [3.0], [10.0], [5.0]])
    person = torch.tensor([7, 7, 2, 7])
    assert person_means(values, person).flatten().tolist() == [3.0, 3.0, 10.0, 3.0]
    within = within_people(values, person)
    assert torch.allclose(within.flatten(), torch.tensor([-2.0, 0.0, 2.0]) * 1.5**0.5)
    assert within.square().mean() == pytest.approx(4.0)  # the unbiased variance of 1, 3, 5
    assert several_first(person, 3).tolist() == [0, 1, 3]


# Texture


VALID = torch.ones(1, 1, 8, 8, dtype=torch.bool)


def without_parabola(rows: Tensor) -> Tensor:
    """Rows ``(N, 192)`` that the light's parabolas tell nothing of."""
    basis = torch.linalg.qr(TextureModel._light_basis(VALID)).Q.float()
    rows = rows.view(-1, 3, 64)
    return (rows - (rows @ basis) @ basis.T).flatten(1)


def test_the_light_of_parabolas_is_exact():
    model = TextureModel(VALID, 3, 2, 1, 2, 1)
    line = torch.linspace(-1, 1, 8)
    y, x = torch.meshgrid(line, line, indexing="ij")
    terms = torch.stack([torch.ones_like(x), x, y, x * x, x * y, y * y])
    wanted = torch.randn(4, 3, 6, generator=rng(0))
    pictures = torch.einsum("bck,khw->bchw", wanted, terms)
    assert torch.allclose(model.light(model.flatten(pictures)), wanted.flatten(1), atol=1e-5)


def test_texels_of_the_face_alone():
    valid = VALID.clone()
    valid[..., :3, :] = False
    model = TextureModel(valid, 3, 2, 1, 2, 1)
    textures = torch.randn(2, 3, 8, 8, generator=rng(1))
    texels = model.flatten(textures)
    assert texels.shape == (2, 3 * 40)
    assert torch.equal(model.unflatten(texels), textures * valid)


def test_a_planted_linear_painter_is_found_again():
    """Features, light, one trait of people, one difference between pictures that is no trait, and a detail."""
    person = torch.arange(100).repeat_interleave(2)
    drawn = torch.randn(6, 3, 8, 8, generator=rng(2))
    patterns = torch.linalg.qr(without_parabola((drawn + drawn.flip(3)).flatten(1)).T).Q.T
    slopes, trait, varying, detail = patterns[:3], patterns[3], patterns[4], patterns[5]
    features = torch.randn(200, 3, generator=rng(3))
    light = torch.randn(200, 18, generator=rng(4)) * 0.1
    own = torch.randn(100, generator=rng(5))[person] * 0.3
    changing = torch.randn(200, generator=rng(6)) * 0.6
    rest = torch.randn(200, generator=rng(7)) * 0.1
    model = TextureModel(VALID, 3, 1, 1, 2, 1)
    shade = light.view(200, 3, 6) @ TextureModel._light_basis(VALID).float().T
    texels = features @ slopes * 0.2 + shade.flatten(1) + own[:, None] * trait + changing[:, None] * varying
    texels += rest[:, None] * detail
    model.fit(features, texels, person, 200, ridge=1e-8)
    painted = model.guess(features, model.light(texels))
    assert (model.weight[:3] @ slopes.T - torch.eye(3) * 0.2).abs().max() < 0.05
    assert (model.basis[0] @ trait).abs() > 0.97
    assert (model.basis[0] @ varying).abs() < 0.1
    assert model.basis_deviation[0] == pytest.approx(0.3, rel=0.2)
    found = model.traits(texels, painted)[:, 0]
    assert torch.corrcoef(torch.stack([found, own]))[0, 1].abs() > 0.9
    assert found.std() == pytest.approx(1.0, rel=0.2)
    assert (model.detail @ model.basis.T).abs().max() < 1e-4
    assert (model.detail @ torch.stack([varying, detail]).T).abs().amax(0).min() > 0.9
    # What details tell is what is missing: with them the picture is whole.
    texture = model.unflatten(texels)
    light_seen = model.light(texels)
    poor = model.paint(features, light_seen, model.traits(texels, painted))
    whole = model.paint(features, light_seen, model.traits(texels, painted), model.details(texels, painted))
    clipped = texture.clamp(-1, 1)
    assert (whole - clipped).abs().mean() < 0.2 * (poor - clipped).abs().mean()


def test_what_differs_between_the_sides_of_a_face_is_light_and_no_trait():
    person = torch.arange(100).repeat_interleave(2)
    drawn = torch.randn(3, 3, 8, 8, generator=rng(8))
    even = torch.linalg.qr(without_parabola((drawn + drawn.flip(3)).flatten(1)[:2]).T).Q.T
    odd = functional.normalize(without_parabola((drawn - drawn.flip(3)).flatten(1)[2:]), dim=1)
    own = torch.randn(100, 2, generator=rng(9))[person] * torch.tensor([0.3, 0.9])
    changing = torch.randn(200, 1, generator=rng(10)) * 0.6
    texels = torch.cat([own, changing], 1) @ torch.stack([even[0], odd[0], even[1]])
    shade = torch.randn(200, 3, 6, generator=rng(12)) * 0.1
    texels = texels + (shade @ TextureModel._light_basis(VALID).float().T).flatten(1)
    model = TextureModel(VALID, 3, 1, 1, 2, 1)
    model.fit(torch.randn(200, 3, generator=rng(11)), texels, person, 200, ridge=1e-6)
    assert (model.basis[0] @ even[0]).abs() > 0.95
    assert (model.basis[0] @ odd[0]).abs() < 0.05
    assert torch.equal(model.mirrored(drawn.flatten(1)), drawn.flip(3).flatten(1))


def test_a_regression_without_noise_is_exact():
    features = torch.randn(60, 3, generator=rng(1))
    slopes = without_parabola(torch.randn(3, 192, generator=rng(2)))
    texels = features @ slopes
    model = TextureModel(VALID, 3, 1, 1, 2, 1)
    model.fit(features, texels, torch.arange(30).repeat_interleave(2), 60, ridge=1e-10)
    assert torch.allclose(model.guess(features, model.light(texels)), texels, atol=1e-3)


# Turns


@pytest.mark.parametrize("degrees", [0.0, 70.0, 90.0, 120.0, 180.0])
def test_a_turn_has_its_angle_for_everybody(degrees):
    matrix = plane_rotation(torch.randn(10, 10, generator=rng(0)), degrees)
    assert torch.allclose(matrix @ matrix.T, torch.eye(10), atol=1e-6)
    rows = torch.randn(20, 10, generator=rng(1))
    cosines = functional.cosine_similarity(rows @ matrix, rows, dim=1)
    assert torch.allclose(cosines, torch.full((20,), math.cos(math.radians(degrees))), atol=1e-5)
    assert torch.allclose(rows @ matrix @ matrix.T, rows, atol=1e-5)
    assert torch.allclose(torch.cdist(rows @ matrix, rows @ matrix), torch.cdist(rows, rows), atol=1e-4)
    assert torch.allclose(plane_rotation(torch.randn(10, 10, generator=rng(0)), -degrees), matrix.T, atol=1e-6)


def test_a_turn_depends_on_what_was_drawn_alone():
    drawn = torch.randn(8, 8, generator=rng(2))
    assert torch.equal(plane_rotation(drawn, 95.0), plane_rotation(drawn.clone(), 95.0))
    assert torch.allclose(plane_rotation(drawn * 3.0, 95.0), plane_rotation(drawn, 95.0), atol=1e-6)
    other = plane_rotation(torch.randn(8, 8, generator=rng(3)), 95.0)
    assert (other - plane_rotation(drawn, 95.0)).abs().max() > 0.3
    with pytest.raises(ValueError, match="even number of dimensions, not 7"):
        plane_rotation(torch.randn(7, 7), 90.0)


@pytest.mark.parametrize("change", [{"identity_dim": 7}, {"texture_traits": 5}, {"personal_details": 3}])
def test_odd_numbers_are_refused_before_anything_is_trained(change):
    with pytest.raises(ValueError, match="must be even"):
        dataclasses.replace(TINY, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"personal_details": 8}, "from 0 to details=6"),
        ({"size": 97}, "cannot be halved"),
        ({"frame_size": 8}, "16 texels"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **change)


# People


def test_own_traits_are_what_the_identity_does_not_tell():
    identity = functional.normalize(torch.randn(400, 4, generator=rng(0)), dim=1)
    noise = torch.randn(400, 2, generator=rng(1)) * torch.tensor([0.5, 2.0])
    slope = torch.randn(4, 2, generator=rng(2))
    model = TraitModel(4, 2)
    model.fit(identity @ slope + 1.0 + noise, identity)
    assert torch.allclose(model.slope, slope, atol=0.6)
    assert torch.allclose(model.deviation, torch.tensor([0.5, 2.0]), rtol=0.1)
    traits = identity @ slope + 1.0 + noise
    own = model.own(traits, identity, 100.0)
    assert own.std(0).sub(1).abs().max() < 0.1
    assert torch.allclose(model.compose(own, identity), traits, atol=1e-5)
    assert model.own(traits, identity, 1.5).abs().max() == 1.5


def turns(seed: int, degrees: float = 95.0) -> Turns:
    generator = rng(seed)
    return Turns.drawn(lambda _, n: torch.randn(n, n, generator=generator), TINY, degrees)


def test_whitened_identities_come_back():
    distribution = IdentityDistribution(8)
    identity = functional.normalize(torch.randn(60, 8, generator=rng(3)) + 0.5, dim=1)
    distribution.fit(identity)
    white = distribution.whiten(identity)
    assert torch.allclose(distribution(white), identity, atol=1e-5)
    assert white.std(0).sub(1).abs().max() < 0.2


def test_a_stranger_turned_back_is_the_person():
    painter = FacePainter(TINY)  # identities around zero: there the way back is exact
    person = Person(
        functional.normalize(torch.randn(5, 8, generator=rng(4)), dim=1),
        torch.rand(5, 8, generator=rng(5)) - 0.5,
        torch.rand(5, 6, generator=rng(6)) - 0.5,
    )
    stranger = painter.stranger(person, turns(1))
    for name in ("identity", "own", "details"):
        assert (getattr(stranger, name) - getattr(person, name)).abs().mean() > 0.1, name
    assert torch.allclose(stranger.identity.norm(dim=1), torch.ones(5))
    cosines = functional.cosine_similarity(stranger.identity, person.identity)
    assert torch.allclose(cosines, torch.full((5,), math.cos(math.radians(95.0))), atol=1e-4)
    back = painter.stranger(stranger, turns(1).inverse())
    for name in ("identity", "own", "details"):
        wanted = getattr(person, name)
        if name == "details":  # what is not personal is nobody's but the original's
            wanted = torch.cat([wanted[:, :4], torch.zeros(5, 2)], 1)
        assert torch.allclose(getattr(back, name), wanted, atol=1e-5), name
    other = painter.stranger(person, turns(2))
    assert functional.cosine_similarity(other.identity, stranger.identity).abs().max() < 0.99


def test_a_fitted_painter_turns_people_almost_back_and_nobody_else():
    known = invented()
    painter = known.painter
    state = painter.observe(known.faces[::3], known.mesh[::3], known.identity[::3])
    back = painter.stranger(painter.stranger(state.person, turns(1)), turns(1).inverse())
    wrong = painter.stranger(painter.stranger(state.person, turns(1)), turns(2).inverse())
    near = functional.cosine_similarity(back.identity, state.person.identity)
    assert near.mean() > 0.9
    assert functional.cosine_similarity(wrong.identity, state.person.identity).mean() < near.mean() - 0.3


def test_numbers_bring_a_face_back():
    known, rows = invented(), slice(0, 48, 5)
    painter, faces, mesh = known.painter, known.faces[rows], known.mesh[rows]
    numbers = painter.describe(painter.observe(faces, mesh, known.identity[rows], 3.0))
    assert numbers.shape == (len(faces), sum(count for count, _ in painter.told))
    assert numbers.std() == pytest.approx(1.0, abs=0.35)
    assert [count for count, detail in painter.told if detail] == [TINY.details]
    state = painter.recall(numbers)
    assert torch.allclose(state.person.identity, known.identity[rows], atol=1e-4)
    assert ((state.points - (mesh[..., :2] + 0.5) / 96).norm(dim=-1) * 96).mean() < 0.3  # pixels
    painted = painter.paint(faces, dataclasses.replace(state, kept=False), state.person)
    inside = painted.mask > 0.99
    error = (painted.result - faces).abs().mean(1, keepdim=True)[inside].mean()
    stranger = painter.paint(faces, dataclasses.replace(state, kept=False), painter.stranger(state.person, turns(3)))
    away = (stranger.result - faces).abs().mean(1, keepdim=True)[inside].mean()
    assert error < 0.05
    assert away > 1.5 * error


def test_painting_oneself_moves_nothing_and_another_moves_the_mesh():
    known = invented()
    painter, faces, mesh = known.painter, known.faces[:4], known.mesh[:4]
    state = painter.observe(faces, mesh, known.identity[:4])
    same = painter.paint(faces, state, state.person)
    assert torch.where(same.mask > 0, torch.zeros(1), same.result - faces).abs().max() < 1e-4
    assert torch.allclose(painter.disguised(state, state.person).points, state.points, atol=1e-6)
    stranger = painter.stranger(state.person, turns(5))
    disguised = painter.disguised(state, stranger)
    assert (disguised.points - state.points).norm(dim=-1).max() * 96 > 0.5
    assert torch.allclose(
        painter.shape.expressions(disguised.shapes), painter.shape.expressions(state.shapes), atol=1e-3
    )
    assert disguised.person is stranger
    one = painter.paint(
        faces[:1],
        painter.observe(faces[:1], mesh[:1], known.identity[:1]),
        Person(stranger.identity[:1], stranger.own[:1], stranger.details[:1]),
    )
    assert torch.allclose(one.result[0], painter.paint(faces, state, stranger).result[0], atol=1e-5)
    assert one.mask[..., 0, :].max() == one.mask[..., :, -1].max() == 0, "nothing on the border of the crop"
    assert (one.kept <= one.mask).all()
    assert one.kept.max() > 0.5


def test_a_profile_keeps_its_outline():
    known = invented()
    painter = known.painter
    for yaw, moves in ((0.0, True), (80.0, False)):
        state = painter.observe(known.faces[:1], head(yaw, 96), known.identity[:1])
        disguised = painter.disguised(state, painter.stranger(state.person, turns(6)))
        assert bool((disguised.points - state.points).abs().max() > 1e-3) == moves


# Refiner and portraits


def test_an_untrained_refiner_changes_nothing_and_a_trained_one_the_mask_alone():
    torch.manual_seed(0)
    refiner = Refiner((16, 32), 5)
    guess, places = torch.rand(2, 3, 16, 16) - 0.5, torch.zeros(2, 2, 16, 16)
    mask = torch.zeros(2, 1, 16, 16)
    mask[..., 4:12, 4:12] = 1
    condition = torch.randn(2, 5)
    assert torch.equal(refiner(guess, places, mask, condition), guess)
    torch.nn.init.normal_(refiner.head.weight)
    refined = refiner(guess, places, mask, condition)
    assert torch.equal(refined[..., :4, :], guess[..., :4, :])
    assert (refined - guess)[..., 4:12, 4:12].abs().mean() > 0.05
    assert refined.abs().max() <= 1
    assert not torch.equal(refiner(guess, places, mask, -condition), refined)


def test_a_seed_is_a_person():
    people = FacePainterPeople(invented().painter)
    first = people.person(3, 0.8)
    assert first.shape == (3, 96, 96)
    assert first.abs().max() <= 1
    assert first.std() > 0.02
    assert torch.equal(first, people.person(3, 0.8))
    assert not torch.equal(first, people.person(4, 0.8))
    assert torch.equal(people.person(3, 0.0), people.person(4, 0.0)), "the mean face"
    for seed in (-1, 2**63, True, "1"):
        with pytest.raises(InputError, match="a seed is a whole number"):
            people.person(seed, 0.5)
    for truncation in (-0.1, 1.1):
        with pytest.raises(InputError, match="truncation must be from 0 to 1"):
            people.person(1, truncation)


def test_surroundings_and_light_follow_what_they_were_fitted_to():
    known = invented()
    portrait = known.painter.portrait
    assert torch.allclose(portrait.mesh, known.mesh.mean(0), atol=1e-4)
    light = portrait.light(torch.randn(4000, 18, generator=rng(0)))
    seen = torch.cat([known.painter.observe(known.faces, known.mesh, known.identity).light])
    assert torch.allclose(light.mean(0), seen.mean(0), atol=0.02)
    assert torch.allclose(light.std(0), seen.std(0), rtol=0.2, atol=0.01)
    around = portrait.surroundings(known.identity[:2], light[:2], 96)
    assert around.shape == (2, 3, 96, 96)
    assert around.abs().max() <= 1


def test_the_default_sizes_fit():
    assert FacePainterConfig().traits == 64
