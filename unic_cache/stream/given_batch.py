"""A batch that was read, as the dictionary that `FeatureDataset` gives.

Letters: B images.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from unic_cache.cache import Cache, CachedTeacher
from unic_cache.errors import BrokenError, CacheError, ConfigError
from unic_cache.inputs import Colour, network_input
from unic_cache.store.sampling import Positions
from unic_cache.stream.address import Address, shown
from unic_cache.stream.batches import Batch
from unic_cache.stream.given_tokens import GivenTokens
from unic_cache.stream.rows import Rows
from unic_cache.views.index import NO_LABEL

FeatureBatch: TypeAlias = dict[str, Any]
OWN = ("image", "label", "key", "view")  # its keys besides the teachers' names


@dataclass(frozen=True)
class Prepared:
    """Images as a network takes them: float32 (B, C, size, size), (x / 255 - mean) / std."""

    mean: Colour
    std: Colour
    size: int


def prepared(
    mean: Sequence[float] | None, std: Sequence[float] | None, img_size: int | None, size: int, images: bool
) -> Prepared | None:
    """What the arguments ask for; None for uint8 images. `size` is the views'. ConfigError if one lacks another."""
    if mean is None and std is None and img_size is None:
        return None
    if mean is None or std is None:
        raise ConfigError("mean, std and img_size prepare images together: give mean and std, img_size may be left out")
    if not images:
        raise ConfigError("mean and std prepare images, but images is False; leave them out")
    given: tuple[tuple[str, Any, float], ...] = (("mean", mean, 0.0), ("std", std, 1e-3))
    for name, colour, least in given:
        if len(three := _numbers(colour)) != 3 or not all(least <= value <= 1 for value in three):
            raise ConfigError(f"{name} {colour} is not of pixels in [0, 1]; give three, such as (0.485, 0.456, 0.406)")
    red, green, blue = _numbers(mean)
    reds, greens, blues = _numbers(std)
    return Prepared((red, green, blue), (reds, greens, blues), img_size or size)


def _numbers(given: Any) -> list[float]:
    """The numbers of a sequence, an array or a tensor; none if it is of something else."""
    try:
        return [] if isinstance(given, str) else [float(value) for value in given]
    except (TypeError, ValueError):
        return []


class GivenBatch:
    """Makes the dictionaries. CacheError if a teacher has the name of another key."""

    def __init__(
        self,
        cache: Cache,
        teachers: Sequence[CachedTeacher],
        tokens: GivenTokens,
        images: bool,
        preparation: Prepared | None,
        labelled: bool,
        device: torch.device,
        numpy: bool,
    ) -> None:
        self.cache = cache
        self.teachers = teachers
        self.tokens = tokens
        self.images = images
        self.preparation = preparation
        self.labelled = labelled
        self.device = device
        self.numpy = numpy
        for name in OWN:
            if name in {teacher.name for teacher in teachers}:
                raise CacheError(f"{cache.location.url}: a teacher is called {name!r}, which every batch has a key of")

    def __call__(self, batch: Batch) -> FeatureBatch:
        """The dictionary, without broken images. BrokenError if none is left."""
        good_N = batch.good_B.nonzero().flatten() if batch.broken else None
        wanted = batch.wanted if good_N is None else [batch.wanted[place] for place in good_N.tolist()]
        if not wanted:
            raise BrokenError(
                f"{self.cache.location.url}: none of a batch's {len(batch.wanted)} images is as committed; run "
                "`unic-cache verify` to list everything broken"
            )
        found: FeatureBatch = {}
        if self.images:
            found["image"] = self._images(batch.views_BHWC if good_N is None else batch.views_BHWC[good_N])
        keys = shown(self.cache, wanted)
        if self.labelled:
            found["label"] = self._integers([label_of(self.cache, item) for item in wanted])
        found["key"] = self._integers([key for key, _ in keys])
        found["view"] = self._integers([number for _, number in keys])
        drawn: dict[object, Positions] = {}
        for teacher in self.teachers:
            arrays = batch.parts[teacher.name]
            if good_N is not None:
                arrays = {name: values[good_N] for name, values in arrays.items()}
            found[teacher.name] = self.tokens(teacher, arrays, keys, drawn)
        return as_numpy(found) if self.numpy else found

    def _images(self, views_BHWC: Tensor) -> Tensor:
        moved = views_BHWC.to(self.device, non_blocking=True)
        how = self.preparation
        return moved if how is None else network_input(moved, how.size, how.mean, how.std)

    def _integers(self, values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64).to(self.device, non_blocking=True)


def as_numpy(found: FeatureBatch) -> FeatureBatch:
    """The same with numpy arrays, which share the tensors' memory."""
    return {name: as_numpy(value) if isinstance(value, dict) else value.numpy() for name, value in found.items()}


def label_of(cache: Cache, item: Address) -> int:
    """The image's class number in the cache's index; -1 if it has none."""
    return int(cache.entry(item.segment, item.shard).labels[item.row])


def labelled_rows(cache: Cache, rows: Rows) -> int:
    """How many rows have a label."""
    return sum(
        int((np.asarray(cache.entry(segment, shard).labels)[own] != NO_LABEL).sum())
        for segment, shard, own in rows.by_tar()
    )
