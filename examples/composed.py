"""Real pictures with exact masks: emoji pasted on photographs, `python -m examples.composed OUT`.

    OUT/train/*.tar, OUT/test/*.tar   images with `.mask.png`: 0 background, 1 to 9 the emoji's category
    OUT/mask-classes.json             their names

The photographs are those that scikit-learn and matplotlib are installed with; the emoji are the repository's own, with
their alpha channels. Test images take other emoji and other regions of each photograph than training images. They have
no `.cls` labels, since an image may have emoji of several categories.

Everything about image `number` of a split is a pure function of (seed, split, number): see `recipe`.

Letters: S pixels of a side, H and W pixels.
"""

import io
import json
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt
from PIL import Image

from pipelines.command.failures import clear_errors
from pipelines.shard import run as shard
from unic_cache.config import ShardConfig
from unic_cache.config.bounds import SEEDS
from unic_cache.draws import Purpose, uniforms, words
from unic_cache.errors import ConfigError
from unic_cache.files.local import LocalFolder
from unic_cache.views.decode import decode

EMOJI = Path(__file__).parent.parent / "tests/data/noto-emoji"
PHOTOGRAPHS = (  # package, file
    ("sklearn", "datasets/images/china.jpg"),
    ("sklearn", "datasets/images/flower.jpg"),
    ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),
)
SPLITS = {"train": (0.0, 0.7), "test": (0.7, 1.0)}  # the part of each photograph's width
TEST_SHARE = 4  # one image in four is for testing
CROPS = (0.45, 1.0)  # side of a crop over the shorter side of the photograph's part
SIZES = (0.25, 0.6)  # side of an emoji over that of the image
TURN = 20  # degrees, at most, to either side
MOST = 3  # emoji in an image
TILE = 64  # pixels, of a committed emoji
OPAQUE = 128  # alpha from which on a pixel belongs to the emoji

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Emoji:
    """An emoji over white, its alpha channel, and its class in masks."""

    over_white: Image.Image
    alpha: Image.Image
    mask_class: int


@dataclass(frozen=True)
class Pasted:
    """One emoji in an image; `across` and `down` are shares of the room that it leaves."""

    key: str
    size: int  # pixels, before it is turned
    angle: int  # degrees
    across: float
    down: float


@dataclass(frozen=True)
class Recipe:
    """All that an image is made of: a square of a photograph, mirrored or not, and emoji from back to front."""

    photograph: int
    box: tuple[int, int, int, int]  # left, upper, right, lower, in pixels of the photograph
    mirrored: bool
    emoji: tuple[Pasted, ...]


@cache
def photographs() -> tuple[Image.Image, ...]:
    """The photographs, RGB."""
    found = []
    for package, name in PHOTOGRAPHS:
        spec = find_spec(package)
        path = Path(spec.origin or "").parent / name if spec else Path(name)
        if not path.is_file():
            raise ConfigError(f"{path}: this photograph comes with {package}; install it with `pip install {package}`")
        found.append(decode(path.read_bytes()))
    return tuple(found)


@cache
def all_emoji() -> Mapping[str, Mapping[str, Emoji]]:
    """{split: {key: emoji}} of the committed tars."""
    pictures = {split: _pictures(split) for split in SPLITS}
    keys = sorted(key for found in pictures.values() for key in found)
    with Image.open(EMOJI / "alpha.png") as sheet:
        alphas = {key: sheet.crop((0, TILE * row, TILE, TILE * (row + 1))) for row, key in enumerate(keys)}
    return {
        split: {key: Emoji(image, alphas[key], label + 1) for key, (image, label) in found.items()}
        for split, found in pictures.items()
    }


def recipe(seed: int, split: str, number: int, size: int) -> Recipe:
    """What image `number` of a split is made of, at `size` pixels."""
    draws: Iterator[float] = iter(
        uniforms(words(Purpose.COMPOSITION, seed, list(SPLITS).index(split), number, 6 + 6 * MOST)).tolist()
    )

    def pick(count: int) -> int:
        return int(next(draws) * count)

    def between(low: float, high: float) -> float:
        return low + next(draws) * (high - low)

    # Background: a square within the split's part of a photograph
    photograph = pick(len(PHOTOGRAPHS))
    width, height = photographs()[photograph].size
    first, end = (int(share * width) for share in SPLITS[split])
    side = int(between(*CROPS) * min(end - first, height))
    left, upper = first + pick(end - first - side + 1), pick(height - side + 1)
    mirrored = pick(2) == 1

    # Emoji: a category first, so that all are equally frequent
    by_class: dict[int, list[str]] = {}
    for key, emoji in all_emoji()[split].items():
        by_class.setdefault(emoji.mask_class, []).append(key)
    chosen = []
    for _ in range(1 + pick(MOST)):
        keys = by_class[sorted(by_class)[pick(len(by_class))]]
        key, share, angle = keys[pick(len(keys))], between(*SIZES), pick(2 * TURN + 1) - TURN
        chosen.append(Pasted(key, round(share * size), angle, next(draws), next(draws)))
    return Recipe(photograph, (left, upper, left + side, upper + side), mirrored, tuple(chosen))


