"""Which tokens are kept: a pure function, without favourites, fewer among more."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unic_cache.draws import Purpose, words
from unic_cache.store.sampling import kept_positions, places_among

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
    kept_BN = kept_positions(seed, shown, grid, count)
    assert kept_BN.shape == (len(shown), count)
    assert kept_BN.tolist() == [naive(seed, key, number, grid, count) for key, number in shown]
    assert all(len({*kept.tolist()}) == count and (np.diff(kept) > 0).all() for kept in kept_BN)
    assert ((kept_BN >= 0) & (kept_BN < tokens)).all()


@given(st.integers(0, 2**63 - 1), KEYS, GRIDS)
@settings(deadline=None, max_examples=30)
def test_each_depends_on_nothing_but_its_own_key_view_and_seed(seed, shown, grid):
    tokens = grid[0] * grid[1]
    together = kept_positions(seed, shown, grid, tokens // 2)
    alone = [kept_positions(seed, [item], grid, tokens // 2)[0] for item in shown]
    assert together.tolist() == [kept.tolist() for kept in alone]


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**32 - 1), GRIDS)
@settings(deadline=None, max_examples=30)
def test_fewer_are_among_more_up_to_all(seed, key, grid):
    tokens = grid[0] * grid[1]
    kept = [set(kept_positions(seed, [(key, 0)], grid, count)[0].tolist()) for count in range(1, tokens + 1)]
    assert all(fewer < more for fewer, more in pairwise(kept))
    assert kept[-1] == set(range(tokens))


@pytest.mark.parametrize(("asked", "positions"), GOLDEN)
def test_positions_are_the_same_on_every_machine(asked, positions):
    seed, key, number, grid, count = asked
    assert kept_positions(seed, [(key, number)], grid, count).tolist() == [positions]


def test_seeds_keys_and_view_numbers_give_different_positions():
    asked = [(seed, key, number) for seed in (0, 1, 2) for key in (0, 1, 2) for number in (0, 1, 2)]
    kept = {tuple(kept_positions(seed, [(key, number)], (14, 14), 64)[0].tolist()) for seed, key, number in asked}
    assert len(kept) == len(asked)  # seed + number would make (0, key, 1) equal (1, key, 0)


def test_every_token_and_every_pair_is_kept_equally_often():
    """Chi-squares over 4,000 keys, with bounds that a fair draw hardly ever leaves."""
    tokens, count, keys = 24, 8, 4000
    kept = kept_positions(3, [(key, 0) for key in range(keys)], (4, 6), count)
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
    more, fewer = (kept_positions(5, shown, (7, 7), count) for count in (30, 9))
    assert np.array_equal(np.take_along_axis(more, places_among(more, fewer), axis=1), fewer)
