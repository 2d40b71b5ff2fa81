"""--crop-scale is part of what a view is: its pixels, its name, and which cached views a run takes."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest

from pipelines import distill, extract
from pipelines.extracting.defaults import settled
from pipelines.training.training_set import Snapshot
from tests.conftest import VIT, make_shards, picture, tree
from tests.verify.damage import check
from unic_cache.cache import open_cache
from unic_cache.config import Views
from unic_cache.errors import CacheError, ConfigError
from unic_cache.store.commit import view_called
from unic_cache.views.augment import frame_of, make_view, parameters

LARGE = (0.4, 1.0)


def test_the_crop_alone_changes_and_has_an_area_within_the_scale():
    plain, large = Views("unic", 32, 3), Views("unic", 32, 3, LARGE)
    areas = []
    for number in range(300):
        drawn = parameters((400, 300), 3, 8, number, LARGE)
        assert dataclasses.replace(drawn, crop=(0, 0, 0, 0)) == dataclasses.replace(
            parameters((400, 300), 3, 8, number), crop=(0, 0, 0, 0)
        )
        left, top, right, bottom = drawn.crop
        areas.append((right - left) * (bottom - top) / (400 * 300))
        assert frame_of((400, 300), large, 8, number).box == drawn.crop
    assert 0.39 < min(areas) < 0.45
    assert max(areas) > 0.9
    image = picture(3)
    explicit = Views("unic", 32, 3, (0.08, 1))
    assert explicit == plain
    assert np.array_equal(make_view(image, explicit, 8, 0), make_view(image, plain, 8, 0))
    assert any(not np.array_equal(make_view(image, large, 8, n), make_view(image, plain, 8, n)) for n in range(3))


@pytest.mark.parametrize(
    ("scale", "name"),
    [((0.08, 1.0), "unic-224-7-003"), ((0.4, 1), "unic@0.4to1-224-7-003"), ((0.05, 0.32), "unic@0.05to0.32-224-7-003")],
)
def test_a_name_and_its_views_are_one_to_one(scale, name):
    views = Views("unic", 224, 7, scale)
    assert views.name(3) == name
    assert Views.parse(name) == (views, 3)
    assert view_called(name) == (views, 3)


@pytest.mark.parametrize(
    "name", ["unic@0.40to1-224-7-003", "unic@0.08to1-224-7-003", "unic@1to0.4-224-7-003", "unic@-224-7-003",
             "unic@nantonan-224-7-003", "unic@0.4to1@0.4to1-224-7-003", "center@0.4to1-224-0-000"],
)  # fmt: skip
def test_no_view_has_another_name(name):
    assert view_called(name) is None


def test_the_center_view_has_no_scale():
    with pytest.raises(ConfigError, match="recipe center always takes the largest central square"):
        Views("center", 224, 0, LARGE)


@pytest.fixture
def both(tmp_path, settings):
    """A function that makes a cache of views with these crop scales."""
    tars = make_shards(tmp_path / "tars", (12,))
    one = {"teachers": (VIT,), "weights": settings(tmp_path).weights[:1], "shards": tars.pattern, "views": 1}

    def make(*scales):
        for scale in scales:
            extract.run(settings(tmp_path / "cache", calibration_images=12, crop_scale=scale, **one))
        return settings(tmp_path / "cache", calibration_images=12, crop_scale=None, size=None, recipe=None, **one)

    return make


def test_one_scale_never_serves_for_another(both, training, tmp_path, capsys):
    config = both(LARGE)
    cache = Path(config.cache)
    assert (cache / "probe/unic@0.4to1-32-0.npz").exists()
    assert settled(config, open_cache(cache)).kind == Views("unic", 32, 0, LARGE)
    report = check(cache, shards=config.shards)
    assert (report.state, report.units) == ("whole", 1)
    begun = {"cache": str(cache), "shards": config.shards, "steps": 1}
    with pytest.raises(
        CacheError, match=r"no cached views of .* seed any, crop scale 0\.08,1\.0; the cache has unic@0.4"
    ):
        distill.run(training(crop_scale=(0.08, 1.0), **begun))
    distill.run(training(**begun)).encoder.unlink()  # else the run is finished
    assert "12 images x 1 views of 32 px (unic@0.4to1)" in capsys.readouterr().err.replace("\n", " ")
    assert Snapshot.load(tmp_path / "run").views == Views("unic", 32, 0, LARGE)
    assert distill.run(training(resume=True, **begun)).steps == 1

    before = tree(cache)
    shutil.rmtree(tmp_path / "run")
    both((0.08, 1.0))
    assert "this adds unic views of 32 px (seed 0) to" in capsys.readouterr().err.replace("\n", " ")
    assert {name: tree(cache)[name] for name in before} == before
    with pytest.raises(
        CacheError, match=r"2 cached views of .*Choose with --recipe, --size, --view-seed and --crop-scale"
    ):
        distill.run(training(**begun))
    with pytest.raises(
        ConfigError, match=r"has views of crop-scale 0\.08,1\.0 and 0\.4,1\.0; choose one with --crop-scale"
    ):
        settled(config, open_cache(cache))
    seen = open_cache(cache)
    crcs = [
        next(iter(seen.pixels_seen(seen.unit(0, 0, Views("unic", 32, 0, scale))).values()))
        for scale in (LARGE, (0.08, 1))
    ]
    assert (crcs[0] != crcs[1]).sum() > 6
