"""Pixels by address, made ahead of need: decoded and augmented from the tars, or read from the cache's kept views.

Pillow and numpy release the interpreter lock during slow operations, so threads serve as worker processes would, and
each view is written once, into the batch that the model reads.

Letters: B images, H and W pixels.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from unic_cache.cache import Cache
from unic_cache.config import Views
from unic_cache.errors import BrokenError, CacheError, ImageError
from unic_cache.files.open_file import files_at_once
from unic_cache.store.commit import CommitRecord
from unic_cache.stream.address import Address
from unic_cache.stream.gather import Gathering, pieces
from unic_cache.stream.seen_pixels import Seen
from unic_cache.views.augment import make_view, pixel_crc
from unic_cache.views.decode import decode
from unic_cache.views.index import ShardEntry
from unic_cache.views.shards import OpenShard

Image = npt.NDArray[np.uint8]
OPEN_SHARDS = files_at_once(64, 16)


@dataclass(frozen=True)
class ViewBatch:
    """A batch of views, their checksums, and why some are missing."""

    views_BHWC: Image
    crcs: npt.NDArray[np.uint32]  # crc32c of each view, 0 where bad
    bad: dict[int, str]  # position in the batch -> why it has no view; its pixels are zeros


Finish = Callable[[], ViewBatch]  # waits for a batch that was started


class PixelSource(Protocol):
    """Where views come from."""

    def start(self, wanted: Sequence[Address], size: int) -> Finish:
        """Start a batch of `size` views in memory of its own: those wanted, then zeros."""
        ...

    def group(self, batches: Sequence[Sequence[Address]], views_NHWC: Image) -> list[Callable[[], Finish]]:
        """Functions that start each batch; the views go into `views_NHWC`, batch after batch."""
        ...


def blank(size: int, views: Views, pin: bool) -> Image:
    """Zeros (size, H, W, 3) for a batch of views; with `pin` in page-locked memory, which a GPU copies by itself."""
    return torch.zeros(size, views.size, views.size, 3, dtype=torch.uint8, pin_memory=pin).numpy()


class ShardPixels:
    """Views made from the tars. `tars` maps (segment, shard) to (path, entry)."""

    def __init__(
        self,
        views: Views,
        tars: Mapping[tuple[int, int], tuple[str, ShardEntry]],
        pool: ThreadPoolExecutor,
        pin: bool = False,
        seen: Seen | None = None,
    ) -> None:
        """With `seen`, an image that differs from the one the cache has seen raises CacheError."""
        self.pin = pin
        self.seen = seen
        self.views = views
        self.tars = tars
        self._pool = pool
        self._open: OrderedDict[tuple[int, int], OpenShard] = OrderedDict()
        self._lock = threading.Lock()

    def start(self, wanted: Sequence[Address], size: int) -> Finish:
        """Start one task per view; each fills its own slot of the batch."""
        return self._start(wanted, blank(size, self.views, self.pin))

    def group(self, batches: Sequence[Sequence[Address]], views_NHWC: Image) -> list[Callable[[], Finish]]:
        """Each batch starts on its own."""
        stops = np.cumsum([len(batch) for batch in batches])
        return [partial(self._start, *pair) for pair in zip(batches, np.split(views_NHWC, stops[:-1]), strict=True)]

    def _start(self, wanted: Sequence[Address], views_BHWC: Image) -> Finish:
        tasks = [self._pool.submit(self._fill, item, views_BHWC[place]) for place, item in enumerate(wanted)]

        def finish() -> ViewBatch:
            outcomes = [task.result() for task in tasks]
            bad = {place: outcome for place, outcome in enumerate(outcomes) if isinstance(outcome, str)}
            crcs = np.array([0 if isinstance(outcome, str) else outcome for outcome in outcomes], dtype=np.uint32)
            views_BHWC[list(bad)] = 0
            return ViewBatch(views_BHWC, crcs, bad)

        return finish

    def _fill(self, wanted: Address, out: Image) -> int | str:
        """Write one view into `out`; return its crc32c, or why there is none."""
        place, where = (wanted.segment, wanted.shard), partial(self.where, wanted)
        data = self.data(wanted)
        try:
            image = decode(data)
            make_view(image, self.views, self.tars[place][1].keys[wanted.row], wanted.number, out)
        except ImageError as error:
            if self.seen is not None:
                self.seen.fails(place, wanted.row, where, str(error))
            return str(error)
        if self.seen is not None:
            self.seen.check(place, wanted.row, image, where)
        return pixel_crc(out)

    def data(self, wanted: Address) -> bytes:
        """The image's bytes."""
        return self._shard((wanted.segment, wanted.shard)).read(wanted.row)

    def label(self, wanted: Address, kind: str) -> bytes | None:
        """The bytes of the image's label of that kind, such as "mask.png"; None if it has none."""
        return self._shard((wanted.segment, wanted.shard)).read_label(wanted.row, kind)

    def where(self, wanted: Address) -> str:
        """The row for messages: its tar, its number and its name in the tar."""
        return f"{self.tars[wanted.segment, wanted.shard][0]}, row {wanted.row} ({self.name(wanted)})"

    def name(self, wanted: Address) -> str:
        """The image's name in the tar."""
        return self._shard((wanted.segment, wanted.shard)).name(wanted.row)

    def _shard(self, place: tuple[int, int]) -> OpenShard:
        with self._lock:
            shard = self._open.get(place)
            if shard is None:
                shard = self._open[place] = OpenShard(*self.tars[place])
                if len(self._open) > OPEN_SHARDS:
                    self._open.popitem(last=False)
            self._open.move_to_end(place)
        return shard


