"""A cache of any size without a disk: each file's content is computed from its name when it is read.

All tars have equally many rows and equal keys, features are zeros, pixels too; so the content of a commit record
depends on few of its bytes, and the seals of a million records are made in seconds. `SyntheticFolder` counts its calls.

Letters: S tars of a segment.
"""

import json
import re
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial

import numpy as np
from crc32c import crc32c

from pipelines.extracting.specs import pixel_spec
from unic_cache.config import Views
from unic_cache.files.open_file import RangeFile
from unic_cache.store.calibrate import Calibration
from unic_cache.store.commit import CommitRecord, Unit
from unic_cache.store.layout import FORMAT, VIEWS_MEMBER, ArraySpec, Extent, object_name
from unic_cache.store.member import Member, spec_bytes
from unic_cache.store.seal import RUN, Seal, pixels_crc, runs
from unic_cache.store.writer import chunk_crcs, encode_objects, row_crcs
from unic_cache.views.index import Segment, ShardEntry
from unic_cache.views.index_seal import IndexSeal
from unic_cache.views.segments import LIMIT_SAMPLES

VIEW_SIZE, CHANNELS, GRID = 16, 8, 2
IMAGE_BYTES, IMAGE_EVERY = 30_000, 30_720  # in a tar
SOME_TAR, DIGITS = 987_654_321, b"987654321"  # stands for any tar's number in a template of a record
VIEW_FILE = re.compile(
    r"(?P<member>[^/]+)/(?P<kind>commits|features\.zarr)/(?P<segment>\d{6})/(?P<view>[^/]+)/(?P<file>.+)"
)


