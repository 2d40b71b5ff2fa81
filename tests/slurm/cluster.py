"""A real SLURM cluster for the tests: its controller and two nodes, all on loopback.

`with cluster() as slurm:` starts slurmctld and two slurmd in a temporary folder, on ports that are free, and stops them
by their process ids. The first node has this machine's own name, so that processes on the second find it. The programs
are in Debian's slurmctld, slurmd and slurm-client.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from tests.s3.radosgw import free_ports

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "scancel", "scontrol", "sinfo")
PATIENCE = 300.0  # seconds for one job
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY"}

# A requeued job may begin once its credential has expired: after two minutes by default, hence cred_expire.
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
AuthType=auth/none
AuthInfo=cred_expire=5
CryptoType=crypto/none
CredType=cred/none
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SchedulerType=sched/builtin
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SwitchType=switch/none
MailProg=/bin/true
MpiDefault=none
ReturnToService=2
KillWait=10
NodeName={nodes[0]} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=8
NodeName={nodes[1]} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=8
PartitionName=main Nodes={nodes[0]},{nodes[1]} Default=YES MaxTime=INFINITE State=UP
"""


class Cluster:
    """Two nodes that take jobs. `cluster()` starts and stops it."""

    def __init__(self, folder: Path) -> None:
        host = socket.gethostname()
        self.nodes = (host, f"{host}-2")
        self._folder = folder
        self._daemons: list[subprocess.Popen[bytes]] = []
        names = {"host": host, "user": Path("/proc/self").owner(), "folder": folder, "nodes": self.nodes}
        (folder / "slurm.conf").write_text(CONFIGURATION.format(ports=free_ports(3), **names))
        (folder / "state").mkdir()
        (folder / "bin").mkdir()
        command = folder / "bin" / "unic-cache"  # as an installation puts it on PATH
        command.write_text(f'#!/bin/sh\nexec {sys.executable} -m tests.slurm.command "$@"\n')
        command.chmod(0o755)

    def start(self) -> None:
        """Start controller and nodes, and wait until both nodes are idle."""
        self._start("slurmctld", "-D")
        self._wait(lambda: "UP" in self._run("scontrol", "ping", check=False), "slurmctld did not answer")
        for node in self.nodes:
            self._start("slurmd", "-D", "-N", node)
        self._wait(lambda: self._run("sinfo", "-h", "-N", "-o", "%t").split() == ["idle"] * 2, "no idle nodes")

    def stop(self) -> None:
        """Stop the daemons, and with the nodes whatever runs on them."""
        with contextlib.suppress(subprocess.SubprocessError):
            self._run("scancel", "--me", "--signal=KILL", check=False)
            self._run("scancel", "--me", check=False)
        for daemon in reversed(self._daemons):
            daemon.terminate()
        for daemon in self._daemons:
            daemon.wait(timeout=30)

    def submit(self, script: Path, *arguments: str, options: Sequence[str] = (), output: Path) -> str:
        """The number of a new job, which runs from the repository's root; %a in `output` is an array task's number."""
        job = self._run("sbatch", "--parsable", f"--output={output}", *options, str(script), *arguments)
        return job.strip()

    def ended(self, job: str) -> list[str]:
        """Wait for a job, or all tasks of an array; their final states."""
        self._wait(lambda: set(self.states(job)) <= ENDED, f"job {job} did not end")
        return self.states(job)

    def states(self, job: str) -> list[str]:
        """The state of each task of a job."""
        return [self._fields(line)["JobState"] for line in self._run("scontrol", "-o", "show", "job", job).splitlines()]

    def restarts(self, job: str) -> int:
        """How often a job was requeued."""
        return int(self._fields(self._run("scontrol", "-o", "show", "job", job))["Restarts"])

    def run(self, *command: str) -> str:
        """What one of SLURM's own programs prints."""
        return self._run(*command)

    def _fields(self, line: str) -> Mapping[str, str]:
        return dict(word.split("=", 1) for word in line.split() if "=" in word)

    def _run(self, *command: str, check: bool = True) -> str:
        done = subprocess.run(command, env=self._environment(), capture_output=True, text=True, check=False, timeout=60)
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)} exited with {done.returncode}: {done.stderr[-2000:]}")
        return done.stdout

    def _environment(self) -> dict[str, str]:
        path = f"{self._folder / 'bin'}:{os.environ['PATH']}"
        return {**os.environ, "SLURM_CONF": str(self._folder / "slurm.conf"), "PATH": path, "OMP_NUM_THREADS": "1"}

    def _start(self, program: str, *arguments: str) -> None:
        with open(self._folder / f"{program}.out", "ab") as output:
            self._daemons.append(
                subprocess.Popen(
                    [program, *arguments],
                    env=self._environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )
            )

    def _wait(self, ready: Callable[[], bool], complaint: str) -> None:
        end = time.monotonic() + PATIENCE
        while not ready():
            for daemon in self._daemons:
                if daemon.poll() is not None:
                    told = "".join(path.read_text(errors="replace")[-1000:] for path in self._folder.glob("*.out"))
                    raise RuntimeError(f"{daemon.args} exited with {daemon.returncode}: {told}")
            if time.monotonic() > end:
                raise TimeoutError(f"{complaint} within {PATIENCE:.0f} s")
            time.sleep(0.2)


@contextlib.contextmanager
def cluster() -> Iterator[Cluster]:
    """A fresh cluster without jobs. RuntimeError without SLURM's programs."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        raise RuntimeError(
            f"{', '.join(missing)} not found; run `apt-get install --no-install-recommends slurmctld slurmd "
            "slurm-client`"
        )
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder:
        found = Cluster(Path(folder))
        try:
            found.start()
            yield found
        finally:
            found.stop()
