"""Real processes that extract, and what kills them. `python -m tests.crash.driver` answers each line of JSON with one.

To start Python and torch takes seconds, so one process gets ready, teachers loaded, and every extraction is a fork of
it. That is sound only while it has a single thread, which it checks before each fork.
"""

import itertools
import json
import os
import random
import select
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import cli
from pipelines import extract
from pipelines.command.failures import STOPPED
from pipelines.extracting import opening
from tests.disk import tree
from unic_cache.config import ExtractConfig

LIMIT = 60.0  # seconds that any extraction here may take
STAGES = {"commits": "/commits/", "calibration": "calibration.npz", "probe": "probe/", "spec": "spec.json", "index": ""}
Report = dict[str, Any]


class Child:
    """A forked process that runs `work` and exits with what that returns, or 1 and a traceback."""

    def __init__(self, work: Callable[[], int]) -> None:
        assert len(os.listdir("/proc/self/task")) == 1, "to fork is safe only in a process of one thread"
        self.pid = os.fork()
        if not self.pid:
            code = 1
            try:
                code = work()
            except BaseException:
                traceback.print_exc()
            sys.stderr.flush()
            os._exit(code)
        self._end = os.pidfd_open(self.pid)

    def ends_within(self, seconds: float) -> bool:
        return bool(select.select([self._end], [], [], seconds)[0])

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        self.code()

    def code(self) -> int:
        """Its exit code; it has LIMIT seconds for that."""
        assert self.ends_within(LIMIT), f"still at work after {LIMIT} s"
        os.close(self._end)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


class Scene:
    """A config, teachers that are loaded already, and the tree that an extraction makes when nobody disturbs it.

    A kill cannot show a missing fsync (`test_prefixes` does), and waiting for the disk takes longest: so there is none.
    """

    def __init__(self, config: ExtractConfig, root: Path) -> None:
        self.config = config
        self.root = root
        self.random = random.Random()
        self.acts = 0
        os.fsync = lambda descriptor: None
        teachers = opening.load_teachers(config, torch.device("cpu"))
        opening.load_teachers = lambda *_: teachers
        for teacher in teachers.values():
            teacher(torch.zeros(config.batch_size, config.size, config.size, 3, dtype=torch.uint8))
        np.unique([0])  # an import that numpy puts off
        self.duration = min(self.time(root / name) for name in ("whole", "again"))
        self.whole = tree(root / "whole")
        assert tree(root / "again") == self.whole

    def time(self, cache: Path) -> float:
        """Seconds of an extraction that nobody disturbs."""
        began = time.monotonic()
        assert self.start(cache).code() == 0
        return time.monotonic() - began

    def start(self, cache: Path, index: int = 0, workers: int = 1) -> Child:
        config = replace(self.config, cache=str(cache), worker_index=index, num_workers=workers)
        return Child(lambda: 0 * extract.run(config).units)

    def begin(self, seed: int) -> None:
        """A new act, in folders of its own."""
        self.random = random.Random(seed)
        self.acts += 1

    def caches(self) -> Iterator[Path]:
        """A new folder each time."""
        for number in itertools.count():
            yield self.root / f"act{self.acts}" / str(number)

    def check_left(self, cache: Path) -> str:
        """What a kill left is part of the whole, each record with its objects; how far the extraction had come."""
        left = tree(cache)
        named = {name: data for name, data in left.items() if "/.tmp-" not in f"/{name}"}
        assert named.items() <= self.whole.items()
        for name, data in named.items():
            if "/commits/" in name:
                assert named.keys() >= json.loads(data)["objects"].keys()
        if left.keys() == self.whole.keys():
            return "after the end"
        return next((stage for stage, part in STAGES.items() if any(part in name for name in named)), "start")


def kill_and_restart(scene: Scene, kills: int) -> Report:
    """The same command on one cache, killed again and again until it gets through; cache after cache.

    The kills of one cache come later and later: so it gets through on a machine that has become slower, too.
    """
    stages: Counter[str] = Counter()
    for caches, cache in enumerate(scene.caches(), start=1):
        for before in itertools.count():
            child = scene.start(cache)
            if child.ends_within(scene.random.uniform(0, scene.duration * 1.1**before)):
                assert child.code() == 0
                break
            child.kill()
            stages[scene.check_left(cache)] += 1
        assert tree(cache) == scene.whole
        hits = stages.total() - stages["after the end"]
        if hits >= kills:
            return {"kills": hits, "caches": caches, "stages": stages, "duration": scene.duration}
    raise AssertionError


