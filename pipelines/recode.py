"""A cache kept in another way: another codec, another quality, fewer tokens, and no teacher runs.

    index, probes -> specs, calibrations -> every unit's rows decoded and encoded -> kept views, byte for byte

What does not depend on the codec stays what it is: tars, views, pixel checksums, bad images, and the statistics that
standardize. Run again it makes only what is missing; workers share the tars. Fidelity is measured against the source,
whose own error comes on top: the cosine to the teacher is about the product of the two.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pipelines.command.caches import opened
from pipelines.command.device import device_words, pick_device
from pipelines.command.progress import Progress, begins, say
from pipelines.command.shares import share_lines
from pipelines.extracting.recorder import BATCHES_AHEAD
from pipelines.extracting.unit_rows import UNITS_BEING_WRITTEN
from pipelines.recoding.copying import copy_foundations, copy_views
from pipelines.recoding.transcode import Transcoder, codes_stay, shown_rows, target_spec, transcoder
from unic_cache.ahead import ahead, dropped, thread_pool
from unic_cache.cache import Cache, refuse_other_folders
from unic_cache.config import RecodeConfig
from unic_cache.errors import BrokenError, CacheError, ConfigError
from unic_cache.files.local import LocalFolder
from unic_cache.files.location import Location
from unic_cache.files.schemes import open_location
from unic_cache.store.commit import CommitRecord, Unit
from unic_cache.store.guests import sort_folders
from unic_cache.store.member import Member
from unic_cache.store.reader import RowArray
from unic_cache.stream.seen import Seen

BATCH = 64  # rows that are decoded and encoded at once

Work = Mapping[Unit, Sequence[str]]  # units, and the teachers that lack each in the target


@dataclass
class Summary:
    """What a run did."""

    units: int = 0  # of teachers
    skipped: int = 0  # units that were there before
    views: int = 0  # units of kept pixels that were copied
    before: int = 0  # bytes of the teachers' units in the source
    after: int = 0  # bytes of the same in the target
    fidelity: dict[str, dict[str, float]] = field(default_factory=dict)  # teacher -> token type -> cosine to the source
    to_teacher: dict[str, dict[str, float]] = field(default_factory=dict)  # the same, times the source's own

    def lines(self, config: RecodeConfig) -> list[str]:
        """For people."""
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
    """Make in the target all of the source that it lacks. After an error all that was committed stands, and counts."""
    device = pick_device(config.device)
    source, location = opened(config.source), open_location(config.target, config.worker_index)
    check_apart(source.location, location)
    refuse_other_folders(location)
    teachers = [source.teacher(name) for name in dict.fromkeys(config.teachers or source.teachers)]
    specs = {t.name: target_spec(config, t, Member.open(location, t.member.folder)) for t in teachers}
    if isinstance(location, LocalFolder):
        location.remove_leftovers(without=sort_folders(location)[1].keys() - {t.member.folder for t in teachers})
    kept = ", ".join(f"{name} as {spec['codec']}" for name, spec in specs.items())
    begins("recode", f"{kept or 'no teacher'} on {device_words(device)}", f"{config.source} into {config.target}")
    copy_foundations(source, location)
    with (
        going_on(config),
        thread_pool(config.threads) as pool,
        ThreadPoolExecutor(1, "writer") as writing,
        dropped(pool, writing),
    ):
        coders = {t.name: transcoder(source, t, specs[t.name], location, device) for t in teachers}
        target = Cache(location)
        before = Seen(target)
        work, skipped = missing_units(config, source, coders)
        mine = sum(len(names) for names in work.values()) + skipped
        units = sum(len(source.units(coder.source.member)) for coder in coders.values())
        for line in share_lines(config.worker_index, config.num_workers, mine, units):
            say(line)
        summary = Summary(skipped=skipped)
        parts = ahead(reads(work), reading(coders, pool), BATCHES_AHEAD)
        written: deque[Future[CommitRecord]] = deque()
        with Progress("recode", sum(unit.rows * len(names) for unit, names in work.items()), "rows") as progress:
            for unit, names in work.items():
                check_same_pixels(source, target, unit, {name: committed(coders[name], unit) for name in names})
                before.check_cache((unit.segment, unit.shard), source)
                for name in names:
                    record = committed(coders[name], unit)
                    arrays, clipped = recoded(source, coders[name], record, parts, progress)
                    if len(written) >= UNITS_BEING_WRITTEN:
                        summary.after += written.popleft().result().bytes_kept
                    write = coders[name].writer.write
                    written.append(writing.submit(write, unit, arrays, record.pixels, record.bad, clipped))
                    summary.units += 1
                    summary.before += record.bytes_kept
            summary.after += sum(future.result().bytes_kept for future in written)
        if config.views and source.pixels is not None:
            summary.views, there = copy_views(config, source, target, source.pixels, pool)
            summary.skipped += there
    for name, coder in coders.items():
        summary.fidelity[name] = dict(coder.calibration.fidelity)
        summary.to_teacher[name] = to_teacher(coder)
    return summary


def check_apart(source: Location, target: Location) -> None:
    """ConfigError where the two are one, or where one lies within the other."""
    if isinstance(source, LocalFolder) and isinstance(target, LocalFolder):
        here, there = Path(source.url).resolve(), Path(target.url).resolve()
        overlap = here.is_relative_to(there) or there.is_relative_to(here)
    else:
        overlap = source.url.rstrip("/") == target.url.rstrip("/")
    if overlap:
        raise ConfigError(
            f"{source.url} and {target.url} are not apart: recoding makes a new cache and changes nothing of the old "
            "one; choose another DST"
        )


@contextmanager
def going_on(config: RecodeConfig) -> Iterator[None]:
    """What is broken stops the run; the error says that nothing is lost."""
    try:
        yield
    except BrokenError as error:
        raise BrokenError(
            f"{error}. Nothing is lost: {config.target} keeps all that was recoded before, and the same command goes "
            f"on with it when {config.source} is mended"
        ) from error


def missing_units(config: RecodeConfig, source: Cache, coders: Mapping[str, Transcoder]) -> tuple[Work, int]:
    """Of this worker's tars: what the source has committed and the target has not, by segment, view and tar; and how
    many units it has.
    """
    work: dict[Unit, list[str]] = {}
    skipped = 0
    for name, coder in coders.items():
        units = [unit for unit in source.units(coder.source.member) if config.is_mine(unit.shard)]
        places = {(unit.segment, unit.view) for unit in units}
        there = {place: coder.target.committed(*place) for place in places}
        for unit in units:
            if unit.shard in there[unit.segment, unit.view]:
                skipped += 1
            else:
                work.setdefault(unit, []).append(name)
    return dict(sorted(work.items(), key=lambda item: (item[0].segment, item[0].view, item[0].shard))), skipped


def reads(work: Work) -> Iterator[tuple[str, Unit, range]]:
    """Teacher, unit and rows of each batch, in the order of the work."""
    for unit, names in work.items():
        for name in names:
            for first in range(0, unit.rows, BATCH):
                yield name, unit, range(first, min(first + BATCH, unit.rows))


def reading(
    coders: Mapping[str, Transcoder], pool: ThreadPoolExecutor
) -> Callable[[tuple[str, Unit, range]], Callable[[], dict[str, RowArray]]]:
    """What begins to read a batch in the pool's threads."""

    def start(batch: tuple[str, Unit, range]) -> Callable[[], dict[str, RowArray]]:
        name, unit, rows = batch
        return pool.submit(coders[name].source.parts, committed(coders[name], unit), rows).result

    return start


