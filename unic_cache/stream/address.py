"""Which view of which image: the key by which pixels and features are joined."""

from typing import NamedTuple


class Address(NamedTuple):
    """One view of one image: row `row` of tar `shard` of a segment, under view `number`."""

    segment: int
    shard: int
    row: int
    number: int

    @property
    def unit(self) -> tuple[int, int, int]:
        """What has a commit record of its own: segment, shard and number of the view."""
        return self.segment, self.shard, self.number
