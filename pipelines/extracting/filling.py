"""The units of an extraction: which ones lack, and how each is filled, batch by batch, and committed."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache as memoize

import torch

from pipelines.command.progress import say
from pipelines.command.shares import share_lines
from pipelines.extracting.calibrating import calibrations_before
from pipelines.extracting.opening import Opened
from pipelines.extracting.recorder import Recorder, recorder
from pipelines.extracting.specs import kept_spec
from pipelines.extracting.unit_rows import UnitRows
from unic_cache.cache import Cache
from unic_cache.config import ExtractConfig
from unic_cache.errors import CacheError, ImageError
from unic_cache.files.schemes import open_location
from unic_cache.store.commit import Unit
from unic_cache.store.layout import VIEWS_MEMBER
from unic_cache.store.member import Member
from unic_cache.stream.address import Address, addresses, shown
from unic_cache.stream.pixels import ViewBatch
from unic_cache.stream.row_samples import rows_to_compare

MORE_LOSS, SLACK = 2.0, 0.005  # a cosine's distance from 1 that few images of the same kind do not reach

Work = Mapping[Unit, Sequence[Recorder]]  # each unit, and the members that lack it


@dataclass
class Summary:
    """What a run did."""

    units: int = 0  # (tar, view) pairs written for at least one member
    skipped: int = 0  # pairs that were complete before
    images: int = 0  # views shown to teachers
    bytes: int = 0  # stored
    bad: dict[str, str] = field(default_factory=dict)  # "SHARD row ROW" -> reason
    cosines: dict[tuple[str, str], tuple[float, int]] = field(default_factory=dict)  # (member, kind) -> (sum, images)

    def add(self, other: "Summary") -> None:
        """Count what another worker did."""
        self.units += other.units
        self.skipped += other.skipped
        self.images += other.images
        self.bytes += other.bytes
        self.bad |= other.bad
        for place, (total, images) in other.cosines.items():
            self.compared(place, total, images)

    def compared(self, place: tuple[str, str], total: float, images: int) -> None:
        """Count the cosines of a member's stored tokens of one kind to exact ones."""
        before = self.cosines.get(place, (0.0, 0))
        self.cosines[place] = before[0] + total, before[1] + images


def open_recorders(config: ExtractConfig, opened: Opened) -> dict[str, Recorder]:
    """Member name -> what fills it: each teacher, and the kept views with --keep-views.

    CacheError if a member has units made with another calibration than the one in the cache.
    """
    found = {name: recorder(opened.members[name], teacher) for name, teacher in opened.teachers.items()}
    for one in found.values():
        for unit, before in calibrations_before(opened.cache, one.member):
            if before != one.writer.calibration_crc:
                raise CacheError(
                    f"{opened.cache.location.url}/{one.member.calibration_name} has checksum "
                    f"{one.writer.calibration_crc}, but {unit} was made with one of checksum {before}: the file was "
                    "replaced; put the right one back"
                )
    if config.keep_views:
        location = opened.cache.location
        spec = kept_spec(location, config.kind.size, config.pixel_codec)
        member = Member.ensure(location, VIEWS_MEMBER, spec)
        found[VIEWS_MEMBER] = recorder(member, None)
    return found


def plan(config: ExtractConfig, opened: Opened, recorders: Mapping[str, Recorder]) -> tuple[Work, int]:
    """This worker's units that a member lacks, tar by tar, and the number of its units that no member lacks."""
    tars = sorted(opened.tars) or sorted(opened.cache.shards().values())
    total = len(tars) * config.count
    places = [divmod(unit, config.count) for unit in range(config.worker_index, total, config.num_workers)]
    mine = [opened.cache.unit(*tars[tar], config.kind, number) for tar, number in places]
    for line in share_lines(config.worker_index, config.num_workers, len(mine), total):
        say(line)
    segments = opened.cache.segments

    @memoize
    def committed(member: Member, segment: int, view: str) -> Collection[int]:
        return member.committed(segment, view, segments[segment].counts)

    lacking = {
        unit: [one for one in recorders.values() if unit.shard not in committed(one.member, unit.segment, unit.view)]
        for unit in mine
    }
    work = {unit: members for unit, members in lacking.items() if members}
    return work, len(mine) - len(work)


