"""A stage on several devices of a machine: one process for each, which does a share as if it was started by itself.

    --device cuda:0,cuda:1   is   --device cuda:0 --worker-index 0 --num-workers 2   beside
                                  --device cuda:1 --worker-index 1 --num-workers 2

The first process opens the cache alone, so that what all need (index, specs, calibrations) is made once. What they say
becomes one output. The first failure stops all and is raised here, as it is.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, TypeVar

from pipelines.command.failures import portable
from pipelines.command.progress import Event, listen
from pipelines.command.relay import Relay
from unic_cache.config import ExtractConfig, RecodeConfig
from unic_cache.errors import UnicCacheError

Found = TypeVar("Found")
Config = TypeVar("Config", ExtractConfig, RecodeConfig)


def on_each(devices: Sequence[str], stage: Callable[[Config], Found], config: Config) -> list[Found]:
    """What `stage` returns for each device's share; `stage` is a function of a module, with one device in its config.

    Its own error if one of them fails, after all were stopped; UnicCacheError if a process dies without one.
    """
    context = multiprocessing.get_context("spawn")
    workers: dict[Connection, SpawnProcess] = {}
    try:
        for device, own in zip(devices, shares(devices, config), strict=True):
            here, there = context.Pipe()
            process = context.Process(target=work, args=(there, stage, own, len(devices)), name=device)
            with _ctrl_c_ignored():
                process.start()
            there.close()
            workers[here] = process
        found = _gather(workers)
    except BaseException:
        for process in workers.values():
            process.terminate()
        raise
    finally:
        for process in workers.values():
            process.join()
    return found


@contextmanager
def _ctrl_c_ignored() -> Iterator[None]:
    """A process started inside ignores Ctrl-C, also while it loads: it is for the parent, which stops the process."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def shares(devices: Sequence[str], config: Config) -> list[Config]:
    """The config of each device's process: a share of this process's share, and of its cores."""
    cores = max(len(os.sched_getaffinity(0)) // len(devices), 1)
    return [
        replace(
            config,
            device=device,
            threads=config.threads or cores,
            worker_index=config.worker_index + number * config.num_workers,  # so shares nest, however many devices
            num_workers=config.num_workers * len(devices),
        )
        for number, device in enumerate(devices)
    ]


def work(parent: Connection, stage: Callable[[Config], object], config: Config, processes: int) -> None:
    """Run the stage in this process: tell the parent what is said, and at last what was found, or the error.

    The process leaves the terminal's group: Ctrl-C is for the parent, which stops it by SIGTERM.
    """
    os.setsid()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    listen(parent.send)
    if config.device == "cpu":
        import torch

        torch.set_num_threads(max(torch.get_num_threads() // processes, 1))
    with suppress(OSError, EOFError):  # the parent is gone, or stops all
        try:
            parent.recv()  # until it may begin
            result: tuple[str, Any] = ("found", stage(config))
        except BaseException as error:
            result = ("failed", portable(error))
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the process ends now anyway
        parent.send(result)


def _gather(workers: dict[Connection, SpawnProcess]) -> list[Any]:
    """Let the first worker begin, the others once it has opened all; relay what they say until all have ended."""
    found: dict[Connection, Any] = {}
    waiting = [*workers]
    waiting.pop(0).send("begin")
    with Relay() as relay:
        while len(found) < len(workers):
            for worker in wait([one for one in workers if one not in found]):
                assert isinstance(worker, Connection)
                event = _received(worker, workers[worker])
                if event[0] == "failed":
                    raise event[1]
                if event[0] == "found":
                    found[worker] = event[1]
                elif event[0] != "opened":
                    relay.hear(event)
                if event[0] in {"found", "opened"}:
                    for other in waiting:
                        other.send("begin")
                    waiting = []
    return [found[worker] for worker in workers]


def _received(worker: Connection, process: SpawnProcess) -> Any:
    """The next event of a worker. UnicCacheError if it died."""
    try:
        event: Event = worker.recv()
    except (EOFError, ConnectionResetError) as error:
        process.join()
        raise UnicCacheError(
            f"the process of {process.name} was stopped (exit code {process.exitcode}), perhaps for lack of memory; "
            "all that was committed is kept: run the same command again, with a lower --batch-size or --threads"
        ) from error
    return event
