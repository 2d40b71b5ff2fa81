"""Check that every stored byte of a unit is as committed, and un-commit units.

An object is read once, front to back, in pieces of at most 4 MiB. Every byte is checked, so no flip goes unseen:

| bytes | checked against |
|---|---|
| the tar's rows | crc32c in the record; a bad image's row is zeros |
| padding up to a whole chunk | zeros |
| compressed chunks | crc32c in the record |
| the index at the end | its own crc32c; its spans are contiguous from byte 0 to the index |
| the record | its own crc32c, and the text that this release writes |
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache as memoize
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from crc32c import crc32c

from unic_cache.errors import BrokenError, CacheError
from unic_cache.files.location import Location
from unic_cache.store.commit import CommitRecord, Unit, is_whole
from unic_cache.store.layout import (
    ABSENT,
    CHUNK_ROWS,
    ArraySpec,
    check_metadata,
    commit_name,
    index_bytes,
    object_name,
)
from unic_cache.store.member import Member, read_within
from unic_cache.store.open_objects import trouble
from unic_cache.store.reader import spelled
from unic_cache.store.seal import pixels_crc, run_of, runs, seal_name

PIECE_BYTES = 2**22  # larger pieces are slower: each is fresh memory to the kernel
LIMIT_METADATA_BYTES = 2**20

# How to mend a finding:
UNCOMMIT = "un-commit"  # remove the unit's record, then its data
REWRITE = "rewrite"  # replace it by `content`, which follows from the spec and the index
REMOVE = "remove"  # nothing depends on it, and `extract` makes it again
ELSEWHERE = "elsewhere"  # undamaged, but made for other tars than the index lists
BY_HAND = "by hand"  # everything depends on it, or the right side is unknown

Spans = npt.NDArray[np.int64]  # (chunks, 2) offset and size
ReadBytes = Callable[[int, int], memoryview]  # (offset, size) -> bytes, fewer at the end
UNREADABLE = "cannot be read"  # perhaps only now: the disk or connection may be at fault


@dataclass(frozen=True)
class Finding:
    """Something wrong: which file, why, how to mend it, and the affected rows."""

    file: str
    why: str
    mend: str
    member: str = ""
    unit: Unit | None = None
    array: str = ""
    rows: tuple[int, ...] = ()
    content: bytes = b""

    def __str__(self) -> str:
        array = f", {self.array}" if self.array else ""
        rows = f", rows {spelled(self.rows)}" if self.rows else ""
        place = f"{self.member}, {self.unit}{array}{rows}: " if self.unit else ""
        return f"{place}{self.file}: {self.why}"

    def to_json(self) -> dict[str, Any]:
        """For `--json`; teacher, view and shard are empty for a file outside of units."""
        unit = {"view": self.unit.view, "shard": self.unit.name} if self.unit else {"view": "", "shard": ""}
        place = {"file": self.file, "teacher": self.member, **unit, "array": self.array, "rows": list(self.rows)}
        return {**place, "why": self.why, "mend": self.mend}


@dataclass(frozen=True)
class UnitState:
    """The result of checking one unit."""

    member: Member
    unit: Unit
    record: CommitRecord | None  # None if it is broken
    findings: tuple[Finding, ...]

    @property
    def pixels(self) -> int | None:
        """One checksum of the unit's pixels, to compare with other members'."""
        return None if self.record is None else pixels_crc(self.record)


def check_unit(member: Member, unit: Unit) -> UnitState:
    """Read a committed unit and compare it with its record. OSError if the store cannot be read at all."""
    name = commit_name(member.folder, unit.segment, unit.view, unit.shard)

    def finding(why: str) -> Finding:
        return Finding(name, why, UNCOMMIT, member.folder, unit)

    data = None
    try:
        data = member.record_bytes(unit)
        record = None if data is None else member.parse(data, unit)
    except BrokenError as error:
        why = str(error).removeprefix(f"{name}: ")
        if data is not None and is_whole(data, member.folder, unit):
            why = why.removesuffix("; run `unic-cache repair`")
            return UnitState(member, unit, None, (Finding(name, why, ELSEWHERE, member.folder, unit),))
        return UnitState(member, unit, None, (finding(why),))
    if record is None:
        return UnitState(member, unit, None, (finding("vanished while being read"),))
    found = [finding(why) for why in _contradictions(member, record)]
    if data != record.to_bytes():
        found.append(finding("has the same content, but not the text that this release writes"))
    for array in member.arrays:
        for part in range(unit.extent.objects(unit.rows)):
            found += _check_object(member.location, record, array, part)
    return UnitState(member, unit, record, tuple(found))


def check_metadata_file(member: Member, name: str, expected: bytes) -> Finding | None:
    """Compare a zarr.json with what spec and index imply: byte for byte if the same zarr release wrote it."""
    versions = member.spec.get("versions")
    same_release = isinstance(versions, dict) and versions.get("zarr") == zarr.__version__
    try:
        found = read_within(member.location, name, LIMIT_METADATA_BYTES)
        if found == expected:
            return None
        if found is None:
            why = "is missing"
        else:
            check_metadata(name, found, expected)
            if not same_release:
                return None
            why = f"has the right content, but not the text that zarr {zarr.__version__} writes"
    except CacheError as error:
        why = str(error).removeprefix(f"{name}: ")
    return Finding(name, why, REWRITE, member.folder, content=expected)


def uncommit(member: Member, unit: Unit) -> None:
    """Remove a unit, its seal and record first: none of them covers data that is being deleted. Safe to repeat."""
    if runs(unit.extent.shards):
        member.location.delete(seal_name(member.folder, unit.segment, unit.view, run_of(unit.shard)))
    member.location.delete(commit_name(member.folder, unit.segment, unit.view, unit.shard))
    for name in data_names(member, unit):
        member.location.delete(name)


def data_names(member: Member, unit: Unit) -> list[str]:
    """The names of the objects that hold a unit's arrays."""
    parts = range(unit.extent.objects(unit.rows))
    where = (member.folder, unit.segment, unit.view)
    return [object_name(*where, array, unit.shard, part) for array in member.arrays for part in parts]


