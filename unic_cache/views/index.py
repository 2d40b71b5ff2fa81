"""The index of samples: shards in order, and each one's keys, image places and labels.

A *segment* is the shards that were indexed together. It fixes the shape of a cache's arrays, so it never changes; tars
appended later form the next segment. `unic-cache shard` writes the same JSON (as segment 0) beside its tars.

| field | meaning |
|---|---|
| `kind`, `format` | "unic-cache index", 1; other numbers are refused |
| `number` | the segment's position, and its file name: index/000000.json |
| `shards[].name` | the tar's name without folder and ".tar" |
| `shards[].size` | bytes of the tar |
| `shards[].keys` | crc32 of each sample's key, in the tar's order; a row is a position in this list |
| `shards[].offsets`, `sizes` | byte offset and size of each sample's image in the tar |
| `shards[].labels` | each sample's class number, or null |
| `shards[].held_out` | true for tars held out of training, else absent |
| `shards[].dense` | `offsets` and `sizes` of masks and depth maps by kind, null where there is none; never in a cache |
| `self` | crc32c of the rest; only in a cache, so that the file beside the tars can be edited |
"""

import json
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from crc32c import crc32c

from unic_cache.errors import CacheError, ShardError
from unic_cache.files.location import Location
from unic_cache.views.dense_places import Places, dense_from_json, dense_json
from unic_cache.views.index_fields import checked, fields_of, is_natural
from unic_cache.views.left_out import LeftOut

FORMAT = 1
NO_LABEL = -1
KIND = "unic-cache index"
LIMIT_BYTES = 2**30  # of a segment's file: about twenty million samples
SHARD_NAME = re.compile(r"[A-Za-z0-9_@+-][A-Za-z0-9._@+-]*")


@dataclass(frozen=True)
class ShardEntry:
    """One tar: each sample's key (crc32), the place of its image in the tar (bytes), and its label.

    The columns take 28 bytes per sample, since an index of millions stays in memory throughout a run.
    """

    name: str
    size: int  # bytes of the tar
    keys: "array[int]"
    offsets: "array[int]"
    sizes: "array[int]"
    labels: "array[int]"  # NO_LABEL if there is none
    held_out: bool = False  # by `shard --val-fraction`
    dense: Mapping[str, Places] = field(default_factory=dict)  # masks and depth maps by kind; those kinds that occur
    # Known after a scan only: crc32c of the header before each image, and the files left out.
    headers: "array[int] | None" = field(default=None, compare=False, repr=False)
    left_out: tuple[LeftOut, ...] = field(default=(), compare=False)

    @property
    def rows(self) -> int:
        """Samples in the tar."""
        return len(self.keys)

    @classmethod
    def of(
        cls,
        name: str,
        size: int,
        keys: Iterable[int],
        offsets: Iterable[int],
        sizes: Iterable[int],
        labels: Iterable[int | None],
        headers: Iterable[int] | None = None,
        left_out: tuple[LeftOut, ...] = (),
        held_out: bool = False,
        dense: Mapping[str, Places] | None = None,
    ) -> Self:
        """An entry from plain numbers."""
        given = array("q", [NO_LABEL if label is None else label for label in labels])
        columns = array("I", keys), array("q", offsets), array("q", sizes), given
        crcs = None if headers is None else array("I", headers)
        return cls(name, size, *columns, held_out, dense or {}, crcs, left_out)

    def to_json(self) -> dict[str, Any]:
        """A shard of the table above."""
        labels = [None if label == NO_LABEL else label for label in self.labels]
        columns = {"keys": list(self.keys), "offsets": list(self.offsets), "sizes": list(self.sizes), "labels": labels}
        optional = {**({"held_out": True} if self.held_out else {}), **dense_json(self.dense)}
        return {"name": self.name, "size": self.size, **columns, **optional}

    @classmethod
    def from_json(cls, data: Any, where: str) -> Self:
        """The inverse of `to_json`. CacheError, naming `where`, for an impossible entry."""
        fields = fields_of(data, ("name", "size", "keys", "offsets", "sizes", "labels"), where)
        name, size = fields["name"], fields["size"]
        if not isinstance(name, str) or not SHARD_NAME.fullmatch(name):
            raise CacheError(f"{where}: name {str(name)[:80]!r} is not a shard's name")
        if not is_natural(size):
            raise CacheError(f"{where}: size {str(size)[:80]} is not a number of bytes")
        columns = {
            "keys": checked(fields["keys"], "keys", 2**32, where),
            "offsets": checked(fields["offsets"], "offsets", 2**63, where),
            "sizes": checked(fields["sizes"], "sizes", 2**63, where),
            "labels": checked(fields["labels"], "labels", 2**63, where, may_lack=True),
        }
        lengths = {column: len(values) for column, values in columns.items()}
        if len(set(lengths.values())) != 1 or not lengths["keys"]:
            raise CacheError(f"{where}: the lists must have one length above zero, but have {lengths}")
        for row, (offset, length) in enumerate(zip(columns["offsets"], columns["sizes"], strict=True)):
            if offset + length > size:
                raise CacheError(f"{where}: row {row} ends at byte {offset + length} of a tar of {size} bytes")
        held_out = data.get("held_out", False)
        if not isinstance(held_out, bool):
            raise CacheError(f"{where}: held_out is {str(held_out)[:80]!r}, not true or false")
        dense = dense_from_json(data["dense"], lengths["keys"], size, where) if "dense" in data else {}
        return cls.of(name, size, **columns, held_out=held_out, dense=dense)


