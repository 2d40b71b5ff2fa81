"""The settings of `unic-cache extract` and `unic-cache plan`."""

from dataclasses import dataclass, field
from typing import ClassVar

from unic_cache.config.bounds import check_worker
from unic_cache.config.choices import CENTER, CODECS, DTYPES, FITTED, PIXEL_CODECS, PRECISIONS, RECIPES
from unic_cache.config.options import (
    CACHE,
    DEVICE,
    IMG_SIZE,
    NUM_WORKERS,
    PATCH_SIZE,
    SHARDS,
    THREADS,
    WEIGHTS,
    WORKER_INDEX,
    described,
    option,
)
from unic_cache.config.stage import Stage
from unic_cache.config.views import Views
from unic_cache.errors import ConfigError


@dataclass(frozen=True)
class ExtractConfig(Stage):
    """`unic-cache extract`: tars and teachers to a cache."""

    stage: ClassVar[str] = "extract"
    teachers: tuple[str, ...] = field(
        metadata=described("A teacher's name (see `unic-cache teachers`); repeatable.", metavar="NAME", flag="teacher")
    )
    # (teacher, value) pairs; teacher "" stands for every teacher, or in `weights` for the only one that needs a file
    weights: tuple[tuple[str, str], ...] = option((), WEIGHTS)
    licence: tuple[tuple[str, str], ...] = option(
        (), "Licence to record for weights from a file; repeatable.", metavar="[NAME=]TEXT"
    )
    source: tuple[tuple[str, str], ...] = option(
        (), "Origin to record for weights from a file; repeatable.", metavar="[NAME=]TEXT"
    )
    normalize: tuple[tuple[str, str], ...] = option(
        (),
        "Mean and std of pixels in [0, 1], as r,g,b/r,g,b; repeatable.",
        metavar="[NAME=]MEAN/STD",
        unset="the teacher's",
    )
    positions: tuple[tuple[str, str], ...] = option(
        (),
        "How to resample position embeddings: timm, bicubic or bicubic-scale.",
        metavar="[NAME=]RULE",
        unset="the teacher's",
    )
    shards: str | None = option(None, SHARDS)
    cache: str = option("cache", CACHE)
    views: int | None = option(None, "Views per image.", unset="4, or as many as the cache has; 1 for center")
    recipe: str | None = option(None, "Augmentation recipe.", choices=RECIPES, unset="the cache's, or unic")
    size: int | None = option(None, "View size in pixels.", unset="the cache's, or 224")
    seed: int | None = option(None, "Random seed for the views.", unset="the cache's, or 0")
    codec: str | None = option(None, "Codec for patch tokens.", choices=CODECS, unset="the cache's, or klt")
    quality: float | None = option(None, "Mean cosine that klt aims for.", unset="the cache's, or 0.99")
    tokens: int | None = option(None, "Keep N random patch tokens per view.", metavar="N", unset="the cache's, or all")
    batch_size: int = option(64, "Images per teacher batch.")  # features equal to the bit need an equal batch size
    device: str = option("auto", DEVICE)
    dtype: str = option("float32", "Teachers' arithmetic.", choices=DTYPES)
    keep_views: bool = option(False, "Store the pixels too, so that distill needs neither tars nor decoding.")
    pixel_codec: str | None = option(
        None, "Encoding of the kept views; compact takes 0.3 of raw.", choices=PIXEL_CODECS, unset="the cache's, or raw"
    )
    strict: bool = option(False, "Stop at the first bad image instead of skipping it.")
    calibration_images: int = option(5120, "Views used to estimate statistics and codec tables.")
    threads: int = option(0, THREADS)
    worker_index: int = option(0, WORKER_INDEX)
    num_workers: int = option(1, NUM_WORKERS)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.teachers and not self.keep_views:
            raise ConfigError("no teacher: name at least one with --teacher, or store only pixels with --keep-views")
        check_quality(self.codec, self.quality)
        check_worker(self.worker_index, self.num_workers)

    @property
    def kind(self) -> Views:
        """The views' recipe, size and seed, with UNIC's for those left open."""
        given = {name: getattr(self, name) for name in ("recipe", "size", "seed")}
        return Views(**{name: value for name, value in given.items() if value is not None})

    @property
    def count(self) -> int:
        """Views per image."""
        if self.views is None:
            return 1 if self.recipe == CENTER else 4
        return self.views


@dataclass(frozen=True)
class PlanConfig(ExtractConfig):
    """`unic-cache plan`: an extraction to forecast, and the training that will read it."""

    stage: ClassVar[str] = "plan"
    codec: str | None = option(None, "Use this codec.", choices=CODECS, unset="the one that suits this machine")
    quality: float | None = option(None, "Mean cosine that klt aims for.", unset="0.99")
    tokens: int | None = option(
        None, "Keep N patch tokens per view.", metavar="N", unset="all, compared with a third of them"
    )
    keep_views: bool = option(False, "Count the pixels of the views too.")
    images: int = option(256, "Views to measure on.")
    epochs: float = option(200.0, "Epochs of the training that will read the cache.")
    student: str = option("vit_small_patch16_224", "Student: a timm ViT.", metavar="NAME")
    img_size: int | None = option(None, IMG_SIZE)
    patch_size: int | None = option(None, PATCH_SIZE)
    precision: str = option("no", "Student's mixed precision.", choices=PRECISIONS)


def check_quality(codec: str | None, quality: float | None) -> None:
    """ConfigError if a quality is given for a codec that has none."""
    if quality is not None and codec not in {None, FITTED}:
        raise ConfigError(f"quality is a setting of codec {FITTED}; {codec} has none")
