"""The arrays of one unit while they fill, batch by batch, for each member that lacks the unit.

Letters: B images.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from pipelines.extracting.recorder import Recorder
from unic_cache.errors import CacheError, ImageError
from unic_cache.store.commit import Crcs, Unit
from unic_cache.stream.pixels import ViewBatch

Arrays = dict[str, npt.NDArray[np.generic]]
UNITS_BEING_WRITTEN = 2


@dataclass(frozen=True)
class Work:
    """One unit, the view's number, and the members that lack it."""

    unit: Unit
    number: int
    missing: tuple[str, ...]


class UnitRows:
    """The arrays of one unit while they fill, for each member that lacks the unit."""

    def __init__(
        self,
        work: Work,
        keys: Sequence[int],
        recorders: Mapping[str, Recorder],
        seen: Mapping[str, Crcs],
        strict: bool,
        called: Callable[[int], str],
    ) -> None:
        """`called` says what the tar calls a row's image."""
        self.unit = work.unit
        self.keys = keys
        self.seen = seen
        self.recorders = {name: recorders[name] for name in work.missing}
        self.strict = strict
        self.called = called
        self.bad: dict[int, str] = {}
        self.crcs: Crcs = np.zeros(self.unit.rows, np.uint32)
        self.clipped = dict.fromkeys(self.recorders, 0)
        self._under_way: Settling | None = None
        self.arrays: dict[str, Arrays] = {
            name: {a.name: np.zeros((self.unit.rows, *a.row), a.dtype) for a in found.member.arrays}
            for name, found in self.recorders.items()
        }

    def add(self, first: int, batch: ViewBatch, device: torch.device) -> None:
        """Rows [first, first + B) of the unit; the rows of bad images stay zeros. ImageError when strict."""
        count = min(len(batch.views_BHWC), self.unit.rows - first)
        if batch.bad and self.strict:
            place, reason = next(iter(batch.bad.items()))
            raise ImageError(
                f"{self.unit}, row {first + place}: {self.called(first + place)}: {reason}. Without --strict it is "
                "skipped and counted"
            )
        self.bad |= {first + place: reason for place, reason in batch.bad.items()}
        self.crcs[first : first + count] = batch.crcs[:count]
        for member, crcs in self.seen.items():
            different = np.flatnonzero(crcs[first : first + count] != batch.crcs[:count])
            if len(different):
                row = first + int(different[0])
                raise CacheError(
                    f"{self.unit}, row {row}: its pixels are not those that {member} saw (checksum "
                    f"{batch.crcs[different[0]]:08x} here, {crcs[row]:08x} there). The image in the tar is another "
                    "one; use the tars that the cache was made with"
                )
        good = np.array([place for place in range(count) if place not in batch.bad], dtype=np.int64)
        views_BHWC = torch.from_numpy(batch.views_BHWC).to(device, non_blocking=True)
        keys = self.keys[first : first + count]
        made = {name: found.encode(views_BHWC, self.unit, keys) for name, found in self.recorders.items()}
        encoded = {name: {part: on_host(values) for part, values in one.arrays.items()} for name, one in made.items()}
        clipped = {name: on_host(one.clipped_B) for name, one in made.items() if one.clipped_B is not None}
        copied = None if device.type != "cuda" else torch.cuda.current_stream(device).record_event()
        self._settle()
        self._under_way = Settling(first + good, good, encoded, clipped, copied)

    def commit(self) -> int:
        """Write and commit every member's arrays; the bytes that are kept."""
        self._settle()
        return sum(
            found.writer.write(self.unit, self.arrays[name], self.crcs, self.bad, self.clipped[name]).bytes_kept
            for name, found in self.recorders.items()
        )

    def _settle(self) -> None:
        """Put the batch before into its rows: only now that the device has the next one to work on."""
        batch, self._under_way = self._under_way, None
        if batch is None:
            return
        if batch.copied is not None:
            batch.copied.synchronize()
        for name, parts in batch.parts.items():
            for part, values in parts.items():
                self.arrays[name][part][batch.rows] = values.numpy()[batch.good]
        for name, clipped_B in batch.clipped.items():
            self.clipped[name] += int(clipped_B[batch.good].sum())


@dataclass(frozen=True)
class Settling:
    """What the members keep of a batch, on the host once `copied` has happened, and to which rows it belongs."""

    rows: npt.NDArray[np.int64]
    good: npt.NDArray[np.int64]  # the batch's places of those rows
    parts: Mapping[str, Mapping[str, torch.Tensor]]
    clipped: Mapping[str, torch.Tensor]
    copied: torch.cuda.Event | None


def on_host(values: torch.Tensor) -> torch.Tensor:
    """The tensor on the CPU; from a GPU the copy is only begun, into page-locked memory."""
    if values.device.type != "cuda":
        return values.cpu()
    return torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)
