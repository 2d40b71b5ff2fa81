"""Which tars a run trains on and which it holds out, named now or by an earlier run on the same cache."""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch

import numpy as np
import numpy.typing as npt

from pipelines.command.progress import say
from pipelines.command.tars import given_shards
from unic_cache.cache import Cache, CachedTeacher
from unic_cache.config import DistillConfig, Views
from unic_cache.errors import CacheError, ConfigError, ShardError
from unic_cache.files.paths import braced
from unic_cache.stream.address import Address
from unic_cache.stream.held_out import held_out, hold_out, marked_tars
from unic_cache.stream.matched import Tars
from unic_cache.stream.pixels import KeptPixels, ShardPixels
from unic_cache.stream.row_samples import rows_to_compare
from unic_cache.stream.rows import Rows, committed_records, not_committed
from unic_cache.views.index import ShardEntry

PICTURES_APART = 8.0  # levels of 255 on average: no two decoders differ by as much
SHOWN = 6  # names in a message
LEAKS_SOUGHT = 2**24  # images to train on: each record under one view is read for it


def given_val(config: DistillConfig, cache: Cache, tars_given: bool) -> tuple[Sequence[str], Sequence[ShardEntry]]:
    """The tars that --val-shards names; none if it names tars whose views the cache keeps.

    ShardError if a tar does not exist: paths are not matched by their last part.
    """
    if config.val_shards is None:
        return (), ()
    try:
        return given_shards(config.val_shards, False)
    except ShardError as error:
        if tars_given or cache.pixels is None:
            raise ShardError(f"--val-shards: {error}") from error
        if "/" in config.val_shards:
            hint = "without tars, give names from the cache without a folder, as in --val-shards 000001"
            raise ShardError(f"--val-shards: {error}; {hint}") from error
        return (), ()


def val_names(config: DistillConfig, cache: Cache, given: Sequence[ShardEntry]) -> tuple[str, ...]:
    """The names of the tars that this run holds out. CacheError for a pattern that matches none in the cache."""
    if config.val_shards is None or given:
        return tuple(entry.name for entry in given)
    patterns = [name.removesuffix(".tar") for name in braced(config.val_shards)]
    found = tuple(name for name in cache.shards() if any(fnmatch(name, pattern) for pattern in patterns))
    for pattern in patterns:
        if not any(fnmatch(name, pattern) for name in found):
            known = _listed(list(cache.shards()))
            raise CacheError(f"{cache.location.url}: --val-shards names {pattern!r}, but the cache has {known}")
    return found


def train_names(
    config: DistillConfig, names: Sequence[str], val: Sequence[str], before: Sequence[str]
) -> tuple[str, ...]:
    """The tars given, without those that this run or an earlier one holds out. ConfigError if none is left."""
    left = set(before) - set(val) if not config.use_held_out else set()
    out = left.union(val)
    train = tuple(name for name in names if name not in out)
    if not train and (config.val_shards is None or left & set(names)):
        earlier = _listed(sorted(left & set(names)) or names)
        raise ConfigError(
            f"every tar is held out, {earlier} by an earlier run or `shard --val-fraction`; give other tars too, or "
            "train on these with --use-held-out"
        )
    if not train:
        raise ConfigError(f"--val-shards {config.val_shards} holds out every shard; leave some to train on")
    return train


def marked(entries: Iterable[ShardEntry]) -> tuple[str, ...]:
    """The names of the tars that `shard --val-fraction` held out."""
    return tuple(entry.name for entry in entries if entry.held_out)


def tell_validation(names: Sequence[str]) -> None:
    """Say that the tars held out by `shard --val-fraction` are the validation set."""
    say(f"the validation set is {_listed(names)}, held out by `shard --val-fraction`; --use-held-out trains on it")


