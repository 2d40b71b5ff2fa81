"""Open what extraction works with: a cache with index, specs and calibrations, its teachers, and the pixels."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from pipelines.command.caches import refuse_other_folders, tell_guests
from pipelines.command.device import device_words
from pipelines.command.environment import say_surroundings
from pipelines.command.progress import begins, say
from pipelines.command.tars import given_shards
from pipelines.extracting.calibrating import calibrate, views_to_calibrate
from pipelines.extracting.opening_options import OpeningOptions
from pipelines.extracting.sampling_rules import sampling_rules, tell
from pipelines.extracting.specs import teacher_spec
from pipelines.extracting.teacher_weights import announce, check_claims, check_same_weights, load_teachers
from unic_cache.cache import Cache
from unic_cache.files.local import LocalFolder
from unic_cache.files.location import Location
from unic_cache.files.schemes import open_location
from unic_cache.store.foreign_folders import sort_folders
from unic_cache.store.layout import VIEWS_MEMBER, teacher_folder
from unic_cache.store.member import Member
from unic_cache.stream.decoder_probe import check_known_pixels, settle_probe
from unic_cache.stream.pixels import KeptPixels, Pixels, ShardPixels
from unic_cache.stream.seen_pixels import Seen
from unic_cache.teachers.model import Teacher
from unic_cache.token_kinds import grid_of
from unic_cache.views.index import ShardEntry
from unic_cache.views.segments import extend_index, segment_names


@dataclass(frozen=True)
class Opened:
    """A cache with its index, specs and calibrations, the teachers, and the pixels."""

    cache: Cache
    teachers: dict[str, Teacher]
    members: dict[str, Member]
    tars: dict[tuple[int, int], tuple[str, ShardEntry]]  # (segment, number) -> (path, entry)
    pixels: Pixels


def open_teachers(
    options: OpeningOptions, pool: ThreadPoolExecutor, device: torch.device, command: str = "extract"
) -> Opened:
    """Make or extend the cache's index, and make the spec and the calibration of every teacher without one."""
    views = options.kind
    location = open_location(options.cache, options.worker_index)
    refuse_other_folders(location)
    if isinstance(location, LocalFolder):
        location.remove_leftovers(without=sort_folders(location)[1].keys() - set(map(teacher_folder, options.teachers)))
    paths, entries = given_shards(options.shards, Member.open(location, VIEWS_MEMBER) is not None, options.strict)
    begins(
        command,
        f"{', '.join(options.teachers) or 'no teacher'} on {device_words(device)}, {options.dtype}",
        f"{f'{sum(entry.rows for entry in entries):,} images' if entries else 'the kept views'} x "
        f"{options.count} views of {views.size} px ({views.kind})",
        f"batch {options.batch_size}",
        f"into {options.cache}",
    )
    say_surroundings()
    teachers = load_teachers(options, device)
    announce(teachers, views.size)
    grids = {name: grid_of(teacher.spec.kinds) for name, teacher in teachers.items()}
    rules = sampling_rules(options.tokens, options.sampling, location, grids)
    if options.tokens:
        tell(options.tokens, rules, grids)
    before = len(segment_names(location))
    segments = extend_index(location, entries)
    if before and len(segments) > before:
        count = len(segments[-1].shards)
        say(f"Added {count} tar{'s' * (count > 1)} to {location.url} (segment {before})")
    count = views_to_calibrate(options, segments[0])
    members = {
        name: teacher_member(options, location, teacher, device, count, rules[name])
        for name, teacher in teachers.items()
    }
    cache = Cache(location)
    tell_guests(location.url, cache.guests)
    tars = {cache.shards()[entry.name]: (path, entry) for path, entry in zip(paths, entries, strict=True)}
    pin, seen = device.type == "cuda", Seen(cache)
    for kind in seen.kinds(tars) - {views}:
        check_known_pixels(cache, ShardPixels(kind, tars, pool))
    settle_probe(cache, ShardPixels(views, tars, pool))
    pixels = Pixels(KeptPixels(views, cache, pool, pin=pin), ShardPixels(views, tars, pool, pin, seen))
    calibrate(options, cache, pixels, teachers, members, device)
    return Opened(cache, teachers, members, tars, pixels)


def teacher_member(
    options: OpeningOptions, location: Location, teacher: Teacher, device: torch.device, count: int, sampling: str
) -> Member:
    """The teacher's folder in the cache, created or opened. CacheError if it holds another network's features."""
    name = teacher_folder(teacher.spec.name)
    before = Member.open(location, name)
    check_same_weights(teacher, before, location.url)
    check_claims(teacher, before, options)
    return Member.ensure(location, name, teacher_spec(options, teacher, device, before, count, sampling))
