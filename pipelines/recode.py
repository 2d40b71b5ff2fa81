"""Convert a cache into a new one with another codec, another quality or fewer tokens; no teacher runs.

    index, probes -> specs, calibrations -> every unit's rows decoded and encoded -> kept views, byte for byte

All that does not depend on the codec stays: tars, views, pixel checksums, bad images, and the statistics that
standardize. A repeated run makes only what is missing; workers share the tars. Fidelity is measured against the source,
whose own error comes on top: the cosine to the teacher is about the product of the two.
"""

from dataclasses import replace
from functools import partial

from pipelines.clusters.each_device import on_each
from pipelines.clusters.ray_crew import crew
from pipelines.command.device import devices_of, pick_device
from pipelines.command.progress import Progress, say, tell
from pipelines.command.shares import whole_lines
from pipelines.extracting.recorder import BATCHES_AHEAD
from pipelines.extracting.sealing import seal_rest
from pipelines.extracting.unit_rows import UNITS_BEHIND
from pipelines.recoding.copying import copy_views
from pipelines.recoding.one_unit import batches_of, checked, commit, plan, read, recoded
from pipelines.recoding.opening import going_on, open_both
from pipelines.recoding.recoder import Item, Recoder
from pipelines.recoding.summary import Summary
from unic_cache.ahead import ahead, behind, dropped, thread_pool
from unic_cache.cache import Cache
from unic_cache.config import RecodeConfig
from unic_cache.files.schemes import open_location

UNITS_AT_ONCE = 3  # of a worker on Ray: one is read, one is computed, one is written


def run(config: RecodeConfig) -> Summary:
    """Make all units of the source that the target lacks. After an error, all committed units stay valid."""
    devices = devices_of(config.device)
    several = config.ray is not None or len(devices) > 1
    for line in whole_lines(config.num_workers, "all units") if several else ():
        say(line)
    if config.ray is not None:
        shares = [over_ray(config)]
    elif len(devices) == 1:
        shares = [alone(replace(config, device=devices[0]))]
    else:
        shares = on_each(devices, alone, config)
    summary = Summary()
    for share in shares:
        summary.add(share)
    seal_target(config)
    return summary


def seal_target(config: RecodeConfig) -> None:
    """Seal what the target has of the source's views."""
    source, target = (Cache(open_location(place)) for place in (config.source, config.target))
    members = [*(teacher.member for teacher in target.teachers.values()), *([target.pixels] if target.pixels else [])]
    for member in members:
        for views, number, *_ in source.committed(member):
            seal_rest(target, [member], views, [number])  # of other workers too: the last one finds all done


def alone(config: RecodeConfig) -> Summary:
    """Do this worker's share in this process, on one device."""
    device = pick_device(config.device)
    opened = open_both(config, device, config.worker_index)
    tell("opened")
    source, target = opened.source, opened.target
    with going_on(config), thread_pool(config.threads) as pool, dropped(pool):
        # Plan this worker's share.
        work, skipped = plan(config, source, opened.coders)
        summary = Summary(skipped=skipped)

        # Recode unit after unit: rows are read ahead, units are written behind.
        reads = (
            (coder, unit, rows) for unit, lacking in work.items() for coder in lacking for rows in batches_of(unit)
        )
        parts = ahead(reads, lambda one: pool.submit(read, *one).result, BATCHES_AHEAD)
        total = sum(unit.rows * len(lacking) for unit, lacking in work.items())
        with Progress("recode", total, "rows") as progress, behind("writer", UNITS_BEHIND) as later:
            for unit, lacking in work.items():
                for coder, record in checked(opened, unit, lacking).items():
                    arrays = recoded(source, coder, record, parts, progress)
                    later(partial(commit, arrays, record, summary))

        # Copy the kept views as they are.
        if config.views and source.pixels is not None:
            summary.views, there = copy_views(config, source, target, source.pixels, pool)
            summary.skipped += there
    opened.fidelity(summary)
    return summary


def over_ray(config: RecodeConfig) -> Summary:
    """Do this share on a Ray cluster, each unit on any of its workers."""
    with crew(Recoder, config, config.device, config.threads, UNITS_AT_ONCE) as workers:
        prepared: tuple[list[Item], Summary] = workers.prepare()
        items, summary = prepared
        rows = [unit.rows * max(len(lacking), 1) for unit, lacking in items]
        with Progress("recode", sum(rows), "rows") as progress:
            for (unit, lacking), done in workers.map(items):
                summary.add(done)
                progress.advance(unit.rows * max(len(lacking), 1))
    return summary
