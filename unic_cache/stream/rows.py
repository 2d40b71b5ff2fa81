"""Select the rows a run may train on: those that every teacher has under every view, by commit records alone.

Letters: N rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from unic_cache.cache import Cache, CachedTeacher
from unic_cache.config import Views
from unic_cache.errors import BrokenError, CacheError
from unic_cache.store.commit import CommitRecord, Unit
from unic_cache.stream.address import Address

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Rows:
    """The rows of a run as parallel columns: (N,) segment, shard (the tar's number in it) and row."""

    segment: Ints
    shard: Ints
    row: Ints
    left_out: int = 0  # rows left out because their features are broken

    def __len__(self) -> int:
        return len(self.row)

    def address(self, place: int, number: int) -> Address:
        """The row at `place` under view `number`."""
        return Address(int(self.segment[place]), int(self.shard[place]), int(self.row[place]), number)


def usable_rows(
    cache: Cache,
    teachers: Sequence[CachedTeacher],
    views: Views,
    numbers: Sequence[int],
    shards: Sequence[str],
    skip_broken: bool = False,
) -> tuple[Rows, dict[str, int]]:
    """All good rows of the named shards, and the checksum of each commit record behind them.

    BrokenError if a (teacher, view, shard) is not committed or its record is broken, or if teachers' records of a view
    disagree on pixels. With `skip_broken` such rows are left out under all views and counted.
    """
    places, left_out = cache.shards(), 0
    columns: list[Ints] = []
    snapshot: dict[str, int] = {}
    for name in shards:
        if name not in places:
            raise CacheError(
                f"{cache.location.url} was not made with shard {name}; extract it, or leave it out of --shards"
            )
        segment, shard = places[name]
        fine, whole = np.ones((2, cache.entry(segment, shard).rows), bool)
        for number in numbers:
            try:
                records = committed_records(teachers, cache.unit(segment, shard, views, number), skip_broken)
            except BrokenError:
                if not skip_broken:
                    raise
                whole[:] = False
                continue
            for record in records:
                fine[list(record.bad)] = False
                whole &= record.pixels == records[0].pixels
                snapshot[record.name] = record.checksum
        good = np.flatnonzero(fine & whole)
        left_out += int((fine & ~whole).sum())
        columns.append(np.stack([np.full(len(good), segment), np.full(len(good), shard), good]))
    table = np.concatenate(columns, axis=1) if columns else np.zeros((3, 0), np.int64)
    return Rows(table[0], table[1], table[2], left_out), snapshot


def all_rows(cache: Cache, shards: Sequence[str]) -> Rows:
    """All rows of the named shards, good or not."""
    places = [(*cache.shards()[name], row) for name in shards for row in range(cache.entry(*cache.shards()[name]).rows)]
    table = np.array(places, np.int64).reshape(-1, 3).T
    return Rows(table[0], table[1], table[2])


def committed_records(teachers: Sequence[CachedTeacher], unit: Unit, may_differ: bool) -> list[CommitRecord]:
    """All teachers' records of a unit. BrokenError where one is missing or, but for `may_differ`, saw other pixels."""
    records = [committed_record(teacher, unit) for teacher in teachers]
    for teacher, record in zip(teachers, records, strict=True):
        if not may_differ and not np.array_equal(record.pixels, records[0].pixels):
            raise BrokenError(
                f"{teacher.member.location.url}: {teachers[0].name} and {teacher.name} saw different pixels in {unit}; "
                "two caches were mixed; keep them apart"
            )
    return records


def committed_record(teacher: CachedTeacher, unit: Unit) -> CommitRecord:
    """The commit record. BrokenError if the unit is not committed."""
    record = teacher.record(unit)
    if record is None:
        raise BrokenError(
            f"{teacher.member.location.url}: {teacher.name} has no {unit}: it was never extracted, or extraction did "
            "not finish; run the same `unic-cache extract` again, or train on fewer views with --views"
        )
    return record
