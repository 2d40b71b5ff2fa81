"""Images a second out of a store, in one run: `python -m benchmarks.reading [--codec int8 f16] [--images 2048]`.

Four teachers of 196 tokens of width 384 and a uint8 crop of 224 pixels (invented: features with a spectrum like a
teacher's, noise for pixels), read in the order of training in batches of 128. A JSON line for each codec, images a
second and ratios:

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
that gives 500 MB a second, as a network disk may, instead: with the crops (`with_crops`) and without (`features`).
"""

import argparse
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
import webdataset
import zarr

from unic_cache.buffers import Ring
from unic_cache.cache import Cache
from unic_cache.config import Views
from unic_cache.gather import pieces
from unic_cache.location import LocalFolder
from unic_cache.open_file import OpenFile, Span
from unic_cache.sources import Address, Finish, Image, KeptPixels, ViewBatch, thread_pool
from unic_cache.store.calibrate import Calibrator
from unic_cache.store.commit import Crcs, Unit
from unic_cache.store.layout import CHUNK_ROWS, VIEWS_MEMBER, ArraySpec, Extent, index_bytes, object_name, view_folder
from unic_cache.store.member import Member
from unic_cache.store.objects import OpenObjects
from unic_cache.store.writer import UnitWriter, row_crcs
from unic_cache.stream import Order, Stream
from unic_cache.usable import usable_rows
from unic_cache.views.index import ShardEntry, extend_index

