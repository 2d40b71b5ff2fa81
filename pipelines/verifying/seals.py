"""Check each seal against the commit records that it stands for: made again from them, it has the same bytes."""

from collections.abc import Collection, Sequence

from unic_cache.files.location import Location
from unic_cache.store.commit import CommitRecord
from unic_cache.store.seal import SEAL_FILE, Seal, run_of, runs, seal_name, tars_of
from unic_cache.store.unit_check import REMOVE, Finding, UnitState
from unic_cache.views.index import Segment


class SealCheck:
    """Takes every unit's state once, run by run; `findings` then lists the seals that do not fit.

    Only seals of `members`, by folder: of others no unit is read.
    """

    def __init__(
        self, location: Location, names: Collection[str], segments: Sequence[Segment], members: Collection[str]
    ) -> None:
        self._location = location
        self._tars = {segment.number: len(segment.shards) for segment in segments}
        self._left = {name for name in names if (seal := SEAL_FILE.fullmatch(name)) and seal["member"] in members}
        self._records: dict[str, list[CommitRecord]] = {}  # of the runs that are half seen
        self._found: list[Finding] = []

    def add(self, state: UnitState) -> None:
        """Take one unit of one member."""
        unit, record = state.unit, state.record
        tars = self._tars[unit.segment]
        run = run_of(unit.shard)
        name = seal_name(state.member.folder, unit.segment, unit.view, run)
        if record is None or name not in self._left or run not in runs(tars):
            return
        records = self._records.setdefault(name, [])
        records.append(record)
        if len(records) == len(tars_of(run, tars)):
            self._left.remove(name)
            seal = Seal.of(self._records.pop(name))
            if seal is None or self._location.read(name) != seal.to_bytes():
                self._found.append(_finding(name, "does not say what its commit records say"))

    def findings(self) -> list[Finding]:
        """The seals that are damaged, or stand for records that are not all there."""
        return self._found + [_finding(name, "not all of its commit records are there") for name in sorted(self._left)]


def _finding(name: str, why: str) -> Finding:
    why = f"{why}; nothing is lost with it, and `unic-cache extract` makes it again"
    return Finding(name, why, REMOVE, name.partition("/")[0])
