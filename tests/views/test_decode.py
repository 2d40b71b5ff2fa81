"""Any file becomes upright 8-bit RGB, or an ImageError that says why not."""

import contextlib
import io
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unic_cache.errors import ImageError
from unic_cache.views.decode import MAX_PIXELS, decode, upright_file, upright_size

RAMP = np.arange(40 * 30 * 3, dtype=np.uint32).reshape(30, 40, 3).astype(np.uint8)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size but holds almost nothing."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return png_of(header, b"\0" * 99)


def png_of(header: bytes, rows: bytes) -> bytes:
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    framed = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "GIF", "TIFF", "JPEG"])
def test_each_format_is_decoded(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    grey = Image.fromarray(np.full((30, 40, 3), 77, dtype=np.uint8))
    image = decode(encoded(grey, kind, **options))
    assert image.mode == "RGB"
    assert image.size == (40, 30)
    assert np.asarray(image).min() == np.asarray(image).max() == 77


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_applied(orientation: int, kind: str) -> None:
    stored = {
        1: RAMP,
        2: RAMP[:, ::-1],
        3: RAMP[::-1, ::-1],
        4: RAMP[::-1],
        5: RAMP.transpose(1, 0, 2),
        6: np.rot90(RAMP, 1),
        7: np.rot90(RAMP, 2).transpose(1, 0, 2),
        8: np.rot90(RAMP, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif, **options)
    np.testing.assert_array_equal(np.asarray(decode(data)), RAMP)
    assert upright_size(data) == decode(data).size != RAMP.shape[:2]


def test_an_orientation_that_does_not_exist_changes_nothing() -> None:
    exif = Image.Exif()
    exif[0x0112] = 42
    np.testing.assert_array_equal(np.asarray(decode(encoded(Image.fromarray(RAMP), "PNG", exif=exif))), RAMP)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_goes_on_white(mode: str) -> None:
    image = Image.new("RGBA", (3, 1))
    image.putdata([(10, 10, 10, 255), (10, 10, 10, 0), (10, 10, 10, 0)])
    data = encoded(image.convert(mode), "PNG")
    assert np.asarray(decode(data))[0].tolist() == [[10, 10, 10], [255, 255, 255], [255, 255, 255]]


def test_half_transparent_blends_with_white() -> None:
    data = encoded(Image.new("RGBA", (1, 1), (200, 100, 0, 128)), "PNG")
    assert np.asarray(decode(data))[0, 0].tolist() == [
        round((level * 128 + 255 * 127) / 255) for level in (200, 100, 0)
    ]


@pytest.mark.parametrize(("mode", "colour"), [("RGB", (1, 2, 3)), ("L", 7)])
def test_a_transparent_colour_goes_on_white(mode: str, colour: Any) -> None:
    data = encoded(Image.new(mode, (2, 2), colour), "PNG", transparency=colour)
    assert (np.asarray(decode(data)) == 255).all()


def test_transparent_palette_entries_go_on_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([9, 8, 7, 6, 5, 4])
    image.putdata([0, 1])
    data = encoded(image, "PNG", transparency=b"\0\xff")
    assert np.asarray(decode(data))[0].tolist() == [[255, 255, 255], [6, 5, 4]]


def test_an_animation_is_its_first_frame() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (np.asarray(decode(data)) == (255, 0, 0)).all()


def test_sixteen_bit_grey_keeps_its_upper_eight_bits() -> None:
    levels = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    for kind in ("PNG", "TIFF"):
        pixels = np.asarray(decode(encoded(Image.fromarray(levels), kind)))
        np.testing.assert_array_equal(pixels, np.repeat((levels >> 8)[..., None], 3, axis=2))


@pytest.mark.parametrize(
    ("image", "level"),
    [
        (Image.new("1", (4, 4), 1), 255),
        (Image.new("L", (4, 4), 99), 99),
        (Image.new("F", (4, 4), 99.7), 99),
        (Image.new("I", (4, 4), 99 * 256), 99),
    ],
    ids=["1", "L", "F", "I"],
)
def test_other_grey_modes_become_rgb(image: Image.Image, level: int) -> None:
    pixels = np.asarray(decode(encoded(image, "TIFF")))
    assert pixels.shape == (4, 4, 3)
    assert (pixels == level).all()


@pytest.mark.parametrize(("mode", "kind"), [("CMYK", "JPEG"), ("CMYK", "TIFF"), ("YCbCr", "JPEG"), ("LAB", "TIFF")])
def test_other_colour_spaces_become_rgb(mode: str, kind: str) -> None:
    source = (
        Image.new("LAB", (16, 16), (200, 128, 128)) if mode == "LAB" else Image.new("RGB", (16, 16), (200, 200, 200))
    )
    image = decode(encoded(source.convert(mode), kind))
    assert image.mode == "RGB"
    assert np.ptp(np.asarray(image).astype(int)) <= 8
    assert 150 < np.asarray(image).mean() < 230


@pytest.mark.parametrize("size", [(MAX_PIXELS + 1, 1), (10_000, 10_000), (14_000, 14_000), (40_000, 25_000)])
def test_too_many_pixels_are_refused_by_the_header_without_a_warning(size: tuple[int, int]) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(ImageError, match=rf"{size[0]} x {size[1]} pixels are more than the 89,478,485 allowed"):
            decode(png_header(*size))
    assert not caught


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"])
def test_a_truncated_file_is_an_error_with_the_decoders_reason(kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), kind)
    with pytest.raises(ImageError, match=r"cannot be (decoded|read): \S"):
        decode(data[: len(data) // 2])


def test_the_error_names_format_and_size() -> None:
    data = encoded(Image.fromarray(RAMP), "JPEG")
    with pytest.raises(ImageError, match=r"a JPEG of 40 x 30 pixels cannot be decoded: .*truncated"):
        decode(data[:-200])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"not a supported image \(0 bytes"),
        (b"<svg xmlns='...'/>", "convert it to JPEG, PNG, WebP, BMP, GIF or TIFF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "convert it to JPEG"),
        (b"\x80\x04cos\nsystem\n", "not a supported image"),
        (b"\xff\xd8\xff\xe0 no more", "header cannot be read"),
        (b"\x89PNG\r\n\x1a\n", "header cannot be read"),
        (b"RIFF\0\0\0\0WAVEfmt ", "header cannot be read"),
    ],
)
def test_what_is_no_image_is_an_error(data: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        decode(data)


def test_flipped_bytes_give_an_image_or_an_image_error_and_nothing_else() -> None:
    rng = np.random.default_rng(1)
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"):
        whole = encoded(Image.fromarray(RAMP), kind)
        for _ in range(40):
            data = bytearray(whole)
            for at in rng.integers(0, min(len(data), 200), 3):
                data[at] ^= 1 << int(rng.integers(0, 8))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with contextlib.suppress(ImageError):
                    assert decode(bytes(data)).mode == "RGB"


@pytest.mark.parametrize(("kind", "extension"), [("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp")])
def test_an_upright_rgb_file_is_kept_as_it_is(kind: str, extension: str) -> None:
    data = encoded(Image.fromarray(RAMP), kind)
    assert upright_file(data) == (extension, data)


def test_other_files_become_a_png_of_the_same_pixels() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(RAMP)
    sixteen = png_of(struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0), b"\0\x12\x34\x56\x78\x9a\xbc")
    others = {
        "on its side": encoded(image, "JPEG", exif=exif),
        "cmyk": encoded(image.convert("CMYK"), "JPEG"),
        "grey": encoded(image.convert("L"), "JPEG"),
        "transparent": encoded(image.convert("RGBA"), "PNG"),
        "palette": encoded(image.convert("P"), "PNG"),
        "transparent colour": encoded(image, "PNG", transparency=(1, 2, 3)),
        "16 bits": sixteen,
        "bmp": encoded(image, "BMP"),
    }
    for name, data in others.items():
        extension, stored = upright_file(data)
        assert extension == "png", name
        assert stored != data, name
        np.testing.assert_array_equal(np.asarray(decode(stored)), np.asarray(decode(data)), err_msg=name)
        assert upright_file(stored) == ("png", stored), name


def test_a_file_that_cannot_be_decoded_is_not_kept() -> None:
    with pytest.raises(ImageError, match="truncated"):
        upright_file(encoded(Image.fromarray(RAMP), "JPEG")[:-100])


def test_damaged_metadata_and_headers_say_nothing_on_stderr() -> None:
    entry = struct.pack("<HHII", 0x9286, 2, 10_000, 200)
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 1) + entry + b"\0\0\0\0"
    good = encoded(Image.new("RGB", (40, 30), "red"), "JPEG", exif=exif)
    program = f"""
from unic_cache.errors import ImageError
from unic_cache.views.decode import decode
assert decode({good!r}).size == (40, 30)
for data in ({png_header(10_000, 10_000)!r}, b"MM\\0*" + bytes(20), b"BM" + bytes(60)):
    try:
        decode(data)
        raise SystemExit("decoded")
    except ImageError:
        pass
"""
    root = Path(__file__).parents[2]
    run = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")
