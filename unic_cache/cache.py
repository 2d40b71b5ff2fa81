"""The public reader: a cache as its teachers, views and shards, and any row of it as standardized features.

    cache = unic_cache.open_cache("cache")
    teacher = cache.teachers["dino"]
    unit = cache.unit(0, 3, "unic-224-0-000")          # tar 3 of segment 0 under view 0
    record = teacher.record(unit)                      # what is committed, or None
    features = teacher.features(record, [0, 1, 2])     # {"cls": (3, D), "patch": (3, T, Dp)}, standardized float32

Everything that is read is checked against the record that vouches for it.
"""

from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unic_cache.buffers import Bytes
from unic_cache.config import Views
from unic_cache.errors import BrokenError, CacheError, ConfigError
from unic_cache.files.local import LocalFolder
from unic_cache.files.location import Location
from unic_cache.files.schemes import open_location
from unic_cache.store.calibrate import Calibration
from unic_cache.store.codecs.codec import FeatureCodec
from unic_cache.store.codecs.pixel_codec import from_differences
from unic_cache.store.commit import CommitRecord, Crcs, Unit
from unic_cache.store.guests import sort_folders
from unic_cache.store.layout import VIEWS_MEMBER, Extent
from unic_cache.store.member import Member
from unic_cache.store.open_objects import OpenObjects
from unic_cache.store.ranges import picks
from unic_cache.store.reader import RowArray, RowReader
from unic_cache.tokens import Kinds
from unic_cache.views.index import Segment, ShardEntry, no_cache, no_teacher, read_segments

RECORDS_KEPT = 1024
OTHERS = {"checkpoint.safetensors", "encoder.safetensors", "index.json"}  # of a run's folder, of one of tars
READS_AT_ONCE = 8  # that keep a disk or a server busy


class CachedTeacher:
    """One teacher's kept features."""

    def __init__(
        self, member: Member, calibration: Calibration, calibration_crc: int, objects: OpenObjects | None = None
    ) -> None:
        if member.codec is None:
            raise CacheError(f"{member.location.url}/{member.folder} holds pixels, not features")
        self.member = member
        self.name = str(member.spec["teacher"]["name"])
        self.codec: FeatureCodec = member.codec
        self.calibration = calibration
        self._calibration_crc = calibration_crc
        self.rows = RowReader(member, objects)
        self._record = lru_cache(RECORDS_KEPT)(member.record)

    @property
    def spec(self) -> Mapping[str, Any]:
        """What spec.json says of the teacher: weights, rules, codec, licence, versions."""
        return self.member.spec

    @property
    def kinds(self) -> Kinds:
        """The kinds of tokens that are kept, summary tokens first."""
        return self.codec.features.kinds

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the patch tokens; (1, 1) where there are none."""
        height, width = self.spec["features"]["grid"] or (1, 1)
        return int(height), int(width)

    def record(self, unit: Unit) -> CommitRecord | None:
        """The unit's commit record, or None; remembered. BrokenError if unreadable or made with another calibration."""
        record = self._record(unit)
        if record is not None and record.calibration != self._calibration_crc:
            raise BrokenError(
                f"{record.name} was made with a calibration of checksum {record.calibration}, but "
                f"{self.member.calibration_name} has {self._calibration_crc}: two caches were mixed; keep them apart"
            )
        return record

    def parts(self, record: CommitRecord, rows: Sequence[int], broken: set[int] | None = None) -> dict[str, RowArray]:
        """The kept arrays' rows as they are stored, array name -> (len(rows), ...), checked.

        BrokenError on rows that are not what was committed; where a set is given they are added to it, and are zeros.
        """
        return self.rows.read(record, rows, broken)

    def features(self, record: CommitRecord, rows: Sequence[int]) -> dict[str, Tensor]:
        """Standardized float32 {"cls": (n, D), "patch": (n, T, Dp)} of the rows asked, in the order asked."""
        parts = self.parts(record, rows)
        return self.codec.decode({name: torch.from_numpy(array) for name, array in parts.items()})

    def cls(self, record: CommitRecord, rows: Sequence[int]) -> Tensor:
        """Standardized float32 CLS tokens (n, D), without reading patches. CacheError where there are none."""
        if self.codec.cls_dim is None:
            raise CacheError(f"{self.name} has no CLS tokens")
        return torch.from_numpy(self.rows.read(record, rows, names=("cls",))["cls"]).float()


