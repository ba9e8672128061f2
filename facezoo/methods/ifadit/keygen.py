"""From a secret to the flow's key vector: KeyGen(s) = f(Norm(KDF(s))), paper equation (4).

KDF: ``facezoo.keys.Key`` (scrypt for a passphrase, then HKDF under this method's purpose), one byte a component. Norm:
each byte linearly to [-1, 1]. f: the generator's mapping network, frozen.

A mapping network that was trained well maps everything near its mean: with the authors' code random keys have a mean
pairwise cosine of .964, so that a flow has to tell keys apart by what little differs. ``KeyWhitening`` takes mean and
covariance off; both are estimated from random keys with a fixed seed when training begins and are part of the
checkpoint.

``python -m facezoo.methods.ifadit.keygen CHECKPOINT`` prints both figures for a trained model.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from facezoo.keys import Key

PURPOSE = "ifadit/key"
_SEED = 20_240_611
"""Of the random keys that the statistics are taken from; those that measure them come from the next one."""
_CHUNK = 4096

Mapping = Callable[[Tensor], Tensor]


def normalise(values: Tensor) -> Tensor:
    """Norm of equation (4): bytes 0..255 linearly to [-1, 1], float32."""
    return values.float() / 127.5 - 1


def key_noise(key: Key, dim: int) -> Tensor:
    """Norm(KDF(s)) of a key, ``(1, dim)`` in [-1, 1]."""
    return normalise(torch.from_numpy(np.frombuffer(key.bytes(PURPOSE, dim), dtype=np.uint8).copy()))[None]


def random_noise(count: int, dim: int, generator: torch.Generator) -> Tensor:
    """What ``key_noise`` gives for random secrets, ``(count, dim)``."""
    return normalise(torch.randint(0, 256, (count, dim), generator=generator))


def mean_pairwise_cosine(vectors: Tensor) -> float:
    """Mean cosine of all pairs of two different rows of ``(N, D)``, N at least 2."""
    unit = nn.functional.normalize(vectors.double(), dim=1)
    count = len(unit)
    return float((unit.sum(0).square().sum() - count) / (count * (count - 1)))


class KeyWhitening(nn.Module):
    """Takes the mean and the covariance of random keys off a key vector.

    Double precision: the state stays as it is when weights are exported in half precision.

    Args:
        dim: Length of the vectors.
    """

    mean: Tensor
    matrix: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim, dtype=torch.float64))
        self.register_buffer("matrix", torch.eye(dim, dtype=torch.float64))

    def forward(self, vectors: Tensor) -> Tensor:
        """``(B, dim)`` -> ``(B, dim)`` of the same type; components of about unit size once fitted."""
        return ((vectors.to(self.mean) - self.mean) @ self.matrix.T).to(vectors.dtype)

    @torch.no_grad()
    def fit(self, vectors: Tensor, shrinkage: float) -> None:
        """Estimates mean and covariance from ``(N, dim)``.

        Args:
            vectors: Of random keys; N above ``dim``.
            shrinkage: Part of the covariance that is replaced by its mean eigenvalue, 0 to 1.
        """
        rows = vectors.to(self.mean)
        mean = rows.mean(0)
        covariance = (rows - mean).T @ (rows - mean) / (len(rows) - 1)
        values, directions = torch.linalg.eigh(covariance)
        values = (1 - shrinkage) * values.clamp(min=0) + shrinkage * values.mean()
        self.mean.copy_(mean)
        self.matrix.copy_(directions @ torch.diag(values.rsqrt()) @ directions.T)

    @torch.no_grad()
    def fit_scale(self, vectors: Tensor) -> None:
        """Without whitening: only brings the components of ``(N, dim)`` to about unit size."""
        self.mean.zero_()
        self.matrix.copy_(torch.eye(len(self.mean)) / vectors.to(self.mean).square().mean().sqrt())


@dataclasses.dataclass(frozen=True)
class KeyFigures:
    """How far random keys are apart.

    Attributes:
        keys: Number of random keys.
        cosine: Mean pairwise cosine after f.
        whitened: Mean pairwise cosine of what the flow gets.
    """

    keys: int
    cosine: float
    whitened: float

    def __str__(self) -> str:
        """One line for people."""
        return (
            f"{self.keys} random keys: mean pairwise cosine {self.cosine:.3f} after the mapping network, "
            f"{self.whitened:.3f} as the flow gets them (authors' code: 0.964)"
        )


@torch.no_grad()
def _mapped(mapping: Mapping, dim: int, count: int, seed: int) -> Tensor:
    noise = random_noise(count, dim, torch.Generator().manual_seed(seed))
    return torch.cat([mapping(noise[i : i + _CHUNK]) for i in range(0, count, _CHUNK)])


@torch.no_grad()
def fit_whitening(
    whitening: KeyWhitening, mapping: Mapping, dim: int, *, samples: int, shrinkage: float, when: str, limit: float
) -> KeyFigures:
    """Fits the whitening to a mapping network, always with the same random keys.

    Args:
        whitening: To be fitted.
        mapping: f, ``(B, dim)`` -> ``(B, w_dim)``, on the CPU.
        dim: Length of its noise.
        samples: Random keys.
        shrinkage: See ``KeyWhitening.fit``.
        when: "always", "never", or "auto": when the mean pairwise cosine after f exceeds ``limit``.
        limit: See ``when``.

    Returns:
        The figures, on other random keys.
    """
    vectors = _mapped(mapping, dim, samples, _SEED)
    if when == "always" or (when == "auto" and mean_pairwise_cosine(vectors) > limit):
        whitening.fit(vectors, shrinkage)
    else:
        whitening.fit_scale(vectors)
    return measure_keys(whitening, mapping, dim)


@torch.no_grad()
def measure_keys(whitening: KeyWhitening, mapping: Mapping, dim: int, count: int = 2000) -> KeyFigures:
    """Mean pairwise cosine of random keys that the whitening has not seen, after f and after the whitening."""
    vectors = _mapped(mapping, dim, count, _SEED + 1)
    return KeyFigures(count, mean_pairwise_cosine(vectors), mean_pairwise_cosine(whitening(vectors)))


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the figures of a checkpoint folder."""
    import json

    from facezoo.methods.ifadit.method import IFadit

    parser = argparse.ArgumentParser(description="How far random keys of an iFADIT checkpoint are apart.")
    parser.add_argument("checkpoint", type=Path, help="checkpoint folder")
    folder = parser.parse_args(arguments).checkpoint
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    networks = IFadit.from_checkpoint(folder, manifest).networks
    print(measure_keys(networks.key_whitening, networks.generator.mapping, networks.config.z_dim))


if __name__ == "__main__":
    main()
