"""The workers of a stage on Ray, and the work that they are handed.

    driver: prepare -> items of work -> each to a worker with a free hand -> what came of it, as it comes

A worker is an actor, since it keeps teachers and caches open. Ray places workers as nodes join, starts lost ones anew
elsewhere, and gives them their items again: an item done twice is stored once, so nothing else needs to be known. A
worker without anything left to do is dismissed, so that Ray can place a lost one there.
"""

import math
import os
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

from pipelines.clusters.node import Place, Worker, check_same, marks, package_mark
from pipelines.clusters.ray_session import LOCAL, Needs, needs, nodes, room, session
from pipelines.command.environment import RESULTS
from pipelines.command.progress import say
from pipelines.command.relay import Relay
from unic_cache.config import ExtractConfig, RecodeConfig, VerifyConfig
from unic_cache.errors import ConfigError, UnicCacheError

Item = TypeVar("Item")
Config = ExtractConfig | RecodeConfig | VerifyConfig

TRIES = 5  # times that an item may lose its worker: then it is the item that kills
LOOK_EVERY = 1.0  # seconds between looks at what workers say, and at the nodes
PATIENCE = 20.0  # seconds without a worker, until that is said
FIRST_NUMBER = 500_000  # of the workers, in their temporary files' names: apart from those of a SLURM array
FOLLOW = ("AWS_", "GOOGLE_", "HF_")  # variables that workers need: credentials, and where weights are


@contextmanager
def crew(
    worker: type[Worker], config: Config, device: str = "cpu", cores: int = 0, at_once: int = 0
) -> Iterator["Crew"]:
    """The workers of a stage on the cluster at `config.ray`, each with a device and, unless 0, so many cores.

    Each has `at_once` items, or one for each thread: while one is computed, others are read or written.
    """
    assert config.ray is not None
    with session(config.ray):
        asked = needs(device, cores)
        if config.ray == LOCAL and not room(asked):
            raise ConfigError(
                f"--ray {LOCAL}: a worker needs {asked}, but this machine has {_listed()}; give fewer --threads, or "
                "--device cpu"
            )
        own = replace(config, device="cuda" if asked.gpus else "cpu", threads=config.threads or asked.cores, ray=None)
        made = Crew(worker, own, asked, at_once or own.threads)
        try:
            yield made
        finally:
            made.dismiss()


