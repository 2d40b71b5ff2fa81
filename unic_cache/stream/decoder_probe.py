"""The probe: pixels of a few views, stored once per recipe, to detect machines that decode differently.

Decoders and resamplers differ between releases. Checksums show that pixels differ; the probe shows by how much, and
which versions made them.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unic_cache.cache import Cache
from unic_cache.config import Views
from unic_cache.errors import CacheError
from unic_cache.files.location import Location
from unic_cache.store.commit import view_called
from unic_cache.store.npz import load_npz, save_npz
from unic_cache.stream.address import Address
from unic_cache.stream.pixels import ShardPixels
from unic_cache.views.augment import AUGMENT_VERSION
from unic_cache.views.decode import decoder_versions

PROBES = 16
DECODERS_APART = 16  # levels of 255; a larger difference with the same versions means another picture
PROBE_FILE = re.compile(r"probe/([^/]+)\.npz")


@dataclass(frozen=True)
class PixelDifference:
    """How far this machine's views differ from the probe's, in levels of 255."""

    largest: int
    mean: float
    images: int


def probe_name(views: Views) -> str:
    """The probe's file in a cache."""
    return f"probe/{views.name(0).removesuffix('-000')}.npz"


def is_probe(name: str) -> bool:
    """Whether a file name is a probe's."""
    match = PROBE_FILE.fullmatch(name)
    return match is not None and view_called(f"{match[1]}-000") is not None


def settle_probe(cache: Cache, source: ShardPixels) -> None:
    """Check this machine's views against the probe; create it first if there is none."""
    if cache.location.size(probe_name(source.views)) is None:
        make_probe(cache, source)
    check_pixels(cache.location, source, 0)


def check_known_pixels(cache: Cache, source: ShardPixels) -> None:
    """Check this machine's views against the probe, if the cache has one."""
    if cache.location.size(probe_name(source.views)) is not None:
        check_pixels(cache.location, source, 0)


def make_probe(cache: Cache, source: ShardPixels) -> None:
    """Store the pixels of a few views, spread evenly over the tars of `source`."""
    rows = [
        Address(segment.number, shard, row, 0)
        for segment in cache.segments
        for shard, count in enumerate(segment.counts.tolist())
        for row in dict.fromkeys((0, count // 2))
        if (segment.number, shard) in source.tars
    ]
    wanted = [rows[int(place)] for place in np.linspace(0, len(rows) - 1, min(PROBES, len(rows)))]
    batch = source.start(wanted, len(wanted))()
    good = [place for place in range(len(wanted)) if place not in batch.bad]
    versions = json.dumps({**decoder_versions(), "augment": str(AUGMENT_VERSION)}, sort_keys=True)
    data = save_npz(
        {
            "address": np.array([(item.segment, item.shard, item.row) for item in wanted], np.int64)[good],
            "views": batch.views_BHWC[good],
            "versions": np.frombuffer(versions.encode(), np.uint8),
        }
    )
    cache.location.create(probe_name(source.views), data)


def check_pixels(location: Location, source: ShardPixels, tolerance: int) -> PixelDifference:
    """Make the probe's views again and compare. CacheError, naming versions, if they differ by over `tolerance`."""
    name = probe_name(source.views)
    data = location.read(name)
    if data is None:
        raise CacheError(f"{location.url}: {name} is missing, so views cannot be checked; run `unic-cache extract`")
    probe = load_npz(data, name)
    wanted = [Address(segment, shard, row, 0) for segment, shard, row in probe["address"].tolist()]
    places = [place for place, item in enumerate(wanted) if (item.segment, item.shard) in source.tars]
    theirs = np.asarray(probe["views"], np.uint8)[places].astype(np.int16)
    ours = source.start([wanted[place] for place in places], len(places))().views_BHWC.astype(np.int16)
    apart = np.abs(ours - theirs)
    difference = PixelDifference(int(apart.max(initial=0)), float(apart.mean()) if apart.size else 0.0, len(places))
    if difference.largest > tolerance:
        then = json.loads(np.asarray(probe["versions"], np.uint8).tobytes())
        now = {**decoder_versions(), "augment": str(AUGMENT_VERSION)}
        if then == now and difference.largest > DECODERS_APART:
            worst = wanted[places[int(apart.max(axis=(1, 2, 3)).argmax())]]
            others = int((apart.max(axis=(1, 2, 3)) > tolerance).sum())
            raise CacheError(
                f"{source.where(worst)}: another picture than {location.url} was made from: its view differs by up to "
                f"{difference.largest} levels of 255, as do {others - 1} more of {difference.images} compared, and "
                "the library versions are the same. Give the tars that the cache was made with"
            )
        raise CacheError(
            f"{location.url}: this machine does not make the pixels that the teachers saw. Over {difference.images} "
            f"probe views they differ by up to {difference.largest} levels of 255 ({difference.mean:.4f} on "
            f"average). The cache was made with {_versions(then, now)}; this machine has {_versions(now, then)}. "
            f"Install the same versions, or accept the difference with --pixel-tolerance {difference.largest}"
        )
    return difference


def _versions(one: dict[str, str], other: dict[str, str]) -> str:
    """The versions that differ, or all if none does."""
    names: Sequence[str] = [name for name in sorted(one) if one[name] != other.get(name)] or sorted(one)
    return ", ".join(f"{name} {one[name]}" for name in names)
