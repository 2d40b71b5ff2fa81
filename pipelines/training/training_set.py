"""What a run trains on: teachers, views, shards and commit records, fixed when it begins and the same on resume."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch

from pipelines.command.caches import all_teachers
from pipelines.command.progress import say
from pipelines.command.tars import given_shards
from pipelines.training.split import check_pictures, given_val, split, tell_leaks
from unic_cache.cache import Cache, CachedTeacher
from unic_cache.config import CENTER, RECIPES, DistillConfig, Views
from unic_cache.config.views import CROP_SCALE
from unic_cache.errors import CacheError, ConfigError
from unic_cache.files.local import LocalFolder
from unic_cache.stream.decoder_probe import PixelDifference, check_pixels
from unic_cache.stream.matched import matched
from unic_cache.stream.pixels import KeptPixels, Pixels, ShardPixels
from unic_cache.stream.rows import Rows, usable_rows
from unic_cache.stream.seen_pixels import Seen
from unic_cache.student.run_files import SNAPSHOT


@dataclass(frozen=True)
class Snapshot:
    """OUT/snapshot.json: names, no data."""

    teachers: tuple[str, ...]
    recipe: str
    size: int
    seed: int
    numbers: tuple[int, ...]  # of the views
    train: tuple[str, ...]  # shards
    val: tuple[str, ...]
    records: dict[str, int]  # commit record, or the seal of a thousand -> checksum
    crop_scale: tuple[float, float] = CROP_SCALE

    @property
    def views(self) -> Views:
        """The kind of all views."""
        return Views(self.recipe, self.size, self.seed, self.crop_scale)

    def save(self, out: Path) -> None:
        """Write OUT/snapshot.json."""
        data = json.dumps(dataclasses.asdict(self), sort_keys=True, indent=1) + "\n"
        LocalFolder(out).replace(SNAPSHOT, data.encode())

    @classmethod
    def load(cls, out: Path) -> Self:
        """Read what `save` wrote. ConfigError if it is missing or broken."""
        try:
            data: dict[str, Any] = json.loads((out / SNAPSHOT).read_text())
            names = ("teachers", "numbers", "train", "val", "crop_scale")  # the last is new
            lists: dict[str, Any] = {key: tuple(data.pop(key)) for key in names if key in data}
            return cls(**lists, **data)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ConfigError(f"{out / SNAPSHOT}: cannot resume from it ({error})") from error


@dataclass(frozen=True)
class TrainingSet:
    """A snapshot, and what it names, opened."""

    snapshot: Snapshot
    teachers: tuple[CachedTeacher, ...]
    train: Rows
    val: Rows
    pixels: Pixels
    difference: PixelDifference | None  # from the probe; None if the views come from the cache


def open_training_set(
    config: DistillConfig, cache: Cache, pool: ThreadPoolExecutor, resumed: Snapshot | None
) -> TrainingSet:
    """Find everything to train on; check that it is complete and that its pixels are those the teachers saw."""
    chosen = resumed.teachers if resumed else tuple(dict.fromkeys(config.teachers)) or all_teachers(cache)
    teachers = teachers_of(cache, chosen, config.kinds)
    if not teachers:
        raise CacheError(f"{cache.location.url} has no teacher; run `unic-cache extract --teacher NAME`")
    views = resumed.views if resumed else cached_views(config, cache, teachers)
    numbers = resumed.numbers if resumed else view_numbers(config, cache, teachers, views)

    # Tars: those given, and their split into training and validation
    paths, entries = given_shards(config.shards, cache.pixels is not None)
    val_paths, val_entries = ((), ()) if resumed and not paths else given_val(config, cache, bool(paths))
    own = {*resumed.train, *resumed.val} if resumed else set()
    given, apart = (
        matched(cache, [tar for tar in zip(*both, strict=True) if resumed is None or tar[1].name in own])
        for both in ((paths, entries), (val_paths, val_entries))
    )
    tars = given | apart
    names = [entry.name for entry in entries] or list(cache.shards())
    train, val = (resumed.train, resumed.val) if resumed else split(config, cache, names, entries, val_entries)

    # Rows: those that every teacher has, or one at least
    train_rows, val_rows, records = usable(config, cache, teachers, (views, numbers), (train, val), resumed)

    # Pixels: from the cache, or decoded from the tars and compared with what the teachers saw
    pin = torch.cuda.is_available()
    pixels = Pixels(KeptPixels(views, cache, pool, config.skip_broken, pin), ShardPixels(views, tars, pool, pin))
    difference = None
    if tars and not pixels.kept.has(train_rows.address(0, numbers[0])):
        difference = check_pixels(cache.location, pixels.decoded, config.pixel_tolerance)
    if resumed is None and not config.skip_broken:
        tell_leaks(cache, teachers, (views, numbers[0]), train_rows, val_rows)
    exact = ShardPixels(views, tars, pool, seen=Seen(cache)) if val and not config.pixel_tolerance else None
    check_pictures(cache, views, tars, pixels.kept, numbers[0], pool, exact)
    kind = (views.recipe, views.size, views.seed)
    snapshot = Snapshot(chosen, *kind, tuple(numbers), train, val, records, views.crop_scale)
    return TrainingSet(snapshot, teachers, train_rows, val_rows, pixels, difference)


def usable(
    config: DistillConfig,
    cache: Cache,
    teachers: Sequence[CachedTeacher],
    kind: tuple[Views, Sequence[int]],
    tars: tuple[Sequence[str], Sequence[str]],
    resumed: Snapshot | None,
) -> tuple[Rows, Rows, dict[str, int]]:
    """The rows to train on and to validate on, and the commit records behind them: the same when resuming.

    `kind` is that of the views, with their numbers. What was extracted since the run began stays missing. CacheError if
    anything else has changed, if there is nothing to train on, or nothing of a teacher.
    """
    (views, numbers), (train, val), url = kind, tars, cache.location.url
    known = resumed.records if resumed and config.allow_missing else None
    asked = config.skip_broken, config.allow_missing, known, resumed.records if resumed else ()
    train_rows, records = usable_rows(cache, teachers, views, numbers, train, *asked)
    val_rows, val_records = usable_rows(cache, teachers, views, numbers[:1], val, *asked)
    records |= val_records
    if resumed and resumed.records != records:
        raise CacheError(f"{url}: its commit records changed since the run began; it cannot be resumed")
    if not len(train_rows):
        raise CacheError(f"{url}: no image of the {len(train)} shards can be trained on")
    for name, count in train_rows.lacking.items():
        if count == len(train_rows) * len(numbers):
            raise CacheError(f"{url}: {name} has none of these views; name the others with --teacher")
    return train_rows, val_rows, records


def target_rules(teacher: CachedTeacher) -> dict[str, Any]:
    """The rules by which a teacher's activations became targets, as its spec.json has them."""
    made = teacher.spec["teacher"]
    return {key: made[key] for key in ("cls_rule", "patch_rule", "summary_rules", "grid_rules") if key in made}


