"""Pictures a second of anonymize-dataset on Ray against a plain loop over the same parts in one process.

Start-up is told apart: the plain loop's first part loads the model, and Ray's rate is that of what comes in after the
first part of each actor. Every process has one thread. On a busy machine look at the ratio of repeated runs, and at the
load.

    python benchmarks/ray_throughput.py --pictures 400 --actors 2 --json benchmarks/results/ray_throughput.json
"""

from __future__ import annotations

import argparse
import io
import json
import os
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from facezoo.batch import Settings
from facezoo.demo import demo_picture
from facezoo.hub.manifest import resolve_model
from facezoo.scale.parts import Part, PartWorker, Run, find_inputs, plan_run, summarize
from facezoo.scale.ray_engine import connect, run_parts


def write_input(path: Path, count: int) -> None:
    """Tar shard of the demo picture at half size, each time another brightness."""
    base = np.asarray(Image.fromarray(demo_picture()).reduce(2), dtype=np.int16)
    with tarfile.open(path, "w") as tar:
        for number in range(count):
            buffer = io.BytesIO()
            shade = np.clip(base + number % 30 - 15, 0, 255).astype(np.uint8)
            Image.fromarray(shade).save(buffer, "JPEG", quality=92)
            info = tarfile.TarInfo(f"{number:06d}.jpg")
            info.size = buffer.tell()
            buffer.seek(0)
            tar.addfile(info, buffer)


def planned(folder: Path, name: str, model: str, part: int) -> tuple[Run, list[Part]]:
    """A run of its own output folder."""
    settings = Settings(task="anonymize", model=model, file_format="jpg", salt="AAAAAAAAAAAAAAAAAAAAAA==")
    sha256 = resolve_model(model).sha256 or ""
    run = Run(kind="tar", output=str(folder / name), settings=settings, model_sha256=sha256)
    return plan_run(run, find_inputs([str(folder / "in.tar")])[0], "benchmark", part)


def main() -> None:
    """Measures and prints JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=400)
    parser.add_argument("--part", type=int, default=16)
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--model", default="gaussian_blur")
    parser.add_argument("--json", type=Path)
    a = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, object] = {"model": a.model, "pictures": a.pictures, "actors": a.actors, "cores": os.cpu_count()}
    result["load_before"] = round(os.getloadavg()[0], 1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_input(folder / "in.tar", a.pictures)
        run, parts = planned(folder, "plain", a.model, a.part)
        begin = time.perf_counter()
        worker = PartWorker(run)
        worker.do(parts[0])
        ready = time.perf_counter()
        for part in parts[1:]:
            worker.do(part)
        plain = (a.pictures - parts[0].count) / (time.perf_counter() - ready)
        result |= {"plain_start_s": round(ready - begin, 2), "plain_pictures_per_second": round(plain, 2)}
        for actors in sorted({1, a.actors}):
            run, parts = planned(folder, f"ray{actors}", a.model, a.part)
            arrived: list[tuple[float, int]] = []

            def note(pictures: int, arrived: list[tuple[float, int]] = arrived) -> None:
                arrived.append((time.perf_counter(), pictures))

            with connect(None):
                begin = time.perf_counter()
                run_parts(run, parts, actors=actors, report=note)
                end = time.perf_counter()
            ready = arrived[actors - 1][0]
            rate = sum(pictures for _, pictures in arrived[actors:]) / (arrived[-1][0] - ready)
            summary = summarize(run, parts)
            assert summary.done == a.pictures, summary  # noqa: S101 (a benchmark of half the work would be none)
            result |= {
                f"ray_{actors}_start_s": round(ready - begin, 2),
                f"ray_{actors}_pictures_per_second": round(rate, 2),
                f"ray_{actors}_whole_s": round(end - begin, 2),
            }
    result["load_after"] = round(os.getloadavg()[0], 1)
    text = json.dumps(result, indent=1) + "\n"
    print(text, end="")
    if a.json is not None:
        a.json.write_text(text)


if __name__ == "__main__":
    main()
