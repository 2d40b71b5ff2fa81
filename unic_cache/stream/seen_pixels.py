"""Check, row by row, that a tar still gives the pixels that the cache has seen.

Names, keys and sizes prove nothing: a picture can be replaced under all three. So for a tar that has a committed view,
each row is also made once under that view, from the image that is decoded anyway, and its checksum is compared with
the record's. Thus no unit is ever added beside units of other pictures.
"""

import threading
from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt
from PIL import Image

from unic_cache.cache import Cache
from unic_cache.config import RECIPES, Views
from unic_cache.errors import CacheError
from unic_cache.store.commit import CommitRecord
from unic_cache.store.member import Member
from unic_cache.views.augment import make_view, pixel_crc

Place = tuple[int, int]  # segment and number of a tar
Known = tuple[CommitRecord, npt.NDArray[np.bool_]]  # a record, and which of its rows need no (further) comparison


class Seen:
    """The pixels that a cache has seen when this is made. Thread-safe."""

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self._units: dict[Place, tuple[Views, int, Member]] = {}  # the cheapest view of each tar, and who saw it
        self._known: dict[Place, Known | None] = {}
        self._lock = threading.Lock()
        found = [(member, *one) for member in _members(cache) for one in cache.committed(member)]
        left = {segment.number: set(range(len(segment.names))) for segment in cache.segments}
        for member, views, number, segment, tars in sorted(found, key=lambda one: _cost(*one[1:3])):
            own = left[segment].intersection(tars)
            left[segment] -= own
            self._units |= {(segment, tar): (views, number, member) for tar in own}

    def kinds(self, places: Iterable[Place]) -> set[Views]:
        """The kinds of views that these tars are compared under."""
        return {self._units[place][0] for place in places if place in self._units}

    def check(self, place: Place, row: int, image: Image.Image, where: Callable[[], str]) -> None:
        """CacheError, naming the row by `where`, unless the decoded image is the one that the cache has seen.

        A row is compared until it has been found equal: once, unless threads hold two of its views at the same time.
        Rows that were bad then are skipped: no view of them is ever trained on.
        """
        known = self._of(place)
        if known is None or known[1][row]:
            return
        record, proven = known
        key = self.cache.entry(*place).keys[row]
        found = pixel_crc(make_view(image, record.unit.views, key, record.unit.number))
        if found != record.pixels[row]:
            raise other_picture(where(), record, row, found)
        proven[row] = True

    def fails(self, place: Place, row: int, where: Callable[[], str], reason: str) -> None:
        """CacheError if a row that cannot be decoded now was good when the cache saw it."""
        known = self._of(place)
        if known is not None and not known[1][row]:
            raise CacheError(
                f"{where()}: cannot be used ({reason}), but was good when the cache saw it under {known[0].unit.view}; "
                "the tar is damaged or another one, or this machine reads fewer formats"
            )

    def check_cache(self, place: Place, other: Cache) -> None:
        """CacheError if another cache has seen other pixels of a tar under the view that is compared here."""
        known = self._of(place)
        if known is None:
            return
        ours = known[0]
        for member in _members(other):
            theirs = member.record(other.unit(*place, ours.unit.views, ours.unit.number))
            if theirs is not None and not np.array_equal(theirs.pixels, ours.pixels):
                raise CacheError(
                    f"{other.location.url} and {self.cache.location.url} have seen other pictures in shard "
                    f"{ours.unit.name}, by {ours.unit.view}; one cache cannot hold both"
                )

    def _of(self, place: Place) -> Known | None:
        with self._lock:
            if place not in self._known:
                self._known[place] = self._read(place)
            return self._known[place]

    def _read(self, place: Place) -> Known | None:
        if place not in self._units:
            return None
        views, number, member = self._units[place]
        record = member.record(self.cache.unit(*place, views, number))
        if record is None:
            return None
        proven = np.zeros(record.unit.rows, bool)
        proven[list(record.bad)] = True
        return record, proven


def _members(cache: Cache) -> list[Member]:
    return [*(teacher.member for teacher in cache.teachers.values()), *([cache.pixels] if cache.pixels else [])]


def other_picture(where: str, record: CommitRecord, row: int, found: int) -> CacheError:
    """The error for a row, named by `where`, whose view has checksum `found` instead of the record's."""
    return CacheError(
        f"{where}: another picture than the cache has seen: {record.unit}, row {row}: its pixels are not those that "
        f"{record.member} saw (checksum {found:08x} here, {record.pixels[row]:08x} there). Give the tars that the "
        "cache was made with, or extract these under other names or into another --cache"
    )


def _cost(views: Views, number: int) -> tuple[int, int, str]:
    """Orders views by the cost of making them: plainest recipe first, then fewest pixels."""
    return -RECIPES.index(views.recipe), views.size, views.name(number)
