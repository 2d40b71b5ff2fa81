"""Between a teacher and its folder in the cache: its spec, and the rows that a batch of views gives.

Letters: B images, H and W pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unic_cache.config import Views
from unic_cache.errors import CacheError, TeacherError
from unic_cache.store.calibrate import Calibration
from unic_cache.store.codecs.fixed import Encoded
from unic_cache.store.commit import Unit
from unic_cache.store.member import Member
from unic_cache.store.sampling import at_positions, kept_positions
from unic_cache.store.writer import UnitWriter
from unic_cache.teachers.model import Teacher

BATCHES_AHEAD = 3
DEFAULT_CODEC = "klt"
PROVENANCE = ("about", "source", "published", "licence", "weights_file_sha256")
VERSIONS = ("unic-cache", "torch", "timm", "numpy", "pillow", "zarr")


@dataclass(frozen=True)
class PixelRecorder:
    """The member `views` being filled: keeps the pixels as they are, or as differences."""

    member: Member
    writer: UnitWriter

    def encode(self, views_BHWC: Tensor, unit: Unit, keys: Sequence[int]) -> Encoded:  # noqa: ARG002
        """The views themselves."""
        assert self.member.pixel_codec is not None
        return Encoded({self.member.arrays[0].name: self.member.pixel_codec.encode(views_BHWC)})


@dataclass(frozen=True)
class FeatureRecorder:
    """A teacher's folder being filled: views -> tokens -> standardized -> sampled -> encoded, on its device."""

    member: Member
    writer: UnitWriter
    teacher: Teacher
    calibration: Calibration

    def encode(self, views_BHWC: Tensor, unit: Unit, keys: Sequence[int]) -> Encoded:
        """The arrays' rows of one batch. TeacherError on NaN or infinity, naming the teacher and the shard.

        `keys` are the samples' keys; slots behind them are empty.
        """
        assert self.member.codec is not None
        try:
            tokens = self.teacher(views_BHWC)
        except TeacherError as error:
            raise TeacherError(f"{unit}: {error}. Nothing of it is kept; all that was committed stays") from error
        tokens = self.calibration.standardize(tokens)
        views, number = Views.parse(unit.view)
        shown = [(key, number) for key in (*keys, *[0] * (len(views_BHWC) - len(keys)))]
        return self.member.codec.encode(at_positions(tokens, sampled(self.member, views.seed, shown)))


Recorder = PixelRecorder | FeatureRecorder


def sampled(member: Member, seed: int, shown: Sequence[tuple[int, int]]) -> Tensor | None:
    """(B, N) positions of the patch tokens that a member keeps of each (key, view number); None where it keeps all."""
    features = member.features
    if features is None or features.sampled is None or features.grid is None:
        return None
    return torch.from_numpy(kept_positions(seed, shown, features.grid, features.sampled))


def recorder(member: Member, teacher: Teacher | None) -> Recorder:
    """What fills a member; the calibration is the one that stands in the cache, whoever made it."""
    if teacher is None:
        return PixelRecorder(member, UnitWriter(member, None))
    found = member.calibration()
    if found is None:
        raise CacheError(f"{member.location.url}/{member.calibration_name} vanished; start again")
    calibration, crc = found
    return FeatureRecorder(member, UnitWriter(member, crc), teacher, calibration)
