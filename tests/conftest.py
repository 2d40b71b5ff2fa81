"""Small real things for all tests: shards of synthetic photographs, two tiny teachers with weights, a cache of both."""

import io
import json
import mmap
import os
import shutil
import tarfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import save_file
from webdataset import TarWriter

from pipelines import extract
from unic_cache.cache import Cache, open_cache
from unic_cache.config import DistillConfig, ExtractConfig, Views
from unic_cache.views import shards as tar_files
from unic_cache.views.augment import make_view
from unic_cache.views.decode import decode
from unic_cache.views.tar_location import folder_at

torch.set_num_threads(1)
os.environ.setdefault("HF_HUB_OFFLINE", "1")

VIT = "timm:test_vit@32"
CNN = "timm:test_efficientnet@32"
SERVICES = {"ray", "s3", "slurm", "web"}  # folders, and marks


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark tests of a folder that needs a service of its own; a run that does not ask for its mark leaves them out."""
    here, asked = Path(__file__).parent, config.getoption("-m")
    folders = [item.path.relative_to(here).parts[0] if here in item.path.parents else "" for item in items]
    for item, folder in zip(items, folders, strict=True):
        if folder in SERVICES:
            item.add_marker(folder)
    kept = [folder not in SERVICES or folder in asked for folder in folders]
    left_out = [item for item, stays in zip(items, kept, strict=True) if not stays]
    items[:] = [item for item, stays in zip(items, kept, strict=True) if stays]
    config.hook.pytest_deselected(items=left_out)


def picture(number: int, size: tuple[int, int] = (40, 32)) -> Image.Image:
    """A synthetic image whose colours and stripes depend on the number, by integer arithmetic alone."""
    height, width = size
    rows, columns = np.mgrid[0:height, 0:width]
    stripes = ((rows * (number % 5 + 1) + columns * (number % 3 + 1)) * 8) % 256
    channels = [(stripes + 37 * number) % 256, (columns * 5 + 11 * number) % 256, (rows * 6 + 91 * number) % 256]
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(path: Path, samples: list[tuple[str, bytes, int | None]]) -> Path:
    """A WebDataset shard of (key, PNG bytes, label)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with TarWriter(str(path), mtime=0) as tar:
        for key, data, label in samples:
            tar.write({"__key__": key, "png": data, **({} if label is None else {"cls": label})})
    return path


def write_members(path: Path, *members: tuple[str, bytes] | tuple[str, bytes, bytes, str]) -> Path:
    """A tar of (name, data) or, for links, (name, data, type, target)."""
    with tarfile.open(path, "w") as tar:
        for name, data, *link in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            if link:
                info.type, info.linkname = link
            tar.addfile(info, io.BytesIO(data))
    return path


@dataclass(frozen=True)
class Shards:
    """A folder of tars."""

    folder: Path
    rows: tuple[int, ...]

    @property
    def pattern(self) -> str:
        return str(self.folder / "*.tar")


def make_shards(folder: Path, rows: tuple[int, ...], first: int = 0, name: str = "{:06d}") -> Shards:
    number = first
    for shard, count in enumerate(rows):
        samples = [(f"image{n:05d}", png(picture(n)), n % 3) for n in range(number, number + count)]
        write_tar(folder / f"{name.format(shard)}.tar", samples)
        number += count
    return Shards(folder, rows)


def views_of(shards, shard: int, number: int, size: int = 32) -> np.ndarray:
    """A tar's views made the slow and obvious way, one after the other."""
    path = str(shards.folder / f"{shard:06d}.tar")
    (entry,) = tar_files.describe([path])
    with tar_files.OpenShard(path, entry) as tar:
        return np.stack(
            [
                make_view(decode(tar.read(row)), Views("unic", size, 0), entry.keys[row], number)
                for row in range(entry.rows)
            ]
        )


@pytest.fixture(autouse=True)
def fresh_process():
    """Reset the state that accelerate keeps per process and shards keep per folder."""
    yield
    folder_at.cache_clear()
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def drawn() -> None:
    """For tests that look at a run's curve."""


