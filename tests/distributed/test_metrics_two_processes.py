"""Every metric class: two processes, chunks of any size, a pickle; all give what one process with one chunk gives."""

from __future__ import annotations

import json
import pickle
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torchmetrics import Metric

from facezoo import metrics
from tests.distributed.metric_cases import COUNT, cases

_CASES = cases()

_SCRIPT = """
import json, sys
import torch
import torch.distributed as dist
from tests.distributed.metric_cases import COUNT, cases

rank, port, output = int(sys.argv[1]), sys.argv[2], sys.argv[3]
dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
found = {}
for name, case in cases().items():
    for kind, bounds in (("uneven", ((0, 9), (9, COUNT))), ("one is empty", ((0, COUNT), (0, 0)))):
        metric = case.make()
        start, stop = bounds[rank]
        if stop > start:
            for place in range(start, stop, 7):
                case.feed(metric, place, min(place + 7, stop))
        value = metric.compute().tolist()
        interval = metric.interval().to_dict() if hasattr(metric, "interval") else None
        found[f"{name}, {kind}"] = {"value": value, "interval": interval}
if rank == 0:
    open(output, "w").write(json.dumps(found))
dist.destroy_process_group()
"""


def whole(name: str) -> Metric:
    metric = _CASES[name].make()
    _CASES[name].feed(metric, 0, COUNT)
    return metric


def equal(value: object, metric: Metric) -> None:
    assert torch.as_tensor(value, dtype=torch.float64).tolist() == pytest.approx(
        metric.compute().double().tolist(), rel=1e-9, abs=1e-9
    )


@pytest.fixture(scope="module")
def together(tmp_path_factory, repository: Path) -> dict:
    folder = tmp_path_factory.mktemp("two")
    (folder / "run.py").write_text(_SCRIPT)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    output = folder / "found.json"
    environment = {"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(repository)}
    processes = [
        subprocess.Popen(
            [sys.executable, str(folder / "run.py"), str(rank), port, str(output)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=900)
        assert process.returncode == 0, errors[-2000:]
    return json.loads(output.read_text())


def test_every_class_is_here():
    classes = {name for name, kind in vars(metrics).items() if isinstance(kind, type) and issubclass(kind, Metric)} - {
        "MeanMetric",
        "RateMetric",
    }
    assert classes == set(_CASES)


@pytest.mark.ddp
@pytest.mark.parametrize("kind", ["uneven", "one is empty"])
@pytest.mark.parametrize("name", _CASES)
def test_two_processes_give_what_one_gives(name: str, kind: str, together: dict):
    metric = whole(name)
    found = together[f"{name}, {kind}"]
    equal(found["value"], metric)
    if hasattr(metric, "interval"):
        expected = metric.interval().to_dict()
        assert found["interval"]["n"] == expected["n"]
        assert found["interval"] == pytest.approx(expected, rel=1e-9)


@pytest.mark.filterwarnings("ignore:The ``compute`` method:UserWarning")
@pytest.mark.parametrize("name", _CASES)
def test_chunks_and_pickles_change_nothing(name: str):
    metric = whole(name)
    for size in (1, 5, 36):
        chunked = _CASES[name].make()
        for start in range(0, COUNT, size):
            _CASES[name].feed(chunked, start, min(start + size, COUNT))
            if start == 5:
                chunked = pickle.loads(pickle.dumps(chunked))
        equal(chunked.compute(), metric)
        if hasattr(metric, "interval"):
            assert chunked.interval().to_dict() == pytest.approx(metric.interval().to_dict(), rel=1e-9)
    metric.reset()
    assert metric.compute().isnan().all() if name != "TarAtFar" else metric.genuine == []
