"""`extract` against a bare loop of the same teachers' forwards, in one run.

    python -m benchmarks.extracting [--teacher dino --teacher ibot] [--codec klt f16] [--images N] [--batch-size N]

Synthetic photographs of 500 x 375 as JPEG in tars, and teachers with random weights, whose tokens are simpler than real
ones: at quality 0.9998 `klt` keeps a seventh of float16 of them (ViT-B), as of real ones at 0.99. A JSON line for
each codec; medians over views that both sides are shown in turns.

| what | how |
|---|---|
| `extract` | `extract.run` for one more view of all images: decode, augment, forward, encode, compress, write, commit |
| `bare` | the teachers' forwards on the same views, decoded before and lying on the device, and nothing else |
| `extract_to_bare` | images a second of the one over those of the other, median of the turns' own ratios |
| `cpu_ms_beside` | CPU time of the process for an image, less what the bare loop takes: all that is not a forward |
| `opening_seconds` | index, specs and checks before the first image; on neither side, nor is loading or calibration |
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
from unic_cache.ahead import thread_pool
from unic_cache.config import CODECS, DTYPES, ExtractConfig
from unic_cache.stream.address import Address
from unic_cache.stream.pixels import ShardPixels
from unic_cache.student.backbone import EncoderSpec, prepare
from unic_cache.teachers.catalog import resolve
from unic_cache.teachers.model import Teacher
from unic_cache.teachers.tokens import tokens
from unic_cache.views.shards import describe, expand

SMALL, LARGE = ("timm:vit_small_patch16_224",), ("dino", "ibot", "deit3", "dbot-ft")
QUALITY = 0.9998  # mean cosine
DISTINCT = 256  # photographs; more images are the same ones under other keys, and so other crops
SIZE = (375, 500)  # pixels, height and width
NOISE = ((4, 5, 60.0), (24, 32, 30.0), (94, 125, 16.0), (375, 500, 10.0))  # grid and standard deviation of each layer
DTYPE_OF = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Took:
    """Seconds of the clock, and of the process's CPU time, for a number of images."""

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
        teachers = extract.load_teachers(config, device)
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
    """View 0 makes the calibration and warms both sides up; each further view is a turn of both."""
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
    """Extraction of what is missing; what it took from the moment all was open, the seconds before, and bytes kept."""
    honest, opened_at = extract.open_teachers, []

    def opening(*arguments: Any) -> extract.Opened:
        opened = honest(*arguments)
        opened_at.append(now())
        return opened

    began = now()
    with given(teachers), patch.object(extract, "open_teachers", opening):
        summary = extract.run(config)
    (wall, cpu), (opened_wall, opened_cpu) = now(), opened_at[0]
    return Took(wall - opened_wall, cpu - opened_cpu, summary.images), opened_wall - began[0], summary.bytes


def kept_by(codec: str, quality: float) -> dict[str, Any]:
    """The codec's settings; klt alone has a quality."""
    return {"codec": codec, "quality": quality if codec == "klt" else None}


def given(teachers: Mapping[str, Teacher]) -> Any:
    """While inside, these are the teachers that extraction loads: once is enough."""
    return patch.object(extract, "load_teachers", lambda *_: teachers)


def forwards(teachers: Mapping[str, Teacher], views_NHWC: Tensor, batch_size: int) -> Took:
    """The limit: every teacher on every batch."""
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
    """A teacher's tokens, as the model gives them."""
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
    """What the figures were measured on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return {"device": name, "threads": torch.get_num_threads()}


def now() -> tuple[float, float]:
    """The clock, and the process's CPU time."""
    return time.perf_counter(), time.process_time()


def wait_for(device: torch.device) -> None:
    """Until all that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def photograph(number: int) -> bytes:
    """Smooth light, shapes, texture and grain, as JPEG of quality 90: about as many bytes as ImageNet's."""
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
    """Photographs in tars of equally many."""
    folder.mkdir()
    photographs = [photograph(number) for number in range(min(images, DISTINCT))]
    rows = images // tars
    for tar in range(tars):
        with TarWriter(str(folder / f"{tar:06d}.tar")) as writer:
            for number in range(tar * rows, (tar + 1) * rows):
                writer.write({"__key__": f"{number:08d}", "jpg": photographs[number % DISTINCT]})


def random_weights(folder: Path, names: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Each teacher's name and a file of weights as timm draws them."""
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
