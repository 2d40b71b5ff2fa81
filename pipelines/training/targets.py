"""What the student must guess in a step: every teacher's tokens, from the cache or from the teachers themselves.

    codes -> tokens                                   (cached)
    views -> teacher -> standardized, as f16 keeps it   (online)
        -> the standardization asked for -> the places asked for

Letters: B images, H and W pixels, T tokens of a grid, N of which the loss sees, D channels.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from unic_cache.cache import Cache, CachedTeacher
from unic_cache.config import DistillConfig, Views
from unic_cache.errors import ConfigError
from unic_cache.store.sampling import kept_positions, places_among
from unic_cache.store.standardize import affine
from unic_cache.stream.batches import Batch
from unic_cache.teachers.model import Teacher
from unic_cache.tokens import grid_of

Grid = tuple[int, int]
Tokens = dict[str, dict[str, Tensor]]  # teacher -> {"cls": (B, D), "patch": (B, T, D)}


class Source(Protocol):
    """Every teacher's standardized tokens of a batch, all that there are."""

    def __call__(self, batch: Batch, views_BHWC: Tensor) -> Tokens:
        """The tokens, on the device of the views."""
        ...


class Cached:
    """Tokens from what the cache keeps; the codes travel to the device as they are, and are decoded there."""

    def __init__(self, teachers: Sequence[CachedTeacher]) -> None:
        self._teachers = teachers

    def __call__(self, batch: Batch, views_BHWC: Tensor) -> Tokens:
        """One decoding a teacher."""
        device = views_BHWC.device
        return {
            teacher.name: teacher.codec.decode(
                {name: values.to(device, non_blocking=True) for name, values in batch.parts[teacher.name].items()}
            )
            for teacher in self._teachers
        }


class Live:
    """Tokens from the teachers at once, rounded as codec f16 rounds them."""

    def __init__(self, teachers: Sequence[CachedTeacher], models: Mapping[str, Teacher]) -> None:
        self._teachers = teachers
        self._models = models

    def __call__(self, batch: Batch, views_BHWC: Tensor) -> Tokens:  # noqa: ARG002
        """One forward a teacher. TeacherError on NaN or infinity."""
        return {
            teacher.name: teacher.codec.decode(
                teacher.codec.encode(teacher.calibration.standardize(self._models[teacher.name](views_BHWC))).arrays
            )
            for teacher in self._teachers
        }


class Targets:
    """A source, and what is made of its tokens for the loss."""

    def __init__(
        self,
        config: DistillConfig,
        cache: Cache,
        teachers: Sequence[CachedTeacher],
        views: Views,
        source: Source,
        device: torch.device,
    ) -> None:
        self._cache = cache
        self._seed = views.seed
        self._source = source
        self._grids = {t.name: grid for t in teachers if (grid := grid_of(t.kinds))}
        self._kept = {t.name: t.codec.features.tokens for t in teachers}
        self._maps = {
            (teacher.name, kind): (found[0].to(device), found[1].to(device))
            for teacher in teachers
            for kind in teacher.calibration.mean
            if (found := affine(teacher.calibration, kind, config.standardize)) is not None
        }
        self.seen = {grid: self._count(grid, config.tokens) for grid in set(self._grids.values())}

    def __call__(self, batch: Batch, views_BHWC: Tensor) -> tuple[Tokens, dict[Grid, Tensor]]:
        """The targets, and for each grid of which the loss sees a sample, its positions (B, N) on the device."""
        tokens = self._source(batch, views_BHWC)
        for (name, kind), (matrix, offset) in self._maps.items():
            values = tokens[name][kind]
            tokens[name][kind] = values @ matrix + offset
        shown = [(self._cache.entry(item.segment, item.shard).keys[item.row], item.number) for item in batch.wanted]
        positions = {
            grid: kept_positions(self._seed, shown, grid, count)
            for grid, count in self.seen.items()
            if count < grid[0] * grid[1]
        }
        for name, grid in self._grids.items():
            if grid in positions and self._kept[name] > self.seen[grid]:
                places_BN = positions[grid]
                if self._kept[name] < grid[0] * grid[1]:
                    places_BN = places_among(kept_positions(self._seed, shown, grid, self._kept[name]), places_BN)
                index = torch.from_numpy(np.ascontiguousarray(places_BN)).to(views_BHWC.device)
                tokens[name]["patch"] = tokens[name]["patch"].take_along_dim(index[..., None], dim=1)
        return tokens, {grid: torch.from_numpy(found).to(views_BHWC.device) for grid, found in positions.items()}

    def _count(self, grid: Grid, asked: int | None) -> int:
        """How many tokens of a grid the loss sees: what is asked for, or else as many as every teacher of it has."""
        least = min(self._kept[name] for name, other in self._grids.items() if other == grid)
        if asked is not None and asked > least:
            raise ConfigError(
                f"{asked} patch tokens are asked for, but of the grid {grid[0]} x {grid[1]} only {least} are kept; "
                "leave --tokens out, or ask for fewer"
            )
        return asked or least
