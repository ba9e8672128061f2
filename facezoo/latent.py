"""The commands ``facezoo directions`` and ``facezoo clusters``: a trained model's latent space, edited and shown."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from facezoo.core.sheets import save_sheet
from facezoo.data.attributes import ATTRIBUTES
from facezoo.data.labels import labels_of
from facezoo.data.packed import PackedFaces
from facezoo.errors import InputError, OutputError
from facezoo.files import check_output
from facezoo.hub.manifest import ResolvedModel, load_networks, resolve_model, verify_files, write_checkpoint
from facezoo.methods.attributed.latent import PCA, attribute_direction, tsne
from facezoo.methods.attributed.method import AttributedMethod, binary_attributes
from facezoo.registry import load_class

__all__ = ["fit_directions", "plot_clusters"]

_COMPONENTS = 64
_BATCH = 16
_DEGREES = (-2.0, -1.0, 0.0, 1.0, 2.0)
_SHOWN = 6


def _load(model: str | os.PathLike[str]) -> tuple[ResolvedModel, AttributedMethod]:
    resolved = resolve_model(os.fspath(model))
    if resolved.folder is None or resolved.manifest is None:
        raise InputError(f"{model} has no networks; name a checkpoint of sdn or mfm")
    verify_files(resolved.folder, resolved.manifest)
    cls = load_class(resolved.method)
    if not issubclass(cls, AttributedMethod):
        raise InputError(f"{resolved.method} has no latent space to look at; name a checkpoint of sdn or mfm")
    return resolved, cls.from_checkpoint(resolved.folder, dict(resolved.manifest))


def _faces(method: AttributedMethod, data: str | os.PathLike[str], limit: int) -> tuple[Tensor, PackedFaces, Tensor]:
    """An even choice of a set's faces at the model's size, the set, and the indices chosen."""
    packed = PackedFaces(data)
    if packed.size != method.config.size:
        raise InputError(f"{data} has crops of {packed.size} pixels and the model takes {method.config.size}")
    chosen = np.unique(np.linspace(0, len(packed) - 1, min(limit, len(packed))).round().astype(np.int64))
    pixels = torch.from_numpy(packed.batch(chosen)).permute(0, 3, 1, 2).float().div(127.5).sub(1)
    return pixels, packed, torch.from_numpy(chosen)


@torch.no_grad()
def _bottlenecks(method: AttributedMethod, faces: Tensor) -> Tensor:
    """Bottleneck of the anonymizing network for each face with its own features and nothing asked: ``(N, C*H*W)``."""
    rows = []
    nothing = torch.full((1, len(method.config.attributes)), -1)
    bits = torch.zeros(1, method.config.password_bits, dtype=torch.long)
    for start in tqdm(range(0, len(faces), _BATCH), desc="bottlenecks", unit="batch", dynamic_ncols=True):
        part = faces[start : start + _BATCH]
        count = len(part)
        latent = method.bottleneck(part, bits.expand(count, -1), nothing.expand(count, -1), method.features_of(part))
        rows.append(latent.flatten(1).float())
    return torch.cat(rows)


def fit_directions(
    model: str | os.PathLike[str],
    data: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    limit: int = 600,
    overwrite: bool = False,
) -> dict[str, float]:
    """Fits a direction in the bottleneck for each attribute with two values and writes a checkpoint that has them.

    Args:
        model: Checkpoint of sdn or mfm.
        data: Packed set with labels; any, also one that took no part in the training.
        output: New checkpoint folder; ``directions.png`` in it shows degrees -2 to +2.
        limit: Pictures to use.
        overwrite: Replace the folder.

    Returns:
        Attribute -> share of held-out pictures on the right side of its hyperplane.

    Raises:
        InputError: no latent space, crops of another size, or too few labelled pictures of a class.
        CheckpointError: a damaged checkpoint.
        OutputError: the folder exists.
    """
    resolved, method = _load(model)
    target = Path(output)
    if target.exists() and not overwrite:
        raise OutputError(f"{target} exists already; choose another folder or use --overwrite")
    faces, packed, chosen = _faces(method, data, limit)
    names = binary_attributes(method.config.attributes)
    labels = torch.from_numpy(labels_of(packed, names))[chosen].long()
    flat = _bottlenecks(method, faces)
    pca = PCA.fit(flat, _COMPONENTS)
    codes = pca.compress(flat)
    directions = method.networks.latent_directions.directions
    shares: dict[str, float] = {}
    for column, name in enumerate(names):
        try:
            direction, shares[name] = attribute_direction(pca, codes, labels[:, column])
        except ValueError as error:
            raise InputError(f"{data}: {name}: {error}") from error
        row = method.config.attributes.index(name)
        directions[row] = direction.view_as(directions[row])
    assert resolved.folder is not None  # noqa: S101 - _load has checked
    assert resolved.manifest is not None  # noqa: S101
    states = load_networks(resolved.folder, resolved.manifest)
    states["latent_directions"] = {"directions": directions.half()}
    manifest: dict[str, Any] = {k: v for k, v in resolved.manifest.items() if k not in ("files", "checksum")}
    measured = {name: round(share, 4) for name, share in shares.items()}
    manifest["metrics"] = {**manifest.get("metrics", {}), "directions_held_out": measured}
    write_checkpoint(target, manifest, states, overwrite=overwrite)
    _save_degrees(method, faces[:: max(1, len(faces) // _SHOWN)][:_SHOWN], names, target / "directions.png")
    return shares


@torch.no_grad()
def _save_degrees(method: AttributedMethod, faces: Tensor, names: tuple[str, ...], path: Path) -> None:
    count, rows = len(faces), [("original", faces)]
    nothing = torch.full((count, len(method.config.attributes)), -1)
    bits = torch.zeros(count, method.config.password_bits, dtype=torch.long)
    features = method.features_of(faces)
    for name in names:
        for degree in _DEGREES:
            degrees = torch.zeros(count, len(method.config.attributes))
            degrees[:, method.config.attributes.index(name)] = degree
            rows.append((f"{name} {degree:+.0f}", method.hide(faces, bits, nothing, features, degrees)))
    save_sheet(path, rows, "edits in the bottleneck, own features")


def plot_clusters(
    model: str | os.PathLike[str],
    data: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    attribute: str,
    limit: int = 400,
    overwrite: bool = False,
) -> list[Path]:
    """Plots the style latents of a set by an attribute's values, and faces on the way between the values' centres.

    Args:
        model: Checkpoint of mfm or sdn.
        data: Packed set with labels of the attribute.
        output: Folder for ``clusters.png`` (two principal components, and t-SNE) and ``between.png``.
        attribute: Whose values are the clusters.
        limit: Pictures to use.
        overwrite: Replace existing plots.

    Returns:
        The files written.

    Raises:
        InputError: as in ``fit_directions``; fewer than two values among the pictures.
        OutputError: a plot exists.
    """
    _, method = _load(model)
    folder = Path(output)
    targets = [folder / "clusters.png", folder / "between.png"]
    for target in targets:
        if target.exists():
            check_output(target, overwrite)
    if attribute not in ATTRIBUTES:
        raise InputError(f"there is no attribute {attribute!r}; choices: {', '.join(ATTRIBUTES)}")
    faces, packed, chosen = _faces(method, data, limit)
    labels = torch.from_numpy(labels_of(packed, [attribute]))[chosen, 0].long()
    with torch.no_grad():
        styles = torch.cat([method.features_of(part) for part in torch.split(faces, _BATCH)])
    values = [v for v in range(len(ATTRIBUTES[attribute].values)) if int((labels == v).sum()) >= 2]
    if len(values) < 2:
        raise InputError(f"{data}: fewer than two values of {attribute} among the {len(faces)} pictures chosen")
    codes = PCA.fit(styles, _COMPONENTS).compress(styles)
    folder.mkdir(parents=True, exist_ok=True)
    _scatter(targets[0], codes[:, :2], tsne(codes), labels, attribute, values)
    centres = torch.stack([styles[labels == value].mean(0) for value in values])
    _save_between(
        method, faces[labels >= 0][:1], centres, [ATTRIBUTES[attribute].values[v] for v in values], targets[1]
    )
    return targets


def _scatter(path: Path, flat: Tensor, embedded: Tensor, labels: Tensor, attribute: str, values: list[int]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 5), constrained_layout=True)
    for axis, points, title in zip(axes, (flat, embedded), ("principal components", "t-SNE"), strict=True):
        for value in values:
            rows = points[labels == value]
            axis.scatter(rows[:, 0], rows[:, 1], s=9, label=ATTRIBUTES[attribute].values[value])
        axis.set_title(f"style latents by {attribute}: {title}")
        axis.set_xticks([])
        axis.set_yticks([])
    axes[0].legend()
    temporary = path.with_name(path.name + ".part")
    figure.savefig(temporary, format="png", dpi=110)
    plt.close(figure)
    temporary.replace(path)


@torch.no_grad()
def _save_between(method: AttributedMethod, face: Tensor, centres: Tensor, names: list[str], path: Path) -> None:
    """A face that takes on the features on the way from each centre to the next."""
    bits = torch.zeros(1, method.config.password_bits, dtype=torch.long)
    nothing = torch.full((1, len(method.config.attributes)), -1)
    rows = []
    length = method.config.feature_dim**0.5
    for i in range(len(centres) - 1):
        pictures = []
        for share in torch.linspace(0, 1, 7):
            features = torch.nn.functional.normalize(torch.lerp(centres[i], centres[i + 1], share), dim=0) * length
            pictures.append(method.hide(face, bits, nothing, features[None]))
        rows.append((f"{names[i]} to {names[i + 1]}", torch.cat(pictures)))
    save_sheet(path, rows, "between the centres of clusters")
