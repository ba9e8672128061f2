"""Privacy and recovery through whole saved pictures: found, anonymized, pasted, saved, found again, recovered.

`facezoo evaluate` works on aligned crops, so that nothing but the method is measured. This takes the way of a user
instead: each picture of a folder goes through ``Anonymizer.anonymize``, a PNG file, and ``Anonymizer.recover`` with
the record, without it, and with a wrong key. The judge is dlib's network at the threshold of its author (distance 0.6)
and at one measured for a false accept rate of 1e-3 (--threshold).

    python benchmarks/whole_pictures.py ../shared/data/lfw250 --model identity_rotation.faces128 -o whole.json

Only the largest face of a picture is judged (the person the picture is of). How it looks (``facezoo.evaluate.looks``)
is measured on the saved picture, at the place of the face in the original.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

import facezoo
from facezoo.errors import FacezooError
from facezoo.evaluate.looks import Looks
from facezoo.faces import align
from facezoo.faces.detect import get_detector
from facezoo.faces.picture import load_picture
from facezoo.frozen import load_lpips
from facezoo.keys import Key
from facezoo.metrics import wilson
from facezoo.recognition import load_recogniser

PICTURES = {".jpg", ".jpeg", ".png", ".webp"}


def measure(folder: Path, model: str, limit: int | None, thresholds: dict[str, float]) -> dict[str, Any]:
    """The figures of one model over one folder."""
    anonymizer = facezoo.from_pretrained(model)
    detector, judge = get_detector("yunet"), load_recogniser("dlib")
    right, wrong = Key.from_bytes(bytes(range(32))), Key.from_bytes(bytes(range(1, 33)))
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURES)
    if limit is not None:
        paths = [paths[i * len(paths) // limit] for i in range(min(limit, len(paths)))]
    counts: dict[str, list[bool]] = {}
    psnr: list[float] = []
    sizes: list[float] = []
    seconds: dict[str, list[float]] = {"anonymize": [], "recover, record": [], "recover, no record": []}
    refused: dict[str, int] = {}
    crops: dict[str, list[np.ndarray]] = {"original": [], "anonymous": []}
    people: list[str] = []

    def cropped(picture: np.ndarray, points: np.ndarray) -> np.ndarray:
        return align.crop_faces(picture, align.similarity(points, 128)[None], 128)

    def embedding(picture: np.ndarray, points: np.ndarray) -> torch.Tensor:
        crop = torch.from_numpy(cropped(picture, points))
        with torch.inference_mode():
            vector: torch.Tensor = judge(crop.permute(0, 3, 1, 2).float() / 127.5 - 1)
        return vector[0]

    def note(what: str, value: bool) -> None:
        counts.setdefault(what, []).append(bool(value))

    with tempfile.TemporaryDirectory() as temporary:
        saved = Path(temporary) / "anonymous.png"
        for path in tqdm(paths, desc=folder.name, unit="picture", disable=not sys.stderr.isatty()):
            original = load_picture(path).pixels
            faces = detector.detect(original)
            if not faces:
                refused["no face in the original"] = refused.get("no face in the original", 0) + 1
                continue
            face = max(faces, key=lambda f: (f.box[2] - f.box[0]) * (f.box[3] - f.box[1]))
            reference = embedding(original, face.points)
            try:
                started = time.perf_counter()
                anonymizer.anonymize(path, key=right).save(saved, overwrite=True)
                seconds["anonymize"].append(time.perf_counter() - started)
            except FacezooError as error:
                reason = type(error).__name__
                refused[reason] = refused.get(reason, 0) + 1
                continue
            anonymous = load_picture(saved).pixels
            crops["original"].append(cropped(original, face.points)[0])
            crops["anonymous"].append(cropped(anonymous, face.points)[0])
            people.append(path.stem.rstrip("0123456789"))
            sizes.append(float(face.box[3] - face.box[1]))
            near = [
                abs(f.points.mean(0) - face.points.mean(0)).max() < 0.3 * sizes[-1] for f in detector.detect(anonymous)
            ]
            note("face still detected", any(near))
            pictures = {"taken for the original": anonymous}
            for name, key, options in (
                ("right key, record", right, {}),
                ("right key, no record", right, {"record": False}),
                ("wrong key, no record", wrong, {"record": False}),
            ):
                try:
                    started = time.perf_counter()
                    recovered = anonymizer.recover(saved, key, **options)  # type: ignore[arg-type]
                    if key is right:
                        seconds["recover" + name.removeprefix("right key")].append(time.perf_counter() - started)
                    reports = recovered.report.faces
                    mine = min(reports, key=lambda f: np.abs(np.subtract(f.box, face.box)).sum())
                    note(f"{name}: tag fits", bool(mine.verified))
                    note(f"{name}: tag fits for every face of the picture", all(f.verified for f in reports))
                    pictures[f"{name}: taken for the original"] = recovered.picture.pixels
                except FacezooError:
                    note(f"{name}: tag fits", False)
                    pictures[f"{name}: taken for the original"] = anonymous
            for name, picture in pictures.items():
                distance = float((embedding(picture, face.points) - reference).norm())
                for kind, threshold in thresholds.items():
                    note(f"{name} ({kind})", distance < threshold)
            left, top, end, bottom = np.clip(face.box, 0, None).astype(int)
            error = (
                original[top:bottom, left:end].astype(float)
                - pictures["right key, record: taken for the original"][top:bottom, left:end]
            )
            psnr.append(float(10 * np.log10(255**2 / max(np.square(error).mean(), 1e-9))))
    identities = np.unique(people, return_inverse=True)[1]
    looks = Looks(np.stack(crops["original"]), identities, load_lpips()).measure(np.stack(crops["anonymous"]))
    figures = {}
    for name, values in counts.items():
        interval = wilson(sum(values), len(values))
        figures[name] = interval.to_dict()
    return {
        "model": model,
        "data": folder.name,
        "pictures": len(paths),
        "measured": len(sizes),
        "refused": refused,
        "face height, pixels": {"median": float(np.median(sizes)), "least": min(sizes), "most": max(sizes)},
        "figures": figures,
        "looks": looks,
        "psnr in the face's box, right key with record, dB": float(np.mean(psnr)),
        "seconds a picture, median": {name: float(np.median(values)) for name, values in seconds.items()},
        "threads": torch.get_num_threads(),
    }


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="identity_rotation.faces128")
    parser.add_argument("--limit", type=int, help="so many pictures, evenly chosen")
    parser.add_argument("--threshold", type=float, default=0.521, help="dlib distance of FAR 1e-3 (see the card)")
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    try:
        thresholds = {"dlib < 0.6": 0.6, f"dlib < {arguments.threshold:g}": arguments.threshold}
        result = measure(arguments.folder, arguments.model, arguments.limit, thresholds)
    except FacezooError as error:
        print(f"facezoo: error: {error}", file=sys.stderr)
        return error.exit_code
    text = json.dumps(result, indent=1)
    print(text)
    if arguments.output is not None:
        arguments.output.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
