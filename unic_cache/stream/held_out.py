"""The tars held out of training: marked by `shard --val-fraction`, or named by a run and recorded in the cache.

    held-out/SEGMENT/S.json     {"name": the tar's name, "self": crc32c of the rest}, one file per tar, created once

Earlier releases ignore the folder.
"""

import json
import re
from collections.abc import Iterator, Sequence

from crc32c import crc32c

from unic_cache.cache import Cache
from unic_cache.errors import BrokenError, CacheError
from unic_cache.store.layout import HELD_OUT
from unic_cache.store.member import read_within

HELD_OUT_FILE = re.compile(rf"{HELD_OUT}/(\d{{6}})/(\d{{6}})\.json")
LIMIT_BYTES = 2**16


def held_out(cache: Cache) -> tuple[str, ...]:
    """The names of the held-out tars, in the cache's order. CacheError for a file of another cache."""
    places = {place: name for name, place in cache.shards().items()}
    found = set(marked_tars(cache))
    for file in cache.location.names(HELD_OUT):
        match = HELD_OUT_FILE.fullmatch(file)
        if match is None:
            continue
        name = places.get((int(match[1]), int(match[2])), "")
        why = problem(cache, file, name)
        if why:
            raise CacheError(f"{cache.location.url}/{file}: {why}; remove it, or restore the right one")
        found.add(name)
    return tuple(name for name in cache.shards() if name in found)


def marked_tars(cache: Cache) -> Iterator[str]:
    """The names of the tars that `shard --val-fraction` held out."""
    return (segment.names[tar] for segment in cache.segments for tar in segment.held_out)


def problem(cache: Cache, file: str, name: str) -> str:
    """Why a file does not hold out the tar `name`; "" if it does."""
    try:
        data = read_within(cache.location, file, LIMIT_BYTES)
    except BrokenError as error:
        return str(error)
    if data == _content(name) or data is None:
        return ""
    return f"does not hold out the tar {name!r}: it is damaged, or belongs to another cache"


def hold_out(cache: Cache, names: Sequence[str]) -> None:
    """Record that these tars are held out. CacheError or OSError if the cache cannot be written."""
    for name in names:
        segment, shard = cache.shards()[name]
        cache.location.create(f"{HELD_OUT}/{segment:06d}/{shard:06d}.json", _content(name))


def _content(name: str) -> bytes:
    body = json.dumps({"name": name}, separators=(",", ":")).encode()
    return json.dumps({"name": name, "self": int(crc32c(body))}, sort_keys=True, separators=(",", ":")).encode()
