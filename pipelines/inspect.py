"""What a cache holds, from its index, specs, calibrations and commit records; no feature is read."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from unic_cache.cache import Cache, open_cache
from unic_cache.store.layout import VIEWS_MEMBER
from unic_cache.store.member import Member


def run(path: str) -> dict[str, Any]:
    """The report as JSON-ready data: segments, and for each teacher and the kept pixels their views."""
    cache = open_cache(path)
    teachers = {
        name: {
            **{key: teacher.spec[key] for key in ("codec", "dtype", "features", "provenance", "versions")},
            "weights_sha256": teacher.spec["teacher"]["weights_sha256"],
            "calibration": {
                "file": teacher.member.calibration_name,
                "fidelity": dict(teacher.calibration.fidelity),
            },
            "bytes_per_image": sum(array.row_bytes for array in teacher.member.arrays),
            "bytes_per_token": {array.name: array.row_bytes / tokens(array.row) for array in teacher.member.arrays},
            "views": views_of(cache, teacher.member),
        }
        for name, teacher in cache.teachers.items()
    }
    report: dict[str, Any] = {
        "cache": path,
        "segments": [
            {"shards": len(segment.shards), "images": sum(shard.rows for shard in segment.shards)}
            for segment in cache.segments
        ],
        "teachers": teachers,
    }
    if cache.pixels is not None:
        report["kept_views"] = {
            "bytes_per_image": cache.pixels.arrays[0].row_bytes,
            "views": views_of(cache, cache.pixels),
        }
    return report


def views_of(cache: Cache, member: Member) -> dict[str, Any]:
    """For each view of a member: shards done and missing, images, bad images, bytes kept."""
    found: dict[str, Any] = {}
    for view, segment, tars in cache.committed(member):
        state = found.setdefault(view, {"done": 0, "missing": [], "images": 0, "bad": 0, "bytes": 0})
        for shard, entry in enumerate(cache.segments[segment].shards):
            record = member.record(cache.unit(segment, shard, view)) if shard in tars else None
            if record is None:
                state["missing"].append(entry.name)
                continue
            state["done"] += 1
            state["images"] += entry.rows
            state["bad"] += len(record.bad)
            state["bytes"] += record.bytes_kept
    for state in found.values():
        shards = sum(len(segment.shards) for segment in cache.segments)
        state["shards"] = shards
    return found


def tokens(row: tuple[int, ...]) -> int:
    """Tokens in one image's row of an array: T of (T, D) and of (T,), 1 of (D,) CLS channels."""
    return row[0] if len(row) == 2 else 1


def show(report: Mapping[str, Any]) -> None:
    """The report as tables."""
    console = Console()
    images = sum(segment["images"] for segment in report["segments"])
    shards = sum(segment["shards"] for segment in report["segments"])
    console.print(f"{report['cache']}: {images:,} images in {shards} shards, {len(report['segments'])} segment(s)")
    members = dict(report["teachers"])
    if "kept_views" in report:
        members[VIEWS_MEMBER] = report["kept_views"]
    table = Table()
    for heading in ("teacher", "codec", "view", "shards", "bad", "MB", "bytes/image", "fidelity"):
        words = heading in {"teacher", "codec", "view"}
        table.add_column(heading, justify="left" if words else "right", no_wrap=words)
    for name, member in members.items():
        fidelity = " ".join(f"{k} {v:.4f}" for k, v in member.get("calibration", {}).get("fidelity", {}).items())
        for view, state in member["views"].items() or {"none yet": None}.items():
            done = "" if state is None else f"{state['done']}/{state['shards']}"
            table.add_row(
                name,
                member.get("codec", "uint8"),
                view,
                done,
                "" if state is None else str(state["bad"]),
                "" if state is None else f"{state['bytes'] / 1e6:,.1f}",
                f"{member['bytes_per_image']:,}",
                fidelity,
            )
    console.print(table)
