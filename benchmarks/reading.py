"""Images a second out of a store, in one run: `python -m benchmarks.reading [--codec klt f16] [--coder zstd pcodec]`.

Four teachers of 196 tokens of width 384 and a uint8 crop of 224 pixels (see `stores`), read in the order of training in
batches of 128. A JSON line for each codec, images a second and ratios:

| what | how |
|---|---|
| `ours` | `stream.Stream`, kept pixels, all checksums, `--threads` threads |
| `preadv` | the same chunks in the same order by preadv(2) into as much memory, nothing checked: the limit |
| `pread_rows` | the same rows in the same order by os.pread, one at a time and dropped, nothing checked |
| `direct` | the same by O_DIRECT: the limit of what is not in the page cache |
| `stock_rows` | zarr-python in a loop, one row after the other |
| `stock_chunks` | zarr-python in a loop, whole chunks, not mixed: what it is best at |
| `theia` | one safetensors file a sample and teacher (float16) in a tar, webdataset, batches stacked: Theia's layout |

`warm`: all of it is in the page cache. `cold`: none is (posix_fadvise), and the store is read as one that does not fit
in memory: past the page cache. `cpu_ms` is the process's own time for an image. `--throttle 500` reads from a store
that gives 500 MB a second, as a network disk may, instead: features alone, with crops as they are (`raw`), and with
crops as differences (`compact`). `--loop` reads and decodes to float32 tokens instead, as `distill` does in its loop
(`distill`) and as `FeatureDataset` does for one's own (`dataset`), and gives their ratio.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import webdataset
import zarr

from benchmarks.stores import QUALITY, ROWS, VIEWS, Throttled, write, write_theia
from pipelines.training.targets import Cached
from unic_cache.ahead import thread_pool
from unic_cache.buffers import Ring
from unic_cache.cache import Cache
from unic_cache.config import CODERS, EXACT, FITTED, PIXEL_CODECS
from unic_cache.files.local import LocalFolder
from unic_cache.store.layout import CHUNK_ROWS, ArraySpec, index_bytes, object_name, view_folder
from unic_cache.store.member import Member
from unic_cache.store.open_objects import OpenObjects
from unic_cache.stream.address import Address
from unic_cache.stream.batches import Batch, Stream
from unic_cache.stream.dataset import FeatureDataset
from unic_cache.stream.gather import pieces
from unic_cache.stream.order import Order
from unic_cache.stream.pixels import KeptPixels
from unic_cache.stream.rows import usable_rows

BATCH = 128
BLOCK = 4096
REST = 1.0  # seconds before a cold run: some disks give more than they can keep up for a while


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--codec", nargs="+", default=["int8"])
    parser.add_argument("--coder", nargs="+", default=CODERS[:1], choices=CODERS, help="of klt; all in one run")
    parser.add_argument("--quality", type=float, default=QUALITY, help="of klt")
    parser.add_argument("--cls-quality", nargs="+", type=float, default=[EXACT], help="of klt; all in one run")
    parser.add_argument("--images", type=int, default=4096, help="a multiple of 1024")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--loop", action="store_true", help="decoded, by distill's loop and by FeatureDataset, alone")
    parser.add_argument("--throttle", type=float, default=0, help="MB/s; 0 is what the disk gives")
    options = parser.parse_args()
    torch.set_num_threads(1)
    first: dict[str, Any] = {}
    for kept in kept_ways(options):
        with tempfile.TemporaryDirectory() as folder, thread_pool(options.threads) as pool:
            way = throttled if options.throttle else looped if options.loop else measured
            found = way(Path(folder), kept, pool, options)
        first = first or found
        if found is not first:
            found["to_first"] = to_first(found, first)
        print(json.dumps({**kept, "threads": options.threads, **found}), flush=True)


def kept_ways(options: argparse.Namespace) -> list[dict[str, Any]]:
    """How features are kept, as `stores.write` takes it: each coder and quality of klt, and the other codecs."""
    fitted = [
        {"codec": FITTED, "coder": coder, "quality": options.quality, "cls_quality": cls_quality}
        for coder in options.coder
        for cls_quality in options.cls_quality
    ]
    return [way for codec in options.codec for way in (fitted if codec == FITTED else [{"codec": codec}])]


def to_first(found: dict[str, Any], first: dict[str, Any]) -> dict[str, float]:
    """How many times the first codec's images a second."""
    names = [name for name in found if isinstance(found[name], dict) and "images_per_second" in found[name]]
    return {name: round(found[name]["images_per_second"] / first[name]["images_per_second"], 2) for name in names}


