"""The face painter: what a face does is kept, who it is is exchanged in every channel that tells it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from facezoo.faces.mask import border_taper
from facezoo.mesh import topology
from facezoo.nets.disentangled import IdentityDistribution
from facezoo.nets.face_painter.config import FacePainterConfig
from facezoo.nets.face_painter.frame import Rendering, TextureFrame, sample
from facezoo.nets.face_painter.portrait import Portrait
from facezoo.nets.face_painter.refiner import Refiner
from facezoo.nets.face_painter.shape import POSE_NUMBERS, Pose, ShapeModel
from facezoo.nets.face_painter.texture import TextureModel
from facezoo.nets.face_painter.turn import plane_rotation

__all__ = ["FacePainter", "FaceState", "Painting", "Person", "TraitModel", "Turns"]

_SOFT_EDGE = 7
"""Width of the mask's soft edge, in pixels of a crop of 128."""
_TURN_RANGE = (0.45, 0.8)
"""Turns of the head (sine) over which the exchange of shape fades out: an outline seen from the side is not known."""


class TraitModel(nn.Module):
    """What the identity vector says about the traits, and how far people deviate from that.

    Args:
        identity_dim: length of the identity vector.
        traits: number of traits.
    """

    mean: Tensor
    slope: Tensor
    deviation: Tensor

    def __init__(self, identity_dim: int, traits: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(traits))
        self.register_buffer("slope", torch.zeros(identity_dim, traits))
        self.register_buffer("deviation", torch.ones(traits))

    def expected(self, identity: Tensor) -> Tensor:
        """Traits ``(B, T)`` that go with unit identity vectors ``(B, D)``."""
        return self.mean + identity @ self.slope

    def own(self, traits: Tensor, identity: Tensor, limit: float) -> Tensor:
        """What of the traits the identity vector does not tell, standardised and cut to ``limit``: ``(B, T)``."""
        return ((traits - self.expected(identity)) / self.deviation).clamp(-limit, limit)

    def compose(self, own: Tensor, identity: Tensor) -> Tensor:
        """The traits again: inverse of ``own`` but for the cut."""
        return self.expected(identity) + own * self.deviation

    @torch.no_grad()
    def fit(self, traits: Tensor, identity: Tensor, ridge: float = 1e-3) -> None:
        """Ridge regression of ``(N, T)`` on ``(N, D)``."""
        x, y = identity.double(), traits.double()
        x_mean, y_mean = x.mean(0), y.mean(0)
        x, y = x - x_mean, y - y_mean
        slope = torch.linalg.solve(
            x.T @ x + ridge * len(x) / x.shape[1] * torch.eye(x.shape[1], dtype=x.dtype), x.T @ y
        )
        self.slope.copy_(slope)
        self.mean.copy_(y_mean - x_mean @ slope)
        self.deviation.copy_((y - x @ slope).std(0).clamp_min(1e-6))


@dataclass(frozen=True)
class Person:
    """Who somebody is, in every channel that tells it.

    Attributes:
        identity: ``(B, D)`` unit identity vectors.
        own: ``(B, T)`` standardised traits that the identity vector does not tell.
        details: ``(B, M)`` standardised details of the texture.
    """

    identity: Tensor
    own: Tensor
    details: Tensor


@dataclass(frozen=True)
class FaceState:
    """A face as the painter sees it.

    Attributes:
        points: ``(B, N, 2)`` mesh points in crop units.
        depth: ``(B, N)`` in crop units.
        pose: pose of the head.
        shapes: ``(B, N, 3)`` the mesh without its pose.
        behaviour: ``(B, E + 4)`` expression and turn of the head.
        light: ``(B, 18)`` skin tone and light.
        person: who it is.
        kept: whether the inside of eyes and mouth is taken from the picture.
    """

    points: Tensor
    depth: Tensor
    pose: Pose
    shapes: Tensor
    behaviour: Tensor
    light: Tensor
    person: Person
    kept: bool = True


@dataclass(frozen=True)
class Turns:
    """Rotations of the three channels that tell a person, for row vectors; see ``turn.plane_rotation``.

    Attributes:
        identity: ``(D, D)``, of the whitened identity vector.
        own: ``(T, T)``.
        details: ``(P, P)``, of the personal ones.
    """

    identity: Tensor
    own: Tensor
    details: Tensor

    @classmethod
    def drawn(
        cls, draw: Callable[[str, int], Tensor], config: FacePainterConfig, degrees: float, trait_degrees: float = 90.0
    ) -> Turns:
        """Turns in planes that are drawn.

        Args:
            draw: name and n -> ``(n, n)`` random numbers.
            config: of the painter.
            degrees: the angle of the identity vector.
            trait_degrees: that of traits and details.
        """
        c = config
        return cls(
            plane_rotation(draw("identity", c.identity_dim), degrees),
            plane_rotation(draw("traits", c.traits), trait_degrees),
            plane_rotation(draw("details", c.personal_details), trait_degrees),
        )

    def inverse(self) -> Turns:
        """The turns back."""
        return Turns(self.identity.T, self.own.T, self.details.T)

    def to(self, device: torch.device) -> Turns:
        """The same on another device."""
        return Turns(self.identity.to(device), self.own.to(device), self.details.to(device))


