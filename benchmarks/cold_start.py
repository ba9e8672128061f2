"""How long the first face takes in a fresh process, and what checking a checkpoint's hashes costs.

Measured, each in new processes, the smallest of some runs: importing facezoo; a model made ready (imports, hashes,
networks); the same and one face. Then, in one process, size and SHA-256 of every file of a checkpoint. Processor time
(user and system, all threads) is the figure to compare: on a machine that does other work wall time says little.

    OMP_NUM_THREADS=1 python benchmarks/cold_start.py --json benchmarks/results/cold_start.json
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from facezoo.hub.manifest import resolve_model, selected_files, verify_files

STEPS = {
    "import facezoo": "import facezoo",
    "model ready": "import facezoo; facezoo.from_pretrained({model!r})",
    "first face": (
        "import facezoo, torch; a = facezoo.from_pretrained({model!r}); "
        "a.anonymize_faces(torch.zeros(1, 3, {size}, {size}), facezoo.Key.generate())"
    ),
}


def spent(code: str) -> tuple[float, float]:
    """Processor and wall seconds of a fresh Python that runs ``code``."""
    start, before = time.perf_counter(), os.times()
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)  # noqa: S603 - code of our own
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return used, time.perf_counter() - start


def main(argv: list[str] | None = None) -> int:
    """Measure, print, write JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="identity_rotation.faces128")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args(argv)
    found = resolve_model(arguments.model)
    if found.folder is None or found.manifest is None:
        parser.error(f"{arguments.model} has no weights")
    result: dict[str, object] = {"model": found.name, "processes": {}}
    processes: dict[str, dict[str, float]] = {}
    for name, code in {"python": "pass", **STEPS}.items():
        text = code.format(model=arguments.model, size=found.manifest["crop_size"])
        runs = [spent(text) for _ in range(arguments.repeat)]
        processes[name] = {"processor_seconds": min(r[0] for r in runs), "wall_seconds": min(r[1] for r in runs)}
        print(
            f"{name}: {processes[name]['processor_seconds']:.2f} s of processor time, "
            f"{processes[name]['wall_seconds']:.2f} s by the clock"
        )
    size = sum(found.manifest["files"][file]["bytes"] for file in selected_files(found.manifest))
    checks = []
    for _ in range(arguments.repeat + 1):
        start = time.process_time()
        verify_files(found.folder, found.manifest)
        checks.append(time.process_time() - start)
    result |= {"processes": processes, "bytes": size, "verify_processor_seconds": min(checks)}
    print(f"hashes of {size / 1e6:.1f} MB: {1000 * min(checks):.1f} ms, {size / 1e6 / min(checks):.0f} MB/s")
    if arguments.json is not None:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
