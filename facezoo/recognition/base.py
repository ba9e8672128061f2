"""What every recogniser has in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Self

from torch import Tensor, nn
from torch.nn import functional

from facezoo.recognition.window import TemplateWindow

__all__ = ["Metric", "Recogniser"]

Metric = Literal["cosine", "euclidean"]


class Recogniser(nn.Module):
    """A frozen network that turns aligned faces into vectors; near vectors mean the same person.

    Weights are frozen and the network stays in evaluation mode whatever ``train()`` is called with, so a recogniser can
    be a child of a model in training. Gradients flow to the pictures.

    Args:
        name: short name, as in ``load_recogniser(name)``.
        network: takes (B, 3, input_size, input_size) faces in [-1, 1], RGB, gives (B, dim). Its own normalisation of
            pixel values is its own business.
        window: cuts the network's input out of the project's crop.
        dim: length of the vector.
        licence: licence of the weights (SPDX name, or what the source says).
        metric: how the network's authors compare: ``cosine`` vectors are returned with length 1, ``euclidean`` ones as
            they are.
        published: thresholds of its authors, in its own unit (a cosine, or a distance).
    """

    def __init__(
        self,
        name: str,
        network: nn.Module,
        window: TemplateWindow,
        dim: int,
        licence: str,
        metric: Metric = "cosine",
        published: Sequence[float] = (),
    ) -> None:
        super().__init__()
        self.name = name
        self.window = window
        self.network = network
        self.input_size = window.size
        self.dim = dim
        self.licence = licence
        self.metric: Metric = metric
        self.published = tuple(published)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Stays in evaluation mode: a judge must not change while something else learns."""
        del mode
        return super().train(False)

    def embed_native(self, pictures: Tensor) -> Tensor:
        """Embeds pictures that are already aligned the network's own way.

        Args:
            pictures: (B, 3, input_size, input_size) in [-1, 1], RGB.

        Returns:
            (B, dim) float32; of length 1 for a ``cosine`` network.
        """
        embeddings: Tensor = self.network(pictures).float()
        return functional.normalize(embeddings, dim=1) if self.metric == "cosine" else embeddings

    def forward(self, faces: Tensor) -> Tensor:
        """Embeds faces aligned to the project's template.

        Args:
            faces: (B, 3, S, S) in [-1, 1], RGB, any size S (more than 128 brings little, less than 64 costs accuracy).

        Returns:
            (B, dim) float32; of length 1 for a ``cosine`` network. Differentiable in ``faces``.

        Raises:
            InputError: if the faces are not square pictures in a batch.
        """
        return self.embed_native(self.window(faces))
