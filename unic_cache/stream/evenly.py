"""A few rows spread evenly over many units."""

from collections.abc import Iterator, Sequence

import numpy as np

from unic_cache.config import Views
from unic_cache.store.commit import Unit
from unic_cache.stream.address import Address
from unic_cache.views.index import ShardEntry

BATCH = 64
ROWS_COMPARED = 8  # of two tars that are laid out differently


def spread(units: Sequence[Unit], count: int) -> Iterator[tuple[Unit, list[int]]]:
    """`count` rows evenly over all rows of the units, by unit and at most BATCH at once."""
    ends = np.cumsum([unit.rows for unit in units], dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    places = np.unique(np.linspace(0, total - 1, min(count, total)).astype(np.int64))
    owners = np.searchsorted(ends, places, side="right")
    for owner in np.unique(owners):
        unit = units[int(owner)]
        rows = (places[owners == owner] - (int(ends[owner]) - unit.rows)).tolist()
        for start in range(0, len(rows), BATCH):
            yield unit, rows[start : start + BATCH]


def addresses(unit: Unit, rows: Sequence[int]) -> list[Address]:
    """The rows of a unit as a pixel source wants them."""
    number = Views.parse(unit.view)[1]
    return [Address(unit.segment, unit.shard, row, number) for row in rows]


def rows_to_compare(given: ShardEntry, cached: ShardEntry) -> list[int]:
    """Rows whose pixels tell whether a tar is the cache's: the middle one if all images lie alike, else eight."""
    alike = given.offsets == cached.offsets and given.sizes == cached.sizes
    count = 1 if alike else ROWS_COMPARED
    return sorted({(2 * part + 1) * given.rows // (2 * count) for part in range(count)})
