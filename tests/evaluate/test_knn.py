"""k-NN against plain loops."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from unic_cache.errors import ConfigError
from unic_cache.evaluate import knn as module
from unic_cache.evaluate.knn import knn, knn_leave_one_out, knn_task
from unic_cache.evaluate.task import Examples, Settings

KS = (1, 3, 10, 200)


def clouds(count: int, seed: int, classes: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, 6, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(0, classes, (count,), generator=generator)
    return centres[labels] + torch.randn(count, 6, generator=generator), labels * 7 - 3


def naive(train: Tensor, labels: Tensor, test: Tensor, k: int, own: bool) -> list[int]:
    bank = [row / np.linalg.norm(row) for row in train.double().numpy()]
    answers = []
    for number, row in enumerate(test.double().numpy()):
        unit = row / np.linalg.norm(row)
        similar = [(float(unit @ other), place) for place, other in enumerate(bank) if not (own and place == number)]
        votes: dict[int, float] = {}
        for similarity, place in sorted(similar, reverse=True)[:k]:
            label = int(labels[place])
            votes[label] = votes.get(label, 0.0) + math.exp(similarity / 0.07)
        answers.append(max(sorted(votes), key=lambda label: votes[label]))
    return answers


def test_knn_equals_naive_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", 7)
    train, train_labels = clouds(60, 1)
    test, test_labels = clouds(25, 2)
    found = knn(train, train_labels, test, test_labels, KS)
    assert list(found) == list(KS)
    for k in KS:
        expected = np.array(naive(train, train_labels, test, k, own=False)) == test_labels.numpy()
        assert found[k].dtype == np.bool_
        assert found[k].tolist() == expected.tolist()
    assert 0.5 < found[10].mean() < 1


def test_a_small_temperature_asks_the_nearest_neighbour() -> None:
    train, train_labels = clouds(60, 1)
    test, test_labels = clouds(25, 2)
    nearest, sharp = (knn(train, train_labels, test, test_labels, [k], t)[k] for k, t in ((1, 0.07), (10, 1e-4)))
    assert sharp.tolist() == nearest.tolist()


def test_leave_one_out_equals_naive_loops_without_the_own_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", 16)
    features, labels = clouds(50, 3)
    found = knn_leave_one_out(features, labels, KS)
    for k in KS:
        expected = np.array(naive(features, labels, features, k, own=True)) == labels.numpy()
        assert found[k].tolist() == expected.tolist()


def test_own_row_would_make_the_nearest_neighbour_always_right() -> None:
    features, labels = clouds(50, 3)
    assert knn(features, labels, features, labels, (1,))[1].all()
    assert not knn_leave_one_out(features, labels, (1,))[1].all()


def test_similarity_ignores_the_length_of_features() -> None:
    train, train_labels = clouds(40, 1)
    test, test_labels = clouds(20, 2)
    stretched = train * torch.rand(40, 1, generator=torch.Generator().manual_seed(1)).add(0.1)
    one, other = (knn(bank, train_labels, test, test_labels, (5,))[5] for bank in (train, stretched))
    assert one.tolist() == other.tolist()


def test_a_label_that_training_lacks_is_never_right() -> None:
    train, train_labels = clouds(30, 1)
    assert not knn(train, train_labels, train, torch.full((30,), 99), (5,))[5].any()


def test_equal_votes_go_to_the_lowest_label() -> None:
    train = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    found = knn(train, torch.tensor([8, 5]), torch.tensor([[1.0, 1.0]]), torch.tensor([5]), (2,))
    assert found[2].tolist() == [True]


def test_broken_input_is_refused() -> None:
    features, labels = clouds(5, 1)
    broken = features.clone()
    broken[3, 1] = torch.nan
    with pytest.raises(ConfigError, match=r"features of 1 of 5 images are not finite \(the first in row 3\)"):
        knn_leave_one_out(broken, labels, (1,))
    with pytest.raises(ConfigError, match=r"features of shape \(5, 6\) do not go with 4 labels"):
        knn(features, labels[:4], features, labels, (1,))
    with pytest.raises(ConfigError, match="training features have 6 channels and test features 5"):
        knn(features, labels, features[:, :5], labels, (1,))
    with pytest.raises(ConfigError, match="needs at least 2 labelled images, and there is 1"):
        knn_leave_one_out(features[:1], labels[:1], (1,))


def test_the_task_reports_the_chosen_k_first_and_equals_knn() -> None:
    train, test = (Examples(*clouds(count, seed)) for count, seed in ((60, 1), (25, 2)))
    assert train.labels_N is not None
    assert test.labels_N is not None
    metrics = knn_task(train, test, Settings(k=3, neighbours=(1, 3, 10)))
    assert list(metrics) == ["3-NN", "1-NN", "10-NN"]
    expected = knn(train.summary_ND, train.labels_N, test.summary_ND, test.labels_N, (10,))[10]
    assert metrics["10-NN"].statistic(np.asarray(metrics["10-NN"].sums_NF)).tolist() == expected.tolist()


def test_the_task_leaves_each_image_and_its_twins_out() -> None:
    same = Examples(*clouds(50, 3))
    assert same.labels_N is not None
    twins = torch.tensor([[0, 1], [1, 0]])
    metrics = knn_task(same, same, Settings(leave_one_out=True, twins_P2=twins, k=1))
    expected = knn_leave_one_out(same.summary_ND, same.labels_N, (1,), twins_P2=twins)[1]
    assert metrics["1-NN"].sums_NF[:, 0].tolist() == expected.tolist()


def test_the_task_refuses_one_class_and_a_class_that_training_lacks() -> None:
    features, labels = clouds(30, 1)
    train = Examples(features, labels)
    with pytest.raises(ConfigError, match="all 30 training images are of class 7; use at least 2 classes"):
        knn_task(Examples(features, torch.full((30,), 7)), train, Settings())
    with pytest.raises(ConfigError, match=r"2 of 4 classes of the test images have no training images: 98, 99; number"):
        knn_task(train, Examples(features[:4], torch.tensor([-3, 4, 99, 98])), Settings())
    with pytest.raises(ConfigError, match="training features have 6 channels and test features 5"):
        knn_task(train, Examples(features[:, :5], labels), Settings())
    with pytest.raises(ConfigError, match="do not go with 0 labels"):
        knn_task(train, Examples(features), Settings())


def test_without_any_vote_no_class_is_right() -> None:
    features = torch.eye(3)
    labels = torch.zeros(3, dtype=torch.int64)
    twins = torch.tensor([(one, other) for one in range(3) for other in range(3) if one != other])
    assert not knn_leave_one_out(features, labels, [2], twins_P2=twins)[2].any()
