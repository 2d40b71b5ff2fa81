"""What evaluation costs beyond the encoders' own forward passes, in one run.

    python -m benchmarks.evaluating [--images 2000] [--students vit_small_patch16_224 ...] [--size 224]

Synthetic JPEGs with classes and masks in tars, and one student of random weights for each name, so that with
the untrained one that `evaluate` adds there are three encoders. One JSON line.

| what | seconds, or how they are had |
|---|---|
| `encoding` | each encoder alone over a quarter of the images, times 4: decoding, views, one forward pass; their sum |
| `evaluate` | one `evaluate` of all encoders with `knn`, `linear` and `segmentation`, intervals and pairs included |
| `ratio` | evaluate / encoding: at most 1.25 by the goal, since decoding is shared and tasks start from kept features |
| `again` | the same `evaluate` from the features that the first has kept |
"""

import argparse
import contextlib
import io
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from webdataset import TarWriter

from benchmarks.extracting import machine
from pipelines import evaluate
from pipelines.command.device import pick_device
from unic_cache.ahead import ahead, thread_pool
from unic_cache.config import EvaluateConfig, Views
from unic_cache.stream.address import Address
from unic_cache.stream.pixels import ShardPixels
from unic_cache.student.backbone import build_encoder, encoder_spec, prepare, tokens
from unic_cache.student.export import save_encoder
from unic_cache.views.shards import describe

TASKS = ("knn", "linear", "segmentation")
CLASSES, PER_TAR = 10, 500
QUARTER = 4


def write_images(folder: Path, images: int, size: int) -> None:
    """Tars of `images` JPEGs 1.3 times as large as the view, each with a class and a mask of that class's square."""
    folder.mkdir(parents=True)
    side = size * 13 // 10
    rng = np.random.default_rng(0)
    for first in range(0, images, PER_TAR):
        with TarWriter(str(folder / f"{first // PER_TAR:06d}.tar"), encoder=False) as tar:
            for number in range(first, min(first + PER_TAR, images)):
                label = number % CLASSES
                small = rng.integers(0, 256, (side // 16, side // 16, 3), np.uint8)
                pixels = np.array(Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC))
                mask = np.zeros((side, side), np.uint8)
                low, high = side // 4, side * 3 // 4
                pixels[low:high, low:high] = pixels[low:high, low:high] // 4 + 19 * label
                mask[low:high, low:high] = label + 1
                sample = {"jpg": encoded(pixels, "JPEG"), "mask.png": encoded(mask, "PNG"), "cls": str(label).encode()}
                tar.write({"__key__": f"image{number:06d}", **sample})


def encoded(pixels: np.ndarray, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def encode_alone(pattern: str, names: list[str], size: int, batch_size: int, device: torch.device) -> float:
    """Seconds of decoding and one forward pass of all images by one encoder after the other, by those of a quarter."""
    paths = sorted(str(path) for path in Path(pattern).parent.glob("*.tar"))
    entries = describe(paths)
    tars = {(0, place): (path, entry) for place, (path, entry) in enumerate(zip(paths, entries, strict=True))}
    every = [Address(0, place, row, 0) for place, entry in enumerate(entries) for row in range(entry.rows)]
    wanted = every[: max(len(every) // QUARTER, 1)]
    groups = [wanted[start : start + batch_size] for start in range(0, len(wanted), batch_size)]
    seconds = 0.0
    for name in names:
        spec = encoder_spec(name, size)
        model = build_encoder(spec, 0).eval().to(device)
        began = time.perf_counter()
        with thread_pool(0) as pool, torch.inference_mode():
            source = ShardPixels(Views("center", size, 0), tars, pool)
            for batch in ahead(groups, lambda group, source=source: source.start(group, len(group)), 3):
                summary, patches = tokens(model, prepare(torch.from_numpy(batch.views_BHWC).to(device), spec))
                summary.cpu(), patches.cpu()
        seconds += time.perf_counter() - began
    return seconds * len(every) / len(wanted)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--students", nargs="+", default=["vit_small_patch16_224"] * 2)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=64)
    options = parser.parse_args()
    device = pick_device("auto")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_images(folder / "tars", options.images, options.size)
        pattern = str(folder / "tars/*.tar")
        for place, name in enumerate(options.students):
            spec = encoder_spec(name, options.size)
            (folder / f"student-{place}").mkdir()
            save_encoder(folder / f"student-{place}/encoder.safetensors", build_encoder(spec, place + 1), spec, {})
        config = EvaluateConfig(
            encoder=tuple(str(folder / f"student-{place}") for place in range(len(options.students))),
            shards=pattern,
            task=TASKS,
            features=str(folder / "features"),
            batch_size=options.batch_size,
        )
        found = []
        for _ in range(2):
            began = time.perf_counter()
            with contextlib.redirect_stderr(io.StringIO()):
                result = evaluate.run(config)
            found.append(time.perf_counter() - began)
        everyone = [*options.students, *dict.fromkeys(options.students)]  # the untrained ones run too
        alone = encode_alone(pattern, everyone, options.size, options.batch_size, device)
    line = {
        "images": options.images,
        "encoders": len(result.rows),
        "tasks": list(TASKS),
        "encoding": round(alone, 1),
        "evaluate": round(found[0], 1),
        "ratio": round(found[0] / alone, 3),
        "again": round(found[1], 1),
        **machine(device),
    }
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
