"""Verify a cache: every file against its checksums, records and the index.

    names -> index, specs, calibrations, probes, zarr.json -> every unit's bytes against its record -> members against
    each other; on request, a sample of views and features made again

A cache is whole if every byte is as committed and no tar lacks a view that its teacher has begun.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from pipelines.clusters.ray_crew import crew
from pipelines.command.progress import Progress, begins
from pipelines.verifying.checker import Checker
from pipelines.verifying.inventory import Missing, Survey, survey
from pipelines.verifying.metadata import check_calibration, check_probes, read_index, read_members
from pipelines.verifying.pixel_agreement import Agreement
from pipelines.verifying.recompute import load_checked, origin, remake_views, run_again
from pipelines.verifying.seals import SealCheck
from unic_cache.ahead import ahead, thread_pool
from unic_cache.cache import Cache
from unic_cache.config import VerifyConfig
from unic_cache.files.location import Location
from unic_cache.files.schemes import open_location
from unic_cache.store.commit import Unit
from unic_cache.store.foreign_folders import sort_folders
from unic_cache.store.member import Member
from unic_cache.store.unit_check import BY_HAND, ELSEWHERE, Finding, UnitState, check_metadata_file, check_unit
from unic_cache.views.segments import no_cache

SHOWN = 20
REMEDIES = {
    "whole": "",
    "broken": ": `unic-cache repair` un-commits what `extract` can make again, and lists what needs a person",
    "incomplete": ": the same `unic-cache extract` completes it",
}
EXIT_CODES = {"whole": 0, "broken": 1, "incomplete": 3}
VIEWS_REMADE = 64
UNITS_AHEAD = 8


@dataclass
class Report:
    """What `verify` found."""

    cache: str
    broken: list[Finding] = field(default_factory=list)
    missing: list[Missing] = field(default_factory=list)  # units
    probes: list[str] = field(default_factory=list)  # missing; `extract` makes them
    foreign: list[str] = field(default_factory=list)  # files of no unit
    guests: dict[str, str] = field(default_factory=dict)  # folders that are not the cache's own -> why
    strangers: set[str] = field(default_factory=set)  # members with another cache's records
    unrecorded: dict[tuple[str, str], int] = field(default_factory=dict)  # member, view without a record -> tars
    units: int = 0  # committed and read
    rows: int = 0
    bytes: int = 0  # of objects
    seconds: float = 0.0  # spent reading them
    views: int = 0  # made again
    cosines: dict[str, float] = field(default_factory=dict)  # teacher -> lowest cosine of the images run again

    @property
    def state(self) -> str:
        """whole, incomplete (run `extract`) or broken (run `repair` first)."""
        if self.broken:
            return "broken"
        return "incomplete" if self.missing or self.probes or not self.units else "whole"

    @property
    def exit_code(self) -> int:
        """0 whole, 1 broken, 3 incomplete."""
        return EXIT_CODES[self.state]

    @property
    def megabytes_per_second(self) -> float:
        """How fast objects were read and checked."""
        return self.bytes / 1e6 / max(self.seconds, 1e-9)

    def lines(self) -> list[str]:
        """For people: broken files first, the summary last."""
        lines = [f"broken: {finding}" for finding in _first(self.broken)]
        lines += [f"missing: {unit}" for unit in (*_first(self.missing), *self.probes)]
        strange = [name for name in self.foreign if name.removesuffix("/") not in self.guests]
        lines += [f"foreign but harmless: {name}" for name in _first(strange)]
        lines += [f"left alone, not this cache's own: {name}/ ({why})" for name, why in self.guests.items()]
        for name, cosine in self.cosines.items():
            lines.append(f"Re-ran {name}: lowest cosine to stored features {cosine:.6f}")
        if self.views:
            lines.append(f"{self.views} views made again")
        rate = f"{self.bytes / 1e6:,.1f} MB in {self.seconds:,.1f} s, {self.megabytes_per_second:,.0f} MB/s"
        lines.append(f"Read {self.units} units of {self.rows:,} rows, {rate}")
        return [*lines, f"{self.cache} is {self.state}{REMEDIES[self.state]}"]

    def to_json(self) -> dict[str, Any]:
        """For `--json`, complete."""
        return {
            "cache": self.cache,
            "state": self.state,
            **{key: getattr(self, key) for key in ("units", "rows", "bytes", "seconds", "megabytes_per_second")},
            "views_remade": self.views,
            "teacher_cosines": self.cosines,
            "broken": [finding.to_json() for finding in self.broken],
            "missing": [*(unit.to_json() for unit in self.missing), *({"file": name} for name in self.probes)],
            "foreign": self.foreign,
            "left_alone": self.guests,
        }


def run(config: VerifyConfig) -> Report:
    """Check a cache and report everything wrong with it. CacheError if there is no cache."""
    location = open_location(config.cache)
    report = Report(config.cache)

    # The files that everything depends on
    _, report.guests = sort_folders(location)
    names = frozenset(location.names(without=report.guests))
    segments = read_index(location, names, report.broken)
    members, lost = read_members(location, names, report.broken)
    if not segments:
        if not report.broken:
            raise no_cache(config.cache)
        return report
    begun = {name.partition("/")[0] for name in names if "/commits/" in name}
    calibrations = {m.folder: check_calibration(m, m.folder in begun, report.broken) for m in members}
    unreadable = {m.folder for m in members if m.needs_calibration and calibrations[m.folder] is None}

    # What there is, by name, and what there should be
    readable = [member for member in members if member.folder not in unreadable]
    found = survey(names, segments, readable, lost | unreadable)
    report.missing, report.unrecorded = found.missing, found.unrecorded()
    report.foreign = [*found.foreign, *(f"{folder}/" for folder in report.guests)]
    report.probes = sorted(found.probes - names)
    report.broken += check_probes(location, names, segments)

    # Every byte; before that, a sample made again, since wrong tars or weights end it early
    begins(
        "verify",
        f"{len(found.committed):,} units of {len(members)} members in {config.cache}",
        "" if config.shards is None else f"{config.pixel_check or VIEWS_REMADE} views to make again",
        f"{config.teacher_check} images per teacher to run again" if config.teacher_check else "",
    )
    with thread_pool(config.threads) as pool:
        report.broken += check_metadata(pool, found)
        if not report.broken:
            make_again(config, location, pool, found, report)
        seals = SealCheck(location, names, segments, {member.folder for member in readable})
        read_all(states(config, pool, found), len(found.committed), calibrations, seals, report)
    report.broken = without_strangers(report)
    return report


def check_metadata(pool: ThreadPoolExecutor, found: Survey) -> list[Finding]:
    """Check every zarr.json that must exist."""
    checked = pool.map(lambda item: check_metadata_file(item[1][0], item[0], item[1][1]), found.metadata.items())
    return [finding for finding in checked if finding is not None]


def make_again(
    config: VerifyConfig, location: Location, pool: ThreadPoolExecutor, found: Survey, report: Report
) -> None:
    """Make a sample of views and features again, as far as the config asks for it, and compare."""
    if config.shards is None and not config.teacher_check:
        return
    cache = Cache(location)
    source = origin(cache, config.shards, pool)
    loaded = load_checked(cache, config.weights, config.device) if config.teacher_check else {}
    if config.shards is not None:
        report.views, different = remake_views(source, found.committed, config.pixel_check or VIEWS_REMADE)
        report.broken += different
    for name, (kept, teacher) in loaded.items():
        units = [unit for member, unit in found.committed if member.folder == kept.member.folder]
        if units:
            report.cosines[name], different = run_again(source, kept, teacher, units, config.teacher_check)
            report.broken += different


def states(config: VerifyConfig, pool: ThreadPoolExecutor, found: Survey) -> Iterator[UnitState]:
    """Every committed unit, read and checked, in order: here, some units ahead, or on a Ray cluster."""
    if config.ray is None:

        def start(item: tuple[Member, Unit]) -> Callable[[], UnitState]:
            return pool.submit(check_unit, *item).result

        yield from ahead(found.committed, start, max(UNITS_AHEAD, 2 * config.threads))
        return
    early: dict[int, UnitState] = {}
    turn = 0
    with crew(Checker, config) as workers:
        items = [(number, member.folder, unit) for number, (member, unit) in enumerate(found.committed)]
        for (number, *_), checked in workers.map(items):
            early[number] = UnitState(*found.committed[number], *checked)
            while turn in early:
                yield early.pop(turn)
                turn += 1


def read_all(
    checked: Iterator[UnitState], count: int, calibrations: Mapping[str, int | None], seals: SealCheck, report: Report
) -> None:
    """Count every committed unit as it was checked, and compare members with each other and with seals."""
    agreement = Agreement(calibrations)
    since = time.perf_counter()
    with Progress("verify", count, "units") as progress:
        for state in checked:
            agreement.add(state)
            seals.add(state)
            report.broken += state.findings
            report.strangers |= {finding.member for finding in state.findings if finding.mend == ELSEWHERE}
            report.units += 1
            report.rows += state.unit.rows
            report.bytes += 0 if state.record is None else state.record.bytes_kept
            report.seconds = time.perf_counter() - since
            progress.advance(1)
            progress.note(f"{report.megabytes_per_second:,.0f} MB/s")
    report.broken += agreement.findings() + seals.findings()


def without_strangers(report: Report) -> list[Finding]:
    """The findings, with one per member of another cache in place of all of its own: nothing of it is broken."""
    broken = report.broken
    for member in sorted(report.strangers):
        others = [finding for finding in broken if finding.member == member and finding.mend == ELSEWHERE]
        why = (
            f"{others[0].why} (and {len(others) - 1} more): {member}/ was copied from a cache of other tars, or index/ "
            "was. Nothing in it is broken: restore the right index, or move the folder out of this cache"
        )
        rest = [finding for finding in broken if finding.member != member]
        broken = [*rest, Finding(others[0].file, why, BY_HAND, member, others[0].unit)]
    return broken


def _first(items: Sequence[Any]) -> list[str]:
    rest = [f"... and {len(items) - SHOWN:,} more; --json lists all"] if len(items) > SHOWN else []
    return [*map(str, items[:SHOWN]), *rest]
