"""Weighted k-nearest neighbours: what frozen features are worth, with nothing trained.

Cosine similarity s of L2-normalised features; each of the k most similar training images votes for its class with
weight exp(s / temperature), temperature 0.07 (as UNIC and DINO evaluate). Intervals come from resampling test images.

Letters: N test images, M training images, D channels, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import normalize

from unic_cache import draws
from unic_cache.errors import ConfigError

BLOCK = 512  # test images at a time
LEVEL = 0.95  # of the intervals

Correct = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Interval:
    """A mean over images and the bounds that hold 95% of its bootstrap resamples."""

    mean: float
    low: float
    high: float


def knn(
    train_MD: Tensor,
    train_labels: Tensor,
    test_ND: Tensor,
    test_labels: Tensor,
    neighbours: Sequence[int],
    temperature: float = 0.07,
) -> dict[int, Correct]:
    """For each k of `neighbours`, which test images are classified correctly, bool (N,).

    A k above M counts all M. Of classes with equal votes the one with the lowest label wins. Labels are integers (M,)
    and (N,); float32 throughout. ConfigError for features that are not finite, or sizes that disagree.
    """
    return _correct(
        _unit(train_MD, train_labels),
        train_labels,
        _unit(test_ND, test_labels),
        test_labels,
        neighbours,
        temperature,
        exclude_own=False,
    )


def knn_leave_one_out(
    features_ND: Tensor, labels: Tensor, neighbours: Sequence[int], temperature: float = 0.07
) -> dict[int, Correct]:
    """As `knn`, each image classified by all the others."""
    unit_ND = _unit(features_ND, labels)
    if len(unit_ND) < 2:
        raise ConfigError(f"leave-one-out needs at least 2 labelled images, and there are {len(unit_ND)}")
    return _correct(unit_ND, labels, unit_ND, labels, neighbours, temperature, exclude_own=True)


def bootstrap(values: npt.NDArray[np.generic], seed: int, resamples: int = 1000) -> Interval:
    """The mean of one value an image, and its 95% percentile interval over `resamples` draws of N images with return.

    Give it `knn`'s correctness for an accuracy; give it the difference of two encoders' correctness (as numbers) for a
    paired comparison: the draws depend on (seed, N) alone, so both see the same images.
    """
    numbers = values.astype(np.float64)
    count = len(numbers)
    if count == 0:
        raise ConfigError("there are no test images, so there is nothing to resample")
    means = np.empty(resamples)
    for resample in range(resamples):
        raw = draws.words(draws.Purpose.BOOTSTRAP, seed, resample, 0, count)
        means[resample] = numbers[(draws.uniforms(raw) * count).astype(np.int64)].mean()
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(numbers.mean()), float(low), float(high))


def paired_difference(one: Correct, other: Correct, seed: int, resamples: int = 1000) -> Interval:
    """By how much `one` is more often right than `other` on the same test images."""
    if one.shape != other.shape:
        raise ConfigError(f"a paired difference needs the same test images, not {len(one)} and {len(other)}")
    return bootstrap(one.astype(np.float64) - other, seed, resamples)


def _correct(
    train_MD: Tensor,
    train_labels: Tensor,
    test_ND: Tensor,
    test_labels: Tensor,
    neighbours: Sequence[int],
    temperature: float,
    exclude_own: bool,
) -> dict[int, Correct]:
    if train_MD.shape[1] != test_ND.shape[1]:
        raise ConfigError(f"training features have {train_MD.shape[1]} channels and test features {test_ND.shape[1]}")
    classes_K, train_classes = torch.unique(train_labels.to(train_MD.device), return_inverse=True)
    bank = len(train_MD) - exclude_own
    largest = min(max(neighbours), bank)
    found: dict[int, list[Tensor]] = {k: [] for k in neighbours}
    for start in range(0, len(test_ND), BLOCK):
        block_BD = test_ND[start : start + BLOCK]
        similarity_BM = block_BD @ train_MD.T
        if exclude_own:
            own = torch.arange(len(block_BD), device=block_BD.device)
            similarity_BM[own, start + own] = -torch.inf
        nearest = similarity_BM.topk(largest, dim=1)
        weights, voters = (nearest.values / temperature).exp(), train_classes[nearest.indices]
        truth = test_labels[start : start + BLOCK].to(block_BD.device)
        for k in neighbours:
            votes_BK = weights.new_zeros(len(block_BD), len(classes_K))
            votes_BK.scatter_add_(1, voters[:, :k], weights[:, :k])
            found[k].append(classes_K[votes_BK.argmax(dim=1)] == truth)
    return {k: torch.cat(blocks).cpu().numpy() for k, blocks in found.items()}


def _unit(features_ND: Tensor, labels: Tensor) -> Tensor:
    """L2-normalised float32 features."""
    if features_ND.ndim != 2 or len(features_ND) != len(labels) or len(labels) == 0:
        raise ConfigError(f"features of shape {tuple(features_ND.shape)} do not go with {len(labels)} labels")
    broken = (~features_ND.isfinite().all(dim=1)).nonzero()
    if len(broken):
        raise ConfigError(
            f"features of {len(broken)} of {len(labels)} images are not finite (the first in row {int(broken[0])}); "
            f"the encoder has diverged or its input is broken"
        )
    return normalize(features_ND.float(), dim=1)
