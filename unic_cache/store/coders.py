"""How a chunk of a tiled array is compressed: the coders, by name.

| coder | a chunk's values | its frame |
|---|---|---|
| `zstd` | bytes, several small codes in one (see `codecs.packing`) | zstd, Huffman codes: at least a bit a byte |
| `pcodec` | int16 codes | PCodec (numcodecs'), tANS: a piece with tables of its own for each tile of 32 rows |

Both are in the Zarr array's metadata, so stock zarr encodes and decodes the same bytes. Decoding here is bounded: a
frame fills memory of the size that the spec implies, or is refused.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache as memoize
from typing import Any

import numpy as np
from numcodecs.zstd import Zstd

from unic_cache.buffers import Bytes
from unic_cache.errors import BrokenError

ZSTD_LEVEL = 1  # higher levels search for repetitions, which codes lack, and worsen the entropy coding
PIECE = 2**14  # codes with tables of their own, one tile of 32 rows: less for tables, more for unlike codes
PCODEC: dict[str, Any] = {
    "level": 8,
    "mode_spec": "classic",
    "delta_spec": "auto",  # the one setting that every release of numcodecs takes; it finds none here
    "paging_spec": "equal_pages_up_to",
    "equal_pages_up_to": PIECE,
}
PIECE_OVERHEAD = 256  # bytes, at most, by which a piece of noise grows

_MAGIC = b"\x28\xb5\x2f\xfd"
_ID_BYTES = (0, 1, 2, 4)  # of the dictionary id, by bits 0 and 1 of a frame's descriptor
_SIZE_BYTES = (0, 2, 4, 8)  # of the content size, by bits 6 and 7; without a window (bit 5) at least one byte


@dataclass(frozen=True)
class Coder:
    """One way to compress a chunk."""

    decode: Callable[[memoryview, Bytes], None]  # a frame into memory of just its size; BrokenError if it does not fit
    zarr: Callable[[], Mapping[str, Any]]  # the arguments of `zarr.create_array`
    most: Callable[[int], int]  # the largest frame of so many bytes


def decode_zstd(frame: memoryview, chunk: Bytes) -> None:
    """Unpack a zstd frame. BrokenError, with just the reason, unless it has exactly the bytes of `chunk`."""
    found = content_size(frame)
    if found != len(chunk):
        raise BrokenError(f"a compressed chunk of {found} bytes instead of {len(chunk)}")
    try:
        Zstd().decode(frame, chunk)
    except (RuntimeError, ValueError) as error:
        raise BrokenError(f"a compressed chunk that cannot be unpacked ({error})") from error


def content_size(frame: memoryview) -> int | None:
    """The content size that a zstd frame declares (RFC 8878, 3.1.1.1); None if it declares none or is no frame."""
    if bytes(frame[:4]) != _MAGIC or len(frame) < 6:
        return None
    descriptor = frame[4]
    single = descriptor >> 5 & 1
    start = 5 + (1 - single) + _ID_BYTES[descriptor & 3]
    width = _SIZE_BYTES[descriptor >> 6] or single
    if not width or len(frame) < start + width:
        return None
    value = int.from_bytes(frame[start : start + width], "little")
    return value + 256 if width == 2 else value


def decode_pcodec(frame: memoryview, chunk: Bytes) -> None:
    """Unpack a PCodec frame of int16. BrokenError, with just the reason, unless it has exactly the bytes of `chunk`."""
    from pcodec import standalone

    values = chunk.view(np.int16)
    try:
        progress = standalone.simple_decompress_into(bytes(frame), values)
    except (RuntimeError, ValueError, TypeError) as error:
        raise BrokenError(f"a compressed chunk that cannot be unpacked ({error})") from error
    if progress.n_processed != len(values) or not progress.finished:
        raise BrokenError(f"a compressed chunk of other than {len(values)} codes")


def _zarr_zstd() -> Mapping[str, Any]:
    from zarr.codecs import ZstdCodec

    return {"compressors": ZstdCodec(level=ZSTD_LEVEL)}


@memoize
def _zarr_pcodec() -> Mapping[str, Any]:
    from zarr.codecs.numcodecs import PCodec

    with warnings.catch_warnings():  # that other implementations of Zarr may not know it
        warnings.simplefilter("ignore")
        return {"serializer": PCodec(**PCODEC), "compressors": None}


CODERS = {
    "zstd": Coder(decode_zstd, _zarr_zstd, lambda size: size + size // 128 + 1024),
    "pcodec": Coder(decode_pcodec, _zarr_pcodec, lambda size: size + size // (2 * PIECE) * PIECE_OVERHEAD + 1024),
}
