"""The views that a plan measures on: a few, spread evenly over all images, and timed while they are made.

Letters: N views, H and W pixels.
"""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numcodecs.zstd import Zstd
from torch import Tensor

from pipelines.command.tars import given_shards
from unic_cache.cache import Cache, open_cache
from unic_cache.config import PlanConfig
from unic_cache.config.bounds import RANGES
from unic_cache.errors import CacheError
from unic_cache.files.schemes import open_location
from unic_cache.store.codecs.pixel_codec import to_differences
from unic_cache.store.coders import ZSTD_LEVEL
from unic_cache.store.layout import CHUNK_ROWS, VIEWS_MEMBER
from unic_cache.store.member import Member
from unic_cache.stream.address import Address
from unic_cache.stream.pixels import KeptPixels, PixelSource, ShardPixels
from unic_cache.views.index import ShardEntry, refuse_twice

MADE_ALONE = 48  # views that one thread makes, to time it

Index = Mapping[tuple[int, int], ShardEntry]


@dataclass(frozen=True)
class Trial:
    """Views to measure on, and the tars that they represent."""

    views_NHWC: Tensor  # uint8
    shown: tuple[tuple[int, int], ...]  # (key, view number) of each
    shards: Mapping[str, int]  # rows of every tar
    padding: float  # rows of all tars, each rounded up to whole chunks, over their images
    make_seconds: float  # per view, on one core

    @property
    def images(self) -> int:
        """Images in all tars."""
        return sum(self.shards.values())


def make_trial(config: PlanConfig, pool: ThreadPoolExecutor) -> Trial:
    """Good views from all tars, or kept views if no tars are given and the cache has some.

    CacheError if too few of the images can be decoded, or a tar is not the one that the cache has under its name.
    """
    index, source, wanted = origin(config, pool)
    batch = source(pool).start(wanted, len(wanted))()
    good = [place for place in range(len(wanted)) if place not in batch.bad]
    if len(good) < RANGES["images"].least:
        raise CacheError(
            f"only {len(good)} of {len(wanted)} images can be decoded, and a plan needs {RANGES['images'].least}; are "
            "these images? If few are broken, measure on more with --images"
        )
    with ThreadPoolExecutor(1) as alone:
        few = [wanted[place] for place in good[:MADE_ALONE]]
        began = time.perf_counter()
        source(alone).start(few, len(few))()
        seconds = (time.perf_counter() - began) / len(few)
    shards = {entry.name: entry.rows for entry in index.values()}
    padded = sum(-(-rows // CHUNK_ROWS) * CHUNK_ROWS for rows in shards.values())
    shown = [(index[item.segment, item.shard].keys[item.row], item.number) for item in wanted]
    return Trial(
        torch.from_numpy(batch.views_BHWC[good]),
        tuple(shown[place] for place in good),
        shards,
        padded / sum(shards.values()),
        seconds,
    )


def pixel_bytes(trial: Trial, codec: str) -> float:
    """Bytes per view that the store needs for its pixels."""
    if codec == "raw":
        return trial.views_NHWC[0].numel() * trial.padding
    chunks = torch.split(to_differences(trial.views_NHWC), CHUNK_ROWS)
    return sum(len(Zstd(level=ZSTD_LEVEL).encode(chunk.numpy())) for chunk in chunks) / len(trial.views_NHWC)


def origin(
    config: PlanConfig, pool: ThreadPoolExecutor
) -> tuple[Index, Callable[[ThreadPoolExecutor], PixelSource], list[Address]]:
    """All tars by their place, a source of their views that works in a given pool, and the views to measure on."""
    views, location = config.kind, open_location(config.cache)
    paths, entries = given_shards(config.shards, Member.open(location, VIEWS_MEMBER) is not None)
    if paths:
        refuse_twice(entry.name for entry in entries)
        begun = Cache(location)
        for entry in entries:
            if entry.name in begun.shards():
                begun.place(entry.name, entry.keys)
        tars = {(0, at): pair for at, pair in enumerate(zip(paths, entries, strict=True))}
        index = {place: entry for place, (_, entry) in tars.items()}
        return index, lambda threads: ShardPixels(views, tars, threads), spread(index, config.images)
    cache = open_cache(config.cache)
    index = {place: cache.entry(*place) for place in cache.shards().values()}
    kept = KeptPixels(views, cache, pool)
    wanted = [item for item in spread(index, config.images) if kept.has(item)]
    return index, lambda threads: KeptPixels(views, cache, threads), wanted


def spread(index: Index, count: int) -> list[Address]:
    """`count` views spread evenly over all rows: view 0, and further views if there are fewer images."""
    places, ends = list(index), np.cumsum([entry.rows for entry in index.values()])
    rows = np.linspace(0, ends[-1] - 1, min(count, int(ends[-1]))).astype(int)
    owners = np.searchsorted(ends, rows, side="right")
    within = rows - (ends - [entry.rows for entry in index.values()])[owners]
    found = [
        Address(places[owner][0], places[owner][1], row, number)
        for number in range(-(-count // len(rows)))
        for owner, row in zip(owners.tolist(), within.tolist(), strict=True)
    ]
    return found[:count]
