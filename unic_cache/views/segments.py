"""The index of a cache: its segments, read and extended."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from unic_cache.errors import CacheError
from unic_cache.files.location import Location
from unic_cache.views.index import Segment, ShardEntry, refuse_twice, segment_file, twice
from unic_cache.views.index_seal import SEALED_TARS, IndexSeal, read_sealed, seal_file

LIMIT_BYTES = 2**30  # of a segment's file: about twenty million samples
LIMIT_SAMPLES = 2**24  # of a segment that is made now
SEGMENT_FILE = re.compile(r"index/\d{6}\.json")


def no_cache(path: str | Path) -> CacheError:
    """The error for a folder without an index."""
    return CacheError(f"{path}: no cache is here (index/000000.json is missing); make one with `unic-cache extract`")


def no_teacher(path: str, name: str, others: Iterable[str]) -> CacheError:
    """The error for a cache without the teacher `name`."""
    return CacheError(
        f"{path} has no teacher {name!r}; it has {', '.join(others) or 'no teacher at all'}. "
        f"Make it with `unic-cache extract --teacher {name} --cache {path}`"
    )


def segment_names(cache: Location) -> list[str]:
    """The segments' files in a cache, in order."""
    return list(filter(SEGMENT_FILE.fullmatch, cache.names("index")))


def read_segments(cache: Location, by_seals: bool = True) -> tuple[Segment, ...]:
    """All segments of a cache, in order; empty for a cache that has not begun.

    Tars of a segment with a seal are read when they are asked for, unless not `by_seals`. CacheError for a gap in the
    numbers, a file with another segment's number, and a shard listed twice.
    """
    segments: list[Segment] = []
    names = list(cache.names("index"))
    for number, name in enumerate(filter(SEGMENT_FILE.fullmatch, names)):
        sealed = read_sealed(cache, number) if by_seals and seal_file(number) in names else None
        segments.append(sealed or _read_whole(cache, number, name))
    repeated = twice(name for segment in segments for name in segment.names)
    if repeated:
        raise CacheError(f"{cache.url}/index lists the shard {repeated[0]!r} in two segments")
    return tuple(segments)


def _read_whole(cache: Location, number: int, name: str) -> Segment:
    if (cache.size(name) or 0) > LIMIT_BYTES:
        raise CacheError(f"{cache.url}/{name}: over {LIMIT_BYTES} bytes; refused")
    data = cache.read(segment_file(number))
    if data is None:
        raise CacheError(f"{cache.url} has {name} but no {segment_file(number)}; copy the cache's whole index/")
    segment = Segment.from_json(data, f"{cache.url}/{name}")
    if segment.number != number:
        raise CacheError(f"{cache.url}/{name} says that it is segment {segment.number}; copy the cache's index/ again")
    return segment


def extend_index(cache: Location, entries: Sequence[ShardEntry]) -> tuple[Segment, ...]:
    """Make sure that the cache lists all `entries`; returns all its segments.

    New shards become one segment, or several of at most LIMIT_SAMPLES, each created once: a slower writer finds the
    file taken, reads it and retries with the rest. A known shard must hold the same keys in the same order; its size
    and offsets may differ (a repacked tar), so read tars by the entries of `describe`, not the cache's, which have no
    dense labels either.

    ShardError if two entries share a name, CacheError if the cache was made with other shards.
    """
    refuse_twice(entry.name for entry in entries)
    while True:
        segments = read_segments(cache)
        known = {name: (segment, at) for segment in segments for at, name in enumerate(segment.names)}
        for entry in entries:
            segment, at = known.get(entry.name, (None, 0))
            if segment is not None and not segment.has(at, entry.keys):
                raise _other_tar(cache, segment.shards[at], entry)
        seal_index(cache, segments)
        unknown = [replace(entry, dense={}) for entry in entries if entry.name not in known]
        if not unknown:
            return segments
        for number, part in enumerate(groups(unknown), len(segments)):
            segment = Segment(number, part)
            if not cache.create(segment_file(number), segment.to_bytes()):
                break
            seal_index(cache, [segment])
            segments = (*segments, segment)
        else:
            return segments


def seal_index(cache: Location, segments: Iterable[Segment]) -> None:
    """Make the seals of large segments that were read whole and stand in the cache as this release writes them."""
    for segment in segments:
        if isinstance(segment.shards, tuple) and len(segment.shards) >= SEALED_TARS:
            seal = IndexSeal.of(segment)
            if seal.size == cache.size(segment_file(segment.number)):
                cache.create(seal.name, seal.to_bytes())


def groups(entries: Sequence[ShardEntry]) -> Iterator[tuple[ShardEntry, ...]]:
    """The segments that new entries become: in order, of at most LIMIT_SAMPLES samples, or of one entry."""
    group: list[ShardEntry] = []
    samples = 0
    for entry in entries:
        if group and samples + entry.rows > LIMIT_SAMPLES:
            yield tuple(group)
            group, samples = [], 0
        group.append(entry)
        samples += entry.rows
    yield tuple(group)


def _other_tar(cache: Location, cached: ShardEntry, given: ShardEntry) -> CacheError:
    pairs = enumerate(zip(cached.keys, given.keys, strict=False))
    row = next((row for row, (one, other) in pairs if one != other), min(cached.rows, given.rows))
    first = [f"{entry.keys[row]:08x}" if row < entry.rows else "none" for entry in (cached, given)]
    return CacheError(
        f"{cache.url} was made with other shards: its {cached.name!r} has {cached.rows} samples, this one "
        f"{given.rows}; at row {row} the key's crc32 is {first[0]} there but {first[1]} here; "
        f"give the shards that the cache was made with, rename these, or choose another cache{_more(cached, given)}"
    )


def _more(cached: ShardEntry, given: ShardEntry) -> str:
    """A hint for a tar that holds more samples than the cache has seen of it."""
    if given.rows <= cached.rows or not set(cached.keys) < set(given.keys):
        return ""
    return (
        ". The additional samples were added since, or left out by an older release: links, joined archives, names "
        "without extension"
    )
