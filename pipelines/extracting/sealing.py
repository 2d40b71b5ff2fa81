"""Seal what an extraction has made: each run of 1,000 tars after its last unit, and at the end what is left."""

from collections.abc import Iterable, Sequence

from pipelines.command.progress import say
from unic_cache.cache import Cache
from unic_cache.config import Views
from unic_cache.store.member import Member
from unic_cache.store.seal import RUN
from unic_cache.stream.sealing import seal_whole_runs


def seal_rest(
    cache: Cache, members: Iterable[Member], views: Views, numbers: Sequence[int], share: tuple[int, int] = (0, 1)
) -> None:
    """Make this worker's share (index, number) of the seals that members lack under views `numbers`.

    They are those of a cache made without seals, and of workers that stopped before the others were done.
    """
    made = sum(seal_whole_runs(cache, member, views, numbers, share) for member in members)
    if made:
        say(f"{made:,} runs of {RUN:,} tars sealed: the cache opens without reading their commit records")
