"""Rows of one object, in the runs that are read at once, and their way to their places.

Letters: N places.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import NamedTuple

import numpy as np
from crc32c import crc32c

from unic_cache.buffers import Bytes
from unic_cache.errors import BrokenError
from unic_cache.open_file import NEAR, OpenFile
from unic_cache.store.layout import CHUNK_ROWS

MOST_ROWS = 500  # of a run: preadv(2) takes 1,024 buffers, and there may be one between any two rows
_scrap = memoryview(bytearray(NEAR))  # what lies between two rows is read to here, by all threads; nobody looks

Located = tuple["Pick", int, int]  # rows of a chunk, and the chunk's offset and size


@dataclass(frozen=True)
class Pick:
    """Rows of one chunk, ascending, each with its place; a row that is asked again is copied from its first place."""

    chunk: int
    rows: list[int] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    copies: list[tuple[int, int]] = field(default_factory=list)  # (from place, to place)

    def pairs(self) -> Iterator[tuple[int, int]]:
        """Each row and its place."""
        return zip(self.rows, self.places, strict=True)


def picks(rows: Sequence[int], places: Sequence[int] | None = None) -> list[Pick]:
    """Rows by chunk, ascending; `places[i]`, or i, is where row `rows[i]` goes."""
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
    """Neighbouring rows of a file."""

    offset: int  # of the first
    size: int  # of all, and of what lies between
    rows: list[int]
    places: list[int]
    starts: list[int]  # of each row, behind `offset`


def cut(located: Sequence[Located], size: int, file: OpenFile) -> Iterator[Run]:
    """The rows in the order of the file, in runs that are best read in one go."""
    rows: list[int] = []
    places: list[int] = []
    offsets: list[int] = []
    for pick, start, _ in sorted(located, key=itemgetter(1)):
        rows += pick.rows
        places += pick.places
        offsets += [start + row % CHUNK_ROWS * size for row in pick.rows]
    first = 0
    for stop in range(1, len(rows) + 1):
        begin, end = offsets[first], offsets[stop - 1] + size
        if (
            stop == len(rows)
            or not 0 <= offsets[stop] - end <= file.near
            or offsets[stop] + size - begin > file.at_once
            or stop - first == MOST_ROWS
        ):
            starts = [offset - begin for offset in offsets[first:stop]]
            yield Run(begin, end - begin, rows[first:stop], places[first:stop], starts)
            first = stop


def read_run(file: OpenFile, run: Run, flat: Bytes) -> list[memoryview]:
    """Read rows to their places in `flat` (N, bytes of a row); the bytes of each."""
    return (_scattered if file.scatters else _copied)(file, run, flat)


def _scattered(file: OpenFile, run: Run, flat: Bytes) -> list[memoryview]:
    """The rows, read to their places in `flat` (N, bytes of a row) by one call."""
    target, size = flat.reshape(-1).data, flat.shape[1]
    views = [target[place * size : (place + 1) * size] for place in run.places]
    buffers = views
    if run.size > len(views) * size:
        buffers, end = [], 0
        for start, view in zip(run.starts, views, strict=True):
            buffers += [_scrap[: start - end], view] if start > end else [view]
            end = start + size
    check_size(file.read_into(run.offset, buffers), run.size)
    return views


def _copied(file: OpenFile, run: Run, flat: Bytes) -> list[memoryview]:
    """The rows as they were read, and copied to their places in `flat` (N, bytes of a row)."""
    data, size = file.read(run.offset, run.size), flat.shape[1]
    check_size(len(data), run.size)
    views = [data[start : start + size] for start in run.starts]
    if run.size == len(views) * size:
        flat[run.places] = np.frombuffer(data, np.uint8).reshape(-1, size)
    else:
        for place, view in zip(run.places, views, strict=True):
            flat[place] = np.frombuffer(view, np.uint8)
    return views


def crc(view: memoryview) -> int:
    """A row's checksum, keeping the interpreter's lock: to wait for it again would take longer."""
    return int(crc32c(view, 0, 0))


def check_size(found: int, size: int) -> None:
    """BrokenError, with the reason alone, where a read ended early."""
    if found != size:
        raise BrokenError(f"{found} bytes are there instead of {size}")
