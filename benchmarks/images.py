"""What the pixels of a view cost in stage two, one thread, in one run: `python -m benchmarks.images [--images FOLDER]`.

| how | |
|---|---|
| `decode` | JPEG decoded, cropped, resized, augmented: what a cache without kept views does |
| `raw` | kept as they are (`--keep-views`): copied and checked |
| `compact` | kept as differences (`--pixel-codec compact`): checked, decompressed, summed up |
| `webp` | the same as lossless WebP files, which the cache does not use |
| `draft` | JPEG decoded at half the size where the crop still has more pixels than the view: how often checksums stay |

Without `--images` they are synthetic photographs of 500 x 375 and 2000 x 1500. JSON, one line a way; `ms` is CPU time.
"""

import argparse
import io
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from crc32c import crc32c
from numcodecs import Zstd
from PIL import Image

from unic_cache.config import Views
from unic_cache.store.codecs.pixel_codec import from_differences, to_differences
from unic_cache.store.coders import ZSTD_LEVEL
from unic_cache.store.layout import CHUNK_ROWS
from unic_cache.views.augment import make_view, pixel_crc
from unic_cache.views.decode import decode

Pixels = npt.NDArray[np.uint8]


def photograph(number: int, width: int, height: int) -> bytes:
    """A JPEG whose spectrum falls like a photograph's: noise of all scales."""
    generator = np.random.default_rng(number)
    image = np.zeros((height, width, 3), np.float32)
    for octave in range(1, 9):
        noise = generator.normal(0, 255 / 2**octave, (2**octave, 2**octave, 3)).astype(np.float32)
        planes = [Image.fromarray(noise[..., c]).resize((width, height), Image.Resampling.BICUBIC) for c in range(3)]
        image += np.stack([np.asarray(plane) for plane in planes], axis=-1)
    buffer = io.BytesIO()
    Image.fromarray(np.clip(image + 128, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def draft(data: bytes) -> Image.Image:
    """Decoded at half the size, where JPEG can."""
    image = Image.open(io.BytesIO(data))
    image.draft("RGB", (image.width // 2, image.height // 2))
    return image.convert("RGB")


def timed(run: Callable[[], object], count: int) -> float:
    """Milliseconds of CPU an image, the better of two runs."""
    took = []
    for _ in range(2):
        start = time.process_time()
        run()
        took.append((time.process_time() - start) / count * 1e3)
    return round(min(took), 3)


def webp(view: Pixels) -> bytes:
    """A lossless file, made fast."""
    buffer = io.BytesIO()
    Image.fromarray(view).save(buffer, "WEBP", lossless=True, method=0, quality=50)
    return buffer.getvalue()


def measure(name: str, files: Sequence[bytes], views: Views) -> None:
    """All ways, for one kind of images."""
    count = len(files)
    made = np.stack([make_view(decode(data), views, key, 0) for key, data in enumerate(files)])
    out = np.empty_like(made)
    lossless = [webp(view) for view in made]
    chunks = np.split(made, range(CHUNK_ROWS, count, CHUNK_ROWS))
    packed = [Zstd(level=ZSTD_LEVEL).encode(to_differences(torch.from_numpy(chunk)).numpy()) for chunk in chunks]

    def raw() -> None:
        for place in range(count):
            out[place] = made[place]
            crc32c(out[place].data)

    def compact() -> None:
        for number, data in enumerate(packed):
            crc32c(data)
            start = number * CHUNK_ROWS
            room = out[start : start + len(chunks[number])]
            Zstd().decode(data, room.reshape(-1))
            from_differences(torch.from_numpy(room))

    def decode_all() -> None:
        for key, data in enumerate(files):
            make_view(decode(data), views, key, 0)

    def webp_all() -> None:
        for place, data in enumerate(lossless):
            out[place] = Image.open(io.BytesIO(data))

    size = made.nbytes / count
    for way, run, kept in (
        ("decode", decode_all, sum(map(len, files)) / count),
        ("raw", raw, size),
        ("compact", compact, sum(map(len, packed)) / count),
        ("webp", webp_all, sum(map(len, lossless)) / count),
    ):
        result = {
            "images": name,
            "way": way,
            "ms": timed(run, count),
            "bytes": round(kept),
            "of_raw": round(kept / size, 3),
        }
        if way != "decode":
            assert np.array_equal(out, made)
        print(json.dumps(result), flush=True)
    halved = [draft(data) for data in files]
    same = [pixel_crc(make_view(image, views, key, 0)) == pixel_crc(made[key]) for key, image in enumerate(halved)]
    print(json.dumps({"images": name, "way": "draft", "checksums_that_stay": f"{sum(same)} of {count}"}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", help="a folder of JPEGs")
    parser.add_argument("--count", type=int, default=96)
    parser.add_argument("--size", type=int, default=224)
    options = parser.parse_args()
    torch.set_num_threads(1)
    views = Views("unic", options.size, 0)
    if options.images:
        paths = sorted(path for path in Path(options.images).rglob("*") if path.suffix.lower() in {".jpg", ".jpeg"})
        measure(options.images, [path.read_bytes() for path in paths[: options.count]], views)
        return
    for width, height in ((500, 375), (2000, 1500)):
        measure(f"synthetic {width} x {height}", [photograph(n, width, height) for n in range(options.count)], views)


if __name__ == "__main__":
    main()
