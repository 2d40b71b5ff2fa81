"""How far stage one is, told by the cache alone: units done and missing, rate, time left, workers seen.

Commit records hold neither time nor host, so times are those that the store notes when a file is written. Nothing is
read but the index, specs, calibrations and seals; listings are as long as the part of the cache that is not sealed yet.
"""

import json
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from rich.console import Group
from rich.live import Live
from rich.table import Table

from pipelines.command.caches import opened
from pipelines.command.printing import print_table, results
from pipelines.reporting.units_done import Rate, ViewDone, rate_of, survey, workers_seen
from unic_cache.config import StatusConfig

Report = dict[str, Any]


def run(config: StatusConfig) -> Iterator[Report]:
    """The report as JSON-ready data; with --watch again and again until nothing is missing. CacheError: no cache."""
    whole: dict[tuple[str, int, str], ViewDone] = {}
    seen: set[int] = set()
    while True:
        cache = opened(config.cache)
        views = survey(cache, whole)
        workers = workers_seen(views)
        seen |= workers or set()
        yield report(config.cache, views, None if workers is None else sorted(seen))
        if not config.watch or (views and not any(one.missing for one in views)):
            return
        time.sleep(config.every)


def report(cache: str, views: list[ViewDone], workers: list[int] | None) -> Report:
    """What was found, in plain data; times are ISO 8601 in UTC."""
    rate, now = rate_of(views), time.time()
    members: dict[str, Any] = {}
    for one in views:
        made = one.member.spec.get("teacher", {}).get("name", one.member.folder)
        own = members.setdefault(str(made), {"done": 0, "missing": 0, "images_missing": 0, "views": {}})
        view = own["views"].setdefault(one.view, {"done": 0, "missing": 0})
        lacking = one.missing
        for counts in (own, view):
            counts["done"] += len(one.done)
            counts["missing"] += len(lacking)
        own["images_missing"] += int(one.segment.counts[lacking].sum())
    done, missing = (sum(own[key] for own in members.values()) for key in ("done", "missing"))
    found = {"cache": cache, "state": state_of(done, missing, rate, now), "done": done, "missing": missing}
    return {**found, **pace(rate, now, missing), "workers_seen": workers, "members": members}


def state_of(done: int, missing: int, rate: Rate | None, now: float) -> str:
    """empty, complete, running, or idle: nothing was written for a while."""
    if not done:
        return "empty"
    if not missing:
        return "complete"
    return "running" if rate is not None and rate.running(now) else "idle"


def pace(rate: Rate | None, now: float, missing: int) -> Report:
    """The rate and what follows from it; None where the times do not tell."""
    if rate is None:
        return dict.fromkeys(("units_per_hour", "images_per_second", "measured_over_s", "last_record", "left_s"))
    running = rate.running(now)
    return {
        "units_per_hour": round(3600 * rate.units, 1),
        "images_per_second": round(rate.images, 1),
        "measured_over_s": round(rate.seconds),
        "last_record": datetime.fromtimestamp(rate.last, UTC).isoformat(timespec="seconds"),
        "left_s": round(missing / rate.units) if running or not missing else None,
    }


def show(reports: Iterator[Report], as_json: bool = False) -> None:
    """Print each report, on a terminal in the place of the one before, or as a line of JSON. Ctrl-C ends it."""
    console = results()
    try:
        if as_json:
            for one in reports:
                print(json.dumps(one), flush=True)
            return
        if not console.is_terminal:
            for one in reports:
                table, lines = drawn(one)
                print_table(console, table)
                console.print("\n".join(lines))
            return
        with Live(console=console, auto_refresh=False) as live:
            for one in reports:
                table, lines = drawn(one)
                live.update(Group(table, *lines), refresh=True)
    except KeyboardInterrupt:
        return


def drawn(found: Mapping[str, Any]) -> tuple[Table, list[str]]:
    """A table of members, and lines on the whole."""
    table = Table(box=None, padding=(0, 2))
    for heading in ("teacher", "views", "units", "missing", "done"):
        is_name = heading == "teacher"
        table.add_column(heading, justify="left" if is_name else "right", no_wrap=not is_name, overflow="fold")
    for name, own in found["members"].items():
        every = own["done"] + own["missing"]
        share = f"{100 * own['done'] / max(every, 1):.1f} %"
        table.add_row(name, str(len(own["views"])), f"{own['done']:,}/{every:,}", f"{own['missing']:,}", share)
    return table, [f"{found['cache']}: {found['done']:,} units done, {found['missing']:,} missing; {words(found)}"]


def words(found: Mapping[str, Any]) -> str:
    """State, rate, time left and workers, as far as they are known."""
    parts = [found["state"]]
    if found["state"] == "idle" and found["last_record"]:
        parts = [f"nothing written since {found['last_record']}; the same `unic-cache extract` continues"]
    if found["units_per_hour"] is not None and found["state"] in {"running", "idle"}:
        over = timedelta(seconds=found["measured_over_s"])
        parts.append(
            f"{found['units_per_hour']:,.0f} units/h, {found['images_per_second']:,.1f} images/s over the last {over}"
        )
    if found["state"] == "running" and found["left_s"] is not None:
        parts.append(f"{timedelta(seconds=found['left_s'])} left")
    if found["workers_seen"] and found["state"] == "running":
        parts.append(f"workers seen writing: {', '.join(map(str, found['workers_seen']))}")
    return ", ".join(parts)
