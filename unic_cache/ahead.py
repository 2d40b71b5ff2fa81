"""Work that begins before its result is wanted, and the threads that do it."""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def ahead(items: Iterable[Item], start: Callable[[Item], Callable[[], Result]], depth: int) -> Iterator[Result]:
    """`start(item)()` of every item in order, with `depth` items begun before the first is waited for."""
    begun: list[Callable[[], Result]] = []
    for item in items:
        begun.append(start(item))
        if len(begun) > depth:
            yield begun.pop(0)()
    for finish in begun:
        yield finish()


def thread_pool(threads: int) -> ThreadPoolExecutor:
    """Threads that decode and read; 0 is one a core, shared out among the processes that torchrun starts here."""
    return ThreadPoolExecutor(threads or max(len(os.sched_getaffinity(0)) // processes_here(), 1), "unic-cache")


def processes_here() -> int:
    """How many processes torchrun starts on this machine; 1 without it."""
    text = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return max(int(text), 1) if text.isdecimal() else 1


@contextmanager
def dropped(*executors: Executor) -> Iterator[None]:
    """After an error or a signal what was not begun is dropped: the process ends when the work in hand is done."""
    try:
        yield
    except BaseException:
        for executor in executors:
            executor.shutdown(wait=False, cancel_futures=True)
        raise
