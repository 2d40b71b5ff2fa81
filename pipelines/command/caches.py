"""A cache as a command opens it, and the one line that says what in its folder is not its own."""

from collections.abc import Mapping

from pipelines.command.progress import console
from unic_cache.cache import Cache, open_cache
from unic_cache.errors import CacheError


def opened(path: str) -> Cache:
    """The cache that is there, guests told. CacheError where there is none, or none that this release reads."""
    cache = open_cache(path)
    tell_guests(cache.location.url, cache.guests)
    return cache


def tell_guests(url: str, guests: Mapping[str, str]) -> None:
    """Say which folders were left alone, and why; nothing where there are none."""
    if guests:
        listed = ", ".join(f"{folder} ({why})" for folder, why in sorted(guests.items()))
        console.print(
            f"left alone in {url}, as not this cache's own: {listed}", markup=False, highlight=False, soft_wrap=True
        )


def all_teachers(cache: Cache) -> tuple[str, ...]:
    """The names of the teachers that can be read. CacheError where one that was extracted cannot be."""
    if cache.lost:
        raise CacheError(
            f"{cache.location.url}/{cache.lost[0]}/spec.json is missing, so what is kept there cannot be read. The "
            "same `unic-cache extract` makes it again; or train without it, with --teacher for each of the others"
        )
    for name, member in cache.uncalibrated.items():
        if any(tars for *_, tars in cache.committed(member)):
            raise CacheError(
                f"{cache.location.url}: the calibration of {name} is lost ({member.calibration_name}), so what is kept "
                "of it cannot be read. The same `unic-cache extract` makes it again; or train without it, with "
                "--teacher for each of the others"
            )
    return tuple(sorted(cache.teachers))
