"""Caches in the default codec: compressed chunks, unreadable without their calibration."""

import dataclasses
import re
import shutil

import numpy as np
import pytest
import torch
from crc32c import crc32c
from numcodecs.zstd import Zstd

from pipelines import extract, repair
from pipelines.verifying.metadata import check_calibration
from tests.conftest import VIT, tree
from tests.verify.damage import VIEW, VIT_FOLDER, check, flip, record_of, rewrite
from unic_cache.cache import open_cache
from unic_cache.config import RepairConfig
from unic_cache.errors import CacheError
from unic_cache.store.codecs.klt import Klt
from unic_cache.store.layout import index_bytes
from unic_cache.store.npz import load_npz, save_npz
from unic_cache.store.unit_check import BY_HAND, UNCOMMIT, Finding, check_unit

PATCH = f"{VIT_FOLDER}/features.zarr/000000/{VIEW}/patch/c.0.0.0.0.0"
CALIBRATION = f"{VIT_FOLDER}/calibration.npz"


@pytest.fixture(scope="module")
def extracting(settings, tars):
    """The runs of `extract` that make or repair the cache: one teacher of 4 tokens, 35 and 5 images, one bad."""
    changes = {"shards": str(tars / "*.tar"), "views": 1, "calibration_images": 20, "threads": 1, "codec": "klt"}

    def run(folder) -> extract.Summary:
        weights = settings(folder).weights[:1]
        return extract.run(settings(folder, teachers=(VIT,), weights=weights, **changes))

    return run


@pytest.fixture(scope="module")
def whole(tmp_path_factory, extracting):
    """Read-only."""
    folder = tmp_path_factory.mktemp("fitted") / "cache"
    extracting(folder)
    return folder


def spans(data: bytes, folder) -> np.ndarray:
    """(offset, size) of each chunk of tar 0, from the index at an object's end."""
    return np.frombuffer(data[-index_bytes(open_cache(folder).extent(0)) : -4], "<u8").reshape(-1, 2).astype(int)


def with_spans(chunks: list[bytes], order: list[int]) -> bytes:
    """An object with its chunks in this order and a valid index."""
    offsets = dict(zip(order, np.cumsum([0, *(len(chunks[chunk]) for chunk in order)]), strict=False))
    index = np.array([(offsets[chunk], len(chunks[chunk])) for chunk in range(len(chunks))], "<u8").tobytes()
    return b"".join(chunks[chunk] for chunk in order) + index + crc32c(index).to_bytes(4, "little")


class TestWhole:
    def test_all_of_it_was_read(self, whole, tars, settings):
        weights = settings(whole).weights[:1]
        report = check(whole, shards=str(tars / "*.tar"), pixel_check=5, teacher_check=10, weights=weights)
        assert (report.state, report.broken, report.foreign, report.units, report.rows) == ("whole", [], [], 2, 40)
        assert report.bytes == sum(len(data) for name, data in tree(whole).items() if "/c." in name)
        assert report.cosines[VIT] > 0.8  # the answer to another image is at about 0

    def test_two_extractions_are_equal_to_the_byte(self, tmp_path, whole, extracting):
        extracting(tmp_path / "cache")
        assert tree(tmp_path / "cache") == tree(whole)

    def test_clipped_codes_of_good_rows_are_counted_in_the_record(self, tmp_path, extracting, monkeypatch):
        """Of both kinds of tokens; neither the bad row 3 of tar 0 nor the padding of last batches counts."""
        encode = Klt.encode
        monkeypatch.setattr(
            Klt,
            "encode",
            lambda self, kind, tokens_BTD: dataclasses.replace(
                encode(self, kind, tokens_BTD), clipped_B=torch.full((len(tokens_BTD),), 3)
            ),
        )
        extracting(tmp_path / "cache")
        assert [record_of(tmp_path / "cache", VIT, shard).clipped for shard in (0, 1)] == [2 * 3 * 34, 2 * 3 * 5]


