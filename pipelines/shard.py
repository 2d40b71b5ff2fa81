"""Before stage one: an image folder, or a CSV of path,label, to WebDataset shards with an index.

    list -> shuffle by seed -> decode, and keep the file or its RGB -> tar -> index.json

Two runs on the same files give the same bytes.
"""

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path

from webdataset import TarWriter

from pipelines.claim import claimed
from pipelines.progress import Progress, begins, console
from unic_cache.config import ShardConfig
from unic_cache.draws import Purpose, permutation, words
from unic_cache.errors import ConfigError, ImageError
from unic_cache.location import open_location
from unic_cache.sources import ahead, thread_pool
from unic_cache.views.decode import upright_file
from unic_cache.views.index import Segment, ShardEntry
from unic_cache.views.listing import Listing, Sample, list_images
from unic_cache.views.shards import scan

UNFINISHED = ".unfinished"  # in OUT: the settings of a run that did not end
IMAGES_AHEAD = 64  # decoded before the tar asks for them


@dataclass
class Summary:
    """What a run did."""

    images: int = 0
    shards: int = 0
    classes: int = 0  # that have names
    bad: dict[str, str] = field(default_factory=dict)  # file -> reason

    @property
    def skipped(self) -> int:
        """Images left out."""
        return len(self.bad)


@dataclass(frozen=True)
class Packed:
    """One sample, ready for a tar."""

    key: str
    extension: str
    image: bytes
    label: int | None


def run(config: ShardConfig) -> Summary:
    """Write OUT/[PREFIX]000000.tar, ... and, last, OUT/index.json; bad images are left out, unless strict."""
    listing = list_images(config.images)
    _refuse_occupied(Path(config.out), config)
    with claimed(Path(config.out)):
        return _pack_all(config, listing)


def _pack_all(config: ShardConfig, listing: Listing) -> Summary:
    out = Path(config.out)
    _refuse_occupied(out, config)
    classes = f" of {len(listing.classes)} classes" if listing.classes else ""
    shards = -(-len(listing.samples) // config.per_shard)
    begins("shard", f"{len(listing.samples):,} images{classes} in {config.images}", f"{shards:,} tars in {out}")
    (out / UNFINISHED).write_text(_settings(config))
    order = permutation(words(Purpose.SHARD, config.seed, 0, 0, len(listing.samples)))
    samples = [listing.samples[at] for at in order]
    summary = Summary(classes=len(listing.classes))
    entries: list[ShardEntry] = []
    with Progress("shards", len(samples), "images") as progress:
        packed = _packed(samples, config.strict, summary, progress)
        for first in packed:
            rest = islice(packed, config.per_shard - 1)
            entries.append(_write_tar(out / f"{config.prefix}{len(entries):06d}.tar", chain([first], rest)))
    if not entries:
        reason = next(iter(summary.bad.values()))
        raise ImageError(f"none of the {len(samples)} images in {config.images} can be decoded; the first: {reason}")
    summary.shards, summary.images = len(entries), sum(entry.rows for entry in entries)
    location = open_location(out)
    if listing.classes:
        names = {str(label): name for label, name in enumerate(listing.classes)}
        location.replace("classes.json", json.dumps(names, indent=1, ensure_ascii=False).encode() + b"\n")
    location.replace("index.json", Segment(0, tuple(entries)).to_json())
    (out / UNFINISHED).unlink()
    return summary


def _settings(config: ShardConfig) -> str:
    return json.dumps(config.to_json(), sort_keys=True)


def _refuse_occupied(out: Path, config: ShardConfig) -> None:
    """ConfigError unless OUT is free, or holds what the same command left when it was stopped: that is made again."""
    if (out / UNFINISHED).is_file() and (out / UNFINISHED).read_text() == _settings(config):
        return
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file; choose a folder for the shards")
    names = [path.name for path in sorted(out.iterdir())] if out.exists() else []
    held = [name for name in names if name == "index.json" or (name.endswith(".tar") and not name.startswith("."))]
    if held:
        raise ConfigError(f"{out} already holds {held[0]}; choose another folder, or delete this one")


def _packed(samples: list[Sample], strict: bool, summary: Summary, progress: Progress) -> Iterator[Packed]:
    """The good samples in order, decoded on all cores; the others are reported, or raised when strict."""
    with thread_pool(0) as pool:
        results = ahead(samples, lambda sample: pool.submit(_pack, sample).result, IMAGES_AHEAD)
        for sample, result in zip(samples, results, strict=True):
            progress.advance(1)
            if isinstance(result, Packed):
                yield result
            elif strict:
                raise ImageError(f"{sample.path}: {result}; mend or remove the file, or leave --strict out")
            else:
                summary.bad[str(sample.path)] = result
                console.print(f"skipped {sample.path}: {result}", markup=False, soft_wrap=True)


def _pack(sample: Sample) -> Packed | str:
    """The sample with its file's bytes or, where those are not upright 8-bit RGB, a PNG; else why not."""
    try:
        extension, image = upright_file(sample.path.read_bytes())
    except (ImageError, OSError) as error:
        return str(error)
    return Packed(sample.key, extension, image, sample.label)


def _write_tar(path: Path, batch: Iterable[Packed]) -> ShardEntry:
    """The tar under a hidden name, synced, then renamed; what a scan of it finds is its index."""
    temporary = path.with_name(f".tmp-{path.name}")
    with open(temporary, "wb") as file:
        with TarWriter(file, user="", group="", mode=0o444, mtime=0, encoder=False) as tar:
            for one in batch:
                label = {} if one.label is None else {"cls": str(one.label).encode()}
                tar.write({"__key__": one.key, one.extension: one.image, **label})
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    return scan(str(path))
