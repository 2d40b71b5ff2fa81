"""What an extraction leaves open is as the cache has it, and another value is said."""

import dataclasses
from types import SimpleNamespace

import pytest

from pipelines import extract, plan
from pipelines.extracting.defaults import kept_alike, settled
from tests.conftest import CNN, VIT, make_shards
from unic_cache.cache import Cache, open_cache
from unic_cache.config import DEFAULT_VIEWS, ExtractConfig, PlanConfig, Views
from unic_cache.errors import ConfigError
from unic_cache.files.schemes import open_location
from unic_cache.token_kinds import TokenKind


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("small"), (12,))


@pytest.fixture(scope="module")
def options(settings, small):
    """An extraction of one teacher, with recipe, size, seed, views and codec left open."""
    free = {"views": None, "recipe": None, "size": None, "seed": None, "codec": None}

    def make(cache, **changes):
        one = {"teachers": (VIT,), "weights": settings(cache).weights[:1], "shards": small.pattern}
        return settings(cache, **{**one, **free, "calibration_images": 12, **changes})

    return make


@pytest.fixture(scope="module")
def begun(tmp_path_factory, options):
    """A cache of six views of 48 px and seed 5, 2 tokens of each as int8."""
    folder = tmp_path_factory.mktemp("begun") / "cache"
    extract.run(options(folder, size=48, seed=5, views=6, codec="int8", tokens=2))
    return folder


def found(cache, config):
    done = settled(config, Cache(open_location(cache)))
    return done.kind, done.count


def test_a_new_cache_has_the_papers_settings(tmp_path, options):
    assert found(tmp_path, options(tmp_path)) == (Views("unic", 224, 0), DEFAULT_VIEWS)
    assert found(tmp_path, options(tmp_path, recipe="center")) == (Views("center", 224, 0), 1)


def test_what_is_left_open_is_the_caches_and_nothing_needs_to_be_said(begun, options, capsys):
    assert found(begun, options(begun)) == (Views("unic", 48, 5), 6)
    assert found(begun, options(begun, views=3)) == (Views("unic", 48, 5), 3)
    assert found(begun, options(begun, recipe="center")) == (Views("center", 48, 0), 1)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("asked", "kind"),
    [
        ({"size": 64}, Views("unic", 64, 5)),
        ({"seed": 0}, Views("unic", 48, 0)),
        ({"recipe": "light"}, Views("light", 48, 0)),
        ({"recipe": "center", "size": 32}, Views("center", 32, 0)),
    ],
)
def test_another_value_is_said(begun, options, capsys, asked, kind):
    assert found(begun, options(begun, **asked))[0] == kind
    told = capsys.readouterr().err.replace("\n", " ")
    assert f"this adds {kind.recipe} views of {kind.size} px (seed {kind.seed}) to {begun}" in told
    assert "which has unic views of 48 px (seed 5)" in told


def test_several_kinds_are_asked_about(tmp_path, options):
    cache = tmp_path / "cache"
    extract.run(options(cache, size=32, views=1))
    extract.run(options(cache, size=48, views=1))
    with pytest.raises(ConfigError, match="has views of size 32 and 48; choose one with --size"):
        extract.run(options(cache))


def test_a_begun_cache_is_no_wish_for_less_and_what_it_lacks_of_the_default_is_said(tmp_path, options, capsys):
    """One finished by a release whose default was 4 looks the same as one stopped between two views."""
    cache = tmp_path / "cache"
    extract.run(options(cache, size=48, views=4))
    capsys.readouterr()
    assert found(cache, options(cache)) == (Views("unic", 48, 0), DEFAULT_VIEWS)
    told = capsys.readouterr().err.replace("\n", " ")
    assert f"{cache} has 4 of the 5 views of an image that are the default" in told
    assert "for no more than it has, give --views 4" in told
    assert found(cache, options(cache, views=4)) == (Views("unic", 48, 0), 4)
    assert capsys.readouterr().err == ""


def test_extraction_goes_on_by_the_caches_settings_alone(begun, options, tmp_path):
    assert extract.run(options(begun)).units == 0
    assert extract.run(options(begun, recipe="center")).units == 1
    cache = open_cache(begun)
    assert set(cache.pixels_seen(cache.unit(0, 0, "center-48-0-000"))) == {VIT.replace(":", ".")}


def test_plan_forecasts_what_extract_would_do_with_a_new_teacher(begun, options, monkeypatch):
    seen: list[tuple] = []
    monkeypatch.setattr(plan, "measure", lambda config, *_: config)
    monkeypatch.setattr(plan, "forecast", lambda config, _, asked: seen.append((config.codec, config.tokens, asked)))
    made = {
        field.name: getattr(options(begun, teachers=(CNN,)), field.name) for field in dataclasses.fields(ExtractConfig)
    }
    plan.run(PlanConfig(**made))
    plan.run(PlanConfig(**{**made, "codec": "f16", "tokens": 4}))
    assert seen == [("int8", 2, False), ("f16", 4, True)]


def test_a_new_teacher_is_kept_as_the_others_and_it_is_said(begun, options, capsys):
    done = kept_alike(options(begun, teachers=(CNN,), weights=()), open_cache(begun))
    assert (done.codec, done.quality, done.tokens) == ("int8", None, 2)
    assert f"{CNN}: stored like the cache's other teachers: codec int8, tokens 2" in capsys.readouterr().err
    other = kept_alike(options(begun, teachers=(CNN,), weights=(), codec="f16", tokens=4), open_cache(begun))
    assert (other.codec, other.tokens) == ("f16", 4)
    for asked in ({"quality": 0.98}, {"coder": "pcodec"}):  # settings of klt
        assert kept_alike(options(begun, **asked), open_cache(begun)).codec is None


@pytest.mark.parametrize(
    ("asked", "kept"),
    [
        ({}, ("klt", 0.96, "pcodec")),
        ({"quality": 0.9}, (None, 0.9, "pcodec")),
        ({"coder": "zstd"}, (None, 0.96, "zstd")),
        ({"codec": "klt"}, ("klt", 0.96, "pcodec")),
        ({"codec": "f16"}, ("f16", None, None)),
    ],
)
def test_settings_of_klt_that_are_left_open_are_those_of_a_cache_of_klt(options, tmp_path, asked, kept):
    one = SimpleNamespace(spec={"codec": "klt", "quality": 0.96, "coder": "pcodec"}, kinds={"cls": TokenKind(8)})
    cache = SimpleNamespace(teachers={"a": one, "b": one}, uncalibrated={})
    done = kept_alike(options(tmp_path, **asked), cache)
    assert (done.codec, done.quality, done.coder) == kept


def test_plan_assumes_what_the_cache_has(begun, options, monkeypatch):
    asked: list[PlanConfig] = []

    def stop(config, pool):
        asked.append(config)
        raise ConfigError("far enough")

    monkeypatch.setattr(plan, "make_trial", stop)
    fields = {field.name: getattr(options(begun), field.name) for field in dataclasses.fields(ExtractConfig)}
    with pytest.raises(ConfigError, match="far enough"):
        plan.run(PlanConfig(**fields, student="test_vit", img_size=32, patch_size=16))
    assert (asked[0].kind, asked[0].count) == (Views("unic", 48, 5), 6)


def test_what_is_left_open_survives_json(options, tmp_path):
    config = options(tmp_path)
    assert ExtractConfig.from_json(config.to_json()) == config
