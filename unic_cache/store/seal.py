"""Seals: one small file that stands for a thousand commit records of a member, so that a huge cache opens fast.

    TEACHER/seals/SEGMENT/VIEW/RUN.json      tars [1000 RUN, 1000 RUN + 1000) of a segment, or up to its last tar

A seal is a function of its records alone, whoever makes it, and exists only where all of them do. It holds what opening
needs of each record: the tar's rows, the bad ones, the record's checksum, and one checksum of all its pixel checksums,
by which teachers are compared. The records stay the truth: a cache without seals is read record by record, and a record
is compared with its seal when it is read. A seal counts only if it fits: it is whole, of its name, of the index's rows,
and of the member's calibration. Any other is ignored, as if it were absent.

Segments of fewer than a thousand tars have no seals. Earlier releases leave the folder alone.

Letters: S tars of a run.
"""

import json
import re
from collections.abc import Callable, Container, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self, TypeVar

import numpy as np
import numpy.typing as npt
from crc32c import crc32c

from unic_cache.errors import BrokenError
from unic_cache.files.location import Location
from unic_cache.store.commit import CommitRecord, Crcs
from unic_cache.store.layout import SEALS, commit_name

KIND = "unic-cache seal"
FORMAT = 1
RUN = 1000  # tars
LIMIT_BYTES = 2**26
SEALS_AT_ONCE = 32  # requests to a store that answers late
NUMBER = ">u4"  # of a column of numbers: eight hexadecimal digits each
SEAL_FILE = re.compile(rf"(?P<member>[^/]+)/{SEALS}/(?P<segment>\d{{6}})/(?P<view>[^/]+)/(?P<run>\d{{6}})\.json")

Ints = npt.NDArray[np.int64]
Tar = TypeVar("Tar", int, Ints)


