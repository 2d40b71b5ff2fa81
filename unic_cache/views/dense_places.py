"""Where the dense labels of a tar's samples lie: masks and depth maps, members beside the image.

| member | holds |
|---|---|
| `KEY.mask.png` | the class of each pixel: 8-bit grey or palette, 255 ignored |
| `KEY.depth.png` | 16-bit grey, millimetres, 0 unknown |
| `KEY.depth.npy` | floats (height, width), metres, 0 unknown |

`KEY.NAME.mask.png` counts too if it is the sample's only mask. None of them is ever a sample's image.
"""

from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from unic_cache.errors import CacheError
from unic_cache.views.index_fields import checked, fields_of

MASK, DEPTH_PNG, DEPTH_NPY = "mask.png", "depth.png", "depth.npy"
DENSE_KINDS = (MASK, DEPTH_PNG, DEPTH_NPY)
DEPTH_KINDS = (DEPTH_PNG, DEPTH_NPY)  # a sample has one of them at most
ABSENT = -1  # the offset of a row without such a label


@dataclass(frozen=True)
class Places:
    """The place (bytes) of each row's label of one kind in the tar; ABSENT, size 0, for rows without one."""

    offsets: "array[int]"
    sizes: "array[int]"
    headers: "array[int] | None" = field(default=None, compare=False, repr=False)  # crc32c each; known after a scan

    @classmethod
    def of(cls, rows: int, found: Mapping[int, tuple[int, int, int]]) -> Self:
        """Places of `rows` rows from {row: (offset, size, crc32c of the header)}."""
        columns = array("q", [ABSENT]) * rows, array("q", [0]) * rows, array("I", [0]) * rows
        for row, place in found.items():
            for column, value in zip(columns, place, strict=True):
                column[row] = value
        return cls(*columns)

    def has(self, row: int) -> bool:
        """Whether the row has such a label."""
        return self.offsets[row] != ABSENT

    def to_json(self) -> dict[str, Any]:
        """`offsets` and `sizes`, null for rows without a label."""
        there = [offset != ABSENT for offset in self.offsets]
        columns = {"offsets": self.offsets, "sizes": self.sizes}
        return {
            name: [value if has else None for value, has in zip(column, there, strict=True)]
            for name, column in columns.items()
        }


def dense_kind(extension: str) -> str | None:
    """The kind of dense label that a member with this lower-case extension is, if any."""
    return next((kind for kind in DENSE_KINDS if f".{extension}".endswith(f".{kind}")), None)


def dense_json(dense: Mapping[str, Places]) -> dict[str, Any]:
    """The index's field `dense`; nothing if there are no dense labels."""
    return {"dense": {kind: places.to_json() for kind, places in dense.items()}} if dense else {}


def dense_from_json(data: Any, rows: int, size: int, where: str) -> dict[str, Places]:
    """The inverse of `dense_json` for a tar of `rows` samples and `size` bytes. CacheError if it is impossible."""
    if not isinstance(data, dict) or not set(data) <= set(DENSE_KINDS):
        raise CacheError(f"{where}: dense {str(data)[:80]!r} has other kinds than {', '.join(DENSE_KINDS)}")
    dense = {kind: _places(data[kind], rows, size, f"{where}, dense {kind}") for kind in DENSE_KINDS if kind in data}
    both = [dense[kind] for kind in DEPTH_KINDS if kind in dense]
    twice = next((row for row in range(rows) if len(both) == 2 and all(one.has(row) for one in both)), None)
    if twice is not None:
        raise CacheError(f"{where}: row {twice} has two depth maps, {' and '.join(DEPTH_KINDS)}")
    return dense


def _places(data: Any, rows: int, size: int, where: str) -> Places:
    fields = fields_of(data, ("offsets", "sizes"), where)
    offsets = checked(fields["offsets"], "offsets", 2**63, where, may_lack=True)
    sizes = checked(fields["sizes"], "sizes", 2**63, where, may_lack=True)
    if (len(offsets), len(sizes)) != (rows, rows):
        raise CacheError(f"{where}: {len(offsets)} offsets and {len(sizes)} sizes of {rows} samples")
    for row, (offset, length) in enumerate(zip(offsets, sizes, strict=True)):
        if (offset is None) != (length is None):
            raise CacheError(f"{where}: row {row} has only one of offset and size")
        if offset is not None and offset + length > size:
            raise CacheError(f"{where}: row {row} ends at byte {offset + length} of a tar of {size} bytes")
    return Places(array("q", _with(ABSENT, offsets)), array("q", _with(0, sizes)))


def _with(absent: int, values: Iterable[int | None]) -> list[int]:
    return [absent if value is None else value for value in values]
