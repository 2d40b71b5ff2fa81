"""Intervals, paired differences and gains against a plain loop over resamples."""

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy import sparse

from unic_cache import draws
from unic_cache.errors import ConfigError
from unic_cache.evaluate import bootstrap as module
from unic_cache.evaluate.bootstrap import Interval, bootstrap, difference, gain, interval, resample
from unic_cache.evaluate.task import Metric, Numbers, mean, mean_recall, per_image

SEED, RESAMPLES = 5, 60


def drawn(count: int) -> list[npt.NDArray[np.int64]]:
    raws = [draws.words(draws.Purpose.BOOTSTRAP, SEED, r, 0, count) for r in range(RESAMPLES)]
    return [np.array([int(u * count) for u in draws.uniforms(raw)]) for raw in raws]


def recalls(count: int, classes: int, seed: int, chance: float = 0.6) -> Numbers:
    """Hits and images of each class, (N, 2K): a random class for each image, and whether it was found."""
    rng = np.random.default_rng(seed)
    labels, hits = np.arange(count) % classes, rng.random(count) < chance
    one_hot = np.eye(classes)[labels]
    return np.concatenate([one_hot * hits[:, None], one_hot], axis=1)


def naive_recall(rows: Numbers) -> float:
    sums = rows.sum(axis=0)
    classes = len(sums) // 2
    return float(np.mean([sums[k] / sums[classes + k] for k in range(classes) if sums[classes + k]]))


def bounds(values: list[float]) -> tuple[float, float]:
    return float(np.percentile(values, 2.5)), float(np.percentile(values, 97.5))


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_array])
def test_intervals_differences_and_gains_equal_a_loop(form, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", 7 * 33)  # several blocks, the last one partial
    sums = {"a": recalls(33, 5, 1), "b": recalls(33, 5, 2, 0.4)}
    for higher in (True, False):
        metrics = {name: Metric(form(rows), mean_recall, higher_is_better=higher) for name, rows in sums.items()}
        found = resample(metrics, SEED, RESAMPLES)
        a, b = ([naive_recall(sums[name][rows]) for rows in drawn(33)] for name in "ab")
        whole_a, whole_b = naive_recall(sums["a"]), naive_recall(sums["b"])
        assert tuple(vars(interval(found["a"])).values()) == pytest.approx((whole_a, *bounds(a)))
        apart = [x - y for x, y in zip(a, b, strict=True)]
        assert tuple(vars(difference(found["a"], found["b"])).values()) == pytest.approx(
            (whole_a - whole_b, *bounds(apart))
        )
        percent = [100 * (x / y - 1 if higher else 1 - x / y) for x, y in zip(a, b, strict=True)]
        whole = 100 * (whole_a / whole_b - 1 if higher else 1 - whole_a / whole_b)
        gained = gain(found["a"], found["b"])
        assert gained is not None
        assert tuple(vars(gained).values()) == pytest.approx((whole, *bounds(percent)))


def test_undefined_resamples_are_left_out_up_to_a_share() -> None:
    counts = np.arange(20) < 4  # a resample draws none of them once in 87
    values = np.arange(20.0)
    found = resample({"": Metric(per_image(values, counts), mean)}, SEED, RESAMPLES * 10)[""]
    undefined = np.isnan(found.values_R)
    assert 0 < undefined.mean() < 0.05
    assert interval(found) == Interval(1.5, *bounds(found.values_R[~undefined].tolist()))
    few = resample({"": Metric(per_image(values, counts & (values < 2)), mean)}, SEED, RESAMPLES * 10)[""]
    with pytest.raises(ConfigError, match=r"undefined in \d+ of 600 resamples: too few of the test images count"):
        interval(few)
    none = resample({"": Metric(per_image(values, values < 0), mean)}, SEED, RESAMPLES)[""]
    with pytest.raises(ConfigError, match="undefined in 60 of 60 resamples"):
        interval(none)


def test_there_is_no_gain_over_nothing() -> None:
    metrics = {"one": Metric(per_image(np.ones(9)), mean), "none": Metric(per_image(np.zeros(9)), mean)}
    found = resample(metrics, SEED, RESAMPLES)
    assert gain(found["one"], found["none"]) is None
    assert gain(found["none"], found["one"]) == Interval(-100, -100, -100)


def test_rare_hits_of_the_base_give_no_gain_either() -> None:
    metrics = {"one": Metric(per_image(np.ones(9)), mean), "rare": Metric(per_image(np.arange(9) == 0), mean)}
    found = resample(metrics, SEED, RESAMPLES)
    assert gain(found["one"], found["rare"]) is None


def test_metrics_of_other_images_are_refused() -> None:
    metrics = {"one": Metric(per_image(np.zeros(3)), mean), "other": Metric(per_image(np.zeros(4)), mean)}
    with pytest.raises(ConfigError, match="needs the same test images, not 3 and 4"):
        resample(metrics, SEED)


def coins(count: int, chance: float, seed: int) -> npt.NDArray[np.bool_]:
    return np.asarray(torch.rand(count, generator=torch.Generator().manual_seed(seed)).numpy() < chance)


def test_interval_agrees_with_the_normal_approximation() -> None:
    correct = coins(400, 0.7, 1)
    mean = float(correct.mean())
    interval = bootstrap(correct, seed=0)
    width = 1.96 * math.sqrt(mean * (1 - mean) / 400)
    assert interval.mean == pytest.approx(mean)
    assert interval.low == pytest.approx(mean - width, abs=0.008)
    assert interval.high == pytest.approx(mean + width, abs=0.008)


def test_interval_is_a_function_of_the_seed() -> None:
    correct = coins(50, 0.5, 1)
    assert bootstrap(correct, seed=1, resamples=100) == bootstrap(correct, seed=1, resamples=100)
    assert bootstrap(correct, seed=1, resamples=100) != bootstrap(correct, seed=2, resamples=100)


def paired_difference(one: np.ndarray, other: np.ndarray, seed: int) -> Interval:
    metrics = {key: Metric(per_image(values), mean) for key, values in (("one", one), ("other", other))}
    found = resample(metrics, seed)
    return difference(found["one"], found["other"])


def test_paired_difference_sees_what_separate_intervals_hide() -> None:
    one = coins(300, 0.6, 1)
    other = one.copy()
    other[np.flatnonzero(one)[:12]] = False  # never better, twelve times worse
    found = paired_difference(one, other, seed=0)
    assert found.mean == pytest.approx(12 / 300)
    assert found.low > 0
    assert bootstrap(one, 0).low < bootstrap(other, 0).high
    assert paired_difference(one, one, seed=0) == Interval(0, 0, 0)


def test_resampling_nothing_or_unpaired_images_is_refused() -> None:
    with pytest.raises(ConfigError, match="no test images"):
        bootstrap(np.zeros(0, np.bool_), seed=0)
    with pytest.raises(ConfigError, match="needs the same test images, not 3 and 4"):
        paired_difference(np.zeros(3, np.bool_), np.zeros(4, np.bool_), seed=0)
