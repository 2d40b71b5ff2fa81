"""Open files that many threads read repeatedly, straight into their own memory.

| kind | one read is |
|---|---|
| `LocalFile` | one preadv(2), which scatters neighbouring bytes to their destinations |
| `LocalFile` past the page cache | the same with O_DIRECT, or via a per-thread buffer if sectors do not align |
| `RangeFile` | one `read_range` of a `Location`, then a copy |

The page cache costs about as much CPU per byte as everything else together, and does not help with files that are
evicted before they are read again; those bypass it.
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
SECTOR = 512  # bytes, on most disks
DIRECT_BLOCK = 4096  # bytes; a multiple of any disk's block
CACHED_PIECE = 2**19  # bytes; fits a core's own cache until the checksum is computed
DIRECT_PIECE = 2**22  # bytes; larger reads are no faster
RANGE = 2**24  # bytes
_bounce = threading.local()

Span = tuple[int, int]  # offset and size


class OpenFile(Protocol):
    """A file of a `Location`. Thread-safe; closes when its last reference goes, so never under a reader.

    FileNotFoundError, when opened or at the first read, if there is no file.
    """

    near: int  # gaps up to so many bytes are cheaper to read than to skip
    at_once: int  # bytes to read in one call
    sector: int  # `read_into` copies nothing if offset, sizes and memory are multiples of it; 0: it always copies

    def read(self, offset: int, size: int) -> memoryview:
        """Bytes [offset, offset + size), fewer at the file's end; valid until the same thread reads again."""
        ...

    def read_into(self, offset: int, buffers: Sequence[memoryview]) -> int:
        """Fill the buffers in turn with the bytes from `offset` on; the number of bytes read. Copies by default."""
        data, at = self.read(offset, sum(len(buffer) for buffer in buffers)), 0
        for buffer in buffers:
            part = data[at : at + len(buffer)]
            buffer[: len(part)] = part
            at += len(part)
        return at

    def expecting(self, spans: Sequence[Span]) -> "OpenFile":  # noqa: ARG002
        """A file to read exactly these (offset, size) from, fetched together where that pays: here, itself."""
        return self


class LocalFile(OpenFile):
    """A file on a file system; `past_cache` bypasses the page cache, if the file system can."""

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
        """One preadv(2), of whole blocks if it bypasses the cache."""
        direct = self.past_cache  # another thread may clear it meanwhile
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
        """One preadv(2), or a read and a copy if the system refuses that."""
        direct = self.past_cache
        try:
            return os.preadv(self._descriptor, buffers, offset)
        except OSError as error:
            if not direct or error.errno != errno.EINVAL:
                raise
            self.sector = 0
        return super().read_into(offset, buffers)


class RangeFile(OpenFile):
    """A file of a `Location` that reads ranges only; `read_range` is bound to this file."""

    near = 0
    at_once = RANGE
    sector = 0

    def __init__(self, read_range: Callable[[int, int], bytes | memoryview]) -> None:
        self._read_range = read_range

    def read(self, offset: int, size: int) -> memoryview:
        """One range."""
        return memoryview(self._read_range(offset, size))


def files_at_once(most: int, share: int) -> int:
    """Files to keep open: `most`, or a 1/`share` of `ulimit -n` if that is less; at least 4."""
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return most if allowed == resource.RLIM_INFINITY else min(most, max(allowed // share, 4))


def _room(size: int) -> memoryview:
    """This thread's page-aligned buffer of at least `size` bytes."""
    if size > len(getattr(_bounce, "room", b"")):
        _bounce.room = memoryview(pages(max(size, DIRECT_PIECE)))
    room: memoryview = _bounce.room
    return room
