"""Layout, records, reader and writer of the store, without a model."""

import json
import threading

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import tree
from tests.store.units import SPEC, unit
from unic_cache.config.views import Views
from unic_cache.errors import CacheError
from unic_cache.files.local import LocalFolder
from unic_cache.store.commit import CommitRecord, parse_record, view_called
from unic_cache.store.layout import CHUNK_ROWS, SHARD_ROWS, Extent, check_metadata, metadata_objects, object_name
from unic_cache.store.member import Member
from unic_cache.store.reader import RowReader
from unic_cache.store.writer import UnitWriter, row_crcs


def member(folder, spec=SPEC) -> Member:
    return Member.ensure(LocalFolder(folder), "teacher", spec)


def random_parts(member: Member, rows: int, seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {array.name: generator.integers(1, 100, (rows, *array.row)).astype(array.dtype) for array in member.arrays}


def written(folder, rows: int, **kind) -> tuple[Member, CommitRecord, dict[str, np.ndarray]]:
    found = member(folder)
    parts = random_parts(found, rows)
    record = UnitWriter(found, 7).write(unit(rows, **kind), parts, np.arange(rows, dtype=np.uint32), {})
    return found, record, parts


@given(st.integers(1, 2300), st.integers(1, 4))
@settings(deadline=None)
def test_every_row_has_one_place(longest, shards):
    extent = Extent(shards, longest)
    assert extent.padded_rows % CHUNK_ROWS == 0
    assert longest <= extent.padded_rows < longest + CHUNK_ROWS
    assert extent.object_rows % CHUNK_ROWS == 0
    assert extent.object_rows <= SHARD_ROWS
    assert (extent.objects(longest) - 1) * extent.object_rows < longest <= extent.objects(longest) * extent.object_rows


@pytest.mark.parametrize("rows", [1, 31, 32, 33, 64, 100, 1023, 1024, 1025, 1100])
def test_rows_come_back_from_our_reader_and_from_stock_zarr(tmp_path, rows):
    found, record, parts = written(tmp_path, rows, shard=1)
    reader = RowReader(found)
    order = np.random.default_rng(1).permutation(rows)[:200].tolist()
    for name, values in reader.read(record, order).items():
        assert np.array_equal(values, parts[name][order])
        stock = zarr.open(tmp_path / f"teacher/features.zarr/000000/unic-32-0-000/{name}", mode="r")
        assert np.array_equal(stock[1, :rows], parts[name])
    stored = tree(tmp_path / "teacher/features.zarr/000000/unic-32-0-000")
    sizes = {f"teacher/features.zarr/000000/unic-32-0-000/{name}": len(data) for name, data in stored.items()}
    assert record.sizes == {name: size for name, size in sizes.items() if not name.endswith("zarr.json")}


@given(st.lists(st.integers(0, 99), min_size=1, max_size=60))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_rows_in_any_order_even_twice(tmp_path_factory, rows):
    found, record, parts = shared(tmp_path_factory)
    for name, values in RowReader(found).read(record, rows).items():
        assert np.array_equal(values, parts[name][rows])


_SHARED: list = []


def shared(tmp_path_factory):
    if not _SHARED:
        _SHARED.append(written(tmp_path_factory.mktemp("shared"), 100))
    return _SHARED[0]


def test_two_writers_of_one_unit_end_with_one_good_copy(tmp_path):
    """Sixteen writers at once, each with values that differ in the last bit of the scale."""
    found = member(tmp_path)
    base = random_parts(found, 40)
    records = []

    def write(number: int) -> None:
        parts = {name: values.copy() for name, values in base.items()}
        parts["patch_scale"] = np.nextafter(parts["patch_scale"], np.float16(number * 1000))
        records.append(UnitWriter(found, 7).write(unit(40), parts, np.zeros(40, np.uint32), {}))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(records) == 16
    assert len({record.checksum for record in records}) == 1
    RowReader(found).read(records[0], range(40))


class TestRecords:
    def test_round_trip(self, tmp_path):
        found, record, _ = written(tmp_path, 40)
        data = record.to_bytes()
        again = parse_record(data, "teacher", record.unit, found.arrays)
        assert again.to_bytes() == data
        assert json.loads(data)["self"] == record.checksum

    def test_any_flipped_byte_is_told(self, tmp_path):
        found, record, _ = written(tmp_path, 3)
        data = record.to_bytes()
        for place in range(len(data)):
            broken = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
            with pytest.raises(CacheError, match=record.name):
                parse_record(broken, "teacher", record.unit, found.arrays)

    def test_a_record_of_another_place_is_refused(self, tmp_path):
        found, record, _ = written(tmp_path, 40)
        elsewhere = unit(40, shard=1)
        with pytest.raises(CacheError, match=r"says shard 0, but stands where shard is 1"):
            parse_record(record.to_bytes(), "teacher", elsewhere, found.arrays)

    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(),
            lambda x: st.lists(x) | st.dictionaries(st.text(), x),
            max_leaves=8,
        )
    )
    @settings(deadline=None, max_examples=200)
    @pytest.mark.slow
    def test_hostile_json_ends_in_a_clear_error(self, body):
        with pytest.raises(CacheError):
            parse_record(json.dumps(body).encode(), "teacher", unit(3), ())

    @pytest.mark.parametrize("key", ["rows", "bad", "objects", "crc32c", "pixels", "calibration", "segment"])
    @pytest.mark.parametrize("value", [None, -1, "text", [], {}, [1] * 10, {"a": "b"}, 2**70, {"1": [2**40]}])
    def test_a_hostile_field_with_a_right_checksum_ends_in_a_clear_error(self, tmp_path, key, value):
        from crc32c import crc32c

        found, record, _ = written(tmp_path, 3)
        body = json.loads(record.to_bytes())
        del body["self"]
        if body[key] == value or (key == "calibration" and value is None) or (key == "bad" and value == {}):
            return
        body[key] = value
        data = json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
        signed = json.dumps({**body, "self": crc32c(data)}, sort_keys=True, separators=(",", ":")).encode()
        if key == "calibration" and isinstance(value, int):
            assert parse_record(signed, "teacher", record.unit, found.arrays).calibration == value
            return
        with pytest.raises(CacheError):
            parse_record(signed, "teacher", record.unit, found.arrays)


