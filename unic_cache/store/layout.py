"""Store formats 1 to 3: names, shapes and dtypes of everything in a cache. The only table of the disk format.

    index/000000.json                                     a segment: tars in order; each sample's key, place and label
    probe/RECIPE-SIZE-SEED.npz                            pixels of a few views, to detect another decoder
    held-out/SEGMENT/S.json                               a tar that a run held out of training
    TEACHER/spec.json                                     what the features are and how they were made
    TEACHER/calibration.npz                               mean, std, covariance and fidelity per kind; klt's tables
    TEACHER/features.zarr/SEGMENT/VIEW/ARRAY/zarr.json    plain Zarr v3 metadata
    TEACHER/features.zarr/SEGMENT/VIEW/ARRAY/c.S.K.0...   rows [K * 1024, (K + 1) * 1024) of tar S
    TEACHER/commits/SEGMENT/VIEW/S.json                   written last: the unit's objects and checksums
    TEACHER/seals/SEGMENT/VIEW/RUN.json                   a thousand commit records in short; may be absent
    views/...                                             pixels kept by --keep-views: array `rgb`, by the same rules

SEGMENT and S are six digits (S without leading zeros in a chunk key); VIEW is recipe-size-seed-number; a row is a
sample's position in its tar.

An array of plain rows is (S, n, ...) without a byte codec, so any row is one byte range. A tiled array (`klt`) is
(S, C, G, 32, W), compressed by a coder: chunk C holds rows [32 C, 32 C + 32), each cut into G tiles of W values, with
the 32 rows' tiles side by side. Values of equal meaning are then neighbours for the coder, and a row is G runs.

Formats 2 and 3 are format 1 with settings that earlier releases would misread; only members with these have them.

Letters: S tars of the segment, n rows of its longest tar rounded up to whole chunks, C chunks of 32 rows, G tiles of W
values, T patch tokens, D channels.
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
from unic_cache.store.coders import CODERS

if TYPE_CHECKING:  # names and shapes are needed before a command may take the second that importing zarr takes
    import zarr
    from zarr.storage import MemoryStore

FORMAT = 1  # of commit records, and of members that earlier releases read too
LATEST_FORMAT = 3  # of members that earlier releases would misread, and so refuse
# Keys of a spec.json of a later format -> what format 1, without them, means; `cls_quality` None: float16.
ADDED = {"coder": "zstd", "sampling": "random", "cls_quality": None}
ADDED_IN = {"coder": 2, "sampling": 2, "cls_quality": 3}
CHUNK_ROWS = 32
SHARD_ROWS = 1024
ABSENT = 2**64 - 1  # offset and size of a chunk that an object lacks
VIEWS_MEMBER = "views"
HELD_OUT = "held-out"
SEALS = "seals"  # of a member
RESERVED = frozenset({"index", "probe", HELD_OUT, VIEWS_MEMBER})
FOLDER_NAME = str.maketrans({":": ".", "+": "..", "=": "-", ",": ".", "/": "--", "#": "@@"})


def format_of(spec: Mapping[str, Any]) -> int:
    """The format that a member's spec.json must name: the first that can say all that it says."""
    return max([FORMAT, *(ADDED_IN[key] for key, before in ADDED.items() if spec.get(key, before) != before)])


