"""Retrieval against sorted lists."""

import numpy as np
import pytest
import torch
from torch import Tensor

from unic_cache.errors import ConfigError
from unic_cache.evaluate import retrieval as module
from unic_cache.evaluate.retrieval import retrieval
from unic_cache.evaluate.task import Examples, Settings

Pair = tuple[int, int]


def clouds(count: int, seed: int, classes: int = 4) -> Examples:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, 6, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(0, classes, (count,), generator=generator)
    return Examples(centres[labels] + torch.randn(count, 6, generator=generator), labels * 7 - 3)


def naive(train: Examples, test: Examples, without: set[Pair]) -> dict[str, list[float | None]]:
    found: dict[str, list[float | None]] = {"mAP": [], "recall@1": [], "recall@5": []}
    units = [(side.summary_ND / side.summary_ND.norm(dim=1, keepdim=True)).double() for side in (train, test)]
    assert train.labels_N is not None
    assert test.labels_N is not None
    for query, row in enumerate(units[1]):
        answers = [place for place in range(len(units[0])) if (query, place) not in without]
        answers.sort(key=lambda place: (-float(units[0][place] @ row), place))
        hits = [bool(train.labels_N[place] == test.labels_N[query]) for place in answers]
        ranks = [rank for rank, hit in enumerate(hits, 1) if hit]
        precisions = [sum(hits[:rank]) / rank for rank in ranks]
        found["mAP"].append(sum(precisions) / len(precisions) if ranks else None)
        for k in (1, 5):
            found[f"recall@{k}"].append(float(any(hits[:k])) if ranks else None)
    return found


def compare(train: Examples, test: Examples, settings: Settings, without: set[Pair]) -> None:
    metrics = retrieval(train, test, settings)
    expected = naive(train, test, without)
    assert list(metrics) == list(expected)
    for name, metric in metrics.items():
        sums = np.asarray(metric.sums_NF)
        assert sums[:, 1].tolist() == [value is not None for value in expected[name]]
        assert sums[:, 0].tolist() == pytest.approx([value or 0 for value in expected[name]])
        counted = [value for value in expected[name] if value is not None]
        assert metric.statistic(sums.sum(axis=0)) == pytest.approx(np.mean(counted))


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", 300)


def test_it_equals_sorted_lists() -> None:
    compare(clouds(60, 1), clouds(25, 2), Settings(), set())


def test_one_set_leaves_each_image_its_twins_and_lonely_queries_out() -> None:
    same = clouds(50, 3)
    assert same.labels_N is not None
    labels = same.labels_N.clone()
    labels[7], labels[[30, 40]] = 99, 98  # 7 is alone, and the only partners of 30 and 40 are their twins
    twins = torch.tensor([[30, 40], [40, 30], [1, 2], [2, 1]])
    without = {(n, n) for n in range(50)} | {(int(a), int(b)) for a, b in twins}
    one = Examples(same.summary_ND, labels)
    compare(one, one, Settings(leave_one_out=True, twins_P2=twins), without)
    counted = np.asarray(retrieval(one, one, Settings(leave_one_out=True, twins_P2=twins))["mAP"].sums_NF)[:, 1]
    assert np.flatnonzero(counted == 0).tolist() == [7, 30, 40]


def test_of_equal_similarities_the_lower_index_comes_first() -> None:
    train = Examples(torch.tensor([[1.0, 0.0]]).expand(6, 2).clone(), torch.tensor([0, 1, 0, 1, 1, 1]))
    test = Examples(torch.tensor([[2.0, 0.0]]).expand(2, 2).clone(), torch.tensor([0, 1]))
    metrics = retrieval(train, test, Settings())
    assert np.asarray(metrics["recall@1"].sums_NF)[:, 0].tolist() == [1, 0]
    assert np.asarray(metrics["mAP"].sums_NF)[0, 0] == pytest.approx((1 + 2 / 3) / 2)


def test_a_set_without_any_answer_is_refused() -> None:
    features: Tensor = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    alone = Examples(features, torch.arange(3))
    with pytest.raises(ConfigError, match="no test image has another image of its class to find"):
        retrieval(alone, alone, Settings(leave_one_out=True))
    with pytest.raises(ConfigError, match=r"1 of 3 classes of the test images have no training images: 2; number"):
        retrieval(Examples(features[:2], torch.arange(2)), alone, Settings())
