"""Who started a run, what is refused before it begins, and what Slurm is asked for at its end."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
import torch

from facezoo.core.launch import Launch, check_launch, find_launch, requeue_slurm_job, require_prepared
from facezoo.errors import FacezooError, InputError
from tests.core.toy import Toy, make_set

TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "6", "LOCAL_WORLD_SIZE": "3", "RANK": "4"}
SLURM = {"SLURM_JOB_ID": "12", "SLURM_NTASKS": "8", "SLURM_NNODES": "2", "SLURM_PROCID": "5", "SLURM_JOB_NAME": "run"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Launch("hand")),
        (TORCHRUN, Launch("torchrun", 6, 2, 4)),
        (SLURM, Launch("slurm", 8, 2, 5)),
        (SLURM | TORCHRUN, Launch("torchrun", 6, 2, 4)),
        (SLURM | {"SLURM_JOB_NAME": "bash"}, Launch("hand")),
        ({"SLURM_JOB_ID": "12"}, Launch("hand")),
    ],
)
def test_find(environment: dict[str, str], expected: Launch):
    assert find_launch(environment) == expected


def test_launch_line_is_compared():
    launch = find_launch(TORCHRUN)
    check_launch(launch, 3, 2, overwrite=False)
    check_launch(Launch("hand"), 4, 1, overwrite=True)
    with pytest.raises(InputError, match="--devices 3 --nodes 2"):
        check_launch(launch, 1, 1, overwrite=False)
    with pytest.raises(InputError, match="--devices 3 --nodes 2"):
        check_launch(launch, 2, 3, overwrite=False)
    with pytest.raises(InputError, match="restart"):
        check_launch(launch, 3, 2, overwrite=True)


def test_several_processes_do_not_complete_the_data(tmp_path: Path):
    bare, full = make_set(tmp_path / "a.safetensors"), make_set(tmp_path / "b.safetensors", dim=4)
    require_prepared(Launch("hand"), [bare], ("embedding_sface",))
    require_prepared(find_launch(SLURM), [full], ("embedding_sface",))
    with pytest.raises(InputError, match="--prepare-only"):
        require_prepared(find_launch(SLURM), [full, bare], ("embedding_sface",))


def scontrol(folder: Path, state: str, answer: int = 0) -> Path:
    """A stand-in that writes down what it was asked for."""
    path = folder / "scontrol"
    path.write_text(
        f'#!/bin/sh\necho "$@" >>{folder}/asked\n'
        f'if [ "$1" = show ]; then echo "JobId=12 JobState={state} Reason=None"; else echo no >&2; exit {answer}; fi\n'
    )
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return folder / "asked"


@pytest.mark.parametrize(
    ("state", "environment", "requeued"),
    [
        ("RUNNING", SLURM, "12"),
        ("RUNNING", SLURM | {"SLURM_ARRAY_JOB_ID": "9", "SLURM_ARRAY_TASK_ID": "3"}, "9_3"),
        ("CANCELLED", SLURM, None),
        ("COMPLETING", SLURM, None),
    ],
)
def test_requeue(state: str, environment: dict[str, str], requeued: str | None, tmp_path: Path, monkeypatch):
    """A running job goes back; one that its owner cancelled stays cancelled."""
    asked = scontrol(tmp_path, state)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert requeue_slurm_job(environment) is (requeued is not None)
    lines = asked.read_text().splitlines()
    assert [line for line in lines if line.startswith("requeue")] == ([f"requeue {requeued}"] if requeued else [])


def test_requeue_that_cannot_be(tmp_path: Path, monkeypatch):
    scontrol(tmp_path, "RUNNING", 1)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(FacezooError, match="saved but Slurm does not requeue job 12"):
        requeue_slurm_job(SLURM)
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    with pytest.raises(FacezooError, match="scontrol requeue 12"):
        requeue_slurm_job(SLURM)
    with pytest.raises(FacezooError, match="no job number"):
        requeue_slurm_job({"SLURM_JOB_ID": "1; reboot"})


def test_all_processes_begin_at_one_batch(monkeypatch):
    """One that did not see the checkpoint of the others ends the run before it trains in two places."""
    module = Toy()
    module.batches_seen = 7
    monkeypatch.setattr(Toy, "world_size", 2)

    def with_another_at(batches: int):
        def all_reduce(tensor: torch.Tensor, op: object) -> None:
            assert op == torch.distributed.ReduceOp.MAX
            tensor.copy_(torch.maximum(tensor, torch.tensor([batches, -batches])))

        monkeypatch.setattr("torch.distributed.all_reduce", all_reduce)

    with_another_at(7)
    module.on_train_start()
    for other in (0, 9):
        with_another_at(other)
        with pytest.raises(InputError, match=f"{min(7, other)} to {max(7, other)}: not all machines see"):
            module.on_train_start()
