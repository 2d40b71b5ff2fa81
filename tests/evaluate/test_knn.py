"""k-NN against plain loops, and the bootstrap's properties."""

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from unic_cache.errors import ConfigError
from unic_cache.evaluate.knn import Interval, bootstrap, knn, knn_leave_one_out, paired_difference

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
    monkeypatch.setattr("unic_cache.evaluate.knn.BLOCK", 7)
    train, train_labels = clouds(60, 1)
    test, test_labels = clouds(25, 2)
    found = knn(train, train_labels, test, test_labels, KS)
    assert list(found) == list(KS)
    for k in KS:
        expected = np.array(naive(train, train_labels, test, k, own=False)) == test_labels.numpy()
        assert found[k].dtype == np.bool_
        assert found[k].tolist() == expected.tolist()
    assert 0.5 < found[10].mean() < 1


def test_leave_one_out_equals_naive_loops_without_the_own_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unic_cache.evaluate.knn.BLOCK", 16)
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


def test_paired_difference_sees_what_separate_intervals_hide() -> None:
    one = coins(300, 0.6, 1)
    other = one.copy()
    other[np.flatnonzero(one)[:12]] = False  # never better, twelve times worse
    difference = paired_difference(one, other, seed=0)
    assert difference.mean == pytest.approx(12 / 300)
    assert difference.low > 0
    assert bootstrap(one, 0).low < bootstrap(other, 0).high
    assert paired_difference(one, one, seed=0) == Interval(0, 0, 0)


def test_resampling_nothing_or_unpaired_images_is_refused() -> None:
    with pytest.raises(ConfigError, match="no test images"):
        bootstrap(np.zeros(0, np.bool_), seed=0)
    with pytest.raises(ConfigError, match="needs the same test images, not 3 and 4"):
        paired_difference(np.zeros(3, np.bool_), np.zeros(4, np.bool_), seed=0)
