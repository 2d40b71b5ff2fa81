"""Masks and depth maps under the frame of their image's view, by nearest neighbour; `dense_places` has the kinds.

Output pixel i of S takes the source pixel under its centre, left + floor((i + 1/2) * width / S), in integers. A label
that does not fit its image, or may mean something else, is an ImageError.

Letters: H and W pixels.
"""

import io
import math
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy
from PIL import ImageFile

from unic_cache.config import Views
from unic_cache.errors import ImageError
from unic_cache.views.augment import frame_of
from unic_cache.views.decode import image_kind, open_image, orientation
from unic_cache.views.dense_places import DEPTH_NPY

Mask = npt.NDArray[np.uint8]
DepthMap = npt.NDArray[np.float32]
Size = tuple[int, int]  # width, height

IGNORED = 255  # in a mask
MILLIMETRES = 1000.0  # per metre
_BITS_BYTE = 24  # of a PNG: the bits of one number, in its first chunk
_GREY = {1: "1", 2: "L", 4: "L", 8: "L", 16: "I;16"}  # Pillow's mode by bits
_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def mask_view(data: bytes, image_size: Size, views: Views, key: int, number: int) -> Mask:
    """(size, size) uint8: the mask of the view that `make_view` makes of an upright image of `image_size`.

    ImageError as in `decode_mask`.
    """
    return _framed(decode_mask(data, image_size), views, key, number)


def depth_view(data: bytes, kind: str, image_size: Size, views: Views, key: int, number: int) -> DepthMap:
    """(size, size) float32 metres: the depth map of a view, as in `mask_view`. ImageError as in `decode_depth`."""
    return _framed(decode_depth(data, kind, image_size), views, key, number)


def decode_mask(data: bytes, image_size: Size | None = None) -> Mask:
    """(H, W) uint8: the class of each pixel of a PNG, which is grey of up to 8 bits, or 16 used up to 255, or palette.

    ImageError if it is anything else, or has another size than the image.
    """
    image, bits = _png(data, image_size, "mask")
    if image.mode not in {"P", _GREY.get(bits)}:
        raise ImageError(
            f"the mask is a PNG of mode {image.mode}, not grey or palette, so its pixels are colours, not classes; "
            "write each pixel's class number"
        )
    values = _pixels(image, "mask")
    if values.max() > 255:
        raise ImageError(
            f"the mask is a 16-bit PNG with values up to {values.max()}; classes go from 0 to 254, 255 is ignored"
        )
    mask = values.astype(np.uint8)
    # Pillow spreads grey of 2 and 4 bits over 0 to 255
    return mask // np.uint8(255 // (2**bits - 1)) if image.mode == "L" else mask


def palette_of(data: bytes) -> bytes:
    """The colours of a palette PNG, three bytes per index; empty without a palette."""
    image = open_image(data)
    return bytes(image.palette.palette) if image.mode == "P" and image.palette is not None else b""


def decode_depth(data: bytes, kind: str, image_size: Size | None = None) -> DepthMap:
    """(H, W) float32 metres, 0 unknown, of a 16-bit PNG of millimetres or an .npy of metres.

    ImageError if it is anything else, has another size than the image, or has a number that is no depth.
    """
    if kind == DEPTH_NPY:
        return _from_npy(data, image_size)
    image, bits = _png(data, image_size, "depth map")
    if image.mode != _GREY[16]:
        raise ImageError(
            f"the depth map is a PNG of mode {image.mode} and {bits} bits, not 16-bit grey; write millimetres as uint16"
        )
    return (_pixels(image, "depth map") / MILLIMETRES).astype(np.float32)


def _png(data: bytes, image_size: Size | None, what: str) -> tuple[ImageFile.ImageFile, int]:
    """(the PNG, not decoded yet; its bits per number). ImageError for another format or size."""
    kind = image_kind(data[:64])
    if kind != "PNG":
        raise ImageError(f"the {what} is not a PNG but {kind or 'no image'}; convert it from its lossless original")
    image = open_image(data)
    if data[12:16] != b"IHDR":
        raise ImageError(f"the {what} is a PNG that does not start with its header; write it again")
    _check_size(image.size, image_size, what)
    if orientation(image) != 1:
        raise ImageError(f"the {what} has an EXIF orientation; write its pixels upright, without one")
    return image, data[_BITS_BYTE]


def _pixels(image: ImageFile.ImageFile, what: str) -> npt.NDArray[Any]:
    try:
        return np.asarray(image)
    except MemoryError:
        raise
    except Exception as error:  # hostile bytes can make a decoder raise anything
        raise ImageError(f"the {what} cannot be decoded: {error}") from error


def _check_size(size: Size, image_size: Size | None, what: str) -> None:
    if image_size is None or size == image_size:
        return
    (width, height), (wide, high) = size, image_size
    turned = ": it lies on its side. Turn it as the image's EXIF orientation does" if size == image_size[::-1] else ""
    raise ImageError(
        f"the {what} has {width} x {height} pixels but its image, upright, {wide} x {high}"
        + (turned or "; make them the same size, the mask without interpolation")
    )


def _from_npy(data: bytes, image_size: Size | None) -> DepthMap:
    """The array of an .npy, whose header is checked against the bytes that are there: nothing large is allocated."""
    file = io.BytesIO(data)
    try:
        shape, by_columns, dtype = _HEADERS[npy.read_magic(file)](file)
    except MemoryError:
        raise
    except Exception as error:  # the header is a Python literal
        raise ImageError(f"the depth map is not an .npy: {error}") from error
    if dtype.kind != "f" or dtype.itemsize > 8:
        raise ImageError(f"the depth map's numbers are {dtype}; save metres as float32")
    if len(shape) != 2 or 0 in shape:
        raise ImageError(f"the depth map has the shape {shape}; save it as (height, width)")
    _check_size((shape[1], shape[0]), image_size, "depth map")
    start, expected = file.tell(), math.prod(shape) * dtype.itemsize
    if len(data) - start != expected:
        raise ImageError(f"the depth map has {len(data) - start} bytes of numbers, not {expected}; copy it again")
    values = np.frombuffer(data, dtype, offset=start).reshape(shape, order="F" if by_columns else "C")
    least, most = float(values.min()), float(values.max())  # NaN if any is
    if not (least >= 0 and most <= float(np.finfo(np.float32).max)):
        raise ImageError(
            f"the depth map has numbers from {least} to {most}; depths are finite, in metres, 0 if unknown"
        )
    return values.astype(np.float32, order="C")


def _framed(values_HW: npt.NDArray[Any], views: Views, key: int, number: int) -> npt.NDArray[Any]:
    """(size, size): the pixels that the view shows, mirrored if it is."""
    height, width = values_HW.shape
    frame = frame_of((width, height), views, key, number)
    left, top, right, bottom = frame.box
    columns, rows = _nearest(left, right, views.size), _nearest(top, bottom, views.size)
    return values_HW[rows[:, None], columns[::-1] if frame.flip else columns]


def _nearest(start: float, stop: float, size: int) -> npt.NDArray[np.int64]:
    """(size,) source pixels of an axis from `start` to `stop`, which are multiples of 1/2."""
    twice, length = int(2 * start), int(stop - start)
    return (size * twice + (2 * np.arange(size) + 1) * length) // (2 * size)
