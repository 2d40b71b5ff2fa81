"""The coder `pcodec`: against stock zarr, against zstd's rows of the same codes, and against hostile frames.

Letters: N codes, G tiles of W codes.
"""

import json
import os
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import zarr

from tests.store.test_tiled import FITTED, rows_of
from tests.store.units import SPEC, unit
from unic_cache.errors import CacheError
from unic_cache.files.local import LocalFolder
from unic_cache.store.calibrate import Calibration
from unic_cache.store.codecs.klt import Klt
from unic_cache.store.codecs.packing import LARGEST, PACKINGS
from unic_cache.store.coders import PIECE
from unic_cache.store.commit import parse_record
from unic_cache.store.layout import ArraySpec, format_of
from unic_cache.store.member import Member
from unic_cache.store.reader import RowReader
from unic_cache.store.writer import UnitWriter, encode_objects

PCODEC = {**FITTED, "format": 2, "coder": "pcodec"}
N, G, W = 700, 2, 512  # zeros fill the second tile


def member(folder) -> Member:
    """A member in codec klt with coder pcodec, calibrated."""
    klt = Klt((8, 8), 64, np.stack([np.eye(12, dtype="f4")] * 2), np.arange(N, dtype="i4"), (N, 0, 0, 0, 0), 1.0)
    statistics = {"cls": np.ones(6), "patch": np.ones(12)}
    found = Member.ensure(LocalFolder(folder), "teacher", PCODEC)
    found.location.create(
        found.calibration_name, Calibration(statistics, statistics, {}, klt=klt.to_arrays()).to_bytes()
    )
    return found


