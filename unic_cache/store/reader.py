"""Reading rows of a member: our own range reads over plain Zarr shards, every row checked against its commit record.

A Zarr shard ends with its index: for each inner chunk an (offset, size) pair of little-endian uint64, then the crc32c
of the pairs. Codecs without a byte codec keep a chunk as its rows in order, so one row is one range.
"""

import errno
import threading
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from crc32c import crc32c

from unic_cache.errors import BrokenError
from unic_cache.store.commit import CommitRecord
from unic_cache.store.layout import CHUNK_ROWS, ArraySpec, index_bytes, object_name
from unic_cache.store.member import Member

Rows = npt.NDArray[np.generic]
Spans = npt.NDArray[np.uint64]
INDEXES_KEPT = 512


class RowReader:
    """Rows of one member, by commit record. Thread-safe; keeps the indexes of the shards that it saw last."""

    def __init__(self, member: Member) -> None:
        self.member = member
        self._indexes: OrderedDict[str, Spans] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, record: CommitRecord, rows: Sequence[int], broken: set[int] | None = None) -> dict[str, Rows]:
        """Every array's rows in the order asked: array name -> (len(rows), ...).

        BrokenError where a row's bytes are not those that were committed, naming member, view, shard and rows; or,
        where a set `broken` is given, such rows are added to it and are zeros.
        """
        out = {a.name: np.empty((len(rows), *a.row), np.dtype(a.dtype)) for a in self.member.arrays}
        for array in self.member.arrays:
            self.read_into(record, array, rows, out[array.name], broken)
        return out

    def read_into(
        self, record: CommitRecord, array: ArraySpec, rows: Sequence[int], out: Rows, broken: set[int] | None = None
    ) -> None:
        """One array's rows into `out` (len(rows), ...), which must be contiguous; neighbouring rows share a request."""
        flat = out.reshape(len(rows), -1).view(np.uint8)
        lost: set[int] = set()
        start = 0
        while start < len(rows):
            stop = start + 1
            while stop < len(rows) and rows[stop] == rows[stop - 1] + 1 and rows[stop] % CHUNK_ROWS:
                stop += 1
            try:
                self._read_run(record, array, rows[start:stop], flat[start:stop])
            except BrokenError:
                if broken is None:
                    raise
                lost.update(rows[start:stop])
            start = stop
        crcs = record.crcs[array.name]
        wrong = [
            row for row, data in zip(rows, flat, strict=True) if row not in lost and crc32c(data.data) != crcs[row]
        ]
        if wrong and broken is None:
            raise self._broken(
                record, array, list(dict.fromkeys(wrong)), "their bytes are not the ones that were committed"
            )
        if broken is not None:
            broken |= lost.union(wrong)
            flat[[place for place, row in enumerate(rows) if row in broken]] = 0

    def _read_run(self, record: CommitRecord, array: ArraySpec, run: Sequence[int], out: npt.NDArray[np.uint8]) -> None:
        part, inside = divmod(run[0], record.unit.extent.object_rows)
        chunk, first = divmod(inside, CHUNK_ROWS)
        unit = record.unit
        name = object_name(self.member.folder, unit.segment, unit.view, array, unit.shard, part)
        offset, size = (int(value) for value in self._index(record, array, name, run)[chunk])
        if size != CHUNK_ROWS * array.row_bytes or offset + size > record.sizes[name]:
            raise self._broken(record, array, run, f"the shard's index points to {size} bytes at {offset}")
        data = self._bytes(record, array, name, run, offset + first * array.row_bytes, len(run) * array.row_bytes)
        if len(data) != out.nbytes:
            raise self._broken(record, array, run, f"{len(data)} bytes are there instead of {out.nbytes}")
        out[:] = np.frombuffer(data, np.uint8).reshape(out.shape)

    def _index(self, record: CommitRecord, array: ArraySpec, name: str, run: Sequence[int]) -> Spans:
        with self._lock:
            if name in self._indexes:
                self._indexes.move_to_end(name)
                return self._indexes[name]
        chunks = record.unit.extent.object_rows // CHUNK_ROWS
        size = index_bytes(record.unit.extent)
        data = self._bytes(record, array, name, run, record.sizes[name] - size, size)
        if len(data) != size or int.from_bytes(data[-4:], "little") != crc32c(data[:-4]):
            raise self._broken(record, array, run, f"the index of {name} is broken")
        spans = np.frombuffer(data[:-4], "<u8").reshape(chunks, 2)
        with self._lock:
            self._indexes[name] = spans
            while len(self._indexes) > INDEXES_KEPT:
                self._indexes.popitem(last=False)
        return spans

    def _bytes(
        self, record: CommitRecord, array: ArraySpec, name: str, run: Sequence[int], offset: int, size: int
    ) -> bytes:
        try:
            return self.member.location.read_range(name, offset, size)
        except FileNotFoundError as error:
            raise self._broken(record, array, run, f"{name} is missing") from error
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            raise self._broken(record, array, run, f"{name} cannot be read ({error.strerror})") from error

    def _broken(self, record: CommitRecord, array: ArraySpec, rows: Sequence[int], why: str) -> BrokenError:
        return BrokenError(
            f"{self.member.location.url}: {self.member.folder}, {record.unit}, {array.name}, rows {spelled(rows)}: "
            f"{why}; run `unic-cache verify` to see all that is broken and `unic-cache repair` to have it made again"
        )


def spelled(rows: Sequence[int]) -> str:
    """Up to five rows in words."""
    shown = ", ".join(str(int(row)) for row in rows[:5])
    return shown if len(rows) <= 5 else f"{shown} and {len(rows) - 5} more"
