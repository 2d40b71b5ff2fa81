"""Training on a cache in which one teacher is half done: --allow-missing."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pipelines import distill
from pipelines.training.finished_run import open_finished
from tests.conftest import CNN, VIT, log_of, losses_of
from tests.test_distill import StopAfter
from unic_cache.ahead import thread_pool
from unic_cache.cache import open_cache
from unic_cache.config import DistillConfig, Views
from unic_cache.errors import BrokenError, CacheError, ConfigError
from unic_cache.stream.address import Address
from unic_cache.stream.batches import Stream
from unic_cache.stream.pixels import KeptPixels, Pixels, ShardPixels
from unic_cache.stream.rows import usable_rows
from unic_cache.student.export import load_encoder
from unic_cache.student.run_files import CHECKPOINT
from unic_cache.views.shards import describe

VIEWS = Views("unic", 32, 0)
NAMES = ("000000", "000001", "000002")
LACKED = ((1, 1), (2, 0), (2, 1))  # tar, view


def commit(cache, teacher: str, shard: int, number: int):
    return cache / teacher.replace(":", ".") / f"commits/000000/{VIEWS.name(number)}/{shard:06d}.json"


@pytest.fixture
def half(training):
    """A config of a cache in which the CNN lacks tar 1 under view 1 and tar 2 altogether; the records are put aside."""
    config = training(allow_missing=True, skip_broken=False)
    cache = Path(config.cache)
    for shard, number in LACKED:
        path = commit(cache, CNN, shard, number)
        path.rename(cache.parent / f"{shard}-{number}.json")
    return config


def test_every_image_that_some_teacher_has_is_used_and_the_missing_ones_are_counted(half):
    cache = open_cache(half.cache)
    teachers = [cache.teachers[name] for name in (CNN, VIT)]
    with pytest.raises(BrokenError, match=f"{CNN} has no view unic-32-0-001 of shard 000001.*--allow-missing"):
        usable_rows(cache, teachers, VIEWS, (0, 1), NAMES)
    rows, records = usable_rows(cache, teachers, VIEWS, (0, 1), NAMES, may_lack=True)
    assert (len(rows), rows.left_out, rows.lacking) == (82, 0, {CNN: 40 + 5 + 5})
    assert len(records) == 6 + 3
    one, _ = usable_rows(cache, teachers[:1], VIEWS, (0, 1), NAMES, may_lack=True)
    assert (len(one), one.left_out) == (37, 45)  # without any teacher under some view
    then, _ = usable_rows(cache, teachers, VIEWS, (0, 1), NAMES, may_lack=True, known=set(records) - {min(records)})
    assert then.lacking == {CNN: 40 + 5 + 5 + 37}


def test_batches_say_who_is_missing_and_all_else_is_as_ever(half, shards):
    wanted = [Address(0, shard, row, number) for shard, row, number in ((0, 5, 1), (1, 7, 0), (1, 7, 1), (2, 1, 0))]
    cache = open_cache(half.cache)
    teachers = [cache.teachers[name] for name in (CNN, VIT)]
    _, records = usable_rows(cache, teachers, VIEWS, (0, 1), NAMES, may_lack=True)
    paths = sorted(str(path) for path in shards.folder.glob("*.tar"))
    tars = {cache.place(one.name, one.keys): (path, one) for path, one in zip(paths, describe(paths), strict=True)}
    with thread_pool(2) as pool:
        pixels = Pixels(KeptPixels(VIEWS, cache, pool), ShardPixels(VIEWS, tars, pool))
        stream = Stream(cache, teachers, VIEWS, pixels, pool, known=set(records))
        (batch,) = stream.batches(iter([wanted]))
    assert batch.good_B.all()
    assert batch.present_Bn.tolist() == [[True, True], [True, True], [False, True], [False, True]]
    for number, teacher in enumerate(teachers):
        for place, item in enumerate(wanted):
            unit = cache.unit(0, item.shard, VIEWS, item.number)
            parts = {name: values[place].numpy() for name, values in batch.parts[teacher.name].items()}
            if batch.present_Bn[place, number]:
                kept = teacher.parts(teacher.record(unit), [item.row])
                assert all(np.array_equal(parts[name], kept[name][0]) for name in kept)
            else:
                assert not any(values.any() for values in parts.values())


@pytest.mark.slow
def test_a_run_says_so_and_resumes_on_the_rows_that_it_began_with(half, tmp_path, capsys, monkeypatch):
    whole, parts = (dataclasses.replace(half, out=str(tmp_path / name)) for name in ("whole", "parts"))
    distill.run(whole)
    said = capsys.readouterr().err.replace("\n", " ")
    assert f"{CNN} is missing for 50 of 164 (image, view) pairs (30.5%); it counts as dropped there" in said
    assert load_encoder(tmp_path / "whole")[2]["missing"] == {CNN: 50}

    StopAfter(monkeypatch, 4)
    with pytest.raises(KeyboardInterrupt, match="stopped after step 4 of 6"):
        distill.run(parts)
    monkeypatch.undo()
    for shard, number in LACKED:  # meanwhile the extraction goes on
        (tmp_path / f"{shard}-{number}.json").rename(commit(Path(half.cache), CNN, shard, number))
    distill.run(dataclasses.replace(parts, resume=True))
    assert losses_of(tmp_path / "parts")[-2:] == losses_of(tmp_path / "whole")[-2:]
    one, other = (load_file(tmp_path / name / CHECKPOINT) for name in ("whole", "parts"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    cache = open_cache(half.cache)
    assert len(open_finished(tmp_path / "parts", half, cache).rows(cache)) == 77  # under view 0, without tar 2


def test_a_teacher_counts_for_the_images_that_it_has_alone(half, tmp_path, capsys):
    distill.run(dataclasses.replace(half, balancing="none", steps=1, batch_size=82, log_every=1))
    said = capsys.readouterr().err.replace("\n", " ")
    assert f"{CNN} is missing for 50 of 164 (image, view) pairs (30.5%); it counts as dropped there" in said
    (line,) = log_of(tmp_path / "run")
    assert line["teachers"][CNN]["coefficient"] == pytest.approx(77 / 82)  # under view 0, without tar 2
    assert line["teachers"][VIT]["coefficient"] == 1


def test_what_makes_no_sense_is_refused(half, tmp_path):
    with pytest.raises(ConfigError, match="--allow-missing is for teachers half done in a cache; --online runs them"):
        DistillConfig(allow_missing=True, online=True)
    shutil.rmtree(commit(tmp_path / "cache-trained-on", CNN, 0, 0).parent.parent)
    with pytest.raises(CacheError, match=f"{CNN} has none of these views; name the others with --teacher"):
        distill.run(half)
