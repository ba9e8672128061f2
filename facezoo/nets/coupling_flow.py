"""Conditional affine coupling flow: a bijection of R^d, or of a sphere in it, that a key vector chooses.

Sources: Yuan et al., iFADIT, equations (5)-(8) (the affine form and its inverse); Dinh, Sohl-Dickstein, Bengio,
"Density estimation using Real NVP", ICLR 2017. The spherical form is ours.

**Why a spherical form.** The affine form maps R^d onto R^d. Recognisers, however, give *directions*: what a network
reads off a picture has length 1, so the length of the flow's output would be lost on the way through the picture, and
the inverse, which needs it, would start from a wrong vector. In the spherical form every half-step is the affine one
followed by a division that brings the vector back to the sphere. The half-step stays invertible in closed form because

* the half that is kept is divided by the same number, so its *direction*, which is all that the conditioning networks
  see, is known to the inverse;
* the number itself is then the positive root of a quadratic equation, and there is exactly one such root because the
  shift is bounded below the sphere's radius.

So the direction that goes into a generator is the whole output: nothing is thrown away before the inverse.

**Why it turns first.** A vector that is read off a picture has errors of some 30 degrees. Couplings strong enough to
take a face to an unrelated one bend space so much that their inverse multiplies such errors (measured: a cosine of .90
before the inverse is .13 to .29 after it), and by the affine form all people under one key are moved the same way. In
the spherical form a ``KeyedTurn``, an orthogonal matrix that the key chooses, stands before each block: it multiplies
no error, parts people under one key as they were parted before, and sends one person to unrelated places under two
keys. The couplings then start weak and learn what a turn cannot do: to end where the generator has faces.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

_SLOPE = 0.2
_SHIFT_BOUND = 0.95
"""Largest shift of a spherical half-step, as a part of the sphere's radius. Below 1: see ``_divisor``."""


class ConditionedMLP(nn.Module):
    """``[x, k]`` -> vector; three linear layers with leaky rectifiers.

    At the start the outputs have a spread of about ``gain``, and ``x`` and ``k`` have equal say whatever their lengths.

    Args:
        dim: Length of ``x`` (components of about unit size).
        condition_dim: Length of ``k`` (components of about unit size).
        hidden: Width of the two hidden layers.
        out: Length of the result.
        gain: Spread of the results at the start.
    """

    def __init__(self, dim: int, condition_dim: int, hidden: int, out: int, gain: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(dim + condition_dim, hidden),
            nn.LeakyReLU(_SLOPE),
            nn.Linear(hidden, hidden),
            nn.LeakyReLU(_SLOPE),
            nn.Linear(hidden, out),
        )
        first, second, last = (layer for layer in self.layers if isinstance(layer, nn.Linear))
        rectifier = math.sqrt(2 / (1 + _SLOPE**2))
        with torch.no_grad():
            first.weight[:, :dim].normal_(0, rectifier * math.sqrt(0.5 / dim))
            first.weight[:, dim:].normal_(0, rectifier * math.sqrt(0.5 / condition_dim))
            second.weight.normal_(0, rectifier / math.sqrt(hidden))
            last.weight.normal_(0, gain / math.sqrt(hidden))
            for layer in (first, second, last):
                layer.bias.zero_()

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """``(B, dim)``, ``(B, condition_dim)`` -> ``(B, out)``."""
        result: Tensor = self.layers(torch.cat([x, condition], dim=-1))
        return result


