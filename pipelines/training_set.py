"""What a run trains on: teachers, views, shards and commit records, fixed when it begins and the same on resume."""

import dataclasses
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Self

import torch
from webdataset.shardlists import expand_urls

from pipelines.given import given_shards, say
from unic_cache.cache import Cache, CachedTeacher
from unic_cache.config import DistillConfig, Views
from unic_cache.errors import CacheError, ConfigError
from unic_cache.probe import PixelDifference, check_pixels
from unic_cache.sources import KeptPixels, Pixels, ShardPixels
from unic_cache.usable import Rows, usable_rows
from unic_cache.views.index import ShardEntry

FILE = "snapshot.json"


@dataclass(frozen=True)
class Snapshot:
    """OUT/snapshot.json: names, not data. `records` maps each commit record to its checksum."""

    teachers: tuple[str, ...]
    recipe: str
    size: int
    seed: int
    numbers: tuple[int, ...]  # of the views
    train: tuple[str, ...]  # shards
    val: tuple[str, ...]
    records: dict[str, int]

    @property
    def views(self) -> Views:
        """The recipe of all views."""
        return Views(self.recipe, self.size, self.seed)

    def save(self, out: Path) -> None:
        """Write OUT/snapshot.json."""
        (out / FILE).write_text(json.dumps(dataclasses.asdict(self), sort_keys=True, indent=1) + "\n")

    @classmethod
    def load(cls, out: Path) -> Self:
        """What `save` wrote. ConfigError where it is missing or broken."""
        try:
            data: dict[str, Any] = json.loads((out / FILE).read_text())
            lists: dict[str, Any] = {key: tuple(data.pop(key)) for key in ("teachers", "numbers", "train", "val")}
            return cls(**lists, **data)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ConfigError(f"{out / FILE}: cannot be resumed from ({error})") from error


@dataclass(frozen=True)
class TrainingSet:
    """The snapshot with what it names, opened."""

    snapshot: Snapshot
    teachers: tuple[CachedTeacher, ...]
    train: Rows
    val: Rows
    pixels: Pixels
    difference: PixelDifference | None  # from the probe; None where the kept pixels serve


def open_training_set(
    config: DistillConfig, cache: Cache, pool: ThreadPoolExecutor, resumed: Snapshot | None
) -> TrainingSet:
    """Find all that is to be trained on, and check that it is whole and that the pixels are the teachers'."""
    names = resumed.teachers if resumed else tuple(dict.fromkeys(config.teachers)) or all_teachers(cache)
    teachers = tuple(cache.teacher(name) for name in names)
    if not teachers:
        raise CacheError(f"{cache.location.url} has no teacher; run `unic-cache extract --teacher NAME`")
    views = resumed.views if resumed else cached_views(config, cache, teachers)
    numbers = resumed.numbers if resumed else view_numbers(config, cache, teachers, views)
    paths, entries = given_shards(config.shards, cache.pixels is not None)
    val_paths, val_entries = (
        ((), ())
        if config.val_shards is None or not paths
        else given_shards(config.val_shards, False, flag="--val-shards")
    )
    tars = {
        cache.place(entry.name, entry.keys): (path, entry)
        for path, entry in zip((*paths, *val_paths), (*entries, *val_entries), strict=True)
        if resumed is None or entry.name in {*resumed.train, *resumed.val}
    }
    held = held_out(cache, entries)
    val = resumed.val if resumed else val_names(config, cache, [entry.name for entry in val_entries]) or held
    train = resumed.train if resumed else train_names(config, cache, entries, (*val, *held))
    if held and not resumed:
        tell_held_out(held, val)
    train_rows, records = usable_rows(cache, teachers, views, numbers, train, config.skip_broken)
    val_rows, val_records = usable_rows(cache, teachers, views, numbers[:1], val, config.skip_broken)
    snapshot = Snapshot(
        tuple(names),
        views.recipe,
        views.size,
        views.seed,
        tuple(numbers),
        tuple(train),
        tuple(val),
        records | val_records,
    )
    if resumed and resumed.records != snapshot.records:
        raise CacheError(f"{cache.location.url}: commit records are not those that the run began with; it cannot go on")
    if not len(train_rows):
        raise CacheError(f"{cache.location.url}: no image of the {len(train)} shards can be trained on")
    pin = torch.cuda.is_available()
    pixels = Pixels(KeptPixels(views, cache, pool, config.skip_broken, pin), ShardPixels(views, tars, pool, pin))
    difference = None
    if tars and not pixels.kept.has(train_rows.address(0, numbers[0])):
        difference = check_pixels(
            cache.location, views, pixels.decoded, config.pixel_tolerance, lambda a: (a.segment, a.shard) in tars
        )
    return TrainingSet(snapshot, teachers, train_rows, val_rows, pixels, difference)


