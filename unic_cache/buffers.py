"""A ring of reusable, page-aligned memory.

Fresh memory costs the kernel as much as copying into it, so groups of batches and unpacked chunks reuse a few pieces.
A piece is taken as an array and becomes free once nothing refers to that array or a view of it. So a piece in use is
never handed out again, and a caller that keeps a view only makes the ring allocate another piece.
"""

import mmap
import os
import weakref
from collections import deque

import numpy as np
import numpy.typing as npt

HUGE_PAGE = 2**21
MEMORY = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")  # bytes in this machine

Bytes = npt.NDArray[np.uint8]


class Ring:
    """Reusable pieces of memory, at most `spare` of them free. Thread-safe."""

    def __init__(self, spare: int) -> None:
        self._free: deque[mmap.mmap] = deque(maxlen=spare)
        self._largest = 1

    def take(self, size: int) -> Bytes:
        """(size,) uint8, page-aligned, not cleared."""
        memory = self._fitting(size)
        piece = np.frombuffer(memory, np.uint8, size)
        weakref.finalize(piece, self._free.append, memory).atexit = False
        return piece

    def _fitting(self, size: int) -> mmap.mmap:
        """A free piece of at least `size` bytes; drops smaller ones, so all grow to the largest size."""
        while self._free:
            try:
                memory = self._free.popleft()
            except IndexError:  # another thread took it
                break
            if len(memory) >= size:
                return memory
        self._largest = max(self._largest, size)
        return pages(self._largest)


def pages(size: int) -> mmap.mmap:
    """At least `size` bytes of fresh memory, in huge pages if it is large and the system has them.

    Disks read up to 1.5 times as fast into huge pages, since a request covers one contiguous piece of memory.
    """
    step = HUGE_PAGE if size >= HUGE_PAGE else mmap.PAGESIZE
    memory = mmap.mmap(-1, -(-size // step) * step)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory
