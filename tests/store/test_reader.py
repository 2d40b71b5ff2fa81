"""The reader against stock zarr, on every kind of store, and on stores that are broken in every way.

Letters: G tiles of W bytes.
"""

import dataclasses
import errno
import gc
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import zarr
from crc32c import crc32c
from hypothesis import given, settings
from hypothesis import strategies as st
from numcodecs.zstd import Zstd
from obstore.store import MemoryStore

from tests.conftest import tree
from tests.crash.memory import MemoryFolder
from tests.disk import open_below
from tests.object_server import ObjectServer
from tests.web_server import WithRanges
from unic_cache.buffers import Ring
from unic_cache.config import Views
from unic_cache.errors import BrokenError
from unic_cache.files.local import LocalFolder
from unic_cache.files.location import Location
from unic_cache.files.object_store import ObjectFolder
from unic_cache.files.schemes import open_location
from unic_cache.store.coders import content_size
from unic_cache.store.commit import CommitRecord, Unit, parse_record
from unic_cache.store.layout import CHUNK_ROWS, ArraySpec, Extent, object_name
from unic_cache.store.open_objects import OpenObjects
from unic_cache.store.ranges import picks
from unic_cache.store.reader import RowReader
from unic_cache.store.unpacked import Tiles
from unic_cache.store.writer import UnitWriter

VIEW = "unic-32-0-000"
G, W = 4, 24
ARRAYS = (
    ArraySpec("cls", (6,), "float16"),
    ArraySpec("tiled", (G * W,), "uint8", tile=W),
    ArraySpec("wide", (50, 1400), "uint8"),  # larger than any gap that is read along
)
ROWS = (1100, 70)  # of two tars: two objects, the second with a part of a chunk; and one


@dataclass
class Kept:
    """The parts of a member that reader and writer need, with arrays of each kind."""

    location: Location
    folder: str = "teacher"
    arrays: tuple[ArraySpec, ...] = ARRAYS
    codec: None = None
    spec: Mapping[str, object] = dataclasses.field(default_factory=dict)

    def record(self, unit: Unit) -> CommitRecord:
        name = f"{self.folder}/commits/000000/{VIEW}/{unit.shard:06d}.json"
        return parse_record(self.location.read(name), self.folder, unit, self.arrays)


def unit(shard: int) -> Unit:
    return Unit(0, Extent(2, ROWS[0]), shard, f"tar{shard}", ROWS[shard], *Views.parse(VIEW))


