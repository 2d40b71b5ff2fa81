"""That a tar still gives the pixels that the cache has seen of it, row by row.

Names, keys and sizes do not vouch for an image: a picture can be replaced under all three. The proof is in pixels. Of a
tar that has a committed view, each row is made once under that view too, from the image that is decoded anyway, and its
checksum compared with the record's. So a unit is never added beside units of other pictures.
"""

import threading
from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt
from PIL import Image

from unic_cache.cache import Cache
from unic_cache.config import RECIPES, Views
from unic_cache.errors import CacheError
from unic_cache.store.commit import CommitRecord, Unit
from unic_cache.store.member import Member
from unic_cache.views.augment import make_view, pixel_crc

Place = tuple[int, int]  # segment and number of a tar


class Seen:
    """The pixels that a cache had seen when this was made. Used from several threads at once."""

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self._units: dict[Place, tuple[str, Member]] = {}
        self._known: dict[Place, tuple[CommitRecord, npt.NDArray[np.bool_]] | None] = {}
        self._lock = threading.Lock()
        for member in _members(cache):
            for view, segment, tars in cache.committed(member):
                for tar in tars:
                    before = self._units.get((segment, tar))
                    if before is None or _cost(view) < _cost(before[0]):
                        self._units[segment, tar] = view, member

    def kinds(self, places: Iterable[Place]) -> set[Views]:
        """The recipes of the views that these tars are compared under."""
        return {Views.parse(self._units[place][0])[0] for place in places if place in self._units}

    def check(self, place: Place, row: int, image: Image.Image, where: Callable[[], str]) -> None:
        """CacheError, naming the row by `where`, unless the decoded image is the one that was seen.

        A row is made but once. One that was bad when it was seen is passed over: no view of it is ever trained on.
        """
        known = self._of(place)
        if known is None or known[1][row]:
            return
        record, proven = known
        views, number = Views.parse(record.unit.view)
        found = pixel_crc(make_view(image, views, self.cache.entry(*place).keys[row], number))
        if found != record.pixels[row]:
            raise other_picture(where(), record, row, found)
        proven[row] = True

    def fails(self, place: Place, row: int, where: Callable[[], str], reason: str) -> None:
        """CacheError where a row that cannot be decoded was good when it was seen."""
        known = self._of(place)
        if known is not None and not known[1][row]:
            raise CacheError(
                f"{where()}: cannot be used ({reason}), but was good when the cache saw it under {known[0].unit.view}; "
                "the tar is damaged or another one, or this machine reads fewer formats"
            )

    def check_cache(self, place: Place, other: Cache) -> None:
        """CacheError where another cache has seen other pixels of a tar, under the view that is compared here."""
        known = self._of(place)
        if known is None:
            return
        ours = known[0]
        for member in _members(other):
            theirs = member.record(other.unit(*place, ours.unit.view))
            if theirs is not None and not np.array_equal(theirs.pixels, ours.pixels):
                raise CacheError(
                    f"{other.location.url} and {self.cache.location.url} have seen other pictures in shard "
                    f"{ours.unit.name}, by {ours.unit.view}; one cache cannot hold both"
                )

    def _of(self, place: Place) -> tuple[CommitRecord, npt.NDArray[np.bool_]] | None:
        with self._lock:
            if place not in self._known:
                record = self._read(place)
                proven = None if record is None else np.zeros(record.unit.rows, bool)
                if record is not None and proven is not None:
                    proven[list(record.bad)] = True
                self._known[place] = None if record is None or proven is None else (record, proven)
            return self._known[place]

    def _read(self, place: Place) -> CommitRecord | None:
        if place not in self._units:
            return None
        view, member = self._units[place]
        unit: Unit = self.cache.unit(*place, view)
        return member.record(unit)


def _members(cache: Cache) -> list[Member]:
    return [*(teacher.member for teacher in cache.teachers.values()), *([cache.pixels] if cache.pixels else [])]


def other_picture(where: str, record: CommitRecord, row: int, found: int) -> CacheError:
    """The error of a row, named by `where`, whose view has the checksum `found` and not that of the record."""
    return CacheError(
        f"{where}: another picture than the cache has seen: {record.unit}, row {row}: its pixels are not those that "
        f"{record.member} saw (checksum {found:08x} here, {record.pixels[row]:08x} there). Give the tars that the "
        "cache was made with, or extract these under other names or into another --cache"
    )


def _cost(view: str) -> tuple[int, int, str]:
    """What making a view takes, by order: the plainest recipe, the fewest pixels."""
    views, _ = Views.parse(view)
    return -RECIPES.index(views.recipe), views.size, view
