"""A few rows spread evenly over many units."""

from collections.abc import Iterator, Sequence

import numpy as np

from unic_cache.store.commit import Unit
from unic_cache.views.index import ShardEntry

BATCH = 64
ROWS_COMPARED = 8  # if a tar is laid out differently from the cache's


def spread(units: Sequence[Unit], count: int) -> Iterator[tuple[Unit, list[int]]]:
    """`count` rows spread evenly over all rows of the units, grouped by unit, at most BATCH in a group."""
    ends = np.cumsum([unit.rows for unit in units], dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    places = np.unique(np.linspace(0, total - 1, min(count, total)).astype(np.int64))
    owners = np.searchsorted(ends, places, side="right")
    for owner in np.unique(owners):
        unit = units[int(owner)]
        rows = (places[owners == owner] - (int(ends[owner]) - unit.rows)).tolist()
        for start in range(0, len(rows), BATCH):
            yield unit, rows[start : start + BATCH]


def rows_to_compare(given: ShardEntry, cached: ShardEntry) -> list[int]:
    """Rows whose pixels tell whether a tar is the cache's: the middle one if both are laid out alike, else eight."""
    alike = given.offsets == cached.offsets and given.sizes == cached.sizes
    count = 1 if alike else ROWS_COMPARED
    return sorted({(2 * part + 1) * given.rows // (2 * count) for part in range(count)})