def compose(made_of: Recipe, split: str, size: int) -> tuple[Pixels, Pixels]:
    """The image (S, S, 3) and its mask (S, S).

    An emoji with alpha a over white is C = a F + (1 - a) 255, so over B it is C - (1 - a) (255 - B): exact without its
    own colours F. A pixel belongs to the last emoji with alpha of a half or more there.
    """
    photograph = photographs()[made_of.photograph].resize((size, size), Image.Resampling.BICUBIC, made_of.box)
    image_SS3 = np.asarray(photograph, np.int64)[:, :: -1 if made_of.mirrored else 1].copy()
    mask_SS = np.zeros((size, size), np.uint8)
    for pasted in made_of.emoji:
        over_white_HW3, alpha_HW, left, upper = placed(pasted, split, size)
        height, width = alpha_HW.shape
        here = slice(upper, upper + height), slice(left, left + width)
        lost_HW3 = ((255 - alpha_HW[..., None]) * (255 - image_SS3[here]) + 127) // 255
        image_SS3[here] = (over_white_HW3 - lost_HW3).clip(0, 255)
        mask_SS[here][alpha_HW >= OPAQUE] = all_emoji()[split][pasted.key].mask_class
    return image_SS3.astype(np.uint8), mask_SS


def placed(pasted: Pasted, split: str, size: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], int, int]:
    """An emoji over white (H, W, 3), its alpha (H, W), and where its left upper corner lies in the image."""
    emoji = all_emoji()[split][pasted.key]
    parts = []
    for part, outside in ((emoji.over_white, (255, 255, 255)), (emoji.alpha, 0)):
        scaled = part.resize((pasted.size, pasted.size), Image.Resampling.BICUBIC)
        parts.append(scaled.rotate(pasted.angle, Image.Resampling.BICUBIC, expand=True, fillcolor=outside))
    over_white_HW3, alpha_HW = (np.asarray(part, np.int64) for part in parts)
    over_white_HW3 = np.maximum(over_white_HW3, 255 - alpha_HW[..., None])  # resampling overshoots by a few levels
    height, width = alpha_HW.shape
    return over_white_HW3, alpha_HW, int(pasted.across * (size - width + 1)), int(pasted.down * (size - height + 1))


def mask_names() -> dict[str, str]:
    """The names of the classes in masks."""
    categories = json.loads((EMOJI / "train/classes.json").read_text())
    return {"0": "background", **{str(int(number) + 1): name for number, name in categories.items()}}


def write(out: Path, images: int, size: int, seed: int) -> list[str]:
    """Make the tars of both splits; return a line about each. The same arguments give the same bytes."""
    counts = {"train": images - images // TEST_SHARE, "test": images // TEST_SHARE}
    lines = []
    for split, count in counts.items():
        with tempfile.TemporaryDirectory(prefix="unic-cache-composed-") as work:
            folders = Path(work) / "images", Path(work) / "masks"
            for folder in folders:
                folder.mkdir()
            for number in range(count):
                for folder, pixels in zip(
                    folders, compose(recipe(seed, split, number, size), split, size), strict=True
                ):
                    Image.fromarray(pixels).save(folder / f"{split}-{number:06d}.png")
            packed = ShardConfig(
                str(folders[0]), str(out / split), masks=str(folders[1]), prefix=f"composed-{split}-", per_shard=250
            )
            lines.append(str(shard(packed)))
    LocalFolder(out).replace("mask-classes.json", (json.dumps(mask_names(), indent=1) + "\n").encode())
    return lines


def _pictures(split: str) -> dict[str, tuple[Image.Image, int]]:
    """{key: (RGB image, label)} of a split's tars."""
    images: dict[str, Image.Image] = {}
    labels: dict[str, int] = {}
    for path in sorted((EMOJI / split).glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, kind = member.name.partition(".")
                file = tar.extractfile(member)
                data = file.read() if file else b""
                if kind == "cls":
                    labels[key] = int(data)
                else:
                    images[key] = Image.open(io.BytesIO(data)).convert("RGB")
    return {key: (image, labels[key]) for key, image in sorted(images.items())}


@click.command()
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--images", default=900, show_default=True, type=click.IntRange(40, 999_999), help="A quarter is for testing."
)
@click.option("--size", default=128, show_default=True, type=click.IntRange(32, 1024), help="Pixels of a side.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0, SEEDS), help="Random seed of all images.")
def main(out: Path, images: int, size: int, seed: int) -> None:
    """Make OUT/train and OUT/test: tars of emoji on photographs, with exact masks."""
    with clear_errors():
        for line in write(out, images, size, seed):
            click.echo(line)


if __name__ == "__main__":
    main()