def committed(coder: Transcoder, unit: Unit) -> CommitRecord:
    """The source's record of a unit; BrokenError where it is broken, or was removed since the run began."""
    record = coder.source.record(unit)
    if record is None:
        raise BrokenError(f"{coder.source.name}, {unit}: its commit record vanished from the source")
    return record


def recoded(
    source: Cache, coder: Transcoder, record: CommitRecord, parts: Iterator[dict[str, RowArray]], progress: Progress
) -> tuple[dict[str, RowArray], int]:
    """The target's arrays of a unit, zeros in the rows of bad images, and how many of its values were clipped."""
    unit, clipped = record.unit, 0
    arrays: dict[str, RowArray] = {a.name: np.zeros((unit.rows, *a.row), a.dtype) for a in coder.target.arrays}
    for first in range(0, unit.rows, BATCH):
        rows = range(first, min(first + BATCH, unit.rows))
        seed, shown = shown_rows(source, unit, rows)
        found = {name: values.cpu().numpy() for name, values in coder.encode(next(parts), seed, shown).items()}
        good = np.array([place for place, row in enumerate(rows) if row not in record.bad], np.int64)
        if "clipped" in found:
            clipped += int(found.pop("clipped")[good].sum())
        for name, values in found.items():
            arrays[name][first + good] = values[good]
        progress.advance(len(rows))
    return arrays, record.clipped if codes_stay(coder.source.member, coder.target) else clipped


def check_same_pixels(source: Cache, target: Cache, unit: Unit, records: Mapping[str, CommitRecord]) -> None:
    """CacheError unless all teachers to be recoded saw the pixels that the target's other members saw."""
    ours = {f"{source.location.url}, {name}": record.pixels for name, record in records.items()}
    seen = {**ours, **{f"{target.location.url}, {name}": crcs for name, crcs in target.pixels_seen(unit).items()}}
    first = next(iter(seen))
    for place, crcs in seen.items():
        if not np.array_equal(crcs, seen[first]):
            raise CacheError(
                f"{unit}: {first} and {place} saw different pixels, and one cache cannot hold both; choose another "
                "DST, or one teacher by --teacher"
            )


def to_teacher(coder: Transcoder) -> dict[str, float]:
    """About the cosine to what the teacher said: the product over all recodings, as if errors were independent."""
    found = dict(coder.calibration.fidelity)
    came = coder.target.spec["provenance"].get("recoded_from")
    while came:
        found = {kind: value * came["fidelity"].get(kind, 1.0) for kind, value in found.items()}
        came = came.get("recoded_from")
    return found
