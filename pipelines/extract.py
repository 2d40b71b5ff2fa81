"""Stage one: every teacher sees each view of each image once, and what it says is kept.

    tar -> decode -> view -> teacher -> standardize -> encode -> Zarr objects -> commit record

Run again it makes only what is missing: more views, more teachers, appended tars, or the rest after a crash.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch

from pipelines.device import pick_device
from pipelines.progress import Progress, console
from pipelines.recorder import BATCHES_AHEAD, Recorder, calibrate, pixel_spec, recorder, teacher_spec
from pipelines.teacher_weights import announce, check_claims, check_same_weights, load_teachers
from pipelines.unit_rows import UnitRows, Work
from unic_cache.cache import Cache
from unic_cache.config import ExtractConfig, Views
from unic_cache.errors import ShardError
from unic_cache.location import LocalFolder, Location, open_location
from unic_cache.probe import settle_probe
from unic_cache.sources import Address, KeptPixels, Pixels, ShardPixels, ViewBatch, ahead, thread_pool
from unic_cache.store.commit import Crcs, Unit
from unic_cache.store.layout import VIEWS_MEMBER
from unic_cache.store.member import Member
from unic_cache.teachers.catalog import folder
from unic_cache.teachers.model import Teacher
from unic_cache.views.index import ShardEntry, extend_index, segment_names
from unic_cache.views.shards import describe, expand

UNITS_BEING_WRITTEN = 2
DEFAULT_SHARDS = "shards/*.tar"


@dataclass
class Summary:
    """What a run did."""

    units: int = 0  # (tar, view) pairs written for at least one member
    skipped: int = 0  # pairs that were complete before
    images: int = 0  # views shown to teachers
    bytes: int = 0  # kept
    bad: dict[str, str] = field(default_factory=dict)  # "SHARD row ROW" -> reason


@dataclass(frozen=True)
class Opened:
    """What extraction works with: a cache with its index, specs and calibrations, the teachers, and the pixels."""

    cache: Cache
    teachers: dict[str, Teacher]
    members: dict[str, Member]
    tars: dict[tuple[int, int], tuple[str, ShardEntry]]
    pixels: Pixels


def open_teachers(config: ExtractConfig, pool: ThreadPoolExecutor, device: torch.device) -> Opened:
    """Make or extend the cache's index, and make the spec and the calibration of every teacher that has none."""
    views = Views(config.recipe, config.size, config.seed)
    location = open_location(config.cache, config.worker_index)
    if isinstance(location, LocalFolder):
        location.remove_leftovers()
    paths, entries = given_shards(config.shards, Member.open(location, VIEWS_MEMBER) is not None)
    teachers = load_teachers(config, device)
    announce(teachers)
    before = len(segment_names(location))
    segments = extend_index(location, entries)
    if before and len(segments) > before:
        console.print(
            f"{len(segments[-1].shards)} new tars are appended to {location.url} as segment {before}", markup=False
        )
    members = {name: teacher_member(config, location, teacher, device) for name, teacher in teachers.items()}
    cache = Cache(location)
    tars = {cache.shards()[entry.name]: (path, entry) for path, entry in zip(paths, entries, strict=True)}
    pin = device.type == "cuda"
    pixels = Pixels(KeptPixels(views, cache, pool, pin=pin), ShardPixels(views, tars, pool, pin))
    settle_probe(cache, views, pixels.decoded, lambda item: (item.segment, item.shard) in tars)
    calibrate(config, cache, pixels, teachers, members, device)
    return Opened(cache, teachers, members, tars, pixels)


def run(config: ExtractConfig) -> Summary:
    """Extend the cache to all that the config asks for. After an error all that was committed stands, and counts."""
    views = Views(config.recipe, config.size, config.seed)
    device = pick_device(config.device)
    with thread_pool(config.threads) as pool, ThreadPoolExecutor(1, "writer") as writing, dropped(pool, writing):
        opened = open_teachers(config, pool, device)
        cache, location = opened.cache, opened.cache.location
        recorders: dict[str, Recorder] = {
            name: recorder(opened.members[name], teacher) for name, teacher in opened.teachers.items()
        }
        if config.keep_views:
            spec = pixel_spec(config, Member.open(location, VIEWS_MEMBER))
            recorders[VIEWS_MEMBER] = recorder(Member.ensure(location, VIEWS_MEMBER, spec), None)
        work, skipped = plan(config, cache, views, sorted(opened.tars) or sorted(cache.shards().values()), recorders)
        batches = ahead(batches_of(work, config.batch_size), partial(start_batch, opened.pixels, config), BATCHES_AHEAD)
        summary = Summary(skipped=skipped)
        written: deque[Future[int]] = deque()
        with Progress("extract", total=sum(item.unit.rows for item in work), unit="images") as progress:
            for item in work:
                keys = cache.entry(item.unit.segment, item.unit.shard).keys
                rows = UnitRows(item, keys, recorders, seen_before(cache, item.unit), config.strict)
                for first in range(0, item.unit.rows, config.batch_size):
                    rows.add(first, next(batches), device)
                    progress.advance(min(config.batch_size, item.unit.rows - first))
                if len(written) >= UNITS_BEING_WRITTEN:
                    summary.bytes += written.popleft().result()
                written.append(writing.submit(rows.commit))
                summary.units += 1
                summary.images += item.unit.rows
                summary.bad |= {f"{item.unit.name} row {row}": reason for row, reason in rows.bad.items()}
                progress.note(f"{summary.bytes / 1e6:,.0f} MB kept")
            summary.bytes += sum(future.result() for future in written)
    return summary


@contextmanager
def dropped(*executors: Executor) -> Iterator[None]:
    """After an error or a signal what was not begun is dropped: the process ends when the work in hand is done."""
    try:
        yield
    except BaseException:
        for executor in executors:
            executor.shutdown(wait=False, cancel_futures=True)
        raise


def seen_before(cache: Cache, unit: Unit) -> dict[str, Crcs]:
    """The pixels' checksums that every member has committed for the unit already: all must see the same."""
    members = [teacher.member for teacher in cache.teachers.values()] + ([cache.pixels] if cache.pixels else [])
    records = {member.folder: member.record(unit) for member in members}
    return {folder: record.pixels for folder, record in records.items() if record is not None}


def given_shards(pattern: str | None, views_are_kept: bool) -> tuple[Sequence[str], Sequence[ShardEntry]]:
    """The tars to work on: those of the pattern, else shards/*.tar, else none where the cache keeps the views."""
    try:
        paths = expand(DEFAULT_SHARDS if pattern is None else pattern)
    except ShardError:
        if pattern is None and views_are_kept:
            return (), ()
        raise
    return paths, describe(paths)


def teacher_member(config: ExtractConfig, location: Location, teacher: Teacher, device: torch.device) -> Member:
    """The teacher's folder in the cache, made or found. CacheError where it is another network's."""
    name = folder(teacher.spec.name)
    before = Member.open(location, name)
    check_same_weights(teacher, before, location.url)
    check_claims(teacher, before, config, console.print)
    return Member.ensure(location, name, teacher_spec(config, teacher, device, before))


def plan(
    config: ExtractConfig,
    cache: Cache,
    views: Views,
    tars: Sequence[tuple[int, int]],
    recorders: Mapping[str, Recorder],
) -> tuple[list[Work], int]:
    """This worker's units that a member lacks, tar by tar, and how many of its units lack nothing."""
    mine = [(place, number) for place in tars for number in range(config.views)]
    mine = mine[config.worker_index :: config.num_workers]
    there = {
        (name, segment, number): found.member.committed(segment, views.name(number))
        for name, found in recorders.items()
        for segment in {place[0] for place in tars}
        for number in range(config.views)
    }
    work = []
    for (segment, shard), number in mine:
        missing = tuple(name for name in recorders if shard not in there[name, segment, number])
        if missing:
            work.append(Work(cache.unit(segment, shard, views.name(number)), number, missing))
    return work, len(mine) - len(work)


def batches_of(work: Sequence[Work], batch_size: int) -> Iterator[list[Address]]:
    """Rows [kB, (k + 1)B) of one unit after the other."""
    for item in work:
        for first in range(0, item.unit.rows, batch_size):
            rows = range(first, min(first + batch_size, item.unit.rows))
            yield [Address(item.unit.segment, item.unit.shard, row, item.number) for row in rows]


def start_batch(pixels: Pixels, config: ExtractConfig, wanted: list[Address]) -> Callable[[], ViewBatch]:
    """Every batch has the same size, its last slots empty: a teacher's answer may depend on it in the last bit."""
    return pixels.start(wanted, config.batch_size)
