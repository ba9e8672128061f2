"""How long a learned face takes, and a whole 1280 x 720 picture with 15 faces.

Measured: the method alone on a batch of aligned faces; finding the faces, step by step of the search (upright faces,
turned ones, cut-off ones at the borders, small ones); the second detector's look; the whole call
``anonymize`` with and without that look; ``recover`` from the record; encoding and writing the PNG and its record.
Loading the model is left out, and so is the first call of each kind (OpenCV and oneDNN plan their work then).
Medians over the repetitions. On a busy machine wall time says little: the fastest run and the processor time (of all
threads together) are printed beside.

    OMP_NUM_THREADS=2 python benchmarks/picture_speed.py --model identity_rotation
    python benchmarks/picture_speed.py --model gaussian_blur --json blur.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

import facezoo
from facezoo.demo import demo_picture
from facezoo.faces.align import crop_faces_float, similarity
from facezoo.faces.detect import DetectorOptions, get_detector

SEARCHES = (
    ("yunet, upright faces alone", "yunet", DetectorOptions(rotations=False, steady=False)),
    ("and turned ones", "yunet", DetectorOptions(steady=False)),
    ("and at the borders", "yunet", DetectorOptions(borders=True, steady=False)),
    ("and small ones: the first look", "yunet", DetectorOptions(minimum_face=8, borders=True, steady=False)),
    (
        "centerface, upright faces alone",
        "centerface",
        DetectorOptions(score_threshold=0.6, minimum_face=24, rotations=False, steady=False),
    ),
    (
        "and turned, and at the borders: the second look",
        "centerface",
        DetectorOptions(score_threshold=0.45, minimum_face=24, borders=True, steady=False),
    ),
)
"""What is looked for, by which detector, how."""

COLUMNS, ROWS = 5, 3
WIDTH, HEIGHT = 1280, 720


def crowd() -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A 1280 x 720 picture of 15 faces: the demo's portraits in tiles, every second row mirrored."""
    wide = demo_picture()
    count = wide.shape[1] // 300
    tile_width, tile_height = WIDTH // COLUMNS, HEIGHT // ROWS
    picture = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for index in range(COLUMNS * ROWS):
        row, column = divmod(index, COLUMNS)
        start = (index % count) * 300
        portrait = wide[: 300 * tile_height // tile_width, start : start + 300]
        tile = cv2.resize(portrait, (tile_width, tile_height), interpolation=cv2.INTER_AREA)
        if row % 2:
            tile = tile[:, ::-1]
        top, left = row * tile_height, column * tile_width
        picture[top : top + tile_height, left : left + tile_width] = tile
    return picture


def timed(call: Callable[[], Any], repeat: int) -> tuple[float, float, float]:
    """Median and minimum of the seconds of ``repeat`` calls, and their median processor time, after one unmeasured."""
    call()
    seconds, processor = [], []
    for _ in range(repeat):
        start, start_processor = time.perf_counter(), time.process_time()
        call()
        seconds.append(time.perf_counter() - start)
        processor.append(time.process_time() - start_processor)
    return statistics.median(seconds), min(seconds), statistics.median(processor)


def main(argv: list[str] | None = None) -> int:
    """Measure and print a table; optionally write JSON."""
    parser = argparse.ArgumentParser(description="Time of one face in a batch, and of a picture with 15 faces.")
    parser.add_argument("--model", default="identity_rotation")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    cv2.setNumThreads(arguments.threads)

    anonymizer = facezoo.from_pretrained(arguments.model)
    key = facezoo.Key.generate() if anonymizer.method.uses_key else None
    picture = crowd()
    detector = get_detector("yunet")
    found = detector.detect(picture)
    if len(found) != COLUMNS * ROWS:
        print(
            f"the detector finds {len(found)} faces of {COLUMNS * ROWS}; the figures below are for those",
            file=sys.stderr,
        )
    size = anonymizer.method.crop_size or 128
    transforms = np.stack([similarity(face.points, size) for face in found])
    crops = crop_faces_float(picture, transforms, size)
    batch = torch.from_numpy(crops).permute(0, 3, 1, 2)[[index % len(crops) for index in range(arguments.batch)]]
    batch = (batch / 127.5 - 1.0).clamp(-1.0, 1.0).contiguous()

    rows: list[tuple[str, float, float, float]] = []

    def measure(name: str, call: Callable[[], Any], share: int = 1) -> None:
        median, least, processor = (1000 * seconds / share for seconds in timed(call, arguments.repeat))
        rows.append((name, median, least, processor))
        print(f"{name:<76} {median:8.1f} ms   fastest {least:8.1f}   processor {processor:8.1f}", flush=True)

    measure(
        f"one face of {size}, anonymized in a batch of {arguments.batch}",
        lambda: anonymizer.anonymize_faces(batch, key),
        arguments.batch,
    )
    if anonymizer.method.reversible:
        covered = anonymizer.anonymize_faces(batch, key)
        measure(
            f"one face of {size}, recovered in a batch of {arguments.batch}",
            lambda: anonymizer.recover_faces(covered, key),
            arguments.batch,
        )
    for look, detector_name, search in SEARCHES:
        finder = get_detector(detector_name, search)
        measure(f"picture {WIDTH}x{HEIGHT}, {len(found)} faces: {look}", lambda: finder.detect(picture))  # noqa: B023
    measure("picture: anonymize, without the second look", lambda: anonymizer.anonymize(picture, key, verify="off"))
    measure("picture: anonymize, as by default", lambda: anonymizer.anonymize(picture, key))
    result = anonymizer.anonymize(picture, key)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture.png"
        measure("picture: encode and write PNG and record", lambda: result.save(path, overwrite=True))
        if anonymizer.method.reversible:
            measure("picture: recover from the file with its record", lambda: anonymizer.recover(path, key))
    if arguments.json:
        content = {
            "model": anonymizer.model,
            "threads": arguments.threads,
            "faces": len(found),
            "milliseconds": {
                name: {"median": median, "fastest": least, "processor": processor}
                for name, median, least, processor in rows
            },
        }
        arguments.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
