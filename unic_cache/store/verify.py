"""Is what is kept what was committed? Every byte of a unit's objects and of its record, and what `repair` removes.

An object is read once, from its first byte to its last, in pieces of at most 4 MiB. Each byte of it has something to
agree with, so that no flip goes unseen:

| bytes | must be |
|---|---|
| rows of the tar | what the record's crc32c say; a bad image's row is zeros |
| rows behind them, up to a whole chunk | zeros |
| compressed chunks | what the record's crc32c say |
| the index at the end | its own crc32c; spans that lie side by side from byte 0 up to the index |
| the record | its own crc32c, and the text that this release writes |
"""

import errno
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
from unic_cache.store.reader import spelled

PIECE_BYTES = 2**22  # larger ones are slower: each is fresh memory to the kernel
LIMIT_METADATA_BYTES = 2**20

UNCOMMIT = "un-commit"  # remove the unit's record, then its data
REWRITE = "rewrite"  # put `content` in its place: it follows from the spec and the index
REMOVE = "remove"  # nothing was made from it, and `extract` makes it again
ELSEWHERE = "elsewhere"  # undamaged, but made for other tars than the index lists
BY_HAND = "by hand"  # all else depends on it, or nobody knows which side is right

Spans = npt.NDArray[np.int64]
ReadBytes = Callable[[int, int], memoryview]  # (offset, size) -> bytes, fewer at the end
UNREADABLE = "cannot be read"  # now: a disk or a connection may be at fault, and another time not


@dataclass(frozen=True)
class Finding:
    """Something that is not as it must be: which file, why, what `repair` does about it, and whose rows are hit."""

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
        """For `--json`; teacher, view and shard are empty where a file belongs to no unit."""
        unit = {"view": self.unit.view, "shard": self.unit.name} if self.unit else {"view": "", "shard": ""}
        place = {"file": self.file, "teacher": self.member, **unit, "array": self.array, "rows": list(self.rows)}
        return {**place, "why": self.why, "mend": self.mend}


@dataclass(frozen=True)
class UnitState:
    """What became of one unit's check."""

    member: Member
    unit: Unit
    record: CommitRecord | None  # None where it is broken
    findings: tuple[Finding, ...]

    @property
    def pixels(self) -> int | None:
        """One checksum for all pixels of the unit, to compare with other members'."""
        return None if self.record is None else crc32c(self.record.pixels.tobytes())


def check_unit(member: Member, unit: Unit) -> UnitState:
    """Read a committed unit whole and compare it with its record. OSError where the store cannot be read at all."""
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
        return UnitState(member, unit, None, (finding("vanished while it was read"),))
    found = [finding(why) for why in _contradictions(member, record)]
    if data != record.to_bytes():
        found.append(finding("means the same, but is not the text that this release writes"))
    for array in member.arrays:
        for part in range(unit.extent.objects(unit.rows)):
            found += _check_object(member.location, record, array, part)
    return UnitState(member, unit, record, tuple(found))


def check_metadata_file(member: Member, name: str, expected: bytes) -> Finding | None:
    """A zarr.json against what spec and index say it must be; its text counts where the same zarr release wrote it."""
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
            why = f"means what it must, but is not the text that zarr {zarr.__version__} writes"
    except CacheError as error:
        why = str(error).removeprefix(f"{name}: ")
    return Finding(name, why, REWRITE, member.folder, content=expected)


def uncommit(member: Member, unit: Unit) -> None:
    """Remove a unit: the record first, so that nothing vouches any more for data that is going. Safe to repeat."""
    member.location.delete(commit_name(member.folder, unit.segment, unit.view, unit.shard))
    for name in data_names(member, unit):
        member.location.delete(name)


def data_names(member: Member, unit: Unit) -> list[str]:
    """The objects that hold a unit's arrays."""
    parts = range(unit.extent.objects(unit.rows))
    where = (member.folder, unit.segment, unit.view)
    return [object_name(*where, array, unit.shard, part) for array in member.arrays for part in parts]


def _contradictions(member: Member, record: CommitRecord) -> Iterator[str]:
    """Why a record that is whole cannot be right."""
    bad = list(record.bad)
    if record.pixels[bad].any():
        yield "has pixel checksums for images that it calls bad"
    for array in member.arrays:
        if not array.tile and (record.crcs[array.name][bad] != _zeros_crc(array.row_bytes)).any():
            yield f"has {array.name} other than zeros for images that it calls bad"
        good = record.good_rows()
        if member.codec is None and not array.tile and (record.crcs[array.name][good] != record.pixels[good]).any():
            yield "vouches for kept pixels that are not those of its pixel checksums"


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
    except FileNotFoundError:
        yield finding("is missing")
        return
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        yield finding(f"{UNREADABLE} ({error.strerror})")
        return
    if len(inside := wrong[wrong < rows.stop]):
        yield finding("bytes are not the ones that were committed", tuple(inside.tolist()))
    if len(behind := wrong[wrong >= rows.stop]):
        yield finding("is not zeros behind the tar's last row", tuple(behind.tolist()))


def _open(location: Location, name: str, size: int) -> ReadBytes:
    """How to read an object of `size` bytes: at once where it is small, by ranges otherwise."""
    if size > PIECE_BYTES:
        return lambda offset, count: memoryview(location.read_range(name, offset, count))
    whole = memoryview(location.read_range(name, 0, size + 1))
    return lambda offset, count: whole[offset : offset + count]


def _spans(index: memoryview, rows: int, array: ArraySpec, end: int) -> Spans | None:
    """(offset, size) of the chunks that `rows` rows need; None where the index says that they do not fill [0, end).

    Chunks beyond are not there: zarr gives them offset and size 2**64 - 1.
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
    """The rows whose compressed chunks are not as committed, chunks in the order of their places."""
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
    """The rows that are not as committed, and those behind the last one that are not zeros."""
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
