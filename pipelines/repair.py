"""Un-commit what is broken, so that `extract` makes it again.

A broken unit loses its record first and its data then, so that nothing is ever vouched for that is going. What a killed
run left without a record goes too: it may stand in the way of another machine's. Whole units are never touched, nor is
what all others hang on: index, spec and calibration. Nor is what nothing proves to be broken and the cache's own:
folders that are guests, records that were made for other tars, and data whose records were all lost.
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
from unic_cache.store.verify import BY_HAND, REMOVE, REWRITE, UNCOMMIT, UNREADABLE, Finding, check_unit, uncommit

Step = tuple[str, Callable[[], None]]  # what it is called, and how it is done


@dataclass
class Repaired:
    """What was done, or would be, and what nobody but a person can mend."""

    done: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    to_extract: bool = False  # whether `extract` has something to make

    def lines(self, dry_run: bool) -> list[str]:
        """For people."""
        lines = [f"would have {what}" if dry_run else what for what in self.done]
        lines += [f"cannot be mended here: {what}" for what in self.left]
        if not lines:
            lines.append("nothing is broken")
        if self.to_extract:
            lines.append("run the same `unic-cache extract` to have what is missing made")
        return lines


def run(config: RepairConfig) -> Repaired:
    """Verify and mend. No extraction into the cache may run meanwhile. CacheError where there is no cache."""
    report = verify(VerifyConfig(config.cache, threads=config.threads))
    result = Repaired(left=[str(finding) for finding in report.broken if finding.mend == BY_HAND])
    result.left += [
        f"{member}, view {view}: {tars} tars have all their data and not one commit record: was {member}/commits lost, "
        f"or not copied yet? Put it back, or remove {member}/features.zarr yourself"
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
    """What is to be done, each thing once."""
    seen: set[tuple[str, Unit]] = set()
    for finding in report.broken:
        if finding.mend == REWRITE:
            yield f"wrote {finding.file} anew", partial(location.replace, finding.file, finding.content)
        if finding.mend == REMOVE:
            yield f"removed {finding.file}", partial(location.delete, finding.file)
        if finding.mend == UNCOMMIT and finding.unit and (finding.member, finding.unit) not in seen:
            seen.add((finding.member, finding.unit))
            if finding.why.startswith(UNREADABLE) and not check_unit(_member(location, finding), finding.unit).findings:
                continue  # it was the disk or the connection, not the data
            yield f"un-committed {finding.member}, {finding.unit}", partial(_uncommit, location, finding)
    for unit in report.missing:
        place = unit.member.folder, unit.unit.view
        if unit.data and unit.member.folder not in report.strangers and place not in report.unrecorded:
            yield (
                f"removed what was left of {unit.member.folder}, {unit.unit}",
                partial(uncommit, unit.member, unit.unit),
            )


def _uncommit(location: Location, finding: Finding) -> None:
    assert finding.unit is not None
    uncommit(_member(location, finding), finding.unit)


def _member(location: Location, finding: Finding) -> Member:
    member = Member.open(location, finding.member)
    assert member is not None
    return member
