"""Which rows of a huge cache are usable, by its seals: no commit record is read of a run of tars that is sealed.

A run of 1,000 tars is taken member by member and view by view, in columns over its tars. Columns come from a seal or,
where there is none, from the records. Tars with something to report (a record that is missing or broken, other pixels)
are left to `rows`, which looks at their records one by one.

Letters: S tars of a run.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from unic_cache.cache import Cache, CachedTeacher
from unic_cache.config import Views
from unic_cache.errors import BrokenError
from unic_cache.store.commit import CommitRecord, Crcs
from unic_cache.store.layout import commit_name
from unic_cache.store.seal import SEALS_AT_ONCE, Ints, Seal, among, pixels_crc, run_of, runs, seal_name, tars_of
from unic_cache.stream.sealing import seal_of

Flags = npt.NDArray[np.bool_]
Place = tuple[int, int]  # segment and number of a tar


@dataclass(frozen=True)
class Asked:
    """What rows are asked for."""

    cache: Cache
    teachers: Sequence[CachedTeacher]
    views: Views
    numbers: Sequence[int]
    skip_broken: bool = False
    may_lack: bool = False
    known: Collection[str] | None = None  # names of the only records that exist, themselves or by their seals
    before: Collection[str] = ()  # names that a training run wrote down: each run of tars is named as it was then
    _there: dict[tuple[str, int, str], Collection[int]] = field(default_factory=dict)

    def committed(self, teacher: CachedTeacher, segment: int, view: str) -> Collection[int]:
        """The tars of which a teacher has a record under a view, listed once."""
        place = teacher.name, segment, view
        if place not in self._there:
            self._there[place] = teacher.member.committed(segment, view, self.cache.segments[segment].counts)
        return self._there[place]


@dataclass
class Sealed:
    """What seals tell: rows without those that are bad, for the tars that need no closer look."""

    without: dict[Place, Ints] = field(default_factory=dict)  # rows that cannot be used, ascending
    absent: dict[Place, Counter[str]] = field(default_factory=dict)  # teacher -> views that it lacks
    records: dict[str, int] = field(default_factory=dict)  # seal or commit record -> checksum


@dataclass(frozen=True)
class Column:
    """One teacher's records of a run of tars under one view."""

    present: Flags  # (S,) whether there is a record
    broken: Flags  # (S,) whether it cannot be read
    pixels: Crcs  # (S,) one checksum of a record's pixels
    bad: Mapping[int, Sequence[int]]  # tar -> bad rows
    records: Mapping[str, int]  # to write down: the seal, or each record -> checksum


def by_seals(asked: Asked, places: Sequence[Place]) -> Sealed:
    """The tars at `places` whose rows are known by seals."""
    cache, found = asked.cache, Sealed()
    by_run: dict[Place, list[int]] = {}
    large = {segment.number for segment in cache.segments if runs(len(segment.names))}
    for segment, tar in places:
        if segment in large:
            by_run.setdefault((segment, run_of(tar)), []).append(tar)
    _read_ahead(asked, by_run)
    for (segment, run), tars in by_run.items():
        if any(
            teacher.member.seals.has(segment, view, run)
            or seal_name(teacher.member.folder, segment, view, run) in asked.before
            for teacher in asked.teachers
            for view in map(asked.views.name, asked.numbers)
        ):
            _take_run(asked, segment, run, np.array(tars), found)
    return found


def _read_ahead(asked: Asked, by_run: Collection[Place]) -> None:
    """Read the seals of a store that answers late in many threads."""
    if not asked.cache.location.waits:
        return
    wanted = [
        (teacher, segment, asked.views.name(number), run)
        for segment, run in by_run
        for number in asked.numbers
        for teacher in asked.teachers
    ]
    with ThreadPoolExecutor(SEALS_AT_ONCE) as pool:
        list(pool.map(lambda item: _seal(asked.cache, *item), wanted))


def _take_run(asked: Asked, segment: int, run: int, tars: Ints, found: Sealed) -> None:
    """Add the tars of one run to what was found, but those that need a closer look."""
    first = tars_of(run, asked.cache.extent(segment).shards).start
    own = tars - first
    plain = np.ones(len(tars), bool)
    bad: dict[int, set[int]] = {}
    for number in asked.numbers:
        columns = {teacher.name: _column(asked, teacher, segment, run, tars, number) for teacher in asked.teachers}
        present_nS = np.array([column.present[own] for column in columns.values()])
        pixels_nS = np.array([column.pixels[own] for column in columns.values()], np.int64)
        most, least = np.where(present_nS, pixels_nS, -1).max(0), np.where(present_nS, pixels_nS, 2**32).min(0)
        plain &= (most == least) & (present_nS.all(0) | asked.may_lack)
        for name, column in columns.items():
            plain &= ~column.broken[own]
            found.records |= column.records
            for tar in tars[~column.present[own]].tolist():
                found.absent.setdefault((segment, tar), Counter())[name] += 1
            for tar, rows in column.bad.items():
                if column.present[tar - first]:
                    bad.setdefault(tar, set()).update(rows)
    for tar in tars[plain].tolist():
        found.without[segment, tar] = np.array(sorted(bad.get(tar, ())), np.int64)


