"""Make a sample of a cache again, views from the tars and features from the teachers, and compare.

Checksums show that nothing changed since the commit; this shows that what was committed is right. Rows with wrong
checksums are skipped here, since `verify` reads and reports them all.

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
from pipelines.command.progress import Progress
from pipelines.command.tars import given_shards
from pipelines.extracting.opening_options import TeacherOptions
from pipelines.extracting.teacher_weights import load_teachers, normalization_text
from unic_cache.cache import Cache, CachedTeacher
from unic_cache.errors import BrokenError, CacheError
from unic_cache.store.commit import CommitRecord, Unit
from unic_cache.store.member import Member
from unic_cache.store.sampling import at_positions
from unic_cache.store.unit_check import BY_HAND, Finding
from unic_cache.stream.address import addresses
from unic_cache.stream.matched import matched
from unic_cache.stream.pixels import KeptPixels, PixelSource, ShardPixels, ViewBatch
from unic_cache.stream.row_samples import spread
from unic_cache.teachers.model import Teacher
from unic_cache.views.index import ShardEntry

BATCH = 64
COSINE = {"f16": 0.9999, "int8": 0.999, "int4": 0.99}  # least mean over an image's standardized tokens
LOSS_OF_KLT = 4.0  # times the average loss that its quality allows, for a single image
COSINE_SHORT = 0.99  # for teachers in bfloat16 or float16, which differs more between devices

Committed = Sequence[tuple[Member, Unit]]


@dataclass(frozen=True)
class Origin:
    """The sources of a cache's pixels: its kept views, and the given tars."""

    cache: Cache
    tars: Mapping[tuple[int, int], tuple[str, ShardEntry]]
    pool: ThreadPoolExecutor

    def decoded(self, unit: Unit) -> ShardPixels | None:
        """The unit's tar, or None if it was not given."""
        place = unit.segment, unit.shard
        if place not in self.tars:
            return None
        return ShardPixels(unit.views, {place: self.tars[place]}, self.pool)

    def any(self, unit: Unit) -> PixelSource | None:
        """The unit's kept views, or else its tar."""
        kept = KeptPixels(unit.views, self.cache, self.pool, skip_broken=True)
        return kept if kept.has(addresses(unit, [0])[0]) else self.decoded(unit)


def origin(cache: Cache, shards: str | None, pool: ThreadPoolExecutor) -> Origin:
    """The tars of a pattern, matched with the index. CacheError if the cache was made with others."""
    paths, entries = ((), ()) if shards is None else given_shards(shards, False)
    return Origin(cache, matched(cache, zip(paths, entries, strict=True)), pool)


def remake_views(source: Origin, committed: Committed, count: int) -> tuple[int, list[Finding]]:
    """Make `count` views of the given tars again, evenly over all committed ones: (how many, findings)."""
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
    """Load every teacher of the cache. CacheError if weights are not those that the cache was made with."""
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
        check_rules(name, spec, teacher.spec.to_json())
        found[name] = kept, teacher
    return found


def check_rules(name: str, then: Mapping[str, object], now: Mapping[str, object]) -> None:
    """CacheError if the name stood for other targets, another size or another version when the cache was made."""
    for key in ("cls_rule", "patch_rule", "summary_rules", "input_size", "stride", "version"):
        if then.get(key) != now.get(key):
            raise CacheError(
                f"{name}: the cache was made with {key} {then.get(key)}, and the name now means {now.get(key)}; its "
                "features can be read and trained on, but not made again: leave out --teacher-check"
            )


