"""Decode a file's bytes to an upright RGB image, within bounds, or raise an `ImageError` that says why not.

The first bytes tell a file's format, never its name. EXIF orientation is applied, transparency is put on white, and
grey, palette, CMYK, 16-bit and float images become 8-bit RGB (see `levels`). Only an animation's first frame counts.
"""

import importlib
import importlib.util
import io
import warnings
from collections.abc import Callable

import numpy as np
from PIL import ExifTags, Image, ImageFile, features
from PIL.AvifImagePlugin import SUPPORTED as HAS_AVIF
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import IMAGELENGTH, IMAGEWIDTH, TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from unic_cache.errors import ImageError
from unic_cache.views.levels import Depth, depth_of, eight_bits

MAX_PIXELS = 89_478_485  # a quarter of a GiB at 3 bytes each
LFS_POINTER = b"version https://git-lfs"  # starts a placeholder for a file that was not downloaded
HEAD = 64  # bytes that tell a file's format

Reader = Callable[[io.BytesIO], ImageFile.ImageFile]

_READERS: dict[str, Reader] = {
    "JPEG": JpegImageFile,
    "PNG": PngImageFile,
    "WebP": WebPImageFile,
    "BMP": BmpImageFile,
    "GIF": GifImageFile,
    "TIFF": TiffImageFile,
}
_MAGIC = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"RIFF": "WebP",
    b"BM": "BMP",
    b"GIF8": "GIF",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",  # over 4 GiB
    b"MM\0+": "TIFF",
}
_BRANDS = {  # of ISO media files with one image
    **dict.fromkeys((b"avif", b"avis"), "AVIF"),
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"), "HEIC"),
}
_HEIF = "pillow_heif"  # the package with which Pillow reads HEIC
_KEPT_EXTENSIONS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Pillow warns about damaged metadata; we read only the orientation.
warnings.filterwarnings("ignore", module=r"PIL\.")


def decode(data: bytes) -> Image.Image:
    """The image in `data` as upright 8-bit RGB.

    ImageError for an unknown format, more than `MAX_PIXELS` pixels (by the header, before decoding), and damaged or
    truncated data (with the decoder's reason).
    """
    image = open_image(data)
    try:
        depth = depth_of(image)
        return _to_rgb(_upright(image), depth)
    except (MemoryError, ImageError):
        raise
    except Exception as error:  # hostile bytes can make a decoder raise anything
        reason = str(error) or type(error).__name__
        what = f"a {image.format} of {image.width} x {image.height} pixels"
        raise ImageError(f"{what} cannot be decoded: {reason}") from error


def upright_size(data: bytes) -> tuple[int, int]:
    """(width, height) of `decode(data)`, from the header alone. ImageError if that cannot be read."""
    image = open_image(data)
    width, height = image.size
    if isinstance(image, TiffImageFile):  # whose `size` may be upright already
        width, height = image.tag_v2[IMAGEWIDTH], image.tag_v2[IMAGELENGTH]
    return (height, width) if orientation(image) >= 5 else (width, height)


def upright_file(data: bytes) -> tuple[str, bytes]:
    """A file with the pixels of `decode(data)`, as (extension, bytes).

    `data` itself if it is an upright 8-bit RGB JPEG, PNG or WebP; else a lossless PNG.
    """
    image = open_image(data)
    extension = _KEPT_EXTENSIONS.get(str(image.format))
    narrow = depth_of(image).bits == 8
    pixels = decode(data)
    if extension and image.mode == "RGB" and narrow and not image.has_transparency_data and orientation(image) == 1:
        return extension, data
    buffer = io.BytesIO()
    pixels.save(buffer, "PNG", optimize=True)
    return "png", buffer.getvalue()


def decoder_versions() -> dict[str, str]:
    """The library versions that a view's pixels can depend on."""
    found = {
        "pillow": features.version("pil"),
        "libjpeg-turbo": features.version("libjpeg_turbo"),
        "zlib": features.version("zlib"),
        "webp": features.version("webp"),
        "numpy": np.__version__,
    }
    return {name: version or "none" for name, version in found.items()}


def optional_decoders() -> dict[str, str]:
    """The versions of what reads the formats that not every machine reads; "none" where it is missing."""
    heif = importlib.import_module(_HEIF).__version__ if importlib.util.find_spec(_HEIF) else None
    found = {"avif": features.version("avif") if HAS_AVIF else None, "tiff": features.version("libtiff"), "heif": heif}
    return {name: version or "none" for name, version in found.items()}


def image_kind(head: bytes) -> str | None:
    """An image's format by its first `HEAD` bytes: JPEG, PNG, WebP, BMP, GIF, TIFF, AVIF or HEIC; else None."""
    if head[4:8] == b"ftyp":
        size = min(int.from_bytes(head[:4], "big"), len(head))
        brands = [head[8:12], *(head[at : at + 4] for at in range(16, size, 4))]
        return next((_BRANDS[brand] for brand in brands if brand in _BRANDS), None)
    kind = _kind(head)
    if (kind == "WebP" and head[8:12] != b"WEBP") or (kind == "BMP" and head[6:10] != b"\0\0\0\0"):
        return None
    return kind


def _kind(head: bytes) -> str | None:
    return next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), None)


def _reader(data: bytes) -> Reader:
    """The Pillow class that reads the file. ImageError if there is none."""
    kind = _kind(data[:HEAD]) or image_kind(data[:HEAD])
    if kind in _READERS:
        return _READERS[kind]
    if kind == "AVIF":
        if HAS_AVIF:
            return AvifImageFile
        raise ImageError("an AVIF, which the installed Pillow cannot read; install its wheel, or convert to JPEG")
    if kind == "HEIC":
        if importlib.util.find_spec(_HEIF):
            reader: Reader = importlib.import_module(_HEIF).HeifImageFile
            return reader
        raise ImageError("a HEIC, which Pillow reads only with pillow-heif; install that, or convert to JPEG")
    if data.startswith(LFS_POINTER):
        raise ImageError("not the image but a Git LFS pointer to it; run `git lfs pull`")
    raise ImageError(
        f"not a supported image ({len(data)} bytes that start with {data[:8]!r}); "
        "convert it to JPEG, PNG, WebP, BMP, GIF or TIFF"
    )


def open_image(data: bytes) -> ImageFile.ImageFile:
    """The image with its header read and its size checked, but no pixels decoded."""
    reader = _reader(data)
    try:
        image = reader(io.BytesIO(data))
    except MemoryError:
        raise
    except Exception as error:
        raise ImageError(f"the image's header cannot be read: {error}") from error
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageError(f"{width} x {height} pixels are more than the {MAX_PIXELS:,} allowed; scale the image down")
    if width < 1 or height < 1:
        raise ImageError(f"{width} x {height} pixels are not an image")
    return image


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 if there is none or it cannot be read."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged metadata beside good pixels
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _upright(image: Image.Image) -> Image.Image:
    image.load()
    method = _UPRIGHT.get(orientation(image))
    return image if method is None else image.transpose(method)


def _to_rgb(image: Image.Image, depth: Depth) -> Image.Image:
    """8-bit RGB from any mode, transparency on white."""
    image = eight_bits(image, depth)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        canvas = Image.new("RGB", layer.size, "white")
        canvas.paste(layer, mask=layer.getchannel("A"))
        return canvas
    return image.convert("RGB")
