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
from torch import Tensor

from unic_cache.token_kinds import Grid

Numbers: TypeAlias = npt.NDArray[np.float64]


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
    steps: int = 2000  # of a dense head


@dataclass(frozen=True)
class Metric:
    """One metric of one encoder on the test images."""

    sums_NF: Numbers  # one row per test image; or a scipy.sparse matrix of that shape
    statistic: Callable[[Numbers], Numbers]  # sums (..., F) -> values (...)
    unit: str = "%"  # "%" for shares of 1, which are shown times 100; else "m" or ""
    higher_is_better: bool = True
    per_class: Mapping[int, float] | None = None


Metrics: TypeAlias = Mapping[str, Metric]  # by name; the first is the task's own
Task: TypeAlias = Callable[[Examples, Examples, Settings], Metrics]  # (train, test, settings)

IGNORED = 255  # in a mask


def mean(sums: Numbers) -> Numbers:
    """The mean over images of a value per image: F = 2, the value and 1."""
    return sums[..., 0] / sums[..., 1]


def mean_recall(sums: Numbers) -> Numbers:
    """The mean over classes of hits / images: F = 2K, hits of each class and then its images. Empty classes are left out."""
    hits, images = np.split(sums, 2, axis=-1)
    return _nanmean(hits, images)


def mean_iou(sums: Numbers) -> Numbers:
    """The mean over classes of intersection / union: F = 2K, pixels. Classes without any union are left out."""
    intersections, unions = np.split(sums, 2, axis=-1)
    return _nanmean(intersections, unions)


def per_image(values_N: npt.NDArray[Any]) -> Numbers:
    """(N, 2): the sums whose `mean` is the mean of one value per image."""
    values = np.asarray(values_N, np.float64)
    return np.stack([values, np.ones_like(values)], axis=1)


def _nanmean(parts: Numbers, wholes: Numbers) -> Numbers:
    there = wholes > 0
    shares = np.divide(parts, wholes, out=np.zeros_like(parts), where=there)
    return shares.sum(axis=-1) / there.sum(axis=-1)