@dataclass(frozen=True)
class Painting:
    """What the painter made.

    Attributes:
        guess: ``(B, 3, S, S)`` the linear guess in its surroundings, moved where the outline moved.
        mask: ``(B, 1, S, S)`` where the face was painted, in [0, 1].
        kept: ``(B, 1, S, S)`` part of it that the picture itself shows (eyes and mouth inside), in [0, 1].
        places: ``(B, 2, S, S)`` frame coordinates in [-1, 1].
        condition: ``(B, D + T)`` who was painted.
        result: ``(B, 3, S, S)`` the refined picture; ``guess`` where none was asked for.
    """

    guess: Tensor
    mask: Tensor
    kept: Tensor
    places: Tensor
    condition: Tensor
    result: Tensor


def _symmetric_layout() -> Tensor:
    """The canonical texture coordinates, made exactly symmetric: ``(N, 2)``."""
    layout = torch.from_numpy(topology.UV.copy())
    mirrored = layout[torch.from_numpy(topology.MIRROR.copy())] * torch.tensor([-1.0, 1.0]) + torch.tensor([1.0, 0.0])
    return ((layout + mirrored) / 2).float()


def _triangles_within(triangles: Tensor, points: Iterable[int]) -> Tensor:
    """Which triangles have all corners among ``points``: ``(T,)`` bool."""
    return torch.isin(triangles, torch.tensor(list(points))).all(1)


