"""Rows for several batches at once: which chunks they lie in, and their reading into one piece of memory.

Neighbours in the order of samples come from few chunks, but one batch takes only some rows of each. A group of batches
takes nearly all of them, so that a chunk is read, and unpacked, once. A group's memory holds its batches one after the
other; so a batch is a slice, and nothing is copied to make it.

Letters: N places of a group.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from unic_cache.errors import BrokenError
from unic_cache.store.commit import CommitRecord, Crcs
from unic_cache.store.layout import CHUNK_ROWS
from unic_cache.store.ranges import Pick, picks
from unic_cache.store.reader import RowReader, Rows

if TYPE_CHECKING:
    from unic_cache.stream.address import Address

GROUP_ROWS = 2048  # at most, and a batch at least: what the order of samples mixes
WINDOW_ROWS = 1024  # after so many, a group may end where other chunks begin
TASK_CHUNKS = 8  # chunks of one unit that a thread reads in one go

Batch = Sequence["Address"]
_Outcome = tuple["Piece", CommitRecord | None, Mapping[int, BrokenError]]


def grouped(batches: Iterable[Batch], most: int) -> Iterator[list[Batch]]:
    """Neighbouring batches in groups of at most `most` images, or one batch.

    A group ends early where the next batch is mostly of chunks that it has not touched: there the order has mixed its
    chunks to the end.
    """
    group: list[Batch] = []
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

    first: "Address"
    rows: list[int]
    places: list[int]
    picks: list[Pick]

    def pairs(self) -> Iterator[tuple[int, int]]:
        """Each (row, place)."""
        return zip(self.rows, self.places, strict=True)


def pieces(wanted: Batch) -> list[Piece]:
    """What to read for the addresses, whose places are 0, 1, 2, ...: by unit and chunk, in row order."""
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
    """What became of a group's places in one member."""

    crcs_N: Crcs  # of the pixels that the member saw, by its commit records; 0 where those are broken
    broken: Mapping[int, BrokenError]  # place -> why it is zeros
    bad: Mapping[int, str]  # place -> why extraction had no image


class Gathering:
    """The reading of a group's rows from one member into `out`, (N, ...) an array, in the threads of a pool.

    What was not begun when nobody waits for it any more never is.
    """

    def __init__(
        self,
        pool: Executor,
        wanted: Sequence[Piece],
        record_of: Callable[["Address"], CommitRecord],
        reader: RowReader,
        out: Mapping[str, Rows],
    ) -> None:
        self._tasks: list[Future[_Outcome]] = []
        self._gathered: Gathered | None = None
        for piece in wanted:
            self._tasks.append(pool.submit(_read, piece, record_of, reader, out))

    def result(self) -> Gathered:
        """Wait for it. Errors that are no fault of single rows are raised."""
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
    piece: Piece,
    record_of: Callable[["Address"], CommitRecord],
    reader: RowReader,
    out: Mapping[str, Rows],
) -> _Outcome:
    try:
        record = record_of(piece.first)
    except BrokenError as error:
        for values in out.values():
            values[piece.places] = 0
        return piece, None, dict.fromkeys(piece.rows, error)
    wrong = reader.fill(record, piece.picks, out)
    return piece, record, wrong
