"""Numbers of another range are scaled if the file declares their range, and refused otherwise."""

import io
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unic_cache.errors import ImageError
from unic_cache.views.decode import decode, image_kind, upright_file

RAMP = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)


def tiff(values: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "TIFF", **options)
    return buffer.getvalue()


def wide_png(levels: np.ndarray, clear: Sequence[int] = ()) -> bytes:
    """An RGB or grey PNG with 16 bits per channel, and the colour that it names as transparent."""
    height, width, channels = levels.shape
    colour = {1: 0, 3: 2}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in levels)
    named = [(b"tRNS", struct.pack(f">{len(clear)}H", *clear))] if clear else []
    head = (b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0))
    chunks = [head, *named, (b"IDAT", zlib.compress(rows))]
    framed = [
        struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in [*chunks, (b"IEND", b"")]
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def test_floats_from_0_to_1_are_scaled_and_to_255_are_kept() -> None:
    levels = np.asarray(decode(tiff(RAMP)))[..., 0]
    assert np.abs(levels - RAMP * 255).max() <= 0.5
    assert np.asarray(decode(tiff(RAMP * 255)))[..., 0].tolist() == np.floor(RAMP * 255).astype(int).tolist()
    assert upright_file(tiff(RAMP))[0] == "png"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (RAMP * 2, "floats from 0 to 2, neither 0 to 1 nor 0 to 255"),
        (RAMP * 65535, "floats from 0 to 6.554e"),
        (RAMP - 0.5, "floats from -0.5 to 0.5"),
        (np.where(RAMP > 0.5, np.nan, RAMP).astype(np.float32), "some of them infinite or NaN"),
        (np.where(RAMP > 0.5, np.inf, RAMP).astype(np.float32), "some of them infinite or NaN"),
        ((RAMP * 255).astype(np.uint16), "integers from 0 to 255, not from 0 to 65535"),
        ((RAMP * 4095).astype(np.uint16), "integers from 0 to 4095, not from 0 to 65535"),
        ((RAMP * 2000 - 1000).astype(np.int32), "signed integers from -1000 to 1000, not from 0 to 65535"),
        ((RAMP.astype(np.float64) * 2**31 - 1).clip(0).astype(np.int32), "integers from 0 to 2147483647, not from"),
        ((RAMP * 200).astype(np.int32), "integers from 0 to 200, not from 0 to 65535; their range is unknown"),
    ],
)
def test_numbers_of_a_range_that_nobody_says_are_no_image(values: np.ndarray, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        decode(tiff(values))
    with pytest.raises(ImageError, match=message):
        upright_file(tiff(values))


def test_sixteen_bits_a_channel_keep_their_upper_eight_unless_they_hold_fewer() -> None:
    levels = (np.arange(48).reshape(4, 4, 3) * 1300).astype(np.uint16)
    np.testing.assert_array_equal(np.asarray(decode(wide_png(levels))), levels >> 8)
    with pytest.raises(ImageError, match="16 bits per channel, none of which reaches level 16 of 256"):
        decode(wide_png(levels // 16))


@pytest.mark.parametrize("channels", [1, 3])
def test_the_colour_that_sixteen_bits_a_channel_name_as_transparent_is_white(channels: int) -> None:
    levels = np.full((4, 4, channels), 40_000, np.uint16)
    levels[0] = 1_000
    found = np.asarray(decode(wide_png(levels, clear=[1_000] * channels)))
    assert (found[0] == 255).all()
    assert (found[1:] == 40_000 >> 8).all()


def test_black_is_black_in_every_kind() -> None:
    for kind in (np.float32, np.uint16, np.int32, np.uint8):
        assert not np.asarray(decode(tiff(np.zeros((4, 4), kind)))).any()


def test_avif_is_read_and_kept_as_a_png() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), (200, 30, 40)).save(buffer, "AVIF", quality=100)
    assert image_kind(buffer.getvalue()[:64]) == "AVIF"
    assert np.abs(np.asarray(decode(buffer.getvalue())).astype(int) - (200, 30, 40)).max() <= 4
    assert upright_file(buffer.getvalue())[0] == "png"


@pytest.mark.parametrize("brands", [b"heic\0\0\0\0mif1heic", b"mif1\0\0\0\0mif1heic", b"msf1\0\0\0\0hevc"])
def test_heic_says_what_would_read_it(brands: bytes) -> None:
    data = struct.pack(">I", 8 + len(brands)) + b"ftyp" + brands + bytes(100)
    assert image_kind(data[:64]) == "HEIC"
    with pytest.raises(ImageError, match="a HEIC, which Pillow reads only with pillow-heif; install that"):
        decode(data)


@pytest.mark.parametrize(
    "data", [b"BMW 3 series", b"RIFF\0\0\0\0WAVEfmt ", b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom", b"", b"ftyp"]
)
def test_what_only_begins_like_an_image_is_none(data: bytes) -> None:
    assert image_kind(data) is None
