"""The settings of `unic-cache recode`."""

from dataclasses import dataclass, field
from typing import ClassVar

from unic_cache.config.bounds import check_worker
from unic_cache.config.choices import CODECS
from unic_cache.config.extract import check_quality
from unic_cache.config.options import DEVICE, NUM_WORKERS, THREADS, WORKER_INDEX, described, option
from unic_cache.config.stage import Stage


@dataclass(frozen=True)
class RecodeConfig(Stage):
    """`unic-cache recode`: a cache to another one with another codec or fewer tokens."""

    stage: ClassVar[str] = "recode"
    source: str = field(metadata=described(metavar="SRC"))
    target: str = field(metadata=described(metavar="DST"))
    codec: str | None = option(None, "Codec for patch tokens.", choices=CODECS, unset="DST's, or SRC's")
    quality: float | None = option(None, "Mean cosine to SRC that klt aims for.", unset="DST's, or SRC's, or 0.99")
    tokens: int | None = option(None, "Keep N patch tokens per view.", metavar="N", unset="DST's, or SRC's")
    teachers: tuple[str, ...] = option((), "A teacher in SRC; repeatable.", metavar="NAME", unset="all", flag="teacher")
    views: bool = option(True, "Copy the kept pixels too.")
    device: str = option("auto", DEVICE)
    threads: int = option(0, THREADS)
    worker_index: int = option(0, WORKER_INDEX)
    num_workers: int = option(1, NUM_WORKERS)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_quality(self.codec, self.quality)
        check_worker(self.worker_index, self.num_workers)

    def is_mine(self, shard: int) -> bool:
        """Whether this worker recodes tar number `shard`."""
        return shard % self.num_workers == self.worker_index
