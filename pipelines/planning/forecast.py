"""What an extraction and the training from it will cost, by arithmetic alone, from what was measured on this machine.

    bytes in all        images * views * bytes per view, over all teachers and the kept pixels
    extraction          images * views * (forward + encode) + calibration, device time; images * views * make, core time
    calibration         per teacher without one: v * (forward + count) + min(v, FITTED_VIEWS) * fit,
                        v = min(--calibration-images, images * views)
    left to do          1 - the share that the cache holds already, of bytes and of extraction
    read rate needed    student's images per second * bytes per view
    feeds               min(disk rate / bytes per view, views read and decoded per second), images per second
    wait                max(0, 1 / feeds - 1 / student's rate): reading is free while it hides behind the step
    pays after          the fewest epochs E with  left * views * (forward + encode) + E * wait <= E * forward

`forward` is all teachers' time for one view. Online distillation pays it for every image in every epoch, a cache once
per view. Making views and the student's step cost the same either way, so the comparison leaves them out.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.planning.evidence import evidence
from unic_cache.config import CODERS, FITTED, RANDOM, ExtractConfig, PlanConfig

FITTED_VIEWS = 512  # at most so many views of a calibration fit the codec
ROUNDING = 1e-9


@dataclass(frozen=True)
class KeptCost:
    """One teacher under one codec, measured on the trial; seconds per view."""

    teacher: str
    codec: str
    tokens: int | None  # patch tokens kept per view; None for all
    bytes_a_view: float
    fidelity: Mapping[str, float]  # token kind -> mean cosine on held-out views, in the standardized space
    encode_seconds: float  # on the device
    read_seconds: float  # with all threads, from memory to standardized tokens on the device
    fit_seconds: float = 0.0  # per view that the codec is fitted to
    held: float = 0.0  # share of all views that the cache holds like this already
    sampling: str = RANDOM  # the rule that gives the positions of `tokens`
    coder: str = CODERS[0]

    @property
    def way(self) -> tuple[str, str, int | None]:
        """Codec, coder and tokens."""
        return self.codec, self.coder, self.tokens


@dataclass(frozen=True)
class StudentCost:
    """A training step of the student; `tokens` as in KeptCost."""

    tokens: int | None
    batch: int
    seconds_an_image: float


@dataclass(frozen=True)
class Costs:
    """All measurements, and what they were taken on."""

    device: str
    threads: int
    images: int  # in all tars
    probe: int  # views measured on; a key of `plan --json`
    make_seconds: float  # per view on one core: decode and augment, or read a kept view
    forward_seconds: Mapping[str, float]  # teacher -> per view, on the device
    kept: tuple[KeptCost, ...]
    student: tuple[StudentCost, ...]
    free_bytes: int | None  # where the cache will be; None if unknown
    disk_rate: float | None  # bytes per second read there, past the page cache; None if unknown
    calibrated_views: int = 0  # per calibration
    # teacher without a calibration -> per view, to count its statistics
    count_seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    pixels_a_view: float = 0.0  # bytes; 0 if pixels are not kept
    pixels_held: float = 0.0  # share of all views whose pixels the cache holds already

    @property
    def forward(self) -> float:
        """Seconds of all teachers for one view."""
        return sum(self.forward_seconds.values())


@dataclass(frozen=True)
class Way:
    """All teachers under one codec, with all tokens or a sample: what it will cost."""

    codec: str
    tokens: int | None
    bytes_a_view: float
    bytes_in_all: float
    bytes_to_write: float  # of these, what the cache lacks
    extract_seconds: float  # device time in all
    rate_needed: float  # bytes per second that the student reads
    feeds: float  # images per second
    keeps_up: bool  # with the student
    begun: bool  # the cache has some of it: with another codec it would not go on
    fits: bool  # what is to be written fits on the disk
    pays_after: int | None  # epochs; None for never
    online_seconds: float  # device time of all epochs with live teachers
    cached_seconds: float  # device time of extraction and of all epochs from the cache
    coder: str = CODERS[0]

    @property
    def stored_as(self) -> str:
        """Codec and coder in words."""
        return stored_as(self.codec, self.coder)


@dataclass(frozen=True)
class Forecast:
    """What was measured, what follows, and what to do: seconds, bytes, images and views, all for this machine."""

    costs: Costs
    views: int
    epochs: float
    ways: tuple[Way, ...]
    chosen: Way
    reason: str
    command: tuple[str, ...]  # the words after `unic-cache extract`
    evidence: str  # what the study found of these settings


def forecast(config: PlanConfig, costs: Costs, asked: bool = True) -> Forecast:
    """The arithmetic of the module's table for every codec measured, and the recommended one.

    `asked`: whether a codec or a coder in the config is the user's; else it is that of the cache's other teachers.
    """
    ways = tuple(way(config, costs, *one) for one in dict.fromkeys(found.way for found in costs.kept))
    chosen, reason = choice(config, ways, asked)
    found = evidence(config.count, chosen.codec, config.quality, chosen.tokens, config.cls_quality)
    return Forecast(costs, config.count, config.epochs, ways, chosen, reason, command(config, chosen), found)


def stored_as(codec: str, coder: str) -> str:
    """A codec, with its coder if that is not the first."""
    return codec if coder == CODERS[0] else f"{codec} {coder}"


def way(config: PlanConfig, costs: Costs, codec: str, coder: str, tokens: int | None) -> Way:
    """All teachers under one codec and coder."""
    kept = [found for found in costs.kept if found.way == (codec, coder, tokens)]
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
        coder=coder,
    )


def calibration_seconds(costs: Costs, kept: KeptCost) -> float:
    """Device time of a teacher's calibration under one codec; 0 if the cache has it."""
    if kept.teacher not in costs.count_seconds:
        return 0.0
    a_view = costs.forward_seconds[kept.teacher] + costs.count_seconds[kept.teacher]
    return costs.calibrated_views * a_view + min(costs.calibrated_views, FITTED_VIEWS) * kept.fit_seconds