@pytest.fixture(autouse=True)
def undrawn(request, monkeypatch) -> None:
    """Runs draw no curve unless a test asks for `drawn`: it takes as long as the few steps of a test."""
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr("pipelines.distill.plot_losses", lambda log, out: None)


@pytest.fixture(scope="session")
def shards(tmp_path_factory) -> Shards:
    """Three tars of 37, 40 and 5 images: more than a chunk, not a multiple of one, and less than one."""
    return make_shards(tmp_path_factory.mktemp("shards"), (37, 40, 5))


@pytest.fixture(scope="session")
def weights(tmp_path_factory) -> dict[str, Path]:
    """Random weights for the two tiny teachers, in timm's own layout."""
    folder = tmp_path_factory.mktemp("weights")
    found = {}
    for name in (VIT, CNN):
        arch = name.removeprefix("timm:").partition("@")[0]
        torch.manual_seed(len(arch))
        path = folder / f"{arch}.safetensors"
        save_file(timm.create_model(arch).state_dict(), path)
        found[name] = path
    return found


@pytest.fixture(scope="session")
def settings(shards, weights):
    """An ExtractConfig for a cache; keywords change fields."""

    def make(cache: Path, **changes) -> ExtractConfig:
        return ExtractConfig(
            **{
                "teachers": (VIT, CNN),
                "weights": tuple((name, str(path)) for name, path in weights.items()),
                "shards": shards.pattern,
                "cache": str(cache),
                "views": 2,
                "size": 32,
                "codec": "f16",
                "batch_size": 16,
                "calibration_images": 60,
                "device": "cpu",
                "threads": 2,
                **changes,
            }
        )

    return make


@pytest.fixture(scope="session")
def cache_folder(tmp_path_factory, settings) -> Path:
    """A whole cache of two teachers, f16, two views and the center view, read-only."""
    folder = tmp_path_factory.mktemp("cache") / "cache"
    extract.run(settings(folder))
    extract.run(settings(folder, recipe="center", views=1))
    return folder


@pytest.fixture
def cache(cache_folder) -> Cache:
    return open_cache(cache_folder)


@pytest.fixture
def training(shards, cache_folder, tmp_path):
    """A DistillConfig on a copy of the shared cache, since a run records what it held out; keywords change fields."""
    own = tmp_path / "cache-trained-on"
    shutil.copytree(cache_folder, own)

    def make(**changes) -> DistillConfig:
        return DistillConfig(
            **{
                "cache": str(own),
                "shards": shards.pattern,
                "out": str(tmp_path / "run"),
                "student": "test_vit",
                "img_size": 32,
                "patch_size": 16,
                "steps": 6,
                "batch_size": 8,
                "lr": 1e-3,
                "log_every": 2,
                "save_every": 100,
                "tracker": "none",
                "threads": 2,
                **changes,
            }
        )

    return make


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[[type[SimpleHTTPRequestHandler]], str]]:
    """A function that serves `tmp_path` with a handler class until the test ends, and returns the URL."""
    running: list[tuple[ThreadingHTTPServer, threading.Thread]] = []

    def start(handler: type[SimpleHTTPRequestHandler]) -> str:
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(tmp_path)))
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        running.append((server, thread))
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server, thread in running:
        server.shutdown()
        thread.join()
        server.server_close()


def log_of(out: Path) -> list[dict]:
    """The lines of a run's log.jsonl."""
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def losses_of(out: Path) -> list[dict]:
    return [{key: record[key] for key in ("kind", "step", "loss", "teachers")} for record in log_of(out)]


def count_memory(monkeypatch) -> list[int]:
    """The sizes of all memory allocated from now on."""
    made: list[int] = []

    class Counted(mmap.mmap):
        def __new__(cls, descriptor, size):
            made.append(size)
            return super().__new__(cls, descriptor, size)

    monkeypatch.setattr("unic_cache.buffers.mmap.mmap", Counted)
    return made


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder by its relative name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
