"""Store format 1: the names, shapes and types of everything that a cache holds. The one table of the disk format.

    index/000000.json                                         a segment: shards in order, keys, member offsets
    probe/RECIPE-SIZE-SEED.npz                                pixels of a few views, to tell one decoder from another
    held-out/SEGMENT/S.json                                   a tar that a run named as held out of training
    TEACHER/spec.json                                         what the features are and how they were made
    TEACHER/calibration.npz                                   mean and std of each token type
    TEACHER/features.zarr/SEGMENT/VIEW/ARRAY/zarr.json        plain Zarr v3 metadata
    TEACHER/features.zarr/SEGMENT/VIEW/ARRAY/c.S.K.0...       shard S's rows [K * 1024, (K + 1) * 1024)
    TEACHER/commits/SEGMENT/VIEW/S.json                       written last: what is here and what it must read as

An array of plain rows is (S, n, ...), without a byte codec, so that any row is one range of bytes. A tiled array
(`klt`) is (S, C, G, 32, W): chunk C holds the 32 rows from 32 C on, each cut into G tiles of W bytes, the rows' tiles
side by side, and is compressed with zstd. So bytes of one meaning lie together for the compressor, and a row is still G
runs of W bytes.

SEGMENT and S are six digits (S without leading zeros in a chunk key), VIEW is recipe-size-seed-number. The pixels that
`--keep-views` keeps are the member `views` with one array, `rgb`, by the same rules. S are the tars
of the segment, n the rows of its longest tar rounded up to whole chunks. Row = position in the tar.

Letters: S tars, n rows, C chunks of 32 rows, G tiles of W bytes, T patch tokens, D channels.
"""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache as memoize
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from unic_cache.errors import CacheError

if TYPE_CHECKING:  # names and shapes are needed before a command may take the second that importing zarr takes
    import zarr
    from zarr.storage import MemoryStore

FORMAT = 1
CHUNK_ROWS = 32
SHARD_ROWS = 1024
ZSTD_LEVEL = 1  # higher ones look for repetitions, which codes do not have, and spoil the entropy code
ABSENT = 2**64 - 1  # offset and size of a chunk that an object does not hold
VIEWS_MEMBER = "views"
HELD_OUT = "held-out"
RESERVED = frozenset({"index", "probe", HELD_OUT, VIEWS_MEMBER})


