"""Two machines with an agent of torchrun each: they find each other, one is lost, the run ends as if it never was."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tests.core.test_run import write_recipe

BATCHES = 8
"""Of each of the two phases."""

PATIENCE = float(os.environ.get("FACEZOO_TEST_PATIENCE", "1"))
"""Factor of all time limits, for machines that are busy with other things."""


@dataclass
class Machine:
    """Where an agent runs: a network namespace of its own, or this machine's own network."""

    prefix: tuple[str, ...]
    address: str
    interface: str


@contextlib.contextmanager
def machines(kind: str) -> Iterator[tuple[Machine, Machine]]:
    """Two machines: two network namespaces with a cable between them, or twice this machine."""
    if kind == "one network":
        yield Machine((), "127.0.0.1", "lo"), Machine((), "127.0.0.1", "lo")
        return
    ip = shutil.which("ip")
    if ip is None or os.geteuid() != 0:
        pytest.skip("network namespaces need root and the program ip")
    mark = secrets.token_hex(3)
    names = [f"facezoo{mark}{end}" for end in "ab"]
    made: list[str] = []

    def run(*words: str) -> None:
        done = subprocess.run([ip, *words], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"this machine makes no network namespaces: ip {' '.join(words)}: {done.stderr.strip()}")

    try:
        for name in names:
            run("netns", "add", name)
            made.append(name)
        run("link", "add", f"fz{mark}a", "netns", names[0], "type", "veth", "peer", f"fz{mark}b", "netns", names[1])
        for end, name in zip("ab", names, strict=True):
            run("-n", name, "addr", "add", f"10.231.77.{1 + (end == 'b')}/24", "dev", f"fz{mark}{end}")
            run("-n", name, "link", "set", f"fz{mark}{end}", "up")
            run("-n", name, "link", "set", "lo", "up")
        first, second = (
            Machine((ip, "netns", "exec", name), f"10.231.77.{number}", f"fz{mark}{end}")
            for number, end, name in zip((1, 2), "ab", names, strict=True)
        )
        yield first, second
    finally:
        for name in made:
            subprocess.run([ip, "netns", "delete", name], capture_output=True, check=False)


class Agents:
    """Starts agents through the script that docs/cluster ships, each a process group of its own."""

    def __init__(self, repository: Path, recipe: Path, output: Path, port: int) -> None:
        self.repository, self.recipe, self.output, self.port = repository, recipe, output, port
        self.running: list[subprocess.Popen[bytes]] = []

    def start(self, machine: Machine, head: Machine) -> subprocess.Popen[bytes]:
        python = Path(sys.executable).parent
        log = (self.output.parent / f"{self.output.name}.{len(self.running)}.log").open("wb")
        environment = {
            "PATH": f"{python}:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": os.environ.get("HOME", "/"),
            "PYTHONPATH": str(self.repository),
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": machine.interface,
            "NODES": "2",
            "HEAD": f"{head.address}:{self.port}",
            "ADDRESS": machine.address if machine.prefix else "",
            "JOIN_TIMEOUT": str(round(300 * PATIENCE)),
        }
        words = [*machine.prefix, "bash", str(self.repository / "docs/cluster/torchrun.sh"), str(self.recipe)]
        words += [str(self.output), "--accelerator", "cpu"]
        agent = subprocess.Popen(words, env=environment, stdout=log, stderr=log, start_new_session=True)
        log.close()
        self.running.append(agent)
        return agent

    def logs(self) -> str:
        paths = sorted(self.output.parent.glob(f"{self.output.name}.*.log"))
        return "\n".join(path.read_text(errors="replace")[-3000:] for path in paths)

    def wait(self, *agents: subprocess.Popen[bytes]) -> None:
        for agent in agents:
            assert agent.wait(timeout=500 * PATIENCE) == 0, self.logs()

    def stop(self) -> None:
        """Ends what still runs; an agent that is asked ends its processes too."""
        for agent in self.running:
            if agent.poll() is None:
                agent.terminate()
        for agent in self.running:
            try:
                agent.wait(timeout=60)
            except subprocess.TimeoutExpired:
                agent.kill()
                agent.wait()


def rows(folder: Path) -> int:
    """Batches in the log of a run."""
    try:
        with (folder / "log.csv").open(newline="") as stream:
            return len(list(csv.DictReader(stream)))
    except FileNotFoundError:
        return 0


def kill(agent: subprocess.Popen[bytes]) -> None:
    """A machine without power: the agent and all that it started, at once and without a word."""
    doomed = [agent.pid]
    for pid in doomed:  # grows while it is walked: the processes of an agent have sessions of their own
        os.kill(pid, signal.SIGSTOP)
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            doomed += map(int, children.read_text().split())
    assert len(doomed) > 1, "the agent had started its process"
    for pid in doomed:
        os.kill(pid, signal.SIGKILL)
    agent.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def settings(recipe: Path) -> Path:
    """A checkpoint after every batch, so that whatever batch a process is killed in has one before it."""
    content = json.loads(recipe.read_text())
    content["train"] |= {"save_every_minutes": 1e-6, "sheet_every_batches": 1000}
    recipe.write_text(json.dumps(content))
    return recipe


def test_two_agents_lose_a_machine(tmp_path: Path, repository: Path):
    """Bit for bit the weights, optimizers and averages of a run that nothing happened to; over two networks."""
    _lose_a_machine("two networks", tmp_path, repository)


def test_two_agents_on_one_network(tmp_path: Path, repository: Path):
    """The same without root's rights."""
    _lose_a_machine("one network", tmp_path, repository)


def _lose_a_machine(kind: str, tmp_path: Path, repository: Path) -> None:
    recipe = settings(write_recipe(tmp_path, BATCHES))
    with machines(kind) as (first, second):
        whole = Agents(repository, recipe, tmp_path / "whole", free_port())
        lost = Agents(repository, recipe, tmp_path / "lost", free_port())
        try:
            whole.wait(whole.start(first, first), whole.start(second, first))
            one, two = lost.start(first, first), lost.start(second, first)
            until = time.monotonic() + 300 * PATIENCE
            while rows(lost.output) < 4:
                assert time.monotonic() < until, lost.logs()
                assert one.poll() is None, lost.logs()
                assert two.poll() is None, lost.logs()
                time.sleep(0.02)
            kill(two)
            at = rows(lost.output)
            assert at < 2 * BATCHES, "killed too late to show anything"
            again = lost.start(second, first)
            lost.wait(one, again)
        finally:
            whole.stop()
            lost.stop()
    a, b = (torch.load(tmp_path / n / "last.ckpt", weights_only=True) for n in ("whole", "lost"))
    assert a["facezoo"] == b["facezoo"] == {"batches_seen": 2 * BATCHES}
    assert rows(tmp_path / "lost") == 2 * BATCHES
    different = [name for name, value in a["state_dict"].items() if not torch.equal(value, b["state_dict"][name])]
    assert different == []
    assert _flat(a["optimizer_states"]) == _flat(b["optimizer_states"])
    assert _flat(a["facezoo_ema"]) == _flat(b["facezoo_ema"])
    for path in (tmp_path / "whole" / "checkpoint").glob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "lost" / "checkpoint" / path.name).read_bytes(), path.name


def _flat(value: object) -> object:
    """Nested states as plain values that compare exactly."""
    if isinstance(value, torch.Tensor):
        return (str(value.dtype), tuple(value.shape), value.reshape(-1).view(torch.uint8).numpy().tobytes())
    if isinstance(value, dict):
        return {key: _flat(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_flat(entry) for entry in value]
    return value


pytestmark = [pytest.mark.ddp, pytest.mark.slow]