@dataclass(frozen=True)
class Shape:
    """How large the cache is; each teacher has all views of all tars."""

    tars: int
    rows: int = 1300  # of each tar
    views: int = 20
    teachers: int = 4
    seals: bool = True

    @property
    def segments(self) -> list[int]:
        """The tars of each segment."""
        most = max(LIMIT_SAMPLES // self.rows, 1)
        return [min(most, self.tars - first) for first in range(0, self.tars, most)]


class SyntheticFolder:
    """A read-only `Location`. Members are teacher-0, ... and the kept views."""

    waits = False

    def __init__(self, shape: Shape, url: str = "synthetic://cache") -> None:
        self.url = url
        self.shape = shape
        self.calls: Counter[str] = Counter()
        self.views = [Views("unic", VIEW_SIZE, 0).name(number) for number in range(shape.views)]
        statistics = {"cls": np.ones(CHANNELS), "patch": np.ones(CHANNELS)}
        self._calibration = Calibration(statistics, statistics, {}).to_bytes()
        names = [f"teacher-{number}" for number in range(shape.teachers)]
        specs = {name: _teacher_spec(name) for name in names} | {VIEWS_MEMBER: pixel_spec(VIEW_SIZE, "raw")}
        self.members = {name: Member(self, name, spec) for name, spec in specs.items()}
        self._small = {f"{name}/spec.json": spec_bytes(spec) for name, spec in specs.items()}
        self._small |= {f"{name}/calibration.npz": self._calibration for name in names}
        self._seals: dict[str, bytes] = {}
        self._record = lru_cache(4096)(self._make_record)

    def prepare(self) -> None:
        """Make the seals, so that reading one costs no more than from memory."""
        if self.shape.seals:
            for number in range(len(self.shape.segments)):
                self._seals[f"index/seals/{number:06d}.json"] = self._index_seal(number).to_bytes()
            for name in self.members:
                self._seals |= {seal.name: seal.to_bytes() for seal in self._member_seals(name)}

    # The interface of a Location

    def read(self, name: str) -> bytes | None:
        """The file, or None."""
        self.calls["read"] += 1
        return self._content(name)

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        """A part of a file; of an index, only the tars in it are made."""
        self.calls["read_range"] += 1
        if match := re.fullmatch(r"index/(\d{6})\.json", name):
            return self._index_range(int(match[1]), offset, size)
        data = self._content(name)
        if data is None:
            raise FileNotFoundError(name)
        return data[offset : offset + size]

    def open(self, name: str) -> RangeFile:
        """Reads ranges."""
        self.calls["open"] += 1
        return RangeFile(partial(self.read_range, name))

    def size(self, name: str) -> int | None:
        """Bytes of a file; None if there is none."""
        self.calls["size"] += 1
        if match := re.fullmatch(r"index/(\d{6})\.json", name):
            return self._index_seal(int(match[1])).size
        data = self._content(name)
        return None if data is None else len(data)

    def create(self, name: str, data: bytes) -> bool:
        """OSError: read-only."""
        raise OSError(f"{name} of {len(data)} bytes: a synthetic cache is read-only")

    def replace(self, name: str, data: bytes) -> None:
        """OSError: read-only."""
        self.create(name, data)

    def delete(self, name: str) -> None:
        """OSError: read-only."""
        self.create(name, b"")

    def names(self, prefix: str = "", without: Collection[str] = ()) -> Iterator[str]:
        """A listing of the index, a member's seals or the records of a view."""
        assert not without
        self.calls["names"] += 1
        if prefix == "index":
            found = [f"index/{number:06d}.json" for number in range(len(self.shape.segments))]
            found += [name for name in self._seals if name.startswith("index/")]
        elif match := VIEW_FILE.fullmatch(f"{prefix}/x"):
            found = [f"{prefix}/{tar:06d}.json" for tar in range(self.shape.segments[int(match["segment"])])]
        else:
            found = [name for name in self._seals if name.startswith(f"{prefix}/")]
        self.calls["names listed"] += len(found)
        return iter(sorted(found))

    def names_between(self, folder: str, after: str, before: str) -> list[str]:
        """A part of a listing."""
        found = [name for name in self.names(folder) if after < name.rpartition("/")[2] < before]
        self.calls["names between"] += len(found)
        return found

    def folders(self, prefix: str = "") -> list[str]:
        """Members, or a member's views."""
        self.calls["folders"] += 1
        if not prefix:
            return ["index", *self.members]
        return self.views if re.fullmatch(r"[^/]+/commits/\d{6}", prefix) else []

    # What the files hold

    def _content(self, name: str) -> bytes | None:
        for files in (self._small, self._seals):
            if name in files:
                return files[name]
        if match := re.fullmatch(r"index/(\d{6})\.json", name):
            return Segment(int(match[1]), tuple(map(self._entry, self._tars(int(match[1]))))).to_bytes()
        match = VIEW_FILE.fullmatch(name)
        if match is None or match["view"] not in self.views:
            return None
        segment = int(match["segment"])
        if match["kind"] == "commits":
            return self._record(match["member"], segment, match["view"], int(match["file"][:6])).to_bytes()
        array, _, key = match["file"].partition("/c.")
        return self._objects[match["member"], array][int(key.split(".")[1])]

    def _tars(self, segment: int) -> list[str]:
        return [f"s{segment}-{tar}" for tar in range(self.shape.segments[segment])]

    def _entry(self, name: str) -> ShardEntry:
        rows = self.shape.rows
        offsets = [512 + IMAGE_EVERY * row for row in range(rows)]
        keys = [(2_654_435_761 * row) % 2**32 for row in range(rows)]
        return ShardEntry.of(name, IMAGE_EVERY * rows + 1024, keys, offsets, [IMAGE_BYTES] * rows, range(rows))

    @lru_cache(64)  # noqa: B019 (as long as the benchmark)
    def _index_seal(self, number: int) -> IndexSeal:
        whole = Segment(number, (self._entry("x"),))
        (before, after) = whole.in_pieces()[1][0].split(b'"name":"x"')
        names = self._tars(number)
        pieces = [b'"name":"%s"' % name.encode() for name in names]
        start, first = crc32c(before), len(Segment(number, ()).in_pieces()[0])
        crcs = [crc32c(after, crc32c(piece, start)) for piece in pieces]
        lengths = np.array([len(before) + len(piece) + len(after) for piece in pieces])
        # The head ends with a checksum of up to ten digits, whose value does not matter here.
        offsets = first + np.concatenate([[0], np.cumsum(lengths[:-1] + 1)])
        keys = IndexSeal.of(whole).keys.repeat(len(names))
        counts = np.full(len(names), self.shape.rows)
        size = int(offsets[-1] + lengths[-1] + 2)
        return IndexSeal(number, size, tuple(names), counts, offsets, lengths, np.array(crcs), keys, ())

    def _index_range(self, number: int, offset: int, size: int) -> bytes:
        seal = self._index_seal(number)
        at = int(np.searchsorted(seal.offsets, offset, "right")) - 1
        data = json.dumps(self._entry(seal.names[at]).to_json(), sort_keys=True, separators=(",", ":")).encode()
        return data[offset - int(seal.offsets[at]) :][:size]

    @cached_property
    def _objects(self) -> dict[tuple[str, str], list[bytes]]:
        """(member, array) -> the objects of any unit."""
        found = {}
        for name, member in self.members.items():
            for array in member.arrays:
                unit = self._unit(0, self.views[0], 0)
                found[name, array.name] = list(encode_objects(member, unit, array, self._zeros(array)).values())
        return found

    def _zeros(self, array: ArraySpec) -> np.ndarray:
        return np.zeros((self.shape.rows, *array.row), array.dtype)

    @cached_property
    def _crcs(self) -> dict[tuple[str, str], np.ndarray]:
        found = {}
        for (member, name), objects in self._objects.items():
            (array,) = (one for one in self.members[member].arrays if one.name == name)
            tiled = chunk_crcs(objects, Extent(1, self.shape.rows)) if array.tile else None
            found[member, name] = row_crcs(self._zeros(array)) if tiled is None else tiled
        return found

    def _unit(self, segment: int, view: str, tar: int) -> Unit:
        views, number = Views.parse(view)
        extent = Extent(self.shape.segments[segment], self.shape.rows)
        return Unit(segment, extent, tar, f"s{segment}-{tar}", self.shape.rows, views, number)

    def _make_record(self, member: str, segment: int, view: str, tar: int) -> CommitRecord:
        unit, arrays = self._unit(segment, view, tar), self.members[member].arrays
        sizes = {
            object_name(member, segment, view, array, tar, part): len(data)
            for array in arrays
            for part, data in enumerate(self._objects[member, array.name])
        }
        (rgb,) = self.members[VIEWS_MEMBER].arrays
        crcs = {array.name: self._crcs[member, array.name] for array in arrays}
        calibration = None if member == VIEWS_MEMBER else crc32c(self._calibration)
        return CommitRecord(member, unit, {}, sizes, crcs, self._crcs[VIEWS_MEMBER, rgb.name], calibration)

    def _member_seals(self, member: str) -> Iterator[Seal]:
        """Seals of all runs: the checksum of each record, by the few bytes that differ between tars."""
        for segment, tars in enumerate(self.shape.segments):
            for view in self.views if runs(tars) else ():
                record = self._make_record(member, segment, view, SOME_TAR)
                pieces = record.to_bytes().replace(b'"self":%d,' % record.checksum, b"").split(DIGITS)
                checksums = np.empty(tars, np.uint32)
                for tar in range(tars):
                    crc, number = crc32c(pieces[0]), b"%d" % tar
                    for piece in pieces[1:]:
                        crc = crc32c(piece, crc32c(number, crc))
                    checksums[tar] = crc
                pixels = pixels_crc(record)
                for run in runs(tars):
                    own = checksums[run * RUN : (run + 1) * RUN]
                    columns = (np.full(len(own), value, np.uint32) for value in (self.shape.rows, pixels))
                    rows, seen = columns
                    yield Seal(member, segment, view, run, rows, own, seen, {}, record.calibration)


def _teacher_spec(name: str) -> dict[str, object]:
    made = {"name": name, "weights_sha256": "0", "input_size": VIEW_SIZE}
    features = {"cls_dim": CHANNELS, "grid": [GRID, GRID], "patch_dim": CHANNELS}
    return {
        "format": FORMAT,
        "teacher": made,
        "provenance": {},
        "codec": "int8",
        "features": features,
        "dtype": "float32",
    }
