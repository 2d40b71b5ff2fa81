"""Convert 16-bit, 12-bit, integer and float pixels to levels 0 to 255.

Files give the width of their numbers, seldom the range. One rule for all: an image whose numbers fill less than a
sixteenth of the assumed range has another range and is refused, since it would come out black.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile

from unic_cache.errors import ImageError

_BITS, _FORMAT = 258, 339  # TIFF's BitsPerSample and SampleFormat
_SIGNED = 2
_LEAST = 16  # level of 256 that the brightest pixel must reach
_REMEDY = "their range is unknown. Scale them to 8 bits"


@dataclass(frozen=True)
class Depth:
    """A file's declared number format."""

    bits: int  # per channel
    signed: bool = False


def depth_of(image: ImageFile.ImageFile) -> Depth:
    """The depth of an image that is open but not loaded."""
    tags = getattr(image, "tag_v2", None)
    if tags is not None:
        bits, kinds = (_numbers(tags.get(tag)) for tag in (_BITS, _FORMAT))
        return Depth(max(bits, default=8), _SIGNED in kinds)
    return Depth(16 if any(";16" in str(tile[3]) for tile in image.tile) else 8)


def eight_bits(image: Image.Image, depth: Depth) -> Image.Image:
    """The image with 8 bits per channel. ImageError if the range of its numbers is unknown.

    Grey of 9 to 16 bits keeps the upper 8; wider integers count as 16 bits. Floats up to 1 are scaled, others count as
    0 to 255. The grey that a PNG names as transparent becomes white; of 16-bit RGB its upper 8 bits
    tell that colour, and so others within 1/256 of it.
    """
    clear = image.info.get("transparency")
    if image.mode.startswith("I"):
        levels = _of_integers(np.asarray(image), depth)
        if isinstance(clear, int):
            levels[np.asarray(image) == clear] = 255
        return Image.fromarray(levels)
    if image.mode == "F":
        return Image.fromarray(_of_floats(np.asarray(image)))
    if depth.bits > 8 and image.mode.startswith("RGB"):  # Pillow has kept the upper 8 bits per channel
        brightest = max(band.getextrema()[1] for band in image.split()[:3])
        if brightest < _LEAST:  # type: ignore[operator]
            raise ImageError(f"{depth.bits} bits per channel, none of which reaches level {_LEAST} of 256; {_REMEDY}")
        if isinstance(clear, tuple):
            image.info["transparency"] = tuple(value >> 8 for value in clear)
    return image


def _of_integers(values: npt.NDArray[np.generic], depth: Depth) -> npt.NDArray[np.uint8]:
    least, most = int(values.min()), int(values.max())
    bits = depth.bits if 8 < depth.bits <= 16 else 16
    full = 2**bits - 1
    if least < 0 or most > full or 0 < most < _LEAST << (bits - 8) or (depth.signed and depth.bits <= 16):
        signed = "signed " if depth.signed else ""
        raise ImageError(f"{signed}integers from {least} to {most}, not from 0 to {full}; {_REMEDY}")
    return (values.astype(np.uint32) >> (bits - 8)).astype(np.uint8)


def _of_floats(values: npt.NDArray[np.generic]) -> npt.NDArray[np.uint8]:
    if not np.isfinite(values).all():
        raise ImageError("floats, some of them infinite or NaN; write them as 8 bits")
    least, most = float(values.min()), float(values.max())
    if least < 0 or most > 255 or 1 < most < _LEAST:
        raise ImageError(f"floats from {least:.4g} to {most:.4g}, neither 0 to 1 nor 0 to 255; {_REMEDY}")
    scale = 255.0 if most <= 1 else 1.0
    return np.floor(values.astype(np.float64) * scale + (0.5 if most <= 1 else 0.0)).astype(np.uint8)


def _numbers(value: object) -> tuple[int, ...]:
    """The integers in a TIFF tag, whatever a damaged file holds there."""
    found = value if isinstance(value, tuple) else (value,)
    return tuple(number for number in found if isinstance(number, int))
