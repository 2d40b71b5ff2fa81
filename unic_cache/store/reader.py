"""Read rows of a member by range reads over plain Zarr shards, checking each against its commit record.

    wanted rows -> by object and chunk -> runs of neighbours -> one scattering read per run -> checksum per row

Rows go from the file straight into the caller's memory. Without a byte codec a chunk is its rows in order, so any run
of rows is one range. A tiled array's chunk is read and unpacked whole, once for all rows wanted together; its checksum
covers the compressed bytes.

Letters: N places in the output, G tiles of W bytes each.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache as memoize
from itertools import groupby

import numpy as np
import numpy.typing as npt
from crc32c import crc32c

from unic_cache.buffers import Bytes
from unic_cache.errors import BrokenError
from unic_cache.files.open_file import OpenFile
from unic_cache.store.commit import CommitRecord
from unic_cache.store.layout import CHUNK_ROWS, ArraySpec, Extent, index_bytes, object_bytes, object_name
from unic_cache.store.member import Member
from unic_cache.store.open_objects import OpenObjects, trouble
from unic_cache.store.ranges import Located, Pick, check_size, cut, picks, read_run
from unic_cache.store.unpacked import Tiles

RowArray = npt.NDArray[np.generic]  # (N, ...) rows of one array
Broken = dict[int, BrokenError]  # row -> what is wrong with it

NOT_COMMITTED = "their bytes are not as committed"


class RowReader:
    """Reads rows of one member by commit record. Thread-safe.

    All readers of a location may share `objects`; `undo` decodes an unpacked chunk in place.
    """

    def __init__(
        self, member: Member, objects: OpenObjects | None = None, undo: Callable[[Bytes], None] | None = None
    ) -> None:
        self.member = member
        self._objects = objects or OpenObjects(member.location)
        self._tiles = Tiles(undo=undo)

    def read(
        self,
        record: CommitRecord,
        rows: Sequence[int],
        broken: set[int] | None = None,
        names: Collection[str] | None = None,
    ) -> dict[str, RowArray]:
        """The rows of all arrays, or of those in `names`, in the given order: array name -> (len(rows), ...).

        BrokenError, naming member, view, shard and rows, if bytes are not as committed; or, given a set `broken`,
        such rows are added to it and read as zeros.
        """
        arrays = [array for array in self.member.arrays if names is None or array.name in names]
        out = {array.name: np.empty((len(rows), *array.row), np.dtype(array.dtype)) for array in arrays}
        wrong = self.fill(record, picks(rows), out)
        if broken is None:
            for error in wrong.values():
                raise error
        else:
            broken.update(wrong)
        return out

    def fill(self, record: CommitRecord, wanted: Sequence[Pick], out: Mapping[str, RowArray]) -> Broken:
        """Read the wanted rows into their places in `out`: array name -> (N, ...), contiguous.

        Returns the rows that are not as committed; they are zeros in all arrays.
        """
        broken: Broken = {}
        arrays = [array for array in self.member.arrays if array.name in out]
        flat = {a.name: out[a.name].reshape(-1).view(np.uint8).reshape(-1, a.row_bytes) for a in arrays}
        for array in arrays:
            for part, picked in groupby(wanted, lambda pick: pick.chunk * CHUNK_ROWS // record.unit.extent.object_rows):
                _Part(self._objects, self._tiles, record, array, part, broken).fill(list(picked), flat[array.name])
        lost = [place for pick in wanted for row, place in pick.pairs() if row in broken] if broken else []
        for values in flat.values():
            values[lost] = 0
            for pick in wanted:
                for source, place in pick.copies:
                    values[place] = values[source]
        return broken


class _Part:
    """Reads wanted rows of one object; adds those it cannot read to `broken`."""

    def __init__(
        self, objects: OpenObjects, tiles: Tiles, record: CommitRecord, array: ArraySpec, number: int, broken: Broken
    ) -> None:
        unit = record.unit
        self.objects = objects
        self.tiles = tiles
        self.record = record
        self.array = array
        self.broken = broken
        self.name = object_name(record.member, unit.segment, unit.view, array, unit.shard, number)
        self.size = record.sizes[self.name]
        self.index = index_bytes(unit.extent)
        self.row_bytes = array.row_bytes
        self.first_chunk = number * unit.extent.object_rows // CHUNK_ROWS

    def fill(self, picked: Sequence[Pick], flat: Bytes) -> None:
        """Read this object's rows into their places in `flat` (N, row bytes)."""
        with self._losing([row for pick in picked for row in pick.rows]):
            opened = self.objects.get(self.name, self.size, self.index)
            found = [(pick, *opened.spans[pick.chunk - self.first_chunk]) for pick in picked]
            located = [item for item in found if self._is_inside(*item)]
            (self._fill_tiles if self.array.tile else self._fill_rows)(opened.file, located, flat)

    def lose(self, rows: Sequence[int], why: str, cause: BaseException | None = None) -> None:
        """Mark rows as broken."""
        error = BrokenError(
            f"{self.objects.location.url}: {self.record.member}, {self.record.unit}, {self.array.name}, rows "
            f"{spelled(rows)}: {why}; run `unic-cache verify` to list everything broken, and `unic-cache repair` so "
            "that `extract` makes it again"
        )
        error.__cause__ = cause
        for row in rows:
            self.broken.setdefault(row, error)

    @contextmanager
    def _losing(self, rows: Sequence[int]) -> Iterator[None]:
        """The object's own read error in this block marks `rows` broken instead of raising."""
        try:
            yield
        except OSError as error:
            self.objects.forget(self.name, self.size)
            self.lose(rows, trouble(self.name, error), error)
        except BrokenError as error:
            self.lose(rows, str(error), error.__cause__)

    def _is_inside(self, pick: Pick, offset: int, size: int) -> bool:
        """Whether the index gives the chunk a possible place; if not, its rows are lost."""
        if size in chunk_sizes(self.array) and offset + size <= self.size - self.index:
            return True
        self.lose(pick.rows, f"the shard's index points to {size} bytes at {offset}")
        return False

    def _fill_rows(self, file: OpenFile, located: Sequence[Located], flat: Bytes) -> None:
        runs = list(cut(located, self.row_bytes, file))
        crcs = self.record.crcs[self.array.name].tolist()
        wrong: list[int] = []
        file = file.expecting([(run.offset, run.size) for run in runs])
        for run in runs:
            with self._losing(run.rows):
                views = read_run(file, run, flat)
                wrong += [row for row, view in zip(run.rows, views, strict=True) if crc32c(view) != crcs[row]]
        if wrong:
            self.lose(sorted(wrong), NOT_COMMITTED)

    def _fill_tiles(self, file: OpenFile, located: Sequence[Located], flat: Bytes) -> None:
        tiles_NGW = flat.reshape(len(flat), -1, self.array.tile_bytes)
        crcs = self.record.crcs[self.array.name]
        keys = [(self.name, pick.chunk, int(crcs[pick.chunk])) for pick, _, _ in located]
        chunks = [self.tiles.get(key) for key in keys]
        file = file.expecting([item[1:] for item, chunk in zip(located, chunks, strict=True) if chunk is None])
        for (pick, offset, size), key, kept in zip(located, keys, chunks, strict=True):
            with self._losing(pick.rows):
                chunk = self._unpack(file, offset, size, key) if kept is None else kept
                chunk_GRW = chunk.reshape(-1, CHUNK_ROWS, self.array.tile_bytes)
                for row, place in pick.pairs():
                    tiles_NGW[place] = chunk_GRW[:, row % CHUNK_ROWS]

    def _unpack(self, file: OpenFile, offset: int, size: int, key: tuple[str, int, int]) -> Bytes:
        """Read, check and unpack a chunk: (G * 32 * W,)."""
        frame = file.read(offset, size)
        check_size(len(frame), size)
        if crc32c(frame) != key[2]:
            raise BrokenError(NOT_COMMITTED)
        return self.tiles.unpack(key, frame, CHUNK_ROWS * self.row_bytes, self.array.coder)


@memoize
def chunk_sizes(array: ArraySpec) -> range:
    """The sizes in bytes that a stored chunk may have."""
    alone = Extent(1, CHUNK_ROWS)
    sizes = object_bytes(array, alone, CHUNK_ROWS, 0)
    return range(sizes.start - index_bytes(alone), sizes.stop - index_bytes(alone))


def spelled(rows: Sequence[int]) -> str:
    """Rows for a message, up to five by number: '3, 4 and 7 more'."""
    shown = ", ".join(str(int(row)) for row in rows[:5])
    return shown if len(rows) <= 5 else f"{shown} and {len(rows) - 5} more"
