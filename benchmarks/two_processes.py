"""How much faster two processes train than one, on this machine: pictures a second from the runs' own logs.

Both runs take the same whole batch (2 B in one process, B in each of two), one thread a process, so that two processes
have twice the processor. The first lines of each log (start-up, planning of oneDNN) are left out. On a machine that is
busy with other things the ratio says what was left of it, not what the code can do; the load is written down.

    python benchmarks/two_processes.py --recipe identity_rotation/faces128_cpu --data packed/train128.safetensors
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path


def speed(folder: Path) -> float:
    """Median of the log's pictures a second, without the first third."""
    with (folder / "log.csv").open(newline="") as stream:
        values = [float(row["pictures_per_second"]) for row in csv.DictReader(stream)]
    return statistics.median(values[len(values) // 3 :])


def main() -> None:
    """Runs both and prints JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="identity_rotation/faces128_cpu")
    parser.add_argument("--data", required=True)
    parser.add_argument("--batch", type=int, default=8, help="pictures a batch and process, of the two")
    parser.add_argument("--minutes", type=float, default=3.0, help="length of each run")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--json", type=Path)
    a = parser.parse_args()
    result: dict[str, object] = {"recipe": a.recipe, "whole_batch": 2 * a.batch, "cores": os.cpu_count()}
    result["load_before"] = round(os.getloadavg()[0], 1)
    with tempfile.TemporaryDirectory() as name:
        for processes in (1, 2):
            folder = Path(name) / str(processes)
            settings = [f"data={a.data}", f"train.batch_size={2 * a.batch // processes}", "train.log_every_batches=2"]
            settings += ["train.sheet_every_batches=1000000", *a.set]
            command = [sys.executable, "-m", "facezoo", "train", a.recipe, "--output", str(folder)]
            command += ["--devices", str(processes), "--accelerator", "cpu", "--max-minutes", str(a.minutes)]
            command += [word for setting in settings for word in ("--set", setting)]
            subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True)  # noqa: S603
            result[f"pictures_per_second_{processes}"] = round(speed(folder), 2)
    one, two = (float(str(result[f"pictures_per_second_{n}"])) for n in (1, 2))
    result["ratio"] = round(two / one, 2)
    result["load_after"] = round(os.getloadavg()[0], 1)
    text = json.dumps(result, indent=1) + "\n"
    print(text, end="")
    if a.json is not None:
        a.json.write_text(text)


if __name__ == "__main__":
    main()