@pytest.mark.parametrize("rows", [1, 33, 1100])
def test_stock_zarr_reads_the_tiles_and_our_reader_the_rows(tmp_path, rows):
    found = member(tmp_path)
    parts = rows_of(found, rows)
    record = UnitWriter(found, 7).write(unit(rows, shard=1), parts, np.arange(rows, dtype=np.uint32), {})
    with warnings.catch_warnings():  # that other implementations of Zarr may not know PCodec
        warnings.simplefilter("ignore")
        stock = zarr.open(tmp_path / "teacher/features.zarr/000000/unic-32-0-000/patch", mode="r")
    assert (stock.shape[2:], stock.chunks, stock.dtype) == ((G, 32, W), (1, 1, G, 32, W), np.int16)
    kept = stock[1, : -(-rows // 32)]
    for row in range(0, rows, 7):
        assert np.array_equal(kept[row // 32, :, row % 32].ravel(), parts["patch"][row])
    order = np.random.default_rng(1).permutation(rows)[:100].tolist()
    assert np.array_equal(RowReader(found).read(record, order)["patch"], parts["patch"][order])


@pytest.mark.parametrize("top", [1, 2, 300, 2**15])
def test_objects_of_zeros_up_to_noise_have_sizes_that_a_record_may_have(tmp_path, top):
    found = member(tmp_path)
    parts = rows_of(found, 70, top)
    parts["patch"] *= np.random.default_rng(0).choice([-1, 1], parts["patch"].shape).astype(np.int16)
    record = UnitWriter(found, 7).write(unit(70), parts, np.zeros(70, np.uint32), {})
    assert parse_record(record.to_bytes(), "teacher", record.unit, found.arrays).sizes == record.sizes


def test_the_bytes_do_not_depend_on_threads(tmp_path):
    found = member(tmp_path)
    rows = rows_of(found, 200)["patch"]

    def encoded(_: int) -> dict[str, bytes]:
        return encode_objects(found, unit(200), found.arrays[1], rows)

    with ThreadPoolExecutor(4) as pool:
        assert all(each == encoded(0) for each in pool.map(encoded, range(8)))


@pytest.mark.parametrize(
    "counts", [(0, 0, 0, 0, 0), (5, 4, 3, 2, 1), (512, 0, 0, 0, 0), (0, 3, 20, 61, 428), (1, 1, 7, 200, 303)]
)
def test_both_packings_hold_the_same_codes(counts):
    """One row through either: the codes come back, and a zero follows."""
    generator = np.random.default_rng(sum(counts))
    codes = np.concatenate(
        [generator.integers(-top, top, (3, count), endpoint=True) for top, count in zip(LARGEST, counts, strict=True)],
        axis=1,
    )
    for packing in (kind(counts) for kind in PACKINGS.values()):
        rows = packing.pack(torch.from_numpy(codes).float())
        array = packing.array("patch")
        assert (rows.shape[1:], rows.numpy().dtype) == (array.row, array.dtype)
        assert array.row[0] % array.tile == 0
        back = packing.unpack(rows)[:, : codes.shape[1] + 1].numpy()
        assert np.array_equal(back, np.pad(codes, ((0, 0), (0, 1))))


HOSTILE = """
import numpy as np
import resource
from pcodec import ChunkConfig, DeltaSpec, ModeSpec, PagingSpec, standalone
from numcodecs.zstd import Zstd
from unic_cache.errors import BrokenError
from unic_cache.store.coders import CODERS

resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))
generator = np.random.default_rng(0)
values = generator.laplace(0, 3, 3 * 2048).astype(np.int16)
values[:2048] = 0


def frame(values, page=2048, delta=DeltaSpec.auto()):
    paging = PagingSpec.equal_pages_up_to(page)
    return standalone.simple_compress(
        values, ChunkConfig(8, mode_spec=ModeSpec.classic(), delta_spec=delta, paging_spec=paging)
    )


def attempt(data):
    chunk = np.full(2 * values.size, 7, np.uint8)
    try:
        CODERS["pcodec"].decode(memoryview(data), chunk)
    except BrokenError as error:
        assert "a compressed chunk" in str(error), error
        return None
    return chunk.view(np.int16)


whole = frame(values)
assert np.array_equal(attempt(whole), values)
cut = [attempt(whole[:size]) is not None for size in range(0, len(whole), 3)]
assert not any(cut), cut
foreign = {
    "float32": frame(values.astype(np.float32)),
    "uint16": frame(values.view(np.uint16)),
    "int32": frame(values.astype(np.int32)),
    "longer": frame(np.tile(values, 2)),
    "one more": frame(np.append(values, 1)),
    "one less": frame(values[:-1]),
    "empty": frame(values[:0]),
    "much longer": frame(np.zeros(2**24, np.int16), 2**24),
    "zstd": Zstd().encode(values),
    "nothing": b"",
    "noise": generator.bytes(500),
}
taken = [name for name, data in foreign.items() if attempt(data) is not None]
assert not taken, taken
for trial in range(3000):
    data = bytearray(whole)
    for place in generator.integers(0, len(data), generator.integers(1, 4)):
        data[place] ^= 1 << generator.integers(0, 8)
    attempt(bytes(data))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print("done", peak)
"""


def test_hostile_frames_are_refused_without_a_crash_or_memory():
    """In a process of its own, which a crash would end: cut, foreign and flipped frames.

    OpenBLAS takes memory for each thread, and would have all of it on a machine of many cores.
    """
    command, env = [sys.executable, "-c", HOSTILE], {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout[:4]) == (0, "done"), done.stderr[-2000:]


class TestSpecs:
    @pytest.mark.parametrize(
        ("spec", "message"),
        [
            ({**FITTED, "coder": "pcodec"}, r"says format 1, which does not fit its coder; put back a copy of it"),
            ({**FITTED, "format": 2}, r"says format 2, which does not fit its coder"),
            ({**PCODEC, "format": 3}, r"says format 3, which does not fit its coder"),
            ({**PCODEC, "format": 4}, r"format 4, but this release reads formats 1 to 3; upgrade it"),
            ({**PCODEC, "coder": "huffman"}, r"coder 'huffman' is unknown to this release; it knows zstd, pcodec"),
            ({**PCODEC, "coder": ["pcodec"]}, r"coder \['pcodec'\] is unknown"),
            ({**PCODEC, "codec": "f16"}, r"not a spec that this release reads .*coder is a setting of codec klt"),
        ],
    )
    def test_what_a_release_would_misread_is_refused(self, tmp_path, spec, message):
        (tmp_path / "teacher").mkdir()
        (tmp_path / "teacher/spec.json").write_text(json.dumps(spec))
        with pytest.raises(CacheError, match=rf"teacher/spec\.json: {message}"):
            Member.open(LocalFolder(tmp_path), "teacher")

    def test_only_a_new_setting_needs_format_2(self):
        assert (format_of(SPEC), format_of(FITTED), format_of(PCODEC)) == (1, 1, 2)


def test_a_tile_is_a_whole_piece():
    """32 rows of a tile are the codes that share tables."""
    array = PACKINGS["pcodec"]((N, 0, 0, 0, 0)).array("patch")
    assert array == ArraySpec("patch", (G * W,), "int16", W, "pcodec")
    assert np.prod(array.tail[1:]) == PIECE
