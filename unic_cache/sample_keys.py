"""Where samples lie, by key: random access to a cache.

The index stores a key as its crc32, so a key that the cache lacks passes for another with a probability of N / 2**32,
0.03 % for the N images of ImageNet. Two keys with one crc32 are told as ambiguous, as is one key in two tars.
"""

import zlib
from collections.abc import Sequence
from typing import Literal

import numpy as np

from unic_cache.errors import CacheError
from unic_cache.views.index import Segment

SIDES: tuple[Literal["left"], Literal["right"]] = ("left", "right")

Place = tuple[int, int, int]  # segment, tar and row


def key_number(key: str | int) -> int:
    """The crc32 of a sample key, as the index and batches have it; a number stands for itself."""
    return zlib.crc32(key.encode("utf-8", "surrogateescape")) if isinstance(key, str) else int(key)


class SampleKeys:
    """The rows of all samples, sorted by key."""

    def __init__(self, segments: Sequence[Segment], where: str) -> None:
        self._where = where
        self._tars = [(segment.number, tar, entry) for segment in segments for tar, entry in enumerate(segment.shards)]
        self._starts = np.cumsum([0, *(entry.rows for *_, entry in self._tars)])
        keys = np.concatenate([np.asarray(entry.keys, np.uint32) for *_, entry in self._tars])
        self._order = np.argsort(keys, kind="stable")
        self._keys = keys[self._order]

    def place(self, key: str | int, shard: str | None = None) -> Place:
        """The sample's place, in tar `shard` if that is given. CacheError if there is none, or more than one."""
        number = key_number(key)
        known = 0 <= number < 2**32
        first, stop = (np.searchsorted(self._keys, np.uint32(number), side) if known else 0 for side in SIDES)
        found: dict[str, Place] = {}
        for at in sorted(self._order[first:stop].tolist()):
            tar = int(np.searchsorted(self._starts, at, "right")) - 1
            segment, shard_number, entry = self._tars[tar]
            if entry.name == shard or shard is None:
                name = f"{entry.name}, row {at - self._starts[tar]}"
                found[name] = segment, shard_number, int(at - self._starts[tar])
        if not found:
            inside = "" if shard is None else f" in tar {shard!r}"
            raise CacheError(
                f"{self._where} has no sample {key!r}{inside}; a key is an image's path in its tar, up to the first "
                "dot of the file's name"
            )
        if len(found) > 1:
            raise CacheError(
                f"{self._where} has {len(found)} samples with the key {key!r}, or with its crc32: {'; '.join(found)}; "
                "name the tar with shard"
            )
        return next(iter(found.values()))
