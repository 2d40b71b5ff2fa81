"""A cache of unpacked chunks of tiled arrays: the bytes of (G, 32, W) values, each from one compressed frame.

Letters: G tiles of W values.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable

from unic_cache.buffers import Bytes, Ring
from unic_cache.store.coders import CODERS

UNPACKED_BYTES = 2**25  # cached per member


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

    def unpack(self, key: Hashable, frame: memoryview, size: int, coder: str) -> Bytes:
        """Unpack a frame of `size` bytes and cache it under `key`. BrokenError, with just the reason, if it cannot."""
        chunk = self._ring.take(size)
        CODERS[coder].decode(frame, chunk)
        if self.undo is not None:
            self.undo(chunk)
        with self._lock:
            if key not in self._kept:
                self._kept[key] = chunk
                self._bytes += size
            while self._bytes > self.limit and len(self._kept) > 1:
                self._bytes -= len(self._kept.popitem(last=False)[1])
        return chunk