def split(
    config: DistillConfig,
    cache: Cache,
    names: Sequence[str],
    entries: Sequence[ShardEntry],
    given: Sequence[ShardEntry],
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names of the tars to train on, and of those to validate on.

    `names` are all tars, `entries` describe those that were given, `given` those of --val-shards; without --val-shards,
    tars held out by `shard --val-fraction` are the validation set. Says what is held out.
    """
    by_shard = {*marked(entries), *marked_tars(cache)}
    before, val = {*held_out(cache), *by_shard}, val_names(config, cache, given)
    if val:
        say(f"held out of training{'' if given else ', by their names in the cache'}: {_listed(val)}")
    elif not config.use_held_out:
        val = tuple(name for name in names if name in by_shard)
    train = train_names(config, names, val, tuple(before))
    if val and config.val_shards is None:
        tell_validation(val)
    earlier = [name for name in names if name in before and name not in val]
    if earlier and config.use_held_out:
        say(f"trained on, although held out earlier: {_listed(earlier)}")
    elif earlier:
        say(f"held out by an earlier run or by `shard`: {_listed(earlier)}; --use-held-out trains on them")
    return train, val


def remember(config: DistillConfig, cache: Cache, val: Sequence[str]) -> None:
    """Let a cache with kept views remember what --val-shards holds out; without these, each run names its tars."""
    if config.online or config.val_shards is None or cache.pixels is None:
        return
    try:
        before = {*held_out(cache), *marked_tars(cache)}
        hold_out(cache, [name for name in val if name not in before])
    except (CacheError, OSError) as error:
        say(f"{cache.location.url} cannot remember what is held out ({error}); name --val-shards in each run")


def check_pictures(
    cache: Cache,
    views: Views,
    tars: Tars,
    kept: KeptPixels,
    number: int,
    pool: ThreadPoolExecutor,
    exact: ShardPixels | None,
) -> None:
    """CacheError if a tar has a cached tar's name, but other pictures.

    One row of each tar is compared with the kept views or else, with `exact`, with what the teachers saw; more rows if
    the images lie elsewhere in the tar than they did in the cached one.
    """
    source = ShardPixels(views, tars, pool)
    for place, (_, entry) in tars.items():
        rows = [Address(*place, row, number) for row in rows_to_compare(entry, cache.entry(*place))]
        if not kept.has(rows[0]):
            if exact:
                exact.start(rows, len(rows))()
            continue
        ours, theirs = (one.start(rows, len(rows))() for one in (source, kept))
        apart = np.abs(ours.views_BHWC.astype(np.int16) - theirs.views_BHWC).mean(axis=(1, 2, 3))
        others = [
            at for at in range(len(rows)) if at not in theirs.bad and (at in ours.bad or apart[at] > PICTURES_APART)
        ]
        if others:
            raise CacheError(
                f"{source.where(rows[others[0]])}: another picture than the one in {cache.location.url} under this "
                "tar's name. Give the tar that the cache was made with, or leave it out"
            )


def tell_leaks(
    cache: Cache, teachers: Sequence[CachedTeacher], view: tuple[Views, int], train: Rows, val: Rows
) -> None:
    """Say how many held-out images are also trained on, in other tars: those with equal keys and equal pixels.

    Copies under other keys have other views and are not found. Of too many images, which would have to be read, none
    is compared.
    """
    if not len(val):
        return
    if len(train) > LEAKS_SOUGHT:
        say(f"not looked for held-out images in other tars: {len(train):,} images are trained on")
        return
    both = int(np.isin(prints(cache, teachers, view, val), prints(cache, teachers, view, train)).sum())
    if both:
        say(f"{both} of {len(val)} held-out images are also trained on, pixel for pixel, in other tars")


def prints(
    cache: Cache, teachers: Sequence[CachedTeacher], view: tuple[Views, int], rows: Rows
) -> npt.NDArray[np.int64]:
    """(N,) 64 bits of each row's key and pixels, from the first commit record that some teacher has."""
    found: list[npt.NDArray[np.int64]] = [np.zeros(0, np.int64)]
    for segment, shard, own in rows.by_tar():
        keys = np.asarray(cache.entry(segment, shard).keys, np.int64)[own]
        unit = cache.unit(segment, shard, *view)
        records = committed_records(teachers, unit, may_differ=True, may_lack=True)
        if not records:  # its seal is there
            raise not_committed(teachers[0], unit)
        record = next(iter(records.values()))
        found.append(keys << 32 | record.pixels[own].astype(np.int64))
    return np.concatenate(found)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{', '.join(names[:SHOWN])}{more}"
