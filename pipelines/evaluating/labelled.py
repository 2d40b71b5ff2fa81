"""The labelled images of an evaluation: which of them count, which are left out, and which are the same picture twice.

An image is identified by its pixels. Those of every center view are compared with the checksums of what the cached
teachers saw, and two views with equal pixels are twins, whatever their keys and tars are called.

Letters: N images, B images of a batch, P pairs.
"""

import zlib
from collections.abc import Collection, Mapping, Sequence
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
from unic_cache.views.dense_places import DENSE_KINDS, DEPTH_KINDS, MASK
from unic_cache.views.index import NO_LABEL, ShardEntry
from unic_cache.views.left_out import UNREAD_LABEL, merged

NAMED = 5  # images in a message

Place = tuple[int, int]
Flags = npt.NDArray[np.bool_]
Rows = npt.NDArray[np.int64]  # positions in `wanted`
Prints = npt.NDArray[np.uint64]  # of an image's view: its crc32c, then its crc32


@dataclass(frozen=True)
class LabelledShards:
    """The tars of one set, the images that have a label of any sort, and these labels."""

    pattern: str
    tars: Mapping[Place, tuple[str, ShardEntry]]
    wanted: Sequence[Address]
    labels_N: Tensor  # NO_LABEL where there is none
    masked_N: Flags
    deep_N: Flags  # has a depth map

    @property
    def classed(self) -> Flags:
        """(N,) which images have a class."""
        return np.asarray(self.labels_N.numpy() != NO_LABEL)


@dataclass
class Usable:
    """The images of one set, sorted while they are seen: those that all encoders are tested on, and those left out."""

    images: LabelledShards
    records: Mapping[Place, Sequence[CommitRecord]]  # of the cached teachers
    source: ShardPixels
    left_out: dict[Address, str] = field(default_factory=dict)
    undecodable: dict[int, str] = field(default_factory=dict)  # place in `wanted` -> why
    prints_N: Prints = field(default_factory=lambda: np.zeros(0, np.uint64))
    good_N: Flags = field(default_factory=lambda: np.zeros(0, np.bool_))

    def __post_init__(self) -> None:
        self.prints_N = np.zeros(len(self.images.wanted), np.uint64)
        self.good_N = np.zeros(len(self.images.wanted), np.bool_)

    def add(self, first: int, prints_B: Prints, bad: Mapping[int, str]) -> None:
        """Sort the images from `wanted[first]` on; `bad` were not decoded. CacheError if the cache saw others."""
        group, others = self.images.wanted[first : first + len(prints_B)], []
        good_B = np.ones(len(group), np.bool_)
        for place, item in enumerate(group):
            records = self.records.get((item.segment, item.shard), ())
            why = next((record.bad[item.row] for record in records if item.row in record.bad), bad.get(place))
            if why is not None:
                self.left_out[item], good_B[place] = why, False
            elif any(record.pixels[item.row] != int(prints_B[place]) >> 32 for record in records):
                others.append(item)
        if others:
            raise CacheError(
                f"{self._named(others)}: {len(others)} of {len(group)} pictures are not those whose features the cache "
                "has under these tars' names. Give the tars that it was made with, extract these under other names "
                "(`shard --prefix`) or into another --cache, or leave --cache out"
            )
        here = slice(first, first + len(group))
        self.good_N[here], self.prints_N[here] = good_B, prints_B
        self.undecodable |= {first + place: why for place, why in bad.items()}

    def finish(self) -> None:
        """Say what was left out."""
        if self.left_out:
            reasons = "; ".join(
                f"{self.source.where(item)}: {why}" for item, why in list(self.left_out.items())[:NAMED]
            )
            more = f"; and {len(self.left_out) - NAMED} more" if len(self.left_out) > NAMED else ""
            say(f"left out, being unusable, {len(self.left_out)} of {len(self.images.wanted)} images: {reasons}{more}")

    def _named(self, items: Sequence[Address]) -> str:
        more = [f"and {len(items) - NAMED} more"] if len(items) > NAMED else []
        return ", ".join([*(self.source.where(item) for item in items[:NAMED]), *more])


def prints_of(batch: ViewBatch) -> Prints:
    """(B,) 64 bits of each view's pixels: checksums by two polynomials."""
    found = [int(crc) << 32 | zlib.crc32(view.data) for crc, view in zip(batch.crcs, batch.views_BHWC, strict=True)]
    return np.array(found, np.uint64)


def labelled(pattern: str, cache: Cache | None, flag: str = "") -> LabelledShards:
    """The labelled images of the tars, numbered as in the cache if there is one.

    ShardError, beginning with `flag`, if there are none.
    """
    paths, entries = given_shards(pattern, False, flag=flag)
    tell_unlabelled(pattern, entries)
    places = [(0, n) if cache is None else cache.place(entry.name, entry.keys) for n, entry in enumerate(entries)]
    rows = [
        (Address(*place, row, 0), entry.labels[row], has(entry, (MASK,), row), has(entry, DEPTH_KINDS, row))
        for place, entry in zip(places, entries, strict=True)
        for row in range(entry.rows)
    ]
    rows = [row for row in rows if row[1] != NO_LABEL or row[2] or row[3]]
    tars = {place: (path, entry) for place, path, entry in zip(places, paths, entries, strict=True)}
    own = [Path(path).resolve() for path in paths if Path(path).exists()]
    if len(set(own)) < len(own) or len(set(paths)) < len(paths):
        raise ShardError(f"{pattern}: a tar is named twice, so its images would count twice; name each once")
    if len(tars) < len(paths):
        raise ShardError(f"{pattern}: two tars have the same name, by which the cache knows them; rename one")
    if not rows:
        check_labels(pattern, [])
    wanted, labels, masked, deep = zip(*rows, strict=True)
    return LabelledShards(pattern, tars, wanted, torch.tensor(labels), np.array(masked), np.array(deep))


