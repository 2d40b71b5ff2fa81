"""The pictures of the study's packages: what to distil as a list, what to evaluate on by class.

A picture has a name of its own, and a group: pictures of one group are alike (tiles of one photograph, drawings of one
series, as far as their names tell) and stay on one side of a split. Nothing is decoded before `read`.
"""

import csv
import gzip
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from benchmarks.study.packages import FetchError
from unic_cache.views.decode import decode, open_image

Classes = Mapping[str, Sequence["Picture"]]

SIDES = range(48, 4097)  # pixels of the longer side: icons have nothing to see, and posters take seconds to decode
TILE = 640  # pixels: a photograph is cut into as many tiles across and down as have this side, at most TILES
TILES = 3
PHOTOGRAPHIC = ("categorization", "explore_monuments", "explore_world_animals", "lang")  # of GCompris' resources
SKIMAGE = (
    "astronaut.png", "brick.png", "camera.png", "chelsea.png", "coffee.png", "coins.png", "grass.png", "gravel.png",
    "hubble_deep_field.jpg", "ihc.png", "moon.png", "motorcycle_left.png", "retina.jpg", "rocket.jpg",
)  # fmt: skip
CELLS = {
    "0.0": "functional",
    "1.0": "defective",
}  # by the experts' probability of a defect; the unsure ones are left out
GARMENTS = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot")


@dataclass(frozen=True)
class Picture:
    """One picture of a package."""

    name: str  # unique in its list
    group: str
    read: Callable[[], Image.Image]  # 8-bit RGB, transparency on white


def rank(name: str) -> bytes:
    """A name's place in a random order that depends on the name alone."""
    return hashlib.sha256(name.encode()).digest()


def clip_art(package: Path) -> list[Picture]:
    """Openclipart's drawings, and Tux Paint's stamps likewise: by folder, without copies and extreme sizes."""
    found: list[Picture] = []
    seen: set[bytes] = set()
    for path in sorted(package.rglob("*.png")):
        if path.is_symlink() or "doc" in path.parts:
            continue
        data = path.read_bytes()
        digest = hashlib.sha256(data).digest()
        if digest in seen or max(PngImageFile(io.BytesIO(data)).size) not in SIDES:
            continue
        seen.add(digest)
        name = "-".join(path.relative_to(package).with_suffix("").parts[3:])
        found.append(Picture(name, re.sub(r"[\W\d_]+$", "", name), partial(_read, path)))
    return found


def gcompris(package: Path) -> list[Picture]:
    """The WebP pictures, mostly photographs, in GCompris' resource files, which hold them uncompressed."""
    found = []
    for stem in PHOTOGRAPHIC:
        data = (package / f"usr/share/gcompris-qt/rcc/{stem}.rcc").read_bytes()
        for number, file in enumerate(_webp(data)):
            if max(open_image(file).size) in SIDES:
                name = f"{stem}-{number:03d}"
                found.append(Picture(name, name, partial(decode, file)))
    return found


def wallpapers(package: Path) -> list[Picture]:
    """Tiles of the largest .jpg of each wallpaper: of folders NAME/contents/images, else of `nature`."""
    by_name: dict[str, list[Path]] = {}
    for path in sorted(package.rglob("*.jpg")):
        if path.parent.name == "images":
            by_name.setdefault(path.parent.parent.parent.name, []).append(path)
        elif path.parent.name == "nature":
            by_name[path.stem] = [path]
    largest = {name: max(paths, key=lambda path: path.stat().st_size) for name, paths in by_name.items()}
    return [tile for name, path in largest.items() for tile in _tiles(name, path)]


def skimage(package: Path) -> list[Picture]:
    """scikit-image's test photographs."""
    return [Picture(name, name, partial(_read, package / "skimage/data" / name)) for name in SKIMAGE]


def emoji(package: Path) -> Classes:
    """A vendor's emoji at 64 pixels by category, without variations of skin."""
    vendor = package.name.removeprefix("emoji-datasource-").partition("-")[0]
    classes: dict[str, list[Picture]] = {}
    for one in _emoji_list(package):
        if one[f"has_img_{vendor}"] and one["category"] != "Component":
            path = package / f"package/img/{vendor}/64" / one["image"]
            classes.setdefault(_plain(one["category"]), []).append(Picture(path.stem, path.stem, partial(_read, path)))
    return classes


