"""Pixels by address, made ahead of need: decoded and augmented from the tars, or read from the views that were kept.

Pillow and numpy release the interpreter lock in all that takes time, so threads do what worker processes would, and
each view is written once, into the batch that the model reads.

Letters: B images, H and W pixels.
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from unic_cache.cache import Cache
from unic_cache.config import Views
from unic_cache.errors import BrokenError, CacheError, ImageError
from unic_cache.store.commit import CommitRecord
from unic_cache.views.augment import decode, make_view, pixel_crc
from unic_cache.views.index import ShardEntry
from unic_cache.views.shards import OpenShard

Item = TypeVar("Item")
Result = TypeVar("Result")
Image = npt.NDArray[np.uint8]
OPEN_SHARDS = 64


@dataclass(frozen=True, order=True)
class Address:
    """One view of one image: row `row` of tar `shard` of a segment, under view `number`."""

    segment: int
    shard: int
    row: int
    number: int


@dataclass(frozen=True)
class ViewBatch:
    """Views and what became of them."""

    views_BHWC: Image
    crcs: npt.NDArray[np.uint32]  # crc32c of each view, 0 where bad
    bad: dict[int, str]  # position in the batch -> why there is no view; its pixels are zeros


class PixelSource(Protocol):
    """Where views come from."""

    def start(self, wanted: Sequence[Address], size: int) -> Callable[[], ViewBatch]:
        """Begin a batch of `size` views, zeros behind those that are wanted; the call returned waits for it."""
        ...


def blank(size: int, views: Views, pin: bool) -> Image:
    """Room for a batch of views, zeros; in page-locked memory, from which a GPU copies by itself, if `pin`."""
    return torch.zeros(size, views.size, views.size, 3, dtype=torch.uint8, pin_memory=pin).numpy()


class ShardPixels:
    """Views made from the tars. `tars` maps (segment, shard) to (path, entry)."""

    def __init__(
        self,
        views: Views,
        tars: Mapping[tuple[int, int], tuple[str, ShardEntry]],
        pool: ThreadPoolExecutor,
        pin: bool = False,
    ) -> None:
        self.pin = pin
        self.views = views
        self.tars = tars
        self._pool = pool
        self._open: OrderedDict[tuple[int, int], OpenShard] = OrderedDict()
        self._lock = threading.Lock()

    def start(self, wanted: Sequence[Address], size: int) -> Callable[[], ViewBatch]:
        """One task a view, each filling its own slot of the batch."""
        views_BHWC = blank(size, self.views, self.pin)
        tasks = [self._pool.submit(self.fill, item, views_BHWC[place]) for place, item in enumerate(wanted)]

        def finish() -> ViewBatch:
            outcomes = [task.result() for task in tasks]
            bad = {place: outcome for place, outcome in enumerate(outcomes) if isinstance(outcome, str)}
            crcs = np.array([0 if isinstance(outcome, str) else outcome for outcome in outcomes], dtype=np.uint32)
            return ViewBatch(views_BHWC, crcs, bad)

        return finish

    def fill(self, wanted: Address, out: Image) -> int | str:
        """Write one view into `out`; its crc32c, or why there is none."""
        path, entry = self.tars[wanted.segment, wanted.shard]
        data = self._shard(wanted, path, entry).read(wanted.row)
        try:
            out[:] = make_view(decode(data), self.views, entry.keys[wanted.row], wanted.number)
        except ImageError as error:
            return str(error)
        return pixel_crc(out)

    def _shard(self, wanted: Address, path: str, entry: ShardEntry) -> OpenShard:
        place = (wanted.segment, wanted.shard)
        with self._lock:
            shard = self._open.get(place)
            if shard is None:
                shard = self._open[place] = OpenShard(path, entry)
                if len(self._open) > OPEN_SHARDS:
                    self._open.popitem(last=False)
            self._open.move_to_end(place)
        return shard


class KeptPixels:
    """Views read from the cache, for caches made with --keep-views: no tars, no decoding.

    Broken ones are an error, or bad as an image is bad where `skip_broken` says so.
    """

    def __init__(
        self, views: Views, cache: Cache, pool: ThreadPoolExecutor, skip_broken: bool = False, pin: bool = False
    ) -> None:
        self.pin = pin
        self.views = views
        self.cache = cache
        self.skip_broken = skip_broken
        self._pool = pool

    def has(self, wanted: Address) -> bool:
        """Whether the view's pixels are committed, whole or not."""
        try:
            return self._record(wanted) is not None
        except BrokenError:
            if not self.skip_broken:
                raise
            return True

    def start(self, wanted: Sequence[Address], size: int) -> Callable[[], ViewBatch]:
        """One task a batch; the rows of one tar are read together."""
        views_BHWC = blank(size, self.views, self.pin)
        task = self._pool.submit(self._fill, wanted, views_BHWC)
        return task.result

    def _fill(self, wanted: Sequence[Address], views_BHWC: Image) -> ViewBatch:
        crcs = np.zeros(len(wanted), dtype=np.uint32)
        bad: dict[int, str] = {}
        for places in by_unit(wanted):
            broken: set[int] | None = set() if self.skip_broken else None
            try:
                record = self._record(wanted[places[0]])
                assert record is not None
                rows = [wanted[place].row for place in places]
                out = np.empty((len(rows), *views_BHWC.shape[1:]), np.uint8)
                self.cache.read_pixels(record, rows, out, broken)
            except BrokenError as error:
                if broken is None:
                    raise
                bad |= dict.fromkeys(places, str(error))
                continue
            views_BHWC[places] = out
            crcs[places] = record.pixels[rows]
            reasons = {**dict.fromkeys(broken or (), "the kept pixels are broken"), **record.bad}
            bad |= {place: reasons[row] for place, row in zip(places, rows, strict=True) if row in reasons}
        return ViewBatch(views_BHWC, crcs, bad)

    def _record(self, wanted: Address) -> CommitRecord | None:
        view = self.views.name(wanted.number)
        return self.cache.pixel_record(self.cache.unit(wanted.segment, wanted.shard, view))


class Pixels:
    """Views from the best source that has them: kept pixels first, the tars otherwise."""

    def __init__(self, kept: KeptPixels, decoded: ShardPixels) -> None:
        self.kept = kept
        self.decoded = decoded

    def start(self, wanted: Sequence[Address], size: int) -> Callable[[], ViewBatch]:
        """A batch from one source. CacheError where a view has neither kept pixels nor a tar."""
        if all(self.kept.has(item) for item in wanted):
            return self.kept.start(wanted, size)
        for item in wanted:
            if (item.segment, item.shard) not in self.decoded.tars:
                cache, view = self.kept.cache, self.kept.views.name(item.number)
                raise CacheError(
                    f"{cache.location.url}: view {view} of shard {cache.entry(item.segment, item.shard).name} has no "
                    "kept pixels and its tar was not given; add it to --shards"
                )
        return self.decoded.start(wanted, size)


def by_unit(wanted: Sequence[Address]) -> list[list[int]]:
    """Positions grouped by (segment, shard, view), each group in ascending row order."""
    groups: dict[tuple[int, int, int], list[int]] = {}
    for place in sorted(range(len(wanted)), key=lambda place: wanted[place]):
        item = wanted[place]
        groups.setdefault((item.segment, item.shard, item.number), []).append(place)
    return list(groups.values())


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
    beside = max(int(os.environ.get("LOCAL_WORLD_SIZE", "1")), 1)
    return ThreadPoolExecutor(threads or max(len(os.sched_getaffinity(0)) // beside, 1), "unic-cache")
