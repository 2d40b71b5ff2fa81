"""What an extraction and training from it will cost, by arithmetic alone, from what was measured on this machine.

    bytes in all        images * views * bytes a view, over all teachers and the pixels that are kept
    extraction          images * views * (forward + encode) + calibration, device time; images * views * make, core time
    calibration         of each teacher that has none: v * (forward + count) + min(v, fitted at most) * fit, v being
                        --calibration-images, and no more than images * views
    left to do          1 - the share that the cache holds already, of bytes and of extraction
    read rate needed    student's images a second * bytes a view
    feeds               min(what the disk reads / bytes a view, views read and decoded a second)
    wait                max(0, 1 / feeds - 1 / student's rate): reading costs nothing where it hides behind the step
    pays after          the fewest epochs E with  left * views * (forward + encode) + E * wait <= E * forward

`forward` is that of all teachers for one view. Online distillation pays it for every image in every epoch, a cache once
a view. Making views and the student's step are paid on both sides, so they are left out of the comparison.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unic_cache.bounds import check_choice
from unic_cache.config import CODECS, PRECISIONS, ExtractConfig

LEAST_IMAGES = 10  # of a probe; see bounds.py
FITTED_VIEWS = 512  # of a calibration, at most: the codec is fitted to them
ROUNDING = 1e-9
PAIRS = ("licence", "source", "normalize", "positions")  # fields of (teacher, value)


@dataclass(frozen=True)
class PlanConfig(ExtractConfig):
    """`unic-cache plan`: an extraction, and the training that will read it. It makes nothing, so it is not saved."""

    images: int = 256  # of the probe
    epochs: float = 200.0
    student: str = "vit_small_patch16_224"
    img_size: int | None = None  # pixels of the student's input; None is the model's
    patch_size: int | None = None
    precision: str = "no"  # of the student, mixed

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("precision", self.precision, PRECISIONS)


@dataclass(frozen=True)
class KeptCost:
    """One teacher's answers under one codec, measured on the probe; seconds are of one view."""

    teacher: str
    codec: str
    tokens: int | None  # patch tokens that are kept of each view; None for all
    bytes_a_view: float
    fidelity: Mapping[str, float]  # token type -> mean cosine on held-out views, in the standardized space
    encode_seconds: float  # on the device
    read_seconds: float  # with all threads, from memory to standardized tokens on the device
    fit_seconds: float = 0.0  # to fit the codec, a view that it is fitted to
    held: float = 0.0  # share of all views that the cache holds already, so kept


@dataclass(frozen=True)
class StudentCost:
    """A training step of the student; `tokens` as in KeptCost."""

    tokens: int | None
    batch: int
    seconds_an_image: float


@dataclass(frozen=True)
class Costs:
    """All that was measured, and what of."""

    device: str
    threads: int
    images: int  # in all tars
    probe: int  # views
    make_seconds: float  # of a view, on one core: decode and augment, or read where it is kept
    forward_seconds: Mapping[str, float]  # teacher -> of a view, on the device
    kept: tuple[KeptCost, ...]
    student: tuple[StudentCost, ...]
    free_bytes: int | None  # where the cache will lie; None where nobody can say
    disk_rate: float | None  # bytes a second read there past the page cache
    calibrated_views: int = 0  # that a calibration is of
    # teacher without a calibration -> of a view, to count it there
    count_seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    pixels_a_view: float = 0.0  # bytes; 0 where pixels are not kept
    pixels_held: float = 0.0  # share of all views whose pixels the cache holds already

    @property
    def forward(self) -> float:
        """Seconds of all teachers for one view."""
        return sum(self.forward_seconds.values())


@dataclass(frozen=True)
class Way:
    """All teachers kept by one codec: what it will cost."""

    codec: str
    tokens: int | None
    bytes_a_view: float
    bytes_in_all: float
    bytes_to_write: float  # of them the cache lacks so many
    extract_seconds: float  # device time in all
    rate_needed: float  # bytes a second that the student eats
    feeds: float  # images a second
    keeps_up: bool  # with the student
    begun: bool  # the cache has some of it: with another codec it would not go on
    fits: bool  # what is to be written, on the disk
    pays_after: int | None  # epochs; None for never
    online_seconds: float  # device time of all epochs with live teachers
    cached_seconds: float  # device time of extraction and of all epochs from the cache


@dataclass(frozen=True)
class Forecast:
    """What was measured, what follows, and what to do."""

    costs: Costs
    views: int
    epochs: float
    ways: tuple[Way, ...]
    chosen: Way
    reason: str
    command: tuple[str, ...]  # the words behind `unic-cache extract`

    def to_json(self) -> dict[str, Any]:
        """JSON-ready; seconds, bytes, images and views, all for this machine."""
        return dataclasses.asdict(self)


