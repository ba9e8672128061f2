"""Measures a generator of people: how near its pictures are to photographs, how varied, and whether they are copies.

    python scripts/evaluate_generator.py runs/stylegan2.faces64/checkpoint --train packed/train128.safetensors \
        --held-out packed/evaluation128.safetensors -o evaluated/stylegan2.faces64.json

Features are those of face recognisers that ship here, so the Fréchet distances are not FID and compare only with
others of the same features, size and number of pictures; the distance between two sets of photographs stands beside
them. Whether a person is a copy is judged by the nearest face of the training set, in SFace's features, against the
same figure of photographs of people who were not in it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from facezoo.core.batches import PackedBatches
from facezoo.errors import FacezooError
from facezoo.faces.detect import get_detector
from facezoo.files import atomic_write
from facezoo.generate import load_generator, to_pixels
from facezoo.hub.manifest import resolve_model
from facezoo.metrics import frechet_distance, wilson
from facezoo.recognition import load_recogniser

BATCH = 20
SIDE = 128


def features(pictures: Tensor, name: str) -> npt.NDArray[np.float64]:
    """Unit embeddings ``(N, D)`` of pictures ``(N, 3, S, S)`` in [-1, 1], enlarged to the template's size."""
    recogniser = load_recogniser(name)
    rows = []
    for part in tqdm(pictures.split(BATCH), desc=name, unit="batch", dynamic_ncols=True):
        large = functional.interpolate(part, size=(SIDE, SIDE), mode="bicubic", align_corners=False).clamp(-1, 1)
        with torch.inference_mode():
            rows.append(functional.normalize(recogniser(large), dim=-1).double())
    return torch.cat(rows).numpy()


def photographs(paths: Sequence[Path], size: int, count: int, seed: int) -> Tensor:
    """Up to ``count`` faces drawn from packed sets, ``(N, 3, S, S)`` at ``size`` pixels."""
    data = PackedBatches(paths, size, ())
    chosen = np.sort(np.random.default_rng(seed).permutation(len(data))[:count])
    return data.__getitems__(chosen.tolist())["image"].float() / 127.5 - 1


