"""Before stage one: pack images, their classes, masks and depth maps into WebDataset tars with an index.

    list -> find masks and depth maps -> shuffle by seed -> hold out -> decode, and keep the file or its RGB -> tar
    -> index.json

Two runs on the same files write the same bytes.
"""

import os
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

from webdataset import TarWriter

from pipelines.command.progress import Progress, begins, say
from pipelines.sharding.samples import Packed, Pixels, counted, good_samples, pack
from pipelines.sharding.unfinished import HELD, given_classes, packing
from unic_cache.ahead import thread_pool
from unic_cache.config import ShardConfig
from unic_cache.draws import Purpose, permutation, words
from unic_cache.errors import ConfigError, ImageError
from unic_cache.files.schemes import open_location
from unic_cache.views.classes import CLASSES_FILE, classes_json
from unic_cache.views.index import Segment, ShardEntry
from unic_cache.views.label_files import with_dense_labels
from unic_cache.views.left_out import LeftOut, listed, shown
from unic_cache.views.listing import Listing, Sample, list_images
from unic_cache.views.shards import scan
from unic_cache.views.split import held_out
from unic_cache.views.tars import HELD_OUT


@dataclass(frozen=True)
class Sharded:
    """What a run wrote to OUT, and what it left out."""

    out: str
    entries: tuple[ShardEntry, ...]  # one per tar
    classes: int  # with names
    bad: Mapping[str, str]  # file that cannot be decoded -> reason
    left_out: tuple[LeftOut, ...]  # files that are not images of the data set

    @property
    def images(self) -> int:
        """Images in all tars."""
        return sum(entry.rows for entry in self.entries)

    @property
    def held_out(self) -> int:
        """Images in held-out tars."""
        return sum(entry.rows for entry in self.entries if entry.held_out)

    @property
    def held_shards(self) -> tuple[str, ...]:
        """Names of the held-out tars."""
        return tuple(f"{entry.name}.tar" for entry in self.entries if entry.held_out)

    def __str__(self) -> str:
        left = sum(one.count for one in self.left_out)
        images, shards = self.images, len(self.entries)
        text = f"Wrote {images} image{'s' * (images != 1)} to {shards} shard{'s' * (shards != 1)} in {shown(self.out)}"
        text += f", skipped {len(self.bad)}" + (f", left out {left} other file{'s' * (left != 1)}" if left else "")
        if held := self.held_shards:
            text += f"; held out {self.held_out}, in {held[0]}{f' to {held[-1]}' if len(held) > 1 else ''}"
        return text


def run(config: ShardConfig) -> Sharded:
    """Write OUT/[PREFIX]000000.tar, ..., [PREFIX]val-000000.tar, ... and, last, OUT/index.json.

    Bad images are skipped, unless strict. ImageError if a class with a name loses all its images.
    """
    out = Path(config.out)
    check_apart(config, out)
    numbered = given_classes(out, config)
    listing = list_images(config.images, numbered, config.lists)
    listing = with_dense_labels(listing, config.masks, config.depths)
    for line in listing.remarks:
        say(line)
    if listing.left_out:
        say(f"left out: {listed(listing.left_out)}")
    order = permutation(words(Purpose.SHARD, config.seed, 0, 0, len(listing.samples))).tolist()
    held = split_off(listing.samples, config)
    bad: dict[str, str] = {}
    entries: list[ShardEntry] = []
    pixels = Pixels()
    with packing(out, config, numbered is not None):
        begins("shard", *facts(config, listing, len(held)))
        with Progress("shards", len(order), "images") as progress:
            for held_out in (False, True):
                samples = [listing.samples[at] for at in order if (at in held) == held_out]
                packed = counted(good_samples(samples, config.mask_offset, config.strict, bad, progress), pixels)
                entries += _write_tars(out, config.prefix + HELD * held_out, packed, config.per_shard, held_out)
        check_classes(config, listing, entries, bad)
        for line in pixels.remarks():
            say(line)
        location = open_location(out)
        if listing.names:
            location.replace(CLASSES_FILE, classes_json(listing.names))
        location.replace("index.json", Segment(0, tuple(entries)).to_json())
    return Sharded(config.out, tuple(entries), len(listing.names), bad, listing.left_out)


