"""The rows of one unit while they fill, batch by batch, for each member that lacks the unit.

Letters: B images.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pipelines.extracting.recorder import Cosines, DeviceBatch, Flags, Recorder, on_host
from unic_cache.errors import CacheError
from unic_cache.store.codecs.fixed import Encoded
from unic_cache.store.commit import Crcs, Unit
from unic_cache.store.writer import UnitArrays
from unic_cache.stream.pixels import ViewBatch

UNITS_BEHIND = 2  # filled and not yet written
COMPARED = 8  # images of a unit, whose stored tokens are compared with the exact ones


class UnitRows:
    """One unit while it fills, for each member that lacks it."""

    def __init__(self, unit: Unit, recorders: Sequence[Recorder], seen: Mapping[str, Crcs]) -> None:
        """`seen`: the checksums of the unit's pixels in each member that has the unit."""
        self.unit = unit
        self.bad: dict[int, str] = {}  # row -> why its image is unusable
        self._seen = seen
        self._crcs: Crcs = np.zeros(unit.rows, np.uint32)
        self._members = [(one, UnitArrays(one.writer, unit)) for one in recorders]
        self._filled = 0
        self.cosines: dict[str, Cosines] = {}  # member -> of the unit's first images, once they are landed
        self._under_way: _UnderWay | None = None

    def add(self, batch: ViewBatch, shown: Sequence[tuple[int, int]], device: torch.device) -> None:
        """Encode the next rows, of (sample key, view number) `shown`. CacheError if a member saw other pixels."""
        first = self._filled
        self._filled = stop = first + len(shown)
        self.bad |= {first + place: reason for place, reason in batch.bad.items()}
        self._crcs[first:stop] = batch.crcs[: len(shown)]
        self._check_pixels(first, stop)
        views_BHWC = torch.from_numpy(batch.views_BHWC).to(device, non_blocking=True)
        good = [place for place in range(len(shown)) if place not in batch.bad]
        on_device = DeviceBatch(views_BHWC, self.unit.views.seed, shown, () if first else good[:COMPARED])
        landing = [on_host(*one.encode(on_device)) for one, _ in self._members]
        copied = torch.cuda.current_stream(device).record_event() if device.type == "cuda" else None
        self._land()  # the batch before, while the device works on this one
        self._under_way = _UnderWay(first, len(shown), list(batch.bad), landing, copied)

    def commit(self) -> int:
        """Write and commit every member's rows; return the bytes stored. TeacherError if any token is not finite."""
        self._land()
        return sum(arrays.write(self._crcs, self.bad).bytes_kept for _, arrays in self._members)

    def _land(self) -> None:
        """Check the batch under way, and put it into the members' arrays."""
        batch, self._under_way = self._under_way, None
        if batch is None:
            return
        if batch.copied is not None:
            batch.copied.synchronize()
        for (one, arrays), (found, flags, cosines) in zip(self._members, batch.landing, strict=True):
            one.check(self.unit, flags)
            if cosines:
                self.cosines[one.member.folder] = cosines
            arrays.put(batch.first, batch.count, found, batch.bad)

    def _check_pixels(self, first: int, stop: int) -> None:
        for member, crcs in self._seen.items():
            different = np.flatnonzero(crcs[first:stop] != self._crcs[first:stop])
            if len(different):
                row = first + int(different[0])
                raise CacheError(
                    f"{self.unit}, row {row}: its pixels are not those that {member} saw (checksum "
                    f"{self._crcs[row]:08x} here, {crcs[row]:08x} there). The image in the tar is another one; use the "
                    "tars that the cache was made with"
                )


@dataclass(frozen=True)
class _UnderWay:
    """A batch whose rows are on the host once `copied` has happened."""

    first: int
    count: int
    bad: list[int]  # places in the batch
    landing: list[tuple[Encoded, Flags, Cosines]]  # of each member
    copied: torch.cuda.Event | None
