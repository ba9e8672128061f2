"""Ray: a cluster of several raylets of which one is killed in the middle of a run."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from facezoo.batch import Settings
from facezoo.keys import Key
from facezoo.scale.parts import Run, find_inputs, plan_run, summarize
from tests.cluster.slurm import free_ports
from tests.scale.pictures import picture, pixels, write_tar
from tests.scale.test_parts import members

pytestmark = [pytest.mark.slow]

ray = pytest.importorskip("ray")
PATIENCE = float(os.environ.get("FACEZOO_TEST_PATIENCE", "1"))
COUNT = 40


@pytest.fixture
def cluster(repository: Path, monkeypatch):
    """A head without processors and three raylets with one each."""
    from ray.cluster_utils import Cluster

    # A busy machine is not a dead one: Ray's own limits are 15 to 30 seconds.
    patient = {
        "agent_register_timeout_ms": 100_000,
        "worker_register_timeout_seconds": 200,
        "health_check_timeout_ms": 60_000,
        "health_check_initial_delay_ms": 60_000,
    }
    for name, value in patient.items():
        monkeypatch.setenv(f"RAY_{name}", str(round(value * PATIENCE)))
    monkeypatch.setenv("RAY_gcs_server_port_wait_time_s", str(round(60 * PATIENCE)))
    monkeypatch.setenv("PYTHONPATH", str(repository))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")

    def small() -> dict[str, int]:
        # Ports that are given need not be waited for.
        names = ("metrics_agent_port", "metrics_export_port", "runtime_env_agent_port")
        return {"object_store_memory": 100 << 20, **dict(zip(names, free_ports(3), strict=True))}

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **small()})
    nodes = [cluster.add_node(num_cpus=1, **small()) for _ in range(3)]
    cluster.wait_for_nodes(timeout=120 * PATIENCE)
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster, nodes
    ray.shutdown()
    cluster.shutdown()


def test_a_raylet_is_killed(cluster, tmp_path: Path):
    """No picture is lost, none is there twice, none is unprocessed; and no key is in what Ray wrote down."""
    from facezoo.scale.ray_engine import run_parts

    running, nodes = cluster
    originals = [picture(n) for n in range(COUNT)]
    write_tar(tmp_path / "a.tar", originals[:25])
    write_tar(tmp_path / "b.tar", originals[25:], start=25)
    key_file = tmp_path / "my.key"
    key = Key.generate_file(key_file)
    settings = Settings(
        task="anonymize",
        model="gaussian_blur",
        verify="off",
        seal=True,
        file_format="png",
        salt="AAAAAAAAAAAAAAAAAAAAAA==",
    )
    run = Run(kind="tar", output=str(tmp_path / "out"), settings=settings, key_file=str(key_file))
    run = run.with_key_id(key.key_id(b"\0" * 16))
    inputs, _ = find_inputs([str(tmp_path / "a.tar"), str(tmp_path / "b.tar")])
    run, parts = plan_run(run, inputs, "f", 2)
    killed: list[int] = []

    def kill() -> None:
        until = time.monotonic() + 300 * PATIENCE
        while time.monotonic() < until:
            busy = {path.name.split(".")[0] for path in (tmp_path / "out" / ".work").glob("part-*.begun")}
            done = len(list((tmp_path / "out").glob("part-*")))
            if done >= 4 and busy:
                running.remove_node(nodes[0], allow_graceful=False)
                killed.append(done)
                return
            time.sleep(0.02)

    killer = threading.Thread(target=kill)
    killer.start()
    run_parts(run, parts, actors=2)
    killer.join()
    assert killed, "killed in the middle"
    assert killed[0] < len(parts)
    summary = summarize(run, parts)
    assert (summary.missing, summary.done, summary.failed) == (0, COUNT, 0)
    found = members(tmp_path / "out")
    assert sorted(found) == sorted(f"{n:05d}{e}" for n in range(COUNT) for e in (".png", ".facezoo.json"))
    for number, original in enumerate(originals):
        before, after = pixels(original), pixels(found[f"{number:05d}.png"])
        assert np.abs(before.astype(int) - after).max() > 20
        assert np.array_equal(before[:4], after[:4]), "it is this picture"
    secret = key_file.read_bytes().strip().partition(b":")[2]
    logs = [p for p in Path(ray._private.worker._global_node.get_session_dir_path()).rglob("*") if p.is_file()]
    assert logs
    assert not [path for path in logs if secret in path.read_bytes() or key._master.hex().encode() in path.read_bytes()]
