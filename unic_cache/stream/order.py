"""The order of training samples, a pure function of integers.

Training sees one endless sequence: the rows in the order of epoch 0, then of epoch 1, and so on. With world batches of
B images, batch k is samples [kB, (k + 1)B), and process r of R takes the r-th of R equal parts. So nothing depends on
the number of threads, processes or machines, and a step number is enough to resume. Epoch e shows cached view e mod V.

    an epoch's order:  shuffle tars -> groups of 8 open tars -> shuffle their chunks -> mix the rows of 64 chunks

Letters: B images, V views, R processes, N rows.
"""

from collections.abc import Sequence

import numpy as np

from unic_cache.draws import Purpose, permutation, words
from unic_cache.store.layout import CHUNK_ROWS
from unic_cache.stream.address import Address
from unic_cache.stream.rows import Ints, Rows

OPEN_SHARDS = 8
MIXED_CHUNKS = 64


def epoch_order(rows: Rows, seed: int, epoch: int) -> Ints:
    """A well-mixed permutation of range(N) whose neighbours lie in few chunks of few tars."""
    shard_ids, shard_of_row = np.unique(rows.segment << 32 | rows.shard, return_inverse=True)
    chunk_ids, chunk_of_row = np.unique(shard_of_row << 32 | rows.row // CHUNK_ROWS, return_inverse=True)
    raw = words(Purpose.ORDER, seed, epoch, 0, len(shard_ids) + len(chunk_ids) + len(rows))
    shard_rank = np.argsort(permutation(raw[: len(shard_ids)]))
    group_of_chunk = shard_rank[chunk_ids >> 32] // OPEN_SHARDS
    chunk_words = raw[len(shard_ids) : len(shard_ids) + len(chunk_ids)]
    chunk_rank = np.argsort(np.lexsort((chunk_words, group_of_chunk)))
    row_words = raw[len(shard_ids) + len(chunk_ids) :]
    return np.lexsort((row_words, chunk_rank[chunk_of_row] // MIXED_CHUNKS)).astype(np.int64)


class Order:
    """The endless sequence of samples: sample k is a row under a view; without `shuffle` in the rows' order."""

    def __init__(self, rows: Rows, numbers: Sequence[int], seed: int, shuffle: bool = True) -> None:
        self.rows = rows
        self.numbers = numbers
        self.seed = seed
        self.shuffle = shuffle
        self._epochs: dict[int, Ints] = {}

    def samples(self, start: int, stop: int) -> list[Address]:
        """Samples [start, stop)."""
        return [self._sample(place) for place in range(start, stop)]

    def _sample(self, place: int) -> Address:
        epoch, position = divmod(place, len(self.rows))
        if epoch not in self._epochs:
            self._epochs = {kept: order for kept, order in self._epochs.items() if kept == epoch - 1}
            whole = np.arange(len(self.rows), dtype=np.int64)
            self._epochs[epoch] = epoch_order(self.rows, self.seed, epoch) if self.shuffle else whole
        number = self.numbers[epoch % len(self.numbers)]
        return self.rows.address(int(self._epochs[epoch][position]), number)
