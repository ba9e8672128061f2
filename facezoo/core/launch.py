"""How a run was started: by hand, by torchrun or by Slurm; what to ask the scheduler for when it was stopped early.

Reads environment variables only, so that a wrong launch line is refused before torch or the data are touched.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from facezoo.data.shards import open_faces
from facezoo.errors import FacezooError, InputError

__all__ = ["EXIT_TRY_AGAIN", "Launch", "check_launch", "find_launch", "require_prepared", "requeue_slurm_job"]

EXIT_TRY_AGAIN: Final = 75
"""Exit code of a run that was stopped early and wants to be started again (``EX_TEMPFAIL`` of sysexits.h)."""

_INTERACTIVE = ("bash", "interactive")
"""Job names of ``srun --pty bash`` and ``salloc``: the shell is the only task, what it starts is started by hand."""


@dataclass(frozen=True)
class Launch:
    """Who started this process, as one of how many.

    Attributes:
        by: "hand" (Lightning starts the further processes itself), "torchrun" or "slurm" (srun).
        world_size: Processes of all machines; 1 by hand.
        nodes: Machines, where the launcher tells; else None.
        rank: This process's number among all.
    """

    by: Literal["hand", "torchrun", "slurm"]
    world_size: int = 1
    nodes: int | None = None
    rank: int = 0


def find_launch(environment: Mapping[str, str] | None = None) -> Launch:
    """Reads the launcher's environment variables.

    torchrun comes first: it runs inside Slurm's jobs too, and its variables are then the ones that count.

    Args:
        environment: The variables; those of this process when None.
    """
    variables = os.environ if environment is None else environment
    if "TORCHELASTIC_RUN_ID" in variables:
        world = int(variables["WORLD_SIZE"])
        return Launch("torchrun", world, world // int(variables["LOCAL_WORLD_SIZE"]), int(variables["RANK"]))
    if "SLURM_NTASKS" in variables and variables.get("SLURM_JOB_NAME") not in _INTERACTIVE:
        nodes = variables.get("SLURM_NNODES", variables.get("SLURM_JOB_NUM_NODES"))
        rank = int(variables.get("SLURM_PROCID", 0))
        return Launch("slurm", int(variables["SLURM_NTASKS"]), int(nodes) if nodes else None, rank)
    return Launch("hand")


def check_launch(launch: Launch, devices: int, nodes: int, *, overwrite: bool) -> None:
    """Compares what the launcher started with what the command line says.

    Raises:
        InputError: the two differ, or the run would be thrown away at each restart.
    """
    if launch.by == "hand":
        return
    name = {"torchrun": "torchrun", "slurm": "Slurm"}[launch.by]
    if launch.world_size != devices * nodes or launch.nodes not in (None, nodes):
        there = launch.nodes or nodes
        raise InputError(
            f"{name} started {launch.world_size} processes on {there} machines, and the command says "
            f"{devices} x {nodes}; write --devices {launch.world_size // there} --nodes {there}"
        )
    if overwrite:
        raise InputError(
            f"--overwrite would start anew at each restart by {name}; remove the run folder once instead, "
            "or choose another --output"
        )


def require_prepared(launch: Launch, paths: Sequence[Path], fields: Sequence[str]) -> None:
    """Refuses sets that several processes would have to complete at the same time.

    Args:
        launch: How this process was started.
        paths: Packed or sharded sets.
        fields: Arrays that training needs of each.

    Raises:
        InputError: a set lacks one, and there are several processes.
    """
    if launch.world_size == 1:
        return
    for path in paths:
        faces = open_faces(path)
        missing = [field for field in fields if field not in faces]
        if missing:
            raise InputError(
                f"{path} has no {', '.join(missing)} yet, and several processes cannot add it at once; first run "
                "facezoo train with the same recipe and --prepare-only, in one process"
            )


def requeue_slurm_job(environment: Mapping[str, str] | None = None) -> bool:
    """Puts this job back into Slurm's queue, unless Slurm or its owner is ending it.

    A job in its time limit's or its preemption's warning time is still RUNNING: without this it would end as
    completed. One that was cancelled, or that Slurm itself requeues, is in another state and is left alone.

    Args:
        environment: Variables with ``SLURM_JOB_ID``; those of this process when None.

    Returns:
        Whether it was put back.

    Raises:
        FacezooError: Slurm refuses, or its command is not there.
    """
    variables = os.environ if environment is None else environment
    array, task = variables.get("SLURM_ARRAY_JOB_ID"), variables.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{task}" if array and task else variables["SLURM_JOB_ID"]
    if not job.replace("_", "").isdigit():
        raise FacezooError(f"SLURM_JOB_ID {job!r} is no job number; requeue by hand")
    scontrol = shutil.which("scontrol")
    if scontrol is None:
        raise FacezooError(f"the run is saved but scontrol is not on the PATH; requeue by hand: scontrol requeue {job}")
    shown = subprocess.run(  # noqa: S603 (a program found on the PATH, and a number)
        [scontrol, "show", "job", "--oneliner", job], capture_output=True, text=True, check=False
    )
    state = next((word[9:] for word in shown.stdout.split() if word.startswith("JobState=")), "")
    if shown.returncode == 0 and state != "RUNNING":
        return False
    done = subprocess.run([scontrol, "requeue", job], capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise FacezooError(
            f"the run is saved but Slurm does not requeue job {job} ({' '.join(done.stderr.split())}); "
            "submit with #SBATCH --requeue, or submit again: the same command goes on"
        )
    return True
