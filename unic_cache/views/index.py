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
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from crc32c import crc32c

from unic_cache.errors import CacheError, ShardError
from unic_cache.views.dense_places import Places, dense_from_json, dense_json
from unic_cache.views.index_fields import checked, fields_of, is_natural
from unic_cache.views.left_out import LeftOut

FORMAT = 1
NO_LABEL = -1
TAIL = b"]}"
KIND = "unic-cache index"
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
    shards: Sequence[ShardEntry]

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The shards' names."""
        return tuple(shard.name for shard in self.shards)

    @cached_property
    def counts(self) -> npt.NDArray[np.int64]:
        """(shards,) samples in each."""
        return np.array([shard.rows for shard in self.shards], np.int64)

    @cached_property
    def held_out(self) -> tuple[int, ...]:
        """The shards that `shard --val-fraction` held out, by number."""
        return tuple(at for at, shard in enumerate(self.shards) if shard.held_out)

    @cached_property
    def rows(self) -> int:
        """Samples in the largest shard."""
        return int(self.counts.max())

    def has(self, at: int, keys: "array[int]") -> bool:
        """Whether shard `at` has these samples, in this order."""
        return self.shards[at].keys == keys

    def to_json(self) -> bytes:
        """Compact JSON of the table above: sorted keys, no time, no host."""
        return _joined(self._head(None), self._each(), TAIL)

    def to_bytes(self) -> bytes:
        """The file in a cache: `to_json` plus `self`, which detects changed bytes."""
        return _joined(*self.in_pieces())

    def in_pieces(self) -> tuple[bytes, list[bytes], bytes]:
        """`to_bytes` as its head, each shard's JSON, and its tail; a comma goes between shards."""
        pieces = self._each()
        own = int(crc32c(_joined(self._head(None), pieces, TAIL)))
        return self._head(own), pieces, TAIL

    def _each(self) -> list[bytes]:
        return [_json(shard.to_json()) for shard in self.shards]

    def _head(self, own: int | None) -> bytes:
        fields = {"format": FORMAT, "kind": KIND, "number": self.number, **({} if own is None else {"self": own})}
        return _json(fields)[:-1] + b',"shards":['

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
        segment = cls(fields["number"], shards)
        repeated = twice(segment.names)
        if repeated:
            raise CacheError(f"{where} lists the shard {repeated[0]!r} twice")
        if parsed.get("self", own := crc32c(segment.to_json())) != own:
            raise CacheError(f"{where}: its checksum does not match its content; restore it from a copy")
        return segment


def segment_file(number: int) -> str:
    """A segment's file in a cache."""
    return f"index/{number:06d}.json"


def refuse_twice(names: Iterable[str]) -> None:
    """ShardError if a tar's name occurs twice: its images would count twice, or take another's place."""
    if repeated := twice(names):
        raise ShardError(
            f"two shards are called {repeated[0]!r}; a cache knows shards by file name only: rename one, or give one "
            "that is named twice only once"
        )


def twice(names: Iterable[str]) -> list[str]:
    """The names that occur more than once."""
    return [name for name, count in Counter(names).items() if count > 1]


def _joined(head: bytes, pieces: Sequence[bytes], tail: bytes) -> bytes:
    return head + b",".join(pieces) + tail


def _json(data: dict[str, Any]) -> bytes:
    return json.dumps(data, sort_keys=True, separators=(",", ":")).encode()
