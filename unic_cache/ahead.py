"""Work started before its result is needed, work finished behind whoever hands it over, and the threads for both."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def ahead(items: Iterable[Item], start: Callable[[Item], Callable[[], Result]], depth: int) -> Iterator[Result]:
    """`start(item)()` of every item in order; the next `depth` items are started before each result is awaited."""
    begun: deque[Callable[[], Result]] = deque()
    for item in items:
        begun.append(start(item))
        if len(begun) > depth:
            yield begun.popleft()()
    for finish in begun:
        yield finish()


@contextmanager
def behind(name: str, depth: int) -> Iterator[Callable[[Callable[[], object]], None]]:
    """Gives `later(work)`, which runs work in order in one thread called `name` while the caller makes more.

    At most `depth` pieces are unfinished: `later` waits for the oldest before it takes another. The error of a piece is
    raised by a later call, or at the end of the block, which waits for all; after any error, pieces not yet started are
    dropped.
    """
    unfinished: deque[Future[object]] = deque()
    with ThreadPoolExecutor(1, name) as thread, dropped(thread):

        def later(work: Callable[[], object]) -> None:
            if len(unfinished) >= depth:
                unfinished.popleft().result()
            unfinished.append(thread.submit(work))

        yield later
        for future in unfinished:
            future.result()


def thread_pool(threads: int) -> ThreadPoolExecutor:
    """Threads that decode and read; 0 means one per core, divided among the processes that torchrun starts here."""
    return ThreadPoolExecutor(threads or max(len(os.sched_getaffinity(0)) // processes_here(), 1), "unic-cache")


def processes_here() -> int:
    """The number of processes that torchrun starts on this machine; 1 without torchrun."""
    text = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return max(int(text), 1) if text.isdecimal() else 1


@contextmanager
def dropped(*executors: Executor) -> Iterator[None]:
    """After an error or a signal, drop work not yet started: the process ends once running work is done."""
    try:
        yield
    except BaseException:
        for executor in executors:
            executor.shutdown(wait=False, cancel_futures=True)
        raise
