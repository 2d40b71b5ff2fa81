"""Files that are read again and again: opened once, by many threads, straight into their readers' memory.

| kind | a read is |
|---|---|
| `LocalFile` | one preadv(2), which scatters neighbouring bytes to where each belongs |
| `LocalFile` past the page cache | the same by O_DIRECT, but by a buffer of the thread where sectors do not fit |
| `RangeFile` | one `read_range` of any `Location`, to be copied from there |

The page cache costs about as much CPU for each byte as all the rest, and is of no use for files that will not fit in
memory until they are read again: those are read past it.
"""

import errno
import fcntl
import os
import resource
import threading
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from unic_cache.buffers import pages

NEAR = 2**16  # bytes
SECTOR = 512  # bytes, of most disks
DIRECT_BLOCK = 4096  # bytes; what any disk's blocks divide
CACHED_PIECE = 2**19  # bytes; so much stays in a core's own cache until its checksum is taken
DIRECT_PIECE = 2**22  # bytes at most; larger ones are no faster
RANGE = 2**24  # bytes
_bounce = threading.local()

Span = tuple[int, int]  # offset and size


class OpenFile(Protocol):
    """A file of a `Location`. Thread-safe; it closes when nothing refers to it any more, so never under a reader.

    FileNotFoundError where there is no file, when it is opened or when it is read.
    """

    near: int  # a gap of at most so many bytes is cheaper to read than to leave out
    at_once: int  # bytes that are best read in one go
    sector: int  # `read_into` copies nothing where offset, sizes and memory are multiples of it; 0: it always copies

    def read(self, offset: int, size: int) -> memoryview:
        """Bytes [offset, offset + size), fewer at the file's end; good until the same thread reads again."""
        ...

    def read_into(self, offset: int, buffers: Sequence[memoryview]) -> int:
        """Fill buffers, one after the other, with the bytes from `offset` on; how many there were."""
        ...

    def expecting(self, spans: Sequence[Span]) -> "OpenFile":
        """What to read just these (offset, size) from, at once and all together where that pays."""
        ...


class LocalFile:
    """A file of a file system; with `past_cache` it is read past the page cache, where the file system can."""

    near = NEAR

    def __init__(self, path: Path, past_cache: bool = False) -> None:
        flag = getattr(os, "O_DIRECT", 0) if past_cache else 0
        try:
            descriptor = os.open(path, os.O_RDONLY | flag)
        except NotADirectoryError as error:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from error
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            flag, descriptor = 0, os.open(path, os.O_RDONLY)
        self.past_cache = flag != 0
        self.sector = SECTOR if self.past_cache else 1
        self.at_once = DIRECT_PIECE - 2 * DIRECT_BLOCK if self.past_cache else CACHED_PIECE
        self._descriptor = descriptor
        weakref.finalize(self, os.close, descriptor)

    def read(self, offset: int, size: int) -> memoryview:
        """One preadv(2), of whole blocks where it is past the cache."""
        direct = self.past_cache  # another thread may settle for less meanwhile
        lead = offset % DIRECT_BLOCK if direct else 0
        needed = -(-(lead + size) // DIRECT_BLOCK) * DIRECT_BLOCK if direct else size
        room = _room(needed)[:needed]
        try:
            count = os.preadv(self._descriptor, [room], offset - lead)
        except OSError as error:
            if not direct or error.errno != errno.EINVAL:
                raise
            fcntl.fcntl(self._descriptor, fcntl.F_SETFL, os.O_RDONLY)
            self.past_cache = False
            return self.read(offset, size)
        return room[lead : min(lead + size, count)]

    def read_into(self, offset: int, buffers: Sequence[memoryview]) -> int:
        """One preadv(2), or a read and a copy where that is refused."""
        direct = self.past_cache
        try:
            return os.preadv(self._descriptor, buffers, offset)
        except OSError as error:
            if not direct or error.errno != errno.EINVAL:
                raise
            self.sector = 0
        return scatter(self.read(offset, sum(len(buffer) for buffer in buffers)), buffers)

    def expecting(self, spans: Sequence[Span]) -> OpenFile:  # noqa: ARG002
        """The file itself."""
        return self


class RangeFile:
    """A file of a `Location` that knows only ranges; `read_range` is the Location's for this file."""

    near = 0
    at_once = RANGE
    sector = 0

    def __init__(self, read_range: Callable[[int, int], bytes]) -> None:
        self._read_range = read_range

    def read(self, offset: int, size: int) -> memoryview:
        """One range."""
        return memoryview(self._read_range(offset, size))

    def read_into(self, offset: int, buffers: Sequence[memoryview]) -> int:
        """One range, copied."""
        return scatter(self.read(offset, sum(len(buffer) for buffer in buffers)), buffers)

    def expecting(self, spans: Sequence[Span]) -> OpenFile:  # noqa: ARG002
        """The file itself."""
        return self


def files_at_once(most: int, share: int) -> int:
    """How many files to keep open: `most`, or one in `share` of those that `ulimit -n` allows, and four at least."""
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return most if allowed == resource.RLIM_INFINITY else min(most, max(allowed // share, 4))


def scatter(data: memoryview, buffers: Sequence[memoryview]) -> int:
    """Copy data over the buffers, one after the other, as far as it reaches; how much there was."""
    at = 0
    for buffer in buffers:
        part = data[at : at + len(buffer)]
        buffer[: len(part)] = part
        at += len(part)
    return at


def _room(size: int) -> memoryview:
    """This thread's own page-aligned buffer, of at least `size` bytes."""
    if size > len(getattr(_bounce, "room", b"")):
        _bounce.room = memoryview(pages(max(size, DIRECT_PIECE)))
    room: memoryview = _bounce.room
    return room
