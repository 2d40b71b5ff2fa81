"""Batches of views and features for training, read ahead.

Letters: B images of a batch, N images of a group of batches, H and W pixels.
"""

from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from unic_cache.ahead import processes_here
from unic_cache.buffers import MEMORY, Ring
from unic_cache.cache import Cache, CachedTeacher
from unic_cache.config import Views
from unic_cache.errors import BrokenError
from unic_cache.store.codecs.pixel_codec import PIXEL_CODECS
from unic_cache.store.commit import CommitRecord, Crcs
from unic_cache.store.seal import among
from unic_cache.stream.address import Address
from unic_cache.stream.gather import Gathering, grouped, pieces
from unic_cache.stream.pixels import Finish, NoPixels, PixelSource
from unic_cache.stream.rows import committed_record

VIEWS_AHEAD = 3  # batches whose views are decoded in advance
PAGE = 4096  # bytes
GROUP_BYTES = min(MEMORY // 16 // processes_here(), 2**32)  # most memory of a group, but one batch at least


@dataclass(frozen=True)
class Batch:
    """Views `wanted` as (B, H, W, 3) uint8, and the stored arrays of each teacher: name -> array name -> (B, ...).

    `good_B`, bool on the CPU, is False for images that are broken anywhere and must not count. `present_Bn` is False
    where a teacher has no features of an image, columns as the stream's teachers; None if all have.
    """

    wanted: Sequence[Address]
    views_BHWC: Tensor
    parts: Mapping[str, Mapping[str, Tensor]]
    good_B: Tensor
    present_Bn: Tensor | None = None

    @property
    def broken(self) -> int:
        """The number of images that must not count."""
        return len(self.good_B) - int(self.good_B.sum())


class Stream:
    """Prepares batches in the pool's threads, checking them against the commit records.

    Batches are read in groups (see `gather`), one group ahead: memory holds two groups, or three if a group is a single
    batch. A group's memory is reused once nothing refers to its batches, so callers may keep a batch for good. With
    `pin` the memory is page-locked; torch allocates it and waits for pending copies to a GPU before reusing it.

    With `known`, only commit records of these names exist, themselves or by their seals' names; a teacher without one
    for a row is not present there.

    A broken row is an error; with `skip_broken` it stays in the batch as zeros, with `good_B` False; other rows are
    unaffected.
    """

    def __init__(
        self,
        cache: Cache,
        teachers: Sequence[CachedTeacher],
        views: Views,
        source: PixelSource | None,
        pool: ThreadPoolExecutor,
        check_pixels: bool = True,
        pin: bool = False,
        skip_broken: bool = False,
        known: Collection[str] | None = None,
    ) -> None:
        """Without a source there are features alone: views are (B, 0, 0, 3), and no pixels are checked."""
        self.known = known
        self.cache = cache
        self.teachers = teachers
        self.views = views
        self.source = source or NoPixels()
        self.check_pixels = check_pixels and source is not None
        self.pin = pin
        self.skip_broken = skip_broken
        self.pool = pool
        self.rgb = PIXEL_CODECS["raw"].array(0 if source is None else views.size)
        arrays = [self.rgb, *(array for teacher in teachers for array in teacher.arrays)]
        self.image_bytes = sum(array.row_bytes for array in arrays)
        self._ring = Ring(spare=2)

    def batches(self, wanted: Iterator[list[Address]]) -> Generator[Batch, None, None]:
        """The wanted batches in order. BrokenError for a broken row or pixels that the teachers did not see."""
        groups = (_Group(self, group) for group in grouped(wanted, GROUP_BYTES // self.image_bytes))
        group, following = next(groups, None), None
        try:
            if group is not None:
                group.start()
            while group is not None:
                count, following = len(group.batches), next(groups, None)
                for number in range(count):
                    if number == min(1, count - 1) and following is not None:
                        following.start()
                    for place in range(number, number + 1 + VIEWS_AHEAD):
                        if place < count:
                            group.begin(place)
                        elif following is not None:
                            following.begin(place - count)
                    yield group.finish(number)
                group = following
        finally:
            for left in (group, following):
                if left is not None:
                    left.cancel()

    def has(self, teacher: CachedTeacher, item: Address) -> bool:
        """Whether the teacher has features of a row."""
        view = self.views.name(item.number)
        return self.known is None or among(self.known, teacher.member.folder, item.segment, view, item.shard)

    def memory(self, size: int) -> Tensor:
        """(size,) uint8, page-aligned, not cleared; reused once nothing refers to it."""
        if self.pin:
            return torch.empty(size, dtype=torch.uint8, pin_memory=True)
        return torch.from_numpy(self._ring.take(size))


class _Group:
    """Neighbouring batches, read into one piece of memory."""

    _views_NHWC: Tensor
    _parts: dict[str, dict[str, Tensor]]

    def __init__(self, stream: Stream, batches: Sequence[Sequence[Address]]) -> None:
        self.batches = batches
        self._stream = stream
        self._stops = np.cumsum([len(batch) for batch in batches]).tolist()
        self._to_read = pieces([item for batch in batches for item in batch])
        self._gathered: dict[str, Gathering] = {}
        self._begins: list[Callable[[], Finish]] = []
        self._views: dict[int, Finish] = {}

    def start(self) -> None:
        """Allocate memory and start reading features into it."""
        stream = self._stream
        self._views_NHWC, self._parts = _carve(stream, self._stops[-1])
        self._begins = stream.source.group(self.batches, self._views_NHWC.numpy())
        self._gathered = {
            teacher.name: Gathering(
                stream.cache.readers(stream.pool),
                self._to_read,
                partial(_committed, stream, teacher),
                teacher.rows,
                {name: values.numpy() for name, values in self._parts[teacher.name].items()},
            )
            for teacher in stream.teachers
        }

    def begin(self, number: int) -> None:
        """Start making the views of batch `number`, once, if the group has it."""
        if number < len(self._begins) and number not in self._views:
            self._views[number] = self._begins[number]()

    def finish(self, number: int) -> Batch:
        """Wait for batch `number` and check it."""
        wanted, stop = self.batches[number], self._stops[number]
        rows = slice(stop - len(wanted), stop)
        views = self._views[number]()
        if views.bad and not self._stream.skip_broken:
            place, reason = next(iter(views.bad.items()))
            raise BrokenError(f"{self._place(wanted[place])} was good in extraction, but now: {reason}")
        good_B = np.ones(len(wanted), bool)
        good_B[list(views.bad)] = False
        present_nB = self._present(wanted)
        for gathering, present_B in zip(self._gathered.values(), present_nB, strict=True):
            gathered = gathering.result()
            broken = [place for place in range(len(wanted)) if rows.start + place in gathered.broken]
            if broken and not self._stream.skip_broken:
                raise gathered.broken[rows.start + broken[0]]
            good_B[broken] = False
            good_B &= self._same_pixels(wanted, views.crcs, np.where(present_B, gathered.crcs_N[rows], views.crcs))
        parts = {teacher: {name: part[rows] for name, part in of.items()} for teacher, of in self._parts.items()}
        present_Bn = None if self._stream.known is None else torch.from_numpy(present_nB.T)
        return Batch(wanted, self._views_NHWC[rows], parts, torch.from_numpy(good_B), present_Bn)

    def cancel(self) -> None:
        """Cancel all reads that have not started."""
        self._gathered.clear()
        self._begins.clear()
        self._views.clear()

    def _present(self, wanted: Sequence[Address]) -> npt.NDArray[np.bool_]:
        """(n, B), whether a teacher has an image."""
        teachers = self._stream.teachers
        if self._stream.known is None:
            return np.ones((len(teachers), len(wanted)), bool)
        units = {item.unit: item for item in wanted}
        has = {unit: [self._stream.has(teacher, item) for teacher in teachers] for unit, item in units.items()}
        return np.array([has[item.unit] for item in wanted], bool).reshape(len(wanted), len(teachers)).T

    def _same_pixels(self, wanted: Sequence[Address], ours: Crcs, theirs: Crcs) -> npt.NDArray[np.bool_]:
        same: npt.NDArray[np.bool_] = (ours == theirs) | np.bool_(not self._stream.check_pixels)
        different = np.flatnonzero(~same)
        if len(different) and not self._stream.skip_broken:
            place = int(different[0])
            raise BrokenError(
                f"{self._place(wanted[place])}: the pixels have checksum {ours[place]:08x} here, but the teachers saw "
                f"{theirs[place]:08x}. The tar holds another image, or this machine decodes it differently; use the "
                "tars and library versions that made the cache"
            )
        return same

    def _place(self, item: Address) -> str:
        cache, views = self._stream.cache, self._stream.views
        return f"{cache.unit(item.segment, item.shard, views, item.number)}, row {item.row}"


def _committed(stream: Stream, teacher: CachedTeacher, item: Address) -> CommitRecord | None:
    if not stream.has(teacher, item):
        return None
    return committed_record(teacher, stream.cache.unit(item.segment, item.shard, stream.views, item.number))


def _carve(stream: Stream, images: int) -> tuple[Tensor, dict[str, dict[str, Tensor]]]:
    """One piece of memory as views (N, H, W, 3) and each teacher's arrays (N, ...), each from a page's beginning."""
    kinds = [("", stream.rgb), *((teacher.name, array) for teacher in stream.teachers for array in teacher.arrays)]
    sizes = [images * array.row_bytes for _, array in kinds]
    starts = list(accumulate((-(-size // PAGE) * PAGE for size in sizes), initial=0))
    memory = stream.memory(starts[-1])
    parts: dict[str, dict[str, Tensor]] = {name: {} for name, _ in kinds}
    for (name, array), start, size in zip(kinds, starts, sizes, strict=False):
        values = memory[start : start + size].view(getattr(torch, array.dtype))
        parts[name][array.name] = values.reshape(images, *array.row)
    return parts.pop("")[stream.rgb.name], parts
