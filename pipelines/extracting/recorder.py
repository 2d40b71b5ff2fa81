"""Between a teacher and its folder in the cache: its spec, and the rows that a batch of views gives.

Letters: B images, H and W pixels.
"""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from unic_cache.config import PIXEL_CODECS, ExtractConfig, Views
from unic_cache.errors import CacheError, ConfigError, TeacherError
from unic_cache.store.calibrate import DEFAULT_QUALITY, Calibration
from unic_cache.store.codecs.codec import FITTED
from unic_cache.store.codecs.pixel_codec import to_differences
from unic_cache.store.commit import Unit
from unic_cache.store.layout import FORMAT
from unic_cache.store.member import Member
from unic_cache.store.sampling import kept_positions
from unic_cache.store.writer import UnitWriter
from unic_cache.teachers.model import Teacher
from unic_cache.views.augment import AUGMENT_VERSION

BATCHES_AHEAD = 3
DEFAULT_CODEC = "klt"
PROVENANCE = ("about", "source", "published", "licence", "weights_file_sha256")
VERSIONS = ("unic-cache", "torch", "timm", "numpy", "pillow", "zarr")


@dataclass(frozen=True)
class PixelRecorder:
    """The member `views` being filled: keeps the pixels as they are, or as differences."""

    member: Member
    writer: UnitWriter

    def encode(self, views_BHWC: Tensor, unit: Unit, keys: Sequence[int]) -> Mapping[str, Tensor]:  # noqa: ARG002
        """The views themselves."""
        return {"rgb": to_differences(views_BHWC) if self.member.arrays[0].tile else views_BHWC}


@dataclass(frozen=True)
class FeatureRecorder:
    """A teacher's folder being filled: views -> tokens -> standardized -> sampled -> encoded, on its device."""

    member: Member
    writer: UnitWriter
    teacher: Teacher
    calibration: Calibration

    def encode(self, views_BHWC: Tensor, unit: Unit, keys: Sequence[int]) -> Mapping[str, Tensor]:
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
        kept_BN = sampled(self.member, views.seed, shown)
        if kept_BN is not None:
            tokens["patch"] = tokens["patch"].take_along_dim(kept_BN.to(self.teacher.device)[..., None], dim=1)
        return self.member.codec.encode(tokens)


Recorder = PixelRecorder | FeatureRecorder


def sampled(member: Member, seed: int, shown: Sequence[tuple[int, int]]) -> Tensor | None:
    """(B, N) positions of the patch tokens that a member keeps of each (key, view number); None where it keeps all."""
    features = member.features
    if features is None or features.sampled is None or features.patch_dim is None:
        return None
    return torch.from_numpy(kept_positions(seed, shown, features.grid, features.sampled))


def teacher_spec(
    config: ExtractConfig, teacher: Teacher, device: torch.device, before: Member | None, calibration_images: int
) -> dict[str, Any]:
    """spec.json of a teacher: what its features are, which weights gave them, and with what they were made.

    `before` is the member as the cache has it: its codec, quality and tokens are kept where the config names none.
    ConfigError where a quality is named, and that codec has none.
    """
    spec = teacher.spec.to_json()
    dims = {key: spec.pop(key) for key in ("cls_dim", "grid", "patch_dim")}
    stands = {} if before is None else before.spec
    codec = config.codec or stands.get("codec", DEFAULT_CODEC)
    if config.quality is not None and codec != FITTED:
        raise ConfigError(
            f"quality is a setting of codec {FITTED}, but {config.cache} keeps {spec['name']} as {codec}; leave "
            "--quality out, or choose another --cache"
        )
    quality = {"quality": config.quality or stands.get("quality", DEFAULT_QUALITY)} if codec == FITTED else {}
    return {
        "format": FORMAT,
        "provenance": {key: spec.pop(key) for key in PROVENANCE},
        "teacher": spec,
        "features": dims,
        "codec": codec,
        **quality,
        "tokens": config.tokens or stands.get("tokens"),
        "dtype": config.dtype,
        "batch_size": config.batch_size,
        "calibration_images": calibration_images,
        "device": device.type,
        "augment": AUGMENT_VERSION,
        "versions": versions(),
    }


def pixel_codec(config: ExtractConfig, before: Member | None) -> str:
    """By which codec pixels are kept: the one asked for, or that of those that stand there, or raw."""
    return config.pixel_codec or str(({} if before is None else before.spec).get("codec", PIXEL_CODECS[0]))


def pixel_spec(config: ExtractConfig, before: Member | None) -> dict[str, Any]:
    """spec.json of the member `views`; `before` is the member as the cache has it."""
    return {
        "format": FORMAT,
        "size": config.kind.size,
        "codec": pixel_codec(config, before),
        "augment": AUGMENT_VERSION,
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """The releases that features may depend on."""
    return {"python": platform.python_version(), **{name: version(name) for name in VERSIONS}}


def recorder(member: Member, teacher: Teacher | None) -> Recorder:
    """What fills a member; the calibration is the one that stands in the cache, whoever made it."""
    if teacher is None:
        return PixelRecorder(member, UnitWriter(member, None))
    found = member.calibration()
    if found is None:
        raise CacheError(f"{member.location.url}/{member.calibration_name} vanished; start again")
    calibration, crc = found
    return FeatureRecorder(member, UnitWriter(member, crc), teacher, calibration)
