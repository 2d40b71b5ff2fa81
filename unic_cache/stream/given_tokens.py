"""A batch's stored arrays as the tokens that were asked for: decoded, in the scale asked for, at some positions.

Letters: B images, T tokens of a grid, N of them that are given, D channels.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from unic_cache.cache import CachedTeacher
from unic_cache.config import STANDARDIZATIONS
from unic_cache.config.bounds import check_choice
from unic_cache.errors import ConfigError
from unic_cache.store.sampling import Positions, Sample, Shown, places_among, sample_seen
from unic_cache.token_kinds import Grid

POSITIONS = "positions"  # where sampled tokens lie, beside the token kinds


class GivenTokens:
    """Tokens of some teachers, {"cls": (B, D), "patch": (B, N, D)} float32, plus "positions" (B, N) if N < T.

    Positions are row * width + column in the teacher's grid, int64 and ascending. Without `tokens` a teacher gives all
    that it stores; with it, N tokens at positions that are the same for all teachers of one grid.

    `standardize` is "channel" for the stored values, "phi-s", or "none" for the teacher's own scale. ConfigError for
    more tokens than are stored, or tokens of teachers that give none; CacheError if `phi-s` needs a covariance that a
    calibration lacks.
    """

    def __init__(
        self,
        teachers: Sequence[CachedTeacher],
        seed: int,
        tokens: int | None,
        standardize: str,
        device: torch.device,
    ) -> None:
        check_choice("standardize", standardize, STANDARDIZATIONS)
        self._seed, self._device = seed, device
        self._standardize = standardize
        self._samples = {teacher.name: sample for teacher in teachers if (sample := _stored(teacher)) is not None}
        for teacher in teachers:  # each map is made now
            teacher.scaled(
                {k: torch.zeros(1, kind.channels, device=device) for k, kind in teacher.kinds.items()}, standardize
            )
        if tokens is not None and not self._samples:
            raise ConfigError(f"tokens {tokens}, but the teachers give no patch tokens here; leave tokens out")
        self._given = self._samples if tokens is None else _shared(self._samples, tokens)

    def __call__(
        self, teacher: CachedTeacher, arrays: Mapping[str, Tensor], shown: Shown, drawn: dict[object, Positions]
    ) -> dict[str, Tensor]:
        """Move a teacher's arrays, (B, ...) each, to the device and decode them there.

        `shown` is (key, view number) of each image; `drawn` keeps positions from one teacher of a batch to the next.
        """
        moved = {name: values.to(self._device, non_blocking=True) for name, values in arrays.items()}
        tokens = teacher.scaled(teacher.codec.decode(moved), self._standardize)
        if teacher.name not in self._samples:
            return tokens
        grid, stored = self._samples[teacher.name]
        _, given = self._given[teacher.name]
        if given.count == math.prod(grid):
            return tokens
        places_BN = self._positions(grid, given, shown, drawn)
        if given.count < stored.count:
            at_BN = places_BN
            if stored.count < math.prod(grid):
                at_BN = places_among(self._positions(grid, stored, shown, drawn), places_BN)
            index_BN1 = torch.from_numpy(at_BN).to(self._device, non_blocking=True)[..., None]
            for kind, values in tokens.items():
                tokens[kind] = values.take_along_dim(index_BN1, dim=1) if values.ndim == 3 else values
        return {**tokens, POSITIONS: torch.from_numpy(places_BN).to(self._device, non_blocking=True)}

    def _positions(self, grid: Grid, sample: Sample, shown: Shown, drawn: dict[object, Positions]) -> Positions:
        """(B, N) positions, drawn once for all teachers of a batch."""
        if (grid, sample) not in drawn:
            drawn[grid, sample] = np.ascontiguousarray(sample.positions(self._seed, shown, grid))
        return drawn[grid, sample]


def _stored(teacher: CachedTeacher) -> tuple[Grid, Sample] | None:
    """A teacher's grid, and which of its tokens are stored; None if it gives no grid tokens."""
    grid, sample = teacher.codec.features.grid, teacher.codec.features.sample
    gives = any(kind.grid for kind in teacher.kinds.values())
    return (grid, sample) if gives and grid is not None and sample is not None else None


def _shared(samples: Mapping[str, tuple[Grid, Sample]], tokens: int) -> dict[str, tuple[Grid, Sample]]:
    """`tokens` tokens of each teacher, which teachers of one grid have in common."""
    stored: dict[Grid, dict[str, Sample]] = {}
    for name, (grid, sample) in samples.items():
        stored.setdefault(grid, {})[name] = sample
    seen = {grid: sample_seen(grid, of, tokens) for grid, of in stored.items()}
    return {name: (grid, seen[grid]) for name, (grid, _) in samples.items()}
