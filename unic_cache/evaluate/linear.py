"""A linear classifier on frozen features, with its strength of regularization chosen on held-out training images.

Both solvers follow UNIC's protocol: 20 % of each class (at least one image) choose the hyperparameters, then the
classifier is fitted again to all training images. A class with one image stays in training, since it cannot be in both.

`lbfgs` is scikit-learn's logistic regression with an L2 penalty and at most 2,000 iterations, as UNIC's. Its features
are less their mean over the training images and divided by one number, their root mean square. The classifiers that it
can find stay the same, since the intercept, which has no penalty, takes up the mean, and C the scale. Figures then
depend on neither, and a fit takes fewer iterations: scikit-learn ends it at a gradient, whose size follows the
features' scale. Its default of 1e-4 is too early for a figure that stays the same under a finer one; 1e-6 is not.

UNIC draws 40 values of C in [1e-5, 1e6] by TPE. Here decades from below and then quarters of a decade around the best
look at the same range: validation accuracy is a smooth function of log C, flat within a quarter of a decade. Decades
end once neither accuracy nor log loss has improved for three of them, since fits take longest where C is far too large;
both, because accuracy alone can stand still where C is too small. Each fit starts from the one before. A fit that has
not converged after its iterations counts as it is, as theirs does.

`sgd`, for sets too large for it, is in `sgd.py`.

Letters: N test images, M training images, D channels, K classes of the test images.
"""

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from unic_cache.errors import ConfigError
from unic_cache.evaluate import sgd
from unic_cache.evaluate.checks import class_labels
from unic_cache.evaluate.split import Part, held_out
from unic_cache.evaluate.task import Examples, Metric, Metrics, Settings, mean, mean_recall, per_image

VALIDATION = 0.2  # of each class
DECADES = tuple(range(-5, 7))  # exponents of C
PATIENCE = 3  # decades without a better accuracy or log loss
QUARTERS = tuple(quarter / 4 for quarter in (-3, -2, -1, 1, 2, 3))  # around the best decade
ITERATIONS = 2000
TOLERANCE = 1e-6  # of the largest number of the mean loss's gradient

Labels: TypeAlias = npt.NDArray[np.int64]
Fit: TypeAlias = Callable[[Tensor, Tensor, npt.NDArray[np.bool_], Tensor, Settings], Labels]


def linear(train: Examples, test: Examples, settings: Settings) -> Metrics:
    """The share of test images classified correctly, "top-1", and its mean over classes, "mean recall".

    The settings' solver fits the classifier. ConfigError as `class_labels`, and if every class has one image.
    """
    assert not settings.leave_one_out, "a classifier needs a split"
    train_labels, test_labels = class_labels(train, test)
    validation_M = held_out(train_labels, VALIDATION, settings.seed, Part.VALIDATION)
    if not validation_M.any():
        raise ConfigError(
            f"each of the {len(train_labels)} training images has a class of its own, so none can be held out to "
            "choose the regularization; use classes of at least 2 images"
        )
    fit = SOLVERS[settings.solver]
    predicted_N = fit(train.summary_ND, train_labels, validation_M, test.summary_ND, settings)
    return _metrics(predicted_N, test_labels.cpu().numpy())


def _metrics(predicted_N: Labels, labels_N: Labels) -> Metrics:
    correct_N = predicted_N == labels_N
    classes_K, class_N, images_K = np.unique(labels_N, return_inverse=True, return_counts=True)
    rows_N = np.arange(len(labels_N))
    values = np.concatenate([correct_N.astype(np.float64), np.ones(len(labels_N))])
    places = np.concatenate([rows_N, rows_N]), np.concatenate([class_N, len(classes_K) + class_N])
    sums_NF = sparse.csr_array((values, places), shape=(len(labels_N), 2 * len(classes_K)))
    recall_K = np.bincount(class_N, correct_N) / images_K
    by_class = {int(number): float(recall) for number, recall in zip(classes_K, recall_K, strict=True)}
    return {
        "top-1": Metric(per_image(correct_N), mean),
        "mean recall": Metric(sums_NF, mean_recall, per_class=by_class),
    }


