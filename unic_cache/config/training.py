"""The settings of training."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from unic_cache.config.choices import (
    BALANCINGS,
    CENTER,
    DTYPES,
    LOSSES,
    PRECISIONS,
    PROJECTORS,
    STANDARDIZATIONS,
    TRACKERS,
    TRAINED_RECIPES,
)
from unic_cache.config.options import (
    CACHE,
    CROP_SCALE,
    IMG_SIZE,
    PATCH_SIZE,
    SHARDS,
    STUDENT,
    TEACHERS,
    THREADS,
    option,
)
from unic_cache.config.stage import Stage
from unic_cache.config.views import check_crop_scale
from unic_cache.errors import ConfigError

RENAMED = {"normalization": "balancing"}  # fields of earlier releases, in the config.json of their runs


@dataclass(frozen=True)
class DistillConfig(Stage):
    """`unic-cache distill`: a cache to a student."""

    cache: str = option("cache", CACHE)
    shards: str | None = option(None, SHARDS)
    student: str = option("vit_base_patch16_224", STUDENT, "NAME")
    out: str = option("runs/student", "Run folder: a path or a URL.", "DIR")
    teachers: tuple[str, ...] = option((), TEACHERS)
    online: bool = option(False, "Run the teachers beside the student instead of reading a cache (to compare).")
    weights: tuple[tuple[str, str], ...] = option(
        (), "A teacher's weights file (--online only); repeatable.", "[NAME=]FILE"
    )
    dtype: str = option("float32", "Teachers' arithmetic (--online only).", choices=DTYPES)
    calibration_images: int = option(5120, "Views used to estimate statistics (--online only).")
    img_size: int | None = option(None, IMG_SIZE)
    patch_size: int | None = option(None, PATCH_SIZE)
    init: str | None = option(
        None, "Initial weights: a file, [timm:]NAME, or a teacher such as dino[@SIZE].", "FILE_OR_NAME", unset="random"
    )
    from_run: str | None = option(
        None, "Start from a finished run: its encoder and its projectors.", "RUN", unset="random", flag="from"
    )
    normalize: str | None = option(
        None,
        "Mean/std of the student's pixels: imagenet, model (timm's for --student), or MEAN/STD.",
        "RULE",
        unset="of the model that --init or --from names, else imagenet",
    )
    recipe: str | None = option(None, "Augmentation recipe.", choices=TRAINED_RECIPES, unset="the cache's")
    size: int | None = option(None, "View size in pixels.", unset="the cache's")
    view_seed: int | None = option(None, "Random seed of the views.", unset="the cache's")
    crop_scale: tuple[float, float] | None = option(None, CROP_SCALE, "LEAST,MOST", unset="the cache's, or 0.08,1")
    views: int | None = option(None, "Views to cycle through.", unset="all")
    allow_missing: bool = option(False, "Also train on images that some teacher lacks: it counts as dropped for them.")
    epochs: float = option(200.0, "Passes over the images.")
    steps: int | None = option(None, "Training steps, instead of --epochs.")
    batch_size: int = option(512, "Images per step, over all processes.")
    lr: float | None = option(None, "Peak learning rate.", unset="3e-4 * batch/256")
    warmup: float = option(0.05, "Fraction of the steps spent on warm-up.")
    min_lr: float = option(1e-6, "Final learning rate.")
    weight_decay: float = option(0.03, "AdamW's weight decay.")
    drop_path: float = option(0.1, "Stochastic depth of the last block.")
    drop_teacher: float = option(0.5, "Probability of dropping a teacher.")
    projector: str = option(
        "ladder",
        "Projectors: an MLP on every block (UNIC), one on the last, or a transformer block on the last (DUNE).",
        choices=PROJECTORS,
    )
    ladder_widths: tuple[int, int] | None = option(
        None, "Projectors' hidden widths: of all blocks, and of the last.", "H,LAST", unset="d,4d; UNIC's are 768,3072"
    )
    shared_projectors: bool = option(
        False, "Share each teacher's projectors between summary and patch tokens of equal width."
    )
    loss: str = option("unic", "Loss of a token: UNIC's or AM-RADIO's.", choices=LOSSES)
    balancing: str = option(
        "batch",
        "Teachers: dropped, the loss averaged over the batch (UNIC) or per image; or none dropped.",
        choices=BALANCINGS,
        formerly="normalization",
    )
    loss_group: int | None = option(
        None, "Average the loss over groups of N images of a batch; 128 is the authors'.", "N", unset="the whole batch"
    )
    ema: float | None = option(
        None, "Export a moving average of the weights, with this decay per step.", "DECAY", unset="off"
    )
    clip_grad: float | None = option(None, "Clip the gradient to this norm.", "NORM", unset="off")
    accumulate: int = option(1, "Parts that each process takes its share of the batch in, to save memory.", "N")
    shard_student: bool = option(
        False,
        "Give each process a part of the student and of AdamW's state (FSDP), for students too large for one GPU.",
    )
    compile: bool = option(False, "Compile the student's encoder with torch.compile.")
    kinds: tuple[str, ...] = option(
        (), "A token kind for the loss, such as cls or patch; repeatable.", "KIND", unset="all that the teachers give"
    )
    tokens: int | None = option(None, "Use N patch tokens per view in the loss.", "N", unset="all stored")
    standardize: str = option(
        "channel", "Target standardization: per channel (UNIC), PHI-S's one scale, or none.", choices=STANDARDIZATIONS
    )
    precision: str = option("no", "Mixed precision.", choices=PRECISIONS)
    tf32: bool | None = option(None, "Use TF32 for the student's matrix products.", unset="on CUDA")
    seed: int = option(0, "Random seed of the run.")
    resume: bool = option(False, "Resume from the checkpoint in --out.")
    resume_if_any: bool = option(False, "Resume if --out holds a run, else begin one: one command for requeued jobs.")
    val_shards: str | None = option(
        None, "Tars (or, without tars, names in the cache) held out for validation.", "PATTERN"
    )
    use_held_out: bool = option(False, "Also train on tars that earlier runs held out.")
    knn_shards: str | None = option(
        None, "Labelled tars: log the student's leave-one-out k-NN on them at every validation.", "PATTERN"
    )
    eval_every: int = option(1000, "Steps between validations.")
    log_every: int = option(10, "Steps between log lines.")
    save_every: int = option(1000, "Steps between checkpoints.")
    keep_checkpoints: int = option(1, "Checkpoints to keep, the newest ones.", "K")
    tracker: str = option("tensorboard", "Experiment tracker.", choices=TRACKERS)
    project: str = option("unic-cache", "Project in the tracker; the run is named after --out.", "NAME")
    pixel_tolerance: int = option(
        0, "Largest difference of the probed views from the teachers', of 255; above 0, other rows are not checked."
    )
    skip_broken: bool = option(False, "Skip and count rows that are not as committed, instead of stopping.")
    threads: int = option(0, THREADS)

    def __post_init__(self) -> None:
        if self.recipe == CENTER:
            raise ConfigError(f"recipe {CENTER!r} is for evaluation only; train on unic or light")
        super().__post_init__()
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 _.-]{0,99}", self.project):
            raise ConfigError(
                f"project {self.project!r} is no name that every tracker takes; use up to 100 letters, digits, ' ', "
                "'_', '.' and '-', beginning with a letter or digit"
            )
        if self.weights and not self.online:
            raise ConfigError("--weights are of teachers that --online runs; a cache needs none")
        if self.init is not None and self.from_run is not None:
            raise ConfigError("--init and --from both give the encoder's weights; choose one")
        if self.online and self.out.startswith(("s3://", "gs://")):
            raise ConfigError("--online keeps the teachers' calibrations in --out, which must be a local folder for it")
        if self.allow_missing and self.online:
            raise ConfigError("--allow-missing is for teachers half done in a cache; --online runs them on every image")
        if self.balancing == "none" and self.drop_teacher not in {0.0, 0.5}:
            raise ConfigError(f"--drop-teacher {self.drop_teacher} has no effect with --balancing none; leave one out")
        if self.batch_size % self.accumulate:
            raise ConfigError(f"--batch-size {self.batch_size} does not divide by --accumulate {self.accumulate}")
        if self.shard_student:
            self._check_sharding()
        if self.loss_group is not None:
            self._check_groups(self.loss_group)
        check_crop_scale(self.crop_scale)
        if self.min_lr > self.peak_lr():
            raise ConfigError(
                f"min-lr {self.min_lr} is above the peak learning rate {self.peak_lr()}: the rate would rise to the "
                "end; choose --min-lr at most as high"
            )

    def _check_groups(self, group: int) -> None:
        if self.balancing != "batch":
            raise ConfigError(f"--loss-group {group} has no effect with --balancing {self.balancing}; leave one out")
        if self.batch_size % group:
            raise ConfigError(f"--batch-size {self.batch_size} is not made of groups of --loss-group {group} images")

    def _check_sharding(self) -> None:
        others = {
            "ema": (self.ema is not None, "each process has a part of the weights, and the average needs all"),
            "compile": (self.compile, "the compiled encoder would not gather its weights"),
            "precision fp16": (self.precision == "fp16", "use bf16, which needs no gradient scaler"),
            "knn-shards": (self.knn_shards is not None, "one process alone has no whole encoder; use `evaluate`"),
        }
        for flag, (given, why) in others.items():
            if given:
                raise ConfigError(f"--{flag} does not work with --shard-student: {why}")

    def peak_lr(self) -> float:
        """The learning rate after warm-up: UNIC's 3e-4 per 256 images of a batch, unless `lr` is set."""
        return 3e-4 * self.batch_size / 256 if self.lr is None else self.lr

    def total_steps(self, images: int) -> int:
        """Steps of a run on so many images: `steps`, or else `epochs` in whole batches, at least one."""
        return self.steps or max(1, round(self.epochs * images / self.batch_size))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """As `Stage.from_json`; earlier releases' settings are read too."""
        return super().from_json(renamed(data))


def renamed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A run's settings under today's names."""
    return {RENAMED.get(name, name): value for name, value in settings.items()}
