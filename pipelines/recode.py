"""Convert a cache into a new one with another codec, another quality or fewer tokens; no teacher runs.

    index, probes -> specs, calibrations -> every unit's rows decoded and encoded -> kept views, byte for byte

All that does not depend on the codec stays: tars, views, pixel checksums, bad images, and the statistics that
standardize. A repeated run makes only what is missing; workers share the tars. Fidelity is measured against the source,
whose own error comes on top: the cosine to the teacher is about the product of the two.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from pipelines.command.caches import opened, refuse_other_folders
from pipelines.command.device import device_words, pick_device
from pipelines.command.progress import Progress, begins, say
from pipelines.command.shares import share_lines
from pipelines.extracting.recorder import BATCHES_AHEAD
from pipelines.extracting.sealing import seal_rest
from pipelines.extracting.unit_rows import UNITS_BEHIND
from pipelines.recoding.copying import copy_foundations, copy_views, missing_units
from pipelines.recoding.transcode import Transcoder, codes_stay, target_spec, transcoder
from unic_cache.ahead import ahead, behind, dropped, thread_pool
from unic_cache.cache import Cache
from unic_cache.config import RecodeConfig
from unic_cache.errors import BrokenError, CacheError, ConfigError
from unic_cache.files.local import LocalFolder
from unic_cache.files.location import Location
from unic_cache.files.schemes import open_location
from unic_cache.store.calibrate import to_teacher
from unic_cache.store.commit import CommitRecord, Unit
from unic_cache.store.foreign_folders import sort_folders
from unic_cache.store.layout import VIEWS_MEMBER
from unic_cache.store.member import Member
from unic_cache.store.reader import RowArray
from unic_cache.store.writer import UnitArrays
from unic_cache.stream.address import addresses, shown
from unic_cache.stream.seen_pixels import Seen

BATCH = 64  # rows that are decoded and encoded at once

Work = Mapping[Unit, Sequence[Transcoder]]  # each unit, and the teachers that lack it in the target


@dataclass
class Summary:
    """What a run did."""

    units: int = 0  # of teachers, recoded
    skipped: int = 0  # units that the target had before
    views: int = 0  # units of kept pixels, copied
    before: int = 0  # bytes of the recoded units in the source
    after: int = 0  # bytes of the same in the target
    fidelity: dict[str, dict[str, float]] = field(default_factory=dict)  # teacher -> token kind -> cosine to the source
    to_teacher: dict[str, dict[str, float]] = field(default_factory=dict)  # estimated cosine to the teacher

    def lines(self, config: RecodeConfig) -> list[str]:
        """The summary for people."""
        views = f" and {self.views} of kept pixels" if self.views else ""
        share = f", {100 * self.after / self.before:,.0f} %" if self.before else ""
        lines = [
            f"{self.units} units{views} of {config.source} recoded into {config.target}: {self.before / 1e6:,.1f} MB "
            f"before, {self.after / 1e6:,.1f} MB after{share}; {self.skipped} units were there already"
        ]
        for name, found in self.fidelity.items():
            each = (f"{kind} {x:.5f} (to the teacher {self.to_teacher[name][kind]:.5f})" for kind, x in found.items())
            lines.append(f"{name}: cosine to the source {', '.join(each)}")
        return lines


def run(config: RecodeConfig) -> Summary:
    """Make all units of the source that the target lacks. After an error, all committed units stay valid."""
    # Check, and copy the index and the probes.
    device = pick_device(config.device)
    source, location = opened(config.source), open_location(config.target, config.worker_index)
    check_apart(source.location, location)
    refuse_other_folders(location)
    teachers = [source.teacher(name) for name in dict.fromkeys(config.teachers or source.teachers)]
    specs = {t.name: target_spec(config, t, location) for t in teachers}
    if isinstance(location, LocalFolder):
        location.remove_leftovers(without=sort_folders(location)[1].keys() - {t.member.folder for t in teachers})
    kept = ", ".join(f"{name} as {spec['codec']}" for name, spec in specs.items())
    begins("recode", f"{kept or 'no teacher'} on {device_words(device)}", f"{config.source} into {config.target}")
    copy_foundations(source, location)
    with going_on(config), thread_pool(config.threads) as pool, dropped(pool):
        # Calibrate each teacher in the target, and plan this worker's share.
        coders = [transcoder(source, t, specs[t.name], location, device) for t in teachers]
        target = Cache(location)
        before = Seen(target)
        work, skipped = plan(config, source, coders)
        summary = Summary(skipped=skipped)

        # Recode unit after unit: rows are read ahead, units are written behind.
        reads = (
            (coder, unit, rows) for unit, lacking in work.items() for coder in lacking for rows in batches_of(unit)
        )
        parts = ahead(reads, lambda one: pool.submit(read, *one).result, BATCHES_AHEAD)
        total = sum(unit.rows * len(lacking) for unit, lacking in work.items())
        with Progress("recode", total, "rows") as progress, behind("writer", UNITS_BEHIND) as later:
            for unit, lacking in work.items():
                records = {coder: committed(coder, unit) for coder in lacking}
                check_same_pixels(source, target, unit, records)
                before.check_cache((unit.segment, unit.shard), source)
                for coder, record in records.items():
                    arrays = recoded(source, coder, record, parts, progress)
                    later(partial(commit, arrays, record, summary))

        # Copy the kept views as they are.
        if config.views and source.pixels is not None:
            summary.views, there = copy_views(config, source, target, source.pixels, pool)
            summary.skipped += there
        seal_target(config, source, target)
    summary.fidelity = {coder.source.name: dict(coder.calibration.fidelity) for coder in coders}
    summary.to_teacher = {one.source.name: to_teacher(one.calibration.fidelity, one.target.spec) for one in coders}
    return summary


def seal_target(config: RecodeConfig, source: Cache, target: Cache) -> None:
    """Seal what the target has of the source's views."""
    members = [teacher.member for teacher in target.teachers.values()]
    kept = Member.open(target.location, VIEWS_MEMBER)
    for member in [*members, *([] if kept is None else [kept])]:
        for views, number, *_ in source.committed(member):
            seal_rest(target, [member], views, [number], (config.worker_index, config.num_workers))


