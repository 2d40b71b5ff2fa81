"""The order of samples: a well-mixed permutation over few shards at a time, a pure function of integers."""

from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unic_cache.store.layout import CHUNK_ROWS
from unic_cache.stream.order import MIXED_CHUNKS, OPEN_SHARDS, Order, epoch_order
from unic_cache.stream.rows import Rows


def rows_of(counts: list[int]) -> Rows:
    columns = [(0, shard, row) for shard, count in enumerate(counts) for row in range(count)]
    return Rows(*np.array(columns, np.int64).reshape(-1, 3).T)


@given(st.lists(st.integers(0, 90), min_size=1, max_size=30).filter(any), st.integers(0, 2**40), st.integers(0, 1000))
@settings(deadline=None, max_examples=50)
def test_each_epoch_shows_every_row_once(counts, seed, epoch):
    rows = rows_of(counts)
    assert sorted(epoch_order(rows, seed, epoch)) == list(range(len(rows)))


def test_the_order_is_new_each_epoch_and_each_seed():
    rows = rows_of([100] * 4)
    orders = {(seed, epoch): tuple(epoch_order(rows, seed, epoch)) for seed in (0, 1, 2) for epoch in (0, 1, 2)}
    assert len(set(orders.values())) == 9  # seed + epoch would make (0, 1) equal (1, 0)


def test_the_order_is_the_same_on_every_machine():
    assert epoch_order(rows_of([5, 3]), 7, 2).tolist() == [0, 1, 7, 3, 4, 6, 5, 2]


def test_few_shards_and_few_chunks_are_read_at_a_time():
    rows = rows_of([1000] * 40)
    order = epoch_order(rows, 3, 0)
    for start in range(0, len(order), 4000):
        near = order[start : start + 2000]
        assert len(np.unique(rows.shard[near])) <= 2 * OPEN_SHARDS
        chunks = np.unique(rows.shard[near] * 1000 + rows.row[near] // CHUNK_ROWS)
        assert len(chunks) <= 2 * MIXED_CHUNKS + 2


def test_neighbours_come_from_many_shards():
    rows = rows_of([1000] * 40)
    order = epoch_order(rows, 3, 0)
    met = [len(np.unique(rows.shard[order[start : start + 128]])) for start in range(0, len(order), 128)]
    assert np.mean(met) > 0.7 * OPEN_SHARDS


def test_samples_go_on_into_the_next_epoch_and_its_view():
    rows = rows_of([4, 3])
    order = Order(rows, (0, 5), seed=1)
    samples = order.samples(0, 21)
    assert [item.number for item in samples] == [0] * 7 + [5] * 7 + [0] * 7
    for epoch in range(3):
        assert len({(item.shard, item.row) for item in samples[7 * epoch : 7 * epoch + 7]}) == 7
    assert order.samples(9, 12) == samples[9:12]
    assert Order(rows, (0, 5), seed=1).samples(19, 21) == samples[19:21]


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_processes_split_a_world_batch_into_consecutive_parts(processes):
    order = Order(rows_of([16, 16]), (0,), seed=0)
    local = 8 // processes
    joined = [order.samples(8 + rank * local, 8 + (rank + 1) * local) for rank in range(processes)]
    assert list(chain.from_iterable(joined)) == order.samples(8, 16)
