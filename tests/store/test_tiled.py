"""Tiled arrays from both ends: what lies on disk by loops and stock zarr, and what a commit record may say of it.

Letters: P bytes of a row, G tiles of W bytes.
"""

import dataclasses
import json

import numpy as np
import pytest
import zarr
from crc32c import crc32c
from hypothesis import given, settings
from hypothesis import strategies as st
from numcodecs.zstd import Zstd

from tests.store.units import SPEC, unit
from unic_cache.errors import BrokenError, CacheError
from unic_cache.files.local import LocalFolder
from unic_cache.store.calibrate import Calibration
from unic_cache.store.codecs.klt import Klt
from unic_cache.store.commit import CommitRecord, calibration_of, parse_record
from unic_cache.store.layout import ArraySpec, Extent, index_bytes, object_bytes, object_name
from unic_cache.store.member import Member
from unic_cache.store.reader import RowReader
from unic_cache.store.writer import UnitWriter

FITTED = {**SPEC, "codec": "klt", "features": {"cls_dim": 6, "grid": [8, 8], "patch_dim": 12}}
G, W = 6, 256  # of all 768 coefficients in two bytes each


def fitted(folder) -> Member:
    """A member in codec klt, calibrated."""
    klt = Klt((8, 8), 64, np.stack([np.eye(12, dtype="f4")] * 2), np.arange(768, dtype="i4"), (768, 0, 0, 0, 0), 1.0)
    statistics = {"cls": np.ones(6), "patch": np.ones(12)}
    found = Member.ensure(LocalFolder(folder), "teacher", FITTED)
    found.location.create(
        found.calibration_name, Calibration(statistics, statistics, {}, klt=klt.to_arrays()).to_bytes()
    )
    return found


def rows_of(member: Member, rows: int, top: int = 100) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(rows)
    return {array.name: generator.integers(0, top, (rows, *array.row)).astype(array.dtype) for array in member.arrays}


def written(folder, rows: int, top: int = 100, **kind) -> tuple[Member, CommitRecord, dict[str, np.ndarray]]:
    found = fitted(folder)
    parts = rows_of(found, rows, top)
    record = UnitWriter(found, 7).write(unit(rows, **kind), parts, np.arange(rows, dtype=np.uint32), {}, clipped=3)
    return found, record, parts


def chunks_in(folder, member: Member, record: CommitRecord) -> list[bytes]:
    """The compressed chunks of a unit's tokens, found by the objects' indices."""
    found, where = [], record.unit
    for part in range(where.extent.objects(where.rows)):
        data = (folder / object_name("teacher", 0, where.view, member.arrays[1], where.shard, part)).read_bytes()
        index = np.frombuffer(data[-index_bytes(where.extent) : -4], "<u8").reshape(-1, 2)
        found += [data[offset : offset + size] for offset, size in index.astype(object) if offset != 2**64 - 1]
    return found


def signed(body: dict) -> bytes:
    """A record with a valid checksum."""
    data = json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
    return json.dumps({**body, "self": crc32c(data)}, sort_keys=True, separators=(",", ":")).encode()


