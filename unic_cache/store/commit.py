"""Commit records: written last, they list a unit's objects and the checksums of every row.

A record covers one tar under one view. It is JSON with sorted keys, without time or host, so equal work gives
equal bytes. Data without a record is never read.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from crc32c import crc32c

from unic_cache.config import Views
from unic_cache.errors import CacheError, ConfigError
from unic_cache.store.layout import FORMAT, ArraySpec, Extent, commit_name, object_bytes, object_name

Crcs = npt.NDArray[np.uint32]
_NO_RECORD = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)


@dataclass(frozen=True)
class Unit:
    """The unit of work: one tar (number `shard` of its segment, called `name`) under view `number` of a kind."""

    segment: int
    extent: Extent
    shard: int
    name: str
    rows: int
    views: Views
    number: int

    @property
    def view(self) -> str:
        """The view's name, such as 'unic-224-0-003'."""
        return self.views.name(self.number)

    def __str__(self) -> str:
        return f"view {self.view} of shard {self.name}"


def view_called(folder: str) -> tuple[Views, int] | None:
    """The kind and number of the view that a folder is named after; None if it is no view's."""
    try:
        views, number = Views.parse(folder)
    except ConfigError:
        return None
    return (views, number) if views.name(number) == folder else None


@dataclass(frozen=True)
class CommitRecord:
    """One member's stored data of one unit."""

    member: str
    unit: Unit
    bad: Mapping[int, str]  # row -> why its image is unusable; the row is zeros and never trained on
    sizes: Mapping[str, int]  # object name -> bytes
    crcs: Mapping[str, Crcs]  # array name -> crc32c of each stored row, or of each stored chunk of a tiled array
    pixels: Crcs  # (rows,) crc32c of each row's view, 0 where bad
    calibration: int | None  # crc32c of the calibration used; None for kept pixels
    clipped: int = 0  # values that the codec changed by more than a step, over all rows

    @property
    def name(self) -> str:
        """The record's file in the cache."""
        return commit_name(self.member, self.unit.segment, self.unit.view, self.unit.shard)

    @property
    def bytes_kept(self) -> int:
        """Total size of the objects, bytes."""
        return sum(self.sizes.values())

    def good_rows(self) -> npt.NDArray[np.int64]:
        """The rows that are not bad, ascending."""
        return np.setdiff1d(np.arange(self.unit.rows), np.fromiter(self.bad, np.int64, len(self.bad)))

    @property
    def checksum(self) -> int:
        """crc32c of the record's content."""
        return int(crc32c(_json(self._body())))

    def to_bytes(self) -> bytes:
        """The content of the record's file; `self` is the crc32c of the rest."""
        return _json({**self._body(), "self": self.checksum})

    def _body(self) -> dict[str, Any]:
        return {
            **_identity(self.member, self.unit),
            "bad": {str(row): reason for row, reason in self.bad.items()},
            "objects": dict(self.sizes),
            "crc32c": {array: crcs.tolist() for array, crcs in self.crcs.items()},
            "pixels": self.pixels.tolist(),
            "calibration": self.calibration,
            "clipped": self.clipped,
        }


def parse_record(data: bytes, member: str, unit: Unit, arrays: tuple[ArraySpec, ...]) -> CommitRecord:
    """Parse and check the record of `unit`. CacheError if it is damaged or does not fit the unit or the arrays."""
    where = commit_name(member, unit.segment, unit.view, unit.shard)
    with _no_record(where):
        body = _body_of(data, where, member, unit)
        checksums = {array.name: array.checksums(unit.rows) for array in arrays} | dict.fromkeys(
            set(body["crc32c"]) - {array.name for array in arrays}, unit.rows
        )
        record = CommitRecord(
            member,
            unit,
            {int(row): _text(reason) for row, reason in body["bad"].items()},
            {str(name): int(size) for name, size in body["objects"].items()},
            {str(name): _crcs(where, values, checksums[name]) for name, values in body["crc32c"].items()},
            _crcs(where, body["pixels"], unit.rows),
            None if body["calibration"] is None else int(body["calibration"]),
            int(body["clipped"]),
        )
    expected = {
        object_name(member, unit.segment, unit.view, array, unit.shard, part): object_bytes(
            array, unit.extent, unit.rows, part
        )
        for array in arrays
        for part in range(unit.extent.objects(unit.rows))
    }
    if set(record.sizes) != set(expected) or set(record.crcs) != {array.name for array in arrays}:
        raise CacheError(
            f"{where}: lists {sorted(record.crcs)} in {len(record.sizes)} objects, but the spec asks for "
            f"{sorted(array.name for array in arrays)} in {len(expected)}; run `unic-cache repair`"
        )
    if any(size not in expected[name] for name, size in record.sizes.items()):
        raise CacheError(f"{where}: the sizes of its objects do not fit {unit.rows} rows; run `unic-cache repair`")
    if any(not 0 <= row < unit.rows for row in record.bad):
        raise CacheError(f"{where}: names bad rows outside of 0 to {unit.rows - 1}; run `unic-cache repair`")
    return record


def calibration_of(data: bytes, member: str, unit: Unit) -> int | None:
    """The checksum of the calibration that `unit` was made with; without the calibration, no more can be checked."""
    where = commit_name(member, unit.segment, unit.view, unit.shard)
    with _no_record(where):
        found = _body_of(data, where, member, unit)["calibration"]
        return None if found is None else int(found)


def is_whole(data: bytes, member: str, unit: Unit) -> bool:
    """Whether a record is intact and in its place: if it still does not parse, it belongs to another index."""
    try:
        body: dict[str, Any] = json.loads(data)
        own = body.pop("self")
        place = [body[key] for key in ("member", "segment", "view", "shard")]
    except _NO_RECORD:
        return False
    return bool(own == crc32c(_json(body)) and place == [member, unit.segment, unit.view, unit.shard])


@contextmanager
def _no_record(where: str) -> Iterator[None]:
    """Turn whatever parsing damaged JSON raises into a CacheError."""
    try:
        yield
    except CacheError:
        raise
    except _NO_RECORD as error:
        raise CacheError(f"{where}: not a commit record ({error!r:.200}); run `unic-cache repair`") from error


def _body_of(data: bytes, where: str, member: str, unit: Unit) -> dict[str, Any]:
    """A record's JSON, checked against its own checksum and its place in the cache."""
    body: dict[str, Any] = json.loads(data)
    own = body.pop("self")
    if own != crc32c(_json(body)):
        raise CacheError(f"{where}: its checksum does not fit its content; run `unic-cache repair`")
    for key, value in _identity(member, unit).items():
        if body[key] != value:
            raise CacheError(f"{where}: says {key} {body[key]!r:.80}, but stands where {key} is {value!r}")
    return body


def _identity(member: str, unit: Unit) -> dict[str, Any]:
    """What a record says of its place."""
    return {
        "format": FORMAT,
        "member": member,
        "segment": unit.segment,
        "view": unit.view,
        "shard": unit.shard,
        "name": unit.name,
        "rows": unit.rows,
    }


def _crcs(where: str, values: Any, rows: int) -> Crcs:
    crcs = np.asarray(values, dtype=np.int64)
    if crcs.shape != (rows,) or (crcs < 0).any() or (crcs >= 2**32).any():
        raise CacheError(
            f"{where}: a list of checksums does not hold one 32-bit number for each of {rows} rows or chunks"
        )
    return crcs.astype(np.uint32)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.40} is not a text")
    return value


def _json(body: dict[str, Any]) -> bytes:
    return json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
