"""The settings of evaluation."""

from dataclasses import dataclass

from unic_cache.config.choices import EVALUATION_TASKS, SOLVERS
from unic_cache.config.options import DEVICE, TEACHERS, THREADS, option
from unic_cache.config.stage import Stage
from unic_cache.errors import ConfigError


@dataclass(frozen=True)
class EvaluateConfig(Stage):
    """`unic-cache evaluate`: what students, the cached teachers and other networks are worth on every labelled task."""

    encoder: tuple[str, ...] = option(
        (),
        "A run's folder, an exported encoder, or a teacher's name (timm:NAME, ...), which then runs; repeatable.",
        "X",
        unset="the cache's teachers alone",
    )
    shards: str | None = option(
        None, "Labelled tars: leave-one-out for knn and retrieval, a split of each class for the others.", "PATTERN"
    )
    train: str | None = option(None, "Labelled tars: the training images.", "PATTERN")
    test: str | None = option(None, "Labelled tars: the test images.", "PATTERN")
    task: tuple[str, ...] = option(
        (), "What to measure; repeatable.", choices=EVALUATION_TASKS, unset="every task that the labels allow"
    )
    cache: str | None = option(None, "A cache with the teachers' center views.", "DIR", unset="no teachers")
    teachers: tuple[str, ...] = option((), TEACHERS)
    weights: tuple[tuple[str, str], ...] = option(
        (), "Weights file of an --encoder that is a network's name; repeatable.", "[NAME=]FILE"
    )
    features: str | None = option(
        None, "Keep features here, so that later runs start from them.", "DIR", unset="a temporary folder"
    )
    out: str | None = option(None, "Also write the results as JSON.", "FILE")
    analysis: bool = option(
        False, "Add principal dimensions, accuracy without the smallest weights, and on the first components alone."
    )
    size: int | None = option(None, "Center-view size in pixels.", unset="the cache's, or the largest encoder input")
    k: int = option(20, "Neighbours, for the table.")
    solver: str | None = option(
        None,
        "Fit of the linear task: L-BFGS (scikit-learn), or SGD for sets that do not fit it.",
        choices=SOLVERS,
        unset="lbfgs, sgd above 50,000 training images",
    )
    head_steps: int | None = option(
        None, "Training steps of a segmentation or depth head.", unset="1,000, or 10 epochs in batches of 8 if more"
    )
    batch_size: int = option(64, "Images per batch.")
    device: str = option("auto", DEVICE)
    seed: int = option(0, "Random seed of the random student, splits, heads and intervals.")
    threads: int = option(0, THREADS)
    neighbours: tuple[int, ...] = (10, 20, 100, 200)
    temperature: float = 0.07
    bootstrap: int = 1000  # resamples of the test images

    def __post_init__(self) -> None:
        if (self.shards is None) == (self.train is None) or (self.train is None) != (self.test is None):
            raise ConfigError("give --shards PATTERN (leave-one-out), or both --train PATTERN and --test PATTERN")
        super().__post_init__()
        if not self.encoder and self.cache is None:
            raise ConfigError("nothing to evaluate: give --encoder, or --cache for its teachers")
        if self.teachers and self.cache is None:
            raise ConfigError("--teacher chooses among a cache's teachers: add --cache, or name it with --encoder")
        if len(set(self.encoder)) < len(self.encoder):
            raise ConfigError("an --encoder is given twice; give each once")
