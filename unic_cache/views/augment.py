"""Views: augmented images, each a pure function of (recipe, size, seed, crop scale, sample key, number).

A teacher sees view 17 of an image today and the student sees the same pixels years later, so nothing here may depend
on the machine: parameters come from raw Philox words by additions, products, quotients and square roots alone,
Pillow crops and resizes in fixed point, and colour and blur are integer arithmetic (`colour`).

Each parameter has its own word, so no draw depends on another's outcome; `light` is `unic` without colour and blur.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import crc32c
import numpy as np
import numpy.typing as npt
from PIL import Image

from unic_cache.config import Views
from unic_cache.config.views import CROP_SCALE
from unic_cache.draws import Purpose, uniforms, words
from unic_cache.views import colour

View: TypeAlias = npt.NDArray[np.uint8]

AUGMENT_VERSION = 1  # must change whenever any pixel of any view does; the golden checksums then change too

_TRIES = 10  # of a crop that fits, as in torchvision
_LOG_RATIO = 0.28768207245178090  # ln(4/3): aspect ratios between 3/4 and 4/3

# Words 0 to 19: area and aspect ratio of each try; then one word each, but four each for order and factors:
_LEFT, _TOP, _FLIP, _JITTER = 20, 21, 22, 23
_ORDER, _FACTORS = 24, 28
_GRAYSCALE, _BLUR, _SIGMA, _SOLARIZE = 32, 33, 34, 35
_WORDS = 36

_COLOURS: tuple[tuple[Callable[[colour.Planes, float], colour.Planes], float, float], ...] = (
    (colour.brightness, 0.6, 1.4),
    (colour.contrast, 0.6, 1.4),
    (colour.saturation, 0.8, 1.2),
    (colour.hue, -0.1, 0.1),
)


@dataclass(frozen=True)
class Parameters:
    """One view of recipe `unic`: its operations in the order they run."""

    crop: tuple[int, int, int, int]  # left, top, right, bottom, pixels of the image
    flip: bool
    jitter: tuple[tuple[int, float], ...]  # (index into _COLOURS, factor), in order
    grayscale: bool
    sigma: float | None  # of the blur, pixels of the view
    solarize: bool


@dataclass(frozen=True)
class Frame:
    """What a view shows of its image: a box, and whether it is mirrored. Colours aside, it is all of the view."""

    box: tuple[float, float, float, float]  # left, top, right, bottom, pixels of the image; multiples of 1/2
    flip: bool


def frame_of(size: tuple[int, int], views: Views, key: int, number: int) -> Frame:
    """The frame of view `number` of an upright image of `size` (width, height)."""
    return _FRAMES[views.recipe](size, views, key, number)


def parameters(
    size: tuple[int, int], seed: int, key: int, number: int, crop_scale: tuple[float, float] = CROP_SCALE
) -> Parameters:
    """Draws for view `number` of an image of `size` (width, height); `key` is the sample key's crc32.

    Crop 8% to 100% of the area (`crop_scale`) at aspect 3/4 to 4/3, flip .5, jitter (.4, .4, .2, .1) in any
    order with p .8, grayscale .2, blur of sigma .1 to 5 with p .2, solarize .2: the augmentation of UNIC (arXiv
    2408.05088).
    """
    raw = words(Purpose.VIEW, seed, key, number, _WORDS)
    draw = [float(value) for value in uniforms(raw)]
    order = np.argsort(raw[_ORDER : _ORDER + 4], kind="stable")
    factors = [low + (high - low) * u for (_, low, high), u in zip(_COLOURS, draw[_FACTORS:_GRAYSCALE], strict=True)]
    return Parameters(
        crop=_crop(size, draw, crop_scale),
        flip=draw[_FLIP] < 0.5,
        jitter=tuple((int(which), factors[which]) for which in order) if draw[_JITTER] < 0.8 else (),
        grayscale=draw[_GRAYSCALE] < 0.2,
        sigma=0.1 + 4.9 * draw[_SIGMA] if draw[_BLUR] < 0.2 else None,
        solarize=draw[_SOLARIZE] < 0.2,
    )


def make_view(image: Image.Image, views: Views, key: int, number: int, out: View | None = None) -> View:
    """View `number` of a decoded image: (size, size, 3) uint8 RGB, not normalized; written to `out` if given.

    `image` comes from `decode`; `key` is the crc32 of the sample's key.
    """
    out = np.empty((views.size, views.size, 3), np.uint8) if out is None else out
    _RECIPES[views.recipe](image, views, key, number, out)
    return out


def pixel_crc(view: View) -> int:
    """crc32c of the view's bytes: extraction stores it, training compares it."""
    return int(crc32c.crc32c(view.data))


