"""k-Same-Pixel and k-Same-Eigen.

Source: Newton, Sweeney, Malin, "Preserving privacy by de-identifying face images", IEEE TKDE 17(2), 2005, as told in
the book's section 3.1.2.

Deviations, with reasons: colour instead of grey; distances of k-Same-Pixel are taken between pictures averaged to at
most 64 x 64 (the nearest neighbours stay the same for practical purposes, at a quarter of the memory); the eigenfaces
are computed from at most 1,000 people, the first of the gallery; and there is an open mode for new faces, which the
papers do not have and whose results have no guarantee.
"""

from __future__ import annotations

import abc
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from facezoo.errors import FacezooError, InputError
from facezoo.methods.base import ClassicMethod, FaceContext
from facezoo.methods.ksame.cluster import ksame_clusters, nearest_rows, people_per_cluster
from facezoo.methods.ksame.config import KSameEigenOptions, KSameOptions, KSamePixelOptions
from facezoo.methods.ksame.gallery import Gallery

__all__ = ["GalleryRelease", "KSame", "KSameEigen", "KSamePixel"]

_DISTANCE_SIZE = 64
_BASIS_PEOPLE = 1000
_CHUNK = 256

_SAME_PICTURE = 9.0
"""Closed mode takes a face for a gallery picture when they differ by at most this much, root mean square in 8-bit
levels at 64 x 64. Measured on 102 sharp studio portraits: JPEG 90 at most 1.5; cut out again half a pixel off 6.8
(median, at most 9.1), one pixel off 13; another picture of the same person 9.8 and more; another person 23.5 and more.
So give the gallery's own crops: a face that was detected anew may be refused, and never becomes somebody else."""

AnyOptions = TypeVar("AnyOptions", bound=KSameOptions)


@dataclass(frozen=True)
class GalleryRelease:
    """A whole gallery made anonymous: what may be published is `images`, once for each member of a group.

    Attributes:
        images: uint8 (groups, S, S, 3) RGB, one face a group.
        cluster: int64 (people,), the group of each person.
        identity: int64 (people,), the gallery's number of each person.
        k: the bound: every face stands for at least k people.
    """

    images: npt.NDArray[np.uint8]
    cluster: npt.NDArray[np.int64]
    identity: npt.NDArray[np.int64]
    k: int


