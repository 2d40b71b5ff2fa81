"""What to read of a cache: its teachers, one kind of views, the tars, and their usable rows.

teachers -> views that all of them have -> tars, by split -> rows that all of them have
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch

import numpy as np
from crc32c import crc32c

from unic_cache.cache import Cache, CachedTeacher
from unic_cache.config import CENTER, Views
from unic_cache.config.bounds import check_choice
from unic_cache.errors import CacheError, ConfigError, ShardError
from unic_cache.files.paths import braced
from unic_cache.stream.held_out import held_out
from unic_cache.stream.matched import matched
from unic_cache.stream.rows import Rows, usable_rows
from unic_cache.stream.sealed_rows import record_checksums
from unic_cache.views.index import ShardEntry, refuse_twice
from unic_cache.views.shards import describe_filled, expand, shard_name

DEFAULT_SHARDS = "shards/*.tar"
SPLITS = ("train", "val", "all")
SHOWN = 6  # names in a message

Place = tuple[int, int]  # segment and number of a tar


@dataclass(frozen=True)
class Tars:
    """The tars to read: their names in the cache, in order, and the files of those whose images are decoded."""

    names: tuple[str, ...]
    files: Mapping[Place, tuple[str, ShardEntry]]  # place -> (path, entry)
    left_out: tuple[str, ...]  # names that the pattern has and the split has not


@dataclass(frozen=True)
class Chosen:
    """What is read: each row under each view number, of each teacher."""

    teachers: tuple[CachedTeacher, ...]
    views: Views
    numbers: tuple[int, ...]  # of the views
    tars: Tars
    rows: Rows
    records: Mapping[str, int]  # commit record, or the seal of a thousand -> checksum
    checksum: int  # of all records behind the rows, the same before and after they are sealed


def chosen_rows(
    cache: Cache,
    teachers: Sequence[CachedTeacher],
    views: Views,
    numbers: Sequence[int],
    tars: Tars,
    skip_broken: bool,
) -> Chosen:
    """The rows of the tars that all teachers have under all views. CacheError if there is none."""
    rows, records = usable_rows(cache, teachers, views, numbers, tars.names, skip_broken)
    if not len(rows):
        raise CacheError(f"{cache.location.url}: no image of {listed(tars.names) or 'the tars'} can be used")
    checksum = records_checksum(cache, teachers, [views.name(number) for number in numbers], rows, records)
    return Chosen(tuple(teachers), views, tuple(numbers), tars, rows, records, checksum)


def records_checksum(
    cache: Cache, teachers: Sequence[CachedTeacher], views: Sequence[str], rows: Rows, records: Mapping[str, int]
) -> int:
    """One checksum of the commit records behind the rows, whether records or seals were written down."""
    found = 0
    for segment in np.unique(rows.segment).tolist():
        tars = np.sort(rows.shard[rows.segment == segment])
        for teacher in sorted(teachers, key=lambda one: one.member.folder):
            for view in views:
                own = record_checksums(cache, teacher, segment, view, tars, records)
                found = crc32c(f"{teacher.member.folder} {segment} {view}".encode(), found)
                found = crc32c(np.concatenate([tars, own]).astype("<u4").tobytes(), found)
    return int(found)


def chosen_teachers(
    cache: Cache, names: Sequence[str] | None, kinds: Collection[str] | None
) -> tuple[CachedTeacher, ...]:
    """The named teachers, or all, with only these token kinds if any are given.

    CacheError if the cache lacks one, or has one that cannot be read; ConfigError if one has none of the kinds, or no
    teacher has one of them.
    """
    teachers = tuple(cache.teacher(name) for name in dict.fromkeys(readable(cache) if names is None else names))
    if not teachers:
        raise CacheError(f"{cache.location.url} has no teacher; run `unic-cache extract --teacher NAME`")
    if not kinds:
        return teachers
    given = {kind: None for teacher in teachers for kind in teacher.kinds}
    if unknown := [kind for kind in kinds if kind not in given]:
        raise ConfigError(f"kinds {unknown[0]!r}: no teacher gives such tokens; choose from {', '.join(given)}")
    for teacher in teachers:
        if not teacher.kinds.keys() & set(kinds):
            raise ConfigError(
                f"{teacher.name} gives {', '.join(teacher.kinds)} and none of {', '.join(kinds)}; add another kind, or "
                "name the other teachers"
            )
    return tuple(teacher.only(kinds) for teacher in teachers)


def readable(cache: Cache) -> list[str]:
    """The names of all teachers. CacheError if one that was extracted cannot be read, instead of leaving it out."""
    unread = {
        name: "calibration"
        for name, member in cache.uncalibrated.items()
        if any(t for *_, t in cache.committed(member))
    }
    for name, lost in {**dict.fromkeys(cache.lost, "spec.json"), **unread}.items():
        raise CacheError(
            f"{cache.location.url}: the {lost} of {name} is lost, so its features cannot be read. The same `unic-cache "
            "extract` makes it again; or name the other teachers"
        )
    return sorted(cache.teachers)


def chosen_views(
    cache: Cache,
    teachers: Sequence[CachedTeacher],
    recipe: str | None,
    size: int | None,
    seed: int | None,
    crop_scale: Sequence[float] | None,
) -> Views:
    """The one kind of views that fits what is given; without a recipe, `center` is never meant.

    CacheError listing what the cache has if none or several fit.
    """
    if crop_scale is not None and not (isinstance(crop_scale, Sequence) and len(crop_scale) == 2):
        raise ConfigError(f"crop_scale {crop_scale}: give two shares of an image's area, such as (0.4, 1.0)")
    found = {views for views, *_, tars in cache.committed(teachers[0].member) if tars}
    fits = [
        views
        for views in found
        if (views.recipe != CENTER if recipe is None else views.recipe == recipe)
        and size in {None, views.size}
        and seed in {None, views.seed}
        and (crop_scale is None or tuple(crop_scale) == views.crop_scale)
    ]
    if len(fits) != 1:
        listed = ", ".join(sorted(f"{v.kind} (size {v.size}, seed {v.seed})" for v in found)) or "none"
        raise CacheError(
            f"{cache.location.url}: {len(fits) or 'no'} kinds of views of {teachers[0].name} match recipe "
            f"{recipe or 'any but center'}, size {size or 'any'}, seed {'any' if seed is None else seed}, crop scale "
            f"{crop_scale or 'any'}; it has {listed}. Choose with recipe, size, view_seed and crop_scale, or "
            "extract the missing views"
        )
    return fits[0]


def chosen_numbers(
    cache: Cache, teachers: Sequence[CachedTeacher], views: Views, asked: int | Sequence[int] | None
) -> tuple[int, ...]:
    """The numbers of the views that all teachers have: all, the first `asked`, or those asked for by number."""
    common = set.intersection(*(set(cache.view_numbers(teacher.member, views)) for teacher in teachers))
    names, has = ", ".join(teacher.name for teacher in teachers), ", ".join(map(str, sorted(common)))
    if not common:
        raise CacheError(f"{cache.location.url}: {names} have no view in common of {views}; extract one")
    if isinstance(asked, int):
        if not 1 <= asked <= len(common):
            raise ConfigError(f"views {asked}, but {names} have {len(common)} in common; choose 1 to {len(common)}")
        return tuple(sorted(common)[:asked])
    numbers = tuple(sorted(common) if asked is None else asked)
    if not numbers:
        raise ConfigError(f"views () names none; {names} have the numbers {has} in common")
    if absent := [number for number in numbers if number not in common]:
        raise CacheError(f"{cache.location.url}: no view {absent[0]}; {names} have the numbers {has} in common")
    return numbers


def chosen_tars(
    cache: Cache, pattern: str | None, split: str, views: Views, numbers: Sequence[int], images: bool
) -> Tars:
    """The tars of a split that a pattern names: files, or names in the cache if no file is needed.

    Files are needed only for images whose pixels the cache does not keep; then the default is shards/*.tar. The split
    "train" is without the tars held out of training, "val" those alone, "all" both. ShardError or CacheError if there
    is no such tar, or if it is not the one that the cache was made with; ConfigError if the split has none.
    """
    check_choice("split", split, SPLITS)
    named, paths = _named(cache, pattern)
    names, left_out = _of_split(cache, named, split)
    if not images or _all_kept(cache, names, views, numbers):
        return Tars(names, {}, left_out)
    if not paths:
        try:
            paths = expand(DEFAULT_SHARDS) if pattern is None else expand(pattern)
        except ShardError as error:
            raise ShardError(
                f"{error}. {cache.location.url} does not keep these views' pixels, so images are made from the tars: "
                "give them with shards, or take features alone with images=False"
            ) from error
    found, _ = describe_filled(paths)
    files = matched(cache, found)
    given, marked = {entry.name for _, entry in found}, {entry.name for _, entry in found if entry.held_out}
    names, left_out = _of_split(cache, [name for name in named if name in given], split, marked)
    own = set(names)
    return Tars(names, {place: file for place, file in files.items() if file[1].name in own}, left_out)


def _named(cache: Cache, pattern: str | None) -> tuple[list[str], tuple[str, ...]]:
    """The names in the cache that a pattern means, and the files that it matches."""
    if pattern is None:
        return list(cache.shards()), ()
    try:
        paths = expand(pattern)
    except ShardError:
        if "/" in pattern:
            raise
        parts = [name.removesuffix(".tar") for name in braced(pattern)]
        found = [name for name in cache.shards() if any(fnmatch(name, part) for part in parts)]
        for part in parts:
            if not any(fnmatch(name, part) for name in found):
                raise CacheError(
                    f"{cache.location.url}: shards {part!r} is neither a file nor a tar of the cache, which has "
                    f"{listed(list(cache.shards()))}"
                ) from None
        return found, ()
    names = [shard_name(path) for path in paths]
    refuse_twice(names)
    return names, paths


def _of_split(
    cache: Cache, names: Sequence[str], split: str, marked: Collection[str] = ()
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(names in the split, names left out); `marked` are held out too. ConfigError if none is in the split."""
    held = set() if split == "all" else {*held_out(cache), *marked}
    own = tuple(name for name in names if split == "all" or (name in held) == (split == "val"))
    left_out = tuple(name for name in names if split != "all" and (name in held) != (split == "val"))
    if not own and names:
        every = f"all of {listed(names)} are" if split == "train" else f"none of {listed(names)} is"
        other = "val" if split == "train" else "train"
        raise ConfigError(f'{every} held out of training; give split="{other}", or split="all", or other shards')
    return own, left_out


def _all_kept(cache: Cache, names: Sequence[str], views: Views, numbers: Sequence[int]) -> bool:
    """Whether the cache keeps the pixels of all these views of the tars."""
    if cache.pixels is None:
        return False
    kept = {(segment, number): tars for found, number, segment, tars in cache.committed(cache.pixels) if found == views}
    places = [cache.shards()[name] for name in names if name in cache.shards()]
    return all(tar in kept.get((segment, number), ()) for segment, tar in places for number in numbers)


def listed(names: Sequence[str]) -> str:
    """Up to six names, and how many more."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{', '.join(names[:SHOWN])}{more}"
