"""Opening a huge cache: `python -m benchmarks.opening [--tars 100000] [--views 20] [--teachers 4] [--no-seals]`.

The cache is synthetic (`benchmarks.synthetic`): nothing is on a disk, so these are the costs of names, records, order
and memory, without those of a store. One JSON line:

| what | how |
|---|---|
| `open_s`, `open_mb` | `Cache(location)`: seconds, and the most memory it took above what the process had |
| `first_batch_s`, `first_batch_mb` | from there to the first batch: rows, order, snapshot, features and kept views |
| `batches_per_s`, `stream_mb` | the batches after it, and by how much the most memory grew over their second half |
| `resume_s` | from there to the first batch of the second epoch's middle, as after a restart |
| `..._cpu_s` | seconds of CPU, which a busy machine changes less |
| `snapshot_mb` | of the run's snapshot.json |
| `calls` | of the location until the first batch: files read, names listed, ... |
"""

import argparse
import dataclasses
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.synthetic import Shape, SyntheticFolder
from pipelines.training.training_set import TrainingSet, open_training_set
from unic_cache.ahead import thread_pool
from unic_cache.cache import Cache
from unic_cache.config import DistillConfig
from unic_cache.stream.batches import Batch, Stream
from unic_cache.stream.order import Order
from unic_cache.student.run_files import SNAPSHOT

MEGABYTE = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tars", type=int, default=100_000)
    parser.add_argument("--rows", type=int, default=1300, help="of a tar")
    parser.add_argument("--views", type=int, default=20)
    parser.add_argument("--teachers", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--batches", type=int, default=200)
    parser.add_argument("--no-seals", action="store_true", help="as earlier releases made and read caches")
    options = parser.parse_args()
    shape = Shape(options.tars, options.rows, options.views, options.teachers, not options.no_seals)
    folder = SyntheticFolder(shape)
    folder.prepare()
    print(json.dumps({**dataclasses.asdict(shape), **measured(folder, options.batch_size, options.batches)}))


def measured(folder: SyntheticFolder, size: int, count: int) -> dict[str, Any]:
    """Open the cache, take the first batch and `count` more, and a batch as after a restart."""
    found: dict[str, Any] = {}
    folder.calls.clear()
    with Section(found, "open"):
        cache = Cache(folder)
    with thread_pool(2) as pool, tempfile.TemporaryDirectory() as out:
        with Section(found, "first_batch"):
            data = open_training_set(DistillConfig(out=out), cache, pool, None)
            data.snapshot.save(Path(out))
            stream = Stream(cache, data.teachers, data.snapshot.views, data.pixels, pool)
            batches = stream.batches(wanted(data, size, 0))
            next(batches)
        found |= {"images": len(data.train), "calls": dict(folder.calls)}
        found["snapshot_mb"] = round((Path(out) / SNAPSHOT).stat().st_size / MEGABYTE, 2)
        took = time.perf_counter()
        take(batches, count // 2)
        with Section(found, "stream"):
            take(batches, count - count // 2)
        found["batches_per_s"] = round(count / (time.perf_counter() - took), 1)
        batches.close()
        with Section(found, "resume"):
            next(stream.batches(wanted(data, size, 3 * len(data.train) // 2)))
    return found


def wanted(data: TrainingSet, size: int, first: int) -> Iterator[list[Any]]:
    """Batches from sample `first` on, as `distill` takes them."""
    order = Order(data.train, data.snapshot.numbers, seed=0)
    while True:
        yield order.samples(first, first + size)
        first += size


def take(batches: Iterator[Batch], count: int) -> None:
    """Take some batches."""
    for _ in range(count):
        next(batches)


class Section:
    """Notes seconds, seconds of CPU, and the most memory above what there was, as NAME_s, NAME_cpu_s and NAME_mb."""

    def __init__(self, found: dict[str, Any], name: str) -> None:
        self.found = found
        self.name = name

    def __enter__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # the most begins anew
        self.before = memory("VmRSS")
        self.since = time.perf_counter(), time.process_time()

    def __exit__(self, *_: object) -> None:
        self.found[f"{self.name}_s"] = round(time.perf_counter() - self.since[0], 3)
        self.found[f"{self.name}_cpu_s"] = round(time.process_time() - self.since[1], 3)
        self.found[f"{self.name}_mb"] = round(memory("VmHWM") - self.before, 1)


def memory(what: str) -> float:
    """Megabytes that the process has, or had at most."""
    lines = Path(f"/proc/{os.getpid()}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(what))


if __name__ == "__main__":
    main()
