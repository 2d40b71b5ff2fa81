"""The settings of stage one, and of the commands that read or rewrite a cache."""

import re
from dataclasses import dataclass, field

from unic_cache.config.bounds import check_fitted, check_worker
from unic_cache.config.choices import (
    CENTER,
    CODECS,
    CODERS,
    DEFAULT_CLS_QUALITY,
    DEFAULT_QUALITY,
    DEFAULT_VIEWS,
    DTYPES,
    FITTED,
    PIXEL_CODECS,
    PRECISIONS,
    RECIPES,
    SAMPLINGS,
)
from unic_cache.config.options import (
    CACHE,
    CROP_SCALE,
    DEVICE,
    DEVICES,
    IMG_SIZE,
    NUM_WORKERS,
    PATCH_SIZE,
    RAY,
    SHARDS,
    STUDENT,
    THREADS,
    WEIGHTS,
    WORKER_INDEX,
    About,
    described,
    option,
)
from unic_cache.config.stage import Stage
from unic_cache.config.views import Views, check_crop_scale
from unic_cache.errors import ConfigError
from unic_cache.files.paths import WRITTEN_HERE, check_here

QUALITY = f"Mean cosine that {FITTED} aims for; docs/STUDY.md says how little will do."
CLS_QUALITY = f"The same of CLS tokens under {FITTED}; 1 keeps them in float16."
CLS_DEFAULT = f"{DEFAULT_CLS_QUALITY}; 1 beside a higher --quality"
CODER = f"Entropy coder of {FITTED}: pcodec is smaller, zstd decodes faster."


