"""Read rows for several batches at once: the chunks they lie in, straight into one piece of memory.

Neighbouring samples come from few chunks, but one batch takes only some rows of each; a group of batches takes nearly
all, so that each chunk is read and unpacked once. A group's memory holds its batches one after the other, so a batch is
a slice without a copy.

Letters: N places in a group.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from unic_cache.errors import BrokenError
from unic_cache.store.commit import CommitRecord, Crcs
from unic_cache.store.layout import CHUNK_ROWS
from unic_cache.store.ranges import Pick, picks
from unic_cache.store.reader import RowArray, RowReader
from unic_cache.stream.address import Address

GROUP_ROWS = 2048  # at most, but one batch at least; `stream.order` mixes as many
WINDOW_ROWS = 1024  # from here on a group may end early
TASK_CHUNKS = 8  # chunks of one unit that a thread reads at once

_Outcome = tuple["Piece", CommitRecord | None, Mapping[int, BrokenError]]


def grouped(batches: Iterable[Sequence[Address]], most: int) -> Iterator[list[Sequence[Address]]]:
    """Group neighbouring batches, up to `most` images or one batch.

    A group ends early before a batch that lies mostly in new chunks: there the order has used up its mixed chunks.
    """
    group: list[Sequence[Address]] = []
    rows = 0
    touched: set[tuple[int, ...]] = set()
    for batch in batches:
        chunks = [(*item.unit, item.row // CHUNK_ROWS) for item in batch]
        new = sum(chunk not in touched for chunk in chunks)
        if group and (rows + len(batch) > min(most, GROUP_ROWS) or (rows >= WINDOW_ROWS and 2 * new > len(batch))):
            yield group
            group, rows, touched = [], 0, set()
        group.append(batch)
        rows += len(batch)
        touched.update(chunks)
    if group:
        yield group


@dataclass(frozen=True)
class Piece:
    """Rows of a few chunks of one unit: `rows[i]` goes to place `places[i]` of the group."""

    first: Address
    rows: list[int]
    places: list[int]
    picks: list[Pick]

    def pairs(self) -> Iterator[tuple[int, int]]:
        """(row, place) pairs."""
        return zip(self.rows, self.places, strict=True)


def pieces(wanted: Sequence[Address]) -> list[Piece]:
    """The reads that the addresses need, sorted by unit, chunk and row; address i goes to place i."""
    table = np.array([(item.segment, item.shard, item.number, item.row) for item in wanted], np.int64).reshape(-1, 4)
    order = np.lexsort(table.T[::-1])
    table = table[order]
    task = np.column_stack([table[:, :3], table[:, 3] // (CHUNK_ROWS * TASK_CHUNKS)])
    starts = np.flatnonzero((np.diff(task, axis=0, prepend=-1) != 0).any(axis=1)).tolist()
    found = []
    for start, stop in pairwise([*starts, len(wanted)]):
        rows, places = table[start:stop, 3].tolist(), order[start:stop].tolist()
        found.append(Piece(wanted[places[0]], rows, places, picks(rows, places)))
    return found


@dataclass(frozen=True)
class Gathered:
    """What was read of one member for a group."""

    crcs_N: Crcs  # of the pixels that the member saw, by its commit records; 0 if those are broken
    broken: Mapping[int, BrokenError]  # place -> why it is zeros
    bad: Mapping[int, str]  # place -> why extraction had no image


class Gathering:
    """Reads a group's rows of one member into `out`, array name -> (N, ...), in the threads of a pool.

    Rows are zeros where `record_of` gives None: the member has none of them. Reads not yet started are cancelled when
    this object goes.
    """

    def __init__(
        self,
        pool: Executor,
        wanted: Sequence[Piece],
        record_of: Callable[[Address], CommitRecord | None],
        reader: RowReader,
        out: Mapping[str, RowArray],
    ) -> None:
        self._tasks: list[Future[_Outcome]] = []
        self._gathered: Gathered | None = None
        for piece in wanted:
            self._tasks.append(pool.submit(_read, piece, record_of, reader, out))

    def result(self) -> Gathered:
        """Wait for all reads. Raises errors that concern more than single rows."""
        if self._gathered is None:
            parts = [task.result() for task in self._tasks]
            broken: dict[int, BrokenError] = {}
            bad: dict[int, str] = {}
            crcs_N = np.zeros(sum(len(piece.places) for piece, _, _ in parts), np.uint32)
            for piece, record, wrong in parts:
                if record is not None:
                    crcs_N[piece.places] = record.pixels[piece.rows]
                    bad |= {p: record.bad[row] for row, p in piece.pairs() if row in record.bad} if record.bad else {}
                broken |= {place: wrong[row] for row, place in piece.pairs() if row in wrong} if wrong else {}
            self._gathered = Gathered(crcs_N, broken, bad)
        return self._gathered

    def __del__(self) -> None:
        for task in self._tasks:
            task.cancel()


def _read(
    piece: Piece, record_of: Callable[[Address], CommitRecord | None], reader: RowReader, out: Mapping[str, RowArray]
) -> _Outcome:
    record, wrong = None, {}
    try:
        record = record_of(piece.first)
    except BrokenError as error:
        wrong = dict.fromkeys(piece.rows, error)
    if record is None:
        for values in out.values():
            values[piece.places] = 0
        return piece, None, wrong
    return piece, record, reader.fill(record, piece.picks, out)