class Cache:
    """A cache as it stood when it was opened. Its files never change; names may be added meanwhile."""

    def __init__(self, location: Location) -> None:
        self.location = location
        self._objects = OpenObjects(location)
        self._waiting: ThreadPoolExecutor | None = None
        self.segments: tuple[Segment, ...] = read_segments(location)
        self._places = {
            entry.name: (segment.number, shard)
            for segment in self.segments
            for shard, entry in enumerate(segment.shards)
        }
        self.teachers: dict[str, CachedTeacher] = {}
        self.uncalibrated: dict[str, Member] = {}  # of no use to a reader: half made, or their calibration is lost
        self.lost: list[str] = []  # folders whose records are there, and whose spec is not
        own, self.guests = sort_folders(location)
        for folder in own:
            if folder == VIEWS_MEMBER:
                continue
            member = Member.open(location, folder)
            if member is None:
                self.lost.append(folder)
                continue
            calibration = member.calibration()
            if calibration is None:
                self.uncalibrated[str(member.spec["teacher"]["name"])] = member
            else:
                teacher = CachedTeacher(member, *calibration, self._objects)
                self.teachers[teacher.name] = teacher
        self.pixels = Member.open(location, VIEWS_MEMBER) if VIEWS_MEMBER in own else None
        self._pixel_record = None if self.pixels is None else lru_cache(RECORDS_KEPT)(self.pixels.record)
        self.pixel_rows = None if self.pixels is None else RowReader(self.pixels, self._objects, _undo(self.pixels))

    def readers(self, pool: Executor) -> Executor:
        """Threads to read in: those of `pool`, or more of them where they mostly wait."""
        if not self.location.waits:
            return pool
        if self._waiting is None:
            self._waiting = ThreadPoolExecutor(READS_AT_ONCE, "unic-cache-read")
        return self._waiting

    def close(self) -> None:
        """Close the files that were read last, as whoever takes the disk away must; a later read opens them again."""
        self._objects.close()

    def teacher(self, name: str) -> CachedTeacher:
        """The teacher of that name; CacheError listing the others where there is none."""
        if name not in self.teachers:
            raise no_teacher(self.location.url, name, self.teachers)
        return self.teachers[name]

    def unit(self, segment: int, shard: int, view: str) -> Unit:
        """Tar number `shard` of a segment under a view, such as 'unic-224-0-003'."""
        entry = self.entry(segment, shard)
        return Unit(segment, self.extent(segment), shard, entry.name, entry.rows, view)

    def entry(self, segment: int, shard: int) -> ShardEntry:
        """What the index says of a tar."""
        return self.segments[segment].shards[shard]

    def place(self, name: str, keys: "array[int]") -> tuple[int, int]:
        """(segment, number) of the tar of that name. CacheError unless the cache was made with these very samples."""
        places = self.shards()
        if name not in places:
            raise CacheError(
                f"{self.location.url} was not made with shard {name}; extract it first, or leave it out of the pattern"
            )
        entry = self.entry(*places[name])
        if entry.keys != keys:
            row = next(
                (i for i, (a, b) in enumerate(zip(entry.keys, keys, strict=False)) if a != b),
                min(entry.rows, len(keys)),
            )
            raise CacheError(
                f"{self.location.url} was made with other shards: {name} has {len(keys)} samples here and {entry.rows} "
                f"there, and they differ from row {row} on; give the shards that it was made with"
            )
        return places[name]

    def extent(self, segment: int) -> Extent:
        """The leading axes of a segment's arrays."""
        return Extent(len(self.segments[segment].shards), self.segments[segment].rows)

    def shards(self) -> dict[str, tuple[int, int]]:
        """Every tar's name -> (segment, number in the segment), in order."""
        return self._places

    def committed(self, member: Member) -> Iterator[tuple[str, int, set[int]]]:
        """(view, segment, tars with a record) of a member, for every view that it has."""
        for segment in self.segments:
            for view in self.location.folders(f"{member.folder}/commits/{segment.number:06d}"):
                yield view, segment.number, member.committed(segment.number, view)

    def units(self, member: Member) -> list[Unit]:
        """All that a member has committed, by segment, view and tar."""
        return [self.unit(segment, tar, view) for view, segment, tars in self.committed(member) for tar in sorted(tars)]

    def pixels_seen(self, unit: Unit) -> dict[str, Crcs]:
        """The pixels' checksums in every member's record of a unit, by folder: all must have seen the same."""
        members = [teacher.member for teacher in self.teachers.values()] + ([self.pixels] if self.pixels else [])
        records = {member.folder: member.record(unit) for member in members}
        return {folder: record.pixels for folder, record in records.items() if record is not None}

    def view_numbers(self, member: Member, views: Views) -> list[int]:
        """The numbers of the views that a member has at least one committed tar of."""
        parsed = [Views.parse(view) for view, _, tars in self.committed(member) if tars]
        return sorted({number for found, number in parsed if found == views})

    def pixel_record(self, unit: Unit) -> CommitRecord | None:
        """The record of a unit's kept pixels, or None; remembered."""
        return None if self._pixel_record is None else self._pixel_record(unit)

    def read_pixels(self, record: CommitRecord, rows: Sequence[int], out: RowArray) -> None:
        """Kept views, uint8 (len(rows), H, W, 3), into `out`, checked as in `CachedTeacher.parts`."""
        if self.pixels is None or self.pixel_rows is None:
            raise CacheError(f"{self.location.url} keeps no pixels; extract with --keep-views")
        (rgb,) = self.pixels.arrays
        for error in self.pixel_rows.fill(record, picks(rows), {rgb.name: out}).values():
            raise error


def _undo(pixels: Member) -> Callable[[Bytes], None] | None:
    """What makes views of a chunk of kept pixels."""
    size = pixels.spec["size"]
    if not pixels.arrays[0].tile:
        return None
    return lambda chunk: from_differences(torch.from_numpy(chunk).view(-1, size, size, 3))


def open_cache(path: str | Path) -> Cache:
    """Open a cache for reading. CacheError where there is none, or none that this release reads."""
    cache = Cache(open_location(path))
    if not cache.segments:
        raise no_cache(path)
    return cache


def refuse_other_folders(location: Location) -> None:
    """ConfigError where a new cache would be made among tars, or in a run's folder: its own is the way to find it."""
    if not isinstance(location, LocalFolder) or read_segments(location):
        return
    names = [path.name for path in location.path.iterdir()] if location.path.is_dir() else []
    others = [name for name in sorted(names) if name in OTHERS or name.endswith(".tar")]
    if others:
        raise ConfigError(f"{location.url} holds {others[0]} and no cache; choose a folder of its own with --cache")
