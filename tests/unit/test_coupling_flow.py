"""The coupling flow: its equations by hand, exact inverses, what keys and errors do to it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from facezoo.nets.coupling_flow import CouplingBlock, CouplingFlow, KeyedTurn

DIM, KEY = 32, 24


def vectors(count: int, dim: int = DIM, seed: int = 0) -> Tensor:
    normal = torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))
    return functional.normalize(normal, dim=1) * math.sqrt(dim)


def keys(count: int, seed: int = 1) -> Tensor:
    return torch.randn(count, KEY, generator=torch.Generator().manual_seed(seed))


def flow(sphere: bool, scale: float = 1.0, dim: int = DIM) -> CouplingFlow:
    """A flow; ``scale`` multiplies every weight, as a long training may."""
    torch.manual_seed(3)
    made = CouplingFlow(dim, KEY, 48, 4, 1.0, sphere)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(scale)
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return made.requires_grad_(False)


class Given(nn.Module):
    """In a network's place: always the same answer."""

    def __init__(self, value: list[float]) -> None:
        super().__init__()
        self.value = torch.tensor([value], dtype=torch.float64)

    def forward(self, x: Tensor, k: Tensor) -> Tensor:
        return self.value.expand(len(x), -1)


def by_hand(sphere: bool) -> CouplingBlock:
    block = CouplingBlock(2, 1, 4, 2.0, sphere).double()
    block.omega, block.phi, block.rho, block.eta = Given([0.0]), Given([0.5]), Given([math.log(3)]), Given([-1.0])
    return block


def test_affine_equations_by_hand():
    """a = 2 sigmoid(0) = 1 and 2 sigmoid(log 3) = 1.5."""
    z, k = torch.tensor([[2.0, 3.0]], dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    second = 3 * math.e + 0.5
    first = 2 * math.exp(1.5) - 1
    block = by_hand(sphere=False)
    assert torch.allclose(block(z, k), torch.tensor([[first, second]], dtype=torch.float64), rtol=1e-12)
    assert torch.allclose(block.inverse(block(z, k), k), z, atol=1e-12)


def test_spherical_equations_by_hand():
    """Radius sqrt 2; shifts are shortened by 1 / sqrt(1 + b^2 / (.95^2 * 2)), then factor, then the division."""
    z, k = torch.tensor([[1.0, 1.0]], dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    short = [b / math.sqrt(1 + b * b / (0.95**2 * 2)) for b in (0.5, -1.0)]
    one, two = 1.0, (1 + short[0]) * math.e
    length = math.hypot(one, two) / math.sqrt(2)
    one, two = one / length, two / length
    one = (one + short[1]) * math.exp(1.5)
    length = math.hypot(one, two) / math.sqrt(2)
    block = by_hand(sphere=True)
    expected = torch.tensor([[one / length, two / length]], dtype=torch.float64)
    assert torch.allclose(block(z, k), expected, rtol=1e-12)
    assert torch.allclose(block.inverse(expected, k), z, atol=1e-12)


@pytest.mark.parametrize("sphere", [False, True], ids=["affine", "sphere"])
@pytest.mark.parametrize("scale", [1.0, 1.3], ids=["at the start", "large weights"])
def test_inverse_is_exact(sphere: bool, scale: float):
    made, z, k = flow(sphere, scale), vectors(200), keys(200)
    there = made(z, k)
    error = (made.inverse(there, k) - z).abs().max()
    assert error < (1e-4 if scale == 1 or sphere else 2e-2)
    made, z, k = made.double(), z.double(), k.double()
    z = functional.normalize(z, dim=1) * math.sqrt(DIM)
    assert (made.inverse(made(z, k), k) - z).abs().max() < 1e-9
    assert (made(made.inverse(z, k), k) - z).abs().max() < 1e-9


def test_inverse_is_exact_with_very_large_shifts():
    """The spherical form bounds its shifts: even weights that blow the affine form up leave it exact."""
    made, z, k = flow(sphere=True, scale=4.0).double(), vectors(100).double(), keys(100).double()
    z = functional.normalize(z, dim=1) * math.sqrt(DIM)
    assert (made.inverse(made(z, k), k) - z).abs().max() < 1e-6


def test_spherical_form_stays_on_the_sphere_and_needs_directions_only():
    made, z, k = flow(sphere=True, scale=2.0), vectors(50), keys(50)
    there = made(z, k)
    assert torch.allclose(there.norm(dim=1), torch.full((50,), math.sqrt(DIM)), rtol=1e-5)
    assert torch.allclose(made.inverse(there * 7, k), z, atol=1e-3)


def test_another_key_gives_an_unrelated_vector():
    """Longer vectors, as SFace's: chance alone gives cosines of about 1 / sqrt(128) = .09."""
    made, z = flow(sphere=True, dim=128), vectors(300, 128)
    mine, other = keys(1).expand(300, -1), keys(1, seed=9).expand(300, -1)
    there = made(z, mine)

    def cosine(a: Tensor, b: Tensor) -> float:
        return float(functional.cosine_similarity(a, b).mean())

    assert abs(cosine(there, z)) < 0.1
    assert abs(cosine(there, made(z, other))) < 0.1
    assert abs(cosine(made.inverse(there, other), z)) < 0.1
    assert abs(cosine(there, there.roll(1, 0))) < 0.2, "people under one key stay apart"
    assert cosine(made.inverse(there, mine), z) > 0.999


def test_spherical_inverse_does_not_multiply_errors():
    made, z, k = flow(sphere=True, dim=128), vectors(300, 128), keys(300)
    there = made(z, k)
    noisy = there + 0.5 * torch.randn(there.shape, generator=torch.Generator().manual_seed(4))
    read = functional.cosine_similarity(noisy, there).mean()
    back = functional.cosine_similarity(made.inverse(noisy, k), z).mean()
    assert read == pytest.approx(0.895, abs=0.02)
    assert back > read - 0.05


def test_turn_is_orthogonal_and_survives_an_export_in_half_precision():
    turn, x, k = KeyedTurn(DIM, KEY, 5).double(), vectors(20).double(), keys(20).double()
    assert torch.allclose(turn(x, k).norm(dim=1), x.norm(dim=1))
    assert torch.allclose(turn.inverse(turn(x, k), k), x, atol=1e-12)
    for value in turn.state_dict().values():
        assert value.dtype == torch.float64


def test_gradients_reach_every_network():
    made = flow(sphere=True).requires_grad_(True)
    z = vectors(8)
    (made.inverse(made(z, keys(8)), keys(8, seed=5)) * vectors(8, seed=6)).sum().backward()
    for name, parameter in made.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize(("dim", "blocks"), [(7, 2), (8, 0)])
def test_refuses_what_cannot_be_split(dim: int, blocks: int):
    with pytest.raises(ValueError, match="even length"):
        CouplingFlow(dim, 4, 8, blocks)