class KeptPixels:
    """Views read from a cache made with --keep-views: no tars, no decoding.

    A broken view raises BrokenError; with `skip_broken` it counts as a bad image.
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
        """Whether the view's pixels are committed, intact or not."""
        try:
            return self._record(wanted) is not None
        except BrokenError:
            if not self.skip_broken:
                raise
            return True

    def start(self, wanted: Sequence[Address], size: int) -> Finish:
        """A group of one batch."""
        views_BHWC = blank(size, self.views, self.pin)
        finish = self.group([wanted], views_BHWC[: len(wanted)])[0]()
        return lambda: replace(finish(), views_BHWC=views_BHWC)

    def group(self, batches: Sequence[Sequence[Address]], views_NHWC: Image) -> list[Callable[[], Finish]]:
        """Start all at once: each chunk is read once for all batches."""
        reader = self.cache.pixel_rows
        assert reader is not None
        wanted = pieces([item for batch in batches for item in batch])
        (rgb,) = reader.member.arrays
        threads = self._pool if rgb.tile else self.cache.readers(self._pool)  # unpacking works, plain reads wait
        gathering = Gathering(threads, wanted, self._committed, reader, {rgb.name: views_NHWC})
        stops = np.cumsum([len(batch) for batch in batches]).tolist()

        def begin(place: int) -> Finish:
            return partial(self._finish, gathering, stops[place] - len(batches[place]), stops[place], views_NHWC)

        return [partial(begin, place) for place in range(len(batches))]

    def _finish(self, gathering: Gathering, start: int, stop: int, views_NHWC: Image) -> ViewBatch:
        gathered = gathering.result()
        bad: dict[int, str] = {}
        for place in range(start, stop) if gathered.broken or gathered.bad else ():
            if place in gathered.broken and not self.skip_broken:
                raise gathered.broken[place]
            reason = gathered.bad.get(place) or gathered.broken.get(place)
            bad |= {place - start: str(reason)} if reason else {}
        return ViewBatch(views_NHWC[start:stop], gathered.crcs_N[start:stop], bad)

    def _committed(self, wanted: Address) -> CommitRecord:
        record = self._record(wanted)
        assert record is not None
        return record

    def _record(self, wanted: Address) -> CommitRecord | None:
        return self.cache.pixel_record(self.cache.unit(wanted.segment, wanted.shard, self.views, wanted.number))


class NoPixels:
    """No views at all, for features alone."""

    def start(self, wanted: Sequence[Address], size: int) -> Finish:
        """A batch of views of no pixels."""
        return lambda: self._none(len(wanted), np.zeros((size, 0, 0, 3), np.uint8))

    def group(self, batches: Sequence[Sequence[Address]], views_NHWC: Image) -> list[Callable[[], Finish]]:
        """Nothing to start."""
        return [partial(partial, self._none, len(wanted), views_NHWC[:0]) for wanted in batches]

    def _none(self, images: int, views_BHWC: Image) -> ViewBatch:
        return ViewBatch(views_BHWC, np.zeros(images, np.uint32), {})


class Pixels:
    """Views from the best source that has them: kept pixels, else the tars."""

    def __init__(self, kept: KeptPixels, decoded: ShardPixels) -> None:
        self.kept = kept
        self.decoded = decoded

    def start(self, wanted: Sequence[Address], size: int) -> Finish:
        """Start a batch from one source. CacheError if a view has neither kept pixels nor a tar."""
        return self._source(wanted).start(wanted, size)

    def group(self, batches: Sequence[Sequence[Address]], views_NHWC: Image) -> list[Callable[[], Finish]]:
        """Each batch comes from one source; neighbours from one source form a group of it."""
        begins: list[Callable[[], Finish]] = []
        for source, numbers in groupby(range(len(batches)), lambda number: self._source(batches[number])):
            own = list(numbers)
            start = sum(len(batch) for batch in batches[: own[0]])
            size = sum(len(batches[number]) for number in own)
            begins += source.group([batches[number] for number in own], views_NHWC[start : start + size])
        return begins

    def _source(self, wanted: Sequence[Address]) -> PixelSource:
        firsts = list({item.unit: item for item in wanted}.values())
        if all(self.kept.has(item) for item in firsts):
            return self.kept
        for item in firsts:
            if (item.segment, item.shard) not in self.decoded.tars:
                unit = self.kept.cache.unit(item.segment, item.shard, self.kept.views, item.number)
                raise CacheError(
                    f"{self.kept.cache.location.url}: {unit} has no kept pixels and its tar was not given; add it to "
                    "--shards"
                )
        return self.decoded
