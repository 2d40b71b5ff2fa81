"""The order of samples: a well-mixed permutation over few shards at a time, a pure function of integers."""

from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unic_cache.draws import Purpose, permutation, words
from unic_cache.store.layout import CHUNK_ROWS
from unic_cache.stream.order import MIXED_CHUNKS, OPEN_SHARDS, Epoch, Order
from unic_cache.stream.rows import Rows, Tar, joined

TARS = st.lists(st.tuples(st.integers(0, 90), st.sets(st.integers(0, 89))), min_size=1, max_size=30)


def rows_of(counts: list[int], without: list[set[int]] | None = None) -> Rows:
    gone = without or [set()] * len(counts)
    bad = [np.array(sorted(row for row in some if row < n), np.int64) for n, some in zip(counts, gone, strict=True)]
    return joined(Tar((0, shard), count, bad[shard]) for shard, count in enumerate(counts))


def table(rows: Rows):
    """(3, N) segment, shard and row of each row, one by one."""
    return np.array([(segment, shard, row) for segment, shard, own in rows.by_tar() for row in own]).reshape(-1, 3).T


def epoch_order(rows: Rows, seed: int, epoch: int):
    return Epoch(rows, seed, epoch).places(0, len(rows))


def sorted_at_once(rows: Rows, seed: int, epoch: int):
    """The order as three sorts over all rows."""
    segment, shard, row = table(rows)
    shard_ids, shard_of_row = np.unique(segment << 32 | shard, return_inverse=True)
    chunk_ids, chunk_of_row = np.unique(shard_of_row << 32 | row // CHUNK_ROWS, return_inverse=True)
    raw = words(Purpose.ORDER, seed, epoch, 0, len(shard_ids) + len(chunk_ids) + len(rows))
    shard_rank = np.argsort(permutation(raw[: len(shard_ids)]))
    group_of_chunk = shard_rank[chunk_ids >> 32] // OPEN_SHARDS
    chunk_words = raw[len(shard_ids) : len(shard_ids) + len(chunk_ids)]
    chunk_rank = np.argsort(np.lexsort((chunk_words, group_of_chunk)))
    return np.lexsort((raw[len(shard_ids) + len(chunk_ids) :], chunk_rank[chunk_of_row] // MIXED_CHUNKS))


@given(TARS.filter(lambda tars: any(set(range(n)) - gone for n, gone in tars)), st.integers(0, 2**40), st.randoms())
@settings(deadline=None, max_examples=25)
def test_an_order_made_piece_by_piece_is_the_one_sorted_at_once(tars, seed, random):
    rows = rows_of([count for count, _ in tars], [gone for _, gone in tars])
    shuffled = Rows(
        rows.segment, np.array(random.sample(rows.shard.tolist(), len(rows.shard))), rows.counts, rows.without
    )
    for one, epoch in ((rows, 0), (shuffled, 7)):
        expected = sorted_at_once(one, seed, epoch)
        assert sorted(expected) == list(range(len(one)))
        assert epoch_order(one, seed, epoch).tolist() == expected.tolist()
        first = random.randrange(len(one))
        last = random.randrange(first, len(one) + 1)
        assert Epoch(one, seed, epoch).places(first, last).tolist() == expected[first:last].tolist()


def test_an_order_of_many_groups_of_tars_is_the_one_sorted_at_once():
    rows = rows_of([700, 33, 1, 1000, 64] * 6, [{5, 31, 699}, set(), set(), set(range(100, 140)), {0}] * 6)
    expected = sorted_at_once(rows, 5, 1)
    assert np.array_equal(epoch_order(rows, 5, 1), expected)
    samples = Order(rows, (3,), 5).samples(len(rows) + 4000, len(rows) + 4100)
    assert [tuple(item) for item in samples] == [(*table(rows)[:, at], 3) for at in expected[4000:4100]]


@pytest.mark.parametrize("start", range(9))
def test_words_of_any_place_are_those_of_the_whole_stream(start):
    assert (
        words(Purpose.ORDER, 3, 1, 0, 7, start).tolist()
        == words(Purpose.ORDER, 3, 1, 0, 16)[start : start + 7].tolist()
    )


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
        _, shard, row = table(rows)[:, near]
        assert len(np.unique(shard)) <= 2 * OPEN_SHARDS
        chunks = np.unique(shard * 1000 + row // CHUNK_ROWS)
        assert len(chunks) <= 2 * MIXED_CHUNKS + 2


def test_neighbours_come_from_many_shards():
    rows = rows_of([1000] * 40)
    order = epoch_order(rows, 3, 0)
    shard = table(rows)[1]
    met = [len(np.unique(shard[order[start : start + 128]])) for start in range(0, len(order), 128)]
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