def has(entry: ShardEntry, kinds: Sequence[str], row: int) -> bool:
    """Whether a sample has a dense label of one of the kinds."""
    return any(kind in entry.dense and entry.dense[kind].has(row) for kind in kinds)


def tell_unlabelled(pattern: str, entries: Sequence[ShardEntry]) -> None:
    """Say how many images have no label, or an unreadable one."""
    none = sum(
        entry.labels[row] == NO_LABEL and not has(entry, DENSE_KINDS, row)
        for entry in entries
        for row in range(entry.rows)
    )
    unread = merged(one for entry in entries for one in entry.left_out if one.reason == UNREAD_LABEL)
    broken = sum(one.count for one in unread)
    parts = [f"{none - broken:,} have no label"] if none > broken else []
    parts += [f"{one.count:,} have a label that cannot be read ({one.example})" for one in unread]
    if parts:
        images = sum(entry.rows for entry in entries)
        say(f"not evaluated of the {images:,} images of {pattern}: {', and '.join(parts)}")


def check_labels(pattern: str, labels: Collection[int]) -> None:
    """ShardError unless there are at least two classes."""
    if len(set(labels)) < 2:
        raise ShardError(
            f"{pattern}: {len(labels)} images have a label, of {len(set(labels))} classes; k-NN needs `.cls` members "
            "of at least two classes, as linear and retrieval do. Make labelled shards with `unic-cache shard`"
        )


def check_apart(train: LabelledShards, test: LabelledShards) -> None:
    """ShardError if a tar is in both sets. Copies under other names are found later, by their pixels."""
    files = {str(Path(path).resolve()) if Path(path).exists() else path for path, _ in train.tars.values()}
    for path, _ in test.tars.values():
        if path in files or str(Path(path).resolve()) in files:
            raise _find_themselves(path)


def twins(train: Usable, test: Usable) -> Tensor:
    """(P, 2): positions (test image, training image) of good images with equal pixels; in one set, of different images.

    ShardError if all images of a test tar are among the training images of another set.
    """
    tests, trains = (np.flatnonzero(one.good_N) for one in (test, train))
    trains = trains[np.argsort(train.prints_N[trains], kind="stable")]
    first, stop = (np.searchsorted(train.prints_N[trains], test.prints_N[tests], side) for side in ("left", "right"))
    counts = stop - first
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)  # 0, 1, ... for each test image
    pairs_P2 = np.stack([np.repeat(tests, counts), trains[np.repeat(first, counts) + within]], axis=1)
    if train is test:
        pairs_P2 = pairs_P2[pairs_P2[:, 0] != pairs_P2[:, 1]]
    else:
        twice = set(pairs_P2[:, 0].tolist())
        tars = {place: test.images.wanted[place][:2] for place in np.flatnonzero(test.good_N).tolist()}
        own = {tar for place, tar in tars.items() if place not in twice}
        copied = next((tar for tar in tars.values() if tar not in own), None)
        if copied is not None:
            raise _find_themselves(test.images.tars[copied][0])
    return torch.from_numpy(pairs_P2.astype(np.int64))


def among(pairs_P2: Tensor, asked: Rows, own: Rows) -> Tensor:
    """The pairs whose images are among the rows, as positions in them."""
    kept_P2 = pairs_P2.numpy()
    both = np.isin(kept_P2[:, 0], asked) & np.isin(kept_P2[:, 1], own)
    columns = (_positions(column, rows) for column, rows in zip(kept_P2[both].T, (asked, own), strict=True))
    return torch.from_numpy(np.stack(list(columns), axis=1))


def _positions(wanted: Rows, rows: Rows) -> Rows:
    """Where each of the wanted numbers stands in `rows`, which has it once."""
    order = np.argsort(rows, kind="stable")
    return order[np.searchsorted(rows[order], wanted)]


def tell_twins(train: Usable, test: Usable, twins_P2: Tensor, rows: Rows) -> str:
    """How many of the test images `rows` have a twin, with the first; "" if none has. Pairs are positions in `rows`."""
    asked = sorted(set(twins_P2[:, 0].tolist()))
    if not asked:
        return ""
    where = "there more than once" if train is test else "in --train too"
    first = test.source.where(test.images.wanted[int(rows[asked[0]])])
    return f"{len(asked)} of {len(rows)} test images are {where}, pixel for pixel, the first of them {first}"


def _find_themselves(path: str) -> ShardError:
    return ShardError(f"{path}: its images are in --train too and would find themselves; use --shards, leave-one-out")
