"""From a batch of views to the rows of one member: a teacher's encoded tokens, or the pixels themselves.

Letters: B images, H and W pixels, T tokens, N kept tokens, D channels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from unic_cache.errors import CacheError, TeacherError
from unic_cache.store.calibrate import Calibration, cosine_of_images
from unic_cache.store.codecs.fixed import Encoded
from unic_cache.store.commit import Unit
from unic_cache.store.member import Member
from unic_cache.store.sampling import Sample, at_positions
from unic_cache.store.writer import UnitWriter
from unic_cache.teachers.model import Teacher, finite
from unic_cache.token_kinds import Grid

BATCHES_AHEAD = 3
Flags = Mapping[str, Tensor]  # token kind -> (B,) whether each image's tokens are finite
Cosines = Mapping[str, Tensor]  # token kind -> of each image compared, the mean cosine of stored tokens to exact ones


@dataclass(frozen=True)
class DeviceBatch:
    """A batch of views on the device. Teachers of one grid share the positions of kept tokens: drawn and sent once."""

    views_BHWC: Tensor
    seed: int
    shown: Sequence[tuple[int, int]]  # (sample key, view number) of the first images; empty slots follow
    compared: Sequence[int] = ()  # places of images whose codes are compared with their tokens
    _kept: dict[tuple[Grid | None, Sample | None], Tensor | None] = field(default_factory=dict)

    def positions(self, member: Member) -> Tensor | None:
        """(B, N) positions of the grid tokens that a teacher's member keeps, on the device; None if it keeps all."""
        assert member.features is not None
        key = member.features.grid, member.features.sample
        if key not in self._kept:
            padded = [*self.shown, *[(0, 0)] * (len(self.views_BHWC) - len(self.shown))]
            kept_BN = sampled(member, self.seed, padded)
            self._kept[key] = None if kept_BN is None else on_device(kept_BN, self.views_BHWC.device)
        return self._kept[key]


@dataclass(frozen=True)
class PixelRecorder:
    """Fills the member `views`: keeps pixels as they are, or as differences."""

    member: Member
    writer: UnitWriter

    def encode(self, batch: DeviceBatch) -> tuple[Encoded, Flags, Cosines]:
        """The array's rows of one batch."""
        assert self.member.pixel_codec is not None
        return Encoded({self.member.arrays[0].name: self.member.pixel_codec.encode(batch.views_BHWC)}), {}, {}

    def check(self, unit: Unit, flags: Flags) -> None:
        """Pixels are always finite."""


@dataclass(frozen=True)
class FeatureRecorder:
    """Fills a teacher's folder: views -> tokens -> standardized -> sampled -> encoded, on the teacher's device."""

    member: Member
    writer: UnitWriter
    teacher: Teacher
    calibration: Calibration

    def encode(self, batch: DeviceBatch) -> tuple[Encoded, Flags, Cosines]:
        """The arrays' rows of one batch, and flags for `check`, on the device; does not wait for it."""
        codec, places = self.member.codec, list(batch.compared)
        assert codec is not None
        tokens = self.teacher.tokens(batch.views_BHWC)
        kept = at_positions(self.calibration.standardize(tokens), batch.positions(self.member))
        encoded = codec.encode(kept)
        cosines: Cosines = {}
        if places:
            decoded = codec.decode({name: values[places] for name, values in encoded.arrays.items()})
            cosines = {kind: cosine_of_images(decoded[kind], values[places]) for kind, values in kept.items()}
        return encoded, finite(tokens), cosines

    def check(self, unit: Unit, flags: Flags) -> None:
        """TeacherError, naming teacher and unit, unless all flags, now on the host, are true."""
        try:
            self.teacher.check(flags)
        except TeacherError as error:
            raise TeacherError(f"{unit}: {error}. Nothing of it is kept; all that was committed stays") from error


Recorder = PixelRecorder | FeatureRecorder


def recorder(member: Member, teacher: Teacher | None) -> Recorder:
    """The recorder of a member, with the calibration in the cache, whichever worker made it."""
    if teacher is None:
        return PixelRecorder(member, UnitWriter(member, None))
    found = member.calibration()
    if found is None:
        raise CacheError(f"{member.location.url}/{member.calibration_name} vanished; start again")
    calibration, crc = found
    return FeatureRecorder(member, UnitWriter(member, crc), teacher, calibration)


def sampled(member: Member, seed: int, shown: Sequence[tuple[int, int]]) -> Tensor | None:
    """(B, N) positions of the grid tokens that a teacher's member keeps of each (key, view number); None for all."""
    assert member.features is not None
    kept_BN = member.features.positions(seed, shown)
    return None if kept_BN is None else torch.from_numpy(kept_BN)


def on_device(values: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on the device; to a GPU the copy is only started, from page-locked memory."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


def on_host(encoded: Encoded, flags: Flags, cosines: Cosines) -> tuple[Encoded, Flags, Cosines]:
    """The same on the CPU; from a GPU the copies are only started, into page-locked memory."""
    arrays = {name: _on_host(values) for name, values in encoded.arrays.items()}
    clipped_B = None if encoded.clipped_B is None else _on_host(encoded.clipped_B)
    finite_B, cosines_B = ({kind: _on_host(found) for kind, found in one.items()} for one in (flags, cosines))
    return Encoded(arrays, clipped_B), finite_B, cosines_B


def _on_host(values: Tensor) -> Tensor:
    if values.device.type != "cuda":
        return values.cpu()
    return torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)
