"""Which view of which image: the key that joins pixels and features."""

from collections.abc import Sequence
from typing import NamedTuple

from unic_cache.cache import Cache
from unic_cache.store.commit import Unit


class Address(NamedTuple):
    """One view of one image: row `row` of tar `shard` of a segment, under view `number`."""

    segment: int
    shard: int
    row: int
    number: int

    @property
    def unit(self) -> tuple[int, int, int]:
        """Segment, shard and number of the view: what one commit record covers."""
        return self.segment, self.shard, self.number


def addresses(unit: Unit, rows: Sequence[int]) -> list[Address]:
    """The addresses of rows of a unit."""
    return [Address(unit.segment, unit.shard, row, unit.number) for row in rows]


def shown(cache: Cache, wanted: Sequence[Address]) -> list[tuple[int, int]]:
    """The (sample key, view number) of each address: what view and kept tokens are drawn from."""
    return [(cache.entry(item.segment, item.shard).keys[item.row], item.number) for item in wanted]
