"""Linear classifiers against plain scikit-learn and a plain torch loop."""

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits
from torch import Tensor

from unic_cache import draws
from unic_cache.errors import ConfigError
from unic_cache.evaluate import linear as module
from unic_cache.evaluate import sgd
from unic_cache.evaluate.linear import linear
from unic_cache.evaluate.split import Part, held_out
from unic_cache.evaluate.task import Examples, Metrics, Settings


@pytest.fixture(autouse=True)
def one_thread():
    """BLAS threads that wait for one another beside another test make a fit of a second take half a minute."""
    with threadpool_limits(1):
        yield


def clouds(count: int, seed: int, classes: int = 4, noise: float = 1.5) -> Examples:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, 12, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(0, classes, (count,), generator=generator)
    return Examples(centres[labels] + noise * torch.randn(count, 12, generator=generator), labels * 7 - 3)


def labels_of(examples: Examples) -> Tensor:
    assert examples.labels_N is not None
    return examples.labels_N


def hits(metrics: Metrics) -> list[bool]:
    return (np.asarray(metrics["top-1"].sums_NF)[:, 0] == 1).tolist()


def test_lbfgs_predicts_what_scikit_learn_does_with_the_c_it_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = []

    class Watched(LogisticRegression):
        def predict(self, features):
            chosen.append(self.C)
            return super().predict(features)

    monkeypatch.setattr(module, "LogisticRegression", Watched)
    train, test = clouds(120, 1), clouds(80, 2)
    metrics = linear(train, test, Settings(seed=3))
    labels, centre_D = labels_of(train).numpy(), train.summary_ND.double().mean(dim=0)
    scale = (train.summary_ND.double() - centre_D).square().mean().sqrt()
    features, asked = (((side.summary_ND.double() - centre_D) / scale).numpy() for side in (train, test))
    held = held_out(labels_of(train), 0.2, 3, Part.VALIDATION)
    score = {
        quarter: LogisticRegression(C=10 ** (quarter / 4), max_iter=2000, tol=1e-6)
        .fit(features[~held], labels[~held])
        .score(features[held], labels[held])
        for quarter in range(-20, 25)
    }
    best = max(score.values())
    assert score[round(4 * math.log10(chosen[0]))] == best  # of 45 values of C, with 18 fits
    plain = LogisticRegression(C=chosen[0], max_iter=2000, tol=1e-6).fit(features, labels)
    expected = plain.predict(asked) == labels_of(test).numpy()
    assert hits(metrics) == expected.tolist()
    assert 0.3 < expected.mean() < 1


def test_the_search_passes_a_lucky_small_c_and_ends_after_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    right = {-5: 6, -4: 5, -3: 5, -2: 5, -1: 5, 0: 8, 1: 9, 2: 8, 3: 8, 4: 8, 5: 8, 6: 8}  # of ten images, by log10 C
    sure = {exponent: 0.7 + 0.04 * exponent for exponent in range(-5, 2)}  # rises up to C = 10

    class Told(LogisticRegression):
        def fit(self, features, labels):
            self.classes_ = np.unique(labels)
            return self

        def predict_proba(self, features):
            exponent = round(math.log10(self.C))
            own, wrong = sure.get(exponent, 0.5), np.arange(10) >= right[exponent]
            chances = np.full((10, 3), (1 - own) / 2)
            chances[:, 1] = own
            chances[wrong, 2], chances[wrong, 1] = own + 0.1, own - 0.1
            return chances

    monkeypatch.setattr(module, "LogisticRegression", Told)
    nothing = np.zeros((10, 2))
    found = module._scores(module.DECADES, nothing, np.arange(10) % 3, nothing, np.ones(10, np.int64))
    assert list(found) == [-5, -4, -3, -2, -1, 0, 1, 2, 3, 4]
    assert max(found, key=found.__getitem__) == 1


def many(count: int, scale: float, offset: float) -> Examples:
    """Images of 40 classes with features of norm `scale`, but for `offset` in each channel."""
    generator = torch.Generator().manual_seed(count)
    labels = torch.arange(40).repeat_interleave(count)
    centres = torch.randn(40, 256, generator=torch.Generator().manual_seed(0))
    features = centres[labels] + 4 * torch.randn(len(labels), 256, generator=generator)
    return Examples(scale * torch.nn.functional.normalize(features.double(), dim=1) + offset, labels)


@pytest.mark.parametrize(("scale", "offset"), [(1e-3, 0), (30, 0), (1, 5)])
def test_neither_scale_nor_mean_of_the_features_changes_a_prediction(scale: float, offset: float) -> None:
    """scikit-learn's own stop, a gradient of 1e-4, ended fits of small features far too early."""
    plain, found = (
        hits(linear(many(10, *one), many(11, *one), Settings(seed=3))) for one in ((1.0, 0.0), (scale, offset))
    )
    assert found == plain
    assert 0.4 < np.mean(plain) < 0.9


