"""Weighted k-nearest neighbours: how good frozen features are, without training anything.

With the cosine similarity s of L2-normalised features, each of the k most similar training images votes for its class
with weight exp(s / temperature), temperature 0.07 (as UNIC and DINO evaluate). Intervals come from resampling test
images.

Letters: N test images, M training images, D channels, K classes, P pairs.
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
    twins_P2: Tensor | None = None,
) -> dict[int, Correct]:
    """For each k of `neighbours`, which test images are classified correctly, bool (N,).

    `twins_P2` are pairs (test image, training image) of the same picture; twins do not vote for each other. A k above M
    counts all M. With equal votes, the class with the lowest label wins. Labels are integers, (M,) and (N,); float32
    throughout. ConfigError if features are not finite or sizes disagree.
    """
    train_MD, test_ND = _unit(train_MD, train_labels), _unit(test_ND, test_labels)
    if train_MD.shape[1] != test_ND.shape[1]:
        raise ConfigError(f"training features have {train_MD.shape[1]} channels and test features {test_ND.shape[1]}")
    classes_K, train_classes = torch.unique(train_labels.to(train_MD.device), return_inverse=True)
    largest = min(max(neighbours), len(train_MD))
    found: dict[int, list[Tensor]] = {k: [] for k in neighbours}
    for start in range(0, len(test_ND), BLOCK):
        block_BD = test_ND[start : start + BLOCK]
        similarity_BM = block_BD @ train_MD.T
        if twins_P2 is not None:
            here_P = (twins_P2[:, 0] >= start) & (twins_P2[:, 0] < start + len(block_BD))
            asked, answer = twins_P2[here_P].to(block_BD.device).T
            similarity_BM[asked - start, answer] = -torch.inf  # which gives votes of weight 0
        nearest = similarity_BM.topk(largest, dim=1)
        weights, voters = (nearest.values / temperature).exp(), train_classes[nearest.indices]
        truth = test_labels[start : start + BLOCK].to(block_BD.device)
        for k in neighbours:
            votes_BK = weights.new_zeros(len(block_BD), len(classes_K))
            votes_BK.scatter_add_(1, voters[:, :k], weights[:, :k])
            found[k].append(classes_K[votes_BK.argmax(dim=1)] == truth)
    return {k: torch.cat(blocks).cpu().numpy() for k, blocks in found.items()}


def knn_leave_one_out(
    features_ND: Tensor,
    labels: Tensor,
    neighbours: Sequence[int],
    temperature: float = 0.07,
    twins_P2: Tensor | None = None,
) -> dict[int, Correct]:
    """As `knn`, each image classified by all the others but its twins."""
    if len(features_ND) == 1:
        raise ConfigError("leave-one-out needs at least 2 labelled images, and there is 1")
    own_N2 = torch.arange(len(features_ND))[:, None].expand(-1, 2)
    pairs_P2 = own_N2 if twins_P2 is None else torch.cat([own_N2, twins_P2])
    return knn(features_ND, labels, features_ND, labels, neighbours, temperature, pairs_P2)


def bootstrap(values: npt.NDArray[np.generic], seed: int, resamples: int = 1000) -> Interval:
    """The mean of one value per image, and its 95% percentile interval over N images drawn with replacement.

    `knn`'s correctness gives an accuracy; the difference of two encoders' correctness (as numbers) gives a paired
    comparison. The draws depend on (seed, N) alone, so encoders see the same images. ConfigError without images.
    """
    numbers = values.astype(np.float64)
    count = len(numbers)
    if count == 0:
        raise ConfigError("no test images to resample")
    means = np.empty(resamples)
    for resample in range(resamples):
        raw = draws.words(draws.Purpose.BOOTSTRAP, seed, resample, 0, count)
        means[resample] = numbers[(draws.uniforms(raw) * count).astype(np.int64)].mean()
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(numbers.mean()), float(low), float(high))


def paired_difference(one: Correct, other: Correct, seed: int, resamples: int = 1000) -> Interval:
    """How much more often `one` is right than `other` on the same test images."""
    if one.shape != other.shape:
        raise ConfigError(f"a paired difference needs the same test images, not {len(one)} and {len(other)}")
    return bootstrap(one.astype(np.float64) - other, seed, resamples)


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