class TestFlips:
    @pytest.mark.parametrize("shard", [0, 1])
    def test_in_a_units_objects_and_record_are_all_reported(self, whole, broken, shard):
        """Every seventh byte, and the whole index."""
        record, member = record_of(whole, VIT, shard), open_cache(broken).teachers[VIT].member
        index = index_bytes(record.unit.extent)
        for name in (*record.sizes, record.name):
            data = (whole / name).read_bytes()
            last = range(max(len(data) - index, 0), len(data))
            for place in sorted({*range(0, len(data), 7), *last}):
                flip(broken / name, place, 1 << place % 8)
                findings = check_unit(member, record.unit).findings
                assert [(finding.file, finding.mend) for finding in findings] == [(name, UNCOMMIT)], (name, place)
                (broken / name).write_bytes(data)

    def test_in_the_calibration_are_all_reported(self, whole, broken):
        """Every 101st byte; a third of them are in the codec's arrays."""
        data = (whole / CALIBRATION).read_bytes()
        member = open_cache(broken).teachers[VIT].member
        for place in range(0, len(data), 101):
            flip(broken / CALIBRATION, place, 1 << place % 8)
            findings: list[Finding] = []
            assert check_calibration(member, True, findings) is None
            assert [(finding.file, finding.mend) for finding in findings] == [(CALIBRATION, BY_HAND)], place
            (broken / CALIBRATION).write_bytes(data)

    def test_are_found_where_they_are_by_the_whole_check(self, broken):
        first, second = spans((broken / PATCH).read_bytes(), broken)[:2]
        flip(broken / PATCH, first[0] + first[1] // 2)
        (finding,) = check(broken).broken
        assert (finding.file, finding.array, finding.rows) == (PATCH, "patch", tuple(range(32)))
        flip(broken / PATCH, first[0] + first[1] // 2)
        flip(broken / PATCH, second[0] + second[1] - 1)
        (finding,) = check(broken).broken
        assert finding.rows == (32, 33, 34)
        assert finding.why == "bytes are not as committed"


class TestChunks:
    def test_that_lie_in_another_order_are_as_good(self, broken):
        """A chunk is identified by its checksum, not its place."""
        data = (broken / PATCH).read_bytes()
        chunks = [data[offset : offset + size] for offset, size in spans(data, broken)[:2]]
        (broken / PATCH).write_bytes(with_spans(chunks, [1, 0]))
        assert check(broken).exit_code == 0

    def test_that_changed_places_are_reported(self, broken):
        data = (broken / PATCH).read_bytes()
        chunks = [data[offset : offset + size] for offset, size in spans(data, broken)[:2]]
        (broken / PATCH).write_bytes(with_spans(chunks[::-1], [0, 1]))
        (finding,) = check(broken).broken
        assert finding.rows == tuple(range(35))

    def test_of_the_same_rows_compressed_otherwise_are_reported(self, broken):
        data = (broken / PATCH).read_bytes()
        chunks = [data[offset : offset + size] for offset, size in spans(data, broken)[:2]]
        chunks[0] = Zstd(level=9, checksum=True).encode(Zstd().decode(chunks[0]))
        object_bytes = with_spans(chunks, [0, 1])
        (broken / PATCH).write_bytes(object_bytes)
        assert "bytes instead of" in check(broken).broken[0].why
        rewrite(broken, VIT, 0, sizes={**record_of(broken, VIT, 0).sizes, PATCH: len(object_bytes)})
        (finding,) = check(broken).broken
        assert (finding.file, finding.rows) == (PATCH, tuple(range(32)))

    def test_with_something_between_them_are_reported(self, broken):
        data = (broken / PATCH).read_bytes()
        chunks = [data[offset : offset + size] for offset, size in spans(data, broken)[:2]]
        object_bytes = b"hidden" + with_spans(chunks, [0, 1])
        (broken / PATCH).write_bytes(object_bytes)
        rewrite(broken, VIT, 0, sizes={**record_of(broken, VIT, 0).sizes, PATCH: len(object_bytes)})
        (finding,) = check(broken).broken
        assert finding.why == "its index is broken"


class TestRepair:
    def test_and_extract_give_the_bytes_of_an_undamaged_cache(self, whole, broken, extracting):
        flip(broken / PATCH, 100)
        flip(broken / VIT_FOLDER / "features.zarr/000000" / VIEW / "patch/zarr.json", 30)
        (broken / PATCH.replace("c.0.", "c.1.")).unlink()
        done = repair.run(RepairConfig(str(broken), threads=1))
        assert (len(done.done), done.left, done.to_extract) == (3, [], True)
        assert check(broken).exit_code == 3
        extracting(broken)
        assert tree(broken) == tree(whole)

    def test_of_units_leaves_a_lost_calibration_to_extract(self, whole, broken, extracting):
        flip(broken / PATCH, 100)
        (broken / CALIBRATION).unlink()
        before = tree(broken)
        done = repair.run(RepairConfig(str(broken), threads=1))
        assert (done.done, len(done.left)) == ([], 1)
        assert tree(broken) == before
        extracting(broken)
        repair.run(RepairConfig(str(broken), threads=1))
        extracting(broken)
        assert tree(broken) == tree(whole)


class TestCalibrations:
    def test_a_lost_one_is_a_finding_and_extract_makes_it_again(self, whole, broken, extracting):
        (broken / CALIBRATION).unlink()
        report = check(broken)
        assert (report.state, report.exit_code, report.units, report.foreign) == ("broken", 1, 0, [])
        (finding,) = report.broken
        assert (finding.file, finding.mend) == (CALIBRATION, BY_HAND)
        assert "is missing; restore a copy; or remove it and run the command that made it again" in finding.why
        assert extracting(broken).units == 0
        assert tree(broken) == tree(whole)

    def test_one_that_is_lost_before_anything_was_committed_is_no_fault(self, whole, broken, extracting):
        (broken / CALIBRATION).unlink()
        shutil.rmtree(broken / VIT_FOLDER / "commits")
        report = check(broken)
        assert (report.state, report.exit_code, report.broken, report.foreign) == ("incomplete", 3, [], [])
        extracting(broken)
        assert tree(broken) == tree(whole)

    def test_one_of_other_images_is_not_made_in_its_place(self, broken, settings, tars):
        (broken / CALIBRATION).unlink()
        weights = settings(broken).weights[:1]
        config = settings(broken, teachers=(VIT,), weights=weights, shards=str(tars / "*.tar"), codec=None, seed=1)
        message = (
            r"calibration\.npz is missing, and the one made now has checksum \d+, not \d+ as when view unic-32-0-000"
        )
        with pytest.raises(CacheError, match=message):
            extract.run(config)
        assert not (broken / CALIBRATION).exists()

    @pytest.mark.parametrize(
        ("change", "why"),
        [
            ({"klt_order": None}, r"holds no codec klt \(klt_order is missing, or not of int32 with 1 axes\)"),
            ({"klt_step": np.array(-1.0)}, r"holds a codec klt that does not fit its tokens"),
            (
                {"klt_rotation": np.stack([np.eye(3, dtype="f4")] * 2)},
                r"holds a codec klt that does not fit its tokens",
            ),
            (
                {"klt_rotation": np.stack([np.eye(65, dtype="f4")] * 2)},
                r"of 4 tokens of 65 channels, but the spec says 4 of 64; they belong to two caches",
            ),
        ],
    )
    def test_one_of_another_codec_is_a_finding_and_an_error_to_readers(self, broken, change, why):
        arrays = load_npz((broken / CALIBRATION).read_bytes(), "x") | change
        kept = {name: values for name, values in arrays.items() if values is not None}
        (broken / CALIBRATION).write_bytes(save_npz(kept))
        (finding,) = check(broken).broken
        assert finding.file == CALIBRATION
        assert re.search(why, finding.why)
        with pytest.raises(CacheError, match=rf"calibration\.npz: .*{why}"):
            open_cache(broken)
