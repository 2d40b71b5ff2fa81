"""Which grid tokens are stored of each view with `--tokens`.

Positions are a pure function of (seed, sample key, view number, grid): teachers with one grid share them, and nothing
needs storing. Fewer tokens are a subset of more.

Letters: B images, T tokens of the grid, D channels, N and M of the T tokens are stored.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from torch import Tensor

from unic_cache.draws import Purpose, permutation, words
from unic_cache.token_kinds import Grid

Positions = npt.NDArray[np.int64]


def kept_positions(seed: int, shown: Sequence[tuple[int, int]], grid: Grid, count: int) -> Positions:
    """(B, N): ascending positions row * width + column of each (key, view number), drawn without replacement."""
    tokens = grid[0] * grid[1]
    drawn = [permutation(words(Purpose.TOKENS, seed, key, number, tokens))[:count] for key, number in shown]
    return np.sort(np.stack(drawn), axis=1) if drawn else np.zeros((0, count), np.int64)


def places_among(kept_BM: Positions, wanted_BN: Positions) -> Positions:
    """(B, N): the index of each wanted position among those stored, which must include it."""
    found_BNM = wanted_BN[:, :, None] == kept_BM[:, None, :]
    assert found_BNM.any(axis=-1).all()
    return np.asarray(found_BNM.argmax(axis=-1))


def at_positions(features: Mapping[str, Tensor], kept_BN: Tensor | None) -> dict[str, Tensor]:
    """Grid tokens (B, T, D) at `kept_BN`, (B, N, D); summary tokens (B, D) unchanged. None takes all tokens."""
    if kept_BN is None:
        return dict(features)
    return {
        kind: x if x.ndim == 2 else x.take_along_dim(kept_BN.to(x.device)[..., None], dim=1)
        for kind, x in features.items()
    }