def check_idle(opened: Opened, work: Work) -> None:
    """CacheError if a tar without work has the name of one of the cache's, but other pictures.

    Makes one row of such a tar, or a few if it is laid out differently from the cache's: two sets that number their
    files alike are two sets.
    """
    busy = {(unit.segment, unit.shard) for unit in work}
    for place, (_, entry) in opened.tars.items():
        if place not in busy:
            rows = rows_to_compare(entry, opened.cache.entry(*place))
            opened.pixels.decoded.start([Address(*place, row, 0) for row in rows], len(rows))()


def tell_fidelity(cache: str, summary: Summary) -> None:
    """Say so where a codec keeps less of these images than of those that it was fitted to."""
    made = Cache(open_location(cache)).teachers.values() if summary.cosines else ()
    for teacher in made:
        fitted = teacher.calibration.fidelity
        for kind, least in fitted.items():
            total, images = summary.cosines.get((teacher.member.folder, kind), (0.0, 0))
            if images and 1 - total / images > MORE_LOSS * (1 - least) + SLACK:
                say(
                    f"{teacher.name}: stored {kind} tokens of these images have a mean cosine of {total / images:.3f} "
                    f"to exact ones, not the {least:.3f} of those that mean, std and codec were fitted to, "
                    f"{teacher.spec['calibration_images']:,} views of the cache's first tars. To fit them to these "
                    "images too, extract all into another --cache"
                )


def batches_of(units: Iterable[Unit], size: int) -> Iterator[list[Address]]:
    """Rows [kB, (k + 1)B) of each unit, unit after unit; B is `size`."""
    for unit in units:
        for first in range(0, unit.rows, size):
            yield addresses(unit, range(first, min(first + size, unit.rows)))


def fill(
    config: ExtractConfig,
    opened: Opened,
    rows: UnitRows,
    wanted: Sequence[Address],
    batch: ViewBatch,
    device: torch.device,
    summary: Summary,
) -> None:
    """Show a unit's next batch to its teachers. ImageError on a bad image if the config is strict."""
    summary.bad |= bad_images(config, opened, rows.unit, wanted, batch)
    rows.add(batch, shown(opened.cache, wanted), device)


def bad_images(
    config: ExtractConfig, opened: Opened, unit: Unit, wanted: Sequence[Address], batch: ViewBatch
) -> dict[str, str]:
    """The batch's bad images, for the summary. ImageError on the first one if the config is strict."""
    found = {}
    for place, reason in batch.bad.items():
        row = wanted[place].row
        why = found[f"{unit.name} row {row}"] = f"{name_of(opened, wanted[place])}: {reason}"
        if config.strict:
            raise ImageError(f"{unit}, row {row}: {why}. Without --strict it is skipped and counted")
    return found


def name_of(opened: Opened, item: Address) -> str:
    """The image's name in its tar; its key's checksum if the tar was not given."""
    if (item.segment, item.shard) not in opened.tars:
        return f"key {opened.cache.entry(item.segment, item.shard).keys[item.row]:08x}"
    return opened.pixels.decoded.name(item)


def commit(rows: UnitRows, summary: Summary, seal: Callable[[], None] = lambda: None) -> None:
    """Write and commit a unit, then `seal` its thousand if it was the last of them; runs in the writer's thread."""
    summary.bytes += rows.commit()
    for member, cosines in rows.cosines.items():
        for kind, cosines_B in cosines.items():
            summary.compared((member, kind), float(cosines_B.sum()), len(cosines_B))
    seal()
