"""Between a teacher and its folder in the cache: its spec, its calibration, and the rows that a batch of views gives.

Letters: B images, H and W pixels.
"""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from crc32c import crc32c
from torch import Tensor

from pipelines.progress import Progress
from unic_cache.cache import Cache
from unic_cache.config import PIXEL_CODECS, ExtractConfig, Views
from unic_cache.errors import CacheError, ConfigError, TeacherError
from unic_cache.sampling import kept_positions
from unic_cache.sources import Address, Pixels, ahead
from unic_cache.store.calibrate import DEFAULT_QUALITY, Calibration, Calibrator
from unic_cache.store.codec import FITTED, Features
from unic_cache.store.commit import Unit
from unic_cache.store.differences import to_differences
from unic_cache.store.layout import FORMAT
from unic_cache.store.member import Member
from unic_cache.store.writer import UnitWriter
from unic_cache.teachers.model import Teacher
from unic_cache.views.augment import AUGMENT_VERSION

BATCHES_AHEAD = 3
CALIBRATION_TARS = 256
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
    config: ExtractConfig, teacher: Teacher, device: torch.device, before: Member | None
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
        "calibration_images": config.calibration_images,
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


def calibrate(
    config: ExtractConfig,
    cache: Cache,
    pixels: Pixels,
    teachers: Mapping[str, Teacher],
    members: Mapping[str, Member],
    device: torch.device,
) -> None:
    """Make the calibration of every teacher that has none; all in one pass over the views."""
    missing = [name for name, member in members.items() if member.calibration() is None]
    if not missing:
        return
    only_kept = not pixels.decoded.tars
    wanted = [
        item for item in calibration_images(cache, config.calibration_images) if not only_kept or pixels.kept.has(item)
    ]
    calibrators = {name: Calibrator(_features(members[name])) for name in missing}
    size = config.batch_size
    groups = [wanted[start : start + size] for start in range(0, len(wanted), size)]
    with Progress("calibrate", total=len(wanted), unit="images") as progress:
        for group, batch in zip(
            groups, ahead(groups, lambda part: pixels.start(part, size), BATCHES_AHEAD), strict=True
        ):
            good = torch.tensor([place not in batch.bad for place in range(len(group))] + [False] * (size - len(group)))
            views_BHWC = torch.from_numpy(batch.views_BHWC).to(device)
            shown = [(cache.entry(item.segment, item.shard).keys[item.row], item.number) for item in group]
            for name, calibrator in calibrators.items() if good.any() else ():
                kept_BN = sampled(members[name], config.kind.seed, shown)
                calibrator.update(
                    {kind: values.cpu()[good] for kind, values in teachers[name](views_BHWC).items()},
                    None if kept_BN is None else kept_BN[good[: len(group)]],
                )
            progress.advance(len(group))
    for name, calibrator in calibrators.items():
        if not calibrator.images:
            raise CacheError(
                f"{cache.location.url}: not one image of the calibration could be decoded; are these images?"
            )
        data = calibrator.calibration().to_bytes()
        check_calibration(cache, members[name], crc32c(data))
        cache.location.create(members[name].calibration_name, data)


def _features(member: Member) -> Features:
    assert member.features is not None
    return member.features


def check_calibration(cache: Cache, member: Member, crc: int) -> None:
    """CacheError where the member holds features that were made with another calibration than the one just made."""
    for view, segment, tars in cache.committed(member):
        if not tars:
            continue
        unit = cache.unit(segment, min(tars), view)
        before = member.calibration_of(unit)
        if before not in {None, crc}:
            images = member.spec.get("calibration_images", "unknown")
            raise CacheError(
                f"{cache.location.url}/{member.calibration_name} is missing, and the one made now has checksum {crc}, "
                f"not {before} as when {unit} was made. Put the file back, or say the --shards and "
                f"--calibration-images ({images}) that it was made with, on a machine with the same versions"
            )


def calibration_images(cache: Cache, count: int) -> list[Address]:
    """`count` views for the statistics: evenly over the first segment, from at most 256 of its tars, view 0 first."""
    segment = cache.segments[0]
    tars = np.unique(np.linspace(0, len(segment.shards) - 1, min(CALIBRATION_TARS, len(segment.shards))).astype(int))
    rows: Sequence[tuple[int, int]] = [(int(tar), row) for tar in tars for row in range(segment.shards[tar].rows)]
    if count < len(rows):
        rows = [rows[int(place)] for place in np.linspace(0, len(rows) - 1, count)]
    views = -(-count // len(rows))
    return [Address(0, tar, row, number) for number in range(views) for tar, row in rows][:count]


def recorder(member: Member, teacher: Teacher | None) -> Recorder:
    """What fills a member; the calibration is the one that stands in the cache, whoever made it."""
    if teacher is None:
        return PixelRecorder(member, UnitWriter(member, None))
    found = member.calibration()
    if found is None:
        raise CacheError(f"{member.location.url}/{member.calibration_name} vanished; start again")
    calibration, crc = found
    return FeatureRecorder(member, UnitWriter(member, crc), teacher, calibration)
