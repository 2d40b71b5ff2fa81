"""Stage two on a partly broken cache: an error, unless `--skip-broken` leaves broken images out and counts them."""

import json
import shutil
import signal
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

import cli
from pipelines import distill, extract
from tests.conftest import CNN, VIT
from unic_cache.ahead import thread_pool
from unic_cache.cache import open_cache
from unic_cache.config import DistillConfig, Views
from unic_cache.errors import BrokenError
from unic_cache.stream.address import Address
from unic_cache.stream.batches import Stream
from unic_cache.stream.pixels import KeptPixels, Pixels, ShardPixels
from unic_cache.stream.rows import usable_rows
from unic_cache.student.run_files import CHECKPOINT
from unic_cache.views.shards import describe

VIEWS = Views("unic", 32, 0)
NAMES = ("000000", "000001", "000002")


@pytest.fixture
def folder(tmp_path, cache_folder) -> Path:
    """A copy of the shared cache, to break."""
    shutil.copytree(cache_folder, tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture
def training(shards, folder, tmp_path):
    def make(**changes) -> DistillConfig:
        fixed = {
            "cache": str(folder), "shards": shards.pattern, "out": str(tmp_path / "run"), "student": "test_vit",
            "img_size": 32, "patch_size": 16, "steps": 12, "batch_size": 8, "lr": 1e-3, "log_every": 2,
            "save_every": 100, "tracker": "none", "threads": 2, "skip_broken": True,
        }  # fmt: skip
        return DistillConfig(**{**fixed, **changes})

    return make


def object_of(folder: Path, teacher: str, shard: int, number: int = 0) -> Path:
    found = open_cache(folder).teachers[teacher].member
    dots = ".0" * len(found.arrays[1].row)
    return folder / found.folder / f"features.zarr/000000/{VIEWS.name(number)}/patch/c.{shard}.0{dots}"


def record_of(folder: Path, teacher: str, shard: int, number: int = 0) -> Path:
    return folder / teacher.replace(":", ".") / f"commits/000000/{VIEWS.name(number)}/{shard:06d}.json"


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 64
    path.write_bytes(bytes(data))


def flip_row(folder: Path, teacher: str, shard: int, row: int) -> None:
    array = open_cache(folder).teachers[teacher].member.arrays[1]
    flip(object_of(folder, teacher, shard), row * array.row_bytes + 3)


def batch_of(folder: Path, shards, wanted: list[tuple[int, int]], skip: bool):
    """One batch of (tar, row) under view 0, without a learner."""
    cache = open_cache(folder)
    teachers = [cache.teachers[name] for name in (VIT, CNN)]
    paths = sorted(str(path) for path in shards.folder.glob("*.tar"))
    tars = {
        cache.place(entry.name, entry.keys): (path, entry) for path, entry in zip(paths, describe(paths), strict=True)
    }
    with thread_pool(2) as pool:
        pixels = Pixels(KeptPixels(VIEWS, cache, pool, skip), ShardPixels(VIEWS, tars, pool))
        stream = Stream(cache, teachers, VIEWS, pixels, pool, skip_broken=skip)
        return next(stream.batches(iter([[Address(0, shard, row, 0) for shard, row in wanted]])))


WANTED = [(0, 5), (1, 7), (0, 6), (2, 1), (0, 5), (1, 8)]


def test_only_the_broken_rows_are_disowned_and_all_others_are_as_ever(folder, shards):
    before = batch_of(folder, shards, WANTED, skip=False)
    flip_row(folder, VIT, 0, 5)
    object_of(folder, CNN, 2).unlink()
    with pytest.raises(BrokenError, match=r"rows 5: their bytes are not|c\.2\.0.* is missing"):
        batch_of(folder, shards, WANTED, skip=False)
    after = batch_of(folder, shards, WANTED, skip=True)
    assert after.good_B.tolist() == [False, True, True, False, False, True]
    assert after.broken == 3
    for name, parts in after.parts.items():
        for array, values in parts.items():
            assert torch.equal(values[after.good_B], before.parts[name][array][after.good_B])
    assert not after.parts[VIT]["patch"][0].any()
    assert not after.parts[CNN]["patch"][3].any()


def test_pixels_that_the_teachers_did_not_see_are_disowned(folder, shards, monkeypatch):
    from unic_cache.stream import pixels as sources

    honest = sources.make_view
    monkeypatch.setattr(sources, "make_view", lambda image, views, key, *rest: honest(image, views, key + 1, *rest))
    assert batch_of(folder, shards, WANTED, skip=True).broken == len(WANTED)


def test_kept_pixels_that_are_broken_are_disowned(folder, shards, settings):
    extract.run(settings(folder, teachers=(), weights=(), keep_views=True))
    flip(folder / f"views/features.zarr/000000/{VIEWS.name(0)}/rgb/c.0.0.0.0.0", 5 * 32 * 32 * 3 + 1)
    with pytest.raises(BrokenError, match="views, view unic-32-0-000 of shard 000000, rgb, rows 5"):
        batch_of(folder, shards, WANTED, skip=False)
    assert batch_of(folder, shards, WANTED, skip=True).good_B.tolist() == [False, True, True, True, False, True]
    flip(folder / f"views/commits/000000/{VIEWS.name(0)}/000001.json", 40)
    assert batch_of(folder, shards, WANTED, skip=True).good_B.tolist() == [False, False, True, True, False, False]


@pytest.mark.parametrize("damage", ["flipped", "missing"])
def test_units_without_a_readable_record_are_left_out_and_counted(folder, damage):
    path = record_of(folder, CNN, 1, number=1)
    if damage == "flipped":
        flip(path, 40)
    else:
        path.unlink()
    cache = open_cache(folder)
    teachers = list(cache.teachers.values())
    with pytest.raises(BrokenError, match="000001"):
        usable_rows(cache, teachers, VIEWS, (0, 1), NAMES)
    rows, snapshot = usable_rows(cache, teachers, VIEWS, (0, 1), NAMES, skip_broken=True)
    assert (len(rows), rows.left_out) == (37 + 5, 40)
    assert set(rows.shard.tolist()) == {0, 2}
    assert str(path.relative_to(folder)) not in snapshot


class TestRuns:
    def test_refuse_by_default(self, training, folder):
        flip_row(folder, VIT, 0, 5)
        with pytest.raises(BrokenError, match=r"patch, rows 5: their bytes .* run `unic-cache verify`"):
            distill.run(training(skip_broken=False))

    def test_go_on_and_count_in_the_log_and_at_the_end(self, training, folder, tmp_path):
        for row in range(10):
            flip_row(folder, VIT, 0, row)
        object_of(folder, CNN, 2, number=1).unlink()
        record_of(folder, VIT, 1).write_bytes(b"{}")
        done = distill.run(training())
        log = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
        assert done.left_out == 40
        assert done.broken == sum(line["broken"] for line in log) >= 10 + 5
        assert all(line["loss"] > 0 for line in log)

    def test_are_those_of_a_whole_cache_where_nothing_is_broken(self, training, tmp_path):
        distill.run(training(out=str(tmp_path / "one")))
        distill.run(training(out=str(tmp_path / "other"), skip_broken=False))
        one, other = (load_file(tmp_path / name / "encoder.safetensors") for name in ("one", "other"))
        assert all(torch.equal(one[name], other[name]) for name in one)

    def test_survive_batches_with_nothing_good_in_them(self, training, folder, tmp_path):
        for shard in range(3):
            for number in (0, 1):
                object_of(folder, VIT, shard, number).unlink()
        done = distill.run(training(steps=4, log_every=1))
        assert done.broken == 4 * 8
        assert done.loss == 0

    def test_stopped_and_resumed_equal_never_stopped(self, training, folder, tmp_path, monkeypatch):
        for row in range(20):
            flip_row(folder, VIT, 1, row)
        distill.run(training(out=str(tmp_path / "whole")))
        honest, calls = distill.set_rate, iter(range(1, 1000))

        def stopping(*arguments):
            if next(calls) == 5:
                signal.raise_signal(signal.SIGTERM)
            return honest(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(distill, "set_rate", stopping)
            with pytest.raises(KeyboardInterrupt):
                distill.run(training(out=str(tmp_path / "parts")))
        distill.run(training(out=str(tmp_path / "parts"), resume=True))
        for file in (CHECKPOINT, "encoder.safetensors"):
            one, other = (load_file(tmp_path / name / file) for name in ("whole", "parts"))
            assert all(torch.equal(one[name], other[name]) for name in one), file

    def test_that_met_a_broken_row_can_be_resumed_with_the_flag(self, training, folder, monkeypatch):
        honest, calls = distill.set_rate, iter(range(1, 1000))

        def stopping(*arguments):
            if next(calls) == 3:
                signal.raise_signal(signal.SIGTERM)
            return honest(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(distill, "set_rate", stopping)
            with pytest.raises(KeyboardInterrupt):
                distill.run(training(skip_broken=False))
        for row in range(37):
            flip_row(folder, VIT, 0, row)
        assert distill.run(training(resume=True)).broken > 0

    def test_held_out_rows_that_are_broken_do_not_count(self, training, folder, tmp_path):
        for row in range(3):
            flip_row(folder, VIT, 2, row)
        distill.run(training(steps=2, val_shards=training().shards.replace("*", "000002"), out=str(tmp_path / "v")))
        line = [json.loads(text) for text in (tmp_path / "v/log.jsonl").read_text().splitlines()][-1]
        assert (line["kind"], line["broken"]) == ("val", 3)

    def test_say_so_on_the_command_line(self, training, folder):
        record_of(folder, VIT, 1).unlink()
        config = training(steps=2)
        flags = [
            f"--{name.replace('_', '-')}={getattr(config, name)}" for name in ("cache", "shards", "out", "student")
        ]
        flags += ["--img-size=32", "--patch-size=16", "--steps=2", "--batch-size=8", "--tracker=none", "--skip-broken"]
        done = CliRunner().invoke(cli.main, ["distill", *flags])
        assert done.exit_code == 0, done.output
        assert "Broken: 40 images were left out, and images were skipped 0 times" in done.output
