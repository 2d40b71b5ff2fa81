"""Retrieval by label: each test image asks for the training images of its own class, the most similar first.

Similarity is the cosine; of equal ones, the image with the lower index comes first. With one set, each image asks all
the others. Twins (images with equal pixels) are neither right nor wrong answers: they are taken out of the list.

For a query with R relevant images, at the ranks r_1 < ... < r_R of its list:

    average precision = 1/R sum_i i / r_i            recall@k = 1 if r_1 <= k, else 0

as image retrieval reports them (Philbin et al. 2007; Song et al. 2016). A query without any relevant image, such as the
only image of its class among the others, is left out of all three metrics.

Letters: N test images (queries), M training images, D channels, B queries of a block, P pairs, H hits.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from unic_cache.errors import ConfigError
from unic_cache.evaluate.checks import class_labels
from unic_cache.evaluate.task import Examples, Metric, Metrics, Settings, mean, per_image

BLOCK = 2**22  # similarities in memory at a time
RANKS = (1, 5)  # of recall


def retrieval(train: Examples, test: Examples, settings: Settings) -> Metrics:
    """Mean average precision "mAP", then "recall@1" and "recall@5", over the queries that have a relevant image.

    ConfigError as `class_labels`, and if no query has a relevant image.
    """
    train_labels, test_labels = class_labels(train, test)
    relevant_M, relevant_N = train_labels.to(settings.device), test_labels.to(settings.device)
    train_MD = normalize(train.summary_ND.to(settings.device).float(), dim=1)
    test_ND = normalize(test.summary_ND.to(settings.device).float(), dim=1)
    excluded_P2 = _excluded(len(test_ND), settings)
    precision, first = np.zeros(len(test_ND)), np.full(len(test_ND), np.inf)
    rows = max(1, BLOCK // len(train_MD))
    for start in range(0, len(test_ND), rows):
        block = slice(start, start + rows)
        similarity_BM = test_ND[block] @ train_MD.T
        hits_BM = relevant_N[block, None] == relevant_M
        here_P = (excluded_P2[:, 0] >= start) & (excluded_P2[:, 0] < start + len(similarity_BM))
        query, answer = (excluded_P2[here_P] - torch.tensor([start, 0])).to(settings.device).T
        similarity_BM[query, answer], hits_BM[query, answer] = -torch.inf, False
        order_BM = similarity_BM.argsort(dim=1, descending=True, stable=True)
        precision[block], first[block] = _scores(hits_BM.gather(1, order_BM))
    asked_N = np.isfinite(first)
    if not asked_N.any():
        raise ConfigError("no test image has another image of its class to find; use classes of several images")
    return {
        "mAP": Metric(per_image(precision, asked_N), mean),
        **{f"recall@{rank}": Metric(per_image(first <= rank, asked_N), mean) for rank in RANKS},
    }


def _scores(ranked_BM: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Average precision and the rank of the first hit of each query, from which of its answers are hits, best first.

    Without any hit these are 0 and infinity.
    """
    query_H, place_H = (found.cpu().numpy() for found in ranked_BM.nonzero(as_tuple=True))  # row by row
    hits = np.bincount(query_H, minlength=len(ranked_BM))
    starts = np.cumsum(hits) - hits
    number_H = np.arange(len(query_H)) - starts[query_H] + 1
    sums = np.bincount(query_H, number_H / (place_H + 1), minlength=len(ranked_BM))
    first = np.full(len(ranked_BM), np.inf)
    first[hits > 0] = place_H[starts[hits > 0]] + 1
    return sums / np.maximum(hits, 1), first


def _excluded(count: int, settings: Settings) -> Tensor:
    """Pairs (query, answer) that never count: twins and, with one set, each image with itself."""
    pairs_P2 = torch.zeros(0, 2, dtype=torch.int64) if settings.twins_P2 is None else settings.twins_P2.cpu()
    own_N2 = torch.arange(count)[:, None].expand(-1, 2)
    return torch.cat([own_N2, pairs_P2]) if settings.leave_one_out else pairs_P2
