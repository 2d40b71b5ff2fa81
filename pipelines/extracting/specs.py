"""spec.json of a member: what its features or pixels are, and what they were made with."""

import platform
from importlib.metadata import version
from typing import Any

import torch

from unic_cache.config import FITTED, PIXEL_CODECS, ExtractConfig
from unic_cache.errors import ConfigError
from unic_cache.store.calibrate import DEFAULT_QUALITY
from unic_cache.store.layout import FORMAT
from unic_cache.store.member import Member
from unic_cache.teachers.model import Teacher
from unic_cache.views.augment import AUGMENT_VERSION

PROVENANCE = ("about", "source", "published", "licence", "weights_file_sha256")
VERSIONS = ("unic-cache", "torch", "timm", "numpy", "pillow", "zarr")


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
    codec = config.codec or stands.get("codec", FITTED)
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