def _lbfgs(
    train_MD: Tensor, labels_M: Tensor, validation_M: npt.NDArray[np.bool_], test_ND: Tensor, settings: Settings
) -> Labels:
    """The predicted labels (N,) of the regression whose C is best on the validation images."""
    del settings  # it draws nothing
    (features, asked), labels = _rescaled(train_MD, test_ND), labels_M.cpu().numpy()
    parts = features[~validation_M], labels[~validation_M], features[validation_M], labels[validation_M]
    scores = _scores(DECADES, *parts)
    best = max(scores, key=scores.__getitem__)
    scores |= _scores([best + step for step in QUARTERS if DECADES[0] <= best + step <= DECADES[-1]], *parts)
    best = max(sorted(scores), key=scores.__getitem__)
    chosen = _fitted(LogisticRegression(C=10.0**best, max_iter=ITERATIONS, tol=TOLERANCE), features, labels)
    return np.asarray(chosen.predict(asked), np.int64)


def _rescaled(train_MD: Tensor, test_ND: Tensor) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Both in float64, less the training images' mean, over the root mean square of what that leaves of these."""
    train, test = (features.cpu().double().numpy() for features in (train_MD, test_ND))
    mean_D = train.mean(axis=0)
    train, test = train - mean_D, test - mean_D
    scale = float(np.sqrt(np.square(train).mean())) or 1.0  # equal images have no scale
    return train / scale, test / scale


def _scores(
    exponents: Iterable[float],
    train: npt.NDArray[np.float64],
    train_labels: Labels,
    validation: npt.NDArray[np.float64],
    labels: Labels,
) -> dict[float, tuple[float, float]]:
    """For each exponent of C, in rising order: accuracy on the validation images, and minus their mean log loss."""
    model = LogisticRegression(max_iter=ITERATIONS, tol=TOLERANCE, warm_start=True)
    found = {}
    for exponent in exponents:
        _fitted(model.set_params(C=10.0**exponent), train, train_labels)
        classes, chances = model.classes_, model.predict_proba(validation)
        own = chances[np.arange(len(labels)), np.searchsorted(classes, labels)]
        accuracy = float((classes[chances.argmax(axis=1)] == labels).mean())
        found[float(exponent)] = accuracy, float(np.log(np.maximum(own, np.finfo(np.float64).tiny)).mean())
        likeliest = max(found, key=lambda tried: found[tried][1])
        if exponent - max(likeliest, max(found, key=found.__getitem__)) >= PATIENCE:
            break
    return found


def _fitted(model: LogisticRegression, features: npt.NDArray[np.float64], labels: Labels) -> LogisticRegression:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(features, labels)


def _sgd(
    train_MD: Tensor, labels_M: Tensor, validation_M: npt.NDArray[np.bool_], test_ND: Tensor, settings: Settings
) -> Labels:
    """The predicted labels (N,) of the layer whose learning rate and weight decay are best on the validation images."""
    classes, targets_M = torch.unique(labels_M.to(settings.device), return_inverse=True)
    train_MD, test_ND = sgd.inputs(train_MD, settings.device), sgd.inputs(test_ND, settings.device)
    validation = torch.from_numpy(validation_M).to(settings.device)
    parts = train_MD[~validation], targets_M[~validation], train_MD[validation], targets_M[validation]
    trial = sgd.best_trial(sgd.trials(settings.seed), *parts, len(classes), settings.seed)
    weights_DK = sgd.train(train_MD, targets_M, len(classes), [trial], settings.seed)[:, 0]
    return np.asarray(classes[(test_ND @ weights_DK).argmax(dim=1)].cpu().numpy(), np.int64)


SOLVERS: Mapping[str, Fit] = {"lbfgs": _lbfgs, "sgd": _sgd}
