"""Chunks of tiled arrays, unpacked: (G, 32, W) uint8 from one zstd frame. The ones unpacked last are kept.

Letters: G tiles of W bytes.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable

from numcodecs.zstd import Zstd

from unic_cache.buffers import Bytes, Ring
from unic_cache.errors import BrokenError

UNPACKED_BYTES = 2**25  # that are kept of one member

_MAGIC = b"\x28\xb5\x2f\xfd"
_ID_BYTES = (0, 1, 2, 4)  # of the dictionary, by bits 0 and 1 of a frame's descriptor
_SIZE_BYTES = (0, 2, 4, 8)  # of the content's size, by bits 6 and 7; without a window (bit 5) a single byte at least


class Tiles:
    """Unpacked chunks by key. Thread-safe; memory is used again when a chunk was dropped and nobody looks at it."""

    def __init__(self, limit: int = UNPACKED_BYTES, undo: Callable[[Bytes], None] | None = None) -> None:
        """`undo` makes of what was unpacked, in its place, what is to be kept."""
        self.limit = limit
        self.undo = undo
        self._kept: OrderedDict[Hashable, Bytes] = OrderedDict()
        self._bytes = 0
        self._ring = Ring(spare=4)
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> Bytes | None:
        """The chunk, where it is kept."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def unpack(self, key: Hashable, frame: memoryview, size: int) -> Bytes:
        """The `size` bytes that a frame holds, kept under `key`. BrokenError, with the reason alone, where others."""
        found = content_size(frame)
        if found != size:
            raise BrokenError(f"a compressed chunk of {found} bytes instead of {size}")
        chunk = self._ring.take(size)
        try:
            Zstd().decode(frame, chunk)
        except (RuntimeError, ValueError) as error:
            raise BrokenError(f"a compressed chunk that cannot be unpacked ({error})") from error
        if self.undo is not None:
            self.undo(chunk)
        with self._lock:
            if key not in self._kept:
                self._kept[key] = chunk
                self._bytes += size
            while self._bytes > self.limit and len(self._kept) > 1:
                self._bytes -= len(self._kept.popitem(last=False)[1])
        return chunk


def content_size(frame: memoryview) -> int | None:
    """Bytes that a zstd frame says it holds (RFC 8878, 3.1.1.1); None where it does not say, or is none."""
    if bytes(frame[:4]) != _MAGIC or len(frame) < 6:
        return None
    descriptor = frame[4]
    single = descriptor >> 5 & 1
    start = 5 + (1 - single) + _ID_BYTES[descriptor & 3]
    width = _SIZE_BYTES[descriptor >> 6] or single
    if not width or len(frame) < start + width:
        return None
    value = int.from_bytes(frame[start : start + width], "little")
    return value + 256 if width == 2 else value
