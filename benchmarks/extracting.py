"""`extract` against a bare loop of the same teachers' forwards, in one run.

    python -m benchmarks.extracting [--teacher dino --teacher ibot] [--codec klt f16] [--images N] [--batch-size N]

Synthetic photographs of 500 x 375 as JPEG in tars, and teachers with random weights. Their tokens are simpler than real
ones: `klt` shrinks them to a seventh of float16 at quality 0.9998 (ViT-B), real ones at 0.99. Prints a JSON line per
codec, with medians over views that both sides see in turns.

| what | how |
|---|---|
| `extract` | `extract.run` for one more view of all images: decode, augment, forward, encode, compress, write, commit |
| `bare` | the teachers' forwards on the same views, decoded before and on the device, and nothing else |
| `extract_to_bare` | ratio of images per second, median over turns |
| `cpu_ms_beside` | CPU ms of the process per image, minus the bare loop's: all that is not a forward |
| `opening_seconds` | index, specs and checks before the first image; on neither side, like loading and calibration |
"""

import argparse
import dataclasses
import io
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from webdataset import TarWriter

from pipelines import extract
from pipelines.command.device import pick_device
from pipelines.extracting import opening
from pipelines.extracting.opening_options import TeacherOptions
from unic_cache.ahead import thread_pool
from unic_cache.config import CODECS, DTYPES, ExtractConfig
from unic_cache.stream.address import Address
from unic_cache.stream.pixels import ShardPixels
from unic_cache.student.backbone import EncoderSpec, prepare
from unic_cache.teachers.catalog import resolve
from unic_cache.teachers.model import Teacher
from unic_cache.teachers.token_rules import tokens
from unic_cache.views.shards import describe, expand

SMALL, LARGE = ("timm:vit_small_patch16_224",), ("dino", "ibot", "deit3", "dbot-ft")
QUALITY = 0.9998  # mean cosine
DISTINCT = 256  # photographs; more images are the same ones under other keys, and so other crops
SIZE = (375, 500)  # pixels, height and width
NOISE = ((4, 5, 60.0), (24, 32, 30.0), (94, 125, 16.0), (375, 500, 10.0))  # grid and standard deviation of each layer


