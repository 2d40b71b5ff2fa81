"""Report what a cache holds, from its index, specs, calibrations and commit records, without reading features.

With --pictures, features and pixels of a few images are read too, and drawn as a page.
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from pipelines.command.caches import opened
from pipelines.command.preflight import DEFAULT_SHARDS
from pipelines.command.printing import print_table, results
from pipelines.command.progress import begins
from pipelines.command.run_folder import run_settings
from pipelines.reporting.cache_pictures import IMAGES, codec_section, token_section, view_section
from pipelines.reporting.folder import check_free, write_page
from pipelines.reporting.hardest import hardest_section
from pipelines.reporting.holdings import sizes_of, views_of
from pipelines.reporting.images import evenly, given_tars, open_source, readable, shared_views
from pipelines.training.finished_run import open_finished
from unic_cache.ahead import thread_pool
from unic_cache.cache import Cache
from unic_cache.config import CENTER, FITTED, DistillConfig, InspectConfig
from unic_cache.errors import CacheError
from unic_cache.evaluate.page import Page, Section
from unic_cache.store.calibrate import to_teacher
from unic_cache.store.layout import VIEWS_MEMBER
from unic_cache.stream.held_out import held_out
from unic_cache.stream.matched import Tars

MEASURED, AT_ONCE = 1000, 32  # images whose loss is measured: at most, and together


def run(config: InspectConfig) -> dict[str, Any]:
    """The report as JSON-ready data: segments, and for each teacher and the kept pixels their views."""
    cache = opened(config.cache)
    teachers = {
        name: {
            **{key: teacher.spec[key] for key in ("codec", "dtype", "features", "provenance", "versions")},
            "weights_sha256": teacher.spec["teacher"]["weights_sha256"],
            "calibration": {
                "file": teacher.member.calibration_name,
                "fidelity": (fidelity := dict(teacher.calibration.fidelity)),
                "to_teacher": to_teacher(fidelity, teacher.spec),
            },
            **{key: teacher.spec.get(key) for key in ("quality", "cls_quality", "tokens")},
            "coder": teacher.codec.features.coder if teacher.spec["codec"] == FITTED else None,
            "sampling": features.sampling if (features := teacher.codec.features).sampled and features.grid else None,
            **sizes_of(teacher.member, views := views_of(cache, teacher.member)),
            "views": views,
        }
        for name, teacher in cache.teachers.items()
    }
    report: dict[str, Any] = {
        "cache": config.cache,
        "segments": [
            {"shards": len(segment.shards), "images": int(segment.counts.sum())} for segment in cache.segments
        ],
        "teachers": teachers,
        "uncalibrated": {name: views_of(cache, member) for name, member in cache.uncalibrated.items()},
    }
    if held := held_out(cache):
        report["held_out"] = list(held)
    if cache.guests:
        report["left_alone"] = cache.guests
    if cache.pixels is not None:
        report["kept_views"] = {**sizes_of(cache.pixels, views := views_of(cache, cache.pixels)), "views": views}
    if config.pictures is not None:
        report["pictures"] = str(draw(config, cache))
    return report


def draw(config: InspectConfig, cache: Cache) -> Path:
    """Draw the cache, and what a student finds hardest in it, into the folder --pictures; return the page's path."""
    out = str(config.pictures)
    check_free(out)
    teachers = readable(cache)
    run = None if config.student is None else run_settings(Path(config.student))
    tars = tars_of(config, run, cache)
    begins("inspect", f"pictures of {config.cache}", f"into {out}")
    with thread_pool(config.threads) as pool:
        sources = [open_source(cache, teachers, views, tars, pool) for views in shared_views(cache, teachers)]
        trained = [source for source in sources if source.views.recipe != CENTER][-1:]
        centered = [source for source in sources if source.views.recipe == CENTER][-1:]

        # Views and tokens: of images whose pixels are there
        sections = [section for source in trained or centered if (section := view_section(source)) is not None]
        chosen = next(((s, wanted) for s in centered + trained if (wanted := s.spread(0, IMAGES))), None)
        if chosen is None:
            raise CacheError(
                f"{config.cache}: no image to draw: it keeps no views that all its teachers have, and no tar was given "
                "that they saw; name its tars with --shards"
            )
        source, wanted = chosen
        batch = source.batch(wanted)
        sections += [token_section(source, wanted, batch), codec_section(source, batch)]

        # Hardest images: by the student's loss
        if run is not None:
            sections.append(hardest(Path(str(config.student)), run, cache, tars, pool))
    title = f"What {config.cache} holds"
    return write_page(out, Page(title, "Made by unic-cache inspect --pictures.", sections))


