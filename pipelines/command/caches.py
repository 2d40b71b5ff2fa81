"""Opening a cache for a command, with one line about folders in it that are not its own."""

from collections.abc import Mapping

from pipelines.command.progress import say
from unic_cache.cache import Cache, open_cache
from unic_cache.errors import CacheError, ConfigError
from unic_cache.files.local import LocalFolder
from unic_cache.files.location import Location
from unic_cache.views.segments import read_segments

NOT_OURS = {"checkpoint.safetensors", "encoder.safetensors", "index.json"}  # files of run folders and tar folders


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


def refuse_other_folders(location: Location) -> None:
    """ConfigError if a new cache would be made in a folder of tars or of a training run."""
    if not isinstance(location, LocalFolder) or read_segments(location):
        return
    names = [path.name for path in location.path.iterdir()] if location.path.is_dir() else []
    others = [name for name in sorted(names) if name in NOT_OURS or name.endswith(".tar")]
    if others:
        raise ConfigError(f"{location.url} holds {others[0]} and no cache; choose a folder of its own with --cache")
