"""Weighted k-nearest neighbours: how good frozen features are, without training anything.

With the cosine similarity s of L2-normalised features, each of the k most similar training images votes for its class
with weight exp(s / temperature), temperature 0.07 (as UNIC and DINO evaluate).

Letters: N test images, M training images, D channels, K classes, P pairs.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import normalize

from unic_cache.errors import ConfigError
from unic_cache.evaluate.checks import check_labelled, class_labels
from unic_cache.evaluate.task import Examples, Metric, Metrics, Settings, mean, per_image

BLOCK = 512  # test images at a time

Correct = npt.NDArray[np.bool_]


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
        weights = ((nearest.values - nearest.values[:, :1]) / temperature).exp()  # of at most 1: none overflows
        voters = train_classes[nearest.indices]
        truth = test_labels[start : start + BLOCK].to(block_BD.device)
        for k in neighbours:
            votes_BK = weights.new_zeros(len(block_BD), len(classes_K))
            votes_BK.scatter_add_(1, voters[:, :k], weights[:, :k])
            most = votes_BK.max(dim=1)  # NaN, if all neighbours are twins: no class is right
            found[k].append((classes_K[most.indices] == truth) & (most.values > 0))
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


def knn_task(train: Examples, test: Examples, settings: Settings) -> Metrics:
    """The share of test images classified correctly, "20-NN" for the settings' k first, then the other `neighbours`."""
    train_labels, test_labels = class_labels(train, test)
    neighbours = tuple(dict.fromkeys((settings.k, *settings.neighbours)))
    how = neighbours, settings.temperature, settings.twins_P2
    train_MD, test_ND = train.summary_ND.to(settings.device), test.summary_ND.to(settings.device)
    if settings.leave_one_out:
        correct = knn_leave_one_out(test_ND, test_labels, *how)
    else:
        correct = knn(train_MD, train_labels, test_ND, test_labels, *how)
    return {f"{k}-NN": Metric(per_image(correct[k]), mean) for k in neighbours}


def _unit(features_ND: Tensor, labels: Tensor) -> Tensor:
    """L2-normalised float32 features."""
    check_labelled(features_ND, labels)
    return normalize(features_ND.float(), dim=1)
