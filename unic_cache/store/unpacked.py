"""A cache of unpacked chunks of tiled arrays: (G, 32, W) uint8, each from one zstd frame.

Letters: G tiles of W bytes.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable

from numcodecs.zstd import Zstd

from unic_cache.buffers import Bytes, Ring
from unic_cache.errors import BrokenError

UNPACKED_BYTES = 2**25  # cached per member

_MAGIC = b"\x28\xb5\x2f\xfd"
_ID_BYTES = (0, 1, 2, 4)  # of the dictionary id, by bits 0 and 1 of a frame's descriptor
_SIZE_BYTES = (0, 2, 4, 8)  # of the content size, by bits 6 and 7; without a window (bit 5) at least one byte


class Tiles:
    """The most recently unpacked chunks, up to `limit` bytes. Thread-safe; reuses memory no longer referenced."""

    def __init__(self, limit: int = UNPACKED_BYTES, undo: Callable[[Bytes], None] | None = None) -> None:
        """`undo` decodes an unpacked chunk in place before it is cached."""
        self.limit = limit
        self.undo = undo
        self._kept: OrderedDict[Hashable, Bytes] = OrderedDict()
        self._bytes = 0
        self._ring = Ring(spare=4)
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> Bytes | None:
        """The chunk, or None if it is not cached."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def unpack(self, key: Hashable, frame: memoryview, size: int) -> Bytes:
        """Unpack a frame of `size` bytes and cache it under `key`. BrokenError, with just the reason, if it cannot."""
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
    """The content size that a zstd frame declares (RFC 8878, 3.1.1.1); None if it declares none or is no frame."""
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
