"""All interleavings of the store calls of several workers, each worker a real thread that stops before every call.

Only one thread moves at a time, so a run is a function of its schedule: the list of who makes the next call. What a
worker will do depends on the answers that it has had, so two schedules that lead to the same files and the same answers
have the same future. `explore` walks the graph of these states; every path through it is an interleaving, and `paths`
counts them.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from crc32c import crc32c

from tests.crash.memory import Files, MemoryFolder, Watch

Work = Callable[[MemoryFolder], Any]
State = tuple[Any, ...]


class KilledError(BaseException):
    """What ends a worker that is killed before its next call."""


class Worker(Watch):
    """A thread that stops before each call of the store, until it is told to go on."""

    def __init__(self, files: Files, work: Work) -> None:
        self.answers: list[tuple[str, str, int]] = []
        self.result: Any = None
        self.finished = False
        self._work = work
        self._folder = MemoryFolder(files, self)
        self._killed = False
        self._go, self._stopped = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._stopped.acquire()

    def before(self, call: str, name: str) -> None:
        self._stopped.release()
        self._go.acquire()
        if self._killed:
            raise KilledError

    def after(self, call: str, name: str, answer: object) -> None:
        self.answers.append((call, name, crc32c(repr(answer).encode())))

    def step(self) -> None:
        """Make the call, and run up to the next one."""
        self._go.release()
        self._stopped.acquire()
        if self.finished:
            self._thread.join()

    def kill(self) -> None:
        """Never make another call."""
        self._killed = True
        while not self.finished:
            self.step()

    def _run(self) -> None:
        try:
            self.result = self._work(self._folder)
        except (Exception, KilledError) as error:
            self.result = error
        self.finished = True
        self._stopped.release()


class Run:
    """One execution of several workers on one store."""

    def __init__(self, files: Files, works: Sequence[Work], schedule: Sequence[int] = ()) -> None:
        self.files = dict(files)
        self.workers = [Worker(self.files, work) for work in works]
        for number in schedule:
            self.workers[number].step()

    def runnable(self) -> list[int]:
        return [number for number, worker in enumerate(self.workers) if not worker.finished]

    def state(self) -> State:
        files = tuple(sorted((name, crc32c(data)) for name, data in self.files.items()))
        return (files, *(tuple(worker.answers) for worker in self.workers))

    def finish(self) -> list[Any]:
        """Let every worker run to its end, one after the other; their results."""
        for worker in self.workers:
            while not worker.finished:
                worker.step()
        return [worker.result for worker in self.workers]

    def kill(self) -> None:
        """End all workers where they stand."""
        for worker in self.workers:
            worker.kill()


@dataclass
class Graph:
    """What `explore` found: each state's successors, and one schedule that leads to it."""

    schedules: dict[State, tuple[int, ...]] = field(default_factory=dict)
    successors: dict[State, dict[int, State]] = field(default_factory=dict)

    def paths(self) -> int:
        """How many interleavings there are, from the start to all workers' ends."""
        count: dict[State, int] = {}
        for state in sorted(self.schedules, key=lambda state: -len(self.schedules[state])):
            ways = [count[after] for after in self.successors[state].values()]
            count[state] = sum(ways) if ways else 1
        return count[next(iter(self.schedules))]


def explore(files: Files, works: Sequence[Work], look: Callable[[Run], None]) -> Graph:
    """Every state that any interleaving can reach, each shown once to `look`, final ones too."""
    graph = Graph()
    waiting: list[tuple[int, ...]] = [()]
    while waiting:
        schedule = waiting.pop()
        run = Run(files, works, schedule)
        try:
            waiting.extend(_follow(graph, run, schedule, look))
        finally:
            run.kill()
    return graph


def _follow(graph: Graph, run: Run, schedule: tuple[int, ...], look: Callable[[Run], None]) -> list[tuple[int, ...]]:
    """Go on by steps that nobody took, until there are none; the schedules behind which some are left."""
    state, left = run.state(), []
    while True:
        if state not in graph.schedules:
            graph.schedules[state], graph.successors[state] = schedule, {}
            look(run)
        untried = [number for number in run.runnable() if number not in graph.successors[state]]
        if not untried:
            return left
        if len(untried) > 1:
            left.append(schedule)
        schedule = (*schedule, untried[0])
        run.workers[untried[0]].step()
        before, state = state, run.state()
        graph.successors[before][untried[0]] = state
