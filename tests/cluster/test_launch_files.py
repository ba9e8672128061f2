"""The launch files agree with themselves and with the command line; what a shell can say about them it says."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from facezoo.cli import build_parser

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "cluster"
SCRIPTS = ("train.sbatch", "torchrun.sh")


def test_kubernetes_manifest():
    """The numbers that must be changed together are the same, and the command is one of ours."""
    job = yaml.safe_load((FOLDER / "pytorchjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    spec, worker = job["spec"], job["spec"]["pytorchReplicaSpecs"]["Worker"]
    (container,) = worker["template"]["spec"]["containers"]
    assert container["name"] == "pytorch"
    command = container["command"]
    assert command[:3] == ["torchrun", "-m", "facezoo"]
    arguments = build_parser().parse_args(command[3:])
    elastic = spec["elasticPolicy"]
    assert elastic["minReplicas"] == elastic["maxReplicas"] == worker["replicas"] == arguments.nodes
    assert int(spec["nprocPerNode"]) == container["resources"]["limits"]["nvidia.com/gpu"] == arguments.devices
    assert arguments.requeue
    assert worker["restartPolicy"] == "OnFailure"
    volumes = {volume["name"] for volume in worker["template"]["spec"]["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes


@pytest.mark.parametrize("name", SCRIPTS)
def test_shell_reads_it(name: str):
    path = FOLDER / name
    assert os.access(path, os.X_OK)
    assert subprocess.run(["bash", "-n", str(path)], check=False).returncode == 0
    done = subprocess.run(["bash", str(path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr[:6]) == (2, "usage:")


def run_sbatch(tmp_path: Path, step: int, state: str, restarts: int) -> tuple[int, str]:
    """Exit code of the batch script, and what it asked Slurm for; srun and scontrol are stand-ins."""
    asked = tmp_path / "asked"
    for name, body in (
        ("srun", f'echo srun "$@" >>{asked}; exit {step}'),
        ("scontrol", f'echo scontrol "$@" >>{asked}; [ "$1" = show ] && echo "JobId=7 JobState={state} x"; exit 0'),
    ):
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    variables = {
        "PATH": f"{tmp_path}:/usr/bin:/bin",
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "n[1-2]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_NTASKS_PER_NODE": "4",
        "SLURM_RESTART_COUNT": str(restarts),
    }
    words = ["bash", str(FOLDER / "train.sbatch"), "recipe.yaml", "runs/x", "--set", "data=a b"]
    done = subprocess.run(words, env=variables, capture_output=True, text=True, check=False)
    return done.returncode, asked.read_text()


@pytest.mark.parametrize(
    ("step", "state", "restarts", "requeued"),
    [
        (0, "RUNNING", 0, False),
        (5, "RUNNING", 0, False),
        (137, "RUNNING", 0, True),
        (137, "RUNNING", 10, False),
        (143, "CANCELLED", 0, False),
    ],
)
def test_when_the_batch_script_requeues(step: int, state: str, restarts: int, requeued: bool, tmp_path: Path):
    """A killed process: yes. An error of the run, a cancelled job, the eleventh time: no."""
    code, asked = run_sbatch(tmp_path, step, state, restarts)
    assert code == step
    assert ("scontrol requeue 7" in asked) is requeued
    line = asked.splitlines()[0]
    assert line.startswith("srun --kill-on-bad-exit=1 facezoo train recipe.yaml --output runs/x --nodes 2 --devices 4")
    assert line.endswith("--requeue --set data=a b")


@pytest.mark.parametrize("name", SCRIPTS)
def test_shellcheck(name: str):
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not here")
    assert subprocess.run(["shellcheck", str(FOLDER / name)], check=False).returncode == 0


def test_plan_by_hand():
    """1e9 bytes of gradients, two machines of one process, 1e9 bytes a second: one second, and half the speed."""
    place = Path(__file__).resolve().parents[2] / "benchmarks" / "scaling_plan.py"
    spec = importlib.util.spec_from_file_location("scaling_plan", place)
    assert spec is not None
    assert spec.loader is not None
    plan = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["scaling_plan"] = plan
    spec.loader.exec_module(plan)
    two = plan.Plan(parameters=2.5e8, step=1.0, gpus=1, network=1e9, inside=1e9, latency=0.0)
    assert two.exchange(1) == 0
    assert two.exchange(2) == pytest.approx(1.0)
    assert two.efficiency(2) == pytest.approx(0.5)
    assert two.exchange(4) == pytest.approx(1.5)
    eight = plan.Plan(parameters=2.5e8, step=1.0, gpus=8, network=1e9, inside=7e9, latency=0.001, reductions=2)
    assert eight.exchange(2) == pytest.approx(0.25 + 1.0 + 0.004)
    assert re.search(r"\| 2 \| 16 \| 1254.0 ms \| 44% \| 7 \|", plan.table(eight, [2]))