def _crop(size: tuple[int, int], draw: list[float], scale: tuple[float, float]) -> tuple[int, int, int, int]:
    """The first of ten random boxes that fits, at a random place; else the largest central box of aspect 3/4 to 4/3."""
    width, height = size
    least, most = scale
    for attempt in range(_TRIES):
        area = width * height * (least + (most - least) * draw[2 * attempt])
        ratio = colour.exp(_LOG_RATIO * (2.0 * draw[2 * attempt + 1] - 1.0))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left = min(int(draw[_LEFT] * (width - w + 1)), width - w)
            top = min(int(draw[_TOP] * (height - h + 1)), height - h)
            return left, top, left + w, top + h
    w, h = min(width, max(1, round(height * 4 / 3))), min(height, max(1, round(width * 4 / 3)))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def _cropped(image: Image.Image, drawn: Parameters, size: int) -> Image.Image:
    """Crop, then resize: no pixel outside the box influences the view."""
    small = image.crop(drawn.crop).resize((size, size), Image.Resampling.BICUBIC)
    return small.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if drawn.flip else small


def _unic(image: Image.Image, views: Views, key: int, number: int, out: View) -> None:
    drawn = _drawn(image.size, views, key, number)
    view = _cropped(image, drawn, views.size)
    planes = np.ascontiguousarray(np.asarray(view).transpose(2, 0, 1))
    for which, factor in drawn.jitter:
        planes = _COLOURS[which][0](planes, factor)
    if drawn.grayscale:
        planes = colour.grayscale(planes)
    if drawn.sigma is not None:
        planes = colour.blur(planes, drawn.sigma)
    if drawn.solarize:
        planes = colour.solarize(planes)
    for channel, plane in enumerate(planes):
        out[:, :, channel] = plane


def _light(image: Image.Image, views: Views, key: int, number: int, out: View) -> None:
    out[:] = np.asarray(_cropped(image, _drawn(image.size, views, key, number), views.size))


def _center(image: Image.Image, views: Views, key: int, number: int, out: View) -> None:
    """Resize the shorter side to `size` and crop the centre, in one step: a long strip is never resized whole."""
    box = _central(image.size, views, key, number).box
    out[:] = np.asarray(image.resize((views.size, views.size), Image.Resampling.BICUBIC, box=box))


def _central(size: tuple[int, int], views: Views, key: int, number: int) -> Frame:
    """The largest central square: the same for all views."""
    del views, key, number
    width, height = size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return Frame((left, top, left + side, top + side), False)


def _drawn(size: tuple[int, int], views: Views, key: int, number: int) -> Parameters:
    return parameters(size, views.seed, key, number, views.crop_scale)


def _framed(size: tuple[int, int], views: Views, key: int, number: int) -> Frame:
    drawn = _drawn(size, views, key, number)
    return Frame(drawn.crop, drawn.flip)


_RECIPES: dict[str, Callable[[Image.Image, Views, int, int, View], None]] = {
    "unic": _unic,
    "light": _light,
    "center": _center,
}

_FRAMES: dict[str, Callable[[tuple[int, int], Views, int, int], Frame]] = {
    "unic": _framed,
    "light": _framed,
    "center": _central,
}
