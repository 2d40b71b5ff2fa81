"""Which grid tokens are stored of each view with `--tokens`.

| rule      | the N positions that are stored of the T of a grid h x w                                               |
|-----------|--------------------------------------------------------------------------------------------------------|
| `lattice` | every s-th row and column, from a seeded offset; s divides h and w, and (h / s) (w / s) = N            |
| `random`  | those of the N lowest of T seeded words                                                                |

Under both rules each position is stored with probability N / T, so the expected loss is that of all tokens. Positions
are a pure function of (seed, sample key, view number, grid): teachers with one grid share them, and nothing needs
storing. Fewer random positions are a subset of more. A view has one offset in the whole grid, taken modulo s, so the
lattice of a multiple of s lies within that of s. A lattice is a grid itself, so codec `klt` keeps its DCT.

Letters: B images, T tokens of the grid, D channels, N and M of the T tokens are stored, s the stride.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from unic_cache.config import LATTICE, RANDOM
from unic_cache.draws import Purpose, permutation, words
from unic_cache.errors import ConfigError
from unic_cache.token_kinds import Grid

Positions = npt.NDArray[np.int64]
Shown = Sequence[tuple[int, int]]  # (sample key, view number) of each image


@dataclass(frozen=True)
class Sample:
    """`count` tokens of a grid, chosen by a rule of `RULES`. All tokens are a lattice of stride 1."""

    rule: str
    count: int

    def __str__(self) -> str:
        return f"{self.count} {'on a lattice' if self.rule == LATTICE else 'at random positions'}"

    def positions(self, seed: int, shown: Shown, grid: Grid) -> Positions:
        """(B, N): ascending positions row * width + column of each (key, view number)."""
        return RULES[self.rule](seed, shown, grid, self.count)

    def holds(self, fewer: "Sample", grid: Grid) -> bool:
        """Whether every position of `fewer` is one of these, in every view."""
        if self.count == math.prod(grid):
            return True
        if self.rule == fewer.rule == LATTICE:
            ours, theirs = stride(grid, self.count), stride(grid, fewer.count)
            return ours is not None and theirs is not None and theirs % ours == 0
        return self.rule == fewer.rule and fewer.count <= self.count


def random_positions(seed: int, shown: Shown, grid: Grid, count: int) -> Positions:
    """(B, N): ascending positions of each (key, view number), drawn without replacement."""
    tokens = grid[0] * grid[1]
    drawn = [permutation(words(Purpose.TOKENS, seed, key, number, tokens))[:count] for key, number in shown]
    return np.sort(np.stack(drawn), axis=1) if drawn else np.zeros((0, count), np.int64)


def lattice_positions(seed: int, shown: Shown, grid: Grid, count: int) -> Positions:
    """(B, N): ascending positions of a regular lattice for each (key, view number); `count` must have a stride."""
    step = stride(grid, count)
    assert step is not None
    drawn = [int(words(Purpose.TOKENS, seed, key, number, 1)[0]) % (grid[0] * grid[1]) for key, number in shown]
    return lattice_through(np.array(drawn, np.int64), grid, step)


RULES: dict[str, Callable[[int, Shown, Grid, int], Positions]] = {LATTICE: lattice_positions, RANDOM: random_positions}


def lattice_through(one_B: Positions, grid: Grid, step: int) -> Positions:
    """(B, N): ascending positions of the lattice of stride `step` that has position `one_B`, for each image."""
    row_B, column_B = np.divmod(one_B, grid[1])
    rows_BI = (row_B % step)[:, None] + np.arange(0, grid[0], step)
    columns_BJ = (column_B % step)[:, None] + np.arange(0, grid[1], step)
    return np.asarray((rows_BI[:, :, None] * grid[1] + columns_BJ[:, None, :]).reshape(-1, math.prod(grid) // step**2))


def stride(grid: Grid, count: int) -> int | None:
    """The stride of the lattice of `count` tokens; None if the grid has none of that many."""
    return next((step for step in strides(grid) if (grid[0] // step) * (grid[1] // step) == count), None)


def strides(grid: Grid) -> list[int]:
    """Every stride that divides both sides of the grid, ascending."""
    most = math.gcd(*grid)
    return [step for step in range(1, most + 1) if most % step == 0]


def coarser(sample: Sample, grid: Grid) -> list[int]:
    """The counts of all lattices within a sample, largest first; none within random positions."""
    counts = [(grid[0] // step) * (grid[1] // step) for step in strides(grid)]
    return [count for count in counts if sample.holds(Sample(LATTICE, count), grid)]


def no_lattice(grid: Grid, count: int) -> str:
    """What is wrong with `count` tokens on a lattice, and what to choose instead."""
    counts = ", ".join(map(str, coarser(Sample(LATTICE, math.prod(grid)), grid)))
    return (
        f"the grid of {grid[0]} x {grid[1]} has no regular lattice of {count} tokens, only of {counts}; choose one of "
        f"these with --tokens, or --sampling {RANDOM}"
    )


def sample_seen(grid: Grid, stored: Mapping[str, Sample], asked: int | None) -> Sample:
    """Which tokens of a grid the loss sees, by what is stored of each teacher on it: positions that all of them have.

    | stored besides whole grids | without --tokens            | with --tokens N                                   |
    |----------------------------|-----------------------------|---------------------------------------------------|
    | nothing                    | all tokens                  | N at random positions                             |
    | random positions           | the fewest that are stored  | N at random positions, which all samples have     |
    | lattices                   | the largest in all lattices | the lattice of N tokens, if it is in all lattices |

    ConfigError for more tokens than that, for another N beside lattices, and for lattices beside random positions.
    """
    parts = {name: sample for name, sample in stored.items() if sample.count < math.prod(grid)}
    words, rules = f"the grid {grid[0]} x {grid[1]}", {sample.rule: name for name, sample in parts.items()}
    if len(rules) > 1:
        each = " and ".join(f"{parts[name]} of {name}" for name in rules.values())
        raise ConfigError(
            f"of {words}, {each} are stored, which share no positions to train on; leave one out with --teacher, or "
            "extract both by one rule with --sampling"
        )
    if LATTICE in rules:
        step = math.lcm(*(stride(grid, sample.count) or 1 for sample in parts.values()))
        common = Sample(LATTICE, math.prod(grid) // step**2)
        counts = coarser(common, grid)
        if asked is not None and asked not in counts:
            raise ConfigError(
                f"--tokens {asked}, but the stored tokens of {words} share {common}; choose "
                f"{' or '.join(map(str, counts))}, or leave --tokens out"
            )
        return Sample(LATTICE, asked or common.count)
    least = min(sample.count for sample in stored.values())
    if asked is not None and asked > least:
        raise ConfigError(
            f"--tokens {asked}, but only {least} tokens of {words} are stored; ask for fewer, or leave --tokens out"
        )
    return Sample(RANDOM, asked or least)


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
