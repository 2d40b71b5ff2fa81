"""Which tars are held out: paths that are there, names of the cache, and what earlier runs named."""

import dataclasses
import json
import shutil

import pytest

from pipelines import distill, extract, inspect
from pipelines.recode import run as recode
from pipelines.training.training_set import Snapshot
from tests.conftest import make_shards, picture, png, tree, write_tar
from tests.verify.damage import check
from unic_cache.cache import open_cache
from unic_cache.config import InspectConfig, RecodeConfig
from unic_cache.errors import CacheError, ConfigError, ShardError
from unic_cache.stream.held_out import held_out, hold_out


@pytest.fixture(scope="module")
def kept(tmp_path_factory, settings):
    """A cache with its pixels; copied by each test."""
    folder = tmp_path_factory.mktemp("kept") / "cache"
    extract.run(settings(folder, teachers=("timm:test_vit@32",), weights=settings(folder).weights[:1], keep_views=True))
    return folder


@pytest.fixture
def train(kept, training, tmp_path):
    """Trains for a step on a copy of the cache; the names of the tars, (train, val)."""
    shutil.copytree(kept, tmp_path / "cache")
    runs: list[str] = []

    def run(**changes):
        runs.append(str(tmp_path / f"run{len(runs)}"))
        config = training(**{"cache": str(tmp_path / "cache"), "out": runs[-1], "shards": None, "steps": 1, **changes})
        distill.run(config)
        found = Snapshot.load(distill.Path(runs[-1]))
        return found.train, found.val

    run.cache = tmp_path / "cache"
    return run


ALL = ("000000", "000001", "000002")


@pytest.mark.parametrize(
    "pattern", ["nowhere/000001.tar", "nowhere/{000001..000002}.tar", "./000001.tar", "gone/*.tar"]
)
def test_a_path_that_is_not_there_is_an_error_and_no_name(train, pattern):
    with pytest.raises(ShardError, match=r"^--val-shards: no shard.*give names from the cache without a folder"):
        train(val_shards=pattern)
    assert held_out(open_cache(train.cache)) == ()


def test_names_of_the_cache_are_said_to_be_such_and_told(train, capsys):
    assert train(val_shards="{000001,000002}") == (("000000",), ("000001", "000002"))
    assert "held out of training, by their names in the cache: 000001, 000002" in capsys.readouterr().err
    with pytest.raises(CacheError, match=r"names '00007\*', but the cache has 000000, 000001, 000002"):
        train(val_shards="{000001,00007*}")


def test_what_was_held_out_once_stays_out_and_is_said(train, shards, capsys):
    train(val_shards=str(shards.folder / "000001.tar"))
    before = tree(train.cache)
    for pattern in (None, shards.pattern):
        assert train(shards=pattern) == (("000000", "000002"), ())
        said = "held out by an earlier run or by `shard`: 000001; --use-held-out trains on them"
        assert said in capsys.readouterr().err
    assert train(val_shards="000002") == (("000000",), ("000002",))
    assert train(use_held_out=True)[0] == ALL
    assert "trained on, although held out earlier: 000001, 000002" in capsys.readouterr().err
    assert before.items() <= tree(train.cache).items()
    with pytest.raises(ConfigError, match="every tar is held out, 000001 by an earlier run"):
        train(shards=str(shards.folder / "000001.tar"))


def test_a_refused_run_holds_nothing_out(train):
    before = tree(train.cache)
    with pytest.raises(ConfigError, match="999"):
        train(val_shards="000001", tokens=999)
    assert tree(train.cache) == before


def test_inspect_shows_what_is_held_out(train):
    train(val_shards="000002")
    assert inspect.run(InspectConfig(str(train.cache)))["held_out"] == ["000002"]


def test_a_cache_that_cannot_be_written_to_still_serves_and_says_that_it_forgets(train, monkeypatch, capsys):
    monkeypatch.setattr(
        "pipelines.training.split.hold_out", lambda *_: (_ for _ in ()).throw(PermissionError("read-only"))
    )
    assert train(val_shards="000001")[1] == ("000001",)
    assert "cannot remember what is held out" in capsys.readouterr().err