class KSame(ClassicMethod[AnyOptions]):
    """What both forms share; subclasses say in which space faces are compared and averaged.

    Raises:
        InputError: no gallery, one that cannot be used, or k larger than its number of people.
    """

    cover = "face"

    def __init__(self, options: AnyOptions | None = None) -> None:
        super().__init__(options)
        self._opened: tuple[tuple[object, ...], Gallery, Tensor] | None = None
        self._clusters: dict[int, tuple[Tensor, Tensor]] = {}
        self._pixels: Tensor | None = None
        self._open(cast(AnyOptions, self.options))

    def change(self, faces: Tensor, context: FaceContext, options: AnyOptions) -> Tensor:
        """Replace faces; see `ClassicMethod.change`.

        Raises:
            InputError: in closed mode, a face that is no picture of the gallery.
        """
        gallery, features = self._open(options)
        small = _resized(faces.float().cpu(), gallery.size)
        if options.mode == "closed":
            members = self._members(small, gallery)
            clusters, surrogates = self._grouped(options.k, gallery, features)
            result = surrogates[clusters[members]]
        else:
            rows, _ = nearest_rows(features, self.features(small, gallery), options.k)
            result = torch.stack([self.average(row, gallery, features) for row in rows])
        return _resized(result, faces.shape[-1]).to(device=faces.device, dtype=faces.dtype)

    def anonymize_gallery(self, options: AnyOptions | None = None) -> GalleryRelease:
        """The closed set of the papers: every person of the gallery gets the face of a group of at least k.

        Args:
            options: instead of the method's own.

        Raises:
            InputError: as for the class.
        """
        chosen = cast(AnyOptions, self.options) if options is None else options
        gallery, features = self._open(chosen)
        clusters, surrogates = self._grouped(chosen.k, gallery, features)
        pixels = ((surrogates + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        return GalleryRelease(
            images=pixels.permute(0, 2, 3, 1).contiguous().numpy(),
            cluster=clusters.numpy(),
            identity=gallery.identity,
            k=chosen.k,
        )

    def options_record(self, context: FaceContext) -> dict[str, object]:
        """Options, the gallery's fingerprint (not its path) and, in words, whether the result has a guarantee."""
        options = cast(AnyOptions, self.resolve_options(context))
        gallery, _ = self._open(options)
        closed = options.mode == "closed"
        return {
            **options.to_record(),
            "gallery_sha256": gallery.sha256,
            "gallery_people": len(gallery),
            "guarantee": f"at least {options.k} people of the gallery share each face" if closed else "none (open set)",
        }

    @abc.abstractmethod
    def prepare(self, gallery: Gallery, options: AnyOptions) -> None:
        """Compute what `features` needs (eigenfaces, say) from the gallery."""

    @abc.abstractmethod
    def features(self, faces: Tensor, gallery: Gallery) -> Tensor:
        """Where faces lie: (B, 3, S, S) at the gallery's size -> (B, D)."""

    @abc.abstractmethod
    def average(self, rows: Tensor, gallery: Gallery, features: Tensor) -> Tensor:
        """The mean face of some gallery rows: (3, S, S) in about [-1, 1]."""

    def _open(self, options: AnyOptions) -> tuple[Gallery, Tensor]:
        """The gallery with one picture a person, and its features; kept until other options ask for another."""
        source = options.gallery
        if source is None:
            raise InputError(
                f"{self.name} needs a gallery of other people's faces: gallery=FILE.safetensors (see facezoo prepare)"
            )
        if not isinstance(source, Gallery | str | os.PathLike):
            raise InputError(
                f"{self.name}: gallery must be a packed set's path or a Gallery, not {type(source).__name__}"
            )
        space = {name: value for name, value in vars(options).items() if name not in ("gallery", "k", "mode")}
        wanted = (id(source) if isinstance(source, Gallery) else os.fspath(source), *space.items())
        if self._opened is None or self._opened[0] != wanted:
            whole = source if isinstance(source, Gallery) else Gallery.from_packed(source)
            gallery = whole.one_picture_a_person(options.repeated_people)
            if len(gallery) < 2:
                raise InputError(f"{self.name}: a gallery of {len(gallery)} people hides nobody; use at least k")
            self.prepare(gallery, options)
            chunks = [self.features(gallery.faces(rows), gallery) for rows in _parts(torch.arange(len(gallery)))]
            self._opened = (wanted, gallery, torch.cat(chunks))
            self._clusters = {}
            self._pixels = None
        _, gallery, features = self._opened
        if options.k > len(gallery):
            raise InputError(
                f"{self.name}: k={options.k} is more than the {len(gallery)} people of the gallery; "
                "use a smaller k or a larger gallery"
            )
        return gallery, features

    def _grouped(self, k: int, gallery: Gallery, features: Tensor) -> tuple[Tensor, Tensor]:
        """(people,) group of each person and (groups, 3, S, S) faces."""
        if k not in self._clusters:
            clusters = ksame_clusters(features, k)
            # The guarantee is the point of the method, so it is counted and not assumed.
            fewest = int(people_per_cluster(clusters, torch.from_numpy(gallery.identity)).min())
            if fewest < k:
                raise FacezooError(f"{self.name}: a group has {fewest} people instead of {k}; nothing was made")
            groups = [torch.nonzero(clusters == group)[:, 0] for group in range(int(clusters.max()) + 1)]
            self._clusters[k] = (clusters, torch.stack([self.average(rows, gallery, features) for rows in groups]))
        return self._clusters[k]

    def _members(self, faces: Tensor, gallery: Gallery) -> Tensor:
        """(B,) gallery rows that these faces are pictures of."""
        query = _pixel_features(faces)
        if self._pixels is None:
            self._pixels = torch.cat([_pixel_features(gallery.faces(r)) for r in _parts(torch.arange(len(gallery)))])
        rows, square = nearest_rows(self._pixels, query, 1)
        apart = (square[:, 0] / query.shape[1]).sqrt() * 127.5
        if (apart > _SAME_PICTURE).any():
            position = int(torch.nonzero(apart > _SAME_PICTURE)[0])
            raise InputError(
                f"{self.name}: face {position} is no picture of the gallery, and k-Same protects its gallery only; "
                "mode=open replaces any face, without the guarantee that k people share it"
            )
        return rows[:, 0]


class KSamePixel(KSame[KSamePixelOptions]):
    """Faces are compared and averaged pixel by pixel."""

    name = "ksame_pixel"
    options_class = KSamePixelOptions

    def prepare(self, gallery: Gallery, options: KSamePixelOptions) -> None:
        """Pixels need no preparation."""

    def features(self, faces: Tensor, gallery: Gallery) -> Tensor:
        """Pixels at no more than 64 x 64; see `KSame.features`."""
        return _pixel_features(faces)

    def average(self, rows: Tensor, gallery: Gallery, features: Tensor) -> Tensor:
        """Mean of the pictures; see `KSame.average`."""
        total = torch.zeros(3, gallery.size, gallery.size)
        for part in _parts(rows):
            total += gallery.faces(part).sum(0)
        return total / len(rows)


class KSameEigen(KSame[KSameEigenOptions]):
    """Faces are compared and averaged as coordinates on the gallery's eigenfaces."""

    name = "ksame_eigen"
    options_class = KSameEigenOptions

    _mean: Tensor
    _eigenfaces: Tensor

    def prepare(self, gallery: Gallery, options: KSameEigenOptions) -> None:
        """Compute mean face and eigenfaces.

        By the eigenvectors of the small matrix of inner products (people x people) instead of pixels x pixels.
        """
        rows = torch.arange(min(len(gallery), _BASIS_PEOPLE))
        pictures = torch.cat([gallery.faces(part).flatten(1) for part in _parts(rows)])
        self._mean = pictures.mean(0)
        pictures -= self._mean
        values, vectors = torch.linalg.eigh((pictures @ pictures.T).double())
        # eigh sorts upwards. Directions without variance (one always: the mean was taken off) would divide by nought.
        useful = torch.nonzero(values > values[-1] * 1e-6)[:, 0].flip(0)[: options.components]
        eigenfaces = vectors[:, useful].float().T @ pictures
        self._eigenfaces = functional.normalize(eigenfaces, dim=1)

    def features(self, faces: Tensor, gallery: Gallery) -> Tensor:
        """Coordinates on the eigenfaces; see `KSame.features`.

        One face at a time: a product over the whole batch rounds differently with the batch's size.
        """
        return torch.stack([self._eigenfaces @ (face.flatten() - self._mean) for face in faces])

    def average(self, rows: Tensor, gallery: Gallery, features: Tensor) -> Tensor:
        """The face at the mean coordinates; see `KSame.average`."""
        flat = self._mean + features[rows].mean(0) @ self._eigenfaces
        return flat.view(3, gallery.size, gallery.size)


def _parts(rows: Tensor) -> Iterator[Tensor]:
    """Rows in pieces that bound the memory of a batch of float pictures."""
    for start in range(0, len(rows), _CHUNK):
        yield rows[start : start + _CHUNK]


def _pixel_features(faces: Tensor) -> Tensor:
    """(B, 3, S, S) -> (B, D): the pixels, averaged to at most 64 x 64."""
    if faces.shape[-1] > _DISTANCE_SIZE:
        faces = functional.interpolate(faces, size=(_DISTANCE_SIZE, _DISTANCE_SIZE), mode="area")
    return faces.flatten(1)


def _resized(faces: Tensor, size: int) -> Tensor:
    """Aligned crops at another size; both follow the same template, so only the scale changes."""
    if faces.shape[-1] == size:
        return faces
    return functional.interpolate(faces, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
