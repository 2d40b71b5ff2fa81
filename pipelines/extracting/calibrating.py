"""The calibration of a new teacher: some of its views are shown to it before any is kept.

    views -> teachers -> statistics, some images whole -> codec fitted -> calibration.npz, created once

A calibration is of no more views than there will be, so that small work is quick. Its spec says of how many: one that
is lost is made again from as many. What was done is kept where the command is stopped: the same command goes on, and
ends with the same bytes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from crc32c import crc32c

from pipelines.command.progress import Progress, say
from pipelines.command.signals import stop_on_signal
from pipelines.extracting.half_calibrated import HalfCalibrated, forget
from pipelines.extracting.recorder import BATCHES_AHEAD, sampled
from unic_cache.ahead import ahead
from unic_cache.cache import Cache
from unic_cache.config import ExtractConfig
from unic_cache.errors import CacheError
from unic_cache.store.calibrate import Calibrator
from unic_cache.store.member import Member
from unic_cache.stream.address import Address
from unic_cache.stream.pixels import Pixels, ViewBatch
from unic_cache.teachers.model import Teacher
from unic_cache.views.index import ShardEntry

CALIBRATION_TARS = 256
LEAST_VIEWS = 10  # also the least that --calibration-images takes


def views_to_calibrate(config: ExtractConfig, shards: Sequence[ShardEntry]) -> int:
    """How many views a new teacher's statistics are of, `shards` being the first segment's."""
    return calibrated_views(config, sum(shards[tar].rows for tar in calibration_tars(shards)))


def calibrated_views(config: ExtractConfig, images: int) -> int:
    """No more views than there will be, but ten: of a handful of images further views are shown, and not kept."""
    return min(config.calibration_images, max(LEAST_VIEWS, config.count * images))


def calibrate(
    config: ExtractConfig,
    cache: Cache,
    pixels: Pixels,
    teachers: Mapping[str, Teacher],
    members: Mapping[str, Member],
    device: torch.device,
) -> None:
    """Make the calibration of every teacher that has none; all of one size in one pass over the views."""
    missing = [name for name, member in members.items() if member.calibration() is None]
    for name in members.keys() - missing:  # another worker may have made it meanwhile
        forget(config, members[name])
    counts = {name: count_of(config, cache, members[name]) for name in missing}
    for count in sorted(set(counts.values())):
        names = [name for name in missing if counts[name] == count]
        wanted = calibration_images(cache, count)
        if not pixels.decoded.tars:
            wanted = [item for item in wanted if pixels.kept.has(item)]
        say(f"calibrating {', '.join(names)} on {len(wanted):,} views")
        own = {name: (teachers[name], members[name]) for name in names}
        for one in show(config, cache, pixels, own, wanted, device):
            if not one.calibrator.images:
                raise CacheError(
                    f"{cache.location.url}: not one image of the calibration could be decoded; are these images?"
                )
            data = one.calibrator.calibration().to_bytes()
            check_calibration(cache, one.member, crc32c(data))
            cache.location.create(one.member.calibration_name, data)
            forget(config, one.member)


def count_of(config: ExtractConfig, cache: Cache, member: Member) -> int:
    """How many views a teacher that has no calibration is to be calibrated on.

    As many as its spec says: a lost calibration must come out as it was. While nothing is kept, no more than there
    will be now.
    """
    told = member.spec.get("calibration_images")
    count = told if isinstance(told, int) and 0 < told <= 2**24 else config.calibration_images
    if any(tars for _, _, tars in cache.committed(member)):
        return count
    return min(count, views_to_calibrate(config, cache.segments[0].shards))


@dataclass
class Calibrating:
    """One teacher while the views are shown to it."""

    teacher: Teacher
    member: Member
    half: HalfCalibrated
    calibrator: Calibrator
    done: int  # batches

    def update(self, batch: ViewBatch, shown: Sequence[tuple[int, int]], seed: int, device: torch.device) -> None:
        """Count the next batch, all but its bad images and the slots behind `shown`: (key, view number) of each."""
        self.done += 1
        slots = range(len(batch.views_BHWC))
        good_B = torch.tensor([place < len(shown) and place not in batch.bad for place in slots])
        if not good_B.any():
            return
        kept_BN = sampled(self.member, seed, shown)
        tokens = self.teacher(torch.from_numpy(batch.views_BHWC).to(device))
        self.calibrator.update(
            {kind: values.cpu()[good_B] for kind, values in tokens.items()},
            None if kept_BN is None else kept_BN[good_B[: len(shown)]],
        )


def show(
    config: ExtractConfig,
    cache: Cache,
    pixels: Pixels,
    members: Mapping[str, tuple[Teacher, Member]],
    wanted: Sequence[Address],
    device: torch.device,
) -> list[Calibrating]:
    """The teachers with what they said of the views; of those that they had seen before a stop, they are not asked.

    KeyboardInterrupt after a signal, when what was done is safe.
    """
    halves = [(*pair, HalfCalibrated(config, pair[1], wanted, device)) for pair in members.values()]
    teachers = [Calibrating(*three, *three[2].load()) for three in halves]
    size, first = config.batch_size, min(one.done for one in teachers)
    groups = [wanted[start : start + size] for start in range(0, len(wanted), size)]
    batches = ahead(groups[first:], lambda part: pixels.start(part, size), BATCHES_AHEAD)
    progress = Progress("calibrate", len(wanted), "images", min(first * size, len(wanted)))
    with progress, stop_on_signal() as stop:
        for number, batch in enumerate(batches, start=first):
            shown = [(cache.entry(i.segment, i.shard).keys[i.row], i.number) for i in groups[number]]
            for one in teachers:
                if one.done == number:
                    one.update(batch, shown, config.kind.seed, device)
            progress.advance(len(shown))
            for one in teachers:
                one.half.keep(one.calibrator, one.done, at_once=stop.made)
            if stop.made:
                done = min((number + 1) * size, len(wanted))
                said = f"{done} of {len(wanted)} views of the calibration are done"
                raise KeyboardInterrupt(f"{said}; go on with the same command")
    return teachers


def check_calibration(cache: Cache, member: Member, crc: int) -> None:
    """CacheError where the member holds features that were made with another calibration than the one just made."""
    for view, segment, tars in cache.committed(member):
        if not tars:
            continue
        unit = cache.unit(segment, min(tars), view)
        before = member.calibration_of(unit)
        if before not in {None, crc}:
            raise CacheError(
                f"{cache.location.url}/{member.calibration_name} is missing, and the one made now has checksum {crc}, "
                f"not {before} as when {unit} was made. Put the file back, or say the --shards and --batch-size "
                f"({member.spec.get('batch_size')}) that it was made with, on a machine with the same versions"
            )


def calibration_tars(shards: Sequence[ShardEntry]) -> list[int]:
    """Which tars of the first segment are sampled: evenly, at most 256."""
    places = np.linspace(0, len(shards) - 1, min(CALIBRATION_TARS, len(shards))).astype(int)
    return [int(tar) for tar in np.unique(places)]


def calibration_images(cache: Cache, count: int) -> list[Address]:
    """`count` views for the statistics: evenly over the first segment, from at most 256 of its tars, view 0 first."""
    shards = cache.segments[0].shards
    rows: Sequence[tuple[int, int]] = [
        (tar, row) for tar in calibration_tars(shards) for row in range(shards[tar].rows)
    ]
    if count < len(rows):
        rows = [rows[int(place)] for place in np.linspace(0, len(rows) - 1, count)]
    views = -(-count // len(rows))
    return [Address(0, tar, row, number) for number in range(views) for tar, row in rows][:count]