def fluent(package: Path, listed: Path) -> Classes:
    """Microsoft's emoji at 256 pixels, by the categories of the emoji list in the package `listed`."""
    classes: dict[str, list[Picture]] = {}
    for one in _emoji_list(listed):
        for code in (one["unified"], one["non_qualified"]):
            path = package / "package/assets" / f"{(code or '-').lower()}.webp"
            if path.is_file() and one["category"] != "Component":
                classes.setdefault(_plain(one["category"]), []).append(
                    Picture(path.stem, path.stem, partial(_read, path))
                )
                break
    return classes


def food(package: Path) -> Classes:
    """Photographs of Indian foods by the letter of their group in the food composition tables, A to T."""
    classes: dict[str, list[Picture]] = {}
    for path in sorted((package / "package/assets").glob("*.jp*g")):
        classes.setdefault(path.stem[0], []).append(Picture(path.stem, path.stem, partial(_read, path)))
    return classes


def cells(package: Path) -> Classes:
    """Electroluminescence images of solar cells: functional, or defective."""
    folder = package / "elpv_dataset/data"
    classes: dict[str, list[Picture]] = {name: [] for name in CELLS.values()}
    with open(folder / "labels.csv", newline="") as file:
        for name, probability, _ in csv.reader(file, delimiter=" ", skipinitialspace=True):
            path = folder / name
            if probability in CELLS:
                classes[CELLS[probability]].append(Picture(path.stem, path.stem, partial(_read, path)))
    return classes


def garments(package: Path) -> Classes:
    """The 10,000 test images of Fashion-MNIST, 28 x 28 grey pixels."""
    folder = package / "usr/share/datasets/fashion-mnist"
    images_NHW, labels_N = (_idx(folder / f"t10k-{what}.gz") for what in ("images-idx3-ubyte", "labels-idx1-ubyte"))
    classes: dict[str, list[Picture]] = {name: [] for name in GARMENTS}
    for number, (image_HW, label) in enumerate(zip(images_NHW, labels_N.tolist(), strict=True)):
        name = f"{number:05d}"
        classes[GARMENTS[label]].append(Picture(name, name, partial(_grey, image_HW)))
    return classes


def _read(path: Path) -> Image.Image:
    return decode(path.read_bytes())


def _grey(pixels_HW: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels_HW).convert("RGB")


def _emoji_list(package: Path) -> list[dict[str, str]]:
    found: list[dict[str, str]] = json.loads((package / "package/emoji.json").read_text())
    return found


def _plain(category: str) -> str:
    """Smileys & Emotion -> smileys-emotion."""
    return re.sub(r"\W+", "-", category.lower())


def _webp(data: bytes) -> Iterator[bytes]:
    """The WebP files in `data`, whose headers give their lengths."""
    for found in re.finditer(rb"RIFF(.{4})WEBPVP8", data, re.DOTALL):
        yield data[found.start() : found.start() + 8 + int.from_bytes(found[1], "little")]


def _tiles(name: str, path: Path) -> Iterator[Picture]:
    """Equal parts of a photograph, row by row."""
    width, height = open_image(path.read_bytes()).size
    across, down = (max(1, min(TILES, side // TILE)) for side in (width, height))
    for row in range(down):
        for column in range(across):
            yield Picture(f"{name}-{row}{column}", name, partial(_tile, path, (across, down), (column, row)))


def _tile(path: Path, counts: tuple[int, int], place: tuple[int, int]) -> Image.Image:
    image = _read(path)
    left, upper, right, lower = (
        (place[axis] + step) * image.size[axis] // counts[axis] for step in (0, 1) for axis in (0, 1)
    )
    return image.crop((left, upper, right, lower))


def _idx(path: Path) -> np.ndarray:
    """An array in MNIST's IDX format of bytes: 0, 0, 8, dimensions, each size in 4 bytes, values."""
    data = gzip.decompress(path.read_bytes())
    shape = [int.from_bytes(data[4 + 4 * at : 8 + 4 * at], "big") for at in range(data[3])]
    values = np.frombuffer(data, np.uint8, offset=4 + 4 * data[3])
    if data[:3] != b"\0\0\x08" or values.size != np.prod(shape):
        raise FetchError(f"{path} is not an IDX file of bytes; delete its package's folder to fetch it again")
    return values.reshape(shape)
