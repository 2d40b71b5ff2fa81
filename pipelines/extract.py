"""Stage one: every teacher sees each view of each image once, and its features are stored.

    tar -> decode -> view -> teacher -> standardize -> encode -> Zarr objects -> commit record

A repeated run makes only what is missing: more views, more teachers, added tars, or the rest after a crash.
"""

from dataclasses import replace
from functools import partial

from pipelines.clusters.each_device import on_each
from pipelines.clusters.ray_crew import crew
from pipelines.command.device import devices_of, pick_device
from pipelines.command.progress import Progress, say, tell
from pipelines.command.shares import whole_lines
from pipelines.extracting.defaults import kept_alike, settled
from pipelines.extracting.filler import Filler, Item
from pipelines.extracting.filling import (
    Summary,
    batches_of,
    check_idle,
    commit,
    fill,
    open_recorders,
    plan,
    tell_fidelity,
)
from pipelines.extracting.opening import open_teachers
from pipelines.extracting.opening_options import OpeningOptions
from pipelines.extracting.recorder import BATCHES_AHEAD
from pipelines.extracting.sealing import seal_rest
from pipelines.extracting.unit_rows import UNITS_BEHIND, UnitRows
from unic_cache.ahead import ahead, behind, dropped, thread_pool
from unic_cache.cache import Cache
from unic_cache.config import ExtractConfig
from unic_cache.errors import EmptyShardError
from unic_cache.files.schemes import open_location
from unic_cache.stream.sealing import LastUnits

UNITS_AT_ONCE = 3  # of a worker on Ray: one's views are made, one is shown to the teachers, one is written


def run(config: ExtractConfig) -> Summary:
    """Extend the cache to all that the config asks for; to nothing if every tar is empty.

    After an error, all committed units stay valid.
    """
    devices = devices_of(config.device)
    if config.ray is None and len(devices) == 1:
        summary = alone(replace(config, device=devices[0]))
        tell_fidelity(config.cache, summary)
        return summary
    for line in whole_lines(config.num_workers, "all units"):
        say(line)
    summary = Summary()
    for share in [over_ray(config)] if config.ray is not None else on_each(devices, alone, config):
        summary.add(share)
    seal_done(config)
    tell_fidelity(config.cache, summary)
    return summary


def seal_done(config: ExtractConfig) -> None:
    """Seal what several workers have done together: none of them knows when the others end."""
    cache = Cache(open_location(config.cache))
    config = settled(config, cache)
    members = [*(teacher.member for teacher in cache.teachers.values()), *([cache.pixels] if cache.pixels else [])]
    seal_rest(cache, members, config.kind, range(config.count))


def alone(config: ExtractConfig) -> Summary:
    """Do this worker's share in this process, on one device."""
    device, before = pick_device(config.device), Cache(open_location(config.cache))
    config = kept_alike(settled(config, before), before)
    with thread_pool(config.threads) as pool, dropped(pool):
        # Open the cache and the teachers; calibrate new ones.
        try:
            opened = open_teachers(OpeningOptions.of(config), pool, device)
        except EmptyShardError as error:  # no view is missing
            say(str(error))
            return Summary()
        recorders = open_recorders(config, opened)
        tell("opened")

        # Plan this worker's share: the units that some member lacks.
        work, skipped = plan(config, opened, recorders)
        check_idle(opened, work)
        summary, rows_left, last = Summary(skipped=skipped), sum(unit.rows for unit in work), LastUnits(work)

        # Fill unit after unit: views are made ahead of the teachers, units are written behind them. All batches have
        # one size, their last slots empty: the last bit of a feature may depend on it.
        size, start = config.batch_size, opened.pixels.start
        batches = ahead(batches_of(work, size), lambda wanted: start(wanted, size), BATCHES_AHEAD)
        with Progress("extract", rows_left, "images") as progress, behind("writer", UNITS_BEHIND) as later:
            for unit, lacking in work.items():
                rows = UnitRows(unit, lacking, opened.cache.pixels_seen(unit))
                for wanted in batches_of([unit], size):
                    fill(config, opened, rows, wanted, next(batches), device, summary)
                    progress.advance(len(wanted))
                seal = partial(last.seal_after, opened.cache, unit, [one.member for one in lacking])
                later(partial(commit, rows, summary, seal))
                summary.units += 1
                summary.images += unit.rows
                progress.note(f"{summary.bytes / 1e6:,.0f} MB kept")
        members = [one.member for one in recorders.values()]
        share = config.worker_index, config.num_workers
        seal_rest(opened.cache, members, config.kind, range(config.count), share)
    return summary


def over_ray(config: ExtractConfig) -> Summary:
    """Do this share on a Ray cluster, each unit on any of its workers."""
    before = Cache(open_location(config.cache))
    config = kept_alike(settled(config, before), before)
    with crew(Filler, config, config.device, config.threads, UNITS_AT_ONCE) as workers:
        prepared: tuple[list[Item], Summary] = workers.prepare()
        items, summary = prepared
        with Progress("extract", sum(unit.rows for unit, _ in items), "images") as progress:
            for (unit, _), done in workers.map(items):
                summary.add(done)
                progress.advance(unit.rows)
                progress.note(f"{summary.bytes / 1e6:,.0f} MB kept")
    return summary