def forecast(config: PlanConfig, costs: Costs) -> Forecast:
    """The arithmetic of the module's table for every codec that was measured, and the one to take."""
    sets = dict.fromkeys((found.codec, found.tokens) for found in costs.kept)
    ways = tuple(way(config, costs, codec, tokens) for codec, tokens in sets)
    chosen, reason = choice(config, ways)
    return Forecast(costs, config.count, config.epochs, ways, chosen, reason, command(config, chosen))


def way(config: PlanConfig, costs: Costs, codec: str, tokens: int | None) -> Way:
    """All teachers by one codec."""
    kept = [found for found in costs.kept if (found.codec, found.tokens) == (codec, tokens)]
    size = costs.pixels_a_view + sum(found.bytes_a_view for found in kept)
    left = (1 - costs.pixels_held) * costs.pixels_a_view + sum((1 - k.held) * k.bytes_a_view for k in kept)
    step = next(found.seconds_an_image for found in costs.student if found.tokens == tokens)
    read = sum(found.read_seconds for found in kept)
    feeds = 1 / max(read, 0.0 if costs.disk_rate is None else size / costs.disk_rate)
    wait = max(0.0, 1 / feeds - step)
    once = config.count * sum((1 - k.held) * (costs.forward_seconds[k.teacher] + k.encode_seconds) for k in kept)
    once += sum(calibration_seconds(costs, found) for found in kept) / costs.images
    views = costs.images * config.count
    return Way(
        codec,
        tokens,
        size,
        views * size,
        views * left,
        extract_seconds=costs.images * once,
        rate_needed=size / step,
        feeds=feeds,
        keeps_up=wait == 0,
        begun=any(found.held > 0 for found in kept),
        fits=costs.free_bytes is None or views * left <= costs.free_bytes,
        pays_after=math.ceil(once / (costs.forward - wait) - ROUNDING) if wait < costs.forward else None,
        online_seconds=config.epochs * costs.images * (step + costs.forward),
        cached_seconds=costs.images * (once + config.epochs * (step + wait)),
    )


def calibration_seconds(costs: Costs, kept: KeptCost) -> float:
    """Device time of a teacher's calibration under one codec; 0 where the cache has it."""
    if kept.teacher not in costs.count_seconds:
        return 0.0
    a_view = costs.forward_seconds[kept.teacher] + costs.count_seconds[kept.teacher]
    return costs.calibrated_views * a_view + min(costs.calibrated_views, FITTED_VIEWS) * kept.fit_seconds


def choice(config: PlanConfig, ways: Sequence[Way]) -> tuple[Way, str]:
    """The codec asked for, or begun with; else the smallest that keeps up with the student and fits on the disk."""
    open_ways = [one for one in ways if one.tokens == config.tokens]
    asked = [one for one in open_ways if one.codec == config.codec]
    if asked:
        return asked[0], "as asked"
    begun = [one for one in open_ways if one.begun]
    if begun:
        return begun[0], "as the cache has it already"
    fitting = [one for one in open_ways if one.fits]
    if not fitting:
        return min(open_ways, key=lambda one: one.bytes_to_write), "none fits on the disk, and this is the smallest"
    enough = [one for one in fitting if one.keeps_up]
    if enough:
        return min(enough, key=lambda one: one.bytes_in_all), "the smallest that keeps up with the student"
    return max(fitting, key=lambda one: one.feeds), "none keeps up with the student, and this one comes closest"


def command(config: PlanConfig, chosen: Way) -> tuple[str, ...]:
    """The words behind `unic-cache extract` that begin what was planned; what is a default is left out."""
    quality = config.quality if chosen.codec == CODECS[0] else None
    words = [word for name in config.teachers for word in ("--teacher", name)]
    words += [word for name, file in config.weights for word in ("--weights", f"{name}={file}" if name else file)]
    for flag in PAIRS:
        words += [f"--{flag}={name}={text}" if name else f"--{flag}={text}" for name, text in getattr(config, flag)]
    settled: dict[str, Any] = {"codec": chosen.codec, "quality": quality, "tokens": chosen.tokens}
    for field in dataclasses.fields(ExtractConfig):
        value = settled.get(field.name, getattr(config, field.name))
        if field.name not in {"teachers", "weights", *PAIRS} and value not in {None, field.default}:
            words += [f"--{field.name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return tuple(words)
