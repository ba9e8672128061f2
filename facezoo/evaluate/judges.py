"""A judge: a recogniser, its thresholds from real impostors, and what it says about pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch

from facezoo.errors import FacezooError
from facezoo.metrics import (
    Interval,
    bootstrap_mean,
    pairwise_similarity,
    rank_one,
    similarity,
    thresholds_from_impostors,
    wilson,
)
from facezoo.recognition import Recogniser, load_recogniser
from facezoo.recognition.dlib_resnet import DLIB_STRICT, DLIB_THRESHOLD
from facezoo.recognition.onnx_judge import OnnxNetwork

__all__ = ["Judge", "own_encoder", "to_pictures", "to_tensor"]

ByteArray = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]

#: Pictures on which a user's recogniser is compared with the method's own, and the correlation of the two's
#: similarities from which they are one network. Two trainings reach about .8; one network in two files 1 - 1e-6.
_COMPARED = 48
_SAME = 0.995


def to_tensor(pictures: ByteArray, device: torch.device | str = "cpu") -> torch.Tensor:
    """(B, S, S, 3) uint8 -> (B, 3, S, S) float32 in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(pictures)).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_pictures(faces: torch.Tensor) -> ByteArray:
    """(B, 3, S, S) in [-1, 1] -> (B, S, S, 3) uint8, rounded."""
    pixels = ((faces.detach().float() + 1) * 127.5).round().clamp(0, 255).byte()
    return pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy()


class Judge:
    """One recogniser with its thresholds.

    Args:
        recogniser: who judges.
        far: false accept rates; the first is the one the tables show.
        device: where it computes.
        batch_size: pictures at a time.
        seed: of the bootstrap.
    """

    def __init__(
        self, recogniser: Recogniser, far: Sequence[float], device: torch.device | str, batch_size: int, seed: int
    ) -> None:
        self.recogniser = recogniser.to(device)
        self.name = recogniser.name
        self.metric: str = recogniser.metric
        self.far = tuple(far)
        self.device = device
        self.batch_size = batch_size
        self.seed = seed
        #: Similarity thresholds by name: "far_0.001", and published ones (dlib's, a user's recogniser's).
        self.thresholds: dict[str, float] = {}

    @property
    def main(self) -> str:
        """Name of the threshold that the tables show."""
        return f"far_{self.far[0]:g}"

    def embed(self, pictures: ByteArray) -> Iterator[Floats]:
        """Embeds pictures (N, S, S, 3), a batch at a time (so that a progress bar can move)."""
        for start in range(0, len(pictures), self.batch_size):
            with torch.inference_mode():
                vectors = self.recogniser(to_tensor(pictures[start : start + self.batch_size], self.device))
            yield vectors.double().cpu().numpy()

    def set_thresholds(self, embeddings: Floats, identities: npt.NDArray[np.integer]) -> None:
        """Takes the thresholds from the impostor pairs of real pictures.

        Raises:
            InputError: if there are too few of them for a rate.
        """
        found = thresholds_from_impostors(embeddings, identities, self.far, self.metric)
        self.thresholds = {f"far_{rate:g}": threshold for rate, threshold in found.items()}
        if self.name == "dlib":
            self.thresholds["published_0.6"] = -DLIB_THRESHOLD
            self.thresholds["published_0.5"] = -DLIB_STRICT
        for value in self.recogniser.published:
            self.thresholds[f"published_{value:g}"] = value if self.metric == "cosine" else -value

    def own_unit(self, value: float) -> float:
        """A similarity in the recogniser's own unit: the cosine, or the distance."""
        return value if self.metric == "cosine" else -value

    def compare(self, embeddings: Floats, originals: Floats) -> dict[str, object]:
        """How near pictures are to their originals.

        Args:
            embeddings: (N, D).
            originals: (N, D); row i is the original of picture i.

        Returns:
            ``taken`` (threshold -> rate taken for the original, with its interval), ``cosine`` (mean with its
            interval) and, for a Euclidean recogniser, ``distance``.
        """
        scores = similarity(embeddings, originals, self.metric)
        taken = {
            name: wilson(int((scores >= threshold).sum()), len(scores)).to_dict()
            for name, threshold in self.thresholds.items()
        }
        result: dict[str, object] = {
            "taken": taken,
            "cosine": bootstrap_mean(similarity(embeddings, originals), self.seed).to_dict(),
        }
        if self.metric == "euclidean":
            result["distance"] = bootstrap_mean(-scores, self.seed).to_dict()
        return result

    def retrieve(
        self,
        embeddings: Floats,
        identities: npt.NDArray[np.integer],
        gallery: Floats,
        gallery_identities: npt.NDArray[np.integer],
        own: npt.NDArray[np.integer],
    ) -> dict[str, object]:
        """Rank-1 against real pictures of everybody.

        Args:
            embeddings: (N, D) of the pictures that are searched.
            identities: (N,) who was on them.
            gallery: (M, D) of real pictures.
            gallery_identities: (M,).
            own: (N,) index of each picture's own original in the gallery.

        Returns:
            ``with_original`` (its own original is in the gallery) and ``other_pictures`` (only other pictures of the
            person are; people with one picture are left out, see n).
        """
        arguments = (embeddings, identities, gallery, gallery_identities, self.metric)
        rates: dict[str, Interval] = {
            "with_original": rank_one(*arguments),
            "other_pictures": rank_one(*arguments, excluded=own),
        }
        return {name: rate.to_dict() for name, rate in rates.items()}


def own_encoder(recogniser: Recogniser, encoders: Sequence[str], pictures: ByteArray) -> str | None:
    """Whether a judge is a recogniser that the method was trained with.

    By name, and for a user's ONNX file by what it says: the same network under another name is found because it
    finds the same pictures alike.

    Args:
        recogniser: the judge.
        encoders: names or paths of the method's recognisers (its ``identity_encoders``).
        pictures: (N, S, S, 3) of real faces.

    Returns:
        One sentence why, or None where it is not.
    """
    for encoder in encoders:
        if recogniser.name == encoder:
            return f"{recogniser.name} is the method's own identity encoder"
    if not isinstance(recogniser.network, OnnxNetwork) or len(pictures) < 3:
        return None
    faces = to_tensor(pictures[:_COMPARED])
    upper = np.triu_indices(len(faces), 1)

    def alike(network: Recogniser) -> Floats:
        with torch.inference_mode():
            vectors = network(faces).double().numpy()
        return pairwise_similarity(vectors, vectors, network.metric)[upper]

    judged = alike(recogniser)
    for encoder in encoders:
        try:
            known = alike(load_recogniser(encoder))
        except FacezooError:
            continue  # it is not here: only its name could be compared
        if known.std() > 0 and judged.std() > 0 and np.corrcoef(judged, known)[0, 1] > _SAME:
            return f"{recogniser.name} is the method's own identity encoder {encoder} (it finds the same faces alike)"
    return None
