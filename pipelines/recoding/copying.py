"""What one cache copies from another unchanged: the index, the probes, and the kept pixels."""

from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from functools import cache as memoize

import numpy as np

from pipelines.command.progress import Progress
from unic_cache.ahead import ahead
from unic_cache.cache import Cache
from unic_cache.config import RecodeConfig
from unic_cache.errors import BrokenError, CacheError
from unic_cache.files.location import Location
from unic_cache.store.commit import CommitRecord, Unit
from unic_cache.store.layout import HELD_OUT, VIEWS_MEMBER, check_metadata, metadata_objects
from unic_cache.store.member import Member
from unic_cache.store.npz import load_npz
from unic_cache.store.unit_check import data_names
from unic_cache.store.writer import chunk_crcs, decode_objects, row_crcs
from unic_cache.stream.decoder_probe import is_probe
from unic_cache.stream.held_out import HELD_OUT_FILE
from unic_cache.views.index import segment_file
from unic_cache.views.index_seal import SealedSegment, seal_file
from unic_cache.views.segments import read_segments

UNITS_AHEAD = 2  # in memory


def copy_foundations(source: Cache, target: Location) -> None:
    """Copy the index's segments, the probes and the held-out marks.

    CacheError, with nothing written, if a probe is broken.
    """
    names = [name for name in source.location.names("probe") if is_probe(name)]
    names += [name for name in source.location.names(HELD_OUT) if HELD_OUT_FILE.fullmatch(name)]
    files = {name: data for name in names if (data := source.location.read(name)) is not None}
    for name in filter(is_probe, files):
        load_npz(files[name], f"{source.location.url}/{name}")
    for segment in source.segments:
        if not copied(source.location, target, segment_file(segment.number)):
            check_same_tars(source, target)  # another release's text, or another command's since
        elif isinstance(segment, SealedSegment):
            copied(source.location, target, seal_file(segment.number))
    for name, data in files.items():
        target.create(name, data)


def copied(source: Location, target: Location, name: str) -> bool:
    """Copy a file; whether the target has the same one now."""
    data = source.read(name)
    return data is not None and target.create(name, data)


def check_same_tars(source: Cache, target: Location) -> None:
    """CacheError if the target's index lists other tars than the source's."""
    for ours, theirs in zip(source.segments, read_segments(target), strict=False):
        if [(tar.name, tar.keys) for tar in ours.shards] != [(tar.name, tar.keys) for tar in theirs.shards]:
            raise CacheError(
                f"{target.url} was made with other tars than {source.location.url}: segment {ours.number} differs; "
                "choose another DST"
            )


def missing_units(config: RecodeConfig, source: Cache, ours: Member, theirs: Member) -> tuple[list[Unit], int]:
    """This worker's units of a member that the target's lacks, and the number of those that it has."""
    units = [unit for unit in source.units(ours) if config.is_mine(unit.shard)]

    @memoize
    def there(segment: int, view: str) -> Collection[int]:
        return theirs.committed(segment, view, source.segments[segment].counts)

    missing = [unit for unit in units if unit.shard not in there(unit.segment, unit.view)]
    return missing, len(units) - len(missing)


def views_to_copy(config: RecodeConfig, source: Cache, target: Cache) -> tuple[list[Unit], int]:
    """This worker's kept pixels that the target lacks, and the number of those that it has; none if not asked for."""
    if not config.views or source.pixels is None:
        return [], 0
    theirs = Member.ensure(target.location, VIEWS_MEMBER, source.pixels.spec)
    return missing_units(config, source, source.pixels, theirs)


def copy_views(
    config: RecodeConfig, source: Cache, target: Cache, ours: Member, pool: ThreadPoolExecutor
) -> tuple[int, int]:
    """Copy this worker's kept pixels that the target lacks; the number of units copied, and of those there before."""
    theirs = Member.ensure(target.location, VIEWS_MEMBER, ours.spec)
    missing, there = views_to_copy(config, source, target)
    with Progress("copy views", sum(unit.rows for unit in missing), "rows") as progress:
        for unit in ahead(missing, lambda one: pool.submit(copy_unit, ours, theirs, target, one).result, UNITS_AHEAD):
            progress.advance(unit.rows)
    return len(missing), there


def copy_unit(ours: Member, theirs: Member, target: Cache, unit: Unit) -> Unit:
    """Copy Zarr's metadata, the objects, then the record, byte for byte; return the unit.

    BrokenError if the pixels are not as committed; CacheError if the target's teachers saw others, or other objects are
    in the way.
    """
    vouching = ours.record_bytes(unit)
    if vouching is None:
        raise BrokenError(f"{ours.folder}, {unit}: its commit record vanished from the source")
    record = ours.parse(vouching, unit)
    for teacher in target.teachers.values():
        seen = teacher.record(unit)
        if seen is not None and not np.array_equal(seen.pixels, record.pixels):
            raise CacheError(
                f"{unit}: {teacher.name} saw other pixels than the kept ones; leave those out with --no-views"
            )
    objects = whole_objects(ours, record)
    for name, expected in metadata_objects(ours.folder, unit.segment, unit.view, ours.arrays, unit.extent).items():
        data = ours.location.read(name) or b""
        check_metadata(f"{ours.location.url}/{name}", data, expected)
        if not theirs.location.create(name, data):
            check_metadata(f"{theirs.location.url}/{name}", theirs.location.read(name) or b"", expected)
    for name, data in objects.items():
        if not theirs.location.create(name, data):
            raise CacheError(
                f"{theirs.location.url}/{name}: other pixels stand in the way, without a commit record; run "
                "`unic-cache repair` to remove them"
            )
    theirs.location.create(record.name, vouching)
    return unit


def whole_objects(member: Member, record: CommitRecord) -> dict[str, bytes]:
    """A unit's objects, checked against its record. BrokenError if they are not as committed."""
    (array,) = member.arrays
    objects = {name: member.location.read(name) for name in data_names(member, record.unit)}
    whole = {name: data for name, data in objects.items() if data is not None and len(data) == record.sizes[name]}
    rows = decode_objects(member, record.unit, array, whole) if len(whole) == len(objects) else None
    if rows is not None:
        crcs = chunk_crcs(whole.values(), record.unit.extent) if array.tile else row_crcs(rows)
        if np.array_equal(crcs, record.crcs[array.name]):
            return whole
    raise BrokenError(
        f"{member.location.url}: {member.folder}, {record.unit}: its pixels are not as committed; run "
        "`unic-cache verify` to see which"
    )
