"""Stage one with `--tokens`: a sample of each view's patch tokens is kept, at places that anybody can work out."""

import dataclasses

import numpy as np
import pytest
import torch

from pipelines import extract
from pipelines.extracting import teacher_weights
from tests.conftest import CNN, VIT, tree
from unic_cache.cache import CachedTeacher, open_cache
from unic_cache.errors import CacheError
from unic_cache.store.sampling import random_positions

WIDE = "timm:test_vit@64"  # 4 x 4 tokens
KEPT = 5
NAMES = ("unic-32-0-000", "unic-32-0-001")


@pytest.fixture(scope="module")
def extracting(settings, weights):
    """Runs of `extract` with one teacher of 16 tokens."""

    def run(folder, **changes) -> CachedTeacher:
        extract.run(settings(folder, **{"teachers": (WIDE,), "weights": ((WIDE, str(weights[VIT])),), **changes}))
        return open_cache(folder).teachers[WIDE]

    return run


@pytest.fixture(scope="module")
def whole(tmp_path_factory, extracting):
    """All tokens, to compare with; float16, and never to be written to."""
    return extracting(tmp_path_factory.mktemp("whole") / "cache")


def tokens_of(teacher: CachedTeacher) -> dict[str, torch.Tensor]:
    """Every standardized token of both views, in order."""
    cache = open_cache(teacher.member.location.url)
    units = [cache.unit(0, shard, name) for name in NAMES for shard in range(3)]
    found = [teacher.features(teacher.record(unit), range(unit.rows)) for unit in units]
    return {kind: torch.cat([features[kind] for features in found]) for kind in ("cls", "patch")}


def places_in(teacher: CachedTeacher, count: int = KEPT) -> torch.Tensor:
    """(B, N, 1) where the kept tokens of both views lie in the grid."""
    cache = open_cache(teacher.member.location.url)
    keys = [(key, number) for number in (0, 1) for shard in range(3) for key in cache.entry(0, shard).keys]
    return torch.from_numpy(random_positions(0, keys, (4, 4), count))[..., None]


def test_f16_keeps_exactly_the_tokens_at_the_random_positions(tmp_path, extracting, whole):
    some = extracting(tmp_path / "cache", tokens=KEPT)
    assert some.codec.arrays[1].row == (KEPT, 64)
    all_tokens, kept = tokens_of(whole), tokens_of(some)
    assert torch.equal(kept["cls"], all_tokens["cls"])
    assert torch.equal(kept["patch"], all_tokens["patch"].take_along_dim(places_in(some), dim=1))
    for kind in ("cls", "patch"):  # the statistics are of all tokens
        assert np.array_equal(some.calibration.mean[kind], whole.calibration.mean[kind])
        assert np.array_equal(some.calibration.std[kind], whole.calibration.std[kind])
        assert np.array_equal(some.calibration.covariance[kind], whole.calibration.covariance[kind])


@pytest.mark.parametrize(("codec", "cosine"), [("int8", 0.9995), ("int4", 0.99), ("klt", 0.95)])
def test_other_codecs_keep_the_same_tokens_as_well_as_they_can(tmp_path, extracting, whole, codec, cosine):
    some = extracting(tmp_path / "cache", codec=codec, tokens=KEPT)
    expected = tokens_of(whole)["patch"].take_along_dim(places_in(some), dim=1)
    found = torch.cosine_similarity(tokens_of(some)["patch"], expected, dim=-1)
    assert found.mean() > cosine
    assert found.min() > cosine - 0.1


def test_codes_of_a_token_do_not_depend_on_its_neighbours(tmp_path, extracting):
    some, every = (extracting(tmp_path / str(count), codec="int4", tokens=count, views=1) for count in (KEPT, 16))
    assert np.array_equal(places_in(every, 16)[..., 0], np.tile(np.arange(16), (164, 1)))
    cache = open_cache(tmp_path / "16")
    unit = cache.unit(0, 1, NAMES[0])
    fewer, more = (teacher.parts(teacher.record(unit), range(40)) for teacher in (some, every))
    places = random_positions(0, [(key, 0) for key in cache.entry(0, 1).keys], (4, 4), KEPT)
    assert np.array_equal(fewer["patch"], np.take_along_axis(more["patch"], places[..., None], axis=1))
    assert np.array_equal(fewer["patch_scale"], np.take_along_axis(more["patch_scale"], places, axis=1))


@pytest.mark.parametrize("codec", ["f16", "klt"])
def test_a_run_that_does_not_say_keeps_as_many_as_before(tmp_path, extracting, codec):
    extracting(tmp_path / "cache", codec=codec, quality=0.97 if codec == "klt" else None, tokens=KEPT, views=1)
    before = tree(tmp_path / "cache")
    again = extracting(tmp_path / "cache", codec=None)
    assert {name: tree(tmp_path / "cache")[name] for name in before} == before
    assert (again.spec["codec"], again.spec["tokens"], again.spec.get("quality")) == (
        codec,
        KEPT,
        0.97 if codec == "klt" else None,
    )
    assert tokens_of(again)["patch"].shape == (164, KEPT, 64)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ({"tokens": 5}, {"tokens": 6}, r"was made with tokens 5, not 6; use the same settings, or another --cache"),
        ({}, {"tokens": 6}, r"was made with tokens null, not 6; use"),
        ({"codec": "klt"}, {"codec": "klt", "quality": 0.9}, r"was made with quality 0\.96, not 0\.9; use"),
        ({"codec": "klt"}, {"codec": "f16"}, r"was made with codec \"klt\", not \"f16\"; use"),
    ],
)
def test_other_settings_than_before_are_refused_and_both_named(tmp_path, extracting, first, second, message):
    extracting(tmp_path / "cache", views=1, **first)
    before = tree(tmp_path / "cache")
    with pytest.raises(CacheError, match=rf"timm\.test_vit@64 {message}"):
        extracting(tmp_path / "cache", **second)
    assert tree(tmp_path / "cache") == before


@pytest.mark.parametrize("codec", ["f16", "klt"])
def test_more_tokens_than_the_grid_has_are_refused(tmp_path, extracting, codec):
    message = (
        r"timm\.test_vit@64/spec\.json: stores 17 tokens of each view, but the grid of 4 x 4 has 16; choose fewer with"
    )
    with pytest.raises(CacheError, match=message):
        extracting(tmp_path / "cache", codec=codec, tokens=17)
    assert not [name for name in tree(tmp_path / "cache") if name.startswith("timm")]


@pytest.mark.parametrize("codec", ["klt", "int8"])
def test_a_teacher_without_patch_tokens_has_none_to_sample(tmp_path, settings, monkeypatch, codec):
    """It may stand beside one that has: --tokens and --codec are of those that have."""
    resolve = teacher_weights.resolve

    def without(name: str):
        return dataclasses.replace(resolve(name), **({"grid_rules": {}} if name == CNN else {}))

    monkeypatch.setattr(teacher_weights, "resolve", without)
    extract.run(settings(tmp_path / "cache", codec=codec, tokens=3))
    cache = open_cache(tmp_path / "cache")
    assert [array.name for array in cache.teachers[CNN].codec.arrays] == ["cls"]
    unit = cache.unit(0, 0, NAMES[0])
    alone, both = (cache.teachers[name] for name in (CNN, VIT))
    features = alone.features(alone.record(unit), range(37))
    assert features.keys() == {"cls"}
    assert features["cls"].isfinite().all()
    assert both.features(both.record(unit), range(37))["patch"].shape == (37, 3, 64)
    assert alone.calibration.fidelity.keys() == {"cls"}
