"""Make seals: whoever completes a run of a thousand tars reads their commit records once more and sums them up."""

from collections.abc import Iterable, Sequence

from unic_cache.cache import Cache
from unic_cache.config import Views
from unic_cache.errors import BrokenError
from unic_cache.store.commit import Unit
from unic_cache.store.member import Member
from unic_cache.store.seal import Seal, Seals, run_of, runs, tars_of


def seal_of(cache: Cache, member: Member, segment: int, view: str, run: int) -> Seal | None:
    """The seal of a run by its records; None if one is missing. BrokenError for a broken record."""
    tars = tars_of(run, cache.extent(segment).shards)
    records = [record for tar in tars if (record := member.record(cache.unit(segment, tar, view))) is not None]
    return Seal.of(records) if len(records) == len(tars) else None


def seal_runs(cache: Cache, member: Member, segment: int, view: str, wanted: Sequence[int]) -> int:
    """Make the seals of those runs whose records are all there; their number. A broken record prevents its seal."""
    if not wanted:
        return 0
    tars, made = cache.extent(segment).shards, 0
    there = member.recorded(segment, view, range(tars_of(wanted[0], tars).start, tars_of(wanted[-1], tars).stop))
    for run in wanted:
        if not there.issuperset(tars_of(run, tars)):
            continue
        try:
            seal = seal_of(cache, member, segment, view, run)
        except BrokenError:  # `verify` tells
            continue
        if seal is not None:
            made += member.location.create(seal.name, seal.to_bytes())
    return made


def seal_whole_runs(
    cache: Cache, member: Member, views: Views, numbers: Sequence[int], share: tuple[int, int] = (0, 1)
) -> int:
    """Make the seals that a member lacks under these views, or this worker's `share` of them: index and number."""
    seals, (index, workers) = Seals(member.location, member.folder, member.calibration_crc), share
    made = 0
    for segment in cache.segments:
        for view in map(views.name, numbers) if runs(len(segment.shards)) else ():
            mine = [run for run in runs(len(segment.shards)) if run % workers == index]
            wanted = [run for run in mine if not seals.has(segment.number, view, run)]
            made += seal_runs(cache, member, segment.number, view, wanted)
    return made


class LastUnits:
    """Tells the last unit of each run that a worker makes, after which the run may be whole."""

    def __init__(self, work: Iterable[Unit]) -> None:
        self._last = {self._run(unit): unit for unit in work if runs(unit.extent.shards)}

    def seal_after(self, cache: Cache, unit: Unit, members: Iterable[Member]) -> None:
        """Seal the unit's run for these members, if `unit` is its last and every other worker has done its own."""
        if self._last.get(self._run(unit)) == unit:
            for member in members:
                seal_runs(cache, member, unit.segment, unit.view, [run_of(unit.shard)])

    @staticmethod
    def _run(unit: Unit) -> tuple[int, int, str]:
        return unit.segment, run_of(unit.shard), unit.view