def runs(tars: int) -> range:
    """The runs of a segment of so many tars."""
    return range(-(-tars // RUN) if tars >= RUN else 0)


def tars_of(run: int, tars: int) -> range:
    """The tars of a run, in a segment of so many."""
    return range(run * RUN, min((run + 1) * RUN, tars))


def run_of(tar: Tar) -> Tar:
    """The run that a tar is in, or those of several."""
    return tar // RUN


def seal_name(member: str, segment: int, view: str, run: int) -> str:
    """A seal's file in a cache."""
    return f"{member}/{SEALS}/{segment:06d}/{view}/{run:06d}.json"


def among(names: Container[str], member: str, segment: int, view: str, shard: int) -> bool:
    """Whether names of records and seals have the record of tar `shard`, itself or by its seal."""
    recorded = commit_name(member, segment, view, shard) in names
    return recorded or seal_name(member, segment, view, run_of(shard)) in names


@dataclass(frozen=True)
class Seal:
    """What the commit records of one run say, in columns (S,) of unsigned 32-bit numbers."""

    member: str
    segment: int
    view: str
    run: int
    rows: Crcs
    records: Crcs  # each record's checksum
    pixels: Crcs  # crc32c of each record's pixel checksums
    bad: Mapping[int, tuple[int, ...]]  # tar -> its bad rows, ascending; only tars that have some
    calibration: int | None  # that all records name

    @classmethod
    def of(cls, records: Sequence[CommitRecord]) -> Self | None:
        """The seal of a whole run's records, in order; None if they name several calibrations."""
        unit, named = records[0].unit, {record.calibration for record in records}
        if len(named) > 1:
            return None
        bad = {record.unit.shard: tuple(sorted(record.bad)) for record in records if record.bad}
        return cls(
            records[0].member,
            unit.segment,
            unit.view,
            run_of(unit.shard),
            np.array([record.unit.rows for record in records], np.uint32),
            np.array([record.checksum for record in records], np.uint32),
            np.array([pixels_crc(record) for record in records], np.uint32),
            bad,
            named.pop(),
        )

    @property
    def name(self) -> str:
        """The seal's file in the cache."""
        return seal_name(self.member, self.segment, self.view, self.run)

    @property
    def first(self) -> int:
        """The number of the run's first tar."""
        return self.run * RUN

    @cached_property
    def checksum(self) -> int:
        """crc32c of the seal's content: one number for all its records."""
        return int(crc32c(_json(self._body())))

    def to_bytes(self) -> bytes:
        """The content of the seal's file; `self` is the crc32c of the rest."""
        return _json({**self._body(), "self": self.checksum})

    def _body(self) -> dict[str, Any]:
        columns = {name: getattr(self, name).astype(NUMBER).tobytes().hex() for name in ("rows", "records", "pixels")}
        place = {"member": self.member, "segment": self.segment, "view": self.view, "run": self.run}
        bad = {str(tar): list(rows) for tar, rows in self.bad.items()}
        return {"kind": KIND, "format": FORMAT, **place, **columns, "bad": bad, "calibration": self.calibration}


def pixels_crc(record: CommitRecord) -> int:
    """One checksum of a unit's pixels: equal if two members saw the same."""
    return int(crc32c(record.pixels.astype("<u4").tobytes()))


def parse_seal(data: bytes, name: str, rows: npt.ArrayLike) -> Seal | None:
    """The seal in `data`; None unless it is whole, of this name, and of a run of tars with so many `rows` (S,)."""
    try:
        body: dict[str, Any] = json.loads(data)
        own = body.pop("self")
        before, mark, after = data.rpartition(b'"self":%d,' % own)
        if own != crc32c(before + after) or not mark or (body.pop("kind"), body.pop("format")) != (KIND, FORMAT):
            return None
        columns: dict[str, Any] = {key: _column(body.pop(key)) for key in ("rows", "records", "pixels")}
        bad = {int(tar): tuple(map(int, of)) for tar, of in body.pop("bad").items()}
        seal = Seal(bad=bad, **columns, **body)
        vars(seal)["checksum"] = own
        inside = all(
            0 <= row < seal.rows[tar - seal.first] and tar >= seal.first for tar, of in bad.items() for row in of
        )
        in_place = seal.name == name and {len(column) for column in columns.values()} == {len(seal.rows)}
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError):
        return None
    return seal if inside and in_place and np.array_equal(seal.rows, rows) else None


class Seals:
    """The seals of a member that there are when they are first asked for; each is read once. Thread-safe."""

    def __init__(self, location: Location, member: str, calibration: Callable[[], int | None]) -> None:
        self._location = location
        self._member = member
        self._calibration = calibration  # the checksum of the member's calibration
        self._names: frozenset[str] | None = None
        self._read: dict[str, Seal | None] = {}

    @property
    def names(self) -> frozenset[str]:
        """The files of all seals, from one listing."""
        if self._names is None:
            found = self._location.names(f"{self._member}/{SEALS}")
            self._names = frozenset(name for name in found if SEAL_FILE.fullmatch(name))
        return self._names

    def has(self, segment: int, view: str, run: int) -> bool:
        """Whether there is a file for a run, which may not fit."""
        return seal_name(self._member, segment, view, run) in self.names

    def read(self, segment: int, view: str, run: int, rows: Ints) -> Seal | None:
        """The seal of a run in a segment of tars with so many `rows`; None if there is none that fits."""
        name = seal_name(self._member, segment, view, run)
        if name not in self._read:
            data = self._location.read(name) if name in self.names and run in runs(len(rows)) else None
            span = tars_of(run, len(rows))
            seal = parse_seal((data or b"")[:LIMIT_BYTES], name, rows[span.start : span.stop])
            self._read[name] = None if seal is None or seal.calibration != self._calibration() else seal
        return self._read[name]

    def fitting(self, segment: int, view: str, rows: Ints) -> list[int]:
        """The runs with a seal that fits, in a segment of tars with so many `rows`."""
        there = [run for run in runs(len(rows)) if self.has(segment, view, run)]
        unread = [run for run in there if seal_name(self._member, segment, view, run) not in self._read]
        if self._location.waits and len(unread) > 1:
            with ThreadPoolExecutor(SEALS_AT_ONCE) as pool:
                list(pool.map(lambda run: self.read(segment, view, run, rows), unread))
        return [run for run in there if self.read(segment, view, run, rows) is not None]

    def check(self, record: CommitRecord) -> None:
        """BrokenError if a seal that was read stands for another record than this one."""
        unit = record.unit
        seal = self._read.get(seal_name(self._member, unit.segment, unit.view, run_of(unit.shard)))
        if seal is not None and seal.records[unit.shard - seal.first] != record.checksum:
            raise BrokenError(
                f"{record.name} has checksum {record.checksum:08x}, but {seal.name} stands for one of "
                f"{seal.records[unit.shard - seal.first]:08x}: the record was replaced since; `unic-cache verify` "
                "shows what is wrong, and `repair` removes a seal that does not fit"
            )


def _column(text: str) -> Crcs:
    return np.frombuffer(bytes.fromhex(text), NUMBER).astype(np.uint32)


def _json(body: dict[str, Any]) -> bytes:
    return json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
