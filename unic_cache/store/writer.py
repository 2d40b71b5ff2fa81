"""Writing one unit: data objects first, each created once, the commit record last.

A name that is taken although no record vouches for it was left by a writer that died, or is being written by one that
works on the same unit. What stands there is adopted when it decodes to our rows (cosine above 0.999), and the record
then holds *its* checksums; otherwise it is replaced. So any number of writers end with one good copy.
"""

from collections.abc import Mapping

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
    ArraySpec,
    check_metadata,
    create_zarr,
    memory_objects,
    metadata_objects,
    view_folder,
)
from unic_cache.store.member import Member

Rows = npt.NDArray[np.generic]
ADOPT_COSINE = 0.999


class UnitWriter:
    """Writes units of one member. `write` may be called from a background thread; one call at a time."""

    def __init__(self, member: Member, calibration_crc: int | None) -> None:
        self.member = member
        self.calibration_crc = calibration_crc
        self._prepared: set[tuple[int, str]] = set()

    def write(self, unit: Unit, parts: Mapping[str, Rows], pixels: Crcs, bad: Mapping[int, str]) -> CommitRecord:
        """Keep and commit the arrays of `unit.rows` rows; the record that stands in the cache afterwards.

        `parts`: array name -> (rows, ...) in the dtype of the member's arrays, zeros in bad rows. `pixels`: crc32c of
        each row's view. `bad`: row -> reason. OSError when the store cannot be written.
        """
        self._prepare(unit)
        encoded = {array.name: self._encode(unit, array, parts[array.name]) for array in self.member.arrays}
        foreign = [
            name for objects in encoded.values() for name, data in objects.items() if not self._create(name, data)
        ]
        kept = self._adopt(unit, encoded, parts) if foreign else dict(parts)
        sizes = {name: len(data) for objects in encoded.values() for name, data in objects.items()}
        record = CommitRecord(
            self.member.folder,
            unit,
            dict(bad),
            sizes,
            {array.name: row_crcs(kept[array.name]) for array in self.member.arrays},
            pixels,
            self.calibration_crc,
        )
        if self.member.location.create(record.name, record.to_bytes()):
            return record
        standing = self.member.record(unit)
        if standing is None:
            raise CacheError(f"{record.name} vanished while it was read; start again")
        return standing

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

    def _encode(self, unit: Unit, array: ArraySpec, rows: Rows) -> dict[str, bytes]:
        """The unit's objects of one array as zarr writes them."""
        store = MemoryStore()
        path = view_folder(self.member.folder, unit.segment, unit.view) + f"/{array.name}"
        target = create_zarr(store, path, array, unit.extent)
        step = unit.extent.object_rows
        for start in range(0, unit.rows, step):
            target[unit.shard, start : min(start + step, unit.rows)] = rows[start : start + step]
        return {name: data for name, data in memory_objects(store).items() if not name.endswith("zarr.json")}

    def _create(self, name: str, data: bytes) -> bool:
        """Whether our bytes stand at `name` now."""
        return self.member.location.create(name, data) or self.member.location.read(name) == data

    def _adopt(self, unit: Unit, encoded: dict[str, dict[str, bytes]], parts: Mapping[str, Rows]) -> dict[str, Rows]:
        """Settle names that others took: keep what decodes to our rows, replace the rest. The rows that then stand."""
        standing = {
            array: {name: self.member.location.read(name) or b"" for name in objects}
            for array, objects in encoded.items()
        }
        rows = {
            array.name: decode_objects(self.member, unit, array, standing[array.name]) for array in self.member.arrays
        }
        found = {name: value for name, value in rows.items() if value is not None}
        if len(found) == len(rows) and self._agree(found, parts):
            encoded.update(standing)
            return found
        for objects in encoded.values():
            for name, data in objects.items():
                self.member.location.replace(name, data)
        return dict(parts)

    def _agree(self, found: Mapping[str, Rows], ours: Mapping[str, Rows]) -> bool:
        if self.member.codec is None:
            return all(np.array_equal(found[name], ours[name]) for name in ours)
        theirs, mine = (self.member.codec.decode(_tensors(parts)) for parts in (found, ours))
        return all(_cosine(theirs[kind], mine[kind]) > ADOPT_COSINE for kind in mine)


def row_crcs(rows: Rows) -> Crcs:
    """crc32c of the bytes of each row of an array."""
    contiguous = np.ascontiguousarray(rows)
    return np.fromiter((crc32c(row.data) for row in contiguous), np.uint32, len(contiguous))


def decode_objects(member: Member, unit: Unit, array: ArraySpec, objects: Mapping[str, bytes]) -> Rows | None:
    """A unit's rows of one array as stock zarr reads them from the objects' bytes; None where it cannot."""
    store = MemoryStore()
    path = view_folder(member.folder, unit.segment, unit.view) + f"/{array.name}"
    target = create_zarr(store, path, array, unit.extent)
    for name, data in objects.items():
        sync(store.set(name, default_buffer_prototype().buffer.from_bytes(data)))
    try:
        return np.asarray(target[unit.shard, : unit.rows])
    except (ValueError, RuntimeError, OSError, zarr.errors.BaseZarrError):
        return None


def _tensors(parts: Mapping[str, Rows]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.ascontiguousarray(rows)) for name, rows in parts.items()}


def _cosine(left: Tensor, right: Tensor) -> float:
    both_zero = (left == 0).all(dim=-1) & (right == 0).all(dim=-1)
    cosine = torch.cosine_similarity(left, right, dim=-1)
    return float(torch.where(both_zero, torch.ones_like(cosine), cosine).min())
