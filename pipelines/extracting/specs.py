"""spec.json of a member: what its features or pixels are, and what made them."""

import platform
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import torch

from pipelines.extracting.opening_options import OpeningOptions
from unic_cache.config import (
    CODERS,
    DEFAULT_QUALITY,
    EXACT,
    FITTED,
    FITTED_SETTINGS,
    LATTICE,
    PIXEL_CODECS,
    RecodeConfig,
    default_cls_quality,
)
from unic_cache.errors import ConfigError
from unic_cache.files.location import Location
from unic_cache.store.layout import FORMAT, VIEWS_MEMBER, format_of
from unic_cache.store.member import Member
from unic_cache.teachers.model import Teacher
from unic_cache.teachers.spec import OPEN_CLIP, TRANSFORMERS
from unic_cache.token_kinds import Kinds, kinds_to_json
from unic_cache.views.augment import AUGMENT_VERSION

PROVENANCE = ("about", "source", "published", "licence", "weights_file_sha256")
VERSIONS = ("unic-cache", "torch", "timm", "numpy", "pillow", "zarr", "pcodec")
PACKAGES = {TRANSFORMERS: ("transformers",), OPEN_CLIP: ("open_clip_torch",)}  # of teachers' libraries, beside these


def teacher_spec(
    options: OpeningOptions,
    teacher: Teacher,
    device: torch.device,
    before: Member | None,
    sampling: str,
) -> dict[str, Any]:
    """spec.json of a teacher: its features, its weights, and the settings and versions that made them.

    `calibration_images` are added by who makes it.
    `before` is the member in the cache: its codec, its settings and tokens stay unless `options` names others.
    `sampling` is the rule if tokens are sampled. ConfigError on a quality or a coder for a codec without one.
    """
    dims = kinds_to_json(teacher.spec.kinds)
    spec = {key: value for key, value in teacher.spec.to_json().items() if key not in dims}
    stands = {} if before is None else before.spec
    codec = options.codec or stands.get("codec", FITTED)
    for name in FITTED_SETTINGS:
        if getattr(options, name) is not None and codec != FITTED:
            flag = name.replace("_", "-")
            raise ConfigError(
                f"{flag} is a setting of codec {FITTED}, but {options.cache} keeps {spec['name']} as {codec}; leave "
                f"--{flag} out, or choose another --cache"
            )
    made = {
        "provenance": {key: spec.pop(key) for key in PROVENANCE},
        "teacher": spec,
        "features": dims,
        "codec": codec,
        **(fitted_settings(options, stands, teacher.spec.kinds) if codec == FITTED else {}),
        "tokens": options.tokens or stands.get("tokens"),
        **({"sampling": LATTICE} if sampling == LATTICE else {}),
        "dtype": options.dtype,
        "batch_size": options.batch_size,
        "device": device.type,
        "augment": AUGMENT_VERSION,
        "versions": versions(*PACKAGES.get(teacher.spec.library, ())),
    }
    return {"format": format_of(made), **made}


def fitted_settings(asked: OpeningOptions | RecodeConfig, stands: Mapping[str, Any], kinds: Kinds) -> dict[str, Any]:
    """The fitted codec's settings as a spec.json has them: those asked for, else those of the spec that `stands`.

    Whatever means the same without it is left out, as earlier releases read it.
    """
    coder = asked.coder or stands.get("coder", CODERS[0])
    quality = asked.quality or stands.get("quality", DEFAULT_QUALITY)
    stood = stands.get("cls_quality", EXACT) if stands.get("codec") == FITTED else None
    cls_quality = coded_cls(asked.cls_quality or stood, quality, kinds)
    return {
        "quality": quality,
        **({} if cls_quality is None else {"cls_quality": cls_quality}),
        **({} if coder == CODERS[0] else {"coder": coder}),
    }


def coded_cls(asked: float | None, quality: float, kinds: Kinds) -> float | None:
    """The quality of coded CLS tokens beside patch tokens of `quality`; None: float16, or the teacher has none."""
    found = asked or default_cls_quality(quality)
    return None if found == EXACT or all(kind.grid for kind in kinds.values()) else found


def pixel_codec(asked: str | None, before: Member | None) -> str:
    """The codec of kept pixels: the one asked for, or that of the member in the cache, or raw."""
    return asked or str(({} if before is None else before.spec).get("codec", PIXEL_CODECS[0]))


def kept_spec(location: Location, size: int, codec: str | None) -> dict[str, Any]:
    """spec.json of the views kept in a cache, by the codec asked for, if any; `size` in pixels."""
    return pixel_spec(size, pixel_codec(codec, Member.open(location, VIEWS_MEMBER)))


def pixel_spec(size: int, codec: str) -> dict[str, Any]:
    """spec.json of the member `views`; `size` in pixels."""
    return {
        "format": FORMAT,
        "size": size,
        "codec": codec,
        "augment": AUGMENT_VERSION,
        "versions": versions(),
    }


def versions(*more: str) -> dict[str, str]:
    """Releases of the packages that features may depend on, and of `more` packages."""
    return {"python": platform.python_version(), **{name: version(name) for name in (*VERSIONS, *more)}}