def test_the_memory_is_the_caches_own_and_goes_where_it_goes(train, tmp_path):
    hold_out(open_cache(train.cache), ["000002"])
    assert (check(train.cache).exit_code, check(train.cache).foreign) == (0, [])
    recode(RecodeConfig(str(train.cache), str(tmp_path / "less"), codec="int8", device="cpu"))
    assert held_out(open_cache(tmp_path / "less")) == ("000002",)
    (tmp_path / "less/held-out/000000/000002.json").write_text(json.dumps({"name": "another"}))
    with pytest.raises(CacheError, match=r"held-out/000000/000002.json: does not hold out the tar '000002'"):
        held_out(open_cache(tmp_path / "less"))


def test_a_tar_of_other_pictures_under_a_known_name_is_told_before_a_step(train, tmp_path, shards, cache_folder):
    write_tar(tmp_path / "val/000002.tar", [(f"image{n:05d}", png(picture(n + 500)), n % 3) for n in range(77, 82)])
    other = str(tmp_path / "val/000002.tar")
    with pytest.raises(CacheError, match=r"val/000002.tar, row \d \(image\d+.png\): another picture than"):
        train(val_shards=other)
    shutil.copytree(cache_folder, tmp_path / "plain")
    with pytest.raises(CacheError, match=r"val/000002.tar, row .*: another picture than"):
        train(val_shards=other, cache=str(tmp_path / "plain"), shards=shards.pattern)


@pytest.mark.parametrize("flag", ["shards", "val_shards"])
def test_a_tar_that_two_patterns_name_does_not_count_twice(train, shards, flag):
    twice = f"{shards.folder}/00000[12].tar::{shards.folder}/000001.tar"
    with pytest.raises(ShardError, match=r"two shards are called '000001'; .* rename one, or give one that is named"):
        train(**{"shards": shards.pattern, flag: twice})


def test_a_held_out_image_that_is_trained_on_in_another_tar_is_counted(tmp_path, settings, training, capsys):
    samples = [(f"image{n:05d}", png(picture(n)), n % 3) for n in range(12)]
    write_tar(tmp_path / "tars/a.tar", samples)
    write_tar(tmp_path / "tars/b.tar", [*samples[9:], ("other", png(picture(99)), 0)])
    one = {"teachers": ("timm:test_vit@32",), "weights": settings(tmp_path).weights[:1]}
    both = {"shards": str(tmp_path / "tars/*.tar"), "cache": str(tmp_path / "cache")}
    extract.run(settings(tmp_path / "cache", **one, shards=both["shards"], calibration_images=12, views=1))
    distill.run(training(**both, steps=1, val_shards=str(tmp_path / "tars/b.tar")))
    assert "3 of 4 held-out images are also trained on, pixel for pixel" in capsys.readouterr().err


def test_shards_that_are_not_there_are_told_although_views_are_kept(train):
    with pytest.raises(ShardError, match="no shard"):
        train(shards="nowhere/*.tar")


def test_a_run_that_knew_fewer_settings_is_resumed(train, training):
    train(steps=2, val_shards="000001")
    out = train.cache.parent / "run0"
    settings = json.loads((out / "config.json").read_text())
    del settings["use_held_out"]
    settings["recipe"] = "unic"
    (out / "config.json").write_text(json.dumps(settings))
    (out / "encoder.safetensors").unlink()  # else the run is finished
    config = training(cache=str(train.cache), out=str(out), shards=None, steps=2, val_shards="000001")
    assert distill.run(dataclasses.replace(config, resume=True)).steps == 2


def test_the_views_trained_on_are_the_only_ones_of_the_cache(tmp_path, settings, training):
    shards = make_shards(tmp_path / "tars", (12,))
    one = {"teachers": ("timm:test_vit@32",), "weights": settings(tmp_path).weights[:1], "shards": shards.pattern}
    extract.run(settings(tmp_path / "cache", **one, recipe="light", calibration_images=12, views=1))
    distill.run(training(cache=str(tmp_path / "cache"), shards=shards.pattern, steps=1))
    assert Snapshot.load(tmp_path / "run").recipe == "light"