def tars_of(config: InspectConfig, run: DistillConfig | None, cache: Cache) -> Tars:
    """The tars given; or none, if the cache keeps its views; or the run's; or else shards/*.tar."""
    if config.shards is not None:
        return given_tars(cache, config.shards)
    if cache.pixels is not None:
        return {}
    named = () if run is None else (run.shards, run.val_shards)
    found: Tars = {}
    for pattern in [name for name in named if name] or [DEFAULT_SHARDS]:
        found = {**found, **given_tars(cache, pattern)}
    return found


def hardest(folder: Path, settings: DistillConfig, cache: Cache, tars: Tars, pool: ThreadPoolExecutor) -> Section:
    """The student's loss on held-out images, or without any on those it trained on: at most MEASURED of them."""
    student = open_finished(folder, settings, cache)
    source = open_source(cache, student.teachers, student.snapshot.views, tars, pool)
    number, rows = student.snapshot.numbers[0], student.rows(cache)
    there = {cache.shards()[name] for name in source.tars(number)}
    every = [rows.address(place, number) for place in range(len(rows))]
    wanted = evenly([item for item in every if (item.segment, item.shard) in there], MEASURED)
    if not wanted:
        raise CacheError(f"{folder}: none of its images' pixels can be had; name their tars with --shards")
    groups = [wanted[start : start + AT_ONCE] for start in range(0, len(wanted), AT_ONCE)]
    losses_nN = np.concatenate([student.losses(source.batch(group)).numpy() for group in groups], axis=1)
    side = "held out of training" if student.held_out else "that it was trained on, as the run held none out"
    about = (
        f"{folder} after {student.steps:,} steps, on {len(wanted):,} of {len(rows):,} images {side}, under view "
        f"{student.snapshot.views.name(number)}: the loss that training minimizes, with no teacher dropped."
    )
    return hardest_section(source, wanted, losses_nN, about)


def show(report: Mapping[str, Any]) -> None:
    """Print the report: a paragraph and a table of views per member."""
    console = results()
    console.soft_wrap = True
    images = sum(segment["images"] for segment in report["segments"])
    shards = sum(segment["shards"] for segment in report["segments"])
    console.print(f"{report['cache']}: {images:,} images in {shards} shards, {len(report['segments'])} segment(s)")
    if "held_out" in report:
        console.print(f"held out of training: {', '.join(report['held_out'])}")
    for name, teacher in report["teachers"].items():
        each = ", ".join(f"{array} {size:,.0f}" for array, size in teacher["bytes_per_token"].items())
        fidelity = ", ".join(f"{kind} {value:.5f}" for kind, value in teacher["calibration"]["to_teacher"].items())
        how = "estimated over its recodings" if teacher["provenance"].get("recoded_from") else "cosine"
        console.print(f"\n{name}", style="bold", end="")
        coder = f" {teacher['coder']}" if teacher["coder"] else ""
        tokens = f", {teacher['tokens']} {teacher['sampling']} tokens" if teacher["sampling"] else ""
        console.print(f"  codec {teacher['codec']}{coder}{tokens}, {teacher['bytes_per_image']:,} bytes per image")
        console.print(f"  bytes per token: {each}\n  fidelity ({how}): {fidelity}")
        print_table(console, view_table(teacher["views"]))
    for name, views in report["uncalibrated"].items():
        console.print(f"\n{name}", style="bold")
        console.print("  no calibration (yet, or it is lost); the same `unic-cache extract` makes it")
        print_table(console, view_table(views))
    if "kept_views" in report:
        console.print(f"\n{VIEWS_MEMBER}", style="bold", end="")
        console.print(f"  pixels, {report['kept_views']['bytes_per_image']:,} bytes per image")
        print_table(console, view_table(report["kept_views"]["views"]))
    if "pictures" in report:
        console.print(f"\nThe pictures are {report['pictures']}")


def view_table(views: Mapping[str, Any]) -> Table:
    """One line per view: shards done of all, the first missing ones, bad images, megabytes."""
    table = Table(box=None, padding=(0, 2))
    for heading in ("view", "shards", "missing", "bad", "MB"):
        is_name = heading in {"view", "missing"}
        table.add_column(heading, justify="left" if is_name else "right", no_wrap=not is_name, overflow="fold")
    for view, state in views.items():
        missing = state["missing"]
        named = ", ".join(missing[:2]) + (f" and {len(missing) - 2} more" if len(missing) > 2 else "")
        done = f"{state['done']}/{state['done'] + len(missing)}"
        table.add_row(view, done, named, str(state["bad"]), f"{state['bytes'] / 1e6:,.1f}")
    return table
