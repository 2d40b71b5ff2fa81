"""What the student must guess in a step: every teacher's tokens, from the cache or from the teachers themselves.

    codes -> tokens                                  (cached)
    views -> teacher -> standardized, rounded as f16 (online)
        -> the standardization asked for -> the positions that the loss sees

Letters: B images, H and W pixels, T tokens of a grid, N of them that the loss sees, D channels.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unic_cache.cache import Cache, CachedTeacher
from unic_cache.config import DistillConfig, Views
from unic_cache.errors import ConfigError
from unic_cache.store.sampling import Sample, places_among, sample_seen
from unic_cache.store.standardize import affine
from unic_cache.stream.batches import Batch
from unic_cache.teachers.model import Teacher
from unic_cache.token_kinds import Grid

Tokens = dict[str, dict[str, Tensor]]  # teacher -> kind -> (B, D), or (B, T, D) on a grid
Source = Callable[[Batch, Tensor], Tokens]  # a batch and its views on the device -> all tokens, standardized, there


@dataclass(frozen=True)
class Cached:
    """Tokens from the cache: the stored codes are copied to the device and decoded there."""

    teachers: Sequence[CachedTeacher]

    def __call__(self, batch: Batch, views_BHWC: Tensor) -> Tokens:
        """Decode each teacher once."""
        device = views_BHWC.device
        return {
            teacher.name: teacher.codec.decode(
                {name: values.to(device, non_blocking=True) for name, values in batch.parts[teacher.name].items()}
            )
            for teacher in self.teachers
        }


@dataclass(frozen=True)
class Live:
    """Tokens from the teachers themselves, rounded as codec f16 rounds them."""

    teachers: Sequence[CachedTeacher]
    models: Mapping[str, Teacher]

    def __call__(self, batch: Batch, views_BHWC: Tensor) -> Tokens:  # noqa: ARG002
        """Run each teacher once. TeacherError on NaN or infinity."""
        found: Tokens = {}
        for teacher in self.teachers:
            arrays = teacher.codec.encode(teacher.calibration.standardize(self.models[teacher.name](views_BHWC))).arrays
            found[teacher.name] = teacher.codec.decode({array.name: arrays[array.name] for array in teacher.arrays})
        return found


class Targets:
    """A source's tokens as the loss needs them: standardized as asked, at the positions that the loss sees."""

    def __init__(
        self,
        config: DistillConfig,
        cache: Cache,
        teachers: Sequence[CachedTeacher],
        views: Views,
        source: Source,
        device: torch.device,
    ) -> None:
        self._cache, self._seed, self._source = cache, views.seed, source
        self._maps = {
            (teacher.name, kind): (found[0].to(device), found[1].to(device))
            for teacher in teachers
            for kind in teacher.kinds
            if (found := affine(teacher.calibration, kind, config.standardize)) is not None
        }
        stored: dict[Grid, dict[str, Sample]] = {}  # grid -> teacher -> its stored tokens
        heads: dict[tuple[Grid, Sample], list[tuple[str, str]]] = {}  # (grid, stored tokens) -> (teacher, kind)
        for teacher in teachers:
            grid, sample = teacher.codec.features.grid, teacher.codec.features.sample
            seen = [(teacher.name, kind) for kind, tokens in teacher.kinds.items() if tokens.grid]
            if grid is not None and sample is not None and seen:
                stored.setdefault(grid, {})[teacher.name] = sample
                heads.setdefault((grid, sample), []).extend(seen)
        if config.tokens is not None and not heads:
            raise ConfigError(f"--tokens {config.tokens}, but the loss sees no patch tokens; leave --tokens out")
        self.seen = {grid: sample_seen(grid, of, config.tokens) for grid, of in stored.items()}
        self._longer = {of: names for of, names in heads.items() if of[1].count > self.seen[of[0]].count}

    def __call__(self, batch: Batch, views_BHWC: Tensor) -> tuple[Tokens, dict[Grid, Tensor]]:
        """The targets, and the positions (B, N) on the device for each grid that the loss sees only a sample of."""
        tokens, device = self._source(batch, views_BHWC), views_BHWC.device
        for (name, kind), (matrix, offset) in self._maps.items():
            tokens[name][kind] = tokens[name][kind] @ matrix + offset
        shown = [(self._cache.entry(item.segment, item.shard).keys[item.row], item.number) for item in batch.wanted]
        sampled = {grid: sample for grid, sample in self.seen.items() if sample.count < math.prod(grid)}
        positions = {grid: sample.positions(self._seed, shown, grid) for grid, sample in sampled.items()}
        seen = {grid: torch.from_numpy(found).to(device, non_blocking=True) for grid, found in positions.items()}
        for (grid, stored), heads in self._longer.items():
            index_BN = seen[grid]
            if stored.count < math.prod(grid):
                stored_BM = stored.positions(self._seed, shown, grid)
                places_BN = places_among(stored_BM, positions[grid])
                index_BN = torch.from_numpy(places_BN).to(device, non_blocking=True)
            for name, kind in heads:
                tokens[name][kind] = tokens[name][kind].take_along_dim(index_BN[..., None], dim=1)
        return tokens, seen
