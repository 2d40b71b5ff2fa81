"""From metrics to 95% intervals: the test images are drawn again with replacement, the same draws for every encoder.

A metric is a statistic of sums over images. A resample gives each image a count, so its sums are one row of
counts_RN @ sums_NF, and a thousand resamples are a matrix product.

A resample may leave a statistic undefined (0/0), such as a mean over queries when it has drawn none that counts. Such
resamples are left out of the percentiles, up to `UNDEFINED` of them; with more, there is no interval to report.

Letters: N test images, R resamples, B resamples of a block, F summed numbers.
"""

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from unic_cache import draws
from unic_cache.errors import ConfigError
from unic_cache.evaluate.task import Metric, Numbers, mean, per_image

LEVEL = 0.95  # of the intervals
UNDEFINED = 0.05  # of the resamples, at most
BLOCK = 2**22  # counts in memory at a time, 32 MiB

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Interval:
    """A metric on the test images, and the bounds that hold 95% of its bootstrap resamples."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Resampled:
    """A metric on the test images, and on each resample of them: NaN where it is undefined."""

    value: float
    values_R: Numbers
    higher_is_better: bool = True


def resample(metrics: Mapping[Key, Metric], seed: int, resamples: int = 1000) -> dict[Key, Resampled]:
    """Each metric on the same resamples of the N test images, so that encoders can be compared image by image.

    The draws depend on (seed, N) alone. Keys are the caller's, such as (encoder, metric). ConfigError without images,
    or if two metrics are not of the same images.
    """
    counts = {metric.sums_NF.shape[0] for metric in metrics.values()}
    if len(counts) > 1:
        listed = " and ".join(str(count) for count in sorted(counts))
        raise ConfigError(f"a paired comparison needs the same test images, not {listed}")
    if not any(counts):
        raise ConfigError("no test images to resample")
    (count,) = counts
    found: dict[Key, list[Numbers]] = {key: [] for key in metrics}
    for counts_BN in _drawn(seed, count, resamples):
        for key, metric in metrics.items():
            found[key].append(metric.statistic(counts_BN @ metric.sums_NF))
    once_1N = np.ones((1, count))
    return {
        key: Resampled(
            float(metric.statistic(once_1N @ metric.sums_NF)[0]), np.concatenate(found[key]), metric.higher_is_better
        )
        for key, metric in metrics.items()
    }


def interval(one: Resampled) -> Interval:
    """The metric and its 95% percentile interval. ConfigError if it is undefined in over 5% of the resamples."""
    found = _percentiles(one.value, one.values_R)
    if found is None:
        undefined, resamples = np.count_nonzero(~np.isfinite(one.values_R)), len(one.values_R)
        raise ConfigError(
            f"the metric is undefined in {undefined} of {resamples} resamples: too few of the test images count for "
            "it; use more test images"
        )
    return found


def difference(one: Resampled, other: Resampled) -> Interval:
    """`one` minus `other`, paired: both on the same images in every resample. ConfigError as `interval`."""
    return interval(Resampled(one.value - other.value, one.values_R - other.values_R))


def gain(one: Resampled, over: Resampled) -> Interval | None:
    """The improvement of `one` over `over` in percent of the latter, paired; above 0 is better.

    It is 100 (v/b - 1) if higher is better, else 100 (1 - v/b). None if b is 0, or is so in over 5% of the resamples.
    """
    sign = 100.0 if one.higher_is_better else -100.0
    bases_R, base = over.values_R, over.value
    ratios_R = np.divide(one.values_R, bases_R, out=np.full_like(bases_R, np.nan), where=bases_R != 0)
    return _percentiles(sign * (one.value / base - 1) if base else np.nan, sign * (ratios_R - 1))


def bootstrap(values: npt.NDArray[Any], seed: int, resamples: int = 1000) -> Interval:
    """The mean of one value per image and its interval. `knn`'s correctness gives an accuracy."""
    return interval(resample({"": Metric(per_image(values), mean)}, seed, resamples)[""])


def _drawn(seed: int, count: int, resamples: int) -> Iterator[Numbers]:
    """How often each resample draws each of the `count` images, (B, N), block by block."""
    rows = max(1, BLOCK // count)
    for start in range(0, resamples, rows):
        block_BN = np.empty((min(rows, resamples - start), count))
        for row in range(len(block_BN)):
            raw = draws.words(draws.Purpose.BOOTSTRAP, seed, start + row, 0, count)
            block_BN[row] = np.bincount((draws.uniforms(raw) * count).astype(np.int64), minlength=count)
        yield block_BN


def _percentiles(value: float, values_R: Numbers) -> Interval | None:
    """None if the value is undefined, or over 5% of its resamples are."""
    defined_R = values_R[np.isfinite(values_R)]
    if not np.isfinite(value) or len(defined_R) < (1 - UNDEFINED) * len(values_R):
        return None
    low, high = np.quantile(defined_R, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(value), float(low), float(high))
