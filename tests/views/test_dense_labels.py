"""Masks and depth maps keep to the frame of their image's view, pixel by pixel, and what is none is refused."""

import io
import struct
import tracemalloc
import zlib
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from numpy.lib.format import write_array_header_1_0
from PIL import Image

from tests.conftest import png
from unic_cache.config import RECIPES, Views
from unic_cache.errors import ImageError
from unic_cache.views.augment import make_view, parameters
from unic_cache.views.dense_labels import decode_depth, decode_mask, depth_view, mask_view, palette_of

SIZES = [(37, 23), (23, 37), (16, 16), (5, 90)]  # width, height


def grey(values: Any, dtype: Any = np.uint8) -> bytes:
    return png(Image.fromarray(np.asarray(values, dtype)))


def npy(values: Any, dtype: Any = np.float32) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(values, dtype))
    return buffer.getvalue()


def by_hand(values: np.ndarray, views: Views, key: int, number: int) -> np.ndarray:
    """Each output pixel takes the source pixel under its centre, in exact fractions."""
    height, width = values.shape
    if views.recipe == "center":
        side, flip = min(width, height), False
        left, top, wide, high = Fraction(width - side, 2), Fraction(height - side, 2), side, side
    else:
        drawn = parameters((width, height), views.seed, key, number)
        left, top, right, bottom = map(Fraction, drawn.crop)
        wide, high, flip = right - left, bottom - top, drawn.flip
    out = np.zeros((views.size, views.size), values.dtype)
    for row in range(views.size):
        for column in range(views.size):
            x = left + (column + Fraction(1, 2)) * wide / views.size
            y = top + (row + Fraction(1, 2)) * high / views.size
            out[row, views.size - 1 - column if flip else column] = values[int(y), int(x)]
    return out


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("size", SIZES)
def test_labels_are_the_pixels_of_the_crop_picked_by_hand(recipe: str, size: tuple[int, int]) -> None:
    width, height = size
    mask = np.random.default_rng(width).integers(0, 256, (height, width)).astype(np.uint8)
    metres = (mask.astype(np.float32) + 0.125) / 7
    for number, pixels in enumerate((7, 16, 33)):
        views = Views(recipe, pixels + 9, 3)
        expected = by_hand(mask, views, 99, number)
        assert np.array_equal(mask_view(grey(mask), size, views, 99, number), expected)
        depth = depth_view(npy(metres), "depth.npy", size, views, 99, number)
        assert depth.dtype == np.float32
        assert np.array_equal(depth, by_hand(metres, views, 99, number))
        millimetres = depth_view(grey(mask * 100.0, np.uint16), "depth.png", size, views, 99, number)
        assert np.array_equal(millimetres, (expected * 100.0 / 1000).astype(np.float32))


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_mask_stays_aligned_with_its_image(recipe: str) -> None:
    edges = np.zeros((60, 84), np.uint8)
    edges[10:50, 20:70] = 255
    edges[25:35, 30:50] = 0
    image, mask = Image.fromarray(np.repeat(edges[:, :, None], 3, 2)), grey(edges > 128)
    seen = set()
    for number in range(60):
        views, drawn = Views(recipe, 48, 5), parameters(image.size, 5, 11, number)
        if recipe == "unic" and (drawn.jitter or drawn.solarize or drawn.sigma is not None):
            continue  # other colours, or no hard edges any more
        shown = make_view(image, views, 11, number)[:, :, 0] > 128
        agree = (shown == (mask_view(mask, image.size, views, 11, number) == 1)).mean()
        assert agree > 0.95, (number, agree)
        seen.add(drawn.flip)
    assert seen == {True, False}


