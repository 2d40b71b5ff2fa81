"""The calibration of a new teacher: it sees some views before any of its features are kept.

    views -> teachers -> statistics, some whole images -> fitted codec -> calibration.npz, created once

Everything after the teacher takes one CPU thread, whose sums have one order. Each teacher has its own, so that an
accelerator need not wait for all of them in turn.

A calibration uses no more views than there will be, so that small work is quick. Its spec records how many: a lost
calibration is made again from as many. A stopped command keeps its progress: the same command goes on, and ends with
the same bytes.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from threading import Event

import numpy as np
import torch
from crc32c import crc32c
from threadpoolctl import threadpool_limits

from pipelines.command.progress import Progress, say
from pipelines.command.signals import Stopped, stop_on_signal
from pipelines.extracting.calibration_checkpoint import HalfCalibrated, forget
from pipelines.extracting.opening_options import OpeningOptions
from pipelines.extracting.recorder import BATCHES_AHEAD, DeviceBatch
from unic_cache.ahead import ahead, behind, dropped, thread_pool
from unic_cache.cache import Cache
from unic_cache.errors import CacheError
from unic_cache.store.calibrate import Calibrator
from unic_cache.store.commit import Unit
from unic_cache.store.member import Member
from unic_cache.stream.address import Address, shown
from unic_cache.stream.pixels import Pixels
from unic_cache.teachers.model import Teacher
from unic_cache.views.index import Segment

CALIBRATION_TARS = 256
BATCHES_BEHIND = 2  # shown to a teacher and not yet counted
LEAST_VIEWS = 10  # also the lower bound of --calibration-images

Later = Callable[[Callable[[], object]], object]  # runs work, in the order in which it is given


def views_to_calibrate(options: OpeningOptions, first: Segment) -> int:
    """The number of views behind a new teacher's statistics, which come from the first segment."""
    images = int(first.counts[calibration_tars(first)].sum())
    return calibrated_views(options.calibration_images, options.count * images)


def calibrated_views(asked: int, views: int) -> int:
    """`asked`, but no more than `views`, yet at least ten: a handful of images is shown in more views than are kept."""
    return min(asked, max(LEAST_VIEWS, views))


def calibrate(
    options: OpeningOptions,
    cache: Cache,
    pixels: Pixels,
    teachers: Mapping[str, Teacher],
    members: Mapping[str, Member],
    device: torch.device,
) -> None:
    """Make the calibration of every teacher without one; teachers with equal counts share one pass over the views."""
    missing = [name for name, member in members.items() if member.calibration() is None]
    for name in members.keys() - missing:  # another worker may have made it meanwhile
        forget(options, members[name])
    counts = {name: count_of(options, cache, members[name]) for name in missing}
    for count in sorted(set(counts.values())):
        names = [name for name in missing if counts[name] == count]
        wanted = calibration_images(cache, count)
        if not pixels.decoded.tars:
            wanted = [item for item in wanted if pixels.kept.has(item)]
        say(f"calibrating {', '.join(names)} on {len(wanted):,} views")
        own = [(teachers[name], members[name]) for name in names]
        counted = show(options, cache, pixels, own, wanted, device)
        if not all(one.calibrator.images for one in counted):
            raise CacheError(
                f"{cache.location.url}: not one image of the calibration could be decoded; are these images?"
            )
        fitted = [name for name in names if (features := members[name].features) and features.fitted]
        if fitted:  # minutes, if tokens are wide and cores few
            say(f"fitting codec klt to {', '.join(fitted)}")
        with kept_on_signal(counted):
            for one, data in zip(counted, made([one.calibrator for one in counted], options.threads), strict=True):
                check_calibration(cache, one.member, crc32c(data))
                cache.location.create(one.member.calibration_name, data)
                forget(options, one.member)


def count_of(options: OpeningOptions, cache: Cache, member: Member) -> int:
    """The number of views to calibrate a teacher on.

    As many as its spec says: a lost calibration must come out as before. While the teacher has no unit, no more than
    there will be now.
    """
    told = member.spec.get("calibration_images")
    count = told if isinstance(told, int) and 0 < told <= 2**24 else options.calibration_images
    if any(tars for *_, tars in cache.committed(member)):
        return count
    return min(count, views_to_calibrate(options, cache.segments[0]))


@dataclass
class Calibrating:
    """One teacher while it sees the views."""

    teacher: Teacher
    member: Member
    half: HalfCalibrated
    calibrator: Calibrator
    done: int  # batches
    later: Later

    def update(self, batch: DeviceBatch, bad: Collection[int]) -> None:
        """Show the next batch and count it, without the images at the places `bad` and the empty slots."""
        self.done += 1
        size, count = len(batch.views_BHWC), len(batch.shown)
        good_B = torch.tensor([place < count and place not in bad for place in range(size)])
        if not good_B.any():
            return
        kept_BN = batch.positions(self.member)
        tokens = {kind: values.cpu()[good_B] for kind, values in self.teacher(batch.views_BHWC).items()}
        self.later(partial(self.calibrator.update, tokens, None if kept_BN is None else kept_BN.cpu()[good_B]))

    def keep_some(self) -> None:
        """Keep what is counted so far once some minutes have passed."""
        self.later(partial(self.half.keep, self.calibrator, self.done, at_once=False))

    def keep(self) -> None:
        """Keep what is counted now that nothing is left to count."""
        self.half.keep(self.calibrator, self.done, at_once=True)


