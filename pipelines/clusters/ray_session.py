"""A session with a Ray cluster: connect to one, or start one on this machine and stop it again.

Ray is imported late: it is an extra, and importing it takes a second. Its dashboard, its usage reports and its logging
on this terminal are off.
"""

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any

from pipelines.command.failures import one_line
from pipelines.command.preflight import check_ray
from pipelines.command.progress import say
from pipelines.command.shares import rank_share
from unic_cache.errors import ConfigError

LOCAL = "local"
CLIENT = "ray://"
OBJECT_STORE = 10**8  # bytes of a local session's: only units and their summaries pass through it


@contextmanager
def session(address: str) -> Iterator[None]:
    """Inside, this process is a driver of the cluster at `address`; ConfigError if that cannot be.

    A session that this process has already begun, as in a notebook, is used and stays.
    """
    check_ray()
    if rank_share().count > 1:
        raise ConfigError("--ray hands out the work by itself; start one process, not several by torchrun")
    if address.startswith(CLIENT):
        raise ConfigError(
            f"--ray {address}: run the command on a node of the cluster, or by `ray job submit`, and give --ray auto"
        )
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # a warning otherwise
    os.environ.setdefault("RAY_COLOR_PREFIX", "0")
    import ray

    with redirect_stdout(sys.stderr):  # Ray prints there that it lost a worker, and stdout is for results
        if ray.is_initialized():
            yield
            return
        before = signal.getsignal(signal.SIGTERM)
        try:
            _begin(address)
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, before)  # Ray's handler ends the process at once
            yield
        finally:
            ray.shutdown()


def _begin(address: str) -> None:
    import ray

    own: Mapping[str, Any] = {"address": address}
    if address == LOCAL:
        say("starting Ray on this machine")
        own = {
            "address": LOCAL,
            "num_cpus": len(os.sched_getaffinity(0)),
            "object_store_memory": OBJECT_STORE,
            "include_dashboard": False,
        }
    try:
        ray.init(**own, log_to_driver=False, logging_level=logging.CRITICAL)
    except Exception as error:  # whatever Ray raises, for each reason another class
        why = one_line(str(error)).rstrip(".")
        if address == LOCAL:
            raise ConfigError(f"--ray {LOCAL}: Ray does not start here: {why}; perhaps this machine is busy") from error
        raise ConfigError(
            f"--ray {address}: cannot join a Ray cluster there: {why}. Run the command on one of its nodes (`ray start "
            "--address=...` makes this machine one), or give --ray local"
        ) from error


@dataclass(frozen=True)
class Needs:
    """What one worker asks of Ray."""

    cores: int
    gpus: int

    def __str__(self) -> str:
        cores = f"{self.cores} core{'s' * (self.cores != 1)}"
        return f"{self.gpus} GPU and {cores}" if self.gpus else cores


def needs(device: str, threads: int) -> Needs:
    """What a worker asks of Ray: a GPU for `cuda`, or for `auto` if there is any; and `threads` cores.

    0 threads are a node's cores for each of its GPUs, or without GPUs all of a node's; of several nodes, the fewest.
    """
    found = nodes()
    gpus = int(device == "cuda" or (device == "auto" and any(node.get("GPU", 0) >= 1 for node in found)))
    shares = [int(node.get("CPU", 0) // max(gpus and node.get("GPU", 0), 1)) for node in found]
    able = [cores for cores, node in zip(shares, found, strict=True) if node.get("GPU", 0) >= gpus and cores]
    return Needs(threads or min(able, default=1), gpus)


def room(asked: Needs) -> int:
    """The number of such workers that the nodes would hold if nothing else ran there."""
    return sum(
        int(min(node.get("CPU", 0) // asked.cores, node.get("GPU", 0) // asked.gpus if asked.gpus else 2**31))
        for node in nodes()
    )


def nodes() -> Sequence[Mapping[str, float]]:
    """The resources of each node that is alive."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]
