"""The public reader: a cache's teachers, views and shards, and any row as standardized features.

    cache = unic_cache.open_cache("cache")
    teacher = cache.teachers["dino"]
    unit = cache.unit(0, 3, "unic-224-0-000")          # tar 3 of segment 0 under view 0
    record = teacher.record(unit)                      # the commit record, or None
    features = teacher.features(record, [0, 1, 2])     # {"cls": (3, D), "patch": (3, T, Dp)}, standardized float32
    places = cache.positions(teacher, unit, [0, 1, 2]) # (3, T) where those lie in the grid; None for all of it

    one = cache.features("dino", key="n01440764_10026", view=3)  # {"cls": (D,), "patch": (T, Dp)} of one image

All data is checked against the commit record that vouches for it.
"""

import copy
from array import array
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from unic_cache.config import CENTER, STANDARDIZATIONS, Views
from unic_cache.config.bounds import check_choice
from unic_cache.errors import BrokenError, CacheError
from unic_cache.files.location import Location
from unic_cache.files.schemes import open_location
from unic_cache.sample_keys import SampleKeys
from unic_cache.store.calibrate import Calibration
from unic_cache.store.codecs.codec import FeatureCodec
from unic_cache.store.commit import CommitRecord, Crcs, Unit, view_called
from unic_cache.store.foreign_folders import sort_folders
from unic_cache.store.layout import VIEWS_MEMBER, Extent
from unic_cache.store.member import Member
from unic_cache.store.open_objects import OpenObjects
from unic_cache.store.ranges import picks
from unic_cache.store.reader import RowArray, RowReader
from unic_cache.store.sampling import Positions
from unic_cache.store.standardize import Scales
from unic_cache.token_kinds import Kinds
from unic_cache.views.index import Segment, ShardEntry
from unic_cache.views.segments import no_cache, no_teacher, read_segments

RECORDS_KEPT = 1024
READS_AT_ONCE = 8  # enough to keep a disk or a server busy


class CachedTeacher:
    """One teacher's stored features."""

    def __init__(
        self, member: Member, calibration: Calibration, calibration_crc: int, objects: OpenObjects | None = None
    ) -> None:
        if member.codec is None:
            raise CacheError(f"{member.location.url}/{member.folder} holds pixels, not features")
        self.member = member
        self.name = str(member.spec["teacher"]["name"])
        self.spec: Mapping[str, Any] = member.spec  # weights, rules, codec, licence, versions
        self.codec: FeatureCodec = member.codec
        self.kinds: Kinds = member.codec.features.kinds  # name -> channels and grid, summary tokens first
        self.arrays = member.arrays  # what holds these kinds
        self.calibration = calibration
        self.scaled = Scales(calibration)
        self.calibration_crc = calibration_crc
        self.rows = RowReader(member, objects)
        self._record = lru_cache(RECORDS_KEPT)(member.record)

    def only(self, kinds: Collection[str]) -> Self:
        """This teacher as one with only these of its token kinds, so that no other kind is read."""
        narrowed = copy.copy(self)
        narrowed.kinds = {name: kind for name, kind in self.kinds.items() if name in kinds}
        names = self.codec.names(narrowed.kinds)
        narrowed.arrays = tuple(array for array in self.arrays if array.name in names)
        return narrowed

    def record(self, unit: Unit) -> CommitRecord | None:
        """The unit's commit record, or None; cached. BrokenError if unreadable or made with another calibration."""
        record = self._record(unit)
        if record is not None:
            self.member.seals.check(record)
        if record is not None and record.calibration != self.calibration_crc:
            raise BrokenError(
                f"{record.name} was made with a calibration of checksum {record.calibration}, but "
                f"{self.member.calibration_name} has {self.calibration_crc}: two caches were mixed; keep them apart"
            )
        return record

    def parts(self, record: CommitRecord, rows: Sequence[int], broken: set[int] | None = None) -> dict[str, RowArray]:
        """Encoded rows, array name -> (len(rows), ...), checked.

        BrokenError for rows that differ from what was committed; with a set `broken`, adds them to it and gives zeros.
        """
        return self.rows.read(record, rows, broken, [array.name for array in self.arrays])

    def features(
        self, record: CommitRecord, rows: Sequence[int], kinds: Collection[str] | None = None
    ) -> dict[str, Tensor]:
        """Standardized float32 tokens of the rows, in the order given: {"cls": (n, D), "patch": (n, T, Dp)}.

        `kinds` reads only those; None reads all. CacheError for a kind that the teacher lacks.
        """
        if lacking := set(kinds or ()) - self.kinds.keys():
            raise CacheError(f"{self.name} has no {' or '.join(sorted(lacking))} tokens, only {', '.join(self.kinds)}")
        names = self.codec.names(self.kinds if kinds is None else kinds)
        arrays = self.rows.read(record, rows, names=names)
        return self.codec.decode({name: torch.from_numpy(array) for name, array in arrays.items()})


