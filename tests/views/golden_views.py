"""The checksums of a few views of made images, printed as JSON: run as a program it serves other CPU settings.

The images come from integer arithmetic; one JPEG (chroma subsampled, on its side by EXIF) lies beside this file.
"""

import io
import json
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from unic_cache.config import Views
from unic_cache.views.augment import make_view, pixel_crc
from unic_cache.views.decode import decode

JPEG = Path(__file__).parent / "on_its_side.jpg"
VIEWS = [Views("unic", 64, 0), Views("unic", 224, 7), Views("light", 64, 0), Views("center", 64, 0)]
NUMBERS = (0, 1, 2, 3, 12345)


def png(width: int, height: int, salt: int) -> bytes:
    """Overlapping quadratic waves of integers: smooth in places, wrapping in others."""
    y, x = np.mgrid[0:height, 0:width].astype(np.int64)
    channels = [(x * x // (5 + salt) + y * (3 + k) + (x * y) // (17 + 4 * k) + 60 * k) % 256 for k in range(3)]
    buffer = io.BytesIO()
    Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def sources() -> dict[str, bytes]:
    return {"wide": png(200, 120, 0), "tall": png(75, 301, 4), "tiny": png(9, 7, 2), "jpeg": JPEG.read_bytes()}


def checksums(mapper: Callable[..., Iterable[Any]] = map) -> dict[str, str]:
    """crc32c of each (image, recipe, number), worked through by `mapper`, which may be a pool's."""
    images = {name: decode(data) for name, data in sources().items()}
    cases = [(name, views, number) for name in images for views in VIEWS for number in NUMBERS]

    def checksum(case: tuple[str, Views, int]) -> str:
        name, views, number = case
        return f"{pixel_crc(make_view(images[name], views, zlib.crc32(name.encode()), number)):08x}"

    names = [f"{name} {views.name(number)}" for name, views, number in cases]
    return dict(zip(names, mapper(checksum, cases), strict=True))


if __name__ == "__main__":
    print(json.dumps(checksums(), indent=1))