@dataclass(frozen=True)
class ArraySpec:
    """One array of a member: name, shape of a row, numpy dtype, values per tile (0: plain rows), and the tiles' coder.

    A tiled array's row is (G * tile,).
    """

    name: str
    row: tuple[int, ...]
    dtype: str
    tile: int = 0
    coder: str = "zstd"

    @property
    def row_bytes(self) -> int:
        """Uncompressed bytes per row."""
        return int(np.prod(self.row, dtype=np.int64)) * np.dtype(self.dtype).itemsize

    @property
    def tail(self) -> tuple[int, ...]:
        """The axes after the axis of rows or chunks."""
        return (self.row[0] // self.tile, CHUNK_ROWS, self.tile) if self.tile else self.row

    @property
    def tile_bytes(self) -> int:
        """Uncompressed bytes per tile."""
        return self.tile * np.dtype(self.dtype).itemsize

    def checksums(self, rows: int) -> int:
        """The number of checksums for `rows` rows: one per row, or one per compressed chunk."""
        return -(-rows // CHUNK_ROWS) if self.tile else rows

    def to_disk(self, rows: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        """Rows (N, ...) as stored: unchanged, or chunks (N / 32, G, 32, W) padded with zeros."""
        if not self.tile:
            return rows
        padded = np.zeros((self.checksums(len(rows)) * CHUNK_ROWS, *self.row), self.dtype)
        padded[: len(rows)] = rows
        return padded.reshape(-1, CHUNK_ROWS, self.row[0] // self.tile, self.tile).swapaxes(1, 2)

    def from_disk(self, stored: npt.NDArray[np.generic], rows: int) -> npt.NDArray[np.generic]:
        """The inverse of `to_disk`: the first `rows` rows."""
        return stored.swapaxes(1, 2).reshape(-1, *self.row)[:rows] if self.tile else stored[:rows]


@dataclass(frozen=True)
class Extent:
    """The two leading axes of a segment's arrays: its tars, and the rows of the longest."""

    shards: int
    rows: int

    @property
    def padded_rows(self) -> int:
        """n: rows rounded up to whole chunks."""
        return -(-max(self.rows, 1) // CHUNK_ROWS) * CHUNK_ROWS

    @property
    def object_rows(self) -> int:
        """Most rows in one Zarr shard, which is one object of the store."""
        return min(SHARD_ROWS, self.padded_rows)

    def objects(self, rows: int) -> int:
        """The number of objects that hold the first `rows` rows of a tar in one array."""
        return -(-rows // self.object_rows)


def object_bytes(array: ArraySpec, extent: Extent, rows: int, part: int) -> range:
    """The sizes that object `part` of a tar of `rows` rows may have: whole chunks, then Zarr's index.

    A compressed chunk has from 1 byte up to its coder's bound for incompressible data.
    """
    held = min(extent.object_rows, rows - part * extent.object_rows)
    chunks, chunk_bytes = -(-held // CHUNK_ROWS), CHUNK_ROWS * array.row_bytes
    least, most = (1, CODERS[array.coder].most(chunk_bytes)) if array.tile else (chunk_bytes, chunk_bytes)
    return range(chunks * least + index_bytes(extent), chunks * most + index_bytes(extent) + 1)


def index_bytes(extent: Extent) -> int:
    """Bytes of the index at an object's end: 16 per chunk and a crc."""
    return 16 * (extent.object_rows // CHUNK_ROWS) + 4


def teacher_folder(name: str) -> str:
    """A teacher's folder in a cache: its name without what URLs and shells read in their own way.

    `timm:resnet18@128` is `timm.resnet18@128`, `dino+cls=none,patch=block:8` is `dino..cls-none.patch-block.8`, and
    `hf-hub:ORG/NAME#REVISION` is `hf-hub.ORG--NAME@@REVISION`.
    """
    return name.translate(FOLDER_NAME)


def view_folder(member: str, segment: int, view: str) -> str:
    """The Zarr group of a member's arrays for one segment and view."""
    return f"{member}/features.zarr/{segment:06d}/{view}"


def object_name(member: str, segment: int, view: str, array: ArraySpec, shard: int, part: int) -> str:
    """The object with rows [part * object_rows, ...) of tar `shard`."""
    return f"{view_folder(member, segment, view)}/{array.name}/c.{shard}.{part}" + ".0" * len(array.tail)


def commit_folder(member: str, segment: int, view: str) -> str:
    """The folder of one view's commit records."""
    return f"{member}/commits/{segment:06d}/{view}"


def commit_name(member: str, segment: int, view: str, shard: int) -> str:
    """The commit record of tar `shard`."""
    return f"{commit_folder(member, segment, view)}/{shard:06d}.json"


def create_zarr(store: "MemoryStore", path: str, array: ArraySpec, extent: Extent) -> "zarr.Array[Any]":
    """The array as stock zarr makes it: sharded, "." in chunk keys, empty chunks written."""
    import zarr

    each = CHUNK_ROWS if array.tile else 1
    return zarr.create_array(
        store,
        name=path,
        shape=(extent.shards, extent.padded_rows // each, *array.tail),
        shards=(1, extent.object_rows // each, *array.tail),
        chunks=(1, CHUNK_ROWS // each, *array.tail),
        dtype=array.dtype,
        **(CODERS[array.coder].zarr() if array.tile else {"compressors": None}),
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
    """CacheError unless two zarr.json describe the same array; keys added by other zarr releases do not matter."""
    want = json.loads(expected)
    try:
        have = json.loads(found)
        different = [key for key in want if have.get(key) != want[key]]
    except (ValueError, AttributeError, RecursionError) as error:
        raise CacheError(f"{where}: not a Zarr array's JSON ({error}); run `unic-cache repair`") from error
    if different:
        key = different[0]
        raise CacheError(
            f"{where}: {key} is {json.dumps(have.get(key))[:200]}, but this cache needs {json.dumps(want[key])[:200]}; "
            "the file was changed since, or made with other settings"
        )