class FacePainter(nn.Module):
    """Frame, shape model, linear painter and refiner under one roof.

    Args:
        config: sizes.
    """

    kept_triangles: Tensor
    taper: Tensor

    def __init__(self, config: FacePainterConfig) -> None:
        super().__init__()
        c = self.config = config
        # Here y runs down and depth away from the camera, as in pictures.
        shape = torch.from_numpy(topology.CANONICAL * (1.0, -1.0, -1.0)).float()
        triangles = torch.from_numpy(topology.TRIANGLES.copy())
        self.frame = TextureFrame(
            _symmetric_layout(),
            shape,
            triangles,
            torch.from_numpy(topology.MIRROR.copy()),
            torch.tensor(topology.OVAL),
            c.frame_size,
        )
        self.shape = ShapeModel(shape, c.expressions, c.shape_traits)
        features = c.identity_dim + c.expressions + 4
        self.texture = TextureModel(
            self.frame.valid, features, c.texture_traits, c.varying, c.details, c.personal_details
        )
        self.traits = TraitModel(c.identity_dim, c.traits)
        self.identity_distribution = IdentityDistribution(c.identity_dim)
        self.portrait = Portrait(c.identity_dim, self.texture.light_mean.numel(), topology.POINTS)
        self.refiner = Refiner(c.widths, c.identity_dim + c.traits)
        kept = torch.zeros(len(triangles))
        inner = ((topology.EYES[0], c.keep_eyes), (topology.EYES[1], c.keep_eyes), (topology.INNER_LIPS, c.keep_mouth))
        for points, share in inner:
            kept[_triangles_within(triangles, points)] = share
        self.register_buffer("kept_triangles", kept, persistent=False)
        self.register_buffer("taper", torch.from_numpy(border_taper(c.size).copy())[None, None], persistent=False)

    def networks(self) -> dict[str, nn.Module]:
        """The networks by the names of their files."""
        names = ("shape", "texture", "traits", "identity_distribution", "portrait", "refiner")
        return {name: getattr(self, name) for name in names}

    # ------------------------------------------------------------------ seeing
    def observe(self, faces: Tensor, mesh: Tensor, identity: Tensor, limit: float | None = None) -> FaceState:
        """Takes faces apart.

        Args:
            faces: ``(B, 3, S, S)`` aligned crops in [-1, 1].
            mesh: ``(B, N, 3)`` mesh in crop pixels, pixel centres at whole numbers, depth away from the camera.
            identity: ``(B, D)`` unit identity vectors.
            limit: traits are cut to this many deviations; None: the configuration's.
        """
        points, depth, pose, shapes, behaviour = self._geometry(mesh, faces.shape[-1])
        texels = self.texture.flatten(self.frame.to_texture(faces, points))
        light = self.texture.light(texels)
        guess = self.texture.guess(self._features(identity, behaviour), light)
        traits = torch.cat([self.shape.identities(shapes), self.texture.traits(texels, guess)], 1)
        limit = limit or self.config.trait_limit
        details = self.texture.details(texels, guess).clamp(-limit, limit)
        person = Person(identity, self.traits.own(traits, identity, limit), details)
        return FaceState(points, depth, pose, shapes, behaviour, light, person)

    def _geometry(self, mesh: Tensor, size: int) -> tuple[Tensor, Tensor, Pose, Tensor, Tensor]:
        mesh = mesh.float()
        points, depth = (mesh[..., :2] + 0.5) / size, mesh[..., 2] / size
        space = torch.cat([points, depth[..., None]], 2)
        pose = self.shape.pose(space)
        shapes = pose.remove(space)
        return points, depth, pose, shapes, self._behaviour(self.shape.expressions(shapes), pose)

    @staticmethod
    def _behaviour(expression: Tensor, pose: Pose) -> Tensor:
        return torch.cat([expression.clamp(-3, 3), pose.turn * 2, pose.turn.square() * 4], 1)

    @staticmethod
    def _features(identity: Tensor, behaviour: Tensor) -> Tensor:
        return torch.cat([identity * identity.shape[1] ** 0.5, behaviour], 1)

    @staticmethod
    def lit(state: FaceState, light: Tensor) -> FaceState:
        """The same faces in another light, ``(B, 18)``; their eyes and mouths are painted, not kept."""
        return dataclasses.replace(state, light=light, kept=False)

    # ------------------------------------------------------------------ painting
    def paint(self, faces: Tensor, state: FaceState, person: Person, refine: bool = True) -> Painting:
        """Paints somebody in the place of a face.

        Args:
            faces: ``(B, 3, S, S)`` in [-1, 1].
            state: what ``observe`` saw there.
            person: who is to be painted.
            refine: false gives the linear guess.
        """
        c = self.config
        traits = self.traits.compose(person.own, person.identity)
        points, depth, _ = self._moved(state, traits[:, : c.shape_traits])
        size = faces.shape[-1]
        drawn = self.frame.render(points, depth, state.points, size)
        surroundings = sample(faces, drawn.source_places)
        features = self._features(person.identity, state.behaviour)
        texture = self.texture.paint(features, state.light, traits[:, c.shape_traits :], person.details)
        painted = sample(texture, drawn.texture_places)
        kept = self._kept(drawn) * float(state.kept)
        mask = self._soft(drawn.inside)
        guess = torch.lerp(surroundings, torch.lerp(painted, surroundings, kept), mask)
        places = (drawn.texture_places * 2 - 1).permute(0, 3, 1, 2)
        own = person.own.clamp(-c.trait_limit, c.trait_limit)
        condition = torch.cat([person.identity * c.identity_dim**0.5, own], 1)
        result = self.refiner(guess, places, mask, condition) if refine else guess
        return Painting(guess, mask, kept * mask, places, condition, result)

    def disguised(self, state: FaceState, person: Person) -> FaceState:
        """A face as it stands in a picture after ``paint`` put another there: its mesh is that of the other."""
        traits = self.traits.compose(person.own, person.identity)
        points, depth, shapes = self._moved(state, traits[:, : self.config.shape_traits])
        return dataclasses.replace(state, points=points, depth=depth, shapes=shapes, person=person)

    def _moved(self, state: FaceState, traits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mesh points ``(B, N, 2)``, depth ``(B, N)`` and shape ``(B, N, 3)`` with the shape traits of another."""
        c = self.config
        whole = self.traits.compose(state.person.own, state.person.identity)[:, : c.shape_traits]
        low, high = _TURN_RANGE
        fade = 1 - ((state.pose.turn.norm(dim=1, keepdim=True) - low) / (high - low)).clamp(0, 1)
        shapes = self.shape.exchange(state.shapes, (traits - whole) * fade)
        change = state.pose.apply(shapes) - state.pose.apply(state.shapes)
        return state.points + change[..., :2], state.depth + change[..., 2], shapes

    def _kept(self, drawn: Rendering) -> Tensor:
        """Where the picture shows through: the inside of eyes and mouth, with an edge of a pixel or two."""
        kept = self.kept_triangles[drawn.triangle][:, None] * drawn.inside
        width = 2 * max(1, round(kept.shape[-1] / 128)) + 1
        return functional.avg_pool2d(kept, width, 1, width // 2)

    def _soft(self, inside: Tensor) -> Tensor:
        """A mask that is 0 on the outline and 1 a few pixels within; never on the border of the crop."""
        size = inside.shape[-1]
        width = 2 * round(_SOFT_EDGE * size / 256) + 1
        blurred = functional.avg_pool2d(inside, width, 1, width // 2)
        ramp = (blurred * 2 - 1).clamp(0, 1)
        return ramp * ramp * (3 - 2 * ramp) * self.taper

    def stranger(self, person: Person, turns: Turns) -> Person:
        """Who stands in somebody's place: identity (whitened), traits and personal details, each turned in planes.

        The same turns make the same stranger of a person everywhere and keep people apart. ``Turns.inverse`` undoes
        them, the identity vector's up to what bringing it to length 1 changes.
        """
        c = self.config
        white = self.identity_distribution.whiten(person.identity) @ turns.identity
        own = (person.own @ turns.own).clamp(-c.trait_limit, c.trait_limit)
        personal, general = torch.split(person.details, [c.personal_details, c.details - c.personal_details], 1)
        personal = (personal @ turns.details).clamp(-c.trait_limit, c.trait_limit)
        details = torch.cat([personal, torch.zeros_like(general)], 1)
        return Person(self.identity_distribution(white), own, details)

    # ------------------------------------------------------------------ a face in numbers
    @property
    def told(self) -> tuple[tuple[int, bool], ...]:
        """How many numbers of each kind tell a face, and whether they are details: see ``describe``."""
        c = self.config
        lights = self.texture.light_mean.numel()
        kinds = (c.identity_dim, c.traits, c.details, c.expressions, POSE_NUMBERS, lights)
        return tuple((count, place == 2) for place, count in enumerate(kinds))

    def describe(self, state: FaceState) -> Tensor:
        """A face as about standard normal numbers ``(B, N)``, from which ``recall`` brings it back.

        In order: identity vector (whitened), traits, details, expression, pose, light. Traits are told up to where
        ``observe`` cut them.
        """
        expression = self.shape.expressions(state.shapes)
        light = (state.light - self.texture.light_mean) / self.texture.light_deviation
        parts = (
            self.identity_distribution.whiten(state.person.identity),
            state.person.own,
            state.person.details,
            expression,
            self.shape.pose_numbers(state.pose),
            light,
        )
        return torch.cat(parts, 1)

    def recall(self, numbers: Tensor) -> FaceState:
        """The face that numbers ``(B, N)`` tell."""
        c = self.config
        white, own, details, expression, placed, light = torch.split(numbers, [count for count, _ in self.told], 1)
        identity = self.identity_distribution(white)
        pose = self.shape.pose_from_numbers(placed)
        traits = self.traits.compose(own, identity)[:, : c.shape_traits]
        shapes = self.shape.compose(expression, traits)
        space = pose.apply(shapes)
        behaviour = self._behaviour(expression, pose)
        shine = light * self.texture.light_deviation + self.texture.light_mean
        person = Person(identity, own, details)
        return FaceState(space[..., :2], space[..., 2], pose, shapes, behaviour, shine, person)

    # ------------------------------------------------------------------ fitting
    @torch.no_grad()
    def fit(
        self, batches: Iterable[tuple[Tensor, Tensor, Tensor]], meshes: Tensor, person: Tensor, identity: Tensor
    ) -> None:
        """Fits everything that has a closed form: shape model, linear painter, traits, distribution of identities.

        Args:
            batches: faces ``(B, 3, S, S)`` in [-1, 1], mesh ``(B, N, 3)`` in crop pixels and unit identity vectors
                ``(B, D)``, in the order of the other arguments.
            meshes: ``(N, P, 3)`` all meshes.
            person: ``(N,)`` int64 who it is; people with several pictures tell what belongs to a person.
            identity: ``(N, D)`` all unit identity vectors.
        """
        c = self.config
        self.identity_distribution.fit(identity)
        self.shape.fit((meshes + 0.5) / c.size, person)
        features, texels, shapes, small = [], [], [], []
        for faces, mesh, z in batches:
            points, _, _, shape, behaviour = self._geometry(mesh, faces.shape[-1])
            features.append(self._features(z, behaviour))
            texels.append(self.texture.flatten(self.frame.to_texture(faces, points)).half())
            shapes.append(self.shape.identities(shape))
            small.append(functional.adaptive_avg_pool2d(faces, self.portrait.grid))
        columns, whole = torch.cat(features), torch.cat(texels)
        self.texture.fit(columns, whole, person, c.trait_faces, c.ridge)
        rows, lights = [], []
        for at, part in zip(range(0, len(whole), 512), torch.split(whole, 512), strict=True):
            seen = part.float()
            lights.append(self.texture.light(seen))
            rows.append(self.texture.traits(seen, self.texture.guess(columns[at : at + 512], lights[-1])))
        traits = torch.cat([torch.cat(shapes), torch.cat(rows)], 1)
        self.traits.fit(traits.clamp(-3, 3), identity)
        self.portrait.fit(torch.cat(small), identity, torch.cat(lights), meshes)
