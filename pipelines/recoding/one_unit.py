"""The units of a recoding: which ones lack, and how each one is read, encoded and committed."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from pipelines.command.progress import Progress, say
from pipelines.command.shares import share_lines
from pipelines.recoding.copying import missing_units
from pipelines.recoding.opening import Opened
from pipelines.recoding.summary import Summary
from pipelines.recoding.transcode import Transcoder
from unic_cache.cache import Cache
from unic_cache.config import RecodeConfig
from unic_cache.errors import BrokenError, CacheError
from unic_cache.store.commit import CommitRecord, Unit
from unic_cache.store.reader import RowArray
from unic_cache.store.writer import UnitArrays
from unic_cache.stream.address import addresses, shown

BATCH = 64  # rows that are decoded and encoded at once

Work = Mapping[Unit, Sequence[Transcoder]]  # each unit, and the teachers that lack it in the target


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


def checked(opened: Opened, unit: Unit, coders: Iterable[Transcoder]) -> dict[Transcoder, CommitRecord]:
    """Each teacher's record of a unit. CacheError if the target has seen other pixels."""
    records = {coder: committed(coder, unit) for coder in coders}
    check_same_pixels(opened.source, opened.target, unit, records)
    opened.before.check_cache((unit.segment, unit.shard), opened.source)
    return records


def read(coder: Transcoder, unit: Unit, rows: range) -> dict[str, RowArray]:
    """The source's stored rows; runs in the pool."""
    return coder.source.parts(committed(coder, unit), rows)


def recoded(
    source: Cache,
    coder: Transcoder,
    record: CommitRecord,
    parts: Iterator[dict[str, RowArray]],
    progress: Progress | None = None,
) -> UnitArrays:
    """The target's arrays of a unit, from the next batches of the source's."""
    unit, arrays = record.unit, UnitArrays(coder.writer, record.unit)
    for rows in batches_of(unit):
        encoded = coder.encode(next(parts), unit.views.seed, shown(source, addresses(unit, rows)))
        arrays.put(rows.start, len(rows), encoded, [row - rows.start for row in record.bad if row in rows])
        if progress is not None:
            progress.advance(len(rows))
    if coder.grids_stay:  # and with them their clipped values, nearly all that there are
        arrays.clipped += record.clipped
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
