"""k-Same-Pixel, k-Same-Eigen, k-Same-Select, k-Same-M and k-Same-furthest.

Source: Newton, Sweeney, Malin, "Preserving privacy by de-identifying face images", IEEE TKDE 17(2), 2005, as told in
the book's section 3.1.2.

Select: Gross, Airoldi, Malin, Sweeney, "Integrating utility into face de-identification", PET 2005. M: Gross, Sweeney,
de la Torre, Baker, "Model-based face de-identification", CVPRW 2006. Furthest: Meng, Sun, "Face de-identification with
perfect privacy protection", MIPRO 2014. All as told in the book's section 3.1.2.

k-Same-M averages shapes and shape-free looks apart, warps piecewise affinely, and has no model besides: the papers fit
an active appearance model, whose coefficients are linear in the same two, so their mean is the same up to the
components that the model leaves out.

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
from facezoo.methods.ksame.cluster import furthest_partners, ksame_clusters, nearest_rows, people_per_cluster
from facezoo.methods.ksame.config import (
    KSameEigenOptions,
    KSameFurthestOptions,
    KSameModelOptions,
    KSameOptions,
    KSamePixelOptions,
    KSameSelectOptions,
)
from facezoo.methods.ksame.gallery import Gallery
from facezoo.methods.ksame.warp import PiecewiseAffine

__all__ = ["GalleryRelease", "KSame", "KSameEigen", "KSameFurthest", "KSameModel", "KSamePixel", "KSameSelect"]

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
            clusters, surrogates = self._grouped(options, gallery, features)
            result = surrogates[clusters[members]]
        else:
            points = self._points_of(faces, context, gallery)
            query = self.features(small, gallery, points)
            result = torch.stack([self.open_face(one, gallery, features, options) for one in query])
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
        clusters, surrogates = self._grouped(chosen, gallery, features)
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
    def features(self, faces: Tensor, gallery: Gallery, points: Tensor | None) -> Tensor:
        """Where faces lie: (B, 3, S, S) at the gallery's size, (B, L, 2) landmarks in its pixels -> (B, D)."""

    @abc.abstractmethod
    def average(self, rows: Tensor, gallery: Gallery, features: Tensor) -> Tensor:
        """The mean face of some gallery rows: (3, S, S) in about [-1, 1]."""

    def group(self, gallery: Gallery, features: Tensor, options: AnyOptions) -> tuple[Tensor, Tensor]:
        """Who shares a face, (people,), and of which group it is the mean, (groups,); here: of their own."""
        clusters = ksame_clusters(features, options.k)
        return clusters, torch.arange(int(clusters.max()) + 1)

    def open_face(self, query: Tensor, gallery: Gallery, features: Tensor, options: AnyOptions) -> Tensor:
        """The face for somebody outside the gallery: (D,) -> (3, S, S)."""
        rows, _ = nearest_rows(features, query[None], options.k)
        return self.average(rows[0], gallery, features)

    def _points_of(self, faces: Tensor, context: FaceContext, gallery: Gallery) -> Tensor | None:
        """The context's landmarks in the gallery's pixels."""
        if context.points is None:
            return None
        scale = gallery.size / faces.shape[-1]
        return torch.as_tensor(np.asarray(context.points, dtype=np.float64) * scale)

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
            chunks = []
            for rows in _parts(torch.arange(len(gallery))):
                points = None if gallery.points is None else torch.from_numpy(gallery.points[rows.numpy()])
                chunks.append(self.features(gallery.faces(rows), gallery, points))
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

    def _grouped(self, options: AnyOptions, gallery: Gallery, features: Tensor) -> tuple[Tensor, Tensor]:
        """(people,) group of each person and (groups, 3, S, S) faces."""
        k = options.k
        if k not in self._clusters:
            clusters, given = self.group(gallery, features, options)
            # The guarantee is the point of the method, so it is counted and not assumed.
            fewest = int(people_per_cluster(clusters, torch.from_numpy(gallery.identity)).min())
            if fewest < k:
                raise FacezooError(f"{self.name}: a group has {fewest} people instead of {k}; nothing was made")
            groups = [torch.nonzero(clusters == group)[:, 0] for group in range(int(clusters.max()) + 1)]
            averages = torch.stack([self.average(rows, gallery, features) for rows in groups])
            self._clusters[k] = (clusters, averages[given])
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


class _InPixels(KSame[AnyOptions]):
    """Faces are compared and averaged pixel by pixel."""

    def prepare(self, gallery: Gallery, options: AnyOptions) -> None:
        """Pixels need no preparation."""

    def features(self, faces: Tensor, gallery: Gallery, points: Tensor | None) -> Tensor:
        """Pixels at no more than 64 x 64; see `KSame.features`."""
        return _pixel_features(faces)

    def average(self, rows: Tensor, gallery: Gallery, features: Tensor) -> Tensor:
        """Mean of the pictures; see `KSame.average`."""
        total = torch.zeros(3, gallery.size, gallery.size)
        for part in _parts(rows):
            total += gallery.faces(part).sum(0)
        return total / len(rows)


class KSamePixel(_InPixels[KSamePixelOptions]):
    """The mean of the k nearest, pixel by pixel."""

    name = "ksame_pixel"
    options_class = KSamePixelOptions