@dataclass(frozen=True)
class Segment:
    """Shards indexed together, in order. Arrays hold (len(shards), rows) samples."""

    number: int
    shards: tuple[ShardEntry, ...]

    @property
    def rows(self) -> int:
        """Samples in the largest shard."""
        return max(shard.rows for shard in self.shards)

    def to_json(self) -> bytes:
        """Compact JSON of the table above: sorted keys, no time, no host."""
        return _json(self._body())

    def to_bytes(self) -> bytes:
        """The file in a cache: `to_json` plus `self`, which detects changed bytes."""
        return _json({**self._body(), "self": crc32c(self.to_json())})

    def _body(self) -> dict[str, Any]:
        shards = [one.to_json() for one in self.shards]
        return {"kind": KIND, "format": FORMAT, "number": self.number, "shards": shards}

    @classmethod
    def from_json(cls, data: bytes, where: str) -> Self:
        """The inverse of `to_json`. CacheError, naming the file `where`, for anything else."""
        try:
            parsed = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise CacheError(f"{where} is not JSON: {error}") from error
        if not isinstance(parsed, dict) or parsed.get("kind") != KIND:
            raise CacheError(f"{where} is not a {KIND}")
        if parsed.get("format") != FORMAT:
            raise CacheError(
                f"{where} has format {parsed.get('format')!r}, this release reads {FORMAT}; upgrade unic-cache"
            )
        fields = fields_of(parsed, ("number", "shards"), where)
        if not is_natural(fields["number"]) or not isinstance(fields["shards"], list) or not fields["shards"]:
            raise CacheError(f"{where}: a segment needs a number and a list of shards")
        shards = tuple(ShardEntry.from_json(one, f"{where}, shard {at}") for at, one in enumerate(fields["shards"]))
        repeated = _repeated(shards)
        if repeated:
            raise CacheError(f"{where} lists the shard {repeated[0]!r} twice")
        segment = cls(fields["number"], shards)
        if parsed.get("self", own := crc32c(segment.to_json())) != own:
            raise CacheError(f"{where}: its checksum does not match its content; restore it from a copy")
        return segment


def segment_file(number: int) -> str:
    """A segment's file in a cache."""
    return f"index/{number:06d}.json"


def no_cache(path: str | Path) -> CacheError:
    """The error for a folder without an index."""
    return CacheError(f"{path}: no cache is here (index/000000.json is missing); make one with `unic-cache extract`")