def measured(
    folder: Path, kept: dict[str, Any], pool: ThreadPoolExecutor, options: argparse.Namespace
) -> dict[str, Any]:
    """Every way of reading, warm and cold."""
    write(LocalFolder(folder), shards=options.images // ROWS, **kept)
    cached, past_cache = (Store(LocalFolder(folder, page_cache=room), pool) for room in (None, 0))
    raw = Raw(cached, pool, options.threads)
    warm = rates(
        {
            "ours": lambda: cached.ours(1),
            "preadv": lambda: raw.read(direct=False),
            **({"pread_rows": raw.read_rows} if raw.rows else {}),
            "stock_rows": cached.stock_rows,
            "stock_chunks": cached.stock_chunks,
        }
    )
    cold = rates(
        {
            "ours": lambda: past_cache.ours(1),
            "ours_through_cache": lambda: cached.ours(1),
            "direct": lambda: raw.read(direct=True),
        },
        cold=folder,
    )
    with tempfile.TemporaryDirectory() as tars:
        write_theia(Path(tars))
        warm |= rates({"theia": lambda: theia(Path(tars), 0), "theia_workers": lambda: theia(Path(tars), 2)}, runs=2)
    for found in (warm, cold):
        for other in found.values():
            other["ours_to_it"] = round(found["ours"]["images_per_second"] / other["images_per_second"], 3)
    return {"bytes_per_image": raw.bytes_per_image, "ours": warm["ours"], "warm": warm, "cold": cold}


def throttled(
    folder: Path, kept: dict[str, Any], pool: ThreadPoolExecutor, options: argparse.Namespace
) -> dict[str, Any]:
    """Ours alone, from a store held to so many MB/s."""
    stores = {}
    for pixels in PIXEL_CODECS:
        write(LocalFolder(folder / pixels), shards=options.images // ROWS, pixel_codec=pixels, **kept)
        stores[pixels] = Store(Throttled(folder / pixels, options.throttle * 1e6), pool)
    stores["features"] = Store(Throttled(folder / "raw", options.throttle * 1e6), pool, kept_views=False)
    found: dict[str, Any] = rates({name: partial(store.ours, 1) for name, store in stores.items()}, runs=2)
    for name, store in stores.items():
        found[name]["bytes_per_image"] = Raw(store, pool, options.threads).bytes_per_image
    return {"throttle": options.throttle, **found}


def looped(folder: Path, kept: dict[str, Any], pool: ThreadPoolExecutor, options: argparse.Namespace) -> dict[str, Any]:
    """Decoded batches of one epoch after the other, warm."""
    write(LocalFolder(folder), shards=options.images // ROWS, **kept)
    store = Store(LocalFolder(folder), pool)
    dataset = FeatureDataset(folder, batch_size=BATCH, threads=options.threads)
    ways = {"distill": store.decoded, "dataset": lambda: sum(len(batch["image"]) for batch in dataset)}
    found: dict[str, Any] = rates(ways)
    ratio = found["dataset"]["images_per_second"] / found["distill"]["images_per_second"]
    return {**found, "dataset_to_distill": round(ratio, 3)}


def rates(ways: dict[str, Callable[[], int]], cold: Path | None = None, runs: int = 5) -> dict[str, dict[str, float]]:
    """The best of some runs of each way, in turns, after one that does not count."""
    best: dict[str, dict[str, float]] = {}
    for turn in range(-1, runs):
        for name, run in ways.items():
            if cold is not None:
                drop(cold)
                time.sleep(REST)
            began, busy = time.perf_counter(), time.process_time()
            images = run()
            wall, cpu = time.perf_counter() - began, time.process_time() - busy
            rate = {"images_per_second": round(images / wall, 1), "cpu_ms": round(1e3 * cpu / images, 4)}
            if turn >= 0:
                best[name] = max(best.get(name, rate), rate, key=lambda found: found["images_per_second"])
    return best


def drop(folder: Path) -> None:
    """Nothing of the folder's objects in the page cache."""
    os.sync()
    for path in folder.rglob("c.*"):
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


class Store:
    """A cache read as `distill` reads it, and by zarr-python; each way returns how many images it read."""

    def __init__(self, location: LocalFolder, pool: ThreadPoolExecutor, kept_views: bool = True) -> None:
        self.cache = Cache(location)
        self.teachers = list(self.cache.teachers.values())
        rows, _ = usable_rows(self.cache, self.teachers, VIEWS, (0,), list(self.cache.shards()))
        self.images = len(rows)
        self.objects = OpenObjects(location)
        self.record = lru_cache(lambda member, unit: member.record(unit))
        self.order = Order(rows, (0,), 0)
        pixels = KeptPixels(VIEWS, self.cache, pool) if kept_views else None
        self.stream = Stream(self.cache, self.teachers, VIEWS, pixels, pool)
        self.decode = Cached(self.teachers)
        self.members = [teacher.member for teacher in self.teachers]
        if kept_views and self.cache.pixels is not None:
            self.members.append(self.cache.pixels)

    def ours(self, epochs: int) -> int:
        """All batches of some epochs."""
        return sum(len(batch.wanted) for batch in self._batches(epochs))

    def decoded(self) -> int:
        """As many batches as an epoch has of one endless stream, and their tokens as `distill` decodes them."""
        for batch in islice(self._endless, self.images // BATCH):
            self.decode(batch, batch.views_BHWC)
        return self.images

    @cached_property
    def _endless(self) -> Iterator[Batch]:
        return self._batches(10**6)

    def _batches(self, epochs: int) -> Iterator[Batch]:
        starts = range(0, epochs * self.images, BATCH)
        return self.stream.batches(self.order.samples(start, start + BATCH) for start in starts)

    def stock_rows(self) -> int:
        """One row after the other, in the order of training."""
        wanted = self.order.samples(0, BATCH)
        for item in wanted:
            chunk, row = divmod(item.row, CHUNK_ROWS)
            for tiled, array in self._arrays():
                array[(item.shard, chunk, slice(None), row) if tiled else (item.shard, item.row)]
        return len(wanted)

    def stock_chunks(self) -> int:
        """One chunk of each array after the other."""
        chunks = 8
        for chunk in range(chunks):
            for _, array in self._arrays():
                step = array.chunks[1]
                array[0, chunk * step : (chunk + 1) * step]
        return chunks * CHUNK_ROWS

    @lru_cache  # noqa: B019
    def _arrays(self) -> list[tuple[bool, zarr.Array[Any]]]:
        """Whether it is tiled, and each array."""
        folders = [(m, Path(self.cache.location.url) / view_folder(m.folder, 0, VIEWS.name(0))) for m in self.members]
        return [
            (array.tile > 0, zarr.open_array(folder / array.name, mode="r"))
            for member, folder in folders
            for array in member.arrays
        ]


class Raw:
    """The limit: the chunks that an epoch reads, in its order, as they lie in the files."""

    def __init__(self, store: Store, pool: ThreadPoolExecutor, count: int) -> None:
        self.images = store.images
        self._pool = pool
        self._chunks = list(chunks_of(store))
        self._step = -(-len(self._chunks) // (16 * count))
        self._memory = Ring(1).take(sum(size + 3 * BLOCK for *_, size in self._chunks))
        tiled = any(array.tile for member in store.members for array in member.arrays)
        self.rows = [] if tiled else list(rows_of(store))
        self.bytes_per_image = round(sum(size for *_, size in self._chunks) / self.images)

    def read(self, direct: bool) -> int:
        """All of them, each to memory of its own."""
        flags = os.O_RDONLY | (os.O_DIRECT if direct else 0)
        files = {path: os.open(path, flags) for path in {path for path, *_ in self._chunks}}
        reads, at = [], 0
        for path, offset, size in self._chunks:
            lead = offset % BLOCK if direct else 0
            whole = -(-(lead + size) // BLOCK) * BLOCK
            reads.append((files[path], self._memory[at : at + (whole if direct else size)].data, offset - lead))
            at += whole + BLOCK

        def work(start: int) -> None:
            for descriptor, room, offset in reads[start : start + self._step]:
                os.preadv(descriptor, [room], offset)

        list(self._pool.map(work, range(0, len(reads), self._step)))
        for descriptor in files.values():
            os.close(descriptor)
        return self.images

    def read_rows(self) -> int:
        """All rows, one after the other."""
        files = {path: os.open(path, os.O_RDONLY) for path in {path for path, *_ in self.rows}}
        reads = [(files[path], size, offset) for path, offset, size in self.rows]
        step = -(-len(reads) // 64)

        def work(start: int) -> None:
            for descriptor, size, offset in reads[start : start + step]:
                os.pread(descriptor, size, offset)

        list(self._pool.map(work, range(0, len(reads), step)))
        for descriptor in files.values():
            os.close(descriptor)
        return self.images


def chunks_of(store: Store) -> Iterator[tuple[str, int, int]]:
    """File, offset and size of each chunk of the first epoch."""
    for piece in pieces(store.order.samples(0, store.images)):
        for member in store.members:
            for array in member.arrays:
                for pick in piece.picks:
                    yield where(store, member, array, piece.first, pick.chunk)


def rows_of(store: Store) -> Iterator[tuple[str, int, int]]:
    """File, offset and size of each row of the first epoch."""
    for item in store.order.samples(0, store.images):
        for member in store.members:
            for array in member.arrays:
                path, offset, _ = where(store, member, array, item, item.row // CHUNK_ROWS)
                yield path, offset + item.row % CHUNK_ROWS * array.row_bytes, array.row_bytes


def where(store: Store, member: Member, array: ArraySpec, item: Address, chunk: int) -> tuple[str, int, int]:
    """File, offset and size of a chunk."""
    unit = store.cache.unit(item.segment, item.shard, VIEWS)
    record = store.record(member, unit)
    part, inside = divmod(chunk, unit.extent.object_rows // CHUNK_ROWS)
    name = object_name(member.folder, 0, unit.view, array, unit.shard, part)
    opened = store.objects.get(name, record.sizes[name], index_bytes(unit.extent))
    return f"{store.cache.location.url}/{name}", *opened.spans[inside]


def theia(folder: Path, workers: int) -> int:
    """Samples one after the other, stacked to batches; by a DataLoader's worker processes, or in this one."""

    def unpack(sample: dict[str, Any]) -> dict[str, torch.Tensor]:
        found = {
            name: safetensors.torch.load(data)["embedding"]
            for name, data in sample.items()
            if name.endswith("safetensors")
        }
        return found | {"rgb": torch.frombuffer(bytearray(sample["rgb"]), dtype=torch.uint8)}

    tars = [str(path) for path in sorted(folder.glob("*.tar"))]
    dataset = webdataset.WebDataset(tars, shardshuffle=False, nodesplitter=None).repeat(2).map(unpack)
    loader = torch.utils.data.DataLoader(dataset, batch_size=BATCH, num_workers=workers)
    return sum(len(batch["rgb"]) for batch in loader)


if __name__ == "__main__":
    main()