class KeyedTurn(nn.Module):
    """``M2 S2(k) M1 S1(k) x``: fixed random orthogonal matrices ``M`` and signs ``S`` that the key chooses.

    Orthogonal whatever the key, and unrelated for two keys (a randomised mixing as of fast Johnson-Lindenstrauss
    transforms). Nothing here learns. The matrices are part of the state and of double precision, so that exporting
    weights in half precision leaves them orthogonal.

    Args:
        dim: Length of the vectors.
        condition_dim: Length of the key vectors (components of about unit size, mean 0).
        seed: Of the matrices.
    """

    mixing: Tensor
    probes: Tensor

    def __init__(self, dim: int, condition_dim: int, seed: int) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(seed)
        normal = torch.randn(2, dim, dim, generator=random, dtype=torch.float64)
        self.register_buffer("mixing", torch.linalg.qr(normal)[0].contiguous())
        self.register_buffer("probes", torch.randn(2, dim, condition_dim, generator=random, dtype=torch.float64))

    def forward(self, x: Tensor, k: Tensor) -> Tensor:
        """``(B, dim)``, ``(B, condition_dim)`` -> ``(B, dim)``."""
        signs = self._signs(x, k)
        for mixing, sign in zip(self.mixing.to(x.dtype), signs, strict=True):
            x = (x * sign) @ mixing.T
        return x

    def inverse(self, x: Tensor, k: Tensor) -> Tensor:
        """Undoes ``forward``."""
        signs = self._signs(x, k)
        for mixing, sign in zip(self.mixing.to(x.dtype).flip(0), signs.flip(0), strict=True):
            x = (x @ mixing) * sign
        return x

    def _signs(self, x: Tensor, k: Tensor) -> Tensor:
        projections = torch.einsum("ndc,bc->nbd", self.probes, k.to(self.probes.dtype))
        return torch.where(projections >= 0, 1.0, -1.0).to(x.dtype)


class CouplingBlock(nn.Module):
    """One block: first the second half changes under the first, then the first under the new second.

    ``omega`` and ``phi`` give factor and shift of the first step, ``rho`` and ``eta`` those of the second.

    Args:
        dim: Length of the vectors, even.
        condition_dim: Length of the key vectors.
        hidden: Width of the networks.
        scale_limit: ``c`` of ``a(.) = c * sigmoid(.)``.
        sphere: The spherical form (see the module's text).
    """

    def __init__(self, dim: int, condition_dim: int, hidden: int, scale_limit: float, sphere: bool) -> None:
        super().__init__()
        half = dim // 2

        # Weak where a turn does the work; else strong enough that little of the input is left as it was.
        scale_gain, shift_gain = (0.1, 0.1) if sphere else (0.5, 1.0)
        self.omega = ConditionedMLP(half, condition_dim, hidden, half, scale_gain)
        self.phi = ConditionedMLP(half, condition_dim, hidden, half, shift_gain)
        self.rho = ConditionedMLP(half, condition_dim, hidden, half, scale_gain)
        self.eta = ConditionedMLP(half, condition_dim, hidden, half, shift_gain)
        self.scale_limit, self.sphere, self.square_radius = scale_limit, sphere, float(dim)

    def forward(self, z: Tensor, k: Tensor) -> Tensor:
        """``(B, dim)`` -> ``(B, dim)``."""
        z1, z2 = z.chunk(2, dim=-1)
        z1, z2 = self._step(z1, z2, k, self.omega, self.phi)
        z2, z1 = self._step(z2, z1, k, self.rho, self.eta)
        return torch.cat([z1, z2], dim=-1)

    def inverse(self, z: Tensor, k: Tensor) -> Tensor:
        """``(B, dim)`` -> ``(B, dim)``; undoes ``forward``."""
        z1, z2 = z.chunk(2, dim=-1)
        z2, z1 = self._step_back(z2, z1, k, self.rho, self.eta)
        z1, z2 = self._step_back(z1, z2, k, self.omega, self.phi)
        return torch.cat([z1, z2], dim=-1)

    def _coefficients(self, kept: Tensor, k: Tensor, scale: nn.Module, shift: nn.Module) -> tuple[Tensor, Tensor]:
        """Logarithm of the factor, and the shift; in the spherical form the shift comes before the factor."""
        if self.sphere:
            kept = functional.normalize(kept, dim=-1) * math.sqrt(kept.shape[-1])
        a = self.scale_limit * torch.sigmoid(scale(kept, k))
        b = shift(kept, k)
        if self.sphere:
            # About as it is when short, and shorter than the radius always.
            bound = _SHIFT_BOUND**2 * self.square_radius
            b = b * torch.rsqrt(1 + b.square().sum(-1, keepdim=True) / bound)
        return a, b

    def _step(
        self, kept: Tensor, changed: Tensor, k: Tensor, scale: nn.Module, shift: nn.Module
    ) -> tuple[Tensor, Tensor]:
        a, b = self._coefficients(kept, k, scale, shift)
        if not self.sphere:
            return kept, changed * a.exp() + b
        changed = (changed + b) * a.exp()
        length = (kept.square().sum(-1, keepdim=True) + changed.square().sum(-1, keepdim=True)).sqrt()
        back = math.sqrt(self.square_radius) / length
        return kept * back, changed * back

    def _step_back(
        self, kept: Tensor, changed: Tensor, k: Tensor, scale: nn.Module, shift: nn.Module
    ) -> tuple[Tensor, Tensor]:
        a, b = self._coefficients(kept, k, scale, shift)
        if not self.sphere:
            return kept, (changed - b) * (-a).exp()
        unscaled = changed * (-a).exp()
        r = self._divisor(kept, unscaled, b)
        return kept * r, unscaled * r - b

    def _divisor(self, kept: Tensor, unscaled: Tensor, b: Tensor) -> Tensor:
        """The number that the half-step divided by: ``|r kept|^2 + |r unscaled - b|^2 = radius^2``, ``r > 0``.

        ``p r^2 - 2 q r - s = 0`` with ``s = radius^2 - |b|^2 > 0`` has one positive root. It is computed without the
        difference of nearly equal numbers.
        """
        p = kept.square().sum(-1, keepdim=True) + unscaled.square().sum(-1, keepdim=True)
        q = (unscaled * b).sum(-1, keepdim=True)
        s = self.square_radius - b.square().sum(-1, keepdim=True)
        root = (q.square() + p * s).sqrt()
        return torch.where(q >= 0, (q + root) / p, s / (root + q.abs()))


