"""Opening a cache for a command, with one line about folders in it that are not its own."""

from collections.abc import Mapping

from pipelines.command.progress import say
from unic_cache.cache import Cache, open_cache
from unic_cache.errors import CacheError


def opened(path: str) -> Cache:
    """Open a cache and name its guests. CacheError if there is none, or this release cannot read it."""
    cache = open_cache(path)
    tell_guests(cache.location.url, cache.guests)
    return cache


def tell_guests(url: str, guests: Mapping[str, str]) -> None:
    """Say which folders were left alone, and why."""
    if guests:
        listed = ", ".join(f"{folder} ({why})" for folder, why in sorted(guests.items()))
        say(f"left alone in {url}, as not this cache's own: {listed}")


def all_teachers(cache: Cache) -> tuple[str, ...]:
    """Names of the readable teachers. CacheError if an extracted one cannot be read."""
    if cache.lost:
        raise CacheError(
            f"{cache.location.url}/{cache.lost[0]}/spec.json is missing, so its features cannot be read. The same "
            "`unic-cache extract` makes it again; or train without it, with --teacher for each of the others"
        )
    for name, member in cache.uncalibrated.items():
        if any(tars for *_, tars in cache.committed(member)):
            raise CacheError(
                f"{cache.location.url}: the calibration of {name} is lost ({member.calibration_name}), so its features "
                "cannot be read. The same `unic-cache extract` makes it again; or train without it, with --teacher for "
                "each of the others"
            )
    return tuple(sorted(cache.teachers))