class KSameSelect(_InPixels[KSameSelectOptions]):
    """k-Same among people of the same label, so that the published face keeps it."""

    name = "ksame_select"
    options_class = KSameSelectOptions

    _labels: Tensor

    def prepare(self, gallery: Gallery, options: KSameSelectOptions) -> None:
        """Find the label of every person.

        Raises:
            InputError: the gallery has no such label.
        """
        field = "age" if options.utility == "age_group" else options.utility
        if field not in gallery.labels:
            known = ", ".join(sorted(gallery.labels)) or "none"
            raise InputError(f"{self.name}: the gallery has no label {field} (it has: {known}); choose another utility")
        labels = torch.from_numpy(gallery.labels[field])
        if options.utility == "age_group":
            labels = torch.where(labels < 0, labels, labels // 20)  # 0-19, 20-39, ...
        self._labels = labels

    def group(self, gallery: Gallery, features: Tensor, options: KSameSelectOptions) -> tuple[Tensor, Tensor]:
        """k-Same within each value of the label; see `KSame.group`.

        Raises:
            InputError: a value with fewer than k people: they cannot hide among themselves.
        """
        clusters = torch.full((len(gallery),), -1, dtype=torch.int64)
        count = 0
        for value in torch.unique(self._labels).tolist():
            rows = torch.nonzero(self._labels == value)[:, 0]
            if len(rows) < options.k:
                raise InputError(
                    f"{self.name}: only {len(rows)} people of the gallery have {options.utility}={value}, fewer than "
                    f"k={options.k}; use a smaller k, or leave them out of the gallery"
                )
            clusters[rows] = ksame_clusters(features[rows], options.k) + count
            count = int(clusters.max()) + 1
        return clusters, torch.arange(count)

    def open_face(self, query: Tensor, gallery: Gallery, features: Tensor, options: KSameSelectOptions) -> Tensor:
        """The k nearest among those who share the nearest person's label; see `KSame.open_face`."""
        nearest, _ = nearest_rows(features, query[None], 1)
        same = torch.nonzero(self._labels == self._labels[nearest[0, 0]])[:, 0]
        rows, _ = nearest_rows(features[same], query[None], min(options.k, len(same)))
        return self.average(same[rows[0]], gallery, features)


class KSameFurthest(_InPixels[KSameFurthestOptions]):
    """Groups get the mean of a group that is far away, so that no result contains its own people."""

    name = "ksame_furthest"
    options_class = KSameFurthestOptions

    def group(self, gallery: Gallery, features: Tensor, options: KSameFurthestOptions) -> tuple[Tensor, Tensor]:
        """Pairs of groups that swap; see `KSame.group`.

        Raises:
            InputError: k larger than half the gallery.
        """
        return furthest_partners(features, options.k)

    def open_face(self, query: Tensor, gallery: Gallery, features: Tensor, options: KSameFurthestOptions) -> Tensor:
        """The mean of the person furthest away and that person's k - 1 nearest; see `KSame.open_face`."""
        far = int((features - query).square().sum(1).argmax())
        rows, _ = nearest_rows(features, features[far][None], options.k)
        return self.average(rows[0], gallery, features)


class KSameModel(KSame[KSameModelOptions]):
    """Shapes and shape-free looks are averaged apart, so that eyes and mouths do not blur into each other."""

    name = "ksame_m"
    options_class = KSameModelOptions

    _warp: PiecewiseAffine
    _shape_scale: float

    def prepare(self, gallery: Gallery, options: KSameModelOptions) -> None:
        """Triangulate the mean shape of the gallery.

        Raises:
            InputError: a gallery without landmarks.
        """
        if gallery.points is None:
            raise InputError(f"{self.name}: the gallery has no landmarks; `facezoo prepare` keeps them in a packed set")
        shapes = torch.from_numpy(gallery.points)
        self._warp = PiecewiseAffine(shapes.mean(0), gallery.size)
        # By variance, as an appearance model does: so much of the looks' spread as the weight says.
        spread = (shapes - shapes.mean(0)).square().sum((1, 2)).mean().sqrt()
        small = min(gallery.size, _DISTANCE_SIZE)
        self._shape_scale = options.shape_weight * 0.2 * (3 * small * small) ** 0.5 / max(float(spread), 1e-6)

    def features(self, faces: Tensor, gallery: Gallery, points: Tensor | None) -> Tensor:
        """Shape-free pixels and weighted shape; see `KSame.features`.

        Raises:
            InputError: landmarks of another number than the gallery's.
        """
        mean = self._warp.reference
        shapes = mean.expand(len(faces), -1, -1) if points is None else points.double()
        if shapes.shape[1:] != mean.shape:
            raise InputError(f"{self.name}: {shapes.shape[1]} landmarks a face, but the gallery has {len(mean)}")
        # One at a time: sums must not depend on the batch.
        free = torch.cat([self._warp.to_reference(f[None], s[None]) for f, s in zip(faces, shapes, strict=True)])
        shape = ((shapes - mean) * self._shape_scale).flatten(1).float()
        return torch.cat([_pixel_features(free), shape], 1)

    def average(self, rows: Tensor, gallery: Gallery, features: Tensor) -> Tensor:
        """Mean looks, warped to the mean shape of the group; see `KSame.average`."""
        assert gallery.points is not None  # noqa: S101 (prepare refused)
        shapes = torch.from_numpy(gallery.points)
        total = torch.zeros(3, gallery.size, gallery.size)
        for part in _parts(rows):
            total += self._warp.to_reference(gallery.faces(part), shapes[part]).sum(0)
        return self._warp.from_reference((total / len(rows))[None], shapes[rows].mean(0)[None])[0]


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

    def features(self, faces: Tensor, gallery: Gallery, points: Tensor | None) -> Tensor:
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
