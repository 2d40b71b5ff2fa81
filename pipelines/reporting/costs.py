"""What it cost, as tables: the bytes of a cache, and the hours of runs."""

from collections.abc import Sequence

from pipelines.reporting.holdings import views_of
from pipelines.reporting.inputs import Run
from unic_cache.cache import Cache
from unic_cache.evaluate.page import Grid


def cache_table(cache: Cache) -> Grid:
    """Codec, views, bytes per image and in all of each teacher, from the commit records."""
    rows = []
    total = 0
    members = {name: (teacher.member, str(teacher.spec["codec"])) for name, teacher in cache.teachers.items()}
    if cache.pixels is not None:
        members["kept views"] = cache.pixels, str(cache.pixels.spec.get("codec", ""))
    for name, (member, codec) in members.items():
        views = views_of(cache, member).values()
        images, size = (sum(view[key] for view in views) for key in ("images", "bytes"))
        total += size
        each = f"{size / images:,.0f}" if images else ""
        rows.append([name, codec, f"{images:,}", each, f"{size / 1e6:,.1f}"])
    rows.append(["all", "", "", "", f"{total / 1e6:,.1f}"])
    return Grid("Cache", ["teacher", "codec", "views of images", "bytes a view", "MB"], rows)


def run_table(runs: Sequence[Run]) -> Grid | None:
    """Steps, images, hours, images per second and the share of time spent waiting; None if no log has rates."""
    rows = []
    for run in runs:
        if run.cost is not None:
            last = int(run.training.records[-1]["step"])
            rows.append(
                [
                    run.label,
                    f"{last:,}",
                    f"{run.cost.images:,}",
                    f"{run.cost.hours:.2f}",
                    f"{run.cost.images_per_second:,.1f}",
                    f"{100 * run.cost.waiting:.1f}",
                ]
            )
    head = ["run", "steps", "images", "hours", "images/s", "waiting for data %"]
    return Grid("Runs", head, rows) if rows else None