def _contradictions(member: Member, record: CommitRecord) -> Iterator[str]:
    """Why an undamaged record cannot be right."""
    bad = list(record.bad)
    if record.pixels[bad].any():
        yield "has pixel checksums for bad images"
    for array in member.arrays:
        if not array.tile and (record.crcs[array.name][bad] != _zeros_crc(array.row_bytes)).any():
            yield f"has {array.name} other than zeros for bad images"
        good = record.good_rows()
        if member.codec is None and not array.tile and (record.crcs[array.name][good] != record.pixels[good]).any():
            yield "has checksums of kept pixels that differ from its pixel checksums"


def _check_object(location: Location, record: CommitRecord, array: ArraySpec, part: int) -> Iterator[Finding]:
    unit = record.unit
    name = object_name(record.member, unit.segment, unit.view, array, unit.shard, part)
    first = part * unit.extent.object_rows
    rows = range(first, min(first + unit.extent.object_rows, unit.rows))

    def finding(why: str, hit: tuple[int, ...] = tuple(rows)) -> Finding:
        return Finding(name, why, UNCOMMIT, record.member, unit, array.name, hit)

    try:
        read = _open(location, name, record.sizes[name])
        index = read(record.sizes[name] - index_bytes(unit.extent), index_bytes(unit.extent) + 1)
        if len(index) != index_bytes(unit.extent):
            yield finding(f"has {location.size(name)} bytes instead of {record.sizes[name]}")
            return
        chunks = _spans(index, len(rows), array, record.sizes[name] - index_bytes(unit.extent))
        if chunks is None:
            yield finding("its index is broken")
            return
        wrong = (_wrong_chunks if array.tile else _wrong_rows)(read, chunks, record, array, rows)
    except OSError as error:
        yield finding(trouble(name, error).removeprefix(f"{name} "))
        return
    if len(inside := wrong[wrong < rows.stop]):
        yield finding("bytes are not as committed", tuple(inside.tolist()))
    if len(behind := wrong[wrong >= rows.stop]):
        yield finding("is not zero beyond the tar's last row", tuple(behind.tolist()))


