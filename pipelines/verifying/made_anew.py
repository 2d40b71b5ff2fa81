"""A sample of a cache made anew: views from the tars, and answers of the teachers, to compare with what is kept.

Checksums tell that nothing changed since it was committed; this tells that what was committed was right. What is broken
by its checksum is passed over here: `verify` reads all of it and reports it.

Letters: B images, T patch tokens, D channels.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipelines.command.device import pick_device
from pipelines.command.given import given_shards
from pipelines.command.progress import Progress
from pipelines.extracting.options import TeacherOptions
from pipelines.extracting.recorder import sampled
from pipelines.extracting.teacher_weights import load_teachers, normalization_text
from unic_cache.cache import Cache, CachedTeacher
from unic_cache.errors import BrokenError, CacheError
from unic_cache.store.commit import CommitRecord, Unit
from unic_cache.store.member import Member
from unic_cache.store.sampling import at_positions
from unic_cache.store.verify import BY_HAND, Finding
from unic_cache.stream.address import addresses, shown
from unic_cache.stream.evenly import spread
from unic_cache.stream.pixels import KeptPixels, PixelSource, ShardPixels, ViewBatch
from unic_cache.teachers.model import Teacher
from unic_cache.views.index import ShardEntry

BATCH = 64
COSINE = {"f16": 0.9999, "int8": 0.999, "int4": 0.99}  # of an image's kept tokens on average, in the standardized space
LOSS_OF_KLT = 4.0  # times what its quality allows on average, for one image
COSINE_SHORT = 0.99  # where the teacher's arithmetic is bfloat16 or float16, which differs more between devices

Committed = Sequence[tuple[Member, Unit]]


@dataclass(frozen=True)
class Origin:
    """Where the pixels of a cache come from: its kept views, and the tars that were given."""

    cache: Cache
    tars: Mapping[tuple[int, int], tuple[str, ShardEntry]]
    pool: ThreadPoolExecutor

    def decoded(self, unit: Unit) -> ShardPixels | None:
        """The unit's tar, where it was given."""
        place = unit.segment, unit.shard
        if place not in self.tars:
            return None
        return ShardPixels(unit.views, {place: self.tars[place]}, self.pool)

    def any(self, unit: Unit) -> PixelSource | None:
        """The unit's kept views, or else its tar."""
        kept = KeptPixels(unit.views, self.cache, self.pool, skip_broken=True)
        return kept if kept.has(addresses(unit, [0])[0]) else self.decoded(unit)


def origin(cache: Cache, shards: str | None, pool: ThreadPoolExecutor) -> Origin:
    """The tars of the pattern, matched with the index. CacheError where the cache was made with others."""
    paths, entries = ((), ()) if shards is None else given_shards(shards, False)
    pairs = zip(paths, entries, strict=True)
    return Origin(cache, {cache.place(entry.name, entry.keys): (path, entry) for path, entry in pairs}, pool)


def remake_views(source: Origin, committed: Committed, count: int) -> tuple[int, list[Finding]]:
    """Make `count` views again, evenly over all that is committed of the tars given: how many, and what differs."""
    members: dict[Unit, list[Member]] = {}
    for member, unit in committed:
        if source.decoded(unit) is not None:
            members.setdefault(unit, []).append(member)
    made, findings = 0, []
    with Progress("views", count, "views") as progress:
        for unit, rows in spread(list(members), count):
            tar = source.decoded(unit)
            assert tar is not None
            batch = tar.start(addresses(unit, rows), len(rows))()
            for member in members[unit]:
                record = readable(member, unit)
                findings += [] if record is None else other_pixels(record, rows, batch, partial(named, tar, unit))
            made += len(rows)
            progress.advance(len(rows))
    return made, findings


def load_checked(
    cache: Cache, weights: tuple[tuple[str, str], ...], device: str
) -> dict[str, tuple[CachedTeacher, Teacher]]:
    """Every teacher of the cache, loaded. CacheError where weights are not those that the cache was made with."""
    found = {}
    for name, kept in cache.teachers.items():
        own = tuple(pair for pair in weights if pair[0] in {name, ""} and (pair[0] or len(cache.teachers) == 1))
        spec = kept.spec["teacher"]
        options = TeacherOptions(
            (name,),
            weights=own,
            dtype=str(kept.spec["dtype"]),
            normalize=((name, normalization_text(spec)),),
            positions=((name, str(spec["position_rule"])),),
        )
        teacher = load_teachers(options, pick_device(device))[name]
        then, now = kept.spec["teacher"]["weights_sha256"], teacher.spec.weights_sha256
        if then != now:
            raise CacheError(f"{name}: the cache was made with weights {then}, not {now}; give those with --weights")
        found[name] = kept, teacher
    return found


