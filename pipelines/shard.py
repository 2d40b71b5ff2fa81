"""Before stage one: an image folder, or a CSV of path,label, to WebDataset shards with an index.

    list -> shuffle by seed -> hold out -> decode, and keep the file or its RGB -> tar -> index.json

Two runs on the same files give the same bytes.
"""

import errno
import os
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path

from webdataset import TarWriter

from pipelines.command.progress import Progress, begins, say
from pipelines.packing.unfinished import HELD, given_classes, packing
from unic_cache.ahead import ahead, thread_pool
from unic_cache.config import ShardConfig
from unic_cache.draws import Purpose, permutation, words
from unic_cache.errors import ConfigError, ImageError
from unic_cache.files.schemes import open_location
from unic_cache.views.classes import CLASSES_FILE, classes_json
from unic_cache.views.decode import upright_file
from unic_cache.views.index import Segment, ShardEntry
from unic_cache.views.left_out import LeftOut, listed, shown
from unic_cache.views.listing import Listing, Sample, list_images
from unic_cache.views.shards import scan
from unic_cache.views.split import held_out
from unic_cache.views.tars import HELD_OUT

# errors of a file itself; any other (too many open files, no memory) says nothing of it
ITS_OWN = {errno.ENOENT, errno.EACCES, errno.EPERM, errno.EIO, errno.ELOOP, errno.ENAMETOOLONG, errno.EISDIR}
IMAGES_AHEAD = 64  # decoded before the tar asks for them


@dataclass
class Summary:
    """What a run did."""

    out: str = ""
    images: int = 0
    shards: int = 0
    classes: int = 0  # that have names
    bad: dict[str, str] = field(default_factory=dict)  # file -> reason
    left_out: tuple[LeftOut, ...] = ()  # files that are no image of the data set
    held_out: int = 0  # of the images
    held_shards: tuple[str, ...] = ()  # the tars that these are in

    @property
    def skipped(self) -> int:
        """Images that cannot be decoded."""
        return len(self.bad)

    def __str__(self) -> str:
        left = sum(one.count for one in self.left_out)
        text = f"{self.images} images in {self.shards} shards of {shown(self.out)}, {self.skipped} skipped"
        text += f", {left} other files left out" if left else ""
        if self.held_shards:
            last = f" to {self.held_shards[-1]}" if len(self.held_shards) > 1 else ""
            text += f"; {self.held_out} held out, in {self.held_shards[0]}{last}"
        return text


@dataclass(frozen=True)
class Packed:
    """One sample, ready for a tar."""

    key: str
    extension: str
    image: bytes
    label: int | None


def run(config: ShardConfig) -> Summary:
    """Write OUT/[PREFIX]000000.tar, ..., [PREFIX]val-000000.tar, ... and, last, OUT/index.json.

    Bad images are left out, unless strict. ImageError where a class with a name loses all its images by that.
    """
    out = Path(config.out)
    check_apart(config, out)
    numbered = given_classes(out, config)
    listing = list_images(config.images, numbered)
    for line in listing.remarks:
        say(line)
    if listing.left_out:
        say(f"left out: {listed(listing.left_out)}")
    order = permutation(words(Purpose.SHARD, config.seed, 0, 0, len(listing.samples))).tolist()
    held = split_off(listing.samples, config)
    summary = Summary(config.out, classes=len(listing.names), left_out=listing.left_out)
    with packing(out, config, numbered is not None):
        begins("shard", *facts(config, listing, len(held)))
        entries: list[ShardEntry] = []
        with Progress("shards", len(order), "images") as progress:
            for prefix, samples in (
                (config.prefix, [listing.samples[at] for at in order if at not in held]),
                (f"{config.prefix}{HELD}", [listing.samples[at] for at in order if at in held]),
            ):
                packed = _packed(samples, config.strict, summary, progress)
                entries += _write_tars(out, prefix, packed, config.per_shard, prefix != config.prefix)
        _finish(config, listing, entries, summary)
        location = open_location(out)
        if listing.names:
            location.replace(CLASSES_FILE, classes_json(listing.names))
        location.replace("index.json", Segment(0, tuple(entries)).to_json())
    return summary