@dataclass(frozen=True)
class ShardConfig(Stage):
    """`unic-cache shard`: images with their labels to WebDataset tars."""

    images: str  # a folder of images or of class folders, a .csv of path,label, or a .json as iNaturalist's
    out: str
    lists: tuple[str, ...] = option(
        (), "A split's list: only the images it names; repeatable. See docs/EVALUATION.md.", "FILE", flag="list"
    )
    masks: str | None = option(None, "Folder of masks: PNGs of class numbers, named as the images.", "DIR")
    mask_offset: int = option(0, "Added to each class in the masks but 255; below 0 becomes 255.", "N")
    depths: str | None = option(None, "Folder of depth maps: uint16 PNGs in mm, or .npy in metres.", "DIR")
    per_shard: int = option(1000, "Images per tar.")
    prefix: str = option("", "Tar-name prefix; use a different one for each set that shares a cache.")
    seed: int = option(0, "Random seed for the shuffle.")
    strict: bool = option(False, "Stop at the first bad image instead of skipping it.")
    val_fraction: float = option(0.0, "Fraction of each class to hold out of training, in val-*.tar.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not re.fullmatch(r"[A-Za-z0-9_@+-]*", self.prefix):
            raise ConfigError(f"prefix {self.prefix!r} may only have letters, digits, '_', '@', '+' and '-'")
        if self.mask_offset and self.masks is None:
            raise ConfigError("--mask-offset changes the classes in masks: add --masks DIR")


@dataclass(frozen=True)
class ExtractConfig(Stage):
    """`unic-cache extract`: tars and teachers to a cache.

    In (teacher, value) pairs, teacher "" stands for all, or in `weights` for the only one that needs a file.
    """

    teachers: tuple[str, ...] = field(
        metadata=described("A teacher's name (see `unic-cache teachers`); repeatable.", "NAME", flag="teacher")
    )
    weights: tuple[tuple[str, str], ...] = option((), WEIGHTS)
    licence: tuple[tuple[str, str], ...] = option((), "Licence to record for the weights; repeatable.", "[NAME=]TEXT")
    source: tuple[tuple[str, str], ...] = option((), "Origin to record for the weights; repeatable.", "[NAME=]TEXT")
    normalize: tuple[tuple[str, str], ...] = option(
        (), "Mean and std of pixels in [0, 1], as r,g,b/r,g,b; repeatable.", "[NAME=]MEAN/STD", unset="the teacher's"
    )
    positions: tuple[tuple[str, str], ...] = option(
        (), "Resampling of positions: timm, bicubic, bicubic-scale; repeatable.", "[NAME=]RULE", unset="the teacher's"
    )
    shards: str | None = option(None, SHARDS)
    cache: str = option("cache", CACHE)
    views: int | None = option(
        None,
        "Views per image; docs/STUDY.md says how few will do.",
        unset=f"{DEFAULT_VIEWS}, or more if the cache has more; 1 for center",
    )
    recipe: str | None = option(None, "Augmentation recipe.", choices=RECIPES, unset="the cache's, or unic")
    size: int | None = option(None, "View size in pixels.", unset="the cache's, or 224")
    seed: int | None = option(None, "Random seed for the views.", unset="the cache's, or 0")
    crop_scale: tuple[float, float] | None = option(None, CROP_SCALE, "LEAST,MOST", unset="the cache's, or 0.08,1")
    codec: str | None = option(None, "Codec for patch tokens.", choices=CODECS, unset=f"the cache's, or {FITTED}")
    quality: float | None = option(None, QUALITY, unset=f"the cache's, or {DEFAULT_QUALITY}")
    cls_quality: float | None = option(None, CLS_QUALITY, unset=f"the cache's, or {CLS_DEFAULT}")
    coder: str | None = option(None, CODER, choices=CODERS, unset=f"the cache's, or {CODERS[0]}")
    tokens: int | None = option(None, "Keep N patch tokens per view.", "N", unset="the cache's, or all")
    sampling: str | None = option(
        None,
        "Positions of the N tokens: a regular lattice of the grid, or random ones.",
        choices=SAMPLINGS,
        unset="the cache's, or lattice for grids that N divides evenly",
    )
    batch_size: int = option(64, "Images per teacher batch.")  # features equal to the bit need an equal batch size
    device: str = option("auto", DEVICES)
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
    ray: str | None = option(None, RAY)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.teachers and not self.keep_views:
            raise ConfigError("no teacher: name at least one with --teacher, or store only pixels with --keep-views")
        check_crop_scale(self.crop_scale)
        check_fitted(self)
        check_worker(self.worker_index, self.num_workers)

    @property
    def kind(self) -> Views:
        """The views' recipe, size, seed and crop scale, with UNIC's for those left open."""
        given = {name: getattr(self, name) for name in ("recipe", "size", "seed", "crop_scale")}
        return Views(**{name: value for name, value in given.items() if value is not None})

    @property
    def count(self) -> int:
        """Views per image."""
        return self.views if self.views is not None else 1 if self.recipe == CENTER else DEFAULT_VIEWS


@dataclass(frozen=True)
class PlanConfig(ExtractConfig):
    """`unic-cache plan`: an extraction to forecast, and the training that will read it."""

    codec: str | None = option(None, "Use this codec.", choices=CODECS, unset="the one that suits this machine")
    quality: float | None = option(None, QUALITY, unset=f"{DEFAULT_QUALITY}")
    cls_quality: float | None = option(None, CLS_QUALITY, unset=CLS_DEFAULT)
    coder: str | None = option(None, CODER, choices=CODERS, unset="the one that suits this machine")
    tokens: int | None = option(None, "Keep N patch tokens per view.", "N", unset="all, and a quarter to compare")
    device: str = option("auto", DEVICE)
    keep_views: bool = option(False, "Count the pixels of the views too.")
    images: int = option(256, "Views to measure on.")
    epochs: float = option(200.0, "Epochs of the training that will read the cache.")
    student: str = option("vit_small_patch16_224", STUDENT, "NAME")
    img_size: int | None = option(None, IMG_SIZE)
    patch_size: int | None = option(None, PATCH_SIZE)
    precision: str = option("no", "Student's mixed precision.", choices=PRECISIONS)


@dataclass(frozen=True)
class RecodeConfig(Stage):
    """`unic-cache recode`: a cache to another one with another codec or fewer tokens."""

    source: str = field(metadata=described(metavar="SRC"))
    target: str = field(metadata=described(metavar="DST"))
    codec: str | None = option(None, "Codec for patch tokens.", choices=CODECS, unset="DST's, or SRC's")
    quality: float | None = option(
        None, f"Mean cosine to SRC that {FITTED} aims for.", unset=f"DST's, or SRC's, or {DEFAULT_QUALITY}"
    )
    cls_quality: float | None = option(None, CLS_QUALITY, unset=f"DST's, or SRC's, or {CLS_DEFAULT}")
    coder: str | None = option(None, CODER, choices=CODERS, unset=f"DST's, or SRC's, or {CODERS[0]}")
    tokens: int | None = option(None, "Keep N patch tokens per view.", "N", unset="DST's, or SRC's")
    sampling: str | None = option(
        None,
        "Positions of the N tokens: a regular lattice of the grid, or random ones.",
        choices=SAMPLINGS,
        unset="DST's, or SRC's, or lattice for grids that N divides evenly",
    )
    teachers: tuple[str, ...] = option((), "A teacher in SRC; repeatable.", "NAME", unset="all", flag="teacher")
    views: bool = option(True, "Copy the kept pixels too.")
    device: str = option("auto", DEVICES)
    threads: int = option(0, THREADS)
    worker_index: int = option(0, WORKER_INDEX)
    num_workers: int = option(1, NUM_WORKERS)
    ray: str | None = option(None, RAY)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fitted(self)
        check_worker(self.worker_index, self.num_workers)

    def is_mine(self, shard: int) -> bool:
        """Whether this worker recodes tar number `shard`."""
        return shard % self.num_workers == self.worker_index


@dataclass(frozen=True)
class InspectConfig(Stage):
    """`unic-cache inspect`: what a cache holds, or what a cache or a student was made from."""

    cache: str = field(metadata=described(metavar="CACHE_OR_ENCODER"))
    provenance: bool = option(False, "Show weights, sources, licences, preprocessing and versions.")
    pictures: str | None = option(None, "Draw what it holds into this folder, as a page and PNG files.", "OUT")
    student: str | None = option(None, "With --pictures: a run; draws the images that it finds hardest.", "RUN")
    shards: str | None = option(
        None, About("With --pictures: the tars.", "PATTERN", unset="kept views, else the run's tars", once=True)
    )
    threads: int = option(0, THREADS)

    def __post_init__(self) -> None:
        super().__post_init__()
        for flag, path, why in (("pictures", self.pictures, WRITTEN_HERE), ("student", self.student, "")):
            if path is not None:
                check_here(path, flag, why)
        if self.pictures is None and (self.student is not None or self.shards is not None):
            raise ConfigError("--student and --shards are for pictures: add --pictures OUT")
        if self.pictures is not None and self.provenance:
            raise ConfigError("--provenance and --pictures are two reports; ask for one")


@dataclass(frozen=True)
class VerifyConfig(Stage):
    """`unic-cache verify`: a cache against its commit records."""

    cache: str
    shards: str | None = option(None, "Tars, to make a sample of views again and compare pixels.", "PATTERN")
    pixel_check: int | None = option(None, "Views to make again.", "N", unset="64, with --shards")
    teacher_check: int = option(0, "Images to run each teacher on again.", "N", unset="none")
    weights: tuple[tuple[str, str], ...] = option((), WEIGHTS)
    device: str = option("auto", DEVICE)
    threads: int = option(0, THREADS)
    ray: str | None = option(None, RAY)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pixel_check is not None and self.shards is None:
            raise ConfigError("--pixel-check makes views again from tars: add --shards PATTERN")


@dataclass(frozen=True)
class StatusConfig(Stage):
    """`unic-cache status`: how far an extraction is."""

    cache: str
    watch: bool = option(False, "Repeat until nothing is missing, or until Ctrl-C.")
    every: float = option(10.0, "Seconds between two looks (--watch).")


@dataclass(frozen=True)
class RepairConfig(Stage):
    """`unic-cache repair`: un-commit what is broken."""

    cache: str
    dry_run: bool = option(False, "Only print what would be done.")
    threads: int = option(0, THREADS)
