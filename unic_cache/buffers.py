"""A ring of memory that is used again and again: page-aligned, touched once, given back by itself.

Fresh memory costs the kernel as much as copying into it does, so what is read in turns (groups of batches, chunks to be
unpacked) goes into the same few pieces. A piece is taken as an array; when nothing refers to that array any more, nor
to any view of it, the piece is free for whoever takes the next one. So nobody is given memory that somebody still looks
at, and whoever keeps a view merely makes the ring allocate another piece.
"""

import mmap
import os
import weakref
from collections import deque

import numpy as np
import numpy.typing as npt

HUGE_PAGE = 2**21
MEMORY = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")  # bytes of the machine

Bytes = npt.NDArray[np.uint8]


class Ring:
    """Pieces of memory in turns; at most `spare` of those that nobody uses are kept. Thread-safe."""

    def __init__(self, spare: int) -> None:
        self._free: deque[mmap.mmap] = deque(maxlen=spare)
        self._largest = 1

    def take(self, size: int) -> Bytes:
        """(size,) uint8 at a page's beginning, with whatever it held before."""
        memory = self._fitting(size)
        piece = np.frombuffer(memory, np.uint8, size)
        weakref.finalize(piece, self._free.append, memory).atexit = False
        return piece

    def _fitting(self, size: int) -> mmap.mmap:
        """A free piece that is large enough; smaller ones go, so that all end up as large as the largest."""
        while self._free:
            try:
                memory = self._free.popleft()
            except IndexError:  # another thread was quicker
                break
            if len(memory) >= size:
                return memory
        self._largest = max(self._largest, size)
        return pages(self._largest)


def pages(size: int) -> mmap.mmap:
    """At least `size` bytes of fresh memory, in huge pages where they pay and the system has them.

    A disk reads into those up to half as fast again: each of its requests is for as much memory as is in one piece.
    """
    step = HUGE_PAGE if size >= HUGE_PAGE else mmap.PAGESIZE
    memory = mmap.mmap(-1, -(-size // step) * step)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory
