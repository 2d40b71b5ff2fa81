"""Stage one: every teacher sees each view of each image once, and what it says is kept.

    tar -> decode -> view -> teacher -> standardize -> encode -> Zarr objects -> commit record

Run again it makes only what is missing: more views, more teachers, appended tars, or the rest after a crash.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

from pipelines.command.device import pick_device
from pipelines.command.progress import Progress, say
from pipelines.command.shares import share_lines
from pipelines.extracting.kinds import kept_alike, settled
from pipelines.extracting.opening import Opened, open_teachers
from pipelines.extracting.recorder import BATCHES_AHEAD, Recorder, recorder
from pipelines.extracting.specs import pixel_spec
from pipelines.extracting.unit_rows import UNITS_BEING_WRITTEN, UnitRows, Work
from unic_cache.ahead import ahead, dropped, thread_pool
from unic_cache.cache import Cache
from unic_cache.config import ExtractConfig, Views
from unic_cache.errors import CacheError, EmptyShardError
from unic_cache.files.schemes import open_location
from unic_cache.store.commit import Unit
from unic_cache.store.layout import VIEWS_MEMBER
from unic_cache.store.member import Member
from unic_cache.stream.address import Address
from unic_cache.stream.evenly import rows_to_compare
from unic_cache.stream.pixels import Pixels, ViewBatch


@dataclass
class Summary:
    """What a run did."""

    units: int = 0  # (tar, view) pairs written for at least one member
    skipped: int = 0  # pairs that were complete before
    images: int = 0  # views shown to teachers
    bytes: int = 0  # kept
    bad: dict[str, str] = field(default_factory=dict)  # "SHARD row ROW" -> reason


def run(config: ExtractConfig) -> Summary:
    """Extend the cache to all that the config asks for: to nothing where every tar is empty.

    After an error all that was committed stands, and counts.
    """
    device, before = pick_device(config.device), Cache(open_location(config.cache))
    config = kept_alike(settled(config, before), before)
    views = config.kind
    with thread_pool(config.threads) as pool, ThreadPoolExecutor(1, "writer") as writing, dropped(pool, writing):
        try:
            opened = open_teachers(config, pool, device)
        except EmptyShardError as error:  # no view is missing
            say(str(error))
            return Summary()
        cache, location = opened.cache, opened.cache.location
        recorders: dict[str, Recorder] = {
            name: recorder(opened.members[name], teacher) for name, teacher in opened.teachers.items()
        }
        check_calibrations(cache, recorders)
        if config.keep_views:
            spec = pixel_spec(config, Member.open(location, VIEWS_MEMBER))
            recorders[VIEWS_MEMBER] = recorder(Member.ensure(location, VIEWS_MEMBER, spec), None)
        tars = sorted(opened.tars) or sorted(cache.shards().values())
        work, skipped = plan(config, cache, views, tars, recorders)
        for line in share_lines(config.worker_index, config.num_workers, len(work) + skipped, len(tars) * config.count):
            say(line)
        check_idle(opened, work)
        batches = ahead(batches_of(work, config.batch_size), partial(start_batch, opened.pixels, config), BATCHES_AHEAD)
        summary = Summary(skipped=skipped)
        written: deque[Future[int]] = deque()
        with Progress("extract", total=sum(item.unit.rows for item in work), unit="images") as progress:
            for item in work:
                keys = cache.entry(item.unit.segment, item.unit.shard).keys
                rows = UnitRows(
                    item,
                    keys,
                    recorders,
                    cache.pixels_seen(item.unit),
                    config.strict,
                    partial(name_of, opened, item.unit),
                )
                for first in range(0, item.unit.rows, config.batch_size):
                    rows.add(first, next(batches), device)
                    progress.advance(min(config.batch_size, item.unit.rows - first))
                if len(written) >= UNITS_BEING_WRITTEN:
                    summary.bytes += written.popleft().result()
                written.append(writing.submit(rows.commit))
                summary.units += 1
                summary.images += item.unit.rows
                summary.bad |= {
                    f"{item.unit.name} row {row}": f"{rows.called(row)}: {reason}" for row, reason in rows.bad.items()
                }
                progress.note(f"{summary.bytes / 1e6:,.0f} MB kept")
            summary.bytes += sum(future.result() for future in written)
    return summary


def check_calibrations(cache: Cache, recorders: Mapping[str, Recorder]) -> None:
    """CacheError where the calibration that stands is not the one that the teacher's units were made with."""
    for found in recorders.values():
        for view, segment, tars in cache.committed(found.member):
            unit = cache.unit(segment, min(tars), view) if tars else None
            before = None if unit is None else found.member.calibration_of(unit)
            if before not in {None, found.writer.calibration_crc}:
                file = f"{cache.location.url}/{found.member.calibration_name}"
                raise CacheError(
                    f"{file} has checksum {found.writer.calibration_crc}, "
                    f"but {unit} was made with one of checksum {before}: the file was replaced; put the right one back"
                )


def check_idle(opened: Opened, work: Sequence[Work]) -> None:
    """CacheError where a tar that needs no work is called as one of the cache's and holds other pictures.

    Of such a tar one row is made, or a few where its images do not lie where the cache's lay: two sets that number
    their files alike are two sets.
    """
    busy = {(item.unit.segment, item.unit.shard) for item in work}
    for place, (_, entry) in opened.tars.items():
        if place not in busy:
            rows = rows_to_compare(entry, opened.cache.entry(*place))
            opened.pixels.decoded.start([Address(*place, row, 0) for row in rows], len(rows))()


def name_of(opened: Opened, unit: Unit, row: int) -> str:
    """What the tar calls the image of a row; its key's checksum where no tar was given."""
    if (unit.segment, unit.shard) not in opened.tars:
        return f"key {opened.cache.entry(unit.segment, unit.shard).keys[row]:08x}"
    return opened.pixels.decoded.name(Address(unit.segment, unit.shard, row, 0))


def plan(
    config: ExtractConfig,
    cache: Cache,
    views: Views,
    tars: Sequence[tuple[int, int]],
    recorders: Mapping[str, Recorder],
) -> tuple[list[Work], int]:
    """This worker's units that a member lacks, tar by tar, and how many of its units lack nothing."""
    mine = [(place, number) for place in tars for number in range(config.count)]
    mine = mine[config.worker_index :: config.num_workers]
    there = {
        (name, segment, number): found.member.committed(segment, views.name(number))
        for name, found in recorders.items()
        for segment in {place[0] for place in tars}
        for number in range(config.count)
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
