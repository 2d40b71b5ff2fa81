"""A made-up teacher's spec and units of it, for tests of the store alone."""

from unic_cache.config import Views
from unic_cache.store.commit import Unit
from unic_cache.store.layout import Extent

SPEC = {
    "format": 1,
    "teacher": {"name": "t", "weights_sha256": "0"},
    "provenance": {},
    "codec": "int8",
    "features": {"cls_dim": 6, "grid": [2, 2], "patch_dim": 5},
}


def unit(rows: int, shard: int = 0, shards: int = 2, longest: int | None = None) -> Unit:
    return Unit(0, Extent(shards, longest or rows), shard, f"tar{shard}", rows, Views("unic", 32, 0), 0)
