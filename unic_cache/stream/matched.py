"""Tars that are given, matched with those that a cache was made from."""

from collections.abc import Iterable, Mapping

from unic_cache.cache import Cache
from unic_cache.views.index import ShardEntry, refuse_twice

Tars = Mapping[tuple[int, int], tuple[str, ShardEntry]]  # (segment, number) -> (path, entry)


def matched(cache: Cache, given: Iterable[tuple[str, ShardEntry]]) -> dict[tuple[int, int], tuple[str, ShardEntry]]:
    """The tars, (path, entry) each, by their place in the cache.

    CacheError for one that the cache was not made from; ShardError for two of one name, whose images would count twice.
    """
    tars = list(given)
    refuse_twice(entry.name for _, entry in tars)
    return {cache.place(entry.name, entry.keys): (path, entry) for path, entry in tars}
