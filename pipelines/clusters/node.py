"""A node's side of a stage on Ray: a worker that has the driver's package and sees the driver's files.

The worker is a class of the stage's own module, by name; it keeps teachers and caches open between items.
"""

import os
import zlib
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache as memoize
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pipelines.command.failures import portable
from pipelines.command.preflight import DEFAULT_SHARDS, is_here
from pipelines.command.progress import Event, listen
from pipelines.command.shares import SIZES
from unic_cache import config as configs
from unic_cache.errors import CacheError, ConfigError
from unic_cache.files.schemes import open_location
from unic_cache.views.segments import segment_names
from unic_cache.views.shards import expand

TARS_COMPARED = 64  # sizes of tars, evenly over all
HEARD = 1000  # events that wait for the driver to ask


class Worker(Protocol):
    """What a stage needs to work on Ray."""

    def __init__(self, config: Any, number: int) -> None:
        """`number` is the worker's own, for its temporary files."""

    def prepare(self) -> Any:
        """Make what all workers need; return what the driver needs, as the items of work."""

    def open(self) -> object:
        """Load what `work` needs."""

    def work(self, item: Any) -> Any:
        """Do one item; any thread may, several at once."""


@dataclass(frozen=True)
class Place:
    """What a worker is told: plain values, since its node may lack the package, or have another release of it."""

    worker: str  # 'MODULE:CLASS'
    config: Mapping[str, Any]  # its JSON
    number: int  # of the worker
    package: str  # `package_mark` where the driver is
    files: Mapping[str, int]  # `marks` where the driver is


class Node:
    """A worker where it works, checked. Its errors are those that the driver can raise."""

    def __init__(self, place: Mapping[str, Any]) -> None:
        """ConfigError if this node has another package; CacheError if it sees other files than the driver."""
        told = Place(**place)
        for size, rank in SIZES.values():  # of what started Ray's daemons: no launcher started this worker
            os.environ.pop(size, None)
            os.environ.pop(rank, None)
        if told.package != package_mark():
            raise ConfigError(
                f"this node has another unic-cache ({package_mark()}) than the driver ({told.package}); install the "
                "same on all nodes"
            )
        self._config = getattr(configs, f"{told.config['stage'].capitalize()}Config").from_json(dict(told.config))
        check_same(told.files, marks(self._config), "a worker's node", "the driver's")
        self._said: deque[Event] = deque(maxlen=HEARD)
        listen(self._said.append)
        module, _, name = told.worker.partition(":")
        self._worker: Worker = getattr(import_module(module), name)(self._config, told.number)

    def prepare(self) -> tuple[Any, dict[str, int]]:
        """What the worker prepared for the driver, and the files that it sees then."""
        with _told():
            return self._worker.prepare(), marks(self._config)

    def open(self) -> None:
        """Load what items need."""
        with _told():
            self._worker.open()

    def work(self, item: Any) -> Any:
        """Do one item."""
        with _told():
            return self._worker.work(item)

    def heard(self) -> list[Event]:
        """What the worker has said since the last call."""
        return [self._said.popleft() for _ in range(len(self._said))]


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise portable(error) from None


def package_mark() -> str:
    """The release and a checksum of the package's own files."""
    return f"{version('unic-cache')}, {_sources():08x}"


@memoize
def _sources() -> int:
    root = Path(__file__).parents[2]
    crc = 0
    for path in sorted(path for room in ("unic_cache", "pipelines") for path in (root / room).rglob("*.py")):
        crc = zlib.crc32(path.read_bytes(), crc)
    return crc


def marks(config: Any) -> dict[str, int]:
    """A checksum of each file that a stage reads here: its caches' indexes, and for teachers their tars and weights."""
    caches = [getattr(config, name, None) for name in ("cache", "source", "target")]
    found = {name: mark for path in caches if path is not None for name, mark in _index(path).items()}
    if config.stage == "extract":
        pattern = DEFAULT_SHARDS if config.shards is None else config.shards
        found |= _tars(pattern) if is_here(pattern) else {}
        found |= {file: Path(file).stat().st_size for _, file in config.weights if Path(file).is_file()}
    return found


def check_same(wanted: Mapping[str, int], seen: Mapping[str, int], where: str, there: str) -> None:
    """CacheError if `seen` lacks one of the files `wanted`, or has another under its name."""
    for path, mark in wanted.items():
        if seen.get(path) != mark:
            what = "is not there" if path not in seen else "is another file"
            raise CacheError(
                f"{path} {what} on {where}, compared with {there}: all nodes must see the same files under one path; "
                "use a file system that all share, or an object store"
            )


def _index(path: str) -> dict[str, int]:
    """The checksum of each segment of a cache."""
    location = open_location(path)
    return {f"{location.url}/{name}": zlib.crc32(location.read(name) or b"") for name in segment_names(location)}


def _tars(pattern: str) -> dict[str, int]:
    """A checksum of the names of all tars, and of the sizes of some."""
    try:
        paths = expand(pattern)
    except ValueError:
        return {}
    some = np.unique(np.linspace(0, len(paths) - 1, min(TARS_COMPARED, len(paths))).astype(int))
    sizes = [Path(paths[int(place)].removeprefix("file://")).stat().st_size for place in some]
    return {pattern: zlib.crc32("\n".join([*paths, *map(str, sizes)]).encode())}
