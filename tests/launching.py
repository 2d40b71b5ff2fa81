"""Runs of `distill` in several processes on CPUs, started by torchrun as a user would.

As a module, `python -m tests.launching distill ...` is the command line in which rank 1 gets a signal in its third
step: SIGUSR1, or what UNIC_TEST_SIGNAL says. Its processes meet after steps 1, 3, 7 and so on, however long steps take.
"""

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

from unic_cache.config import DistillConfig

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
SIGNALLED = 3  # step


def flags_of(config: DistillConfig) -> list[str]:
    """The command line of a config."""
    flags = []
    for field in dataclasses.fields(DistillConfig):
        value, flag = getattr(config, field.name), f"--{field.name.replace('_', '-')}"
        if value != field.default and field.name not in {"teachers", "weights"}:
            flags += [flag] if value is True else [flag, str(value)]
    return flags


def started(config: DistillConfig, processes: int, module: str = "cli") -> subprocess.Popen[str]:
    """The run."""
    launcher = [*TORCHRUN, str(processes)] if processes > 1 else [sys.executable]
    command = [*launcher, "-m", module, "distill", *flags_of(config)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def kill(process: subprocess.Popen[str]) -> None:
    """Kill torchrun and its ranks, each of which has a session of its own, as when a machine dies."""
    ranks = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for number in (process.pid, *map(int, ranks)):
        os.kill(number, signal.SIGKILL)
    process.communicate()


def main() -> None:
    """The command line, with a signal."""
    import cli
    from pipelines import distill
    from pipelines.training import processes

    processes.PERIOD = 1e9
    honest, calls = distill.set_rate, iter(range(1, 1000))

    def counted(*arguments):
        if next(calls) == SIGNALLED and os.environ["RANK"] == "1":
            signal.raise_signal(signal.Signals[os.environ.get("UNIC_TEST_SIGNAL", "SIGUSR1")])
        return honest(*arguments)

    distill.set_rate = counted
    cli.main()


if __name__ == "__main__":
    main()