def no_teacher(path: str, name: str, others: Iterable[str]) -> CacheError:
    """The error for a cache without the teacher `name`."""
    return CacheError(
        f"{path} has no teacher {name!r}; it has {', '.join(others) or 'no teacher at all'}. "
        f"Make it with `unic-cache extract --teacher {name} --cache {path}`"
    )


def segment_names(cache: Location) -> list[str]:
    """The segments' files in a cache, in order."""
    return [name for name in cache.names("index") if re.fullmatch(r"index/\d{6}\.json", name)]


def read_segments(cache: Location) -> tuple[Segment, ...]:
    """All segments of a cache, in order; empty for a cache that has not begun.

    CacheError for a gap in the numbers, a file with another segment's number, and a shard listed twice.
    """
    segments: list[Segment] = []
    for number, name in enumerate(segment_names(cache)):
        if (cache.size(name) or 0) > LIMIT_BYTES:
            raise CacheError(f"{cache.url}/{name}: over {LIMIT_BYTES} bytes; refused")
        data = cache.read(segment_file(number))
        if data is None:
            raise CacheError(f"{cache.url} has {name} but no {segment_file(number)}; copy the cache's whole index/")
        segment = Segment.from_json(data, f"{cache.url}/{name}")
        if segment.number != number:
            raise CacheError(
                f"{cache.url}/{name} says that it is segment {segment.number}; copy the cache's index/ again"
            )
        segments.append(segment)
    repeated = _repeated([shard for segment in segments for shard in segment.shards])
    if repeated:
        raise CacheError(f"{cache.url}/index lists the shard {repeated[0]!r} in two segments")
    return tuple(segments)


def extend_index(cache: Location, entries: Sequence[ShardEntry]) -> tuple[Segment, ...]:
    """Make sure that the cache lists all `entries`; returns all its segments.

    New shards become one segment, created once: a slower writer finds the file taken, reads it and retries with the
    rest. A known shard must hold the same keys in the same order; its size and offsets may differ (a repacked tar), so
    read tars by the entries of `describe`, not the cache's, which have no dense labels either.

    ShardError if two entries share a name, CacheError if the cache was made with other shards.
    """
    repeated = _repeated(entries)
    if repeated:
        raise ShardError(f"two shards are called {repeated[0]!r}; a cache knows shards by file name only: rename one")
    while True:
        segments = read_segments(cache)
        known = {shard.name: shard for segment in segments for shard in segment.shards}
        for entry in entries:
            if entry.name in known:
                _check_same(cache, known[entry.name], entry)
        unknown = tuple(replace(entry, dense={}) for entry in entries if entry.name not in known)
        if not unknown:
            return segments
        segment = Segment(len(segments), unknown)
        if cache.create(segment_file(segment.number), segment.to_bytes()):
            return (*segments, segment)


def _check_same(cache: Location, cached: ShardEntry, given: ShardEntry) -> None:
    if cached.keys == given.keys:
        return
    pairs = enumerate(zip(cached.keys, given.keys, strict=False))
    row = next((row for row, (one, other) in pairs if one != other), min(cached.rows, given.rows))
    first = [f"{entry.keys[row]:08x}" if row < entry.rows else "none" for entry in (cached, given)]
    raise CacheError(
        f"{cache.url} was made with other shards: its {cached.name!r} has {cached.rows} samples, this one "
        f"{given.rows}; at row {row} the key's crc32 is {first[0]} there but {first[1]} here; "
        f"give the shards that the cache was made with, rename these, or choose another cache{_more(cached, given)}"
    )


def _more(cached: ShardEntry, given: ShardEntry) -> str:
    """A hint for a tar that holds more samples than the cache has seen of it."""
    if given.rows <= cached.rows or not set(cached.keys) < set(given.keys):
        return ""
    return (
        ". The additional samples were added since, or left out by an older release: links, joined archives, names "
        "without extension"
    )


def _json(data: dict[str, Any]) -> bytes:
    return json.dumps(data, sort_keys=True, separators=(",", ":")).encode()


def _repeated(shards: Sequence[ShardEntry]) -> list[str]:
    return [name for name, count in Counter(shard.name for shard in shards).items() if count > 1]