def facts(config: ShardConfig, listing: Listing, held: int) -> list[str]:
    """What is about to be done, for people."""
    classes = f" of {len(listing.names)} classes" if listing.names else ""
    kept = len(listing.samples) - held
    shards = -(-kept // config.per_shard) + -(-held // config.per_shard)
    return [
        f"{len(listing.samples):,} images{classes} in {shown(config.images)}",
        f"{shards:,} tars in {shown(config.out)}",
        f"masks in {shown(config.masks)}" if config.masks else "",
        f"depth maps in {shown(config.depths)}" if config.depths else "",
        f"{held:,} images held out" if held else "",
    ]


def check_apart(config: ShardConfig, out: Path) -> None:
    """ConfigError if IMAGES and OUT are the same folder, or one is inside the other."""
    source, target = Path(config.images).resolve(), out.resolve()
    if source.is_dir() and (source in {target, *target.parents} or target in source.parents):
        inside = "is inside" if source in target.parents else "contains" if target in source.parents else "is"
        raise ConfigError(
            f"OUT, {shown(config.out)}, {inside} the folder of images; choose one beside it, or the next run takes the "
            "shards for images"
        )


def split_off(samples: Sequence[Sample], config: ShardConfig) -> frozenset[int]:
    """Positions of the images to hold out, all of which decode. ConfigError if none can be held out."""
    if not config.val_fraction:
        return frozenset()
    with thread_pool(0) as pool:

        def good(places: Sequence[int]) -> Iterator[bool]:
            return pool.map(lambda at: isinstance(pack(samples[at], config.mask_offset), Packed), places)

        held = held_out(samples, config.val_fraction, config.seed, good)
    if not held:
        raise ConfigError(f"--val-fraction {config.val_fraction}: no class has two images, one of them to hold out")
    return held


def check_classes(config: ShardConfig, listing: Listing, entries: Sequence[ShardEntry], bad: Mapping[str, str]) -> None:
    """ImageError if no image is left, or none of a named class; on stderr, labels that lose all their images."""
    if not entries:
        raise ImageError(
            f"none of the {len(listing.samples)} images in {shown(config.images)} can be decoded; the first: "
            f"{next(iter(bad.values()))}"
        )
    given = Counter(sample.label for sample in listing.samples if sample.label is not None)
    packed = Counter(label for entry in entries for label in entry.labels)
    trained = {label for entry in entries if not entry.held_out for label in entry.labels}
    lost = [label for label in given if label not in packed]
    if lost and listing.names:
        path = next(str(s.path) for s in listing.samples if s.label == lost[0] and str(s.path) in bad)
        more = f" (nor any of {len(lost) - 1} more classes)" if len(lost) > 1 else ""
        raise ImageError(
            f"none of the {given[lost[0]]} images of class {listing.names[lost[0]]!r} can be decoded{more}; the first: "
            f"{shown(path)}: {bad[path]}; repair them, or remove the class"
        )
    if lost:
        say(f"{len(lost)} labels lose all their images, such as {lost[0]}")
    if untrained := [label for label in packed if label not in trained]:
        say(f"{len(untrained)} classes keep only held-out images, as no other decodes, such as {untrained[0]}")


def _write_tars(out: Path, prefix: str, packed: Iterator[Packed], per_shard: int, held: bool) -> Iterator[ShardEntry]:
    """Write tars of `per_shard` images, named by the prefix and a number; yield their index entries."""
    for number, first in enumerate(packed):
        rest = islice(packed, per_shard - 1)
        yield _write_tar(out / f"{prefix}{number:06d}.tar", chain([first], rest), held)


def _write_tar(path: Path, batch: Iterable[Packed], held: bool) -> ShardEntry:
    """Write a tar under a hidden name, sync and rename it; a scan of it gives its index entry.

    Masks and depth maps precede the class and the image, since readers check the class right before the image. A
    held-out tar has a member that says so and that WebDataset skips, so a copy of it stays held out.
    """
    temporary = path.with_name(f".tmp-{path.name}")
    with open(temporary, "wb") as file:
        with TarWriter(file, user="", group="", mode=0o444, mtime=0, encoder=False) as tar:
            if held:
                tar.tarstream.addfile(tarfile.TarInfo(HELD_OUT))
            for one in batch:
                for kind, data in one.dense.items():
                    tar.write({"__key__": one.key, kind: data})
                label = {} if one.label is None else {"cls": str(one.label).encode()}
                tar.write({"__key__": one.key, one.extension: one.image, **label})
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    return scan(str(path))
