"""Latent space manipulation: PCA, linear support vector machines, t-SNE, and directions in the bottleneck.

Sources: SDN section 6.2 (PCA of the bottleneck, an SVM's normal as the direction of an attribute, brought back by the
inverse PCA once, degrees -2 to +2); MfM section 4.2 (PCA and t-SNE of the style latents, the way between the centres of
clusters). Written here, so that no machine-learning library is needed; a few hundred pictures are a small problem.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor
from torch.nn import functional


@dataclasses.dataclass(frozen=True)
class PCA:
    """Principal components.

    Attributes:
        mean: ``(D,)``.
        components: ``(K, D)``, orthonormal rows, greatest variance first.
        variance: ``(K,)`` of the data along them.
    """

    mean: Tensor
    components: Tensor
    variance: Tensor

    @classmethod
    def fit(cls, data: Tensor, components: int) -> PCA:
        """Fits to ``(N, D)``, by the N x N Gram matrix: D may be hundreds of thousands.

        Raises:
            ValueError: fewer than two rows.
        """
        if len(data) < 2:
            raise ValueError("principal components need at least two pictures")
        mean = data.mean(0)
        centred = data - mean
        values, vectors = torch.linalg.eigh((centred @ centred.T).double())
        keep = min(components, len(data) - 1, int((values > values[-1] * 1e-6).sum()))
        values, vectors = values.flip(0)[:keep], vectors.flip(1)[:, :keep]
        rows = (vectors / values.sqrt()).T.to(data) @ centred
        return cls(mean, functional.normalize(rows, dim=1), (values / len(data)).to(data))

    def compress(self, data: Tensor) -> Tensor:
        """``(N, D)`` -> ``(N, K)``."""
        return (data - self.mean) @ self.components.T

    def decompress(self, codes: Tensor) -> Tensor:
        """``(N, K)`` -> ``(N, D)``, the inverse within the kept components."""
        return codes @ self.components + self.mean


def linear_svm(data: Tensor, labels: Tensor, penalty: float = 1.0, steps: int = 300) -> tuple[Tensor, Tensor]:
    """Linear support vector machine with squared hinge loss, by L-BFGS from zero (convex: one answer).

    Args:
        data: ``(N, K)``.
        labels: ``(N,)`` of -1 and 1.
        penalty: C of ``|w|^2 / 2 + C * mean(max(0, 1 - y (w x + b))^2)``; classes are weighted to equal sums.
        steps: Most iterations.

    Returns:
        Normal ``(K,)`` and offset, in units of the data.

    Raises:
        ValueError: only one class.
    """
    positive = (labels > 0).sum()
    if positive == 0 or positive == len(labels):
        raise ValueError("a direction needs pictures with and without the attribute")
    x, y = data.double(), labels.double()
    spread = x.std().clamp_min(1e-9)  # one scale for all: great components count for more, as in the data
    x = x / spread
    weight = torch.where(y > 0, 0.5 / positive, 0.5 / (len(y) - positive))
    w = torch.zeros(x.shape[1], dtype=torch.float64, requires_grad=True)
    b = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([w, b], max_iter=steps, line_search_fn="strong_wolfe", tolerance_grad=1e-9)

    def objective() -> Tensor:
        optimizer.zero_grad()
        slack = functional.relu(1 - y * (x @ w + b))
        loss = 0.5 * w.square().sum() / len(y) + penalty * (weight * slack.square()).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        optimizer.step(objective)  # type: ignore[no-untyped-call]
    return (w.detach() / spread).to(data), b.detach().to(data)


def attribute_direction(pca: PCA, codes: Tensor, labels: Tensor) -> tuple[Tensor, float]:
    """Direction of an attribute in the bottleneck, and how well it separates pictures that it was not fitted on.

    Args:
        pca: Of the bottleneck.
        codes: Compressed pictures, ``(N, K)``.
        labels: ``(N,)`` of 0 and 1; -1 unknown.

    Returns:
        Direction ``(D,)``: one degree moves a picture by half of the distance between the class means along the
        normal, so that from -1 to +1 is from one class to the other. And the share of held-out pictures (every
        fifth) on the right side, both classes counting alike.

    Raises:
        ValueError: too few pictures of a class.
    """
    known = torch.nonzero(labels >= 0)[:, 0]
    held_out = known[::5]
    fitted = known[torch.arange(len(known)) % 5 != 0]
    if len(known) < 10:
        raise ValueError("a direction needs at least ten labelled pictures")
    signs = 2 * labels[fitted].to(codes) - 1
    normal, offset = linear_svm(codes[fitted], signs)
    scores = codes[held_out] @ normal + offset
    truth = labels[held_out] > 0
    rates = [((scores > 0) == truth)[truth == side].float().mean() for side in (True, False) if (truth == side).any()]
    unit = functional.normalize(normal, dim=0)
    along = codes[fitted] @ unit
    half = (along[signs > 0].mean() - along[signs < 0].mean()) / 2
    return (half * unit) @ pca.components, float(torch.stack(rates).mean())


def tsne(data: Tensor, perplexity: float = 20.0, steps: int = 400, seed: int = 0) -> Tensor:
    """t-SNE (van der Maaten and Hinton 2008), exact: ``(N, K)`` -> ``(N, 2)``, for up to a few thousand rows.

    Args:
        data: One row a picture.
        perplexity: About how many neighbours count; lowered for few rows.
        steps: Of gradient descent, with momentum and early exaggeration (x 12 in the first quarter).
        seed: Of the start.

    Raises:
        ValueError: fewer than four rows.
    """
    count = len(data)
    if count < 4:
        raise ValueError("t-SNE needs at least four pictures")
    x = data.double()
    squared = torch.cdist(x, x).square()
    target = torch.log(torch.tensor(min(perplexity, (count - 1) / 3), dtype=torch.float64))
    off = ~torch.eye(count, dtype=torch.bool)
    low, high = torch.full((count, 1), -30.0, dtype=torch.float64), torch.full((count, 1), 30.0, dtype=torch.float64)
    scaled = squared / squared[off].mean()
    for _ in range(50):  # the precision of each row whose entropy is the perplexity's, by bisection in its logarithm
        middle = (low + high) / 2
        logits = (-scaled * middle.exp()).masked_fill(~off, -torch.inf)
        p = logits.softmax(dim=1)
        entropy = -(p * p.clamp_min(1e-300).log()).sum(1, keepdim=True)
        wide = entropy > target
        low, high = torch.where(wide, middle, low), torch.where(wide, high, middle)
    p = ((p + p.T) / (2 * count)).clamp_min(1e-12)
    y = 1e-2 * torch.randn(count, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    velocity, rate = torch.zeros_like(y), max(count / 12.0, 10.0)
    for step in range(steps):
        kernel = (1 / (1 + torch.cdist(y, y).square())).masked_fill(~off, 0)
        q = (kernel / kernel.sum()).clamp_min(1e-12)
        exaggeration = 12.0 if step < steps // 4 else 1.0
        force = (exaggeration * p - q) * kernel
        gradient = 4 * (force.sum(1, keepdim=True) * y - force @ y)
        velocity = (0.5 if step < steps // 4 else 0.8) * velocity - rate * gradient
        y = y + velocity
        y = y - y.mean(0)
    return y.to(data)