def _column(asked: Asked, teacher: CachedTeacher, segment: int, run: int, tars: Ints, number: int) -> Column:
    """One teacher's column under one view, by the seal if there is one."""
    member, view, known = teacher.member, asked.views.name(number), asked.known
    seal = _seal(asked.cache, teacher, segment, view, run)
    if seal is None:
        return _from_records(asked, teacher, segment, run, tars, number)
    span = tars_of(run, asked.cache.extent(segment).shards)
    present = np.ones(len(span), bool)
    if known is not None and seal.name not in known:
        present[:] = [among(known, member.folder, segment, view, tar) for tar in span]
    records = {seal.name: seal.checksum}
    if not present.all() or (asked.before and seal.name not in asked.before):
        names = {commit_name(member.folder, segment, view, tar): tar - span.start for tar in tars.tolist()}
        if not present.all() or any(name in asked.before for name in names):
            records = {name: int(seal.records[at]) for name, at in names.items() if present[at]}
    return Column(present, np.zeros(len(present), bool), seal.pixels, seal.bad, records)


def _from_records(asked: Asked, teacher: CachedTeacher, segment: int, run: int, tars: Ints, number: int) -> Column:
    """One teacher's column under one view, by the records of the tars that are asked for."""
    cache, member, view = asked.cache, teacher.member, asked.views.name(number)
    span = tars_of(run, cache.extent(segment).shards)
    present, broken = np.zeros((2, len(span)), bool)
    pixels = np.zeros(len(span), np.uint32)
    bad: dict[int, Sequence[int]] = {}
    records: dict[str, int] = {}
    there = asked.committed(teacher, segment, view)
    for tar in tars.tolist():
        if tar not in there or not (asked.known is None or among(asked.known, member.folder, segment, view, tar)):
            continue
        try:
            record = teacher.record(cache.unit(segment, tar, asked.views, number))
        except BrokenError:
            broken[tar - span.start] = True
            continue
        if record is not None:
            present[tar - span.start], pixels[tar - span.start] = True, pixels_crc(record)
            bad |= {tar: list(record.bad)} if record.bad else {}
            records[record.name] = record.checksum
    name = seal_name(member.folder, segment, view, run)
    if name in asked.before:  # the seal is gone since
        seal = seal_of(cache, member, segment, view, run)
        records = {} if seal is None else {name: seal.checksum}
    return Column(present, broken, pixels, bad, records)


def record_checksums(
    cache: Cache, teacher: CachedTeacher, segment: int, view: str, tars: Ints, records: Mapping[str, int]
) -> Crcs:
    """(S,) the checksums of a teacher's records of some tars: from its seals, or else from those written down."""
    runs_S, found = run_of(tars), np.zeros(len(tars), np.uint32)
    for run in np.unique(runs_S).tolist():
        own, seal = runs_S == run, _seal(cache, teacher, segment, view, run)
        if seal is None:
            member = teacher.member.folder
            found[own] = [records[commit_name(member, segment, view, tar)] for tar in tars[own].tolist()]
        else:
            found[own] = seal.records[tars[own] - seal.first]
    return found


def wrote_down(records: Mapping[str, int], cache: Cache, teacher: CachedTeacher, record: CommitRecord) -> bool:
    """Whether `records`, which a training run wrote down, have a commit record as it is, itself or by its seal."""
    unit = record.unit
    run = run_of(unit.shard)
    name = seal_name(record.member, unit.segment, unit.view, run)
    if record.name in records or name not in records:
        return records.get(record.name) == record.checksum
    seal = _seal(cache, teacher, unit.segment, unit.view, run)
    seal = seal or seal_of(cache, teacher.member, unit.segment, unit.view, run)
    return (
        seal is not None and seal.checksum == records[name] and seal.records[unit.shard - seal.first] == record.checksum
    )


def learned_from(
    records: Mapping[str, int],
    cache: Cache,
    teacher: CachedTeacher,
    views: Views,
    numbers: Sequence[int],
    tars: Sequence[str],
) -> bool:
    """Whether `records`, which a training run wrote down, have one of the teacher's records as the cache has it."""
    places = cache.shards()
    units = (cache.unit(*places[tar], views, number) for tar in tars if tar in places for number in numbers)
    return any(wrote_down(records, cache, teacher, record) for record in filter(None, map(teacher.record, units)))


def _seal(cache: Cache, teacher: CachedTeacher, segment: int, view: str, run: int) -> Seal | None:
    return teacher.member.seals.read(segment, view, run, cache.segments[segment].counts)
