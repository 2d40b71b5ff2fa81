"""Views and store rejoined: the batches that a student trains on, in an order that is a function of integers.

Training sees one endless sequence of samples: the rows in the order of epoch 0, then of epoch 1, and so on. Batch k of
a world batch of B images is samples [kB, (k + 1)B) of it; process r of R takes the r-th of R equal parts. So nothing
depends on the number of threads, processes or machines, and a run resumes at any step from the step's number alone.
Epoch e shows the cached views e mod V.

    an epoch's order:  shards shuffled -> groups of 8 open at once -> their chunks shuffled -> rows of 64 chunks mixed

Letters: B images, H and W pixels, V views, R processes, N rows.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from unic_cache.cache import Cache, CachedTeacher
from unic_cache.config import Views
from unic_cache.draws import Purpose, permutation, words
from unic_cache.errors import BrokenError
from unic_cache.sources import Address, PixelSource, ahead, by_unit
from unic_cache.store.layout import CHUNK_ROWS
from unic_cache.usable import Ints, Rows, committed_record

OPEN_SHARDS = 8
MIXED_CHUNKS = 64
BATCHES_AHEAD = 3


def epoch_order(rows: Rows, seed: int, epoch: int) -> Ints:
    """A permutation of range(N) whose neighbours lie in few chunks of few shards, yet well mixed."""
    shard_ids, shard_of_row = np.unique(rows.segment << 32 | rows.shard, return_inverse=True)
    chunk_ids, chunk_of_row = np.unique(shard_of_row << 32 | rows.row // CHUNK_ROWS, return_inverse=True)
    raw = words(Purpose.ORDER, seed, epoch, 0, len(shard_ids) + len(chunk_ids) + len(rows))
    shard_rank = np.argsort(permutation(raw[: len(shard_ids)]))
    group_of_chunk = shard_rank[chunk_ids >> 32] // OPEN_SHARDS
    chunk_words = raw[len(shard_ids) : len(shard_ids) + len(chunk_ids)]
    chunk_rank = np.argsort(np.lexsort((chunk_words, group_of_chunk)))
    row_words = raw[len(shard_ids) + len(chunk_ids) :]
    return np.lexsort((row_words, chunk_rank[chunk_of_row] // MIXED_CHUNKS)).astype(np.int64)


class Order:
    """The endless sequence of samples: which row under which view is sample k."""

    def __init__(self, rows: Rows, numbers: Sequence[int], seed: int) -> None:
        self.rows = rows
        self.numbers = numbers
        self.seed = seed
        self._epochs: dict[int, Ints] = {}

    def samples(self, start: int, stop: int) -> list[Address]:
        """Samples [start, stop)."""
        return [self._sample(place) for place in range(start, stop)]

    def _sample(self, place: int) -> Address:
        epoch, position = divmod(place, len(self.rows))
        if epoch not in self._epochs:
            self._epochs = {kept: order for kept, order in self._epochs.items() if kept == epoch - 1}
            self._epochs[epoch] = epoch_order(self.rows, self.seed, epoch)
        number = self.numbers[epoch % len(self.numbers)]
        return self.rows.address(int(self._epochs[epoch][position]), number)


@dataclass(frozen=True)
class Batch:
    """Views (B, H, W, 3) uint8, and each teacher's kept arrays by name, (B, ...), as they are stored.

    `good_B`, bool on the CPU, is False where something is broken: such an image must not count.
    """

    views_BHWC: Tensor
    parts: Mapping[str, Mapping[str, Tensor]]
    good_B: Tensor

    @property
    def broken(self) -> int:
        """How many of the images must not count."""
        return len(self.good_B) - int(self.good_B.sum())


class Stream:
    """Batches made ahead of need in the pool's threads, each checked against the commit records.

    A broken row is an error; with `skip_broken` it keeps its place in the batch, as zeros that `good_B` disowns, so
    that all others stay what they would be without it.
    """

    def __init__(
        self,
        cache: Cache,
        teachers: Sequence[CachedTeacher],
        views: Views,
        source: PixelSource,
        pool: ThreadPoolExecutor,
        check_pixels: bool = True,
        pin: bool = False,
        skip_broken: bool = False,
    ) -> None:
        self.cache = cache
        self.teachers = teachers
        self.views = views
        self.source = source
        self.check_pixels = check_pixels
        self.pin = pin
        self.skip_broken = skip_broken
        self._pool = pool

    def batches(self, wanted: Iterator[list[Address]]) -> Iterator[Batch]:
        """The batches asked for, in order. BrokenError on a broken row or on pixels that the teachers did not see."""
        return ahead(wanted, self._start, BATCHES_AHEAD)

    def _start(self, wanted: list[Address]) -> Callable[[], Batch]:
        groups = by_unit(wanted)
        views = self.source.start(wanted, len(wanted))
        out = {teacher.name: self._empty(teacher, len(wanted)) for teacher in self.teachers}
        tasks: list[Future[tuple[npt.NDArray[np.uint32], npt.NDArray[np.bool_]]]] = [
            self._pool.submit(self._read, teacher, [wanted[place] for place in places], places, out[teacher.name])
            for teacher in self.teachers
            for places in groups
        ]

        def finish() -> Batch:
            batch = views()
            read = [task.result() for task in tasks]
            if batch.bad and not self.skip_broken:
                place, reason = next(iter(batch.bad.items()))
                raise BrokenError(f"{self._place(wanted[place])} was good in extraction, but now: {reason}")
            good_B = np.ones(len(wanted), bool)
            good_B[list(batch.bad)] = False
            for places, (crcs, good) in zip(groups * len(self.teachers), read, strict=True):
                good_B[places] &= good & self._same_pixels(wanted, places, batch.crcs[places], crcs)
            return Batch(torch.from_numpy(batch.views_BHWC), out, torch.from_numpy(good_B))

        return finish

    def _read(
        self, teacher: CachedTeacher, wanted: Sequence[Address], places: Sequence[int], out: Mapping[str, Tensor]
    ) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.bool_]]:
        """Fill one unit's places of a batch; the checksums of the pixels that the teacher saw, and which are good."""
        first = wanted[0]
        rows = [item.row for item in wanted]
        broken: set[int] | None = set() if self.skip_broken else None
        try:
            record = committed_record(self.cache, teacher, self.views.name(first.number), first.segment, first.shard)
        except BrokenError:
            if broken is None:
                raise
            for values in out.values():
                values[torch.tensor(places)] = 0
            return np.zeros(len(rows), np.uint32), np.zeros(len(rows), bool)
        for name, found in teacher.parts(record, rows, broken).items():
            out[name][torch.tensor(places)] = torch.from_numpy(found)
        return record.pixels[rows], np.array([row not in (broken or ()) for row in rows])

    def _empty(self, teacher: CachedTeacher, count: int) -> dict[str, Tensor]:
        return {
            array.name: torch.empty((count, *array.row), dtype=getattr(torch, array.dtype), pin_memory=self.pin)
            for array in teacher.member.arrays
        }

    def _same_pixels(
        self,
        wanted: Sequence[Address],
        places: Sequence[int],
        ours: npt.NDArray[np.uint32],
        theirs: npt.NDArray[np.uint32],
    ) -> npt.NDArray[np.bool_]:
        same: npt.NDArray[np.bool_] = (ours == theirs) | np.bool_(not self.check_pixels)
        different = np.flatnonzero(~same)
        if len(different) and not self.skip_broken:
            item = wanted[places[int(different[0])]]
            raise BrokenError(
                f"{self._place(item)}: the pixels have checksum {ours[different[0]]:08x} here, but the teachers saw "
                f"{theirs[different[0]]:08x}. The image in the tar is another one, or it decodes differently; use the "
                "tars and the library versions that the cache was made with"
            )
        return same

    def _place(self, item: Address) -> str:
        return f"{self.cache.unit(item.segment, item.shard, self.views.name(item.number))}, row {item.row}"
