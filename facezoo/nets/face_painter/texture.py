"""The linear painter: a texture from who it is, how the light falls and what the face does, in closed form."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from facezoo.nets.face_painter.shape import person_means, principal_directions, several_first, within_people

__all__ = ["TextureModel"]

_LIGHT_TERMS = 6
_CHUNK = 512


class TextureModel(nn.Module):
    """``texture = weight @ (features, 1) + traits @ basis``, on the texels of the face.

    The features tell identity vector, light, expression and pose; *traits* are what belongs to a person beyond its
    identity vector (brows, lips, beard, skin): principal directions of what the features leave over, orthogonal to what
    differs between pictures of one person. Traits that are drawn give individual faces in the place of the mean one
    that a regression paints.

    Args:
        valid: ``(1, 1, R, R)`` bool, the texels of the face.
        features: number of features beside the light's.
        traits: number of traits.
        varying: number of directions that differ between pictures of one person and are no traits.
        details: number of further directions.
        personal: how many of them go on where the traits end; the others are of whatever is left, light that falls in
            patches and glasses too, and only a recovery uses them.
    """

    weight: Tensor
    basis: Tensor
    basis_deviation: Tensor
    detail: Tensor
    detail_deviation: Tensor
    valid: Tensor
    mirror: Tensor
    light_solver: Tensor
    light_mean: Tensor
    light_deviation: Tensor

    def __init__(self, valid: Tensor, features: int, traits: int, varying: int, details: int, personal: int) -> None:
        super().__init__()
        self.size = valid.shape[-1]
        self.varying, self.personal = varying, personal
        texels = 3 * int(valid.sum())
        self.register_buffer("valid", valid.flatten().nonzero()[:, 0], persistent=False)
        place = torch.full((self.size * self.size,), -1)
        place[self.valid] = torch.arange(len(self.valid))
        mirror = place.view(self.size, self.size).flip(1).flatten()[self.valid]
        # A texel on the rim whose mirror image lies just outside is its own mirror image.
        mirror = torch.where(mirror >= 0, mirror, torch.arange(len(mirror)))
        self.register_buffer("mirror", mirror, persistent=False)
        self.register_buffer("light_solver", torch.linalg.pinv(self._light_basis(valid)).float(), persistent=False)
        columns = features + 3 * _LIGHT_TERMS + 1
        self.register_buffer("weight", torch.zeros(columns, texels))
        self.register_buffer("basis", torch.zeros(traits, texels))
        self.register_buffer("basis_deviation", torch.ones(traits))
        self.register_buffer("detail", torch.zeros(details, texels))
        self.register_buffer("detail_deviation", torch.ones(details))
        self.register_buffer("light_mean", torch.zeros(3 * _LIGHT_TERMS))
        self.register_buffer("light_deviation", torch.ones(3 * _LIGHT_TERMS))

    @staticmethod
    def _light_basis(valid: Tensor) -> Tensor:
        """``(V, 6)`` float64: 1, x, y, x^2, x y, y^2 over the face: skin tone and the fall of light, no features."""
        line = torch.linspace(-1, 1, valid.shape[-1], dtype=torch.float64)
        y, x = torch.meshgrid(line, line, indexing="ij")
        terms = torch.stack([torch.ones_like(x), x, y, x * x, x * y, y * y], -1)
        return terms[valid[0, 0].cpu()]

    def flatten(self, textures: Tensor) -> Tensor:
        """``(B, 3, R, R)`` -> the face's texels ``(B, 3 V)``."""
        return textures.flatten(2)[:, :, self.valid].flatten(1)

    def unflatten(self, texels: Tensor) -> Tensor:
        """``(B, 3 V)`` -> ``(B, 3, R, R)``, 0 outside the face."""
        whole = texels.new_zeros(len(texels), 3, self.size * self.size)
        whole[:, :, self.valid] = texels.view(len(texels), 3, -1)
        return whole.view(-1, 3, self.size, self.size)

    def mirrored(self, texels: Tensor) -> Tensor:
        """The texels of the mirrored texture, ``(B, 3 V)``."""
        return texels.view(len(texels), 3, -1)[:, :, self.mirror].flatten(1)

    def light(self, texels: Tensor) -> Tensor:
        """Skin tone and light: coefficients of a parabola a channel, ``(B, 3 V)`` -> ``(B, 18)``."""
        return (texels.view(len(texels), 3, -1) @ self.light_solver.T).flatten(1)

    def columns(self, features: Tensor, light: Tensor) -> Tensor:
        """All columns of the regression: ``(B, F)`` and ``(B, 18)`` -> ``(B, F + 19)``."""
        scaled = (light - self.light_mean) / self.light_deviation
        return torch.cat([features, scaled, torch.ones_like(scaled[:, :1])], 1)

    def guess(self, features: Tensor, light: Tensor) -> Tensor:
        """Texels ``(B, 3 V)`` of the regression alone."""
        return self.columns(features, light) @ self.weight

    def traits(self, texels: Tensor, guess: Tensor) -> Tensor:
        """Traits in deviations of a face whose regression is known: ``(B, 3 V)`` twice -> ``(B, T)``."""
        return (texels - guess) @ self.basis.T / self.basis_deviation

    def details(self, texels: Tensor, guess: Tensor) -> Tensor:
        """What neither regression nor traits tell, in deviations: ``(B, 3 V)`` twice -> ``(B, M)``."""
        return (texels - guess) @ self.detail.T / self.detail_deviation

    def paint(self, features: Tensor, light: Tensor, traits: Tensor, details: Tensor | None = None) -> Tensor:
        """Textures ``(B, 3, R, R)`` in [-1, 1]; ``traits (B, T)`` and ``details (B, M)`` in deviations."""
        texels = self.guess(features, light) + (traits * self.basis_deviation) @ self.basis
        if details is not None:
            texels = texels + (details * self.detail_deviation) @ self.detail
        return self.unflatten(texels.clamp(-1, 1))

    @torch.no_grad()
    def fit(self, features: Tensor, texels: Tensor, person: Tensor, most: int, ridge: float) -> None:
        """Solves the regression, then the traits.

        Args:
            features: ``(N, F)`` float32.
            texels: ``(N, 3 V)``, may be in half precision.
            person: ``(N,)`` int64.
            most: number of faces that the traits are taken from, people with several pictures first.
            ridge: penalty, as a part of the variance of a feature, for each picture.
        """
        parts = list(range(0, len(texels), _CHUNK))
        lights = torch.cat([self.light(texels[at : at + _CHUNK].float()) for at in parts])
        self.light_mean.copy_(lights.mean(0))
        self.light_deviation.copy_(lights.std(0).clamp_min(1e-6))
        rows = self.columns(features, lights)
        moment = torch.zeros_like(self.weight)
        for at in parts:
            moment += rows[at : at + _CHUNK].T @ texels[at : at + _CHUNK].float()
        penalty = ridge * len(rows) * torch.eye(rows.shape[1], dtype=torch.float64)
        penalty[-1, -1] = 0  # the mean is not penalised
        self.weight.copy_(torch.linalg.solve((rows.T @ rows).double() + penalty, moment.double()))
        chosen = several_first(person, most)
        self._fit_traits(texels[chosen].float() - rows[chosen] @ self.weight, person[chosen])

    def _fit_traits(self, rest: Tensor, person: Tensor) -> None:
        """Traits of what the regression leaves over, ``(N, 3 V)``."""
        # A person is about the same on both sides; what is not is mostly light.
        even = (rest + self.mirrored(rest)) / 2
        varying, _ = principal_directions(within_people(even, person), self.varying)
        across = person_means(even, person)
        across -= (across @ varying.T) @ varying
        basis, deviation = principal_directions(across - across.mean(0), len(self.basis))
        self.basis.copy_(basis)
        self.basis_deviation.copy_(deviation.clamp_min(1e-6))
        across -= (across @ basis.T) @ basis
        personal, spread = principal_directions(across - across.mean(0), self.personal)
        known = torch.cat([basis, personal])
        rest -= (rest @ known.T) @ known
        general, more = principal_directions(rest, len(self.detail) - self.personal)
        self.detail.copy_(torch.cat([personal, general]))
        self.detail_deviation.copy_(torch.cat([spread, more]).clamp_min(1e-6))
