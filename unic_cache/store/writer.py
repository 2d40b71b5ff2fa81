"""Writing one unit: data objects first, each created once, the commit record last.

Nothing that has a name is ever written again: creates are atomic and durable, so a kill leaves whole objects or none,
and what stands under a name stays. A name that is taken although no record vouches for it was taken by a writer that
died, or by one that works on the same unit now. What stands there is adopted when it decodes to our rows, and the
record then holds *its* checksums. So whatever the order of their calls, all writers of a unit see the same bytes, write
the same record, and end with one good copy.

What does not decode to our rows is no left-over of a kill but a broken disk or another machine's mistake, and is
reported. Replacing it here would be wrong: between looking and replacing, somebody else may commit it.
"""

from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt
import torch
import zarr
from crc32c import crc32c
from torch import Tensor
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import MemoryStore

from unic_cache.errors import CacheError
from unic_cache.store.commit import CommitRecord, Crcs, Unit
from unic_cache.store.layout import (
    ABSENT,
    ArraySpec,
    Extent,
    check_metadata,
    create_zarr,
    index_bytes,
    memory_objects,
    metadata_objects,
    object_name,
    view_folder,
)
from unic_cache.store.member import Member

Rows = npt.NDArray[np.generic]
# |theirs - ours| / |ours| of a token that may still be ours, by the teachers' dtype: what another device's arithmetic
# may change. Against float32, the demo's teachers change by up to 0.05 in float16, 0.49 in bfloat16; strangers by 1.4.
ADOPT_DISTANCE = {"float32": 0.04, "bfloat16": 0.8, "float16": 0.2}

CODES_APART = 2  # codes of a token that may fall on the other side of a rounding


class UnitWriter:
    """Writes units of one member. `write` may be called from a background thread; one call at a time."""

    def __init__(self, member: Member, calibration_crc: int | None) -> None:
        self.member = member
        self.calibration_crc = calibration_crc
        self._prepared: set[tuple[int, str]] = set()

    def write(
        self, unit: Unit, parts: Mapping[str, Rows], pixels: Crcs, bad: Mapping[int, str], clipped: int = 0
    ) -> CommitRecord:
        """Keep and commit the arrays of `unit.rows` rows; the record that stands in the cache afterwards.

        `parts`: array name -> (rows, ...) in the dtype of the member's arrays, zeros in bad rows. `pixels`: crc32c of
        each row's view. `bad`: row -> reason. `clipped`: see CommitRecord. OSError when the store cannot be written;
        CacheError when an object that no record vouches for stands in the way.
        """
        self._prepare(unit)
        kept: dict[str, Rows] = {}
        sizes: dict[str, int] = {}
        crcs: dict[str, Crcs] = {}
        for array in self.member.arrays:
            ours = encode_objects(self.member, unit, array, parts[array.name])
            standing = {name: self._settle(name, data) for name, data in ours.items()}
            kept[array.name] = parts[array.name] if standing == ours else self._decode(unit, array, standing)
            crcs[array.name] = chunk_crcs(standing.values(), unit.extent) if array.tile else row_crcs(kept[array.name])
            sizes |= {name: len(data) for name, data in standing.items()}
        if any(kept[name] is not parts[name] for name in kept) and not self._agree(kept, parts):
            raise self._in_the_way(unit)
        record = CommitRecord(
            self.member.folder,
            unit,
            dict(bad),
            sizes,
            crcs,
            pixels,
            self.calibration_crc,
            clipped,
        )
        if self.member.location.create(record.name, record.to_bytes()):
            return record
        standing_record = self.member.record(unit)
        if standing_record is None:
            raise self._vanished(record.name)
        return standing_record

    def _prepare(self, unit: Unit) -> None:
        """Create the view's zarr.json files, or check those that stand there."""
        if (unit.segment, unit.view) in self._prepared:
            return
        for name, data in metadata_objects(
            self.member.folder, unit.segment, unit.view, self.member.arrays, unit.extent
        ).items():
            if not self.member.location.create(name, data):
                check_metadata(name, self.member.location.read(name) or b"", data)
        self._prepared.add((unit.segment, unit.view))

    def _settle(self, name: str, data: bytes) -> bytes:
        """Create an object; the bytes that stand under its name from now on."""
        if self.member.location.create(name, data):
            return data
        standing = self.member.location.read(name)
        if standing is None:
            raise self._vanished(name)
        return standing

    def _decode(self, unit: Unit, array: ArraySpec, standing: Mapping[str, bytes]) -> Rows:
        rows = decode_objects(self.member, unit, array, standing)
        if rows is None:
            raise self._in_the_way(unit)
        return rows

    def _agree(self, found: Mapping[str, Rows], ours: Mapping[str, Rows]) -> bool:
        """Whether each token is ours, up to what another machine's arithmetic may change."""
        if self.member.codec is None:
            return all(np.array_equal(found[name], ours[name]) for name in ours)
        limit = ADOPT_DISTANCE[self.member.spec.get("dtype", "float32")]
        slack = {"cls": 0.0, "patch": CODES_APART * self.member.codec.step}
        theirs, mine = (self.member.codec.decode(_tensors(parts)) for parts in (found, ours))
        return all(
            bool(((theirs[kind] - mine[kind]).norm(dim=-1) <= limit * mine[kind].norm(dim=-1) + slack[kind]).all())
            for kind in mine
        )

    def _in_the_way(self, unit: Unit) -> CacheError:
        return CacheError(
            f"{self.member.location.url}: {self.member.folder}, {unit}: what stands there is not what this machine "
            "makes, and no commit record vouches for it; stop all extraction into this cache, run `unic-cache repair` "
            "to have it removed, and extract again"
        )

    def _vanished(self, name: str) -> CacheError:
        return CacheError(f"{self.member.location.url}/{name} vanished while it was read; start again")


