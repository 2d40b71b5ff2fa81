"""Which test images the students were trained on, as far as their runs tell."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from pipelines.evaluating.labelled import Usable
from unic_cache.cache import Cache
from unic_cache.config import Views
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


def trained_on(run: Trained | None, cache: Cache | None, usable: Usable) -> int:
    """How many test images a run's student was trained on, as far as its snapshot and the cache tell."""
    names = namesakes(run, usable)
    if cache is None or run is None or not names or not vouched(run, cache, names):
        return 0
    test = usable.images
    shown = zip(test.wanted, usable.good_N, strict=True)
    return sum(bool(good) and test.tars[item.segment, item.shard][1].name in names for item, good in shown)


def unknown(runs: Mapping[str, Trained | None], cache: Cache | None, usable: Usable) -> list[str]:
    """What a reader would take for no, though a cache could tell: whether a local encoder was trained on these images.

    `runs` maps each encoder to its run, if one is beside it. Without a cache nothing is said: by their names alone,
    most sets have tars in common.
    """
    if cache is None:
        return []
    found = []
    for encoder, run in runs.items():
        if not Path(encoder).exists():
            continue
        if run is None:
            found.append(f"{encoder}: no run is beside it")
            continue
        names = namesakes(run, usable)
        if names and not vouched(run, cache, names):
            which = min(names)
            found.append(f"{encoder} was trained on tars of such names ({which}), and this cache does not tell which")
        if began := origin(encoder):
            found.append(f"{encoder} began as another run's student ({began}), whose images its own run does not list")
    return [f"{line}, so it is unknown whether it was trained on these test images" for line in found]


def namesakes(run: Trained | None, usable: Usable) -> set[str]:
    """The names of the test images' tars that are among those that a run was trained on."""
    return set() if run is None else {entry.name for _, entry in usable.images.tars.values()} & set(run.train)


def vouched(run: Trained, cache: Cache, names: set[str]) -> bool:
    """Whether the run read these tars' features from this very cache."""
    records = [
        (teacher, teacher.record(cache.unit(*cache.shards()[name], run.views, run.numbers[0])))
        for name in names
        for teacher in cache.teachers.values()
    ]
    return any(one is not None and wrote_down(run.records, cache, teacher, one) for teacher, one in records)


def origin(encoder: str) -> str:
    """By what option a student began as another run's; "" if it did not."""
    made: Mapping[str, Any] = provenance_of_export(encoder) or {}
    init = (made.get("config") or {}).get("init")
    if made.get("from"):
        return "--from"
    return "--init" if isinstance(init, str) and has_run(init) else ""


def has_run(encoder: str) -> bool:
    """Whether an encoder is local and its run is beside it."""
    return Path(encoder).exists() and (run_of(encoder) / SNAPSHOT).is_file()


def run_of(encoder: str) -> Path:
    """The folder of a local encoder, which is its run's unless it was exported or copied."""
    return Path(encoder) if Path(encoder).is_dir() else Path(encoder).parent