def crowd(scene: Scene, kills: int, workers: int, same_units: bool) -> Report:
    """Workers at once on one cache, whose units are shared out or all the same; some are killed and started again."""
    places = [(0, 1) if same_units else (index, workers) for index in range(workers)]
    hits = 0
    for caches, cache in enumerate(scene.caches(), start=1):
        children = [scene.start(cache, *place) for place in places]
        for victim, place in enumerate(places):
            if not children[victim].ends_within(scene.random.uniform(0, scene.duration / workers)):
                children[victim].kill()
                hits += 1
                assert scene.check_left(cache)
                children[victim] = scene.start(cache, *place)
        assert [child.code() for child in children] == [0] * workers
        assert tree(cache) == scene.whole
        if hits >= kills:
            return {"workers": workers, "kills": hits, "caches": caches}
    raise AssertionError


def interrupt(scene: Scene, stops: int, sync_seconds: float) -> Report:
    """Ctrl-C and SIGTERM at random moments of the command, on a disk whose every fsync takes a while."""
    caches = scene.caches()
    cache = next(caches)
    command = Command(scene.config, cache, sync_seconds)
    began = time.monotonic()
    assert command.child.code() == 0
    duration, slowest, stopped = time.monotonic() - began, 0.0, 0
    while stopped < stops:
        if tree(cache) == scene.whole:
            cache = next(caches)
        command = Command(scene.config, cache, sync_seconds)
        if not command.child.ends_within(scene.random.uniform(0, duration)):
            os.kill(command.child.pid, (signal.SIGINT, signal.SIGTERM)[stopped % 2])
        asked = time.monotonic()
        code = command.child.code()
        slowest = max(slowest, time.monotonic() - asked)
        assert code in {0, STOPPED + signal.SIGINT, STOPPED + signal.SIGTERM}
        stopped += code > 0
        assert scene.check_left(cache)
        assert not [name for name in tree(cache) if ".tmp-" in name]
    return {"stopped": stopped, "slowest": slowest, "duration": duration}


class Command:
    """`unic-cache extract` in a child; it handles signals when this is made."""

    def __init__(self, config: ExtractConfig, cache: Path, sync_seconds: float) -> None:
        begun, begin = os.pipe()
        self.child = Child(partial(run_command, replace(config, cache=str(cache)), begin, sync_seconds))
        os.read(begun, 1)
        os.close(begun)
        os.close(begin)


def run_command(config: ExtractConfig, begin: int, sync_seconds: float) -> int:
    """`unic-cache extract` in this process; a byte goes to `begin` when signals are handled. Its exit code."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.stdout = sys.stderr
    run = extract.run

    def slow(descriptor: int) -> None:
        threading.Event().wait(sync_seconds)

    def told(settings: ExtractConfig) -> extract.Summary:
        os.write(begin, b".")
        return run(settings)

    os.fsync, extract.run = slow, told
    flags = {"cache": config.cache, "shards": config.shards, "views": config.views, "size": config.size}
    flags |= {"batch-size": config.batch_size, "calibration-images": config.calibration_images}
    flags |= {"device": config.device, "threads": config.threads, "codec": config.codec}
    words = [f"--teacher={name}" for name in config.teachers] + [f"--{flag}={value}" for flag, value in flags.items()]
    try:
        cli.main(["extract", *words, *["--keep-views"] * config.keep_views])
    except SystemExit as end:
        return int(end.code or 0)
    raise AssertionError


ACTS = {act.__name__: act for act in (kill_and_restart, crowd, interrupt)}


def main() -> None:
    """The first line says whom to extract and where, each further one which act to play."""
    torch.set_num_threads(1)
    setting = json.loads(next(sys.stdin))
    scene = Scene(ExtractConfig.from_json(setting["config"]), Path(setting["root"]))
    for line in sys.stdin:
        order = json.loads(line)
        scene.begin(order["seed"])
        try:
            answer = ACTS[order["act"]](scene, **order["options"])
        except Exception:
            answer = {"error": traceback.format_exc()}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