def bits(image: Image.Image, count: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", bits=count)
    return buffer.getvalue()


def low_grey(values: np.ndarray, depth: int, claimed: tuple[int, int] | None = None) -> bytes:
    """A grey PNG of 2 or 4 bits, which Pillow reads but does not write."""
    rows = b"".join(
        b"\0" + np.packbits(np.unpackbits(row[:, None], axis=1)[:, 8 - depth :].ravel()).tobytes() for row in values
    )
    header = struct.pack(">IIBBBBB", *(claimed or values.shape[::-1]), depth, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    framed = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def test_each_way_of_writing_class_numbers_gives_them() -> None:
    numbers = np.arange(16, dtype=np.uint8).reshape(2, 8)
    palette = Image.fromarray(numbers).convert("L")
    palette.putpalette([7, 99, 3] * 256)  # VOC's: many indices, arbitrary colours
    assert palette.mode == "P"
    assert palette_of(png(palette))[:6] == bytes([7, 99, 3] * 2)
    assert palette_of(grey(numbers)) == b""
    for data in (grey(numbers), png(palette), bits(palette, 4), grey(numbers, np.uint16), low_grey(numbers, 4)):
        assert np.array_equal(decode_mask(data), numbers)
    assert np.array_equal(decode_mask(low_grey(numbers % 4, 2)), numbers % 4)
    binary = decode_mask(png(Image.fromarray(numbers > 7)))
    assert binary.dtype == np.uint8
    assert np.array_equal(binary, (numbers > 7).astype(np.uint8))


def on_its_side() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.new("L", (8, 8)).save(buffer, "PNG", exif=exif)
    return buffer.getvalue()


JPEG = io.BytesIO()
Image.new("L", (8, 8)).save(JPEG, "JPEG")

NO_MASKS = [
    (png(Image.new("RGB", (8, 8))), r"a PNG of mode RGB, not grey or palette, so its pixels are colours"),
    (png(Image.new("LA", (8, 8))), "a PNG of mode LA"),
    (grey(np.full((8, 8), 256), np.uint16), r"a 16-bit PNG with values up to 256; classes go from 0 to 254"),
    (grey(np.zeros((4, 8))), r"the mask has 8 x 4 pixels but its image, upright, 8 x 8; make them the same size"),
    (on_its_side(), "has an EXIF orientation; write its pixels upright"),
    (JPEG.getvalue(), "the mask is not a PNG but JPEG; convert it from its lossless original"),
    (b"", "not a PNG but no image"),
    (grey(np.random.default_rng(0).integers(0, 256, (8, 8)))[:80], "the mask cannot be decoded: "),
]


@pytest.mark.parametrize(("data", "message"), NO_MASKS)
def test_what_is_no_mask_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        decode_mask(data, (8, 8))


def test_a_mask_of_the_image_on_its_side_is_named_so() -> None:
    with pytest.raises(ImageError, match=r"9 x 8 pixels but its image, upright, 8 x 9: it lies on its side. Turn it"):
        decode_mask(grey(np.zeros((8, 9))), (8, 9))
    with pytest.raises(ImageError, match=r"the depth map has 9 x 8 pixels .* it lies on its side"):
        decode_depth(npy(np.zeros((8, 9))), "depth.npy", (8, 9))


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", ">f8", "<f2"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_floats_of_each_kind_are_metres(dtype: str, order: Any) -> None:
    metres = np.array([[0, 0.5, 1.25], [2, 3, 9.75]])
    found = decode_depth(npy(np.asarray(metres, dtype, order=order), dtype), "depth.npy", (3, 2))
    assert found.dtype == np.float32
    assert np.array_equal(found, metres)


NO_DEPTHS = [
    ("depth.npy", npy([[1]], np.int32), "numbers are int32; save metres as float32"),
    ("depth.npy", npy([[1]], np.longdouble), "numbers are float128|numbers are longdouble"),
    ("depth.npy", npy([[np.nan]]), "numbers from nan to nan; depths are finite, in metres"),
    ("depth.npy", npy([[np.inf]]), "numbers from inf to inf"),
    ("depth.npy", npy([[1e300]], np.float64), r"numbers from 1e\+300"),
    ("depth.npy", npy([[-0.5]]), "numbers from -0.5 to -0.5"),
    ("depth.npy", npy([[[1]]]), r"has the shape \(1, 1, 1\); save it as \(height, width\)"),
    ("depth.npy", npy([[1.0]])[:-1], "has 3 bytes of numbers, not 4; copy it again"),
    ("depth.npy", npy([[1.0, 1.0]]), "2 x 1 pixels but its image"),
    ("depth.npy", b"\x93NUMPY\x01\x00\x10\x00nonsense", "is not an .npy"),
    ("depth.npy", grey([[1]]), "is not an .npy"),
    ("depth.png", grey([[1]]), "a PNG of mode L and 8 bits, not 16-bit grey; write millimetres as uint16"),
    ("depth.png", npy([[1.0]]), "not a PNG but no image"),
    ("depth.png", grey([[1, 1]], np.uint16), "2 x 1 pixels but its image"),
]


@pytest.mark.parametrize(("kind", "data", "message"), NO_DEPTHS, ids=[message for *_, message in NO_DEPTHS])
def test_what_is_no_depth_is_refused(kind: str, data: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        decode_depth(data, kind, (1, 1))


def test_a_header_that_claims_a_huge_array_allocates_nothing() -> None:
    huge = io.BytesIO()
    write_array_header_1_0(huge, {"descr": "<f4", "fortran_order": False, "shape": (99_999, 99_999)})
    tracemalloc.start()
    try:
        with pytest.raises(ImageError, match="has 0 bytes of numbers, not 39999200004"):
            decode_depth(huge.getvalue(), "depth.npy")
        with pytest.raises(ImageError, match=r"more than the .* allowed"):
            decode_mask(low_grey(np.zeros((1, 1), np.uint8), 4, claimed=(60_000, 60_000)))
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", ["mask.png", "depth.png", "depth.npy"])
def test_damaged_bytes_are_read_or_refused_and_never_anything_else(kind: str) -> None:
    values = np.random.default_rng(1).integers(0, 9, (9, 7))
    whole = {"mask.png": grey(values), "depth.png": grey(values, np.uint16), "depth.npy": npy(values)}[kind]
    draw, refused = np.random.default_rng(2), 0
    for _ in range(400):
        damaged = bytearray(whole[: draw.integers(1, len(whole) + 1)] if draw.random() < 0.2 else whole)
        for place in draw.integers(0, len(damaged), draw.integers(1, 4)):
            damaged[place] = draw.integers(0, 256)
        try:
            found = decode_mask(bytes(damaged)) if kind == "mask.png" else decode_depth(bytes(damaged), kind)
        except ImageError:
            refused += 1
        else:
            assert found.ndim == 2
            assert kind != "mask.png" or palette_of(bytes(damaged)) is not None
    assert 100 < refused <= 400
