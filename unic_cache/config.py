"""One frozen dataclass per stage: checked when made, saved as JSON beside what the stage made.

The comment behind a field gives its unit or its meaning; the command line's flags are the same names with dashes.
"""

import re
from dataclasses import dataclass
from typing import ClassVar, Self

from unic_cache.bounds import check_choice, check_numbers, check_worker
from unic_cache.errors import ConfigError
from unic_cache.saved import Saved

RECIPES = ("unic", "light", "center")
CENTER = "center"
PIXEL_CODECS = ("raw", "compact")
CODECS = ("klt", "f16", "int8", "int4")
DTYPES = ("float32", "bfloat16", "float16")
PRECISIONS = ("no", "bf16", "fp16")
NORMALIZATIONS = ("batch", "image")
STANDARDIZATIONS = ("channel", "phi-s", "none")


@dataclass(frozen=True)
class Views:
    """Which views: view `number` of an image is a pure function of (recipe, size, seed, the image's key, number)."""

    recipe: str = "unic"
    size: int = 224  # pixels, height and width
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("recipe", self.recipe, RECIPES)
        check_numbers(self)

    def name(self, number: int) -> str:
        """The view's folder in a store, such as 'unic-224-0-003'."""
        return f"{self.recipe}-{self.size}-{self.seed}-{number:03d}"

    @classmethod
    def parse(cls, name: str) -> tuple[Self, int]:
        """The inverse of `name`."""
        try:
            recipe, size, seed, number = name.split("-")
            return cls(recipe, int(size), int(seed)), int(number)
        except ValueError as error:
            raise ConfigError(f"{name!r} is not a view's name, such as 'unic-224-0-003'") from error


@dataclass(frozen=True)
class ShardConfig(Saved):
    """`unic-cache shard`: an image folder or a CSV of path,label to WebDataset shards."""

    stage: ClassVar[str] = "shard"
    images: str  # a folder with one sub-folder a class, or a .csv whose columns are path,label
    out: str
    per_shard: int = 1000  # images
    prefix: str = ""  # of the tars' names; a cache tells shards apart by name
    seed: int = 0  # of the shuffle
    strict: bool = False  # stop at the first bad image
    val_fraction: float = 0.0  # of each class's images, packed into tars of their own and not to be trained on

    def __post_init__(self) -> None:
        super().__post_init__()
        if not re.fullmatch(r"[A-Za-z0-9_@+-]*", self.prefix):
            raise ConfigError(f"prefix {self.prefix!r} must be of letters, digits, '_', '@', '+' and '-'")


@dataclass(frozen=True)
class ExtractConfig(Saved):
    """`unic-cache extract`: shards and teachers to a cache."""

    stage: ClassVar[str] = "extract"
    teachers: tuple[str, ...]
    weights: tuple[tuple[str, str], ...] = ()  # (teacher, file); teacher "" is the only one that can be meant
    licence: tuple[tuple[str, str], ...] = ()  # (teacher, of its weights); teacher "" is every one, here and below
    source: tuple[tuple[str, str], ...] = ()  # (teacher, where its weights come from)
    normalize: tuple[tuple[str, str], ...] = ()  # (teacher, 'r,g,b/r,g,b': mean and std of pixels in [0, 1])
    positions: tuple[tuple[str, str], ...] = ()  # (teacher, rule by which positions are resampled)
    shards: str | None = None  # None: shards/*.tar, or else the views that the cache keeps
    cache: str = "cache"
    views: int | None = None  # views of each image; None: 4, or 1 of center; more where the cache has
    recipe: str | None = None  # None: the cache's, or else unic
    size: int | None = None  # pixels of a view; None: the cache's, or else 224
    seed: int | None = None  # of the views; None: the cache's, or else 0
    codec: str | None = None  # None: the one that the teacher, or all others, have in the cache, or else klt
    quality: float | None = None  # mean cosine of klt on held-out tokens; None: as before, or else 0.99
    tokens: int | None = None  # patch tokens kept of each view, at random places; None: as before, or else all
    batch_size: int = 64  # images; part of what makes features equal to the bit
    device: str = "auto"
    dtype: str = "float32"  # of the teacher's arithmetic
    keep_views: bool = False
    pixel_codec: str | None = None  # how views are kept; None: as before, or else raw
    strict: bool = False
    calibration_images: int = 5120
    threads: int = 0  # that decode; 0 is one a core
    worker_index: int = 0
    num_workers: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.kind
        if not self.teachers and not self.keep_views:
            raise ConfigError(
                "no teacher: name at least one with --teacher, or keep the pixels alone with --keep-views"
            )
        check_kept(self.codec, self.quality)
        check_choice("pixel-codec", self.pixel_codec or PIXEL_CODECS[0], PIXEL_CODECS)
        check_choice("dtype", self.dtype, DTYPES)
        check_worker(self.worker_index, self.num_workers)

    @property
    def kind(self) -> Views:
        """The views' recipe, size and seed; what is left open is UNIC's."""
        default = Views()
        return Views(
            default.recipe if self.recipe is None else self.recipe,
            default.size if self.size is None else self.size,
            default.seed if self.seed is None else self.seed,
        )

    @property
    def count(self) -> int:
        """How many views of each image."""
        if self.views is None:
            return 1 if self.recipe == CENTER else 4
        return self.views