class TestLayout:
    @given(st.integers(0, 100), st.integers(1, 4), st.integers(1, 5))
    @settings(deadline=None, max_examples=40)
    def test_rows_lie_tile_by_tile_in_chunks_of_32_and_come_back(self, rows, tiles, width):
        array = ArraySpec("a", (tiles * width,), "uint8", tile=width)
        values = np.random.default_rng(rows).integers(0, 255, (rows, tiles * width), np.uint8, endpoint=True)
        kept = array.to_disk(values)
        assert kept.shape == (-(-rows // 32), tiles, 32, width) == (array.checksums(rows), *array.tail)
        expected = np.zeros_like(kept)
        for row in range(rows):
            for tile in range(tiles):
                expected[row // 32, tile, row % 32] = values[row, tile * width : (tile + 1) * width]
        assert np.array_equal(kept, expected)
        assert np.array_equal(array.from_disk(kept, rows), values)

    @pytest.mark.parametrize("rows", [1, 31, 32, 33, 100, 1024, 1100])
    def test_stock_zarr_finds_that_layout_and_our_reader_the_rows(self, tmp_path, rows):
        found, record, parts = written(tmp_path, rows, shard=1)
        stock = zarr.open(tmp_path / "teacher/features.zarr/000000/unic-32-0-000/patch", mode="r")
        array = found.arrays[1]
        assert stock.shape == (2, record.unit.extent.padded_rows // 32, G, 32, W)
        assert stock.chunks == (1, 1, G, 32, W)
        assert np.array_equal(stock[1, : array.checksums(rows)], array.to_disk(parts["patch"]))
        order = np.random.default_rng(1).permutation(rows)[:100].tolist()
        assert np.array_equal(RowReader(found).read(record, order)["patch"], parts["patch"][order])

    @pytest.mark.parametrize("rows", [33, 1100])
    def test_checksums_and_sizes_are_those_of_the_compressed_chunks(self, tmp_path, rows):
        found, record, parts = written(tmp_path, rows)
        chunks = chunks_in(tmp_path, found, record)
        assert record.crcs["patch"].tolist() == [crc32c(chunk) for chunk in chunks]
        assert len(record.crcs["cls"]) == rows
        assert {name: (tmp_path / name).stat().st_size for name in record.sizes} == record.sizes
        unpacked = b"".join(Zstd().decode(chunk) for chunk in chunks)
        assert unpacked == found.arrays[1].to_disk(parts["patch"]).tobytes()

    @pytest.mark.parametrize(("top", "least", "most"), [(1, 0.0, 0.01), (2, 0.1, 0.2), (256, 1.0, 1.01)])
    def test_objects_are_as_large_as_their_rows_are_hard_to_compress(self, tmp_path, top, least, most):
        """Zeros, single bits, and noise, which grows a little when compressed."""
        _, record, parts = written(tmp_path, 64, top)
        (size,) = (size for name, size in record.sizes.items() if "/patch/" in name)
        assert least * parts["patch"].nbytes < size < most * parts["patch"].nbytes + 100
        assert parse_record(record.to_bytes(), "teacher", record.unit, fitted(tmp_path).arrays).sizes == record.sizes


class TestRecords:
    @pytest.mark.parametrize("rows", [1, 40, 1100])
    def test_round_trip(self, tmp_path, rows):
        found, record, _ = written(tmp_path, rows)
        data = record.to_bytes()
        again = parse_record(data, "teacher", record.unit, found.arrays)
        assert again.to_bytes() == data
        assert (len(again.crcs["patch"]), len(again.crcs["cls"]), again.clipped) == (-(-rows // 32), rows, 3)

    @pytest.mark.parametrize("count", [0, 1, 3, 40])
    def test_a_wrong_number_of_checksums_is_refused(self, tmp_path, count):
        """40 rows are two chunks."""
        found, record, _ = written(tmp_path, 40)
        body = json.loads(record.to_bytes())
        del body["self"]
        body["crc32c"]["patch"] = [7] * count
        with pytest.raises(CacheError, match="does not hold one 32-bit number for each of 2 rows or chunks"):
            parse_record(signed(body), "teacher", record.unit, found.arrays)

    @pytest.mark.parametrize("change", [-(10**6), 10**6])
    def test_sizes_that_no_compressed_chunks_have_are_refused(self, tmp_path, change):
        found, record, _ = written(tmp_path, 40)
        body = json.loads(record.to_bytes())
        del body["self"]
        body["objects"] = {name: size + change * ("/patch/" in name) for name, size in body["objects"].items()}
        with pytest.raises(CacheError, match="the sizes of its objects do not fit 40 rows; run `unic-cache repair`"):
            parse_record(signed(body), "teacher", record.unit, found.arrays)

    def test_a_size_that_is_only_possible_is_found_by_the_reader(self, tmp_path):
        found, record, _ = written(tmp_path, 40)
        sizes = {name: size + ("/patch/" in name) for name, size in record.sizes.items()}
        longer = dataclasses.replace(record, sizes=sizes)
        assert parse_record(longer.to_bytes(), "teacher", record.unit, found.arrays).sizes == sizes
        with pytest.raises(
            BrokenError, match=r"teacher, view unic-32-0-000 of shard tar0, patch, rows 0: the index of"
        ):
            RowReader(found).read(longer, [0])

    def test_an_object_of_one_byte_chunks_up_to_one_of_noise_is_possible(self):
        array = ArraySpec("a", (G * W,), "uint8", tile=W)
        extent = Extent(1, 1100)
        sizes = object_bytes(array, extent, 1100, 1)  # 76 rows in three chunks
        noise = np.random.default_rng(0).bytes(32 * G * W)
        assert sizes.start == 3 + index_bytes(extent)
        assert 3 * len(Zstd(level=1).encode(noise)) + index_bytes(extent) in sizes
        assert 3 * (len(noise) * 1.02 + 1024) + index_bytes(extent) not in sizes

    def test_its_calibration_can_be_told_without_that_calibration(self, tmp_path):
        found, record, _ = written(tmp_path, 40)
        (tmp_path / found.calibration_name).unlink()
        alone = Member.open(LocalFolder(tmp_path), "teacher")
        assert alone.calibration_of(record.unit) == 7
        assert alone.calibration_of(unit(40, shard=1)) is None
        with pytest.raises(
            BrokenError, match=r"calibration\.npz is missing, and nothing of codec klt can be read without"
        ):
            alone.record(record.unit)

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            (b"", "not a commit record"),
            (b"[]", "not a commit record"),
            (b"{}", "not a commit record"),
            (signed({"format": 1}), "not a commit record"),
            (json.dumps({"format": 1, "self": 5}).encode(), "its checksum does not fit its content"),
        ],
    )
    def test_what_is_no_record_tells_no_calibration(self, data, message):
        with pytest.raises(CacheError, match=rf"teacher/commits/000000/unic-32-0-000/000000\.json: {message}"):
            calibration_of(data, "teacher", unit(40))


class TestSpecs:
    @pytest.mark.parametrize("quality", ["high", 1.5, 0.0, True, [0.99], 1])
    def test_a_hostile_quality_is_refused(self, tmp_path, quality):
        (tmp_path / "teacher").mkdir()
        (tmp_path / "teacher/spec.json").write_text(json.dumps({**FITTED, "quality": quality}))
        with pytest.raises(CacheError, match=r"teacher/spec\.json: not a spec .* is not a mean cosine"):
            Member.open(LocalFolder(tmp_path), "teacher")

    def test_a_member_without_its_calibration_says_what_is_missing(self, tmp_path):
        alone = Member.ensure(LocalFolder(tmp_path), "teacher", FITTED)
        assert alone.needs_calibration
        message = (
            r"teacher/calibration\.npz is missing, and nothing of codec klt .* put it back, or make it with the `uni"
        )
        with pytest.raises(CacheError, match=message):
            _ = alone.arrays
        fitted(tmp_path)
        assert [array.name for array in alone.arrays] == ["cls", "patch"]

    def test_without_patch_tokens_no_calibration_is_needed(self, tmp_path):
        dims = {"cls_dim": 6, "grid": None, "patch_dim": None}
        alone = Member.ensure(LocalFolder(tmp_path), "teacher", {**FITTED, "features": dims, "tokens": 64})
        assert not alone.needs_calibration
        assert [array.name for array in alone.arrays] == ["cls"]
