"""A cache as a command opens it, and the one line that says what in its folder is not its own."""

from collections.abc import Mapping

from pipelines.command.progress import console
from unic_cache.cache import Cache, open_cache


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
