"""Which test images the students were trained on, as far as their runs tell."""

import contextlib
import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from pipelines.evaluating.labelled import Usable
from pipelines.extracting.students import names_model
from unic_cache.cache import Cache, CachedTeacher
from unic_cache.config import Views
from unic_cache.errors import CacheError, ConfigError
from unic_cache.evaluate.results import UNKNOWN
from unic_cache.files.paths import FOLDER
from unic_cache.stream.sealed_rows import wrote_down
from unic_cache.student.export import provenance_of_export
from unic_cache.student.run_files import SNAPSHOT


class Trained(Protocol):
    """What is used of a run's snapshot."""

    @property
    def train(self) -> Sequence[str]:
        """The names of the tars that it was trained on."""

    @property
    def records(self) -> Mapping[str, int]:
        """The checksums of the commit records that it read."""

    @property
    def numbers(self) -> Sequence[int]:
        """Of the views."""

    @property
    def views(self) -> Views:
        """The kind of all views."""


History = Sequence[Trained | None]  # the runs that made an encoder's weights, last first; None where nobody knows more


def history(encoder: str, load: Callable[[Path], Trained | None]) -> History:
    """The runs that made a local encoder's weights: its own, and those that it began from (--from, --init).

    `load` reads the snapshot in a run's folder, and gives None for one that it cannot read.
    """
    runs: list[Trained | None] = []
    seen: set[Path] = set()
    while has_run(encoder) and run_of(encoder).resolve() not in seen:
        seen.add(run_of(encoder).resolve())
        runs.append(load(run_of(encoder)))
        made: Mapping[str, Any] = provenance_of_export(encoder) or {}
        settings = made.get("config") or {}
        before = settings.get("from_run") if made.get("from") else settings.get("init")
        if not (made.get("from") or (isinstance(before, str) and may_be_students(before))):
            return runs
        encoder = str(before).removeprefix(FOLDER)
    return [*runs, None]


def may_be_students(init: str) -> bool:
    """Whether --init may have named the weights of a student: an export, or a file or folder that is gone."""
    path = init.removeprefix(FOLDER)
    if Path(path).exists():
        with contextlib.suppress(ConfigError):
            return provenance_of_export(path) is not None
        return True
    return path != init or not names_model(init)


def trained_on(runs: History, cache: Cache | None, usable: Usable) -> int:
    """How many test images an encoder was trained on, as far as its runs' snapshots and the cache tell."""
    if cache is None:
        return 0
    test = usable.images
    names = set[str]().union(*(vouched(run, cache, namesakes(run, usable)) for run in runs if run is not None))
    shown = zip(test.wanted, usable.good_N, strict=True)
    return sum(bool(good) and test.tars[item.segment, item.shard][1].name in names for item, good in shown)


def unknown(histories: Mapping[str, History], cache: Cache | None, usable: Usable) -> list[str]:
    """What a reader would take for no, though a cache could tell: whether a local encoder was trained on these images.

    Without a cache nothing is said: by their names alone, most sets have tars in common.
    """
    if cache is None:
        return []
    found = []
    for encoder, runs in histories.items():
        if not Path(encoder).exists() or trained_on(runs, cache, usable) == int(usable.good_N.sum()):
            continue
        if runs[-1] is None:
            own = f"{encoder}: no run that can be read is beside it"
            found.append(own if len(runs) == 1 else f"{encoder} began from weights whose run is not beside them")
        for run in runs:
            names = namesakes(run, usable)
            if run is not None and (names := names - vouched(run, cache, names)):
                found.append(f"{encoder} was trained on tars with these names ({min(names)}), but not from this cache")
    return [f"{line}, so {UNKNOWN}" for line in found]


def namesakes(run: Trained | None, usable: Usable) -> set[str]:
    """The names of the test images' tars that are among those that a run was trained on."""
    return set() if run is None else {entry.name for _, entry in usable.images.tars.values()} & set(run.train)


def vouched(run: Trained, cache: Cache, names: Collection[str]) -> set[str]:
    """Those of the tars whose features, of one teacher under one view at least, the run read from this very cache."""

    def read(name: str, number: int, teacher: CachedTeacher) -> bool:
        with contextlib.suppress(CacheError):  # a record that is broken tells nothing, and no score needs it
            record = teacher.record(cache.unit(*cache.shards()[name], run.views, number))
            return record is not None and wrote_down(run.records, cache, teacher, record)
        return False

    sides = list(itertools.product(run.numbers, cache.teachers.values()))
    return {name for name in names if any(read(name, *side) for side in sides)}


def has_run(encoder: str) -> bool:
    """Whether an encoder is local and its run is beside it."""
    return Path(encoder).exists() and (run_of(encoder) / SNAPSHOT).is_file()


def run_of(encoder: str) -> Path:
    """The folder of a local encoder, which is its run's unless it was exported or copied."""
    return Path(encoder) if Path(encoder).is_dir() else Path(encoder).parent
