"""Filling and writing one unit: data objects first, each created once, the commit record last.

No object is ever overwritten: creates are atomic and durable, so a kill leaves whole objects or none. An object without
a record comes from a writer that died or that works on the same unit now. If it decodes to our rows it is adopted, and
the record holds *its* checksums. So whatever the order of their calls, all writers of a unit see the same bytes, write
the same record, and end with one good copy.

An object that does not decode to our rows is no left-over of a kill but a broken disk or another machine's mistake, and
is reported. Replacing it here would be wrong: somebody else may commit it between our look and our write.

Letters: B images of a batch.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

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
from unic_cache.store.codecs.fixed import Encoded
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
# The largest |theirs - ours| / |ours| of a token that another device's arithmetic may cause, by the teacher's dtype.
# Against float32, the demo's teachers change by up to 0.05 in float16, 0.49 in bfloat16; other teachers by 1.4.
ADOPT_DISTANCE = {"float32": 0.04, "bfloat16": 0.8, "float16": 0.2}

CODES_APART = 2  # codes of a token that may round to the other side


class UnitWriter:
    """Writes units of one member. `write` may run in a background thread; one call at a time."""

    def __init__(self, member: Member, calibration_crc: int | None) -> None:
        self.member = member
        self.calibration_crc = calibration_crc
        self._prepared: set[tuple[int, str]] = set()

    def write(
        self, unit: Unit, parts: Mapping[str, Rows], pixels: Crcs, bad: Mapping[int, str], clipped: int = 0
    ) -> CommitRecord:
        """Store and commit the arrays of a unit; return the record that is in the cache afterwards.

        `parts`: array name -> (rows, ...) in the dtype of the member's arrays, zeros in bad rows. `pixels`: crc32c of
        each row's view. `bad`: row -> reason. `clipped`: see CommitRecord. OSError if the store cannot be written;
        CacheError if another object without a record is in the way.
        """
        self._prepare(unit)
        kept: dict[str, Rows] = {}
        sizes: dict[str, int] = {}
        crcs: dict[str, Crcs] = {}
        for array in self.member.arrays:
            ours = encode_objects(self.member, unit, array, parts[array.name])
            standing = {name: self._settle(name, data) for name, data in ours.items()}
            found = parts[array.name] if standing == ours else decode_objects(self.member, unit, array, standing)
            if found is None:
                raise self._in_the_way(unit)
            kept[array.name] = found
            crcs[array.name] = chunk_crcs(standing.values(), unit.extent) if array.tile else row_crcs(kept[array.name])
            sizes |= {name: len(data) for name, data in standing.items()}
        if any(kept[name] is not parts[name] for name in kept) and not self._agree(kept, parts):
            raise self._in_the_way(unit)
        record = CommitRecord(self.member.folder, unit, dict(bad), sizes, crcs, pixels, self.calibration_crc, clipped)
        if self.member.location.create(record.name, record.to_bytes()):
            return record
        standing_record = self.member.record(unit)
        if standing_record is None:
            raise self._vanished(record.name)
        return standing_record

    def _prepare(self, unit: Unit) -> None:
        """Create the view's zarr.json files, or check the existing ones."""
        if (unit.segment, unit.view) in self._prepared:
            return
        for name, data in metadata_objects(
            self.member.folder, unit.segment, unit.view, self.member.arrays, unit.extent
        ).items():
            if not self.member.location.create(name, data):
                check_metadata(name, self.member.location.read(name) or b"", data)
        self._prepared.add((unit.segment, unit.view))

    def _settle(self, name: str, data: bytes) -> bytes:
        """Create an object unless it exists; return its bytes in the store."""
        if self.member.location.create(name, data):
            return data
        standing = self.member.location.read(name)
        if standing is None:
            raise self._vanished(name)
        return standing

    def _agree(self, found: Mapping[str, Rows], ours: Mapping[str, Rows]) -> bool:
        """Whether all tokens agree, up to what another machine's arithmetic may change."""
        if self.member.codec is None:
            return all(np.array_equal(found[name], ours[name]) for name in ours)
        limit = ADOPT_DISTANCE[self.member.spec.get("dtype", "float32")]
        slack = {kind: CODES_APART * step for kind, step in self.member.codec.steps.items()}
        theirs, mine = (self.member.codec.decode(_tensors(parts)) for parts in (found, ours))
        return all(
            bool(((theirs[kind] - mine[kind]).norm(dim=-1) <= limit * mine[kind].norm(dim=-1) + slack[kind]).all())
            for kind in mine
        )

    def _in_the_way(self, unit: Unit) -> CacheError:
        return CacheError(
            f"{self.member.location.url}: {self.member.folder}, {unit}: what stands there is not what this machine "
            "makes, and has no commit record; stop all extraction into this cache, run `unic-cache repair` to remove "
            "it, and extract again"
        )

    def _vanished(self, name: str) -> CacheError:
        return CacheError(f"{self.member.location.url}/{name} vanished while it was read; start again")


class UnitArrays:
    """One member's arrays of a unit while they fill; rows that are never put, or bad, are zeros."""

    def __init__(self, writer: UnitWriter, unit: Unit) -> None:
        self.unit = unit
        self.clipped = 0  # see CommitRecord
        self._writer = writer
        self._arrays: dict[str, Rows] = {a.name: np.zeros((unit.rows, *a.row), a.dtype) for a in writer.member.arrays}

    def put(self, first: int, count: int, encoded: Encoded, bad: Sequence[int]) -> None:
        """Fill rows [first, first + count) from an encoded batch on the host; `bad` are places in the batch."""
        for name, values in encoded.arrays.items():
            rows = self._arrays[name][first : first + count]
            rows[:] = values[:count].numpy()
            rows[bad] = 0
        if encoded.clipped_B is not None:
            self.clipped += int(encoded.clipped_B[:count].sum() - encoded.clipped_B[bad].sum())

    def write(self, pixels: Crcs, bad: Mapping[int, str]) -> CommitRecord:
        """`UnitWriter.write` of all rows."""
        return self._writer.write(self.unit, self._arrays, pixels, bad, self.clipped)


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
    store, target = _in_memory(member, unit, array)
    kept = array.to_disk(rows)
    step = target.shards[1] if target.shards else 1
    for start in range(0, len(kept), step):
        target[unit.shard, start : min(start + step, len(kept))] = kept[start : start + step]
    objects = memory_objects(store)
    parts = range(unit.extent.objects(unit.rows))
    names = [object_name(member.folder, unit.segment, unit.view, array, unit.shard, part) for part in parts]
    return {name: objects[name] for name in names}


def decode_objects(member: Member, unit: Unit, array: ArraySpec, objects: Mapping[str, bytes]) -> Rows | None:
    """A unit's rows of one array as stock zarr reads them from the objects' bytes; None if it cannot."""
    store, target = _in_memory(member, unit, array)
    for name, data in objects.items():
        sync(store.set(name, default_buffer_prototype().buffer.from_bytes(data)))
    try:
        kept = np.asarray(target[unit.shard, : array.checksums(unit.rows)])
        return array.from_disk(kept, unit.rows)
    except (ValueError, RuntimeError, OSError, zarr.errors.BaseZarrError):
        return None


def _in_memory(member: Member, unit: Unit, array: ArraySpec) -> tuple[MemoryStore, zarr.Array[Any]]:
    store = MemoryStore()
    path = f"{view_folder(member.folder, unit.segment, unit.view)}/{array.name}"
    return store, create_zarr(store, path, array, unit.extent)


def _tensors(parts: Mapping[str, Rows]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.ascontiguousarray(rows)) for name, rows in parts.items()}
