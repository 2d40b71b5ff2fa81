"""The order of training samples, a pure function of integers.

Training sees one endless sequence: the rows in the order of epoch 0, then of epoch 1, and so on. With world batches of
B images, batch k is samples [kB, (k + 1)B), and process r of R takes the r-th of R equal parts. So nothing depends on
the number of threads, processes or machines, and a step number is enough to resume. Epoch e shows cached view e mod V.

    an epoch's order:  shuffle tars -> groups of 8 open tars -> shuffle their chunks -> mix the rows of 64 chunks

Each step is a sort by random words, and what it sorts lies close together: the words of any place are at hand, so an
epoch's order is made where it is needed, 64 chunks at a time, and takes memory for the tars alone.

Letters: B images, V views, R processes, N rows, M tars.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from unic_cache.draws import Purpose, Words, permutation, words
from unic_cache.store.layout import CHUNK_ROWS
from unic_cache.stream.address import Address
from unic_cache.stream.rows import Ints, Rows

OPEN_SHARDS = 8
MIXED_CHUNKS = 64


class Chunks(NamedTuple):
    """Shuffled chunks of a group of tars: the place of each one's first row among all rows, and its number of rows."""

    starts: Ints
    counts: Ints


class Epoch:
    """One epoch's order: a permutation of range(N) whose neighbours lie in few chunks of few tars."""

    def __init__(self, rows: Rows, seed: int, epoch: int) -> None:
        self._rows = rows
        self._key = seed, epoch
        by_name = np.lexsort((rows.shard, rows.segment))
        chunks = -(-rows.counts // CHUNK_ROWS)
        for tar in rows.without:
            chunks[tar] = len(self._chunk_starts(tar))
        first = np.zeros(len(chunks), np.int64)
        first[by_name] = np.cumsum(chunks[by_name]) - chunks[by_name]
        self._tars = by_name[permutation(self._words(0, len(chunks)))]  # (M,) shuffled
        self._first_chunk = first  # (M,) of each tar, among the chunks of all tars by segment and number
        self._chunks = int(chunks.sum())
        groups = range(0, len(chunks), OPEN_SHARDS)
        self._chunk_ends, self._row_ends = (
            np.cumsum(np.add.reduceat(each[self._tars], groups)) for each in (chunks, rows.counts)
        )  # of each group of tars
        self._group = lru_cache(OPEN_SHARDS)(self._shuffled)
        self._block = lru_cache(OPEN_SHARDS)(self._mixed)

    def places(self, start: int, stop: int) -> Ints:
        """Entries [start, stop) of the permutation."""
        found: list[Ints] = []
        while start < stop:
            first, block = self._block(self._block_of(start))
            found.append(block[start - first : stop - first])
            start += len(found[-1])
        return np.concatenate(found) if found else np.zeros(0, np.int64)

    def _words(self, start: int, count: int) -> Words:
        return words(Purpose.ORDER, *self._key, 0, count, start)

    def _chunk_starts(self, tar: int) -> Ints:
        """Where the rows of each chunk of a tar begin among its rows; a chunk without rows does not count."""
        return np.flatnonzero(np.diff(self._rows.of_tar(tar) // CHUNK_ROWS, prepend=-1))

    def _shuffled(self, group: int) -> Chunks:
        """The chunks of a group of tars, sorted by their words."""
        tars = self._tars[group * OPEN_SHARDS : (group + 1) * OPEN_SHARDS]
        tars = tars[np.argsort(self._first_chunk[tars])]
        starts = [self._chunk_starts(int(tar)) for tar in tars]
        counts = [np.diff(at, append=self._rows.counts[tar]) for tar, at in zip(tars, starts, strict=True)]
        drawn = [
            self._words(len(self._tars) + int(self._first_chunk[tar]), len(at))
            for tar, at in zip(tars, starts, strict=True)
        ]
        places = [self._rows.starts[tar] + at for tar, at in zip(tars, starts, strict=True)]
        order = permutation(np.concatenate(drawn))
        return Chunks(np.concatenate(places)[order], np.concatenate(counts)[order])

    def _block_of(self, place: int) -> int:
        """The number of the mixed chunks that hold entry `place`."""
        group = int(np.searchsorted(self._row_ends, place, "right"))
        ends = self._first_of(group, self._row_ends) + np.cumsum(self._group(group).counts)
        rank = self._first_of(group, self._chunk_ends) + int(np.searchsorted(ends, place, "right"))
        return rank // MIXED_CHUNKS

    def _mixed(self, block: int) -> tuple[int, Ints]:
        """Where the rows of MIXED_CHUNKS chunks begin in the epoch, and their places, sorted by their words."""
        rank, end = block * MIXED_CHUNKS, min((block + 1) * MIXED_CHUNKS, self._chunks)
        group = int(np.searchsorted(self._chunk_ends, rank, "right"))
        at = rank - self._first_of(group, self._chunk_ends)
        first = self._first_of(group, self._row_ends) + int(self._group(group).counts[:at].sum())
        spans: list[tuple[int, int]] = []
        while rank + len(spans) < end:
            chunks = self._group(group)
            some = slice(at, at + end - rank - len(spans))
            spans += zip(chunks.starts[some].tolist(), chunks.counts[some].tolist(), strict=True)
            group, at = group + 1, 0
        spans.sort()
        before = len(self._tars) + self._chunks
        drawn = [self._words(before + start, count) for start, count in spans]
        places = [np.arange(start, start + count) for start, count in spans]
        return first, np.concatenate(places)[permutation(np.concatenate(drawn))]

    @staticmethod
    def _first_of(group: int, ends: Ints) -> int:
        return int(ends[group - 1]) if group else 0


class Order:
    """The endless sequence of samples: sample k is a row under a view; without `shuffle` in the rows' order."""

    def __init__(self, rows: Rows, numbers: Sequence[int], seed: int, shuffle: bool = True) -> None:
        self.rows = rows
        self.numbers = numbers
        self.seed = seed
        self.shuffle = shuffle
        self._epochs: dict[int, Epoch] = {}

    def samples(self, start: int, stop: int) -> list[Address]:
        """Samples [start, stop)."""
        found: list[Address] = []
        while start < stop:
            epoch, first = divmod(start, len(self.rows))
            last = min(first + stop - start, len(self.rows))
            places = self._epoch(epoch).places(first, last) if self.shuffle else np.arange(first, last)
            found += self.rows.addresses(places, self.numbers[epoch % len(self.numbers)])
            start += last - first
        return found

    def _epoch(self, epoch: int) -> Epoch:
        if epoch not in self._epochs:
            self._epochs = {kept: order for kept, order in self._epochs.items() if kept == epoch - 1}
            self._epochs[epoch] = Epoch(self.rows, self.seed, epoch)
        return self._epochs[epoch]