def ask_again(
    source: Origin, kept: CachedTeacher, teacher: Teacher, units: Sequence[Unit], count: int
) -> tuple[float, list[Finding]]:
    """Show `count` images to a teacher again: the lowest cosine with what is kept of one, and all below tolerance.

    CacheError where no pixels are to be had.
    """
    available = [unit for unit in units if source.any(unit) is not None]
    if not available:
        raise CacheError(
            f"{source.cache.location.url}: no views to show to {kept.name} are kept; give the tars by --shards"
        )
    least = least_cosine(kept)
    lowest, findings = 1.0, []
    with Progress(f"ask {kept.name}", count, "images") as progress:
        for unit, rows in spread(available, count):
            pixels, record = source.any(unit), readable(kept.member, unit)
            assert pixels is not None
            progress.advance(len(rows))
            if record is None:
                continue
            batch = pixels.start(addresses(unit, rows), len(rows))()
            findings += other_pixels(record, rows, batch)
            for row, cosine in cosines(source.cache, kept, teacher, record, rows, batch):
                lowest = min(lowest, cosine)
                if not cosine >= least:
                    why = f"the teacher now says something else: cosine {cosine:.5f}, and {least} is the least"
                    findings.append(Finding(record.name, why, BY_HAND, kept.member.folder, unit, rows=(row,)))
    return lowest, findings


def least_cosine(kept: CachedTeacher) -> float:
    """The cosine that every image must reach when its teacher is asked again; a recoded cache has all losses in it."""
    exact = 1.0
    way: Mapping[str, Any] = {**kept.spec, **kept.spec["provenance"]}
    while way:
        quality = way.get("quality")
        exact -= 1 - COSINE[way["codec"]] if quality is None else LOSS_OF_KLT * (1 - quality)
        way = way.get("recoded_from", {})
    return exact if kept.spec["dtype"] == "float32" else min(exact, COSINE_SHORT)


def cosines(
    cache: Cache, kept: CachedTeacher, teacher: Teacher, record: CommitRecord, rows: Sequence[int], batch: ViewBatch
) -> list[tuple[int, float]]:
    """(row, the lower of the CLS token's and the mean patch token's cosine) of the rows that are whole."""
    broken: set[int] = set()
    parts = kept.parts(record, rows, broken)
    theirs = kept.codec.decode({name: torch.from_numpy(values) for name, values in parts.items()})
    answer = teacher(torch.from_numpy(batch.views_BHWC).to(teacher.device))
    ours = kept.calibration.standardize({kind: values.cpu() for kind, values in answer.items()})
    kept_BN = sampled(kept.member, record.unit.views.seed, shown(cache, addresses(record.unit, rows)))
    ours = at_positions(ours, kept_BN)
    each_B = torch.stack([_cosine(theirs[kind], ours[kind]) for kind in ours]).amin(dim=0)
    left_out = broken | record.bad.keys()
    return [
        (row, cosine)
        for place, (row, cosine) in enumerate(zip(rows, each_B.tolist(), strict=True))
        if row not in left_out and place not in batch.bad
    ]


def named(tar: ShardPixels, unit: Unit, row: int) -> str:
    """A row's number, and what the tar calls it."""
    return f"{row} ({tar.name(addresses(unit, [row])[0])})"


def other_pixels(
    record: CommitRecord, rows: Sequence[int], batch: ViewBatch, called: Callable[[int], str] = str
) -> list[Finding]:
    """A finding for the rows whose pixels are not those that the record has checksums of."""
    different = np.flatnonzero(batch.crcs != record.pixels[rows])
    if not len(different):
        return []
    place = int(different[0])
    now = batch.bad.get(place) or f"checksum {batch.crcs[place]:08x}"
    why = (
        f"has pixels with checksum {record.pixels[rows[place]]:08x} in row {called(rows[place])}, but the tar gives "
        f"{now}: the image is another one, or this machine decodes differently; compare library versions with those in "
        "spec.json"
    )
    hit = tuple(rows[int(at)] for at in different)
    return [Finding(record.name, why, BY_HAND, record.member, record.unit, rows=hit)]


def readable(member: Member, unit: Unit) -> CommitRecord | None:
    """The unit's record, or None where it is broken."""
    try:
        return member.record(unit)
    except BrokenError:
        return None


def _cosine(left: Tensor, right: Tensor) -> Tensor:
    """(B,) the mean cosine of each image's tokens, (B, D) or (B, T, D)."""
    cosine = torch.cosine_similarity(left.double(), right.double(), dim=-1)
    return cosine.reshape(len(cosine), -1).mean(dim=-1)
