"""How far an extraction is, by seals and by the names and times of commit records: no record is read.

Wanted is what `verify` expects: every tar of a segment under every view that its member has begun, if some member has
begun the view in that segment. No records are listed of a run of tars whose seal fits, but for the run that each view
sealed last: so every record that is younger than all other seals has been seen, and only those tell the rate.
"""

import re
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from unic_cache.cache import Cache
from unic_cache.files.local import LocalFolder
from unic_cache.store.commit import view_called
from unic_cache.store.layout import SEALS, commit_folder, view_folder
from unic_cache.store.member import Member
from unic_cache.store.seal import runs, tars_of
from unic_cache.views.index import Segment

WINDOW = 3600.0  # seconds before the youngest record, which tell the rate
STILL = 600.0  # seconds without a record after which extraction does not seem to run, unless units take so long
FOLDERS_LOOKED_AT = 4  # for temporary files, the ones written last
TEMPORARY = re.compile(r"\.tmp-(\d+)-")

Times = dict[int, float | None]  # tar -> when its record was written, seconds since 1970; None if the store is silent


@dataclass
class ViewDone:
    """One member's records of one view in one segment."""

    member: Member
    segment: Segment
    view: str
    done: Collection[int]  # tars
    times: Times = field(default_factory=dict)  # of the records listed, by tar
    since: float = 0.0  # all records younger than this are listed

    @property
    def missing(self) -> list[int]:
        """The tars without a record."""
        return [] if isinstance(self.done, range) else sorted(set(range(len(self.segment.names))) - set(self.done))

    @property
    def newest(self) -> float:
        """When the youngest record was written."""
        return max((at for at in self.times.values() if at is not None), default=0.0)


@dataclass(frozen=True)
class Rate:
    """Records per second within a while before the youngest."""

    units: float  # per second
    images: float  # per second
    seconds: float  # of the while
    last: float  # when the youngest was written, seconds since 1970

    def running(self, now: float) -> bool:
        """Whether the youngest record is not much older than the records are apart."""
        return now - self.last < max(STILL, 10 / self.units)


def survey(cache: Cache, whole: dict[tuple[str, int, str], ViewDone]) -> list[ViewDone]:
    """All views of all members, by segment. Those in `whole` are not listed again, and whole ones are added."""
    members = [*(teacher.member for teacher in cache.teachers.values()), *cache.uncalibrated.values()]
    members += [] if cache.pixels is None else [cache.pixels]
    begun = {
        (member.folder, segment.number): [
            folder
            for folder in cache.location.folders(f"{member.folder}/commits/{segment.number:06d}")
            if view_called(folder)
        ]
        for member in members
        for segment in cache.segments
    }
    found = []
    for member in members:
        own = sorted({view for segment in cache.segments for view in begun[member.folder, segment.number]})
        for segment in cache.segments:
            views = {view for other in members for view in begun[other.folder, segment.number]}
            for view in [view for view in own if view in views]:
                place = member.folder, segment.number, view
                one = whole.get(place) or listed(member, segment, view)
                if not one.missing:
                    whole[place] = one
                found.append(one)
    return found


def listed(member: Member, segment: Segment, view: str) -> ViewDone:
    """One view, from its seals that fit, and a listing of the records in runs without one, or sealed last."""
    tars, folder = len(segment.names), commit_folder(member.folder, segment.number, view)
    if not runs(tars):
        every = _by_number(member.location.times_between(folder, "", "~"))
        return ViewDone(member, segment, view, every.keys() & set(range(tars)), every)
    times = _by_number(member.location.times_between(f"{member.folder}/{SEALS}/{segment.number:06d}/{view}", "", "~"))
    seals = {run: times.get(run) for run in member.seals.fitting(segment.number, view, segment.counts)}
    last = max(seals, key=lambda run: seals[run] or 0.0, default=None)
    wanted = [run for run in runs(tars) if run not in seals or run == last]
    records: Times = {}
    for first, stop in _stretches(wanted):
        between = tars_of(first, tars).start, tars_of(stop, tars).stop
        records |= _by_number(member.location.times_between(folder, *(f"{tar:06d}" for tar in between)))
    since = max((at or 0.0 for run, at in seals.items() if run != last), default=0.0)
    sealed = [tars_of(run, tars) for run in seals]
    done = range(tars) if len(sealed) == len(runs(tars)) else set(records).union(*sealed)
    return ViewDone(member, segment, view, done, records, since)


def rate_of(views: Sequence[ViewDone]) -> Rate | None:
    """How fast records came in the last hour before the youngest one; None if the times do not tell."""
    newest = max((one.newest for one in views), default=0.0)
    first = max([newest - WINDOW, *(one.since for one in views)])
    found = sorted(
        (at, int(one.segment.counts[tar]))
        for one in views
        if one.newest > first
        for tar, at in one.times.items()
        if at is not None and at > first
    )
    seconds = found[-1][0] - found[0][0] if found else 0.0
    if seconds <= 0:
        return None
    images = sum(rows for _, rows in found[1:])
    return Rate((len(found) - 1) / seconds, images / seconds, seconds, newest)


def workers_seen(views: Sequence[ViewDone]) -> set[int] | None:
    """Workers whose temporary files lie where records were written last; None if the store has no such files.

    A worker has one only while it writes.
    """
    seen: set[int] = set()
    for one in sorted(views, key=lambda one: -one.newest)[:FOLDERS_LOOKED_AT]:
        location, segment = one.member.location, one.segment.number
        if not isinstance(location, LocalFolder):
            return None
        arrays = view_folder(one.member.folder, segment, one.view)
        folders = [f"{arrays}/{name}" for name in location.folders(arrays)]
        for folder in (commit_folder(one.member.folder, segment, one.view), *folders):
            times = location.times_between(folder, ".tmp-", ".tmp-~")
            fresh = [name for name, at in times.items() if at is not None and time.time() - at < STILL]
            seen |= {int(match[1]) for name in fresh if (match := TEMPORARY.match(name.rpartition("/")[2]))}
    return seen


def _by_number(times: dict[str, float | None]) -> Times:
    stems = {name.rpartition("/")[2].removesuffix(".json"): at for name, at in times.items() if name.endswith(".json")}
    return {int(stem): at for stem, at in stems.items() if stem.isdigit()}


def _stretches(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """First and last of each stretch of consecutive numbers."""
    found: list[tuple[int, int]] = []
    for number in numbers:
        if found and number == found[-1][1] + 1:
            found[-1] = found[-1][0], number
        else:
            found.append((number, number))
    return found
