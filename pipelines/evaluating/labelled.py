"""The labelled images of an evaluation: which of them count, which are left out, and which are the same picture twice.

An image is identified by its pixels. Those of every center view are compared with the checksums of what the cached
teachers saw, and two views with equal pixels are twins, whatever their keys and tars are called.

Letters: N images, P pairs.
"""

import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipelines.command.progress import say
from pipelines.command.tars import given_shards
from unic_cache.cache import Cache
from unic_cache.errors import CacheError, ShardError
from unic_cache.store.commit import CommitRecord
from unic_cache.stream.address import Address
from unic_cache.stream.pixels import ShardPixels, ViewBatch
from unic_cache.views.index import NO_LABEL, ShardEntry
from unic_cache.views.left_out import UNREAD_LABEL, merged

NAMED = 5  # images in a message

Place = tuple[int, int]


@dataclass(frozen=True)
class LabelledShards:
    """The tars of one set, the images that count, and their labels."""

    pattern: str
    tars: Mapping[Place, tuple[str, ShardEntry]]
    wanted: Sequence[Address]
    labels_N: Tensor


@dataclass
class Usable:
    """The images of one set, sorted while they are seen: those that all encoders are tested on, and those left out."""

    images: LabelledShards
    records: Mapping[Place, Sequence[CommitRecord]]  # of the cached teachers
    source: ShardPixels
    good: list[int] = field(default_factory=list)  # places in `wanted`
    prints: list[int] = field(default_factory=list)  # of the good ones: 64 bits of their pixels
    left_out: dict[Address, str] = field(default_factory=dict)

    @property
    def wanted(self) -> list[Address]:
        """The good images."""
        return [self.images.wanted[place] for place in self.good]

    @property
    def labels(self) -> Tensor:
        """(N,) of the good images."""
        return self.images.labels_N[self.good]

    def add(self, first: int, group: Sequence[Address], batch: ViewBatch) -> npt.NDArray[np.int64]:
        """Indices of the good views of a batch that begins at `wanted[first]`. CacheError on other pictures."""
        good, others = [], []
        for place, item in enumerate(group):
            records = self.records.get((item.segment, item.shard), ())
            bad = next((record.bad[item.row] for record in records if item.row in record.bad), batch.bad.get(place))
            if bad is not None:
                self.left_out[item] = bad
            elif any(record.pixels[item.row] != batch.crcs[place] for record in records):
                others.append(item)
            else:
                good.append(place)
                self.prints.append(int(batch.crcs[place]) << 32 ^ zlib.crc32(batch.views_BHWC[place].data))
        if others:
            raise CacheError(
                f"{self._named(others)}: {len(others)} of {len(group)} pictures are not those whose features the cache "
                "has under these tars' names. Give the tars that it was made with, extract these under other names "
                "(`shard --prefix`) or into another --cache, or leave --cache out"
            )
        self.good += [first + place for place in good]
        return np.array(good, np.int64)

    def finish(self) -> None:
        """Say what was left out. ShardError if too little is left."""
        if self.left_out:
            reasons = "; ".join(
                f"{self.source.where(item)}: {why}" for item, why in list(self.left_out.items())[:NAMED]
            )
            more = f"; and {len(self.left_out) - NAMED} more" if len(self.left_out) > NAMED else ""
            say(f"left out, being unusable, {len(self.left_out)} of {len(self.images.wanted)} images: {reasons}{more}")
        check_labels(self.images.pattern, self.labels.tolist())

    def _named(self, items: Sequence[Address]) -> str:
        more = [f"and {len(items) - NAMED} more"] if len(items) > NAMED else []
        return ", ".join([*(self.source.where(item) for item in items[:NAMED]), *more])


def labelled(pattern: str, cache: Cache | None) -> LabelledShards:
    """The labelled images of the tars, numbered as in the cache if there is one. ShardError without two classes."""
    paths, entries = given_shards(pattern, False)
    tell_unlabelled(pattern, entries)
    places = [(0, n) if cache is None else cache.place(entry.name, entry.keys) for n, entry in enumerate(entries)]
    wanted = [
        Address(*place, row, 0)
        for place, entry in zip(places, entries, strict=True)
        for row, label in enumerate(entry.labels)
        if label != NO_LABEL
    ]
    labels = [label for entry in entries for label in entry.labels if label != NO_LABEL]
    check_labels(pattern, labels)
    tars = {place: (path, entry) for place, path, entry in zip(places, paths, entries, strict=True)}
    if len(tars) < len(paths):
        raise ShardError(f"{pattern}: two tars have the same name, by which the cache knows them; rename one")
    return LabelledShards(pattern, tars, wanted, torch.tensor(labels))


def tell_unlabelled(pattern: str, entries: Sequence[ShardEntry]) -> None:
    """Say how many images have no label, or an unreadable one."""
    none = sum(label == NO_LABEL for entry in entries for label in entry.labels)
    unread = merged(one for entry in entries for one in entry.left_out if one.reason == UNREAD_LABEL)
    broken = sum(one.count for one in unread)
    parts = [f"{none - broken:,} have no label"] if none > broken else []
    parts += [f"{one.count:,} have a label that cannot be read ({one.example})" for one in unread]
    if parts:
        images = sum(entry.rows for entry in entries)
        say(f"not evaluated of the {images:,} images of {pattern}: {', and '.join(parts)}")


def check_labels(pattern: str, labels: Sequence[int]) -> None:
    """ShardError unless there are at least two classes."""
    if len(set(labels)) < 2:
        raise ShardError(
            f"{pattern}: {len(labels)} images have a label, of {len(set(labels))} classes; k-NN needs `.cls` members "
            "of at least two classes. Make labelled shards with `unic-cache shard`"
        )


def check_apart(train: LabelledShards, test: LabelledShards) -> None:
    """ShardError if a tar is in both sets. Copies under other names are found later, by their pixels."""
    files = {str(Path(path).resolve()) if Path(path).exists() else path for path, _ in train.tars.values()}
    for path, _ in test.tars.values():
        if path in files or str(Path(path).resolve()) in files:
            raise _find_themselves(path)


def twins(sets: Sequence[Usable]) -> Tensor:
    """(P, 2): pairs (test image, training image) with equal pixels; in a single set, of different images. Says so.

    ShardError if all images of a test tar are in --train.
    """
    train, test = sets[0], sets[-1]
    places = defaultdict(list)
    for place, one in enumerate(train.prints):
        places[one].append(place)
    pairs = [
        (asked, answer)
        for asked, one in enumerate(test.prints)
        for answer in places.get(one, ())
        if len(sets) == 2 or asked != answer
    ]
    asked = {pair[0] for pair in pairs}
    if len(sets) == 2:
        tars = [(item.segment, item.shard) for item in test.wanted]
        own = {tar for place, tar in enumerate(tars) if place not in asked}
        copied = next((tar for tar in tars if tar not in own), None)
        if copied is not None:
            raise _find_themselves(test.images.tars[copied][0])
    if asked:
        where = "in --train too" if len(sets) == 2 else "there more than once"
        first = test.source.where(test.wanted[min(asked)])
        say(
            f"{len(asked)} of {len(test.good)} test images are {where}, pixel for pixel, the first of them {first}; "
            "twins do not vote for each other"
        )
    return torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)


def _find_themselves(path: str) -> ShardError:
    return ShardError(f"{path}: its images are in --train too and would find themselves; use --shards, leave-one-out")
