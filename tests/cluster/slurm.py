"""A real Slurm of two nodes on this machine: its own munged, slurmctld and two slurmd, on the loopback, in a folder."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scancel", "scontrol")
PATIENCE = float(os.environ.get("FACEZOO_TEST_PATIENCE", "1"))
"""Factor of all time limits, for machines that are busy with other things."""

_SBIN = "/usr/local/sbin:/usr/sbin:/sbin"


def missing_programs() -> list[str]:
    """Which of Slurm's programs are not here (Debian: apt-get install slurmctld slurmd slurm-client munge)."""
    path = f"{os.environ.get('PATH', '')}:{_SBIN}"
    return [name for name in PROGRAMS if shutil.which(name, path=path) is None]


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


class Slurm:
    """The running cluster.

    Args:
        folder: For everything it writes; its path must be short enough for a Unix socket (about 100 characters).
        variables: Environment of the jobs.
    """

    def __init__(self, folder: Path, variables: dict[str, str]) -> None:
        self.folder = folder
        self.environment = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}:{_SBIN}",
            "HOME": os.environ.get("HOME", "/"),
            "SLURM_CONF": str(folder / "slurm.conf"),
            **variables,
        }
        self._daemons: list[subprocess.Popen[bytes]] = []

    def call(self, *words: str) -> str:
        done = subprocess.run(
            list(words),
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60 * PATIENCE,
            check=False,
            cwd=self.folder,
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip()}\n{self.logs()}")
        return done.stdout

    def logs(self) -> str:
        return "\n".join(
            f"--- {path.name}\n{path.read_text(errors='replace')[-2500:]}" for path in sorted(self.folder.glob("*.log"))
        )

    def job(self, number: str) -> dict[str, str]:
        """What `scontrol show job` says."""
        text = self.call("scontrol", "show", "job", "--oneliner", number)
        return dict(word.split("=", 1) for word in text.split() if "=" in word)

    def wait(self, what: str, condition: Callable[[], bool], seconds: float = 240) -> None:
        until = time.monotonic() + seconds * PATIENCE
        while not condition():
            if time.monotonic() > until:
                raise RuntimeError(f"waited {seconds} s for: {what}\n{self.logs()}")
            time.sleep(0.1)

    def _daemon(self, name: str, *words: str) -> None:
        program = shutil.which(name, path=self.environment["PATH"])
        assert program is not None
        with (self.folder / f"{name}{len(self._daemons)}.out").open("wb") as log:
            self._daemons.append(
                subprocess.Popen([program, *words], env=self.environment, stdout=log, stderr=log, cwd=self.folder)
            )

    def start(self) -> None:
        folder = self.folder
        folder.chmod(0o755)
        key = folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        names = [str(folder / f"munge.{name}") for name in ("socket", "pid", "log", "seed")]
        self._daemon(
            "munged",
            "--foreground",
            "--force",  # it distrusts folders under /tmp
            f"--key-file={key}",
            f"--socket={names[0]}",
            f"--pid-file={names[1]}",
            f"--log-file={names[2]}",
            f"--seed-file={names[3]}",
        )
        self.wait("munged", (folder / "munge.socket").exists, 60)
        control, first, second = free_ports(3)
        me, host = pwd.getpwuid(os.geteuid()).pw_name, socket.gethostname().partition(".")[0]
        grace = round(120 * PATIENCE)
        (folder / "slurm.conf").write_text(
            f"""ClusterName=facezoo
SlurmctldHost={host}(127.0.0.1)
SlurmUser={me}
SlurmdUser={me}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
SlurmctldPort={control}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
MpiDefault=none
SwitchType=switch/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/none
ReturnToService=2
KillWait={round(60 * PATIENCE)}
MessageTimeout=60
SlurmdTimeout=300
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=node1 NodeHostname={host} NodeAddr=127.0.0.1 Port={first} CPUs=2 State=UNKNOWN
NodeName=node2 NodeHostname={host} NodeAddr=127.0.0.1 Port={second} CPUs=2 State=UNKNOWN
PartitionName=main Nodes=node1,node2 Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime={grace}
PartitionName=urgent Nodes=node1,node2 MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""
        )
        (folder / "state").mkdir()
        self._daemon("slurmctld", "-D", "-i")
        for name in ("node1", "node2"):
            (folder / f"spool.{name}").mkdir()
            self._daemon("slurmd", "-D", "-N", name)

        def idle() -> bool:
            with contextlib.suppress(RuntimeError):
                return self.call("sinfo", "--noheader", "--states=idle", "--partition=main", "-o", "%D").strip() == "2"
            return False

        self.wait("two idle nodes", idle, 120)

    def stop(self) -> None:
        with contextlib.suppress(RuntimeError):
            self.call("scancel", "--user", pwd.getpwuid(os.geteuid()).pw_name)
            time.sleep(1)
        for daemon in reversed(self._daemons):
            daemon.terminate()
        for daemon in reversed(self._daemons):
            try:
                daemon.wait(timeout=20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


@contextlib.contextmanager
def slurm(folder: Path, variables: dict[str, str]) -> Iterator[Slurm]:
    """The cluster, for as long as the block lasts."""
    cluster = Slurm(folder, variables)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
