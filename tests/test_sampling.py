"""Which tokens are kept: a pure function, without favourites, fewer among more."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unic_cache.draws import Purpose, words
from unic_cache.store.sampling import (
    Sample,
    coarser,
    lattice_positions,
    lattice_through,
    places_among,
    random_positions,
    stride,
    strides,
)

KEYS = st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 999)), max_size=4)
GRIDS = st.tuples(st.integers(1, 9), st.integers(1, 9))

GOLDEN = [
    ((0, 0, 0, (2, 2), 2), [2, 3]),
    ((0, 0, 1, (2, 2), 2), [0, 1]),
    ((1, 0, 0, (2, 2), 2), [0, 3]),
    ((7, 0xDEADBEEF, 3, (4, 6), 5), [0, 1, 5, 9, 14]),
    ((2**40, 2**32 - 1, 999, (14, 14), 8), [21, 32, 57, 58, 65, 67, 68, 103]),
]


def naive(seed: int, key: int, number: int, grid: tuple[int, int], count: int) -> list[int]:
    """Each token draws a word; the lowest `count` words are kept."""
    drawn = words(Purpose.TOKENS, seed, key, number, grid[0] * grid[1]).tolist()
    ranks = sorted(range(len(drawn)), key=lambda token: (drawn[token], token))
    return sorted(ranks[:count])


@given(st.integers(0, 2**63 - 1), KEYS, GRIDS, st.integers(1, 81))
@settings(deadline=None, max_examples=60)
def test_positions_are_those_of_the_lowest_words_ascending_and_distinct(seed, shown, grid, count):
    tokens = grid[0] * grid[1]
    count = min(count, tokens)
    kept_BN = random_positions(seed, shown, grid, count)
    assert kept_BN.shape == (len(shown), count)
    assert kept_BN.tolist() == [naive(seed, key, number, grid, count) for key, number in shown]
    assert all(len({*kept.tolist()}) == count and (np.diff(kept) > 0).all() for kept in kept_BN)
    assert ((kept_BN >= 0) & (kept_BN < tokens)).all()


@given(st.integers(0, 2**63 - 1), KEYS, GRIDS)
@settings(deadline=None, max_examples=30)
def test_each_depends_on_nothing_but_its_own_key_view_and_seed(seed, shown, grid):
    tokens = grid[0] * grid[1]
    together = random_positions(seed, shown, grid, tokens // 2)
    alone = [random_positions(seed, [item], grid, tokens // 2)[0] for item in shown]
    assert together.tolist() == [kept.tolist() for kept in alone]


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**32 - 1), GRIDS)
@settings(deadline=None, max_examples=30)
def test_fewer_are_among_more_up_to_all(seed, key, grid):
    tokens = grid[0] * grid[1]
    kept = [set(random_positions(seed, [(key, 0)], grid, count)[0].tolist()) for count in range(1, tokens + 1)]
    assert all(fewer < more for fewer, more in pairwise(kept))
    assert kept[-1] == set(range(tokens))


@pytest.mark.parametrize(("asked", "positions"), GOLDEN)
def test_positions_are_the_same_on_every_machine(asked, positions):
    seed, key, number, grid, count = asked
    assert random_positions(seed, [(key, number)], grid, count).tolist() == [positions]


def test_seeds_keys_and_view_numbers_give_different_positions():
    asked = [(seed, key, number) for seed in (0, 1, 2) for key in (0, 1, 2) for number in (0, 1, 2)]
    kept = {tuple(random_positions(seed, [(key, number)], (14, 14), 64)[0].tolist()) for seed, key, number in asked}
    assert len(kept) == len(asked)  # seed + number would make (0, key, 1) equal (1, key, 0)


def test_every_token_and_every_pair_is_kept_equally_often():
    """Chi-squares over 4,000 keys, with bounds that a fair draw hardly ever leaves."""
    tokens, count, keys = 24, 8, 4000
    kept = random_positions(3, [(key, 0) for key in range(keys)], (4, 6), count)
    there_BT = np.zeros((keys, tokens))
    np.put_along_axis(there_BT, kept, 1, axis=1)
    share = count / tokens
    single = ((there_BT.sum(axis=0) - keys * share) ** 2 / (keys * share * (1 - share))).sum()
    assert 0.4 * tokens < single < 2 * tokens
    pairs = (there_BT.T @ there_BT)[np.triu_indices(tokens, 1)]
    share *= (count - 1) / (tokens - 1)
    assert 5 / 6 < ((pairs - keys * share) ** 2 / (keys * share * (1 - share))).mean() < 7 / 6


@given(st.data())
@settings(deadline=None, max_examples=60)
def test_places_are_those_of_a_loop(data):
    images, tokens = data.draw(st.integers(0, 3)), data.draw(st.integers(1, 12))
    kept, wanted = [], []
    for _ in range(images):
        more = data.draw(st.permutations(range(tokens)))
        kept.append(sorted(more[: max(tokens - 2, 1)]))
        wanted.append(data.draw(st.permutations(kept[-1]))[: max(tokens // 2, 1)])
    kept_BM = np.array(kept, np.int64).reshape(images, -1 if images else 1)
    wanted_BN = np.array(wanted, np.int64).reshape(images, -1 if images else 1)
    expected = [[have.index(token) for token in asked] for have, asked in zip(kept, wanted, strict=True)]
    assert places_among(kept_BM, wanted_BN).tolist() == expected


def test_fewer_tokens_are_found_among_more():
    shown = [(key, key % 3) for key in range(20)]
    more, fewer = (random_positions(5, shown, (7, 7), count) for count in (30, 9))
    assert np.array_equal(np.take_along_axis(more, places_among(more, fewer), axis=1), fewer)


GOLDEN_LATTICE = [[6, 8, 10, 18, 20, 22], [0, 2, 4, 12, 14, 16]]


class TestLattice:
    @pytest.mark.parametrize("grid", [(4, 6), (6, 6), (14, 14), (1, 5)])
    def test_every_position_is_kept_equally_often_over_all_offsets(self, grid):
        """N / T for each: exactly, since the offset is uniform over the grid."""
        tokens = math.prod(grid)
        for step in strides(grid):
            kept = lattice_through(np.arange(tokens), grid, step)
            assert np.bincount(kept.ravel(), minlength=tokens).tolist() == [kept.shape[1]] * tokens

    def test_offsets_are_uniform(self):
        """Chi-square over 6,000 keys, with bounds that a fair draw hardly ever leaves."""
        kept = lattice_positions(3, [(key, 1) for key in range(6000)], (4, 6), 6)
        found = np.bincount(kept[:, 0], minlength=24)[[0, 1, 6, 7]]  # the four offsets of stride 2
        assert found.sum() == 6000
        assert ((found - 1500) ** 2 / 1500).sum() < 16

    @given(st.integers(0, 2**63 - 1), KEYS, st.sampled_from([(4, 6), (6, 6), (8, 4), (7, 7), (5, 3)]))
    @settings(deadline=None, max_examples=40)
    def test_positions_are_those_of_a_loop(self, seed, shown, grid):
        height, width = grid
        for step in strides(grid):
            count = math.prod(grid) // step**2
            found = lattice_positions(seed, shown, grid, count)
            for (key, number), kept in zip(shown, found.tolist(), strict=True):
                offset = int(words(Purpose.TOKENS, seed, key, number, 1)[0]) % (height * width)
                row, column = offset // width, offset % width
                assert kept == [
                    y * width + x
                    for y in range(height)
                    for x in range(width)
                    if (y - row) % step == (x - column) % step == 0
                ]

    def test_the_lattice_of_stride_4_lies_within_that_of_stride_2(self):
        shown = [(key, key % 3) for key in range(50)]
        more, fewer = (lattice_positions(5, shown, (8, 12), count) for count in (24, 6))
        assert np.array_equal(np.take_along_axis(more, places_among(more, fewer), axis=1), fewer)
        assert len({tuple(kept) for kept in fewer.tolist()}) > 8

    def test_positions_are_the_same_on_every_machine(self):
        shown = [(0xDEADBEEF, 3), (0, 0)]
        assert lattice_positions(7, shown, (4, 6), 6).tolist() == GOLDEN_LATTICE

    @pytest.mark.parametrize(
        ("grid", "counts"),
        [((14, 14), [196, 49, 4, 1]), ((16, 16), [256, 64, 16, 4, 1]), ((12, 8), [96, 24, 6]), ((5, 3), [15])],
    )
    def test_counts_of_a_grid(self, grid, counts):
        whole = Sample("lattice", math.prod(grid))
        assert coarser(whole, grid) == counts
        assert [count for count in range(1, 257) if stride(grid, count)] == sorted(counts)
        assert coarser(Sample("random", 5), grid) == []

    def test_a_sample_holds_another_where_every_draw_does(self):
        """Against positions of many keys."""
        grid, shown = (6, 6), [(key, 0) for key in range(60)]
        samples = [Sample("lattice", count) for count in (36, 9, 4, 1)]
        samples += [Sample("random", count) for count in (36, 9, 4)]
        for ours in samples:
            for theirs in samples:
                pairs = zip(ours.positions(1, shown, grid), theirs.positions(1, shown, grid), strict=True)
                assert ours.holds(theirs, grid) == all(set(few) <= set(many) for many, few in pairs), (ours, theirs)
