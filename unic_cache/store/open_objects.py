"""The objects of a store that were read last, open, each with its index.

A Zarr shard ends with its index: for each inner chunk an (offset, size) pair of little-endian uint64, then the crc32c
of the pairs. It is read once, when the object is opened.
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

OBJECTS_KEPT = files_at_once(256, 4)  # most systems allow a process 1,024 open files


@dataclass(frozen=True)
class OpenObject:
    """An object and where its chunks lie in it."""

    file: OpenFile
    spans: list[Span]  # of each chunk: offset and size as the index says, both `ABSENT` where there is none


class OpenObjects:
    """Objects of one location by name. Thread-safe; one that is dropped closes when its last reader is done."""

    def __init__(self, location: Location, limit: int = OBJECTS_KEPT) -> None:
        self.location = location
        self.limit = limit
        self._open: OrderedDict[tuple[str, int], OpenObject] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, name: str, size: int, index: int) -> OpenObject:
        """The object of `size` bytes, the last `index` of which are its index. BrokenError with the reason alone."""
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
        """Close every object that nobody reads just now; each is opened again when it is asked for."""
        with self._lock:
            self._open.clear()

    def forget(self, name: str, size: int) -> None:
        """Open the object anew when it is asked for again."""
        with self._lock:
            self._open.pop((name, size), None)


def trouble(name: str, error: OSError) -> str:
    """Why an object cannot be read, where that is the object's own fault; other errors are raised again."""
    if isinstance(error, FileNotFoundError):
        return f"{name} is missing"
    if error.errno == errno.EIO:
        return f"{name} cannot be read ({error.strerror})"
    raise error
