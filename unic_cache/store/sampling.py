"""Which patch tokens are kept where `--tokens` asks for some only.

Positions are a pure function of (seed, sample key, view number, grid): teachers of one grid share them, and they need
not be stored. Fewer tokens are a subset of more.

Letters: B images, T tokens of the grid, N and M of which are kept.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from unic_cache.draws import Purpose, permutation, words

Positions = npt.NDArray[np.int64]
Grid = tuple[int, int]


def kept_positions(seed: int, shown: Sequence[tuple[int, int]], grid: Grid, count: int) -> Positions:
    """(B, N): ascending positions row * width + column, uniform without replacement, of each (key, view number)."""
    tokens = grid[0] * grid[1]
    drawn = [permutation(words(Purpose.TOKENS, seed, key, number, tokens))[:count] for key, number in shown]
    return np.sort(np.stack(drawn), axis=1) if drawn else np.zeros((0, count), np.int64)


def places_among(kept_BM: Positions, wanted_BN: Positions) -> Positions:
    """(B, N): where each wanted position stands among those that are kept; all must be there."""
    found_BNM = wanted_BN[:, :, None] == kept_BM[:, None, :]
    assert found_BNM.any(axis=-1).all()
    return np.asarray(found_BNM.argmax(axis=-1))
