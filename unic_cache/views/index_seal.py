"""A segment's seal: where each tar stands in the segment's file, so that a huge index is not read as a whole.

    index/seals/000000.json      each tar's name, rows, held out or not, and the place and crc32c of its JSON

It is a function of the segment's file, made beside it for segments of 1,000 tars and more, and never needed: without
it, or if it is damaged, the segment is read whole. Earlier releases leave the folder alone.

Letters: S tars of the segment.
"""

import json
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any, Self, overload

import numpy as np
import numpy.typing as npt
from crc32c import crc32c

from unic_cache.errors import CacheError
from unic_cache.files.location import Location
from unic_cache.views.index import SHARD_NAME, Segment, ShardEntry, segment_file

KIND = "unic-cache index seal"
FORMAT = 1
SEALED_TARS = 1000  # a smaller segment has no seal
ENTRIES_KEPT = 256  # in memory; 28 bytes a sample
LIMIT_BYTES = 2**28
COLUMNS = ("rows", "offsets", "lengths", "crcs", "keys")  # of whole numbers

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class IndexSeal:
    """What opening a cache needs of a segment's tars, in columns (S,)."""

    number: int
    size: int  # bytes of the segment's file
    names: tuple[str, ...]
    rows: Ints
    offsets: Ints  # bytes, of each tar's JSON in the file
    lengths: Ints  # bytes
    crcs: Ints  # crc32c of each tar's JSON
    keys: Ints  # crc32c of each tar's keys, as little-endian uint32
    held_out: tuple[int, ...]  # tars that `shard --val-fraction` held out

    @classmethod
    def of(cls, segment: Segment) -> Self:
        """The seal of a segment as `Segment.to_bytes` writes it."""
        head, pieces, tail = segment.in_pieces()
        lengths = [len(piece) for piece in pieces]
        offsets = list(accumulate((length + 1 for length in lengths[:-1]), initial=len(head)))
        held_out = tuple(at for at, shard in enumerate(segment.shards) if shard.held_out)
        return cls(
            segment.number,
            offsets[-1] + lengths[-1] + len(tail),
            segment.names,
            segment.counts,
            np.array(offsets, np.int64),
            np.array(lengths, np.int64),
            np.array([crc32c(piece) for piece in pieces], np.int64),
            np.array([keys_crc(shard.keys) for shard in segment.shards], np.int64),
            held_out,
        )

    @property
    def name(self) -> str:
        """The seal's file in the cache."""
        return seal_file(self.number)

    def to_bytes(self) -> bytes:
        """The content of the file; `self` is the crc32c of the rest."""
        body = self._body()
        return _json({**body, "self": crc32c(_json(body))})

    def _body(self) -> dict[str, Any]:
        columns = {name: getattr(self, name).tolist() for name in COLUMNS}
        lists = {"names": list(self.names), "held_out": list(self.held_out), **columns}
        return {"kind": KIND, "format": FORMAT, "number": self.number, "size": self.size, **lists}


class Entries(Sequence[ShardEntry]):
    """The tars of a sealed segment: each is read from the segment's file when asked for, checked, and kept a while."""

    def __init__(self, cache: Location, seal: IndexSeal) -> None:
        self._cache = cache
        self._seal = seal
        self._entry = lru_cache(ENTRIES_KEPT)(self._read)

    def __len__(self) -> int:
        return len(self._seal.names)

    @overload
    def __getitem__(self, at: int) -> ShardEntry: ...

    @overload
    def __getitem__(self, at: slice) -> Sequence[ShardEntry]: ...

    def __getitem__(self, at: int | slice) -> ShardEntry | Sequence[ShardEntry]:
        """One tar's entry, or several. CacheError if it is not as the seal says."""
        return (
            [self[tar] for tar in range(len(self))[at]] if isinstance(at, slice) else self._entry(range(len(self))[at])
        )

    def __iter__(self) -> Iterator[ShardEntry]:
        return map(self._read, range(len(self)))

    def _read(self, at: int) -> ShardEntry:
        seal, name = self._seal, segment_file(self._seal.number)
        data = self._cache.read_range(name, int(seal.offsets[at]), int(seal.lengths[at]))
        where = f"{self._cache.url}/{name}, shard {at}"
        if crc32c(data) != seal.crcs[at]:
            raise CacheError(f"{where}: not as {seal.name} says; `unic-cache verify` shows which of them is damaged")
        entry = ShardEntry.from_json(json.loads(data), where)
        if (entry.name, entry.rows) != (seal.names[at], seal.rows[at]):
            raise CacheError(f"{where}: another tar than {seal.name} says; remove that file")
        return entry


class SealedSegment(Segment):
    """A segment whose tars are read when they are asked for; names, rows and held-out tars are known by its seal."""

    def __init__(self, cache: Location, seal: IndexSeal) -> None:
        super().__init__(seal.number, Entries(cache, seal))
        self.__dict__.update(seal=seal, names=seal.names, counts=seal.rows, held_out=seal.held_out)

    def has(self, at: int, keys: "array[int]") -> bool:
        """Whether shard `at` has these samples, by one checksum of their keys."""
        seal: IndexSeal = self.__dict__["seal"]
        return bool(len(keys) == seal.rows[at] and keys_crc(keys) == seal.keys[at])


def keys_crc(keys: "array[int]") -> int:
    """crc32c of a tar's keys."""
    return int(crc32c(np.asarray(keys, "<u4").tobytes()))


def seal_file(number: int) -> str:
    """The file of a segment's seal in a cache."""
    return f"index/seals/{number:06d}.json"


def read_sealed(cache: Location, number: int) -> SealedSegment | None:
    """A segment by its seal; None without one that is whole and fits the segment's file."""
    data = cache.read(seal_file(number))
    seal = None if data is None or len(data) > LIMIT_BYTES else parse_seal(data)
    fits = seal is not None and seal.number == number and seal.size == cache.size(segment_file(number))
    return SealedSegment(cache, seal) if seal is not None and fits else None


def parse_seal(data: bytes) -> IndexSeal | None:
    """The seal in `data`, or None."""
    try:
        body: dict[str, Any] = json.loads(data)
        own = body.pop("self")
        if own != crc32c(_json(body)) or (body.pop("kind"), body.pop("format")) != (KIND, FORMAT):
            return None
        columns: dict[str, Any] = {name: np.array(body.pop(name), np.int64) for name in COLUMNS}
        names, held_out = (tuple(body.pop(name)) for name in ("names", "held_out"))
        alike = {column.shape for column in columns.values()} == {(len(names),)}
        possible = all(column.min() >= 0 for column in columns.values()) and columns["rows"].min() > 0
        known = all(map(SHARD_NAME.fullmatch, names)) and set(held_out) <= set(range(len(names)))
        seal = IndexSeal(names=names, held_out=held_out, **columns, **body)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return None
    return seal if alike and possible and known else None


def _json(body: dict[str, Any]) -> bytes:
    return json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
