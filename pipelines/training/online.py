"""Distillation without a cache: the teachers see each view together with the student, anew in every epoch.

Only the source of the tokens differs from training on a cache. All else that a cache holds (index, specs, calibrations)
is made first, in OUT/online.
"""

import dataclasses
import filecmp
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from pipelines.command.preflight import DEFAULT_SHARDS
from pipelines.command.tars import given_shards
from pipelines.extracting.calibrating import views_to_calibrate
from pipelines.extracting.opening import Opened, open_teachers
from pipelines.extracting.opening_options import OpeningOptions
from pipelines.training.split import marked, tell_validation, train_names
from pipelines.training.targets import Live
from pipelines.training.training_set import Snapshot, TrainingSet, check_kinds, teachers_of
from unic_cache.cache import Cache
from unic_cache.config import DEFAULT_VIEWS, DistillConfig, Views
from unic_cache.config.views import CROP_SCALE
from unic_cache.errors import ConfigError, ShardError
from unic_cache.stream.decoder_probe import probe_name
from unic_cache.stream.matched import Tars, matched
from unic_cache.stream.pixels import KeptPixels, Pixels, ShardPixels
from unic_cache.stream.rows import all_rows
from unic_cache.teachers.catalog import resolve
from unic_cache.views.index import ShardEntry
from unic_cache.views.segments import extend_index, groups
from unic_cache.views.shards import describe_filled, expand, shard_name

DEFAULT_SIZE = 224  # pixels of a view
FOLDER = "online"


def open_live_set(
    config: DistillConfig,
    pool: ThreadPoolExecutor,
    device: torch.device,
    worker: tuple[int, int],
    resumed: Snapshot | None = None,
) -> tuple[Cache, TrainingSet, Live]:
    """The teachers and all images of the shards; images that turn out to be bad will not count.

    `worker`: index and number of processes. ConfigError if no teacher is named, or if a run that is `resumed` began
    with other tars.
    """
    if not config.teachers:
        raise ConfigError("--online runs the teachers itself: name each with --teacher, and its weights with --weights")
    config = dataclasses.replace(config, teachers=tuple(dict.fromkeys(config.teachers)))
    specs = [resolve(name) for name in config.teachers]
    check_kinds({spec.name: (*spec.summary_rules, *spec.grid_rules) for spec in specs}, config.kinds)
    scale = config.crop_scale or CROP_SCALE
    views = Views(config.recipe or Views().recipe, config.size or DEFAULT_SIZE, config.view_seed or 0, scale)
    val_paths, val_entries = given_live_val(config)  # refused before anything is written
    if resumed is not None:
        check_same_tars(config, val_entries, resumed)
    else:
        check_namesakes(config, val_paths)
        check_same_views(config, views)
    options = opening_options(config, views, worker)
    opened = open_teachers(options, pool, device, "distill --online, first")
    if resumed is None:
        check_calibrations(config, options, opened)
    extend_index(opened.cache.location, val_entries)
    cache, entries = Cache(opened.cache.location), [entry for _, entry in opened.tars.values()]
    tars = opened.tars | matched(cache, zip(val_paths, val_entries, strict=True))
    check_same_images(config, cache, tars)
    train, val = live_split(config, entries, val_entries)
    if val and not val_entries:
        tell_validation(val)
    rows = all_rows(cache, train)
    snapshot = Snapshot(
        config.teachers, views.recipe, views.size, views.seed, view_numbers(config, len(rows)), train, val, {}, scale
    )
    pin = torch.cuda.is_available()
    pixels = Pixels(KeptPixels(views, cache, pool, pin=pin), ShardPixels(views, tars, pool, pin))
    teachers = teachers_of(cache, config.teachers, config.kinds)
    live = Live(teachers, opened.teachers)
    return cache, TrainingSet(snapshot, teachers, rows, all_rows(cache, val), pixels, None), live