class TestBrokenObjects:
    @pytest.fixture
    def store(self, tmp_path):
        found, record, _ = written(tmp_path, 40)
        path = tmp_path / object_name("teacher", 0, "unic-32-0-000", found.arrays[1], 0, 0)
        return found, record, path

    def test_a_flipped_byte_names_its_row_and_no_other(self, store):
        found, record, path = store
        data = bytearray(path.read_bytes())
        data[33 * 20 + 3] ^= 64
        path.write_bytes(bytes(data))
        with pytest.raises(CacheError, match=r"teacher, view unic-32-0-000 of shard tar0, patch, rows 33: their bytes"):
            RowReader(found).read(record, range(40))
        RowReader(found).read(record, range(33))

    def test_a_missing_object_is_told(self, store):
        found, record, path = store
        path.unlink()
        with pytest.raises(CacheError, match="is missing"):
            RowReader(found).read(record, [0])

    def test_a_truncated_object_is_told(self, store):
        found, record, path = store
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(CacheError, match=r"the index of .* is broken"):
            RowReader(found).read(record, [0])

    def test_a_flipped_index_is_told(self, store):
        found, record, path = store
        data = bytearray(path.read_bytes())
        data[-10] ^= 1
        path.write_bytes(bytes(data))
        with pytest.raises(CacheError, match=r"the index of .* is broken"):
            RowReader(found).read(record, [0])

    def test_zeros_in_place_of_an_object_are_told(self, store):
        found, record, path = store
        path.write_bytes(bytes(path.stat().st_size))
        with pytest.raises(CacheError, match=r"the index of .* is broken"):
            RowReader(found).read(record, [0])


class TestMetadata:
    def test_equal_meaning_is_accepted_whatever_the_formatting(self):
        (name, data), *_ = [
            item
            for item in metadata_objects("teacher", 0, "v", member_arrays(), Extent(2, 40)).items()
            if "patch/" in item[0]
        ]
        check_metadata(name, json.dumps({**json.loads(data), "new_key": 1}, indent=4).encode(), data)

    @pytest.mark.parametrize("found", [b"", b"[]", b"{}", b"nonsense", b'{"shape": "huge"}', b"[" * 100_000])
    def test_hostile_metadata_is_told(self, found):
        name, data = next(iter(metadata_objects("teacher", 0, "v", member_arrays(), Extent(2, 40)).items()))
        with pytest.raises(CacheError, match=r"zarr.json"):
            check_metadata(name, found, data)


def member_arrays():
    return Member(LocalFolder("nowhere"), "teacher", SPEC).arrays


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"codec": "klt9"},
        {"codec": ["f16"]},
        {"features": None},
        {"features": {"cls_dim": 0, "grid": [2, 2], "patch_dim": 5}},
        {"features": {"cls_dim": 6, "grid": [2**19, 2**19], "patch_dim": 2**19}},
        {"features": {"cls_dim": True, "grid": [2, 2], "patch_dim": 5}},
        {"features": {"cls_dim": None, "grid": None, "patch_dim": None}},
        {"features": {"cls_dim": "6", "grid": "ab", "patch_dim": 5}},
    ],
)
def test_a_hostile_spec_ends_in_a_clear_error(tmp_path, change):
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher/spec.json").write_text(json.dumps({**SPEC, **change}))
    with pytest.raises(CacheError, match=r"teacher/spec\.json"):
        Member.open(LocalFolder(tmp_path), "teacher")


def test_row_checksums_are_of_each_row_alone():
    from crc32c import crc32c

    rows = np.arange(24, dtype=np.int16).reshape(4, 2, 3)
    assert row_crcs(rows).tolist() == [crc32c(row.tobytes()) for row in rows]


@pytest.mark.parametrize(
    ("folder", "view"),
    [
        ("unic-224-0-003", (Views("unic", 224, 0), 3)),
        ("center-32-7-1000", (Views("center", 32, 7), 1000)),
        *((name, None) for name in ("notes", "@eaDir", "unic-224-0", "unic-224-0-3", "unic-0224-0-003", "x-32-0-000")),
    ],
)
def test_only_folders_with_the_names_of_views_are_views(folder, view):
    assert view_called(folder) == view