@dataclass(frozen=True)
class DistillConfig(Saved):
    """`unic-cache distill`: a cache to a student."""

    stage: ClassVar[str] = "distill"
    cache: str = "cache"
    shards: str | None = None  # None: shards/*.tar, or else the views that the cache keeps
    out: str = "runs/student"
    student: str = "vit_base_patch16_224"
    img_size: int | None = None  # pixels; None is the timm model's own
    patch_size: int | None = None  # pixels
    init: str | None = None  # a file or a timm name with pretrained weights; None is random
    teachers: tuple[str, ...] = ()  # none is all in the cache
    online: bool = False  # run the teachers beside the student; no cache
    weights: tuple[tuple[str, str], ...] = ()  # (teacher, file), online
    dtype: str = "float32"  # of the teachers' arithmetic, online
    calibration_images: int = 5120  # online
    recipe: str | None = None  # of the views; None is the only one in the cache; online: unic
    size: int | None = None  # pixels of the views; None is the only size in the cache
    view_seed: int | None = None  # None is the only seed in the cache
    views: int | None = None  # how many of the cached views to cycle through; None is all
    epochs: float = 200.0
    steps: int | None = None  # instead of epochs
    batch_size: int = 512  # images a step, over all processes
    lr: float | None = None  # None is 3e-4 * batch_size / 256
    warmup: float = 0.05  # share of the steps
    min_lr: float = 1e-6
    weight_decay: float = 0.03
    drop_path: float = 0.1
    drop_teacher: float = 0.5  # probability
    ladder_widths: tuple[int, int] | None = None  # hidden, of all blocks and of the last; None is d and 4 d
    tokens: int | None = None  # patch tokens of a view that the loss sees, at random places; None is all that are kept
    standardize: str = "channel"  # how targets are standardized
    normalization: str = "batch"
    precision: str = "no"
    tf32: bool | None = None  # None is on where the device is CUDA
    seed: int = 0
    resume: bool = False
    val_shards: str | None = None  # tars, or from kept views names; the cache remembers them
    use_held_out: bool = False  # train on what earlier runs held out
    eval_every: int = 1000  # steps
    log_every: int = 10  # steps
    save_every: int = 1000  # steps
    tracker: str = "tensorboard"
    threads: int = 0  # that decode; 0 is one a core
    pixel_tolerance: int = 0  # levels of 255
    skip_broken: bool = False  # go on without rows that are not what was committed

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("recipe", self.recipe or RECIPES[0], RECIPES)
        if self.recipe == CENTER:
            raise ConfigError("recipe 'center' is for evaluation and is never trained on; choose unic or light")
        check_choice("normalization", self.normalization, NORMALIZATIONS)
        check_choice("precision", self.precision, PRECISIONS)
        check_choice("dtype", self.dtype, DTYPES)
        if self.weights and not self.online:
            raise ConfigError("--weights are of teachers that --online runs; a cache needs none")
        check_choice("standardize", self.standardize, STANDARDIZATIONS)
        check_choice("tracker", self.tracker, ("tensorboard", "none"))
        if self.min_lr > self.peak_lr():
            raise ConfigError(
                f"min-lr {self.min_lr} is above the peak learning rate {self.peak_lr()}: the rate would rise to the "
                "end; choose --min-lr at most as high"
            )

    def peak_lr(self) -> float:
        """The learning rate after warm-up: UNIC's 3e-4 for each 256 images of a batch, unless `lr` says otherwise."""
        return 3e-4 * self.batch_size / 256 if self.lr is None else self.lr


@dataclass(frozen=True)
class EvaluateConfig(Saved):
    """`unic-cache evaluate`: k-NN of a student, a random student and the cached teachers."""

    stage: ClassVar[str] = "evaluate"
    encoder: str  # a run's folder, or the safetensors file in it
    shards: str | None = None  # leave-one-out on these
    train: str | None = None
    test: str | None = None
    cache: str | None = None  # None leaves the teachers out
    teachers: tuple[str, ...] = ()  # none is all in the cache that have the center view
    size: int | None = None  # pixels of the `center` views; None is the cache's, or the student's own
    neighbours: tuple[int, ...] = (10, 20, 100, 200)
    k: int = 20  # the k of the table
    temperature: float = 0.07
    bootstrap: int = 1000  # resamples of the test images
    seed: int = 0
    batch_size: int = 64
    device: str = "auto"
    threads: int = 0

    def __post_init__(self) -> None:
        if (self.shards is None) == (self.train is None) or (self.train is None) != (self.test is None):
            raise ConfigError("say --shards PATTERN (leave-one-out), or both --train PATTERN and --test PATTERN")
        super().__post_init__()


@dataclass(frozen=True)
class RecodeConfig(Saved):
    """`unic-cache recode`: a cache to another one that keeps less of the same."""

    stage: ClassVar[str] = "recode"
    source: str
    target: str
    codec: str | None = None  # None: the one that the target has already, or else the source's
    quality: float | None = None  # as in ExtractConfig
    tokens: int | None = None  # of those that the source keeps; None: all
    teachers: tuple[str, ...] = ()  # none is all in the source
    views: bool = True  # copy the kept pixels too
    device: str = "auto"
    threads: int = 0  # that read; 0 is one a core
    worker_index: int = 0
    num_workers: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_kept(self.codec, self.quality)
        check_worker(self.worker_index, self.num_workers)

    def is_mine(self, shard: int) -> bool:
        """Whether a tar is of this worker's share."""
        return shard % self.num_workers == self.worker_index


def check_kept(codec: str | None, quality: float | None) -> None:
    """ConfigError if codec and quality are invalid or conflict."""
    check_choice("codec", codec or CODECS[0], CODECS)
    if quality is not None and codec not in {None, "klt"}:
        raise ConfigError(f"quality is a setting of codec klt; {codec} has none")