def teachers_of(cache: Cache, names: Sequence[str], kinds: Sequence[str]) -> tuple[CachedTeacher, ...]:
    """The named teachers, with only these token kinds if any are given.

    ConfigError if a teacher has none of them, or if no teacher has one of them.
    """
    teachers = tuple(cache.teacher(name) for name in names)
    if not kinds:
        return teachers
    check_kinds({teacher.name: tuple(teacher.kinds) for teacher in teachers}, kinds)
    return tuple(teacher.only(kinds) for teacher in teachers)


def check_kinds(given: Mapping[str, Sequence[str]], kinds: Sequence[str]) -> None:
    """ConfigError if a teacher gives none of the token kinds that --kinds names, or if no teacher gives one of them.

    `given` has each teacher's.
    """
    every = dict.fromkeys(kind for own in given.values() for kind in own)
    if given and (unknown := [kind for kind in kinds if kind not in every]):
        raise ConfigError(f"--kinds {unknown[0]}: no teacher gives such tokens; choose from {', '.join(every)}")
    if silent := [name for name, own in given.items() if kinds and not set(own) & set(kinds)]:
        listed = ", ".join(f"{name} (it gives {', '.join(given[name])})" for name in silent)
        raise ConfigError(
            f"no {' or '.join(dict.fromkeys(kinds))} tokens from {listed}; add another --kinds, or name the other "
            "teachers with --teacher"
        )


def cached_views(config: DistillConfig, cache: Cache, teachers: Sequence[CachedTeacher]) -> Views:
    """The one recipe that config and cache agree on. CacheError listing the cache's recipes if none or several fit."""
    asked_of = teachers if config.allow_missing else teachers[:1]
    found = {views for teacher in asked_of for views, *_, tars in cache.committed(teacher.member) if tars}
    fits = [
        views
        for views in found
        if views.recipe != CENTER
        and config.recipe in {None, views.recipe}
        and config.size in {None, views.size}
        and config.view_seed in {None, views.seed}
        and config.crop_scale in {None, views.crop_scale}
    ]
    if len(fits) != 1:
        listed = ", ".join(sorted(f"{v.kind} (size {v.size}, seed {v.seed})" for v in found)) or "none"
        seed = "any" if config.view_seed is None else config.view_seed
        asked = f"recipe {config.recipe or ('any' if fits else RECIPES[0])}, size {config.size or 'any'}, seed {seed}"
        if config.crop_scale is not None:
            asked += f", crop scale {','.join(map(str, config.crop_scale))}"
        raise CacheError(
            f"{cache.location.url}: {len(fits) or 'no'} cached views of {asked_of[0].name} match {asked}; the cache "
            f"has {listed}. Choose with --recipe, --size, --view-seed and --crop-scale, or extract the missing views"
        )
    return fits[0]


def view_numbers(
    config: DistillConfig, cache: Cache, teachers: Sequence[CachedTeacher], views: Views
) -> tuple[int, ...]:
    """The view numbers that every teacher has, or with --allow-missing any; at most --views of them."""
    join = set.union if config.allow_missing else set.intersection
    own = {teacher.name: set(cache.view_numbers(teacher.member, views)) for teacher in teachers}
    numbers = tuple(sorted(join(*own.values())))
    if not numbers:
        raise CacheError(
            f"{cache.location.url}: {', '.join(t.name for t in teachers)} have no {views} view in common; extract one"
        )
    if config.views is not None and config.views > len(numbers):
        raise CacheError(
            f"{cache.location.url}: --views {config.views}, but only {len(numbers)} are there of every teacher; run "
            f"`unic-cache extract --views {config.views}` with the same settings"
        )
    more = {name: len(found) for name, found in own.items() if len(found) > len(numbers)}
    if more and config.views is None:
        listed = ", ".join(f"{name} has {count}" for name, count in more.items())
        say(f"the {len(numbers)} views that all teachers have are used; {listed}")
    return numbers[: config.views]
