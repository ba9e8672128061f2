"""docs/cluster/train.sbatch under a real slurmctld and two slurmd: warned, killed, preempted, cancelled."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.cluster.slurm import Slurm, missing_programs, slurm
from tests.cluster.test_two_nodes import BATCHES, rows, settings
from tests.core.test_run import write_recipe

pytestmark = [pytest.mark.ddp, pytest.mark.slow]


@pytest.fixture(scope="module")
def cluster(repository: Path) -> Iterator[Slurm]:
    missing = missing_programs()
    if missing:
        pytest.skip(f"needs Slurm on this machine (no {', '.join(missing)})")
    folder = Path(tempfile.mkdtemp(prefix="fzslurm"))  # pytest's own folders are too long for a Unix socket
    variables = {
        "PYTHONPATH": str(repository),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "MASTER_ADDR": "127.0.0.1",  # node1 and node2 are names that only Slurm knows
        "FACEZOO": f"{sys.executable} -m facezoo",
    }
    with slurm(folder, variables) as running:
        yield running
    shutil.rmtree(folder, ignore_errors=True)


def submit(cluster: Slurm, repository: Path, recipe: Path, output: Path) -> str:
    words = ["sbatch", "--parsable", "--nodes=2", "--cpus-per-task=1", f"--output={output}.log"]
    words += [str(repository / "docs/cluster/train.sbatch"), str(recipe), str(output), "--accelerator", "cpu"]
    return cluster.call(*words).strip()


def trainings(output: Path) -> list[int]:
    """Process numbers of the trainings that write into a folder."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().decode().split("\0") if entry.name.isdigit() else []
        except OSError:
            continue
        if str(output) in words and words[1:3] == ["-m", "facezoo"]:
            found.append(int(entry.name))
    return found


def done(cluster: Slurm, job: str) -> bool:
    return cluster.job(job)["JobState"] in ("COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL")


def restarted(cluster: Slurm, job: str) -> bool:
    return cluster.job(job)["Restarts"] == "1"


@pytest.fixture(scope="module")
def whole(cluster: Slurm, repository: Path, tmp_path_factory) -> tuple[Path, Path]:
    """A recipe, and the folder of its run that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    recipe = settings(write_recipe(folder, BATCHES))
    job = submit(cluster, repository, recipe, folder / "run")
    cluster.wait("a run that nothing happens to", lambda: done(cluster, job), 400)
    assert cluster.job(job)["JobState"] == "COMPLETED", (folder / "run.log").read_text()
    return recipe, folder / "run"


@pytest.mark.parametrize("event", ["warned", "killed", "preempted"])
def test_comes_back(event: str, cluster: Slurm, whole: tuple[Path, Path], tmp_path: Path, repository: Path, capsys):
    """The job comes back by itself, and its weights are those of the run that nothing happened to."""
    recipe, expected = whole
    output = tmp_path / event
    job = submit(cluster, repository, recipe, output)
    cluster.wait("three batches", lambda: rows(output) >= 3)
    if event == "warned":
        cluster.call("scancel", "--signal=USR1", job)  # what --signal=USR1@180 sends before the time limit
    elif event == "killed":
        os.kill(trainings(output)[-1], signal.SIGKILL)
    else:
        words = ["--parsable", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 1"]
        cluster.call("sbatch", *words)
    cluster.wait("a requeue", lambda: restarted(cluster, job))
    at = rows(output)
    cluster.wait("the end", lambda: done(cluster, job), 400)
    log = output.with_suffix(".log").read_text(errors="replace")
    assert cluster.job(job)["JobState"] == "COMPLETED", log
    assert 3 <= at < 2 * BATCHES, "stopped in the middle"
    assert log.count("facezoo: job ") == 2
    a, b = (torch.load(path / "last.ckpt", weights_only=True) for path in (expected, output))
    assert a["facezoo"] == b["facezoo"] == {"batches_seen": 2 * BATCHES}
    assert [name for name, value in a["state_dict"].items() if not torch.equal(value, b["state_dict"][name])] == []
    with capsys.disabled():
        print(f"\n--- {event}, the second start at batch {at}")
        print("\n".join(line for line in log.splitlines() if "batch" not in line or "stopped" in line))


def test_cancelled_stays_cancelled(cluster: Slurm, tmp_path: Path, repository: Path):
    """Its checkpoint is whole, and nobody puts it back into the queue."""
    recipe = settings(write_recipe(tmp_path, 200))
    output = tmp_path / "cancelled"
    job = submit(cluster, repository, recipe, output)
    cluster.wait("two batches", lambda: rows(output) >= 2)
    cluster.call("scancel", job)
    cluster.wait("the end of its processes", lambda: not trainings(output))
    cluster.wait("the end of the job", lambda: cluster.job(job)["JobState"] == "CANCELLED")
    assert cluster.job(job)["Restarts"] == "0"
    assert torch.load(output / "last.ckpt", weights_only=True)["facezoo"]["batches_seen"] >= 2