def run_again(
    source: Origin, kept: CachedTeacher, teacher: Teacher, units: Sequence[Unit], count: int
) -> tuple[float, list[Finding]]:
    """Run a teacher on `count` images again: (lowest cosine to stored features, findings for all below tolerance).

    CacheError if there are no pixels.
    """
    available = [unit for unit in units if source.any(unit) is not None]
    if not available:
        raise CacheError(
            f"{source.cache.location.url}: no views are kept to run {kept.name} on; give the tars with --shards"
        )
    least = least_cosine(kept)
    lowest, findings = 1.0, []
    with Progress(f"run {kept.name}", count, "images") as progress:
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
                    why = (
                        f"cosine {cosine:.5f} to the teacher's output, at least {least:.4g} expected: that differs "
                        "now, or mean, std and codec were fitted to other images than this one"
                    )
                    findings.append(Finding(record.name, why, BY_HAND, kept.member.folder, unit, rows=(row,)))
    return lowest, findings


def least_cosine(kept: CachedTeacher) -> float:
    """The least cosine of an image when its teacher runs again; the losses of a recoded cache's codecs add up."""
    least = 1.0
    step: Mapping[str, Any] = {**kept.spec, **kept.spec["provenance"]}
    while step:
        asked = [step[key] for key in ("quality", "cls_quality") if step.get(key) is not None]
        least -= LOSS_OF_KLT * (1 - min(asked)) if asked else 1 - COSINE[step["codec"]]
        step = step.get("recoded_from", {})
    return least if kept.spec["dtype"] == "float32" else min(least, COSINE_SHORT)


def cosines(
    cache: Cache, kept: CachedTeacher, teacher: Teacher, record: CommitRecord, rows: Sequence[int], batch: ViewBatch
) -> list[tuple[int, float]]:
    """(row, the lowest of its token kinds' mean cosines) for the whole rows."""
    broken: set[int] = set()
    parts = kept.parts(record, rows, broken)
    theirs = kept.codec.decode({name: torch.from_numpy(values) for name, values in parts.items()})
    answer = teacher(torch.from_numpy(batch.views_BHWC).to(teacher.device))
    ours = kept.calibration.standardize({kind: values.cpu() for kind, values in answer.items()})
    kept_BN = cache.positions(kept, record.unit, rows)
    ours = at_positions(ours, None if kept_BN is None else torch.from_numpy(kept_BN))
    each_B = torch.stack([_cosine(theirs[kind], ours[kind]) for kind in ours]).amin(dim=0)
    left_out = broken | record.bad.keys()
    return [
        (row, cosine)
        for place, (row, cosine) in enumerate(zip(rows, each_B.tolist(), strict=True))
        if row not in left_out and place not in batch.bad
    ]


def named(tar: ShardPixels, unit: Unit, row: int) -> str:
    """A row's number and its name in the tar."""
    return f"{row} ({tar.name(addresses(unit, [row])[0])})"


def other_pixels(
    record: CommitRecord, rows: Sequence[int], batch: ViewBatch, called: Callable[[int], str] = str
) -> list[Finding]:
    """A finding for the rows whose pixels differ from the record's checksums, if any."""
    different = np.flatnonzero(batch.crcs != record.pixels[rows])
    if not len(different):
        return []
    place = int(different[0])
    now = batch.bad.get(place) or f"checksum {batch.crcs[place]:08x}"
    why = (
        f"has pixels with checksum {record.pixels[rows[place]]:08x} in row {called(rows[place])}, but the tar gives "
        f"{now}: it holds another image, or this machine decodes differently; compare library versions with spec.json"
    )
    hit = tuple(rows[int(at)] for at in different)
    return [Finding(record.name, why, BY_HAND, record.member, record.unit, rows=hit)]


def readable(member: Member, unit: Unit) -> CommitRecord | None:
    """The unit's record, or None if it is broken."""
    try:
        return member.record(unit)
    except BrokenError:
        return None


def _cosine(left: Tensor, right: Tensor) -> Tensor:
    """(B,) the mean cosine of each image's tokens, (B, D) or (B, T, D)."""
    cosine = torch.cosine_similarity(left.double(), right.double(), dim=-1)
    return cosine.reshape(len(cosine), -1).mean(dim=-1)