def show(
    options: OpeningOptions,
    cache: Cache,
    pixels: Pixels,
    members: Sequence[tuple[Teacher, Member]],
    wanted: Sequence[Address],
    device: torch.device,
) -> list[Calibrating]:
    """Show the views to the teachers; batches that a teacher saw before a stop are not shown to it again.

    Stopped after a signal, once the progress is safe.
    """
    size, total = options.batch_size, len(wanted)
    groups = [wanted[start : start + size] for start in range(0, total, size)]
    with stop_on_signal() as stop:
        with ExitStack() as threads:  # they end once all that was shown is counted
            teachers = [
                Calibrating(teacher, member, half, *half.load(), threads.enter_context(counting(member.folder, device)))
                for teacher, member in members
                for half in [HalfCalibrated(options, member, wanted, device)]
            ]
            first = min(one.done for one in teachers)
            batches = ahead(groups[first:], lambda part: pixels.start(part, size), BATCHES_AHEAD)
            done = min(first * size, total)
            with Progress("calibrate", total, "images", done) as progress:
                for number, batch in enumerate(batches, start=first):
                    views_BHWC = torch.from_numpy(batch.views_BHWC).to(device)
                    on_device = DeviceBatch(views_BHWC, options.kind.seed, shown(cache, groups[number]))
                    for one in teachers:
                        if one.done == number:
                            one.update(on_device, batch.bad)
                        one.keep_some()
                    progress.advance(len(groups[number]))
                    done += len(groups[number])
                    if stop.made:
                        break
        if stop.made:
            for one in teachers:
                one.keep()
            raise Stopped(
                f"{done} of {total} views of the calibration are done; go on with the same command", stop.number
            )
    return teachers


@contextmanager
def kept_on_signal(teachers: Sequence[Calibrating]) -> Iterator[None]:
    """Keeps what was counted if a signal ends the fits."""
    try:
        yield
    except KeyboardInterrupt:
        with stop_on_signal():  # launchers send a signal twice
            for one in teachers:
                if one.member.calibration() is None:
                    one.keep()
        raise


@contextmanager
def counting(name: str, device: torch.device) -> Iterator[Later]:
    """Gives `later(work)`: in a thread beside an accelerator; at once on the CPU, whose cores the teacher needs.

    Each work limits BLAS to one thread, in the whole process, and then restores what it found. Limited from here on,
    that is never more while others count.
    """
    if device.type == "cpu":
        yield lambda work: work()
        return
    with threadpool_limits(1, "blas"), behind(f"calibrate {name}", BATCHES_BEHIND) as later:
        yield later


def made(calibrators: Sequence[Calibrator], threads: int = 0) -> Iterator[bytes]:
    """The calibration of each teacher, in order; as many are made at once as `threads` says (0: as there are cores).

    Each needs about five times the bytes of its whole images. After a signal, or an error of the first one that
    is not made yet, the others end within seconds.
    """
    ended = Event()

    def check() -> None:
        if ended.is_set():
            raise CancelledError

    def one(calibrator: Calibrator) -> bytes:
        with threadpool_limits(1):
            return calibrator.calibration(check).to_bytes()

    with threadpool_limits(1, "blas"), thread_pool(threads) as pool, dropped(pool):
        try:
            yield from pool.map(one, calibrators)
        finally:
            ended.set()


def check_calibration(cache: Cache, member: Member, crc: int) -> None:
    """CacheError if the member has features made with another calibration than the new one, of checksum `crc`."""
    for unit, before in calibrations_before(cache, member):
        if before != crc:
            raise CacheError(
                f"{cache.location.url}/{member.calibration_name} is missing, and the one made now has checksum {crc}, "
                f"not {before} as when {unit} was made. Put the file back, or give the --shards and --batch-size "
                f"({member.spec.get('batch_size')}) that it was made with, on a machine with the same versions"
            )


def calibrations_before(cache: Cache, member: Member) -> Iterator[tuple[Unit, int]]:
    """The checksum of the calibration that each view's first unit was made with; none for kept pixels."""
    for views, number, segment, tars in cache.committed(member):
        if tars:
            unit = cache.unit(segment, min(tars), views, number)
            crc = member.calibration_of(unit)
            if crc is not None:
                yield unit, crc


def calibration_tars(first: Segment) -> list[int]:
    """The tars of the first segment to sample from: at most 256, evenly."""
    places = np.linspace(0, len(first.names) - 1, min(CALIBRATION_TARS, len(first.names))).astype(int)
    return [int(tar) for tar in np.unique(places)]


def calibration_images(cache: Cache, count: int) -> list[Address]:
    """`count` views for the statistics: evenly over the first segment, from at most 256 of its tars, view 0 first."""
    first = cache.segments[0]
    rows: Sequence[tuple[int, int]] = [
        (tar, row) for tar in calibration_tars(first) for row in range(int(first.counts[tar]))
    ]
    if count < len(rows):
        rows = [rows[int(place)] for place in np.linspace(0, len(rows) - 1, count)]
    views = -(-count // len(rows))
    return [Address(0, tar, row, number) for number in range(views) for tar, row in rows][:count]