def row_crcs(rows: Rows) -> Crcs:
    """crc32c of the bytes of each row of an array."""
    contiguous = np.ascontiguousarray(rows)
    return np.fromiter((crc32c(row.data) for row in contiguous), np.uint32, len(contiguous))


def chunk_crcs(objects: Iterable[bytes], extent: Extent) -> Crcs:
    """crc32c of the stored bytes of each chunk of a tiled array, from its objects in order."""
    crcs = [
        crc32c(data[offset : offset + size])
        for data in objects
        for offset, size in np.frombuffer(data[-index_bytes(extent) : -4], "<u8").reshape(-1, 2).tolist()
        if offset != ABSENT
    ]
    return np.array(crcs, np.uint32)


def encode_objects(member: Member, unit: Unit, array: ArraySpec, rows: Rows) -> dict[str, bytes]:
    """A unit's objects of one array as stock zarr writes them, name -> bytes."""
    store = MemoryStore()
    path = view_folder(member.folder, unit.segment, unit.view) + f"/{array.name}"
    target = create_zarr(store, path, array, unit.extent)
    kept = array.to_disk(rows)
    step = target.shards[1] if target.shards else 1
    for start in range(0, len(kept), step):
        target[unit.shard, start : min(start + step, len(kept))] = kept[start : start + step]
    objects = memory_objects(store)
    parts = range(unit.extent.objects(unit.rows))
    names = [object_name(member.folder, unit.segment, unit.view, array, unit.shard, part) for part in parts]
    return {name: objects[name] for name in names}


def decode_objects(member: Member, unit: Unit, array: ArraySpec, objects: Mapping[str, bytes]) -> Rows | None:
    """A unit's rows of one array as stock zarr reads them from the objects' bytes; None where it cannot."""
    store = MemoryStore()
    path = view_folder(member.folder, unit.segment, unit.view) + f"/{array.name}"
    target = create_zarr(store, path, array, unit.extent)
    for name, data in objects.items():
        sync(store.set(name, default_buffer_prototype().buffer.from_bytes(data)))
    try:
        kept = np.asarray(target[unit.shard, : array.checksums(unit.rows)])
        return array.from_disk(kept, unit.rows)
    except (ValueError, RuntimeError, OSError, zarr.errors.BaseZarrError):
        return None


def _tensors(parts: Mapping[str, Rows]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.ascontiguousarray(rows)) for name, rows in parts.items()}