@dataclass(frozen=True)
class Took:
    """Wall-clock and CPU seconds of the process for a number of images."""

    wall: float
    cpu: float
    images: int

    @property
    def rate(self) -> float:
        """Images a second."""
        return self.images / self.wall


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", action="append", metavar="NAME", help="one ViT-S, or on CUDA four ViT-B")
    parser.add_argument("--codec", nargs="+", choices=CODECS, default=["klt", "f16"])
    parser.add_argument("--images", type=int, help="128, or 4096 on CUDA, unless told")
    parser.add_argument("--tars", type=int, default=4)
    parser.add_argument("--batch-size", type=int, help="16, or 128 on CUDA, unless told")
    parser.add_argument("--dtype", choices=DTYPES, help="float32, or bfloat16 on CUDA, unless told")
    parser.add_argument("--quality", type=float, default=QUALITY, help="of klt")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--keep-views", action="store_true", help="keep the pixels too")
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    device = pick_device(options.device)
    cuda = device.type == "cuda"
    names = tuple(options.teacher or (LARGE if cuda else SMALL))
    images, batch = options.images or (4096 if cuda else 128), options.batch_size or (128 if cuda else 16)
    if images % (options.tars * batch):
        raise SystemExit(f"{images} images in {options.tars} tars are not whole batches of {batch}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tars(folder / "tars", images, options.tars)
        config = ExtractConfig(
            teachers=names,
            weights=random_weights(folder, names),
            shards=str(folder / "tars/*.tar"),
            views=1,
            batch_size=batch,
            device=str(device),
            dtype=options.dtype or ("bfloat16" if cuda else "float32"),
            keep_views=options.keep_views,
            calibration_images=min(images, 256),
        )
        teachers = opening.load_teachers(TeacherOptions.of(config), device)
        for codec in options.codec:
            with tempfile.TemporaryDirectory(dir=folder) as cache:
                own = dataclasses.replace(config, cache=cache, **kept_by(codec, options.quality))
                found = measured(own, teachers, device, options.repeat)
            settings = {"codec": codec, "teachers": names, "images": images, "batch": batch, "dtype": config.dtype}
            print(
                json.dumps({**settings, "keep_views": options.keep_views, **machine(device), **found}),
                flush=True,
            )


def measured(
    config: ExtractConfig, teachers: dict[str, Teacher], device: torch.device, repeat: int
) -> dict[str, float]:
    """View 0 calibrates and warms up both sides; each further view is a turn of both."""
    extracted(config, teachers)
    forwards(teachers, views_of(config, 0, device)[: config.batch_size], config.batch_size)
    turns: list[tuple[Took, Took]] = []
    openings, sizes = [], []
    for number in range(1, repeat + 1):
        took, opening, size = extracted(dataclasses.replace(config, views=number + 1), teachers)
        turns.append((took, forwards(teachers, views_of(config, number, device), config.batch_size)))
        openings.append(opening)
        sizes.append(size / took.images)
    return {
        "extract": round(median(ours.rate for ours, _ in turns), 2),
        "bare": round(median(bare.rate for _, bare in turns), 2),
        "extract_to_bare": round(median(ours.rate / bare.rate for ours, bare in turns), 3),
        "cpu_ms_beside": round(median(1e3 * (ours.cpu - bare.cpu) / ours.images for ours, bare in turns), 2),
        "opening_seconds": round(median(openings), 3),
        "bytes_per_image": round(median(sizes)),
    }


def extracted(config: ExtractConfig, teachers: dict[str, Teacher]) -> tuple[Took, float, int]:
    """Extract what is missing: time from the moment all was open, seconds until then, and bytes stored."""
    honest, opened_at = extract.open_teachers, []

    def timed(*arguments: Any) -> opening.Opened:
        opened = honest(*arguments)
        opened_at.append(now())
        return opened

    began = now()
    with given(teachers), patch.object(extract, "open_teachers", timed):
        summary = extract.run(config)
    (wall, cpu), (opened_wall, opened_cpu) = now(), opened_at[0]
    return Took(wall - opened_wall, cpu - opened_cpu, summary.images), opened_wall - began[0], summary.bytes


def kept_by(codec: str, quality: float) -> dict[str, Any]:
    """The codec's settings; only klt has a quality."""
    return {"codec": codec, "quality": quality if codec == "klt" else None}


def given(teachers: Mapping[str, Teacher]) -> Any:
    """Inside, extraction uses these teachers instead of loading its own."""
    return patch.object(opening, "load_teachers", lambda *_: teachers)


def forwards(teachers: Mapping[str, Teacher], views_NHWC: Tensor, batch_size: int) -> Took:
    """The limit: run every teacher on every batch."""
    wait_for(views_NHWC.device)
    wall, cpu = now()
    for views_BHWC in torch.split(views_NHWC, batch_size):
        for teacher in teachers.values():
            forward(teacher, views_BHWC)
    wait_for(views_NHWC.device)
    done = now()
    return Took(done[0] - wall, done[1] - cpu, len(views_NHWC))


@torch.inference_mode()
def forward(teacher: Teacher, views_BHWC: Tensor) -> dict[str, Tensor]:
    """A teacher's tokens straight from the model."""
    spec = teacher.spec
    images_BCHW = prepare(
        views_BHWC, EncoderSpec(spec.arch, spec.input_size, spec.stride, mean=spec.mean, std=spec.std)
    )
    with torch.autocast(teacher.device.type, teacher.dtype, enabled=teacher.dtype != torch.float32):
        return tokens(teacher.model, images_BCHW, spec)


def views_of(config: ExtractConfig, number: int, device: torch.device) -> Tensor:
    """View `number` of every image, in the order of extraction, on the device."""
    paths = expand(str(config.shards))
    entries = describe(paths)
    tars = {(0, shard): pair for shard, pair in enumerate(zip(paths, entries, strict=True))}
    wanted = [Address(0, shard, row, number) for shard, entry in enumerate(entries) for row in range(entry.rows)]
    with thread_pool(0) as pool:
        source = ShardPixels(config.kind, tars, pool)
        return torch.from_numpy(source.start(wanted, len(wanted))().views_BHWC).to(device)


def machine(device: torch.device) -> dict[str, str | int]:
    """The device and the number of threads."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return {"device": name, "threads": torch.get_num_threads()}


def now() -> tuple[float, float]:
    """Wall-clock and CPU seconds."""
    return time.perf_counter(), time.process_time()


def wait_for(device: torch.device) -> None:
    """Wait until the device is idle."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def photograph(number: int) -> bytes:
    """A JPEG of smooth light, shapes, texture and grain at quality 90: about as large as ImageNet's."""
    generator = np.random.default_rng([0, number])
    pixels = np.full((*SIZE, 3), 128.0)
    for height, width, deviation in NOISE:
        layer = generator.normal(0, deviation, (height, width, 3)).astype(np.float32)
        for channel in range(3):
            wide = Image.fromarray(layer[:, :, channel]).resize(SIZE[::-1], Image.Resampling.BICUBIC)
            pixels[:, :, channel] += np.asarray(wide)
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def write_tars(folder: Path, images: int, tars: int) -> None:
    """Write photographs into tars of equal length."""
    folder.mkdir()
    photographs = [photograph(number) for number in range(min(images, DISTINCT))]
    rows = images // tars
    for tar in range(tars):
        with TarWriter(str(folder / f"{tar:06d}.tar")) as writer:
            for number in range(tar * rows, (tar + 1) * rows):
                writer.write({"__key__": f"{number:08d}", "jpg": photographs[number % DISTINCT]})


def random_weights(folder: Path, names: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """(name, file) of each teacher, with weights as timm initializes them."""
    files = []
    for number, name in enumerate(names):
        spec = resolve(name)
        torch.manual_seed(number)
        options = {key: value for key, value in spec.arch_options if key != "img_size"}
        path = folder / f"{number}.safetensors"
        save_file(timm.create_model(spec.arch, num_classes=0, **options).state_dict(), path)
        files.append((name, str(path)))
    return tuple(files)


if __name__ == "__main__":
    main()
