"""What large sets cost, by arithmetic from measured figures: the tables of docs/SCALE.md. `python -m benchmarks.scale`.

Nothing here is run at that size. How many objects and requests a unit takes is counted by tests/test_requests.py.
"""

import math
from dataclasses import dataclass

from benchmarks.study.markdown import table
from unic_cache.store.layout import CHUNK_ROWS, SHARD_ROWS

TEACHERS = 4  # ViT-B of 224 px
TOKENS, WIDTH = 196, 768
ARRAYS = 2  # of a teacher: cls and patch
TOKEN_BYTES = 98.2 * WIDTH / 384  # klt at cosine 0.99: docs/BENCHMARKS.md has the saliency ViT-S on photographs
VIEW_BYTES = 224 * 224 * 3 * 0.29  # kept, `compact`
RECORD_ROW_BYTES = 22  # of a commit record: two checksums in decimal
VIEW_SECONDS, KEPT_SECONDS = 2.8e-3, 0.31e-3  # of one core, from a JPEG of 500 x 375 px, and from a kept view
READ_SECONDS = 0.16e-3  # of one core, for an image's features and checksums
FORWARDS = 1000.0  # images a second of one teacher on one GPU: an assumption, `plan` measures yours
WRITE, READ, MONTH = 5e-6, 0.4e-6, 0.023  # dollars per write or listing, per read, per GB and month


@dataclass(frozen=True)
class Job:
    """A set of images and the views of each."""

    name: str
    images: int
    views: int
    tar_rows: int

    @property
    def tars(self) -> int:
        return math.ceil(self.images / self.tar_rows)

    @property
    def shown(self) -> int:
        """Views of images."""
        return self.images * self.views

    @property
    def feature_bytes(self) -> float:
        """Of all teachers: patch tokens as klt, a CLS token in float16."""
        return self.shown * TEACHERS * (TOKENS * TOKEN_BYTES + 2 * WIDTH)

    @property
    def records(self) -> int:
        """One for each tar, view and member; the kept views are a member."""
        return self.tars * self.views * (TEACHERS + 1)

    @property
    def objects(self) -> int:
        """Zarr objects: SHARD_ROWS rows of one array at most."""
        return self.tars * self.views * (TEACHERS * ARRAYS + 1) * math.ceil(self.tar_rows / SHARD_ROWS)

    @property
    def reads(self) -> float:
        """Requests of an epoch: each chunk of each array once, and of each object its size and its index."""
        chunks = self.images / CHUNK_ROWS * (TEACHERS * ARRAYS + 1)
        return chunks + 2 * self.objects / self.views + self.records / self.views


JOBS = (
    Job("ImageNet-1k", 1_281_167, 10, 1_000),
    Job("ImageNet-21k", 14_197_122, 4, 1_000),
    Job("a billion images", 1_000_000_000, 1, 10_000),
    Job("DataComp-1B", 1_387_173_656, 1, 10_000),
)


def tables() -> list[str]:
    """Markdown tables: what is stored, and what it costs."""
    stored = [
        [
            f"{job.name}, {job.views} view{'s' * (job.views > 1)}",
            f"{job.tars:,}",
            f"{job.tars * job.views * TEACHERS:,}",
            short(job.objects),
            f"{job.feature_bytes / 1e12:,.1f}",
            f"{job.shown * VIEW_BYTES / 1e12:,.1f}",
            f"{job.records * job.tar_rows * RECORD_ROW_BYTES / 1e9:,.1f}",
        ]
        for job in JOBS
    ]
    costs = [
        [
            f"{job.name}, {job.views} view{'s' * (job.views > 1)}",
            short(job.objects + job.records),
            dollars((job.objects + job.records) * WRITE),
            short(job.reads),
            dollars(job.reads * READ),
            dollars((job.feature_bytes + job.shown * VIEW_BYTES) / 1e9 * MONTH),
            f"{job.shown * TEACHERS / FORWARDS / 3600:,.0f}",
            f"{job.shown * VIEW_SECONDS / 3600:,.0f}",
            f"{job.images * (READ_SECONDS + KEPT_SECONDS) / 3600:,.1f}",
        ]
        for job in JOBS
    ]
    return [
        table(
            ["images", "tars", "units of teachers", "objects", "features, TB", "kept views, TB", "records, GB"], stored
        ),
        table(
            [
                "images", "writes", "price", "reads an epoch", "price", "a month", "GPU-hours", "core-hours of views",
                "core-hours an epoch",
            ],
            costs,
        ),
    ]  # fmt: skip


def short(count: float) -> str:
    """A number in thousands, millions or billions."""
    unit, name = next((one for one in ((1e9, " G"), (1e6, " M"), (1e3, " k")) if count >= one[0]), (1.0, ""))
    return f"{count / unit:,.1f}{name}"


def dollars(amount: float) -> str:
    """Whole dollars, or cents below ten."""
    return f"{amount:,.0f} $" if amount >= 10 else f"{amount:,.2f} $"


if __name__ == "__main__":
    print("\n\n".join(tables()))
