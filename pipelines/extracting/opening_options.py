"""What opening teachers and their cache needs to know; extraction, `distill --online` and `verify` each say it."""

from dataclasses import dataclass, fields
from typing import Self

from unic_cache.config import DTYPES, ExtractConfig, Views
from unic_cache.config.bounds import check_choice

Pairs = tuple[tuple[str, str], ...]  # (teacher, value); teacher "" means the only teacher, or all of them


@dataclass(frozen=True)
class TeacherOptions:
    """Teachers by name and how to run them; see ExtractConfig for the fields."""

    teachers: tuple[str, ...]
    weights: Pairs = ()
    licence: Pairs = ()
    source: Pairs = ()
    normalize: Pairs = ()
    positions: Pairs = ()
    dtype: str = "float32"

    def __post_init__(self) -> None:
        check_choice("dtype", self.dtype, DTYPES)

    @classmethod
    def of(cls, config: ExtractConfig) -> Self:
        """The options among an extraction's settings."""
        return cls(**{field.name: getattr(config, field.name) for field in fields(cls)})


@dataclass(frozen=True, kw_only=True)
class OpeningOptions(TeacherOptions):
    """Teachers, and the cache that gets their specs and calibrations; see ExtractConfig for the fields."""

    shards: str | None
    cache: str
    kind: Views
    count: int = 1  # views of each image
    codec: str | None = None
    quality: float | None = None
    cls_quality: float | None = None
    coder: str | None = None
    tokens: int | None = None
    sampling: str | None = None
    batch_size: int = 64
    strict: bool = False
    keep_views: bool = False
    pixel_codec: str | None = None
    calibration_images: int
    worker_index: int = 0
    threads: int = 0
