"""Report what a cache holds, from its index, specs, calibrations and commit records, without reading features."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from pipelines.command.caches import opened
from pipelines.command.printing import print_table, results
from unic_cache.cache import Cache
from unic_cache.config import InspectConfig
from unic_cache.store.layout import VIEWS_MEMBER
from unic_cache.store.member import Member
from unic_cache.stream.held_out import held_out


def run(config: InspectConfig) -> dict[str, Any]:
    """The report as JSON-ready data: segments, and for each teacher and the kept pixels their views."""
    cache = opened(config.cache)
    teachers = {
        name: {
            **{key: teacher.spec[key] for key in ("codec", "dtype", "features", "provenance", "versions")},
            "weights_sha256": teacher.spec["teacher"]["weights_sha256"],
            "calibration": {"file": teacher.member.calibration_name, "fidelity": dict(teacher.calibration.fidelity)},
            **{key: teacher.spec.get(key) for key in ("quality", "tokens")},
            **sizes_of(teacher.member, views := views_of(cache, teacher.member)),
            "views": views,
        }
        for name, teacher in cache.teachers.items()
    }
    report: dict[str, Any] = {
        "cache": config.cache,
        "segments": [
            {"shards": len(segment.shards), "images": sum(shard.rows for shard in segment.shards)}
            for segment in cache.segments
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
    return report


def views_of(cache: Cache, member: Member) -> dict[str, Any]:
    """For each view of a member: shards done and missing over all segments, images, bad images, bytes kept."""
    committed = {(views.name(number), segment): tars for views, number, segment, tars in cache.committed(member)}
    found: dict[str, Any] = {}
    for view in sorted({view for view, _ in committed}):
        state: dict[str, Any] = {
            "done": 0,
            "missing": [],
            "images": 0,
            "bad": 0,
            "clipped": 0,
            "bytes": 0,
            "arrays": {},
        }
        for name, (segment, shard) in cache.shards().items():
            unit = cache.unit(segment, shard, view)
            record = member.record(unit) if shard in committed.get((view, segment), ()) else None
            if record is None:
                state["missing"].append(name)
                continue
            state["done"] += 1
            state["images"] += unit.rows
            state["bad"] += len(record.bad)
            state["clipped"] += record.clipped
            state["bytes"] += record.bytes_kept
            for file, size in record.sizes.items():
                array = file.split("/")[-2]
                state["arrays"][array] = state["arrays"].get(array, 0) + size
        found[view] = state
    return found


def sizes_of(member: Member, views: Mapping[str, Any]) -> dict[str, Any]:
    """Stored bytes per image, measured over all committed units: in total, and per token of each array."""
    images = sum(state["images"] for state in views.values())
    each = {
        array.name: sum(state["arrays"].get(array.name, 0) for state in views.values()) / max(images, 1)
        for array in member.arrays
    }
    tokens = 1 if member.features is None else member.features.tokens
    kinds = {} if member.features is None else member.features.kinds
    summary = {name for name, kind in kinds.items() if kind.grid is None}
    per_token = {name: size if name in summary else size / tokens for name, size in each.items()}
    return {"bytes_per_image": round(sum(each.values())), "bytes_per_token": per_token}


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
        fidelity = ", ".join(f"{kind} {value:.5f}" for kind, value in teacher["calibration"]["fidelity"].items())
        console.print(f"\n{name}", style="bold", end="")
        console.print(f"  codec {teacher['codec']}, {teacher['bytes_per_image']:,} bytes per image")
        console.print(f"  bytes per token: {each}\n  fidelity (cosine): {fidelity}")
        print_table(console, view_table(teacher["views"]))
    for name, views in report["uncalibrated"].items():
        console.print(f"\n{name}", style="bold")
        console.print("  no calibration (yet, or it is lost); the same `unic-cache extract` makes it")
        print_table(console, view_table(views))
    if "kept_views" in report:
        console.print(f"\n{VIEWS_MEMBER}", style="bold", end="")
        console.print(f"  pixels, {report['kept_views']['bytes_per_image']:,} bytes per image")
        print_table(console, view_table(report["kept_views"]["views"]))


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
