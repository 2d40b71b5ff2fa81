"""Group the wanted rows of one object into runs, and read each run straight into place.

Letters: N places in the output.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import NamedTuple

import numpy as np

from unic_cache.buffers import Bytes, pages
from unic_cache.errors import BrokenError
from unic_cache.files.open_file import CACHED_PIECE, NEAR, OpenFile
from unic_cache.store.layout import CHUNK_ROWS

MOST_ROWS = 500  # per run: preadv(2) takes 1,024 buffers, and each gap between rows needs one
_scrap = memoryview(pages(NEAR))  # where all threads dump the bytes of gaps

Located = tuple["Pick", int, int]  # rows of a chunk, the chunk's offset, its size


@dataclass(frozen=True)
class Pick:
    """Rows of one chunk, ascending, each with its place in the output."""

    chunk: int
    rows: list[int] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    copies: list[tuple[int, int]] = field(default_factory=list)  # (from place, to place) of repeated rows

    def pairs(self) -> Iterator[tuple[int, int]]:
        """(row, place) pairs."""
        return zip(self.rows, self.places, strict=True)


def picks(rows: Sequence[int], places: Sequence[int] | None = None) -> list[Pick]:
    """Rows grouped by chunk, ascending; row `rows[i]` goes to `places[i]`, by default i."""
    found: list[Pick] = []
    for row, place in sorted(zip(rows, range(len(rows)) if places is None else places, strict=True)):
        if not found or found[-1].chunk != row // CHUNK_ROWS:
            found.append(Pick(row // CHUNK_ROWS))
        pick = found[-1]
        if pick.rows and pick.rows[-1] == row:
            pick.copies.append((pick.places[-1], place))
        else:
            pick.rows.append(row)
            pick.places.append(place)
    return found


class Run(NamedTuple):
    """Neighbouring rows of a file, read in one call."""

    offset: int  # of the first row
    size: int  # of all rows and the gaps between them
    rows: list[int]
    places: list[int]
    offsets: list[int]


def cut(located: Sequence[Located], size: int, file: OpenFile) -> Iterator[Run]:
    """Rows of `size` bytes in file order, in runs that suit one read of `file` each."""
    rows: list[int] = []
    places: list[int] = []
    offsets: list[int] = []
    for pick, start, _ in sorted(located, key=itemgetter(1)):
        rows += pick.rows
        places += pick.places
        offsets += [start + row % CHUNK_ROWS * size for row in pick.rows]
    gaps = np.diff(offsets) - size
    breaks = np.flatnonzero((gaps < 0) | (gaps > file.near)) + 1
    first = 0
    for last in [*breaks.tolist(), len(rows)]:
        while first < last:
            most = min(first + MOST_ROWS, last)
            stop = bisect_right(offsets, offsets[first] + file.at_once - size, first + 1, most)
            part = slice(first, stop)
            whole = offsets[stop - 1] + size - offsets[first]
            yield Run(offsets[first], whole, rows[part], places[part], offsets[part])
            first = stop


def read_run(file: OpenFile, run: Run, flat: Bytes) -> Iterable[memoryview]:
    """Read a run's rows into their places in `flat` (N, row bytes); yields each row's bytes, still in CPU cache."""
    size, sector = flat.shape[1], file.sector
    straight = sector and not (run.offset % sector or size % sector or flat.ctypes.data % sector)
    return (_scattered if straight else _copied)(file, run, flat)


def _scattered(file: OpenFile, run: Run, flat: Bytes) -> Iterable[memoryview]:
    """Read all rows straight into their places in one call."""
    target, size = flat.reshape(-1).data, flat.shape[1]
    views = [target[place * size : (place + 1) * size] for place in run.places]
    buffers = views
    if run.size > len(views) * size:
        buffers, end = [], run.offset
        for offset, view in zip(run.offsets, views, strict=True):
            buffers += [_scrap[: offset - end], view] if offset > end else [view]
            end = offset + size
    check_size(file.read_into(run.offset, buffers), run.size)
    return views


def _copied(file: OpenFile, run: Run, flat: Bytes) -> Iterable[memoryview]:
    """Read all rows, then copy them into their places, a few at a time."""
    data, size = file.read(run.offset, run.size), flat.shape[1]
    check_size(len(data), run.size)
    step = max(CACHED_PIECE // size, 1)
    for first in range(0, len(run.places), step):
        places = run.places[first : first + step]
        views = [data[offset - run.offset :][:size] for offset in run.offsets[first : first + step]]
        if run.size == len(run.places) * size:
            rows = data[first * size : (first + len(places)) * size]
            flat[places] = np.frombuffer(rows, np.uint8).reshape(-1, size)
        else:
            for place, view in zip(places, views, strict=True):
                flat[place] = np.frombuffer(view, np.uint8)
        yield from views


def check_size(found: int, size: int) -> None:
    """BrokenError, with just the reason, if a read ended early."""
    if found != size:
        raise BrokenError(f"{found} bytes are there instead of {size}")
