"""Images of a cache, spread evenly over its tars, with the tokens that its teachers gave for them.

Letters: N images, H and W pixels, T stored tokens, D channels.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from torch import Tensor

from pipelines.command.tars import given_shards
from unic_cache.cache import Cache, CachedTeacher
from unic_cache.config import CENTER, Views
from unic_cache.errors import CacheError
from unic_cache.evaluate.token_pictures import Tokens
from unic_cache.stream.address import Address, shown
from unic_cache.stream.batches import Batch, Stream
from unic_cache.stream.matched import Tars, matched
from unic_cache.stream.pixels import KeptPixels, Pixels, ShardPixels
from unic_cache.stream.rows import usable_rows

Item = TypeVar("Item")


@dataclass(frozen=True)
class Source:
    """Where views of one kind come from: the cache that keeps them, or tars."""

    cache: Cache
    teachers: Sequence[CachedTeacher]
    views: Views
    pixels: Pixels
    pool: ThreadPoolExecutor

    def batch(self, wanted: Sequence[Address]) -> Batch:
        """These views and their stored tokens. BrokenError if they differ from what the teachers saw or committed."""
        stream = Stream(self.cache, self.teachers, self.views, self.pixels, self.pool)
        (found,) = stream.batches(iter([list(wanted)]))
        return found

    def tars(self, number: int) -> list[str]:
        """Names of the tars that every teacher has under view `number`, and whose pixels can be had."""
        sets = [
            {
                (segment, tar)
                for views, at, segment, tars in self.cache.committed(teacher.member)
                if (views, at) == (self.views, number)
                for tar in tars
            }
            for teacher in self.teachers
        ]
        common = set.intersection(*sets)
        return [
            name
            for name, place in self.cache.shards().items()
            if place in common
            and (place in self.pixels.decoded.tars or self.pixels.kept.has(Address(*place, 0, number)))
        ]

    def spread(self, number: int, count: int) -> list[Address]:
        """Up to `count` good images under view `number`, evenly spread over tars and rows; none if there are none."""
        names = evenly(self.tars(number), count)
        rows, _ = usable_rows(self.cache, self.teachers, self.views, [number], names)
        return [rows.address(place, number) for place in evenly(range(len(rows)), count)]


def given_tars(cache: Cache, pattern: str | None) -> Tars:
    """The tars of a pattern by their place in the cache, none without a pattern. CacheError for tars it lacks."""
    paths, entries = ((), ()) if pattern is None else given_shards(pattern, False)
    return matched(cache, zip(paths, entries, strict=True))


def open_source(
    cache: Cache, teachers: Sequence[CachedTeacher], views: Views, tars: Tars, pool: ThreadPoolExecutor
) -> Source:
    """The views of a kind: those that the cache keeps, and those of the tars."""
    pixels = Pixels(KeptPixels(views, cache, pool), ShardPixels(views, tars, pool))
    return Source(cache, teachers, views, pixels, pool)


def teacher_tokens(source: Source, batch: Batch) -> list[Tokens]:
    """Each teacher's first grid kind, de-standardized; teachers without a grid are left out."""
    found = []
    for teacher in source.teachers:
        kind = grid_kind(teacher)
        grid = None if kind is None else teacher.kinds[kind].grid
        if kind is None or grid is None:
            continue
        decoded = teacher.codec.decode(dict(batch.parts[teacher.name]))
        own: Tensor = teacher.calibration.destandardize({kind: decoded[kind]})[kind]
        positions = teacher.codec.features.positions(source.views.seed, shown(source.cache, batch.wanted))
        found.append(Tokens(teacher.name, grid, own.numpy(), positions))
    return found


def grid_kind(teacher: CachedTeacher) -> str | None:
    """The teacher's first kind of grid tokens."""
    return next((kind for kind, tokens in teacher.kinds.items() if tokens.grid is not None), None)


def photographs(batch: Batch) -> list[npt.NDArray[np.uint8]]:
    """The views of a batch, each (H, W, 3), in memory of their own."""
    return list(batch.views_BHWC.numpy().copy())


def evenly(items: Sequence[Item], count: int) -> list[Item]:
    """`count` of the items, evenly spread from the first to the last; all if there are fewer."""
    places = np.unique(np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int))
    return [items[place] for place in places.tolist()]


def readable(cache: Cache) -> list[CachedTeacher]:
    """All teachers of a cache. CacheError if it has none."""
    if not cache.teachers:
        raise CacheError(f"{cache.location.url} has no teacher to draw; run `unic-cache extract --teacher NAME`")
    return list(cache.teachers.values())


def shared_views(cache: Cache, teachers: Sequence[CachedTeacher]) -> list[Views]:
    """The kinds of views that all teachers have, smallest first."""
    each = [{views for views, *_, tars in cache.committed(teacher.member) if tars} for teacher in teachers]
    common = set.intersection(*each) if each else set()
    return sorted(common, key=lambda views: (views.size, views.kind, views.seed))


def center_views(cache: Cache, teachers: Sequence[CachedTeacher]) -> Views:
    """The largest center views that all teachers have. CacheError if there are none."""
    found = [views for views in shared_views(cache, teachers) if views.recipe == CENTER]
    if not found:
        raise CacheError(
            f"{cache.location.url} has no center views of all of {', '.join(teacher.name for teacher in teachers)}; "
            "run `unic-cache extract --recipe center --views 1` with the same teachers"
        )
    return found[-1]
