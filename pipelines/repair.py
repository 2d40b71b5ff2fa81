"""Un-commit broken units, so that `extract` makes them again.

A broken unit loses its record first, then its data: no record vouches for data that is being deleted. Data that a
killed run left without a record is removed too, since it may block another machine's. Never touched are whole units,
the files that all others depend on (index, spec, calibration), and whatever is not provably broken and the cache's own:
guest folders, records made for other tars, and data whose records are all lost.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

from pipelines.command.caches import tell_guests
from pipelines.verify import Report
from pipelines.verify import run as verify
from unic_cache.config import RepairConfig, VerifyConfig
from unic_cache.files.location import Location
from unic_cache.files.schemes import open_location
from unic_cache.store.commit import Unit
from unic_cache.store.member import Member
from unic_cache.store.unit_check import BY_HAND, REMOVE, REWRITE, UNCOMMIT, UNREADABLE, check_unit, uncommit

Step = tuple[str, Callable[[], None]]  # what it has done, and the function that does it


@dataclass
class Repaired:
    """What `repair` did, or would do, and what needs a person."""

    done: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    to_extract: bool = False  # whether `extract` has work to do

    def lines(self, dry_run: bool) -> list[str]:
        """For people."""
        lines = [f"would have {what}" if dry_run else what for what in self.done]
        lines += [f"cannot be repaired automatically: {what}" for what in self.left]
        if not lines:
            lines.append("nothing is broken")
        if self.to_extract:
            lines.append("run the same `unic-cache extract` to make what is missing")
        return lines


def run(config: RepairConfig) -> Repaired:
    """Verify and mend. No extraction into the cache may run meanwhile. CacheError where there is no cache."""
    report = verify(VerifyConfig(config.cache, threads=config.threads))
    result = Repaired(left=[str(finding) for finding in report.broken if finding.mend == BY_HAND])
    result.left += [
        f"{member}, view {view}: {tars} tars have all their data but no commit record: was {member}/commits lost, or "
        f"not copied yet? Restore it, or remove {member}/features.zarr yourself"
        for (member, view), tars in report.unrecorded.items()
    ]
    tell_guests(config.cache, report.guests)
    for what, how in steps(report, open_location(config.cache)):
        if not config.dry_run:
            how()
        result.done.append(what)
    result.to_extract = bool(report.missing or report.probes) or any(
        one.mend in {UNCOMMIT, REMOVE} for one in report.broken
    )
    return result


def steps(report: Report, location: Location) -> Iterator[Step]:
    """The steps of the repair, each once."""
    seen: set[tuple[str, Unit]] = set()
    for finding in report.broken:
        if finding.mend == REWRITE:
            yield f"rewrote {finding.file}", partial(location.replace, finding.file, finding.content)
        if finding.mend == REMOVE:
            yield f"removed {finding.file}", partial(location.delete, finding.file)
        if finding.mend == UNCOMMIT and finding.unit and (finding.member, finding.unit) not in seen:
            seen.add((finding.member, finding.unit))
            member = Member.open(location, finding.member)
            assert member is not None
            if finding.why.startswith(UNREADABLE) and not check_unit(member, finding.unit).findings:
                continue  # it was the disk or the connection, not the data
            yield f"un-committed {finding.member}, {finding.unit}", partial(uncommit, member, finding.unit)
    for missing in report.missing:
        member, unit = missing.member, missing.unit
        if missing.data and not (member.folder in report.strangers or (member.folder, unit.view) in report.unrecorded):
            yield f"removed leftovers of {member.folder}, {unit}", partial(uncommit, member, unit)