def choice(config: PlanConfig, ways: Sequence[Way], asked: bool) -> tuple[Way, str]:
    """The codec and coder asked for or begun with, else the smallest that keeps up with the student and fits."""
    codec = config.codec or (FITTED if config.coder else None)
    tokens = config.tokens if any(one.tokens for one in ways) else None  # teachers without a grid have none to sample
    open_ways = [one for one in ways if one.tokens == tokens and codec in {None, one.codec}]
    open_ways = [one for one in open_ways if config.coder in {None, one.coder}]
    if len(open_ways) == 1 and codec is not None:
        return open_ways[0], "as asked" if asked else "as the cache has it already"
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
    """The words after `unic-cache extract` that start the planned extraction; defaults are left out."""
    fitted = chosen.codec == FITTED
    sampling = config.sampling if chosen.tokens else None
    coder = chosen.coder if config.coder or chosen.coder != CODERS[0] else None  # left open, it may be the cache's
    choices: dict[str, Any] = {
        "codec": chosen.codec,
        "quality": config.quality if fitted else None,
        "cls_quality": config.cls_quality if fitted else None,
        "coder": coder,
        "tokens": chosen.tokens,
        "sampling": sampling,
    }
    words: list[str] = []
    for field in dataclasses.fields(ExtractConfig):
        value = choices.get(field.name, getattr(config, field.name))
        flag = f"--{field.metadata['about'].flag or field.name.replace('_', '-')}"
        if value is True:
            words.append(flag)
        elif isinstance(value, tuple) and value and isinstance(value[0], float):
            words += [flag, ",".join(map(str, value))]
        elif isinstance(value, tuple):  # of texts, or of (teacher, text)
            for one in value:
                words += [flag, one if isinstance(one, str) else "=".join(filter(None, one))]
        elif value not in {None, field.default}:
            words += [flag, str(value)]
    return tuple(words)
