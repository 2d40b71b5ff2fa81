"""A cache of open objects (Zarr shards), each with its index.

A Zarr shard ends with its index: per inner chunk an (offset, size) pair of little-endian uint64, then the crc32c of
the pairs. We read it once, when the object opens.
"""

import errno
import threading
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
from crc32c import crc32c

from unic_cache.errors import BrokenError
from unic_cache.files.location import Location
from unic_cache.files.open_file import OpenFile, Span, files_at_once

OBJECTS_KEPT = files_at_once(256, 4)  # most systems allow 1,024 open files per process


@dataclass(frozen=True)
class OpenObject:
    """An object and the places of its chunks."""

    file: OpenFile
    spans: list[Span]  # (offset, size) of each chunk as the index says; both `ABSENT` if there is none


class OpenObjects:
    """Open objects of one location, the most recent `limit`. Thread-safe; a dropped one closes after its last read."""

    def __init__(self, location: Location, limit: int = OBJECTS_KEPT) -> None:
        self.location = location
        self.limit = limit
        self._open: OrderedDict[tuple[str, int], OpenObject] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, name: str, size: int, index: int) -> OpenObject:
        """The object of `size` bytes, of which the last `index` are its index. BrokenError with just the reason."""
        with self._lock:
            if (name, size) in self._open:
                self._open.move_to_end((name, size))
                return self._open[name, size]
        try:
            file = self.location.open(name)
            data = bytes(file.read(size - index, index))
        except OSError as error:
            raise BrokenError(trouble(name, error)) from error
        if len(data) != index or int.from_bytes(data[-4:], "little") != crc32c(data[:-4]):
            raise BrokenError(f"the index of {name} is broken")
        spans: list[Span] = list(map(tuple, np.frombuffer(data[:-4], "<u8").reshape(-1, 2).tolist()))
        opened = OpenObject(file, spans)
        with self._lock:
            self._open[name, size] = opened
            while len(self._open) > self.limit:
                self._open.popitem(last=False)
        return opened

    def close(self) -> None:
        """Close all objects that no reader is using; `get` reopens them."""
        with self._lock:
            self._open.clear()

    def forget(self, name: str, size: int) -> None:
        """Drop one object; `get` reopens it."""
        with self._lock:
            self._open.pop((name, size), None)


def trouble(name: str, error: OSError) -> str:
    """Why an object cannot be read, if it is missing or has an I/O error; re-raises other errors."""
    if isinstance(error, FileNotFoundError):
        return f"{name} is missing"
    if error.errno == errno.EIO:
        return f"{name} cannot be read ({error.strerror})"
    raise error