def test_a_finer_tolerance_changes_hardly_a_prediction(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under scikit-learn's 1e-4 the search takes another C, and one prediction in twenty is another."""
    train, test = many(10, 1, 0), many(11, 1, 0)
    found = np.array(hits(linear(train, test, Settings(seed=3))))
    monkeypatch.setattr(module, "TOLERANCE", 1e-8)
    assert np.mean(np.array(hits(linear(train, test, Settings(seed=3)))) != found) <= 0.01


def test_features_that_are_all_equal_end_in_one_class() -> None:
    train, test = clouds(40, 1), clouds(20, 2)
    equal = [Examples(torch.ones(len(side.summary_ND), 12), labels_of(side)) for side in (train, test)]
    assert np.mean(hits(linear(equal[0], equal[1], Settings()))) == pytest.approx(0.25, abs=0.2)


def test_recalls_are_means_over_classes() -> None:
    train, test = clouds(120, 1), clouds(30, 2)
    metrics = linear(train, test, Settings())
    right, labels = np.array(hits(metrics)), labels_of(test).numpy()
    recalls = {int(label): right[labels == label].mean() for label in np.unique(labels)}
    recall = metrics["mean recall"]
    assert recall.per_class == pytest.approx(recalls)
    sums = np.ones((1, 30)) @ recall.sums_NF
    assert recall.statistic(sums) == pytest.approx([np.mean(list(recalls.values()))])
    assert metrics["top-1"].statistic(np.asarray(metrics["top-1"].sums_NF).sum(axis=0)) == right.mean()


def test_two_classes_and_classes_of_one_image_work() -> None:
    train, test = clouds(60, 1, classes=2), clouds(40, 2, classes=2)
    features, labels = torch.cat([train.summary_ND, torch.full((1, 12), 9.0)]), labels_of(train)
    with_one = Examples(features, torch.cat([labels, torch.tensor([9])]))
    for solver in module.SOLVERS:
        for side in (train, with_one):
            assert np.mean(hits(linear(side, test, Settings(solver=solver)))) > 0.6
    single = Examples(features[:3], torch.arange(3))
    with pytest.raises(ConfigError, match="each of the 3 training images has a class of its own"):
        linear(single, single, Settings())


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sgd, "EPOCHS", 6)
    monkeypatch.setattr(sgd, "BATCH", 32)


def plain_sgd(train: Tensor, targets: Tensor, classes: int, trial: sgd.Trial, seed: int) -> torch.nn.Linear:
    """One trial with torch's own layer, loss, optimizer and gradient."""
    layer = torch.nn.Linear(train.shape[1], classes)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    optimizer = torch.optim.SGD(layer.parameters(), lr=trial.rate, momentum=0.9, weight_decay=trial.decay)
    for epoch in range(sgd.EPOCHS):
        for group in optimizer.param_groups:
            group["lr"] = 0.5 * trial.rate * (1 + math.cos(math.pi * epoch / sgd.EPOCHS))
        order = draws.permutation(draws.words(draws.Purpose.HEAD_ORDER, seed, 0, epoch, len(train)))
        for start in range(0, len(train), sgd.BATCH):
            rows = order[start : start + sgd.BATCH]
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(layer(train[rows]), targets[rows]).backward()
            optimizer.step()
    return layer


def test_trials_trained_together_equal_a_plain_loop_for_each(few: None) -> None:
    examples = clouds(70, 1)  # batches of 32, 32 and 6
    targets = torch.unique(labels_of(examples), return_inverse=True)[1]
    unit = torch.nn.functional.normalize(examples.summary_ND, dim=1)
    tried = [sgd.Trial(0.1, 1e-4), sgd.Trial(3.0, 1e-6), sgd.Trial(1.0, 0.05)]
    together = sgd.train(sgd.inputs(examples.summary_ND, torch.device("cpu")), targets, 4, tried, seed=5)
    for number, trial in enumerate(tried):
        layer = plain_sgd(unit, targets, 4, trial, seed=5)
        assert torch.allclose(together[:-1, number].T, layer.weight, atol=1e-5)
        assert torch.allclose(together[-1, number], layer.bias, atol=1e-5)


def test_the_best_trial_is_the_same_for_all_sizes_of_groups(few: None, monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = (
        sgd.inputs(clouds(count, seed).summary_ND, torch.device("cpu")) for count, seed in ((70, 1), (50, 2))
    )
    targets = [
        torch.unique(labels_of(clouds(count, seed)), return_inverse=True)[1] for count, seed in ((70, 1), (50, 2))
    ]
    tried = sgd.trials(1)
    best = sgd.best_trial(tried, train, targets[0], test, targets[1], 4, seed=5)
    monkeypatch.setattr(sgd, "TOGETHER", 1500)
    assert sgd.best_trial(tried, train, targets[0], test, targets[1], 4, seed=5) == best
    accuracies = [
        float(((test @ sgd.train(train, targets[0], 4, [one], 5)[:, 0]).argmax(1) == targets[1]).float().mean())
        for one in tried
    ]
    assert accuracies[tried.index(best)] == max(accuracies) > min(accuracies)
    assert sgd.best_trial([sgd.Trial(1e30, 1e30), best], train, targets[0], test, targets[1], 4, 5) == best


def test_trials_are_drawn_over_the_whole_range_from_the_seed() -> None:
    tried = sgd.trials(1)
    assert len(tried) == 40
    assert tried == sgd.trials(1) != sgd.trials(2)
    assert 0.1 <= min(one.rate for one in tried) < 1 < 10 < max(one.rate for one in tried) <= 100
    assert 1e-12 <= min(one.decay for one in tried) < 1e-10 < 1e-6 < max(one.decay for one in tried) <= 1e-4


def test_a_fifth_of_each_class_is_held_out_and_at_least_one_of_two() -> None:
    labels = torch.tensor([5] * 11 + [2] * 4 + [9] + [7] * 2)
    held = held_out(labels, 0.2, 0, Part.VALIDATION)
    assert {n: int(held[labels.numpy() == n].sum()) for n in (5, 2, 9, 7)} == {5: 2, 2: 1, 9: 0, 7: 1}
    assert held.tolist() == held_out(labels, 0.2, 0, Part.VALIDATION).tolist()
    assert held.tolist() != held_out(labels, 0.2, 1, Part.VALIDATION).tolist()
    assert held.tolist() != held_out(labels, 0.2, 0, Part.TEST).tolist()
