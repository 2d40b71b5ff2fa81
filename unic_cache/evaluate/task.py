"""What an evaluation task gets and gives: labelled features in, and of each metric one row of sums per test image out.

A metric is a statistic of sums over images: an accuracy is hits / images, an IoU is intersection / union. So one
bootstrap serves all of them, and two encoders are compared on the same resampled images.

Letters: N images, T tokens, D channels, H and W pixels, F summed numbers, K classes, P pairs.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse
from torch import Tensor

from unic_cache.token_kinds import Grid

Numbers: TypeAlias = npt.NDArray[np.float64]
Sums: TypeAlias = Numbers | sparse.csr_array  # sparse where most sums are 0, such as the hits of each of 1,000 classes


@dataclass(frozen=True)
class Examples:
    """Images of one side, training or test, as one encoder sees them, with their labels. Row n of all is one image."""

    summary_ND: Tensor  # float32: the feature of the whole image
    labels_N: Tensor | None = None  # int64 class numbers
    patches_NTD: npt.NDArray[np.floating[Any]] | None = None  # may be mapped from a file: read batches of rows
    grid: Grid | None = None  # T = height * width, row by row
    masks_NHW: npt.NDArray[np.uint8] | None = None  # class of each pixel, IGNORED where unknown
    depths_NHW: npt.NDArray[np.float32] | None = None  # metres, 0 where unknown


@dataclass(frozen=True)
class Settings:
    """What tasks may be told; each reads what concerns it."""

    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    leave_one_out: bool = False  # train and test are the same images
    twins_P2: Tensor | None = None  # pairs (test image, training image) of the same picture
    neighbours: tuple[int, ...] = (10, 20, 100, 200)
    k: int = 20
    temperature: float = 0.07
    solver: str = "lbfgs"
    steps: int | None = None  # of a dense head; by default 1,000, or 10 epochs in batches of 8 if these are more


@dataclass(frozen=True)
class Metric:
    """One metric of one encoder on the test images."""

    sums_NF: Sums  # one row per test image
    statistic: Callable[[Numbers], Numbers]  # sums (..., F) -> values (...), NaN where 0/0
    unit: str = "%"  # "%" for shares of 1, which are shown times 100; else "m" or ""
    higher_is_better: bool = True
    per_class: Mapping[int, float] | None = None


Metrics: TypeAlias = Mapping[str, Metric]  # by name; the first is the task's own
Task: TypeAlias = Callable[[Examples, Examples, Settings], Metrics]  # (train, test, settings)

IGNORED = 255  # in a mask


def mean(sums: Numbers) -> Numbers:
    """The mean over images of a value per image: F = 2, the value and 1, or both 0 for an image that does not count."""
    return _ratio(sums[..., 0], sums[..., 1])


def mean_recall(sums: Numbers) -> Numbers:
    """The mean over classes of hits / images: F = 2K, hits of each class, then images; empty classes do not count."""
    hits, images = np.split(sums, 2, axis=-1)
    return _nanmean(hits, images)


def mean_iou(sums: Numbers) -> Numbers:
    """The mean over classes of intersection / union: F = 2K, pixels; classes without any union do not count."""
    intersections, unions = np.split(sums, 2, axis=-1)
    return _nanmean(intersections, unions)


def per_image(values_N: npt.NDArray[Any], counts_N: npt.NDArray[np.bool_] | None = None) -> Numbers:
    """(N, 2): the sums whose `mean` is the mean of one value per image, over those that count (by default all)."""
    values = np.asarray(values_N, np.float64)
    counts = np.ones(len(values), np.bool_) if counts_N is None else counts_N
    return np.stack([np.where(counts, values, 0.0), counts.astype(np.float64)], axis=1)


def _nanmean(parts: Numbers, wholes: Numbers) -> Numbers:
    there = wholes > 0
    shares = np.divide(parts, wholes, out=np.zeros_like(parts), where=there)
    return _ratio(shares.sum(axis=-1), there.sum(axis=-1))


def _ratio(parts: Numbers, wholes: Numbers) -> Numbers:
    ratios: Numbers = np.divide(parts, wholes, out=np.full(np.shape(parts), np.nan), where=wholes != 0)
    return ratios
