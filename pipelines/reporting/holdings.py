"""What each member of a cache holds, by its commit records alone: units, images, bytes."""

from collections.abc import Mapping
from typing import Any

from unic_cache.cache import Cache
from unic_cache.store.member import Member


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