def facts(config: ShardConfig, listing: Listing, held: int) -> list[str]:
    """What is about to be done, for people."""
    classes = f" of {len(listing.names)} classes" if listing.names else ""
    kept = len(listing.samples) - held
    shards = -(-kept // config.per_shard) + -(-held // config.per_shard)
    return [
        f"{len(listing.samples):,} images{classes} in {shown(config.images)}",
        f"{shards:,} tars in {shown(config.out)}",
        f"{held:,} images held out" if held else "",
    ]


def check_apart(config: ShardConfig, out: Path) -> None:
    """ConfigError on URLs, and where one of IMAGES and OUT lies in the other."""
    for where in (config.images, config.out):
        if "://" in where:
            raise ConfigError(
                f"{where}: `shard` packs local files into a local folder; copy that to the store afterwards"
            )
    source, target = Path(config.images).resolve(), out.resolve()
    if source.is_dir() and (source in {target, *target.parents} or target in source.parents):
        inside = "lies in" if source in target.parents else "holds" if target in source.parents else "is"
        raise ConfigError(
            f"OUT, {shown(config.out)}, {inside} the folder of images; choose one beside it, or the next run takes the "
            "shards for images"
        )


def split_off(samples: Sequence[Sample], config: ShardConfig) -> frozenset[int]:
    """Positions of the images to hold out, all of which can be decoded. ConfigError where there is none."""
    if not config.val_fraction:
        return frozenset()
    with thread_pool(0) as pool:

        def good(places: Sequence[int]) -> Iterator[bool]:
            return pool.map(lambda at: isinstance(_pack(samples[at]), Packed), places)

        held = held_out(samples, config.val_fraction, config.seed, good)
    if not held:
        raise ConfigError(f"--val-fraction {config.val_fraction}: no class has two images, of which one is held out")
    return held


def _finish(config: ShardConfig, listing: Listing, entries: Sequence[ShardEntry], summary: Summary) -> None:
    """Count what was packed. ImageError where nothing, or nothing of a class, is left."""
    if not entries:
        reason = next(iter(summary.bad.values()))
        count = len(listing.samples)
        raise ImageError(f"none of the {count} images in {shown(config.images)} can be decoded; the first: {reason}")
    packed, trained = Counter[int](), Counter[int]()
    for entry in entries:
        packed.update(entry.labels)
        trained.update(() if entry.held_out else entry.labels)
    listed_labels = Counter(sample.label for sample in listing.samples if sample.label is not None)
    lost = [label for label in listed_labels if label not in packed]
    if lost and listing.names:
        path = next(str(s.path) for s in listing.samples if s.label == lost[0] and str(s.path) in summary.bad)
        more = f" and {len(lost) - 1} more lose" if len(lost) > 1 else " loses"
        raise ImageError(
            f"class {listing.names[lost[0]]!r}{more} all images, {listed_labels[lost[0]]} here: {shown(path)}: "
            f"{summary.bad[path]}; mend them, or remove the class"
        )
    if lost:
        say(f"{len(lost)} labels have no image left, such as {lost[0]}")
    if untrained := [label for label in packed if label not in trained]:
        say(f"{len(untrained)} classes have held-out images alone, as their others cannot be decoded: {untrained[0]}")
    summary.shards, summary.images = len(entries), sum(entry.rows for entry in entries)
    summary.held_out = sum(entry.rows for entry in entries if entry.held_out)
    summary.held_shards = tuple(f"{entry.name}.tar" for entry in entries if entry.held_out)


def _packed(samples: list[Sample], strict: bool, summary: Summary, progress: Progress) -> Iterator[Packed]:
    """The good samples in order, decoded on all cores; the others are reported, or raised when strict."""
    with thread_pool(0) as pool:
        results = ahead(samples, lambda sample: pool.submit(_pack, sample).result, IMAGES_AHEAD)
        for sample, result in zip(samples, results, strict=True):
            progress.advance(1)
            if isinstance(result, Packed):
                yield result
            elif strict:
                raise ImageError(f"{shown(str(sample.path))}: {result}; mend or remove the file, or leave --strict out")
            else:
                summary.bad[str(sample.path)] = result
                say(f"skipped {shown(str(sample.path))}: {result}")


def _pack(sample: Sample) -> Packed | str:
    """The sample with its file's bytes or, where those are not upright 8-bit RGB, a PNG; else why not."""
    try:
        extension, image = upright_file(sample.path.read_bytes())
    except ImageError as error:
        return str(error)
    except OSError as error:
        if error.errno not in ITS_OWN:
            raise
        return error.strerror or str(error)
    return Packed(sample.key, extension, image, sample.label)


def _write_tars(out: Path, prefix: str, packed: Iterator[Packed], per_shard: int, held: bool) -> Iterator[ShardEntry]:
    """Tars of `per_shard` images, named by a prefix and a number."""
    for number, first in enumerate(packed):
        rest = islice(packed, per_shard - 1)
        yield _write_tar(out / f"{prefix}{number:06d}.tar", chain([first], rest), held)


def _write_tar(path: Path, batch: Iterable[Packed], held: bool) -> ShardEntry:
    """The tar under a hidden name, synced, then renamed; what a scan of it finds is its index.

    A held-out one says so itself, by a member that WebDataset skips: where it is copied to, the mark goes too.
    """
    temporary = path.with_name(f".tmp-{path.name}")
    with open(temporary, "wb") as file:
        with TarWriter(file, user="", group="", mode=0o444, mtime=0, encoder=False) as tar:
            if held:
                tar.tarstream.addfile(tarfile.TarInfo(HELD_OUT))
            for one in batch:
                label = {} if one.label is None else {"cls": str(one.label).encode()}
                tar.write({"__key__": one.key, one.extension: one.image, **label})
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    return scan(str(path))