class Cache:
    """A cache as of the moment it is opened. Files never change; others may be added later."""

    def __init__(self, location: Location) -> None:
        self.location = location
        self._objects = OpenObjects(location)
        self._waiting: ThreadPoolExecutor | None = None
        self.segments: tuple[Segment, ...] = read_segments(location)
        self._places = {
            name: (segment.number, shard) for segment in self.segments for shard, name in enumerate(segment.names)
        }
        self.teachers: dict[str, CachedTeacher] = {}
        self.uncalibrated: dict[str, Member] = {}  # cannot be read: half made, or the calibration is lost
        self.lost: list[str] = []  # folders with commit records but no spec
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
        self.pixel_rows = None
        if self.pixels is not None and self.pixels.pixel_codec is not None:
            decode, size = self.pixels.pixel_codec.decode, self.pixels.spec["size"]
            self.pixel_rows = RowReader(self.pixels, self._objects, lambda rows: decode(rows, size))

    def readers(self, pool: Executor) -> Executor:
        """Threads to read in: `pool`, or more threads if reads of this store mostly wait."""
        if not self.location.waits:
            return pool
        if self._waiting is None:
            self._waiting = ThreadPoolExecutor(READS_AT_ONCE, "unic-cache-read")
        return self._waiting

    def close(self) -> None:
        """Close the files read last, for example before unmounting the disk; a later read opens them again."""
        self._objects.close()

    def teacher(self, name: str) -> CachedTeacher:
        """The teacher of that name. CacheError listing all teachers if it is absent."""
        if name not in self.teachers:
            raise no_teacher(self.location.url, name, self.teachers)
        return self.teachers[name]

    def unit(self, segment: int, shard: int, view: str | Views, number: int = 0) -> Unit:
        """Tar `shard` of a segment under a view: its name, such as 'unic-224-0-003', or its kind and number."""
        views, number = Views.parse(view) if isinstance(view, str) else (view, number)
        index = self.segments[segment]
        rows = int(index.counts[shard])
        return Unit(segment, self.extent(segment), shard, index.names[shard], rows, views, number)

    def entry(self, segment: int, shard: int) -> ShardEntry:
        """The index entry of a tar."""
        return self.segments[segment].shards[shard]

    def positions(self, teacher: CachedTeacher, unit: Unit, rows: Sequence[int]) -> Positions | None:
        """(n, T) positions row * width + column in the grid of the rows' stored tokens, ascending; None if all are."""
        keys = self.entry(unit.segment, unit.shard).keys
        return teacher.codec.features.positions(unit.views.seed, [(keys[row], unit.number) for row in rows])

    @cached_property
    def keys(self) -> SampleKeys:
        """All samples by key."""
        return SampleKeys(self.segments, self.location.url)

    def features(
        self,
        teacher: str,
        key: str | int,
        view: int | str | None = None,
        *,
        shard: str | None = None,
        kinds: Collection[str] | None = None,
        standardize: str = STANDARDIZATIONS[0],
    ) -> dict[str, Tensor]:
        """One image's tokens, float32: {"cls": (D,), "patch": (T, Dp)}; "positions" (T,) in the grid if T are a sample.

        `key` is the sample's key or its crc32, and `shard` its tar, for keys that several tars have. `view` is a name,
        or a number if the teacher has one kind of views besides `center`; None is the first. `standardize="none"` gives
        the teacher's own scale. A chunk of 32 images is read; for many images `FeatureDataset` is faster.

        CacheError if the cache lacks it or several samples fit, or if the image was bad; BrokenError if it is damaged.
        """
        check_choice("standardize", standardize, STANDARDIZATIONS)
        found = self.teacher(teacher)
        segment, tar, row = self.keys.place(key, shard)
        unit = self.unit(segment, tar, view if isinstance(view, str) else self._view_name(found, view))
        record = found.record(unit)
        if record is None:
            raise CacheError(f"{self.location.url}: {teacher} has no {unit}; extract it first")
        if row in record.bad:
            raise CacheError(f"{self.location.url}: {unit}, row {row}, has no features: {record.bad[row]}")
        tokens = found.scaled(found.features(record, [row], kinds), standardize)
        places = self.positions(found, unit, [row]) if any(found.kinds[kind].grid for kind in tokens) else None
        given = tokens if places is None else {**tokens, "positions": torch.from_numpy(places)}
        return {name: values[0] for name, values in given.items()}

    def _view_name(self, teacher: CachedTeacher, number: int | None) -> str:
        """The view of that number, or the first. CacheError unless the teacher has it, and one kind to train on."""
        kinds = {views for views, *_, tars in self.committed(teacher.member) if tars and views.recipe != CENTER}
        names = sorted(views.name(n) for views in kinds for n in self.view_numbers(teacher.member, views))
        own = [name for name in names if number is None or Views.parse(name)[1] == number]
        if len(kinds) != 1 or not own:
            listed = ", ".join(names) or "none besides center views"
            raise CacheError(f"{self.location.url}: {teacher.name} has views {listed}; give one of them by its name")
        return own[0]

    def place(self, name: str, keys: "array[int]") -> tuple[int, int]:
        """(segment, number) of the tar of that name. CacheError unless the cache was made from these very samples."""
        if name not in self._places:
            raise CacheError(
                f"{self.location.url} was not made with shard {name}; extract it first, or exclude it from the pattern"
            )
        segment, shard = self._places[name]
        if not self.segments[segment].has(shard, keys):
            entry = self.entry(segment, shard)
            row = next(
                (i for i, (a, b) in enumerate(zip(entry.keys, keys, strict=False)) if a != b),
                min(entry.rows, len(keys)),
            )
            raise CacheError(
                f"{self.location.url} was made with other shards: {name} has {len(keys)} samples here and {entry.rows} "
                f"there, differing from row {row} on; use the shards that it was made with"
            )
        return segment, shard

    def extent(self, segment: int) -> Extent:
        """The leading axes of a segment's arrays."""
        return Extent(len(self.segments[segment].shards), self.segments[segment].rows)

    def shards(self) -> dict[str, tuple[int, int]]:
        """Name of each tar -> (segment, number in the segment), in order."""
        return self._places

    def committed(self, member: Member) -> Iterator[tuple[Views, int, int, Collection[int]]]:
        """(kind and number of a view, segment, tars with a record), for every view that a member has."""
        for segment in self.segments:
            for folder in self.location.folders(f"{member.folder}/commits/{segment.number:06d}"):
                view = view_called(folder)
                if view is not None:
                    yield *view, segment.number, member.committed(segment.number, folder, segment.counts)

    def units(self, member: Member) -> list[Unit]:
        """All units that a member has committed, by segment, view and tar."""
        return [
            self.unit(segment, tar, views, number)
            for views, number, segment, tars in self.committed(member)
            for tar in sorted(tars)
        ]

    def pixels_seen(self, unit: Unit) -> dict[str, Crcs]:
        """Pixel checksums in each member's record of a unit, by folder; all members must have seen the same."""
        members = [teacher.member for teacher in self.teachers.values()] + ([self.pixels] if self.pixels else [])
        records = {member.folder: member.record(unit) for member in members}
        return {folder: record.pixels for folder, record in records.items() if record is not None}

    def view_numbers(self, member: Member, views: Views) -> list[int]:
        """The numbers of the views that a member has at least one committed tar of."""
        return sorted({number for found, number, _, tars in self.committed(member) if tars and found == views})

    def pixel_record(self, unit: Unit) -> CommitRecord | None:
        """The commit record of a unit's stored views, or None; cached."""
        return None if self._pixel_record is None else self._pixel_record(unit)

    def read_pixels(self, record: CommitRecord, rows: Sequence[int], out: RowArray) -> None:
        """Read stored views, uint8 (len(rows), H, W, 3), into `out`. BrokenError as in `CachedTeacher.parts`."""
        if self.pixels is None or self.pixel_rows is None:
            raise CacheError(f"{self.location.url} stores no views; extract with --keep-views")
        (rgb,) = self.pixels.arrays
        for error in self.pixel_rows.fill(record, picks(rows), {rgb.name: out}).values():
            raise error


def open_cache(path: str | Path) -> Cache:
    """Open a cache for reading. CacheError if `path` holds none, or none that this release reads."""
    cache = Cache(open_location(path))
    if not cache.segments:
        raise no_cache(path)
    return cache
