"""What is measured on which tars, and how two runs are compared."""

import dataclasses

import numpy as np
import pytest

from benchmarks.study.caches import first_tars
from benchmarks.study.measure import Sides, compared, grouped, task_sums
from tests.study.made_up import Labelled
from unic_cache.errors import ConfigError, ShardError
from unic_cache.evaluate.task import per_image
from unic_cache.views.shards import expand


def test_a_task_that_no_set_offers_is_an_error():
    sets = (Labelled("things", "made up", ("knn",), "whole.tar"),)
    for tasks in ({"linear": ["things"]}, {"knn": ["absent"]}):
        with pytest.raises(ConfigError, match="which no labelled set offers"):
            task_sums(None, sets, {"tasks": tasks}, None)


def test_tasks_without_a_head_are_asked_on_the_whole_set():
    one = Labelled("x", "", (), "whole", "train", "test")
    whole, parts = Sides("whole", None, None), Sides(None, "train", "test")
    assert grouped(one, ["knn", "linear"]) == {whole: ["knn"], parts: ["linear"]}
    assert grouped(dataclasses.replace(one, shards=None), ["knn", "linear"]) == {parts: ["knn", "linear"]}
    assert grouped(dataclasses.replace(one, train=None, test=None), ["linear"]) == {whole: ["linear"]}


def test_differences_are_paired():
    rng = np.random.default_rng(0)
    hard_N = rng.random(500)
    own = {"loss-images/mean": per_image(0.98 * hard_N), "knn/a": per_image(hard_N > 0.5)}
    other = {"loss-images/mean": per_image(hard_N), "knn/a": per_image(hard_N > 0.6)}
    found = compared(own, {"x": other}, 1000)["differences"]["x"]
    assert found["loss-images/mean"] == pytest.approx({"value": 2.0, "low": 2.0, "high": 2.0})
    share = 100 * np.mean((hard_N > 0.5) & (hard_N <= 0.6))
    assert found["knn/a"]["value"] == pytest.approx(share)
    assert 0.5 * share < found["knn/a"]["low"] < share < found["knn/a"]["high"] < 1.5 * share


def test_the_first_tars_hold_as_many_images_as_asked(shards):
    assert [len(expand(first_tars(shards.pattern, images))) for images in (37, 38, 82)] == [1, 2, 3]
    with pytest.raises(ShardError, match="has 82 images, but the study needs 83"):
        first_tars(shards.pattern, 83)
