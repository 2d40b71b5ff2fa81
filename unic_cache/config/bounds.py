"""The bounds of every number that a command takes, by its field's name, and checks that several stages share.

A test walks over all fields and options: a new number needs a row here. Bounds are close enough to real use to catch
typing errors, which would otherwise fill the memory hours later.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from unic_cache.config.choices import DEFAULT_CLS_QUALITY, EXACT, FITTED, FITTED_SETTINGS
from unic_cache.errors import ConfigError

MANY = 10**9
SEEDS = 2**63 - 1
WIDE = 5000
LARGEST_IMAGE = 4096  # pixels, height and width


@dataclass(frozen=True)
class Range:
    """Numbers from `least` to `most`; `above` and `below` exclude that end."""

    least: float
    most: float
    above: bool = False
    below: bool = False

    def check(self, name: str, value: float) -> None:
        """ConfigError with the range if `value` is outside it, infinite or not a number."""
        low = self.least < value if self.above else self.least <= value
        high = value < self.most if self.below else value <= self.most
        if not (math.isfinite(value) and low and high):
            raise ConfigError(f"{name} {value} is out of bounds; choose {self._choices(value)}")

    def _choices(self, value: float) -> str:
        """The range in words; of a wide range, only the end that `value` missed."""
        first = f"{'more than ' if self.above else ''}{_plain(self.least)}"
        if self.most >= WIDE and value < math.inf:
            return f"at most {_plain(self.most)}" if value > self.most else f"{first}{'' if self.above else ' or more'}"
        return f"{first} to {'below ' if self.below else ''}{_plain(self.most)}"


COUNT = Range(1, MANY)
SHARE = Range(0, 1, below=True)
SEED = Range(0, SEEDS)
PIXELS = Range(1, LARGEST_IMAGE)
RANGES = {
    "accumulate": Range(1, 65_536),  # parts of a batch
    "batch_size": Range(1, 65_536),  # images
    "bootstrap": Range(100, 1_000_000),  # resamples
    "calibration_images": Range(10, 10_000_000),
    "clip_grad": Range(0, 1_000_000, above=True),  # a norm
    "cls_quality": Range(0.5, 1),  # a mean cosine; 1: float16
    "crop_scale": Range(0.01, 1),  # of the image's area
    "drop_path": SHARE,
    "drop_teacher": SHARE,
    "ema": Range(0, 1, above=True, below=True),  # decay per step
    "batch": Range(0, MANY),  # of an epoch
    "epoch": Range(0, MANY),
    "epochs": Range(0, 1_000_000, above=True),
    "eval_every": COUNT,  # steps
    "every": Range(0.1, 86_400),  # seconds
    "head_steps": COUNT,
    "images": Range(10, 1_000_000),  # of a trial
    "img_size": PIXELS,
    "keep_checkpoints": Range(1, 10_000),
    "k": Range(1, 1_000_000),
    "ladder_widths": Range(1, 65_536),  # channels
    "log_every": COUNT,  # steps
    "loss_group": Range(1, 65_536),  # images
    "lr": Range(0, 10, above=True),
    "mask_offset": Range(-254, 254),  # classes
    "min_lr": Range(0, 10),
    "neighbours": Range(1, 1_000_000),
    "num_workers": Range(1, 1_000_000),
    "patch_size": PIXELS,
    "pictures": Range(0, 16),  # images
    "per_shard": COUNT,  # images
    "pixel_check": COUNT,  # views
    "pixel_tolerance": Range(0, 255),  # levels
    "quality": Range(0.5, 0.9999),  # a mean cosine
    "rank": Range(0, 999_999),
    "save_every": COUNT,  # steps
    "seed": SEED,
    "size": Range(16, LARGEST_IMAGE),  # pixels of a view
    "steps": COUNT,
    "teacher_check": Range(0, MANY),  # images
    "temperature": Range(0, 100, above=True),
    "threads": Range(0, 1024),
    "tokens": Range(1, (LARGEST_IMAGE // 4) ** 2),
    "val_fraction": SHARE,
    "view_seed": SEED,
    "view": Range(0, 99_999),
    "views": Range(1, 100_000),
    "warmup": SHARE,
    "weight_decay": Range(0, 10),
    "worker_index": Range(0, 999_999),
    "world": Range(1, 1_000_000),  # processes
}


def check_numbers(config: Any) -> None:
    """ConfigError if a number of a config, or of a tuple in it, is out of bounds."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int | float) and not isinstance(number, bool):
                RANGES[field.name].check(field.name.replace("_", "-"), number)


def check_integers(given: Mapping[str, Any]) -> None:
    """ConfigError if a number that is given is not a whole one, or out of bounds."""
    for name, value in given.items():
        if value is not None:
            if isinstance(value, bool) or not isinstance(value, Integral):
                raise ConfigError(f"{name} {value!r} is not a whole number")
            RANGES[name].check(name, int(value))


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """ConfigError with the choices unless `value` is one of them."""
    if value not in choices:
        raise ConfigError(f"{name} {value!r} is unknown; choose from {', '.join(choices)}")


def default_cls_quality(quality: float) -> float:
    """The `cls_quality` where none is asked for: CLS tokens are never coarser than patch tokens of this quality."""
    return DEFAULT_CLS_QUALITY if quality <= DEFAULT_CLS_QUALITY else EXACT


def check_worker(index: int, count: int) -> None:
    """ConfigError unless worker `index` is one of `count`, counted from 0."""
    if not 0 <= index < count:
        raise ConfigError(f"worker-index {index} is not one of 0 to {count - 1}")


def check_fitted(config: Any) -> None:
    """ConfigError if a config has a setting of the fitted codec, such as quality, for one that has none."""
    for name in FITTED_SETTINGS if config.codec not in {None, FITTED} else ():
        if getattr(config, name) is not None:
            raise ConfigError(f"{name.replace('_', '-')} is a setting of codec {FITTED}; {config.codec} has none")


def _plain(number: float) -> str:
    return f"{number:,}" if number < SEEDS else "2**63 - 1"