def evaluate(arguments: argparse.Namespace) -> dict[str, object]:
    """All figures, as the card's results file holds them."""
    generator, title = load_generator(arguments.model)
    size, count = generator.size, arguments.count
    sets = {
        t: torch.stack([generator.person(seed, t) for seed in tqdm(range(count), desc=f"truncation {t}")])
        for t in (1.0, arguments.truncation)
    }
    # Pictures as they are saved.
    people = {t: torch.stack([torch.from_numpy(to_pixels(p)) for p in pictures]) for t, pictures in sets.items()}
    people = {t: p.permute(0, 3, 1, 2).float() / 127.5 - 1 for t, p in people.items()}
    trained = photographs(arguments.train, size, 2 * count, seed=1)
    half = len(trained) // 2
    shuffled = np.random.default_rng(2).permutation(len(trained))
    held_out = photographs(arguments.held_out, size, count, seed=3)

    measured: dict[str, object] = {}
    rows = []
    embedded = {}
    for name in ("sface", "dlib"):
        real = features(trained[shuffled], name)
        own = {t: features(p, name) for t, p in people.items()}
        embedded[name] = own
        row: dict[str, object] = {"features": f"{name}, {real.shape[1]} numbers, unit length"}
        row["photographs against photographs"] = round(frechet_distance(real[:half], real[half:]), 4)
        for t, values in own.items():
            row[f"truncation {t:g}"] = round(frechet_distance(real[:half], values), 4)
            measured[f"Fréchet distance, {name} features, truncation {t:g}"] = row[f"truncation {t:g}"]
        measured[f"Fréchet distance, {name} features, photographs against photographs"] = row[
            "photographs against photographs"
        ]
        row["mean cosine between two people: photographs"] = round(mean_cosine(real), 3)
        for t, values in own.items():
            row[f"between two people, truncation {t:g}"] = round(mean_cosine(values), 3)
        rows.append(row)

    gallery = PackedBatches(arguments.train, size, ("embedding_sface",)).all("embedding_sface").astype(np.float64)
    gallery /= np.linalg.norm(gallery, axis=1, keepdims=True)
    nearest = {f"truncation {t:g}": (v @ gallery.T).max(1) for t, v in embedded["sface"].items()}
    nearest["photographs of people who were not in it"] = (features(held_out, "sface") @ gallery.T).max(1)
    limit = float(np.quantile(nearest["photographs of people who were not in it"], 0.99))
    copies = []
    for name, values in nearest.items():
        share = wilson(int((values > limit).sum()), len(values))
        copies.append(
            {
                "pictures": f"{len(values)}, {name}",
                "nearest training face, cosine: median": round(float(np.median(values)), 3),
                "highest": round(float(values.max()), 3),
                f"nearer than 99 % of strangers ({limit:.3f})": f"{100 * share.value:.2f} %",
            }
        )
    key = f"truncation {arguments.truncation:g}"
    measured[f"nearest training face (SFace cosine), median, {key}"] = round(float(np.median(nearest[key])), 3)
    measured[f"nearest training face (SFace cosine), highest, {key}"] = round(float(nearest[key].max()), 3)
    measured["nearest training face of strangers' photographs (SFace cosine), median; 99 %"] = (
        f"{np.median(nearest['photographs of people who were not in it']):.3f}; {limit:.3f}"
    )

    detector = get_detector("yunet")
    for t, pictures in people.items():
        found = sum(bool(detector.detect(on_grey(p))) for p in pictures)
        rate = wilson(found, count)
        measured[f"a face is detected (YuNet), truncation {t:g}"] = (
            f"{100 * rate.value:.1f} % ({100 * rate.low:.1f}-{100 * rate.high:.1f})"
        )
    resolved = resolve_model(arguments.model)
    assert resolved.manifest is not None  # noqa: S101 - load_generator would have refused
    return {
        "name": resolved.name,
        "protocol": (
            f"{count} people of seeds 0 to {count - 1} against {half} photographs of the training set, all at {size} "
            f"pixels, enlarged to {SIDE} (bicubic); nearest faces among all {len(gallery)} training faces at full size"
        ),
        "measured": measured,
        "tables": {"Fréchet distances and variety": rows, "Are they copies": copies},
        "notes": [
            f"Measured by scripts/evaluate_generator.py on {title}.",
            "The features are those of face recognisers: they see whether these are faces as varied as the training's, "
            "and hardly see sharpness or backgrounds. They are not FID.",
        ],
    }


def mean_cosine(values: npt.NDArray[np.float64]) -> float:
    """Mean cosine between two different rows of unit length."""
    n = len(values)
    return float((np.square(values.sum(0)).sum() - n) / (n * (n - 1)))


def on_grey(picture: Tensor) -> npt.NDArray[np.uint8]:
    """A crop with a margin, as a detector wants it: ``(3, S, S)`` -> ``(256, 256, 3)``."""
    large = functional.interpolate(picture[None], size=(SIDE, SIDE), mode="bicubic", align_corners=False)[0]
    canvas = np.full((2 * SIDE, 2 * SIDE, 3), 128, dtype=np.uint8)
    canvas[SIDE // 2 : SIDE // 2 + SIDE, SIDE // 2 : SIDE // 2 + SIDE] = to_pixels(large.clamp(-1, 1))
    return canvas


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", help="a generator's name or checkpoint folder")
    parser.add_argument(
        "--train", type=Path, nargs="+", required=True, help="packed sets of its training, with SFace's vectors"
    )
    parser.add_argument("--held-out", type=Path, nargs="+", required=True, help="packed sets of other people")
    parser.add_argument("-o", "--output", type=Path, required=True, help="results file to write")
    parser.add_argument("--count", type=int, default=1000, help="people (default: 1000)")
    parser.add_argument("--truncation", type=float, default=0.7, help="beside 1 (default: 0.7)")
    arguments = parser.parse_args()
    try:
        results = evaluate(arguments)
        text = json.dumps(results, indent=1) + "\n"
        atomic_write(arguments.output, text.encode(), overwrite=True, make_parents=True)
    except FacezooError as error:
        print(f"facezoo: error: {error}", file=sys.stderr)
        return error.exit_code
    print(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
