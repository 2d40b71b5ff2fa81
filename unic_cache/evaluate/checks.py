"""What no task can work with: features that are not finite, one class only, a class that training lacks.

Letters: N images, D channels.
"""

from torch import Tensor

from unic_cache.errors import ConfigError
from unic_cache.evaluate.task import Examples

LISTED = 5  # class numbers in a message


def check_finite(features_ND: Tensor) -> None:
    """ConfigError if a feature of some image is NaN or infinite."""
    broken = (~features_ND.isfinite().flatten(1).all(dim=1)).nonzero()
    if len(broken):
        raise ConfigError(
            f"features of {len(broken)} of {len(features_ND)} images are not finite (the first in row "
            f"{int(broken[0])}); the encoder has diverged or its input is broken"
        )


def check_labelled(features_ND: Tensor, labels_N: Tensor | None) -> Tensor:
    """The labels, one for each row. ConfigError without images or labels, or if sizes disagree or values are broken."""
    count = 0 if labels_N is None else len(labels_N)
    if labels_N is None or features_ND.ndim != 2 or len(features_ND) != count or count == 0:
        raise ConfigError(f"features of shape {tuple(features_ND.shape)} do not go with {count} labels")
    check_finite(features_ND)
    return labels_N


def class_labels(train: Examples, test: Examples) -> tuple[Tensor, Tensor]:
    """The labels of both sides. ConfigError if training has one class only, or lacks a class of the test images."""
    train_labels = check_labelled(train.summary_ND, train.labels_N)
    test_labels = check_labelled(test.summary_ND, test.labels_N)
    if train.summary_ND.shape[1] != test.summary_ND.shape[1]:
        raise ConfigError(
            f"training features have {train.summary_ND.shape[1]} channels and test features {test.summary_ND.shape[1]}"
        )
    known = set(train_labels.tolist())
    if len(known) == 1:
        raise ConfigError(f"all {len(train_labels)} training images are of class {known.pop()}; use at least 2 classes")
    check_known(known, set(test_labels.tolist()))
    return train_labels, test_labels


def check_known(train: set[int], test: set[int]) -> None:
    """ConfigError if a class is among the test images' and not among the training images'."""
    lacking = sorted(test - train)
    if lacking:
        more = ", ..." if len(lacking) > LISTED else ""
        raise ConfigError(
            f"{len(lacking)} of {len(test)} classes of the test images have no training images: "
            f"{', '.join(map(str, lacking[:LISTED]))}{more}; number the classes of both sets alike, or leave these out"
        )