def all_teachers(cache: Cache) -> tuple[str, ...]:
    """The names of the teachers that can be read. CacheError where one that was extracted cannot be."""
    for name, member in cache.uncalibrated.items():
        if any(tars for _, _, tars in cache.committed(member)):
            raise CacheError(
                f"{cache.location.url}: the calibration of {name} is lost ({member.calibration_name}), so what is kept "
                "of it cannot be read. The same `unic-cache extract` makes it again; or train without it, with "
                "--teacher for each of the others"
            )
    return tuple(sorted(cache.teachers))


def cached_views(config: DistillConfig, cache: Cache, teachers: Sequence[CachedTeacher]) -> Views:
    """The one recipe that config and cache agree on. CacheError with the choices where there is none or several."""
    found = {Views.parse(view)[0] for view, _, tars in cache.committed(teachers[0].member) if tars}
    fits = [
        views
        for views in found
        if views.recipe == config.recipe
        and config.size in {None, views.size}
        and config.view_seed in {None, views.seed}
    ]
    if len(fits) != 1:
        listed = ", ".join(sorted(f"{v.recipe} (size {v.size}, seed {v.seed})" for v in found)) or "none"
        seed = "any" if config.view_seed is None else config.view_seed
        asked = f"recipe {config.recipe}, size {config.size or 'any'}, seed {seed}"
        raise CacheError(
            f"{cache.location.url}: {len(fits)} kinds of views of {teachers[0].name} fit {asked}; it has {listed}. "
            "Choose by --recipe, --size and --view-seed, or extract what is missing"
        )
    return fits[0]


def view_numbers(
    config: DistillConfig, cache: Cache, teachers: Sequence[CachedTeacher], views: Views
) -> tuple[int, ...]:
    """The view numbers that every teacher has, at most --views of them."""
    common = set.intersection(*(set(cache.view_numbers(teacher.member, views)) for teacher in teachers))
    numbers = tuple(sorted(common))
    if not numbers:
        raise CacheError(
            f"{cache.location.url}: {', '.join(t.name for t in teachers)} have no view of {views} in common; extract it"
        )
    if config.views is not None and config.views > len(numbers):
        raise CacheError(
            f"{cache.location.url}: {config.views} views are asked for, but only {len(numbers)} are there for every "
            f"teacher; run `unic-cache extract --views {config.views}` with the same settings"
        )
    return numbers[: config.views]


def val_names(config: DistillConfig, cache: Cache, given: Sequence[str]) -> tuple[str, ...]:
    """The held-out shards' names; without tars, the pattern's file names are matched with the index."""
    if config.val_shards is None or given:
        return tuple(given)
    stems = [Path(str(name)).name.removesuffix(".tar") for name in expand_urls(config.val_shards)]
    found = tuple(name for name in cache.shards() if any(fnmatch(name, stem) for stem in stems))
    if not found:
        raise CacheError(
            f"{cache.location.url}: no shard of the cache is called as in --val-shards {config.val_shards}"
        )
    return found


def held_out(cache: Cache, entries: Sequence[ShardEntry]) -> tuple[str, ...]:
    """The tars that `shard --val-fraction` held out, of those given or, where none is, of the cache."""
    marked = {entry.name for part in cache.segments for entry in part.shards if entry.held_out}
    marked |= {entry.name for entry in entries if entry.held_out}
    return tuple(name for name in [entry.name for entry in entries] or cache.shards() if name in marked)


def tell_held_out(held: Sequence[str], val: Sequence[str]) -> None:
    """One line on stderr: what is done with the tars that `shard --val-fraction` held out."""
    shown = held[0] if len(held) == 1 else f"{held[0]} to {held[-1]} ({len(held)} tars)"
    use = "the validation set is" if set(held) <= set(val) else "not trained on:"
    say(f"{use} {shown}, held out by `shard --val-fraction`")


def train_names(
    config: DistillConfig, cache: Cache, entries: Sequence[ShardEntry], val: Sequence[str]
) -> tuple[str, ...]:
    """All shards given (or in the cache), less those that are held out."""
    names = [entry.name for entry in entries] or list(cache.shards())
    train = tuple(name for name in names if name not in val)
    if not train and config.val_shards is None:
        raise ConfigError(f"{names[0]} and all others are held out by `shard --val-fraction`; give the other tars too")
    if not train:
        raise ConfigError(f"--val-shards {config.val_shards} holds out every shard; leave some to train on")
    return train
