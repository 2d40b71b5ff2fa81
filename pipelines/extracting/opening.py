"""Open what extraction works with: a cache with index, specs and calibrations, its teachers, and the pixels."""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch

from pipelines.command.caches import refuse_other_folders, tell_guests
from pipelines.command.device import device_words
from pipelines.command.environment import say_surroundings
from pipelines.command.progress import begins, say
from pipelines.command.tars import given_shards
from pipelines.extracting.calibrating import calibrate, views_to_calibrate
from pipelines.extracting.opening_options import OpeningOptions
from pipelines.extracting.sampling_rules import sampling_rules, tell
from pipelines.extracting.specs import kept_spec, teacher_spec
from pipelines.extracting.teacher_weights import announce, check_claims, check_same_weights, load_teachers
from unic_cache.cache import Cache
from unic_cache.config import Views
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
from unic_cache.views.index import Segment, ShardEntry
from unic_cache.views.segments import extend_index


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
    specs = agreed_specs(options, location, teachers, device, rules)
    before = Cache(location)
    check_decoder(before, views, zip(paths, entries, strict=True), pool)
    segments = extend_index(location, entries)  # the first that is written: all refusals of settings are above
    images = {"calibration_images": views_to_calibrate(options, segments[0])}
    members = {name: Member.ensure(location, teacher_folder(name), spec | images) for name, spec in specs.items()}
    if before.segments and len(segments) > len(before.segments):
        tell_added(location, segments, len(before.segments), members.values())
    cache = Cache(location)
    tell_guests(location.url, cache.guests)
    tars = {cache.shards()[entry.name]: (path, entry) for path, entry in zip(paths, entries, strict=True)}
    pin, seen = device.type == "cuda", Seen(cache)
    settle_probe(cache, ShardPixels(views, tars, pool))
    pixels = Pixels(KeptPixels(views, cache, pool, pin=pin), ShardPixels(views, tars, pool, pin, seen))
    calibrate(options, cache, pixels, teachers, members, device)
    return Opened(cache, teachers, members, tars, pixels)


def tell_added(location: Location, segments: Sequence[Segment], before: int, members: Iterable[Member]) -> None:
    """Say how many tars were added, and what stays as it was."""
    count = sum(len(segment.shards) for segment in segments[before:])
    fitted = min((int(one.spec["calibration_images"]) for one in members), default=0)
    stays = f"; mean, std and codecs stay those fitted to {fitted:,} views of the first tars" if fitted else ""
    say(f"Added {count:,} tar{'s' * (count > 1)} to {location.url} (segment {before}){stays}")


def agreed_specs(
    options: OpeningOptions,
    location: Location,
    teachers: Mapping[str, Teacher],
    device: torch.device,
    rules: Mapping[str, str],
) -> dict[str, dict[str, Any]]:
    """{teacher: spec.json without `calibration_images`}; `rules` sample tokens.

    CacheError if the cache has one, or kept views, by other settings, or another network's features.
    """
    if options.keep_views:
        kept = kept_spec(location, options.kind.size, options.pixel_codec)
        Member.agreeing(location, VIEWS_MEMBER, kept)
    specs = {}
    for name, teacher in teachers.items():
        folder = teacher_folder(teacher.spec.name)
        before = Member.open(location, folder)
        check_same_weights(teacher, before, location.url)
        check_claims(teacher, before, options)
        specs[name] = teacher_spec(options, teacher, device, before, rules[name])
        Member.agreeing(location, folder, specs[name])
    return specs


def check_decoder(
    before: Cache, views: Views, given: Iterable[tuple[str, ShardEntry]], pool: ThreadPoolExecutor
) -> None:
    """CacheError if this machine makes other pixels of the tars that a cache has than it has stored in its probes."""
    places, segments = before.shards(), before.segments
    found = [(places[entry.name], (path, entry)) for path, entry in given if entry.name in places]
    known = {place: one for place, one in found if segments[place[0]].has(place[1], one[1].keys)}
    for kind in Seen(before).kinds(known) | {views} if known else ():
        check_known_pixels(before, ShardPixels(kind, known, pool))