def invented(shard: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(shard)
    return {
        "cls": generator.standard_normal((ROWS[shard], 6)).astype(np.float16),
        "tiled": generator.integers(0, 9, (ROWS[shard], G * W), np.uint8),
        "wide": np.repeat(generator.integers(0, 256, (ROWS[shard], 50, 1), np.uint8), 1400, axis=2),
    }


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> Path:
    """Two units on a disk, read-only."""
    folder = tmp_path_factory.mktemp("stored")
    for shard in range(len(ROWS)):
        parts = invented(shard)
        pixels = np.arange(ROWS[shard], dtype=np.uint32)
        UnitWriter(Kept(LocalFolder(folder)), 7).write(unit(shard), parts, pixels, {})
    return folder


@pytest.fixture(scope="module")
def truth(stored) -> dict[int, dict[str, np.ndarray]]:
    """The rows of each unit as stock zarr reads them."""
    found: dict[int, dict[str, np.ndarray]] = {}
    for shard, rows in enumerate(ROWS):
        kept = {a: zarr.open_array(stored / f"teacher/features.zarr/000000/{VIEW}/{a.name}", mode="r") for a in ARRAYS}
        found[shard] = {a.name: a.from_disk(np.asarray(array[shard]), rows) for a, array in kept.items()}
        for name, values in invented(shard).items():
            assert np.array_equal(found[shard][name], values)
    return found


def check(reader: RowReader, record: CommitRecord, rows, truth) -> None:
    for name, values in reader.read(record, rows).items():
        assert np.array_equal(values, truth[record.unit.shard][name][rows]), name


ASKED = {
    "in order": list(range(70)),
    "backwards": list(range(69, -1, -1)),
    "every other": list(range(0, 70, 2)),
    "mixed": np.random.default_rng(0).permutation(70).tolist(),
    "one again and again": [33] * 5,
    "the ends": [0, 69],
    "none": [],
}


class TestEveryStore:
    """All kinds of locations give the same as zarr."""

    @pytest.fixture(params=["disk", "past the page cache", "memory", "obstore's memory", "s3", "web"])
    def location(self, request, stored, monkeypatch):
        files = tree(stored)
        if request.param == "disk":
            yield LocalFolder(stored)
        elif request.param == "past the page cache":
            yield LocalFolder(stored, page_cache=0)
        elif request.param == "memory":
            yield MemoryFolder(files)
        elif request.param == "obstore's memory":
            folder = ObjectFolder("memory://", MemoryStore())
            for name, data in files.items():
                folder.create(name, data)
            yield folder
        elif request.param == "s3":
            with ObjectServer() as server:
                monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
                monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
                monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
                server.objects.update({f"pre/{name}": data for name, data in files.items()})
                yield open_location("s3://bucket/pre")
        else:
            server = ThreadingHTTPServer(("127.0.0.1", 0), partial(WithRanges, directory=str(stored)))
            thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            yield open_location(f"http://127.0.0.1:{server.server_port}")
            server.shutdown()
            thread.join()
            server.server_close()

    def test_gives_what_zarr_gives(self, location, truth):
        member = Kept(location)
        for shard in range(len(ROWS)):
            reader, record = RowReader(member), member.record(unit(shard))
            for rows in ASKED.values():
                check(reader, record, rows, truth)
        whole = np.random.default_rng(1).permutation(ROWS[0]).tolist()
        check(RowReader(member), member.record(unit(0)), whole[:300], truth)


def test_any_rows_in_any_order_even_twice(stored, truth):
    member = Kept(LocalFolder(stored))
    reader = RowReader(member)
    records = [member.record(unit(shard)) for shard in range(2)]

    @given(st.sampled_from([0, 1]), st.data())
    @settings(deadline=None, max_examples=60)
    def whatever(shard, data):
        rows = data.draw(st.lists(st.integers(0, ROWS[shard] - 1), max_size=40))
        check(reader, records[shard], rows, truth)

    whatever()


def test_rows_go_to_their_places_and_nowhere_else(stored, truth):
    member = Kept(LocalFolder(stored))
    rows, places = [5, 900, 6, 5], [7, 0, 3, 4]
    out = {array.name: np.full((9, *array.row), 99, array.dtype) for array in ARRAYS}
    assert RowReader(member).fill(member.record(unit(0)), picks(rows, places), out) == {}
    for name, values in out.items():
        assert np.array_equal(values[places], truth[0][name][rows])
        assert (values[[1, 2, 5, 6, 8]] == 99).all()


def test_small_rows_share_reads_of_as_many_buffers_as_the_system_takes(stored, truth, monkeypatch):
    real, counts = os.preadv, []

    def preadv(descriptor, buffers, offset):
        counts.append(len(buffers))
        return real(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", preadv)
    member = Kept(LocalFolder(stored), arrays=ARRAYS[:1])
    record = Kept(LocalFolder(stored)).record(unit(0))
    for rows in (range(1100), range(0, 1100, 2)):
        found = RowReader(member).read(record, rows)
        assert np.array_equal(found["cls"], truth[0]["cls"][rows])
    index = 1
    assert counts[:6] == [index, 500, 500, 24, index, 76]
    assert counts[6:] == [index, 999, 23, index, 75]  # with what lies between the rows
    assert max(counts) <= os.sysconf("SC_IOV_MAX")


def test_neighbours_share_a_read_and_only_small_gaps_are_read_along(stored, monkeypatch):
    member = Kept(LocalFolder(stored))
    reader, record = RowReader(member), member.record(unit(0))
    reader.read(record, [0])
    real, sizes = os.preadv, []

    def preadv(descriptor, buffers, offset):
        sizes.append([len(buffer) for buffer in buffers])
        return real(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", preadv)
    reader.read(record, [4, 1, 2])
    cls, wide = 12, 70_000
    assert sizes == [[cls, cls, cls, cls], [wide, wide], [wide]]  # the third 12 are row 3's, that nobody asked for


@pytest.mark.parametrize("start", [0, 7])
def test_rows_of_whole_sectors_go_straight_to_their_places_past_the_page_cache(tmp_path, monkeypatch, start):
    """Unless memory starts within a sector: then they are copied."""
    member = Kept(LocalFolder(tmp_path, page_cache=0), arrays=(ArraySpec("rows", (1024,), "uint8"),))
    rows = np.random.default_rng(0).integers(0, 256, (ROWS[1], 1024), np.uint8)
    record = UnitWriter(member, 7).write(unit(1), {"rows": rows}, np.zeros(ROWS[1], np.uint32), {})
    real, counts = os.preadv, []

    def preadv(descriptor, buffers, offset):
        counts.append(len(buffers))
        return real(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", preadv)
    out = Ring(1).take(70 * 1024 + start)[start:].reshape(70, 1024)
    order = np.random.default_rng(1).permutation(70)
    assert RowReader(member).fill(record, picks(order.tolist()), {"rows": out}) == {}
    assert np.array_equal(out, rows[order])
    assert counts == ([1, 70] if start == 0 else [1, 1])


class TestTiles:
    @pytest.fixture
    def unpacked(self, monkeypatch) -> list[int]:
        """The bytes that each call unpacked."""
        real, calls = Zstd.decode, []

        def decode(codec, data, out):
            calls.append(len(out))
            return real(codec, data, out)

        monkeypatch.setattr(Zstd, "decode", decode)
        return calls

    def test_a_chunk_is_unpacked_once_for_all_its_rows(self, stored, unpacked):
        member = Kept(LocalFolder(stored))
        reader, record = RowReader(member), member.record(unit(0))
        reader.read(record, np.random.default_rng(0).permutation(100).tolist())
        assert unpacked == [CHUNK_ROWS * G * W] * 4
        for row in range(100):
            reader.read(record, [row])
        assert len(unpacked) == 4

    def test_few_are_kept(self, stored, truth, unpacked):
        member = Kept(LocalFolder(stored))
        reader, record = RowReader(member), member.record(unit(0))
        reader._tiles.limit = 2 * CHUNK_ROWS * G * W
        for row in (0, 32, 64, 33, 65, 1):
            check(reader, record, [row], truth)
        assert len(unpacked) == 4
        assert reader._tiles._bytes == 2 * CHUNK_ROWS * G * W == sum(len(c) for c in reader._tiles._kept.values())

    def test_memory_is_used_again(self):
        tiles, frame = Tiles(limit=100), memoryview(Zstd().encode(bytes(60)))
        places = {tiles.unpack(key, frame, 60, "zstd").ctypes.data for key in range(50)}
        assert len(places) <= 3

    @pytest.mark.parametrize("level", [1, 3, 19])
    @pytest.mark.parametrize("size", [1, 2, 255, 256, 257, 65535, 65536, 65791, 65792, 100_000, 2**20])
    def test_the_size_of_what_a_frame_holds(self, size, level):
        data = np.random.default_rng(0).integers(0, 9, size, np.uint8)
        assert content_size(memoryview(Zstd(level).encode(data))) == size

    @pytest.mark.parametrize("frame", [b"", b"\x28\xb5\x2f\xfd", b"\x28\xb5\x2f\xfd\x00\x00\x00", b"\0" * 40])
    def test_of_no_frame_or_one_that_does_not_say(self, frame):
        assert content_size(memoryview(frame)) is None


class TestOpenFiles:
    @pytest.fixture
    def opened(self, stored) -> set[str]:
        gc.collect()
        return open_below(stored)

    def test_are_few_and_closed_in_the_end(self, stored, truth, opened):
        member = Kept(LocalFolder(stored))
        objects = OpenObjects(member.location, limit=2)
        reader = RowReader(member, objects)
        for shard in (0, 1, 0, 1):
            for row in (0, 69, ROWS[shard] - 1):
                check(reader, member.record(unit(shard)), [row], truth)
                assert len(open_below(stored) - opened) <= 2
        del reader, objects
        assert open_below(stored) == opened

    def test_are_closed_on_demand_and_opened_again(self, stored, truth, opened):
        member = Kept(LocalFolder(stored))
        objects = OpenObjects(member.location)
        reader = RowReader(member, objects)
        for _ in range(2):
            check(reader, member.record(unit(0)), [3, 1050], truth)
            assert len(open_below(stored) - opened) == 2 * len(ARRAYS)
            objects.close()
            assert open_below(stored) == opened

    def test_are_not_closed_under_a_reader(self, stored, truth, opened):
        """Eight threads and one open file: each read drops the file that the others are reading."""
        member = Kept(LocalFolder(stored))
        reader = RowReader(member, OpenObjects(member.location, limit=1))
        records = [member.record(unit(shard)) for shard in range(2)]

        def read(number: int) -> None:
            rows = np.random.default_rng(number).permutation(ROWS[number % 2])[:20].tolist()
            check(reader, records[number % 2], rows, truth)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(read, range(200)))
        assert len(open_below(stored) - opened) == 1
        reader = None
        assert open_below(stored) == opened

    def test_are_opened_once_and_their_index_is_read_once(self, stored):
        calls = []

        class Counting(LocalFolder):
            def open(self, name):
                calls.append(name)
                return super().open(name)

        member = Kept(Counting(stored))
        reader = RowReader(member)
        for row in range(0, 1100, 50):
            reader.read(member.record(unit(0)), [row, row + 1])
        assert len(calls) == len(set(calls)) == 2 * len(ARRAYS)


class Damaged:
    """A copy of the shorter unit, to break."""

    def __init__(self, folder: Path, stored: Path) -> None:
        self.folder = folder
        for name, data in tree(stored).items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        self.member = Kept(LocalFolder(folder))
        self.record = self.member.record(unit(1))

    def path(self, array: ArraySpec) -> Path:
        return self.folder / object_name("teacher", 0, VIEW, array, 1, 0)

    def change(self, array: ArraySpec, change) -> None:
        data = bytearray(self.path(array).read_bytes())
        self.path(array).write_bytes(change(data))

    def spans(self, array: ArraySpec, change) -> None:
        """Replace the index by another one with a valid checksum."""

        def write(data):
            size = 16 * 1024 // CHUNK_ROWS + 4
            index = np.frombuffer(bytes(data[-size:-4]), "<u8").reshape(-1, 2).copy()
            change(index)
            return data[:-size] + index.tobytes() + crc32c(index.tobytes()).to_bytes(4, "little")

        self.change(array, write)

    def is_lost(self, rows: range, why: str, array: ArraySpec, truth) -> None:
        """Exactly these rows are lost, and are zeros in every array; all others are unchanged."""
        every = list(range(70))
        place = rf"teacher, view {VIEW} of shard tar1, {array.name}, rows {rows[0]}.*: {why}.*run `unic-cache verify`"
        with pytest.raises(BrokenError, match=place):
            RowReader(self.member).read(self.record, every)
        broken: set[int] = set()
        found = RowReader(self.member).read(self.record, every, broken)
        assert broken == set(rows)
        good = [row for row in every if row not in broken]
        for name, values in found.items():
            assert not values[list(rows)].any()
            assert np.array_equal(values[good], truth[1][name][good])


CLS, TILED, WIDE = ARRAYS


class TestBroken:
    @pytest.fixture
    def damaged(self, tmp_path, stored) -> Damaged:
        return Damaged(tmp_path, stored)

    @pytest.mark.parametrize("array", [CLS, WIDE])
    def test_a_flipped_byte_of_a_row(self, damaged, truth, array):
        def flip(data):
            data[33 * array.row_bytes + 3] ^= 64
            return data

        damaged.change(array, flip)
        damaged.is_lost(range(33, 34), "their bytes are not as committed", array, truth)

    def test_a_flipped_byte_of_a_packed_chunk(self, damaged, truth):
        def flip(data):
            data[5] ^= 64
            return data

        damaged.change(TILED, flip)
        damaged.is_lost(range(32), "their bytes are not as committed", TILED, truth)

    @pytest.mark.parametrize("array", ARRAYS)
    def test_a_missing_object(self, damaged, truth, array):
        damaged.path(array).unlink()
        damaged.is_lost(range(70), r".*c\.1\.0\.0.* is missing", array, truth)

    @pytest.mark.parametrize("array", ARRAYS)
    def test_an_object_cut_short(self, damaged, truth, array):
        damaged.change(array, lambda data: data[:-1])
        damaged.is_lost(range(70), r"the index of .*c\.1\.0\.0.* is broken", array, truth)

    @pytest.mark.parametrize("array", ARRAYS)
    @pytest.mark.parametrize(("at", "value"), [((1, 0), 2**40), ((1, 0), 2**64 - 1), ((1, 1), 2**63), ((1, 1), 0)])
    def test_an_index_that_points_elsewhere(self, damaged, truth, array, at, value):
        def point(index):
            index[at] = value

        damaged.spans(array, point)
        damaged.is_lost(range(32, 64), r"the shard's index points to \d+ bytes at \d+", array, truth)

    @pytest.mark.parametrize("array", ARRAYS)
    def test_an_index_that_points_to_another_chunk(self, damaged, truth, array):
        def swap(index):
            index[[0, 1]] = index[[1, 0]]

        damaged.spans(array, swap)
        damaged.is_lost(range(64), "their bytes are not as committed", array, truth)

    @pytest.mark.parametrize("array", ARRAYS)
    @pytest.mark.parametrize("shift", [0, 1])
    def test_an_index_in_which_chunks_overlap(self, damaged, truth, array, shift):
        def overlap(index):
            index[1] = index[0, 0] + shift, index[1, 1]

        damaged.spans(array, overlap)
        damaged.is_lost(range(32, 64), "their bytes are not as committed", array, truth)

    @pytest.mark.parametrize("kind", ["shorter", "longer", "two frames", "nonsense", "no size"])
    def test_a_packed_chunk_that_holds_something_else(self, damaged, truth, kind):
        """The record matches its bytes, so only unpacking detects it."""
        size = CHUNK_ROWS * G * W
        chunk = {
            "shorter": Zstd().encode(bytes(size - 1)),
            "longer": Zstd().encode(bytes(size + 1)),
            "two frames": Zstd().encode(bytes(size)) * 2,
            "nonsense": b"\x28\xb5\x2f\xfd" + bytes(60),
            "no size": b"\x28\xb5\x2f\xfd\x00\x58\x01\x00\x00",
        }[kind]
        start = damaged.path(TILED).stat().st_size
        damaged.change(TILED, lambda data: data + chunk + data[-(16 * 1024 // CHUNK_ROWS + 4) :])

        def point(index):
            index[0] = start, len(chunk)

        damaged.spans(TILED, point)
        crcs = damaged.record.crcs["tiled"].copy()
        crcs[0] = crc32c(chunk)
        name = next(name for name in damaged.record.sizes if "/tiled/" in name)
        damaged.record = dataclasses.replace(
            damaged.record,
            crcs={**damaged.record.crcs, "tiled": crcs},
            sizes={**damaged.record.sizes, name: damaged.path(TILED).stat().st_size},
        )
        damaged.is_lost(range(32), "a compressed chunk", TILED, truth)

    @pytest.mark.parametrize("array", ARRAYS)
    def test_a_sector_that_cannot_be_read(self, damaged, truth, array, monkeypatch):
        bad = os.stat(damaged.path(array)).st_ino
        real = os.preadv
        index = damaged.path(array).stat().st_size - (16 * 1024 // CHUNK_ROWS + 4)

        def preadv(descriptor, buffers, offset):
            if os.fstat(descriptor).st_ino == bad and offset < index:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return real(descriptor, buffers, offset)

        monkeypatch.setattr(os, "preadv", preadv)
        damaged.is_lost(range(70), r".* cannot be read \(Input/output error\)", array, truth)

    def test_a_closed_door_is_an_error_and_no_broken_row(self, damaged, monkeypatch):
        def refuse(descriptor, buffers, offset):
            raise PermissionError(errno.EACCES, "ordered")

        monkeypatch.setattr(os, "preadv", refuse)
        with pytest.raises(PermissionError, match="ordered"):
            RowReader(damaged.member).read(damaged.record, [0], set())

    def test_what_was_mended_is_read_anew(self, damaged, truth):
        data = damaged.path(CLS).read_bytes()
        reader = RowReader(damaged.member)
        damaged.path(CLS).unlink()
        broken: set[int] = set()
        reader.read(damaged.record, [0], broken)
        assert broken == {0}
        damaged.path(CLS).write_bytes(data)
        check(reader, damaged.record, [0], truth)
