"""The settings of `unic-cache evaluate`."""

from dataclasses import dataclass, field
from typing import ClassVar

from unic_cache.config.options import DEVICE, TEACHERS, THREADS, described, option
from unic_cache.config.stage import Stage
from unic_cache.errors import ConfigError


@dataclass(frozen=True)
class EvaluateConfig(Stage):
    """`unic-cache evaluate`: k-NN of a student, a random student and the cached teachers."""

    stage: ClassVar[str] = "evaluate"
    encoder: str = field(metadata=described("A run's folder or its encoder.safetensors.", metavar="DIR_OR_FILE"))
    shards: str | None = option(None, "Labelled tars, evaluated leave-one-out.", metavar="PATTERN")
    train: str | None = option(None, "Labelled tars: the neighbours.", metavar="PATTERN")
    test: str | None = option(None, "Labelled tars: the test images.", metavar="PATTERN")
    cache: str | None = option(None, "A cache with the teachers' center views.", metavar="DIR", unset="no teachers")
    teachers: tuple[str, ...] = option((), TEACHERS)
    size: int | None = option(None, "Center-view size in pixels.", unset="the cache's, or the student's input")
    k: int = option(20, "Neighbours, for the table.")
    batch_size: int = option(64, "Images per batch.")
    device: str = option("auto", DEVICE)
    seed: int = option(0, "Random seed of the random student and of the intervals.")
    threads: int = option(0, THREADS)
    neighbours: tuple[int, ...] = (10, 20, 100, 200)
    temperature: float = 0.07
    bootstrap: int = 1000  # resamples of the test images

    def __post_init__(self) -> None:
        if (self.shards is None) == (self.train is None) or (self.train is None) != (self.test is None):
            raise ConfigError("give --shards PATTERN (leave-one-out), or both --train PATTERN and --test PATTERN")
        super().__post_init__()