def check_apart(source: Location, target: Location) -> None:
    """ConfigError if both are the same folder, or if one contains the other."""
    if isinstance(source, LocalFolder) and isinstance(target, LocalFolder):
        here, there = Path(source.url).resolve(), Path(target.url).resolve()
        overlap = here.is_relative_to(there) or there.is_relative_to(here)
    else:
        overlap = source.url.rstrip("/") == target.url.rstrip("/")
    if overlap:
        raise ConfigError(
            f"{source.url} and {target.url} are the same folder, or one contains the other: recoding makes a new cache "
            "and leaves the old one unchanged; choose another DST"
        )


@contextmanager
def going_on(config: RecodeConfig) -> Iterator[None]:
    """Broken data stops the run; the error says that nothing is lost."""
    try:
        yield
    except BrokenError as error:
        raise BrokenError(
            f"{error}. Nothing is lost: {config.target} keeps all that was recoded before; once {config.source} is "
            "repaired, the same command goes on"
        ) from error


def plan(config: RecodeConfig, source: Cache, coders: Sequence[Transcoder]) -> tuple[Work, int]:
    """This worker's units that the target lacks, by segment, view and tar; and the number of those it has."""
    work: dict[Unit, list[Transcoder]] = {}
    skipped = units = 0
    for coder in coders:
        missing, there = missing_units(config, source, coder.source.member, coder.target)
        skipped += there
        units += len(source.units(coder.source.member))
        for unit in missing:
            work.setdefault(unit, []).append(coder)
    mine = sum(len(lacking) for lacking in work.values()) + skipped
    for line in share_lines(config.worker_index, config.num_workers, mine, units):
        say(line)
    return dict(sorted(work.items(), key=lambda item: (item[0].segment, item[0].view, item[0].shard))), skipped


def batches_of(unit: Unit) -> list[range]:
    """The rows of each batch of a unit."""
    return [range(first, min(first + BATCH, unit.rows)) for first in range(0, unit.rows, BATCH)]


def committed(coder: Transcoder, unit: Unit) -> CommitRecord:
    """The source's record of a unit. BrokenError if it is broken, or was removed since the run began."""
    record = coder.source.record(unit)
    if record is None:
        raise BrokenError(f"{coder.source.name}, {unit}: its commit record vanished from the source")
    return record


def read(coder: Transcoder, unit: Unit, rows: range) -> dict[str, RowArray]:
    """The source's stored rows; runs in the pool."""
    return coder.source.parts(committed(coder, unit), rows)


def recoded(
    source: Cache, coder: Transcoder, record: CommitRecord, parts: Iterator[dict[str, RowArray]], progress: Progress
) -> UnitArrays:
    """The target's arrays of a unit, from the next batches of the source's."""
    unit, arrays = record.unit, UnitArrays(coder.writer, record.unit)
    for rows in batches_of(unit):
        encoded = coder.encode(next(parts), unit.views.seed, shown(source, addresses(unit, rows)))
        arrays.put(rows.start, len(rows), encoded, [row - rows.start for row in record.bad if row in rows])
        progress.advance(len(rows))
    if codes_stay(coder.source.member, coder.target):
        arrays.clipped = record.clipped
    return arrays


def commit(arrays: UnitArrays, record: CommitRecord, summary: Summary) -> None:
    """Write and commit a unit with the source's checksums and bad rows; runs in the writer's thread."""
    summary.after += arrays.write(record.pixels, record.bad).bytes_kept
    summary.before += record.bytes_kept
    summary.units += 1


def check_same_pixels(source: Cache, target: Cache, unit: Unit, records: Mapping[Transcoder, CommitRecord]) -> None:
    """CacheError unless all teachers to be recoded saw the pixels that the target's other members saw."""
    ours = {f"{source.location.url}, {coder.source.name}": record.pixels for coder, record in records.items()}
    seen = {**ours, **{f"{target.location.url}, {name}": crcs for name, crcs in target.pixels_seen(unit).items()}}
    first = next(iter(seen))
    for place, crcs in seen.items():
        if not np.array_equal(crcs, seen[first]):
            raise CacheError(
                f"{unit}: {first} and {place} saw different pixels, and one cache cannot hold both; choose another "
                "DST, or one teacher by --teacher"
            )
