"""Select the rows a run may train on: those that every teacher has under every view, by commit records alone.

On request, one teacher that has a row under a view is enough; where others lack it, they are missing.

Letters: N rows.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

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
    lacking: Mapping[str, int] = field(default_factory=dict)  # teacher -> (row, view) pairs that it is missing for

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
    may_lack: bool = False,
    known: Collection[str] | None = None,
) -> tuple[Rows, dict[str, int]]:
    """All good rows of the named shards, and the checksum of each commit record behind them.

    BrokenError if a (teacher, view, shard) is not committed, its record is broken, or teachers saw different pixels.
    With `skip_broken` such rows are left out under all views and counted. With `may_lack`, a teacher without a record
    is missing, and only rows without any teacher are left out. Records of other names than `known` do not exist.
    """
    places, left_out = cache.shards(), 0
    columns: list[Ints] = []
    snapshot: dict[str, int] = {}
    lacking: Counter[str] = Counter()
    for name in shards:
        if name not in places:
            raise CacheError(f"{cache.location.url} was not made with shard {name}; extract it, or leave out its tar")
        segment, shard = places[name]
        fine, whole = np.ones((2, cache.entry(segment, shard).rows), bool)
        absent: Counter[str] = Counter()
        for number in numbers:
            unit = cache.unit(segment, shard, views, number)
            try:
                records = committed_records(teachers, unit, skip_broken, may_lack, known)
            except BrokenError:
                if not skip_broken:
                    raise
                records = {}
            whole &= _alike(records, unit.rows)
            fine[[row for record in records.values() for row in record.bad]] = False
            snapshot |= {record.name: record.checksum for record in records.values()}
            absent.update(teacher.name for teacher in teachers if teacher.name not in records)
        good = np.flatnonzero(fine & whole)
        left_out += int((fine & ~whole).sum())
        lacking.update({teacher: count * len(good) for teacher, count in absent.items() if len(good)})
        columns.append(np.stack([np.full(len(good), segment), np.full(len(good), shard), good]))
    table = np.concatenate(columns, axis=1) if columns else np.zeros((3, 0), np.int64)
    return Rows(table[0], table[1], table[2], left_out, lacking), snapshot


def _alike(records: Mapping[str, CommitRecord], rows: int) -> npt.NDArray[np.bool_]:
    """(N,), which of a unit's rows all records saw with the same pixels; none without any record."""
    same = np.full(rows, bool(records))
    for record in records.values():
        same &= record.pixels == next(iter(records.values())).pixels
    return same


def all_rows(cache: Cache, shards: Sequence[str]) -> Rows:
    """All rows of the named shards, good or not."""
    places = [(*cache.shards()[name], row) for name in shards for row in range(cache.entry(*cache.shards()[name]).rows)]
    table = np.array(places, np.int64).reshape(-1, 3).T
    return Rows(table[0], table[1], table[2])


def committed_records(
    teachers: Sequence[CachedTeacher],
    unit: Unit,
    may_differ: bool,
    may_lack: bool = False,
    known: Collection[str] | None = None,
) -> dict[str, CommitRecord]:
    """{teacher: record} of a unit, without those that are missing if teachers `may_lack` them.

    BrokenError for a missing one, or where teachers saw other pixels, unless records `may_differ`. Records whose names
    are not `known` count as missing.
    """
    records: dict[str, CommitRecord] = {}
    for teacher in teachers:
        record = teacher.record(unit)
        if record is not None and (known is None or record.name in known):
            records[teacher.name] = record
        elif not may_lack:
            raise not_committed(teacher, unit)
    first = next(iter(records), "")
    for name, record in records.items():
        if not may_differ and not np.array_equal(record.pixels, records[first].pixels):
            (teacher,) = [teacher for teacher in teachers if teacher.name == name]
            raise BrokenError(
                f"{teacher.member.location.url}: {first} and {name} saw different pixels in {unit}; two caches were "
                "mixed; keep them apart"
            )
    return records


def committed_record(teacher: CachedTeacher, unit: Unit) -> CommitRecord:
    """The commit record. BrokenError if the unit is not committed."""
    record = teacher.record(unit)
    if record is None:
        raise not_committed(teacher, unit)
    return record


def not_committed(teacher: CachedTeacher, unit: Unit) -> BrokenError:
    """The error for a unit without a commit record."""
    return BrokenError(
        f"{teacher.member.location.url}: {teacher.name} has no {unit}: it was never extracted, or extraction did not "
        "finish; run the same `unic-cache extract` again, or read fewer views; `distill --allow-missing` trains on "
        "what there is"
    )