class Crew:
    """Workers as many as the nodes have room for, at most one for each item. Made by `crew`."""

    def __init__(self, worker: type[Worker], config: Config, asked: Needs, at_once: int) -> None:
        self._worker, self._config, self._asked, self._at_once = worker, config, asked, at_once
        self._files = marks(config)
        self._actors: list[Any] = []
        self._heard: Any = None  # the answer that is still to come from the first worker
        self._numbers = count(FIRST_NUMBER)

    def prepare(self) -> Any:
        """What the first worker's `prepare` returns; what it says is printed here."""
        import ray

        first = self._hire()
        ready = first.prepare.remote()
        with Relay() as relay:
            done: list[Any] = []
            idle_since = time.monotonic()
            while not done:
                done, _ = ray.wait([ready], timeout=LOOK_EVERY)
                idle_since = self._waiting(idle_since, self._hear(first, relay))
        found, seen = self._result(done[0])
        self._files = marks(self._config)
        check_same(seen, self._files, "the driver's node", "that of the worker which prepared the cache")
        return found

    def map(self, items: Sequence[Item]) -> Iterator[tuple[Item, Any]]:
        """Each item with what `work` returned for it, as it comes. The first error ends all."""
        import ray

        todo = deque(items)
        running: dict[Any, tuple[Any, Item]] = {}  # what will come -> (worker, item)
        opening = {actor.open.remote(): actor for actor in self._actors}
        looked = idle_since = time.monotonic() - LOOK_EVERY
        while todo or running:
            if time.monotonic() - looked >= LOOK_EVERY:
                looked = time.monotonic()
                for _ in range(min(max(room(self._asked), 1), len(todo)) - len(self._actors)):
                    actor = self._hire()
                    opening[actor.open.remote()] = actor
            done, _ = ray.wait([*running, *opening], timeout=LOOK_EVERY)
            idle_since = self._waiting(idle_since, bool(running or done))
            for ref in done:
                result = self._result(ref)
                actor, item = (opening.pop(ref), None) if ref in opening else running.pop(ref)
                if item is not None:
                    yield item, result
                self._hand(actor, todo, running)
        self._actors = []  # those still opening end by themselves

    def _hand(self, actor: Any, todo: deque[Item], running: dict[Any, tuple[Any, Item]]) -> None:
        """Give a worker items until its hands are full, but leave others theirs; dismiss it if there are none."""
        busy = sum(one is actor for one, _ in running.values())
        fair = -(-(len(todo) + len(running)) // len(self._actors))
        while todo and busy < min(self._at_once, fair):
            item = todo.popleft()
            running[actor.work.remote(item)] = actor, item
            busy += 1
        if not busy:
            self._actors = [one for one in self._actors if one is not actor]  # Ray ends a worker that nobody knows

    def _waiting(self, since: float, placed: bool) -> float:
        """Say once that Ray has placed no worker for long; return since when."""
        if placed or time.monotonic() - since <= PATIENCE:
            return time.monotonic() if placed else since
        say(f"waiting for Ray to place a worker, which needs {self._asked}; the nodes have {_listed()}")
        return math.inf

    def dismiss(self) -> None:
        """After an error, stop all workers at once."""
        import ray

        for actor in self._actors:
            ray.kill(actor)
        self._actors = []

    def _hire(self) -> Any:
        """Ask Ray for one more worker."""
        import ray

        name = f"{self._worker.__module__}:{self._worker.__qualname__}"
        told = Place(name, self._config.to_json(), next(self._numbers), package_mark(), self._files)
        shell: Any = ray.remote(shipped()).options(
            num_cpus=self._asked.cores,
            num_gpus=self._asked.gpus,
            max_restarts=-1,
            max_task_retries=TRIES,
            max_concurrency=self._at_once + 1,  # one more to hear
        )
        actor = shell.remote(asdict(told), _environment(), str(Path.cwd()))
        self._actors.append(actor)
        return actor

    def _hear(self, actor: Any, relay: Relay) -> bool:
        """Print what a worker has said since; whether it answers."""
        import ray

        if self._heard is None:
            self._heard = actor.heard.options(max_task_retries=0).remote()
        done, _ = ray.wait([self._heard], timeout=LOOK_EVERY)
        if done:
            answer, self._heard = self._heard, None  # a late answer is waited for again: nothing said is lost
            try:
                for event in ray.get(answer):
                    relay.hear(event)
            except ray.exceptions.RayError:
                return False  # Ray starts it anew
        return bool(done)

    def _result(self, ref: Any) -> Any:
        """What a worker returned, or its own error, which names the node if there are several."""
        import ray

        try:
            return ray.get(ref)
        except ray.exceptions.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, ModuleNotFoundError):
                raise ConfigError(
                    f"node {error.ip} lacks {cause.name}, which is needed there; install `unic-cache[ray]` on all nodes"
                ) from error
            if isinstance(cause, UnicCacheError) and len(nodes()) > 1:
                cause.add_note(f"(On node {error.ip})")
            raise cause from error
        except ray.exceptions.RayActorError as error:
            why = str(error).splitlines()[0]
            raise UnicCacheError(
                f"a worker was lost {TRIES + 1} times at the same work, or Ray cannot start it: {why} Perhaps its "
                "memory is short: give a lower --batch-size, or more --threads, which means fewer workers on a node"
            ) from error


def _environment() -> Mapping[str, str]:
    """The variables that workers get from the driver; as arguments, since Ray lists a runtime environment's openly."""
    return {name: text for name, text in os.environ.items() if name.startswith(FOLLOW) or name in RESULTS}


def _listed() -> str:
    return "; ".join(f"{node.get('CPU', 0):.0f} cores and {node.get('GPU', 0):.0f} GPUs" for node in nodes())


def shipped() -> type:
    """The actor's class. Made here, it travels by its code: it runs, and can say so, where the package is missing."""

    class Shell:
        """Loads the worker when it is first needed, also after a new start elsewhere."""

        def __init__(self, place: dict[str, Any], environment: dict[str, str], folder: str) -> None:
            import contextlib
            import os
            import threading

            os.environ.update(environment)
            with contextlib.suppress(OSError):  # relative paths mean the same; the worker checks that they do
                os.chdir(folder)
            self.place, self.lock = place, threading.Lock()
            self.entered: Any = None

        def node(self) -> Any:
            from pipelines.command.threads import settle_waiting

            with self.lock:
                if self.entered is None:
                    settle_waiting()
                    from pipelines.clusters.node import Node

                    self.entered = Node(self.place)
            return self.entered

        def open(self) -> None:
            self.node().open()

        def prepare(self) -> Any:
            return self.node().prepare()

        def work(self, item: Any) -> Any:
            return self.node().work(item)

        def heard(self) -> Any:
            return [] if self.entered is None else self.entered.heard()

    return Shell