TEACHERS, GRID, CHANNELS, ROWS, BATCH = 4, 14, 384, 1024, 128
VIEWS = Views("unic", 224, 0)
BLOCK = 4096
REST = 1.0  # seconds before a cold run: some disks give more than they can keep up for a while


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--codec", nargs="+", default=["int8"])
    parser.add_argument("--images", type=int, default=2048, help="a multiple of 1024")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--throttle", type=float, default=0, help="MB/s; 0 is what the disk gives")
    options = parser.parse_args()
    torch.set_num_threads(1)
    first: dict[str, Any] = {}
    for codec in options.codec:
        with tempfile.TemporaryDirectory() as folder, thread_pool(options.threads) as pool:
            write(LocalFolder(folder), codec, options.images // ROWS)
            found = (throttled if options.throttle else measured)(folder, pool, options)
        first = first or found
        if found is not first:
            found["to_first"] = to_first(found, first)
        print(json.dumps({"codec": codec, "threads": options.threads, **found}), flush=True)


def to_first(found: dict[str, Any], first: dict[str, Any]) -> dict[str, float]:
    """How many times the first codec's images a second."""
    names = [name for name in found if isinstance(found[name], dict) and "images_per_second" in found[name]]
    return {name: round(found[name]["images_per_second"] / first[name]["images_per_second"], 2) for name in names}


def measured(folder: str, pool: ThreadPoolExecutor, options: argparse.Namespace) -> dict[str, Any]:
    """Every way of reading, warm and cold."""
    cached, past_cache = (Store(LocalFolder(folder, page_cache=room), pool) for room in (None, 0))
    raw = Raw(cached, pool, options.threads)
    warm = rates(
        {
            "ours": lambda: cached.ours(4),
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
        cold=Path(folder),
    )
    with tempfile.TemporaryDirectory() as tars:
        write_theia(Path(tars))
        warm |= rates({"theia": lambda: theia(Path(tars), 0), "theia_workers": lambda: theia(Path(tars), 2)}, runs=2)
    for found in (warm, cold):
        for other in found.values():
            other["ours_to_it"] = round(found["ours"]["images_per_second"] / other["images_per_second"], 3)
    return {"bytes_per_image": raw.bytes_per_image, "ours": warm["ours"], "warm": warm, "cold": cold}


def throttled(folder: str, pool: ThreadPoolExecutor, options: argparse.Namespace) -> dict[str, Any]:
    """Ours alone, from a store held to so many MB/s: features and crops, and features alone."""
    location = Throttled(folder, options.throttle * 1e6)
    both, features_alone = (Store(location, pool, kept) for kept in (True, False))
    found: dict[str, Any] = rates({"with_crops": lambda: both.ours(2), "features": lambda: features_alone.ours(2)})
    for name, store in (("with_crops", both), ("features", features_alone)):
        found[name]["bytes_per_image"] = Raw(store, pool, options.threads).bytes_per_image
    return {"throttle": options.throttle, **found}


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
        pixels = KeptPixels(VIEWS, self.cache, pool) if kept_views else Elsewhere()
        self.stream = Stream(self.cache, self.teachers, VIEWS, pixels, pool, check_pixels=kept_views)
        self.members = [teacher.member for teacher in self.teachers]
        if kept_views and self.cache.pixels is not None:
            self.members.append(self.cache.pixels)

    def ours(self, epochs: int) -> int:
        """All batches of some epochs."""
        starts = range(0, epochs * self.images, BATCH)
        batches = (self.order.samples(start, start + BATCH) for start in starts)
        return sum(len(batch.views_BHWC) for batch in self.stream.batches(batches))

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


class Elsewhere:
    """Views that cost nothing, in the place of those that come from elsewhere."""

    def start(self, wanted: Sequence[Address], size: int) -> Finish:
        raise NotImplementedError

    def group(self, batches: Sequence[Sequence[Address]], views_NHWC: Image) -> list[Callable[[], Finish]]:
        """Whatever the memory held."""
        return [
            lambda wanted=wanted: lambda: ViewBatch(views_NHWC[: len(wanted)], np.zeros(len(wanted), np.uint32), {})
            for wanted in batches
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
    unit = store.cache.unit(item.segment, item.shard, VIEWS.name(0))
    record = store.record(member, unit)
    part, inside = divmod(chunk, unit.extent.object_rows // CHUNK_ROWS)
    name = object_name(member.folder, 0, unit.view, array, unit.shard, part)
    opened = store.objects.get(name, record.sizes[name], index_bytes(unit.extent))
    return f"{store.cache.location.url}/{name}", *opened.spans[inside]


class Throttled(LocalFolder):
    """A folder that gives at most `rate` bytes a second to all its readers together."""

    waits = True

    def __init__(self, path: str, rate: float) -> None:
        super().__init__(path)
        self.rate = rate
        self._free_at = 0.0
        self._lock = threading.Lock()

    def open(self, name: str) -> OpenFile:
        return _ThrottledFile(super().open(name), self)

    def wait(self, size: int) -> None:
        with self._lock:
            self._free_at = max(self._free_at, time.perf_counter()) + size / self.rate
            until = self._free_at
        time.sleep(max(until - time.perf_counter(), 0))


class _ThrottledFile:
    def __init__(self, file: OpenFile, folder: Throttled) -> None:
        self.near, self.at_once, self.sector = file.near, file.at_once, file.sector
        self._file = file
        self._folder = folder

    def read(self, offset: int, size: int) -> memoryview:
        self._folder.wait(size)
        return self._file.read(offset, size)

    def read_into(self, offset: int, buffers: Sequence[memoryview]) -> int:
        self._folder.wait(sum(len(buffer) for buffer in buffers))
        return self._file.read_into(offset, buffers)

    def expecting(self, spans: Sequence[Span]) -> OpenFile:  # noqa: ARG002
        return self


def write(location: LocalFolder, codec: str, shards: int) -> None:
    """A whole cache: index, four teachers, kept pixels."""
    names = [f"tar{shard}" for shard in range(shards)]
    keys = tuple(range(ROWS))
    extend_index(location, [ShardEntry(name, ROWS, keys, keys, (1,) * ROWS, (None,) * ROWS) for name in names])
    units = [Unit(0, Extent(shards, ROWS), shard, name, ROWS, VIEWS.name(0)) for shard, name in enumerate(names)]
    generator = np.random.default_rng(0)
    rgb = generator.integers(0, 256, (ROWS, VIEWS.size, VIEWS.size, 3), np.uint8)
    seen = row_crcs(rgb)
    member = Member.ensure(location, VIEWS_MEMBER, {"format": 1, "size": VIEWS.size})
    for unit in units:
        UnitWriter(member, None).write(unit, {"rgb": rgb}, seen, {})
    del rgb
    for number in range(TEACHERS):
        write_teacher(location, f"teacher{number}", number, codec, units, seen)


def write_teacher(location: LocalFolder, name: str, seed: int, codec: str, units: Sequence[Unit], seen: Crcs) -> None:
    """A member and all its units, with the same 256 images' features again and again."""
    spec = {
        "format": 1,
        "teacher": {"name": name},
        "provenance": {},
        "codec": codec,
        "features": {"cls_dim": CHANNELS, "grid": [GRID, GRID], "patch_dim": CHANNELS},
    }
    member = Member.ensure(location, name, spec)
    tokens = features(seed)
    assert member.features is not None
    calibrator = Calibrator(member.features)
    calibrator.update(tokens)
    calibration = calibrator.calibration()
    location.create(member.calibration_name, calibration.to_bytes())
    kept = member.calibration()
    assert kept is not None
    assert member.codec is not None
    parts = member.codec.encode(calibration.standardize(tokens))
    rows = {array.name: np.tile(parts[array.name].numpy(), (4,) + (1,) * len(array.row)) for array in member.arrays}
    for unit in units:
        UnitWriter(member, kept[1]).write(unit, rows, seen, {})


def features(seed: int) -> dict[str, torch.Tensor]:
    """256 images' tokens: variances that fall as k**-1.3 along random axes, half of them common to neighbours."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    images = ROWS // 4
    axes_DD = torch.linalg.qr(noise(CHANNELS, CHANNELS)).Q * torch.arange(1, CHANNELS + 1)[:, None] ** -0.65
    coarse = torch.nn.functional.interpolate(noise(images, CHANNELS, 5, 5), size=(GRID, GRID), mode="bilinear")
    patch = 0.8 * coarse.flatten(2).mT + 0.6 * noise(images, GRID * GRID, CHANNELS)
    return {"cls": noise(images, CHANNELS) @ axes_DD, "patch": patch @ axes_DD}


def write_theia(folder: Path) -> None:
    """1,024 samples in two tars: each teacher's float16 tokens as a safetensors file, and the crop."""
    tokens = {"embedding": torch.randn(GRID * GRID + 1, CHANNELS).half()}
    teachers = {f"t{number}.safetensors": safetensors.torch.save(tokens) for number in range(TEACHERS)}
    crop = np.random.default_rng(0).bytes(3 * VIEWS.size**2)
    for tar in range(2):
        with webdataset.TarWriter(str(folder / f"{tar}.tar")) as writer:
            for number in range(ROWS // 2):
                writer.write({"__key__": f"{tar}{number:04d}", "rgb": crop, **teachers})


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