def live_split(
    config: DistillConfig, entries: Sequence[ShardEntry], val_entries: Sequence[ShardEntry]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the tars to train on, and to validate on: those given for it, or those that `shard` held out."""
    held = () if config.use_held_out else marked(entries)
    val = tuple(entry.name for entry in val_entries) or held
    return train_names(config, [entry.name for entry in entries], val, held), val


def check_same_tars(config: DistillConfig, val_entries: Sequence[ShardEntry], resumed: Snapshot) -> None:
    """ConfigError unless the tars given now are those that the run began with: others would change what it has seen."""
    _, entries = given_shards(config.shards, False, flag="--shards")
    now, began = live_split(config, entries, val_entries), (resumed.train, resumed.val)
    for use, ours, theirs in zip(("trains", "is validated"), now, began, strict=True):
        if set(ours) != set(theirs):
            other = sorted({*ours} ^ {*theirs})
            raise ConfigError(
                f"{config.out} {use} on {len(theirs)} tars, but --shards and --val-shards now give {len(ours)}: "
                f"{other[0]} is {'new' if other[0] in ours else 'missing'}. Give the same tars, or another --out"
            )


def check_same_images(config: DistillConfig, cache: Cache, tars: Tars) -> None:
    """ConfigError if an image of a tar has another size in bytes than when the run began: a repacked one keeps it."""
    for place, (path, entry) in tars.items():
        began = cache.entry(*place).sizes
        row = next((row for row, size in enumerate(entry.sizes) if size != began[row]), None)
        if row is not None:
            raise ConfigError(
                f"{path}, row {row}: an image of {entry.sizes[row]:,} bytes, and of {began[row]:,} when {config.out} "
                "began. Give the same tars, or another --out"
            )


def check_same_views(config: DistillConfig, views: Views) -> None:
    """ConfigError if an earlier attempt calibrated its teachers on other views."""
    folder = calibrations(config)
    if others := [path.stem for path in folder.glob("probe/*.npz") if path.name != Path(probe_name(views)).name]:
        raise _begun_otherwise(folder, f"views {others[0]}, not {Path(probe_name(views)).stem}")


def check_calibrations(config: DistillConfig, options: OpeningOptions, opened: Opened) -> None:
    """ConfigError if the calibrations are of an earlier attempt with other tars, or on another number of views."""
    folder, first = calibrations(config), opened.cache.segments[0]
    given = next(groups([entry for _, entry in opened.tars.values()]))
    if [entry.name for entry in given] != list(first.names):
        raise _begun_otherwise(
            folder, f"{len(first.names)} tars from {first.names[0]} on, not those of --shards in their order"
        )
    views = views_to_calibrate(options, first)
    for name, member in opened.members.items():
        if (told := member.spec.get("calibration_images")) != views:
            raise _begun_otherwise(folder, f"{told} views for {name}, not {views}")


def _begun_otherwise(folder: Path, how: str) -> ConfigError:
    return ConfigError(
        f"{folder} has the calibrations of an earlier attempt, on {how}; delete this folder, or choose another --out"
    )


def given_live_val(config: DistillConfig) -> tuple[Sequence[str], Sequence[ShardEntry]]:
    """(paths, index entries) of the tars of --val-shards, if any. ShardError for one that cannot be used."""
    if config.val_shards is None:
        return (), ()
    return given_shards(config.val_shards, False, flag="--val-shards")


def check_namesakes(config: DistillConfig, val_paths: Sequence[str]) -> None:
    """ShardError for a tar to validate on that has the name of another one among --shards, and is no copy of it.

    It would be taken for that one, which would not be trained on then.
    """
    ours = {shard_name(path): path for path in expand(config.shards or DEFAULT_SHARDS)} if val_paths else {}
    for path in val_paths:
        other = ours.get(shard_name(path), path)
        if other != path and not same_bytes(path, other) and describe_filled([other])[0]:
            raise ShardError(
                f"--val-shards: {path} has the name of {other}, by which tars are known; rename it if its images are "
                "others, or give that very path to hold it out"
            )


def same_bytes(one: str, other: str) -> bool:
    """Whether two local files are the same, or one is a copy of the other."""
    ours, theirs = (Path(path.removeprefix("file://")) for path in (one, other))
    return ours.is_file() and theirs.is_file() and filecmp.cmp(ours, theirs, shallow=False)


def calibrations(config: DistillConfig) -> Path:
    """The folder of the teachers' calibrations, in OUT."""
    return Path(config.out.removeprefix("file://")) / FOLDER


def opening_options(config: DistillConfig, views: Views, worker: tuple[int, int]) -> OpeningOptions:
    """The teachers, and a cache of their calibrations in the run's folder."""
    return OpeningOptions(
        teachers=config.teachers,
        weights=config.weights,
        dtype=config.dtype,
        shards=config.shards,
        cache=str(calibrations(config)),
        kind=views,
        count=DEFAULT_VIEWS,  # that a calibration may use, as in extraction
        codec="f16",
        calibration_images=config.calibration_images,
        worker_index=worker[0],
    )


def view_numbers(config: DistillConfig, images: int) -> tuple[int, ...]:
    """The views to cycle through: as many as asked for, or a new one in every epoch."""
    epochs = config.epochs if config.steps is None else config.steps * config.batch_size / images
    return tuple(range(config.views or max(1, math.ceil(epochs))))