class CouplingFlow(nn.Module):
    """A chain of coupling blocks.

    Vectors are expected with components of about unit size (length about ``sqrt(dim)``); in the spherical form
    ``forward`` and ``inverse`` first bring them to that length exactly. In the affine form every factor is above 1 (see
    ``a``), so the result is divided by the constant ``exp(blocks * c / 2)``, about what the factors multiply to.

    Args:
        dim: Length of the vectors, even.
        condition_dim: Length of the key vectors.
        hidden: Width of the conditioning networks.
        blocks: Number of blocks (the authors' code: 4).
        scale_limit: ``c`` of ``a(.) = c * sigmoid(.)``: factors lie between 1 and ``exp(c)``.
        sphere: Map the sphere of radius ``sqrt(dim)`` onto itself, with a ``KeyedTurn`` before each block.

    Raises:
        ValueError: an odd ``dim``, or no block.
    """

    def __init__(
        self, dim: int, condition_dim: int, hidden: int, blocks: int, scale_limit: float = 1.0, sphere: bool = False
    ) -> None:
        super().__init__()
        if dim % 2 or dim < 2 or blocks < 1:
            raise ValueError(f"a coupling flow needs an even length and at least one block, not {dim} and {blocks}")
        self.dim, self.sphere = dim, sphere
        self.growth = 1.0 if sphere else math.exp(blocks * scale_limit / 2)
        self.blocks = nn.ModuleList(
            CouplingBlock(dim, condition_dim, hidden, scale_limit, sphere) for _ in range(blocks)
        )
        self.turns = nn.ModuleList(KeyedTurn(dim, condition_dim, seed) for seed in range(blocks if sphere else 0))

    def forward(self, z: Tensor, k: Tensor) -> Tensor:
        """``z`` ``(B, dim)`` under key vectors ``k`` ``(B, condition_dim)`` -> ``(B, dim)``."""
        with torch.autocast(z.device.type, enabled=False):  # half the digits would make the inverse inexact
            z, k = self._prepared(z, k)
            for number, block in enumerate(self.blocks):
                if self.sphere:
                    z = self.turns[number](z, k)
                z = block(z, k)
            return z / self.growth

    def inverse(self, z: Tensor, k: Tensor) -> Tensor:
        """The vectors that ``forward`` maps to ``z`` under the same key vectors."""
        with torch.autocast(z.device.type, enabled=False):
            z, k = self._prepared(z * self.growth, k)
            for number in reversed(range(len(self.blocks))):
                z = cast(CouplingBlock, self.blocks[number]).inverse(z, k)
                if self.sphere:
                    z = cast(KeyedTurn, self.turns[number]).inverse(z, k)
            return z

    def _prepared(self, z: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        weight = next(self.parameters())
        z, k = z.to(weight.dtype), k.to(weight.dtype)
        return (functional.normalize(z, dim=-1) * math.sqrt(self.dim) if self.sphere else z), k