def _open(location: Location, name: str, size: int) -> ReadBytes:
    """A function that reads an object of `size` bytes: from memory if it is small, by ranges otherwise."""
    if size > PIECE_BYTES:
        return lambda offset, count: memoryview(location.read_range(name, offset, count))
    whole = memoryview(location.read_range(name, 0, size + 1))
    return lambda offset, count: whole[offset : offset + count]


def _spans(index: memoryview, rows: int, array: ArraySpec, end: int) -> Spans | None:
    """(offset, size) of the chunks of `rows` rows; None if the index is damaged or they do not fill [0, end).

    Chunks beyond are absent: zarr gives them offset and size 2**64 - 1.
    """
    if int.from_bytes(index[-4:], "little") != crc32c(index[:-4]):
        return None
    spans = np.frombuffer(index[:-4], "<u8").reshape(-1, 2)
    used = -(-rows // CHUNK_ROWS)
    if (spans[used:] != ABSENT).any() or (spans[:used] > end).any():
        return None
    found = spans[:used].astype(np.int64)
    offsets, sizes = found[np.argsort(found[:, 0], kind="stable")].T
    side_by_side = (offsets == np.cumsum(sizes) - sizes).all() and sizes.sum() == end
    sizes_fit = array.tile or (sizes == CHUNK_ROWS * array.row_bytes).all()
    return found if side_by_side and sizes_fit else None


def _wrong_chunks(read: ReadBytes, spans: Spans, record: CommitRecord, array: ArraySpec, rows: range) -> Spans:
    """The rows whose compressed chunks are not as committed; reads in file order."""
    first, crcs = rows.start // CHUNK_ROWS, record.crcs[array.name]
    wrong = [
        chunk
        for chunk in np.argsort(spans[:, 0]).tolist()
        if crc32c(read(int(spans[chunk, 0]), int(spans[chunk, 1]))) != crcs[first + chunk]
    ]
    hit = [np.arange((first + chunk) * CHUNK_ROWS, (first + chunk + 1) * CHUNK_ROWS) for chunk in sorted(wrong)]
    found = np.concatenate([np.zeros(0, np.int64), *hit])
    return found[found < rows.stop]


def _wrong_rows(read: ReadBytes, spans: Spans, record: CommitRecord, array: ArraySpec, rows: range) -> Spans:
    """The rows that are not as committed, and padding rows that are not zero."""
    chunks = np.argsort(spans[:, 0])
    expected = np.full(len(chunks) * CHUNK_ROWS, _zeros_crc(array.row_bytes), np.uint32)
    expected[: len(rows)] = record.crcs[array.name][rows.start : rows.stop]
    found: npt.NDArray[np.uint32] = np.zeros(len(expected), np.uint32)
    place_of = (chunks[:, None] * CHUNK_ROWS + np.arange(CHUNK_ROWS)).ravel()
    at_once = max(PIECE_BYTES // array.row_bytes, 1)
    for start in range(0, len(place_of), at_once):
        places = place_of[start : start + at_once]
        piece = read(start * array.row_bytes, len(places) * array.row_bytes)
        size = array.row_bytes
        found[places] = [crc32c(piece[at * size : (at + 1) * size]) for at in range(len(places))]
    return np.flatnonzero(found != expected) + rows.start


@memoize
def _zeros_crc(size: int) -> int:
    crc = 0
    for start in range(0, size, PIECE_BYTES):
        crc = crc32c(bytes(min(PIECE_BYTES, size - start)), crc)
    return crc
