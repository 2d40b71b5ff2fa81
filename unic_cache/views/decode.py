"""From a file's bytes to an upright RGB image, within bounds, or an `ImageError` that says why not.

One rule for every source of images: EXIF's orientation is applied, transparency goes on white, and whatever else a
file holds (grey, palette, CMYK, 16 bits, floats) becomes 8-bit RGB. Only the first frame of an animation counts.
"""

import io
import warnings
from collections.abc import Callable

import numpy as np
from PIL import ExifTags, Image, ImageFile, features
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from unic_cache.errors import ImageError

MAX_PIXELS = 89_478_485  # a quarter of a GiB at 3 bytes each

_READERS: dict[bytes, Callable[[io.BytesIO], ImageFile.ImageFile]] = {
    b"\xff\xd8\xff": JpegImageFile,
    b"\x89PNG\r\n\x1a\n": PngImageFile,
    b"RIFF": WebPImageFile,
    b"BM": BmpImageFile,
    b"GIF8": GifImageFile,
    b"II*\0": TiffImageFile,
    b"MM\0*": TiffImageFile,
}
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

# Pillow remarks on damaged metadata, none of which is read here but the orientation.
warnings.filterwarnings("ignore", module=r"PIL\.")


def decode(data: bytes) -> Image.Image:
    """The image in `data` as upright 8-bit RGB.

    The header alone decides whether an image is too large, before any pixel is decoded. ImageError on an unknown
    format, more than `MAX_PIXELS` pixels, and damaged or truncated data (with the decoder's reason).
    """
    image = _open(data)
    try:
        return _to_rgb(_upright(image))
    except MemoryError:
        raise
    except Exception as error:  # hostile bytes can make a decoder raise anything
        raise _broken(image, error) from error


def upright_file(data: bytes) -> tuple[str, bytes]:
    """A file that holds just the pixels of `decode(data)`, as (extension, bytes).

    `data` itself where it already is an upright 8-bit RGB JPEG, PNG or WebP; else a lossless PNG.
    """
    image = _open(data)
    extension = _KEPT_EXTENSIONS.get(str(image.format))
    eight_bits = image.format != "PNG" or data[24] == 8
    pixels = decode(data)
    if extension and image.mode == "RGB" and eight_bits and not _transparent(image) and _orientation(image) == 1:
        return extension, data
    buffer = io.BytesIO()
    pixels.save(buffer, "PNG", optimize=True)
    return "png", buffer.getvalue()


def decoder_versions() -> dict[str, str]:
    """The versions that a view's pixels can depend on."""
    found = {
        "pillow": features.version("pil"),
        "libjpeg-turbo": features.version("libjpeg_turbo"),
        "zlib": features.version("zlib"),
        "webp": features.version("webp"),
        "numpy": np.__version__,
    }
    return {name: version or "none" for name, version in found.items()}


def _open(data: bytes) -> ImageFile.ImageFile:
    """The image by its first bytes, header read and size checked, no pixel decoded."""
    reader = next((reader for magic, reader in _READERS.items() if data.startswith(magic)), None)
    if reader is None:
        raise ImageError(
            f"not an image that is read here ({len(data)} bytes that begin with {data[:8]!r}); "
            "convert it to JPEG, PNG, WebP, BMP, GIF or TIFF"
        )
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
        raise ImageError(f"{width} x {height} pixels are no image")
    return image


def _broken(image: ImageFile.ImageFile, error: Exception) -> ImageError:
    reason = str(error) or type(error).__name__
    return ImageError(f"a {image.format} of {image.width} x {image.height} pixels cannot be decoded: {reason}")


def _orientation(image: Image.Image) -> int:
    """EXIF's orientation, 1 to 8; 1 where there is none or it cannot be read."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged metadata beside good pixels
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _upright(image: Image.Image) -> Image.Image:
    image.load()
    method = _UPRIGHT.get(_orientation(image))
    return image if method is None else image.transpose(method)


def _transparent(image: Image.Image) -> bool:
    return image.has_transparency_data and not image.mode.startswith("I")


def _to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB of any mode. 16 bits keep their upper 8; transparency goes on white; floats count as 0 to 255."""
    if image.mode.startswith("I"):
        levels = np.clip(np.asarray(image), 0, 65535).astype(np.uint16) >> 8
        return Image.fromarray(levels.astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        levels = np.clip(np.nan_to_num(np.asarray(image)), 0, 255)
        return Image.fromarray(levels.astype(np.uint8)).convert("RGB")
    if _transparent(image):
        layer = image.convert("RGBA")
        canvas = Image.new("RGB", layer.size, "white")
        canvas.paste(layer, mask=layer.getchannel("A"))
        return canvas
    return image.convert("RGB")
