"""Select the rows a run may train on: those that every teacher has under every view, by commit records alone.

On request, one teacher that has a row under a view is enough; where others lack it, they are missing.

Letters: N rows.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from unic_cache.cache import Cache, CachedTeacher
from unic_cache.config import Views
from unic_cache.errors import BrokenError, CacheError
from unic_cache.store.commit import CommitRecord, Unit
from unic_cache.store.seal import among
from unic_cache.stream.address import Address
from unic_cache.stream.sealed_rows import Asked, by_seals

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Rows:
    """The rows of a run, tar by tar: (M,) segment and number of each tar, and how many of its rows there are.

    They are all rows of a tar but those in `without`: memory grows with the tars, not with the rows.
    """

    segment: Ints
    shard: Ints
    counts: Ints
    without: Mapping[int, Ints] = field(default_factory=dict)  # tar (its place in the columns) -> rows, ascending
    left_out: int = 0  # rows left out because their features are broken
    lacking: Mapping[str, int] = field(default_factory=dict)  # teacher -> (row, view) pairs that it is missing for

    @cached_property
    def starts(self) -> Ints:
        """(M + 1,) the place of each tar's first row among all rows, and their number."""
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(self.counts, dtype=np.int64)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def address(self, place: int, number: int) -> Address:
        """The row at `place` under view `number`."""
        return self.addresses(np.array([place]), number)[0]

    def addresses(self, places: Ints, number: int) -> list[Address]:
        """The rows at `places` under view `number`."""
        tars = np.searchsorted(self.starts, places, "right") - 1
        rows = places - self.starts[tars]
        for tar in np.unique(tars).tolist() if self.without else ():
            if tar in self.without:
                rows[tars == tar] = self.of_tar(tar)[rows[tars == tar]]
        columns = self.segment[tars].tolist(), self.shard[tars].tolist(), rows.tolist()
        return [Address(*item, number) for item in zip(*columns, strict=True)]

    def of_tar(self, tar: int) -> Ints:
        """The rows of a tar, ascending."""
        lacking = self.without.get(tar, ())
        every = np.arange(int(self.counts[tar]) + len(lacking))
        return np.delete(every, lacking) if len(lacking) else every

    def by_tar(self) -> Iterator[tuple[int, int, Ints]]:
        """(segment, shard, rows) of each tar."""
        for tar, place in enumerate(zip(self.segment.tolist(), self.shard.tolist(), strict=True)):
            yield *place, self.of_tar(tar)


def usable_rows(
    cache: Cache,
    teachers: Sequence[CachedTeacher],
    views: Views,
    numbers: Sequence[int],
    shards: Sequence[str],
    skip_broken: bool = False,
    may_lack: bool = False,
    known: Collection[str] | None = None,
    before: Collection[str] = (),
) -> tuple[Rows, dict[str, int]]:
    """All good rows of the named shards, and the checksum of each commit record behind them.

    A seal stands for a thousand records: for those of a run of tars that has seals, unless the records are named in
    `before`, as an earlier run has written them down.

    BrokenError if a (teacher, view, shard) is not committed, its record is broken, or teachers saw different pixels.
    With `skip_broken` such rows are left out under all views and counted. With `may_lack`, a teacher without a record
    is missing, and only rows without any teacher are left out. Records of other names than `known` do not exist.
    """
    places = cache.shards()
    if strange := [name for name in shards if name not in places]:
        raise CacheError(f"{cache.location.url} was not made with shard {strange[0]}; extract it, or leave out its tar")
    asked = Asked(cache, teachers, views, numbers, skip_broken, may_lack, known, before or known or ())
    wanted = [places[name] for name in shards]
    sealed = by_seals(asked, wanted)
    records, tars = dict(sealed.records), []
    for place in wanted:
        if place in sealed.without:
            rows = int(cache.segments[place[0]].counts[place[1]])
            tars.append(Tar(place, rows, sealed.without[place], absent=sealed.absent.get(place, {})))
        else:
            tars.append(_tar(asked, place))
            records |= tars[-1].records
    return joined(tars), records


@dataclass(frozen=True)
class Tar:
    """What a run may use of a tar."""

    place: tuple[int, int]  # segment and number
    rows: int
    without: Ints  # the rows that cannot be used, ascending
    left_out: int = 0  # of those, good images whose features are broken
    absent: Mapping[str, int] = field(default_factory=dict)  # teacher -> views that it lacks
    records: Mapping[str, int] = field(default_factory=dict)  # commit record -> checksum

    @property
    def count(self) -> int:
        """Rows that can be used."""
        return self.rows - len(self.without)


def joined(tars: Iterable[Tar]) -> Rows:
    """The rows of all tars, in their order."""
    used, left_out = [], 0
    lacking: Counter[str] = Counter()
    for tar in tars:
        left_out += tar.left_out
        if tar.count:
            used.append(tar)
        if tar.count and tar.absent:
            lacking.update({teacher: views * tar.count for teacher, views in tar.absent.items()})
    columns = np.array([(*tar.place, tar.count) for tar in used], np.int64).reshape(-1, 3).T
    without = {at: tar.without for at, tar in enumerate(used) if len(tar.without)}
    return Rows(columns[0], columns[1], columns[2], without, left_out, lacking)


def _tar(asked: Asked, place: tuple[int, int]) -> Tar:
    """A tar, by its commit records."""
    cache, teachers = asked.cache, asked.teachers
    fine, whole = np.ones((2, int(cache.segments[place[0]].counts[place[1]])), bool)
    absent: Counter[str] = Counter()
    snapshot: dict[str, int] = {}
    for number in asked.numbers:
        unit = cache.unit(*place, asked.views, number)
        try:
            records = committed_records(teachers, unit, asked.skip_broken, asked.may_lack, asked.known)
        except BrokenError:
            if not asked.skip_broken:
                raise
            records = {}
        whole &= _alike(records, unit.rows)
        fine[[row for record in records.values() for row in record.bad]] = False
        snapshot |= {record.name: record.checksum for record in records.values()}
        absent.update(teacher.name for teacher in teachers if teacher.name not in records)
    without = np.flatnonzero(~(fine & whole))
    return Tar(place, len(fine), without, int((fine & ~whole).sum()), absent, snapshot)


def _alike(records: Mapping[str, CommitRecord], rows: int) -> npt.NDArray[np.bool_]:
    """(N,), which of a unit's rows all records saw with the same pixels; none without any record."""
    same = np.full(rows, bool(records))
    for record in records.values():
        same &= record.pixels == next(iter(records.values())).pixels
    return same


def all_rows(cache: Cache, shards: Sequence[str]) -> Rows:
    """All rows of the named shards, good or not."""
    places = [cache.shards()[name] for name in shards]
    counts = {segment.number: segment.counts for segment in cache.segments}
    return joined(Tar(place, int(counts[place[0]][place[1]]), np.zeros(0, np.int64)) for place in places)


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
        if record is not None and (known is None or among(known, record.member, unit.segment, unit.view, unit.shard)):
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