@dataclass(frozen=True)
class ArraySpec:
    """One array of a member: its name, the shape of one row, its numpy dtype's name, and the bytes of a tile.

    `tile` is 0 for plain rows. A tiled array's row is (G * tile,) uint8.
    """

    name: str
    row: tuple[int, ...]
    dtype: str
    tile: int = 0

    @property
    def row_bytes(self) -> int:
        """Bytes of one row before any byte codec."""
        return int(np.prod(self.row, dtype=np.int64)) * np.dtype(self.dtype).itemsize

    @property
    def tail(self) -> tuple[int, ...]:
        """The axes behind the rows' or chunks' axis."""
        return (self.row_bytes // self.tile, CHUNK_ROWS, self.tile) if self.tile else self.row

    def checksums(self, rows: int) -> int:
        """How many checksums vouch for `rows` rows: one a row, or one a compressed chunk."""
        return -(-rows // CHUNK_ROWS) if self.tile else rows

    def to_disk(self, rows: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        """Rows (N, ...) as they are kept: unchanged, or chunks (N / 32, G, 32, W) with zeros behind the last row."""
        if not self.tile:
            return rows
        padded = np.zeros((self.checksums(len(rows)) * CHUNK_ROWS, *self.row), self.dtype)
        padded[: len(rows)] = rows
        return padded.reshape(-1, CHUNK_ROWS, self.row_bytes // self.tile, self.tile).swapaxes(1, 2)

    def from_disk(self, kept: npt.NDArray[np.generic], rows: int) -> npt.NDArray[np.generic]:
        """The inverse of `to_disk`: the first `rows` rows."""
        return kept.swapaxes(1, 2).reshape(-1, *self.row)[:rows] if self.tile else kept[:rows]


@dataclass(frozen=True)
class Extent:
    """The two leading axes of a segment's arrays: how many tars, and the rows of the longest one."""

    shards: int
    rows: int

    @property
    def padded_rows(self) -> int:
        """Rows rounded up to whole chunks: the second axis of the arrays."""
        return -(-max(self.rows, 1) // CHUNK_ROWS) * CHUNK_ROWS

    @property
    def object_rows(self) -> int:
        """Rows that one Zarr shard, one object of the store, holds at most."""
        return min(SHARD_ROWS, self.padded_rows)

    def objects(self, rows: int) -> int:
        """How many objects of one array hold the first `rows` rows of a tar."""
        return -(-rows // self.object_rows)


def object_bytes(array: ArraySpec, extent: Extent, rows: int, part: int) -> range:
    """The sizes that an object of a tar of `rows` rows may have: whole chunks, then Zarr's index.

    A compressed chunk has at least a byte, and at most what zstd may need for bytes that do not compress.
    """
    held = min(extent.object_rows, rows - part * extent.object_rows)
    chunks, chunk_bytes = -(-held // CHUNK_ROWS), CHUNK_ROWS * array.row_bytes
    least, most = (1, chunk_bytes + chunk_bytes // 128 + 1024) if array.tile else (chunk_bytes, chunk_bytes)
    return range(chunks * least + index_bytes(extent), chunks * most + index_bytes(extent) + 1)


def index_bytes(extent: Extent) -> int:
    """The size of the index at an object's end: 16 bytes a chunk and a crc."""
    return 16 * (extent.object_rows // CHUNK_ROWS) + 4


def teacher_folder(name: str) -> str:
    """The teacher's folder in a cache: its name, with '.' for ':' (`timm:resnet18@128` gives `timm.resnet18@128`)."""
    return name.replace(":", ".")


def view_folder(member: str, segment: int, view: str) -> str:
    """The Zarr group that holds a member's arrays for one segment and one view."""
    return f"{member}/features.zarr/{segment:06d}/{view}"


def object_name(member: str, segment: int, view: str, array: ArraySpec, shard: int, part: int) -> str:
    """The object with rows [part * object_rows, ...) of tar number `shard`."""
    return f"{view_folder(member, segment, view)}/{array.name}/c.{shard}.{part}" + ".0" * len(array.tail)


def commit_folder(member: str, segment: int, view: str) -> str:
    """Where the commit records of one view stand."""
    return f"{member}/commits/{segment:06d}/{view}"


def commit_name(member: str, segment: int, view: str, shard: int) -> str:
    """The commit record of tar number `shard`."""
    return f"{commit_folder(member, segment, view)}/{shard:06d}.json"


def create_zarr(store: "MemoryStore", path: str, array: ArraySpec, extent: Extent) -> "zarr.Array[Any]":
    """The array as stock zarr makes it: sharded, "." in chunk keys, empty chunks written."""
    import zarr
    from zarr.codecs import ZstdCodec

    each = CHUNK_ROWS if array.tile else 1
    return zarr.create_array(
        store,
        name=path,
        shape=(extent.shards, extent.padded_rows // each, *array.tail),
        shards=(1, extent.object_rows // each, *array.tail),
        chunks=(1, CHUNK_ROWS // each, *array.tail),
        dtype=array.dtype,
        compressors=ZstdCodec(level=ZSTD_LEVEL) if array.tile else None,
        filters=None,
        fill_value=0,
        chunk_key_encoding={"name": "default", "separator": "."},
        config={"write_empty_chunks": True},
    )


def memory_objects(store: "MemoryStore") -> dict[str, bytes]:
    """Every object of an in-memory Zarr store by its name."""
    from zarr.core.buffer import default_buffer_prototype

    prototype = default_buffer_prototype()

    async def collect() -> dict[str, bytes]:
        found = {}
        async for name in store.list():
            buffer = await store.get(name, prototype)
            if buffer is not None:
                found[name] = buffer.to_bytes()
        return found

    return asyncio.run(collect())


@memoize
def metadata_objects(
    member: str, segment: int, view: str, arrays: tuple[ArraySpec, ...], extent: Extent
) -> Mapping[str, bytes]:
    """The zarr.json files of one view: the arrays and every group above them, name -> bytes."""
    from zarr.storage import MemoryStore

    store = MemoryStore()
    folder = view_folder(member, segment, view).removeprefix(f"{member}/features.zarr/")
    for array in arrays:
        create_zarr(store, f"{folder}/{array.name}", array, extent)
    return {f"{member}/features.zarr/{name}": data for name, data in memory_objects(store).items()}


def check_metadata(where: str, found: bytes, expected: bytes) -> None:
    """CacheError unless two zarr.json describe the same array; keys that a zarr release adds do not matter."""
    want = json.loads(expected)
    try:
        have = json.loads(found)
        different = [key for key in want if have.get(key) != want[key]]
    except (ValueError, AttributeError, RecursionError) as error:
        raise CacheError(f"{where}: not the JSON of a Zarr array ({error}); run `unic-cache repair`") from error
    if different:
        key = different[0]
        raise CacheError(
            f"{where}: {key} is {json.dumps(have.get(key))[:200]}, but this cache needs {json.dumps(want[key])[:200]}; "
            "the file was changed after it was made, or made by other settings"
        )
