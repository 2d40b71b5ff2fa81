"""What an extraction will cost, before it is begun: measured on a probe, then arithmetic, then a command.

    probe views -> each teacher -> each codec, with all tokens and with a sample -> the student's step, the disk
        -> forecast

It writes to the temporary folder, and a file where the cache will lie; both are gone when it ends.
"""

import dataclasses
import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from rich.table import Table

from pipelines.command.caches import tell_guests
from pipelines.command.device import device_words, pick_device
from pipelines.command.printing import print_table, results
from pipelines.command.progress import Progress, begins
from pipelines.extracting.calibrating import calibrated_views
from pipelines.extracting.kinds import settled
from pipelines.extracting.options import TeacherOptions
from pipelines.extracting.specs import pixel_codec
from pipelines.extracting.teacher_weights import announce, load_teachers
from pipelines.planning.codec_costs import Answers, ask, kept_features, measure_codec
from pipelines.planning.forecast import Costs, Forecast, KeptCost, PlanConfig, Way, calibration_seconds, forecast
from pipelines.planning.held import Held
from pipelines.planning.step_costs import disk, student_cost
from pipelines.planning.trial import Probe, make_probe, pixel_bytes
from unic_cache.ahead import thread_pool
from unic_cache.cache import Cache
from unic_cache.config import CODECS
from unic_cache.errors import CacheError, ConfigError
from unic_cache.files.local import LocalFolder
from unic_cache.files.schemes import open_location
from unic_cache.store.codecs.codec import FITTED, FeatureCodec
from unic_cache.student.backbone import encoder_spec
from unic_cache.teachers.model import Teacher
from unic_cache.tokens import grid_of

SAMPLE = 3  # where no --tokens are said, one token of so many is compared with all
HOUR = 3600.0
GB, MB = 1e9, 1e6


def run(config: PlanConfig) -> Forecast:
    """Measure and reckon. ConfigError where no teacher is named, or the student cannot be made."""
    device = pick_device(config.device)
    if not config.teachers:
        raise ConfigError("no teacher: name at least one with --teacher")
    encoder_spec(config.student, config.img_size, config.patch_size)
    cache = Cache(open_location(config.cache))
    tell_guests(config.cache, cache.guests)
    config = settled(config, cache)
    begins(
        "plan",
        f"{', '.join(config.teachers)} on {device_words(device)}, {config.dtype}",
        f"a probe of {config.images} views of {config.kind.size} px",
        f"batch {config.batch_size}",
        f"student {config.student}",
    )
    free, rate = disk(open_location(config.cache))
    with thread_pool(config.threads) as pool:
        teachers = load_teachers(TeacherOptions.of(config), device)
        announce(teachers)
        counts = token_counts(config, teachers)
        codecs = [codec for codec in CODECS if possible(codec, config, teachers)]
        probe = make_probe(config, pool)
        held = Held(config, probe.shards)
        forward: dict[str, float] = {}
        counting: dict[str, float] = {}
        kept: list[KeptCost] = []
        total = len(teachers) * (1 + len(codecs) * len(counts)) + len(counts)
        with Progress("plan", total, "measurements") as progress:
            for name, teacher in teachers.items():
                answers = ask(teacher, probe, config.batch_size)
                forward[name] = answers.seconds
                if not held.calibrated(name):
                    counting[name] = answers.count_seconds
                progress.advance(1)
                for cost in codec_costs(config, answers, probe, held, codecs, counts, pool):
                    kept.append(cost)
                    progress.advance(1)
            steps = []
            for tokens in counts:
                steps.append(student_cost(config, list(teachers.values()), tokens))
                progress.advance(1)
    codec = pixel_codec(config.pixel_codec, held.pixels)
    costs = Costs(
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        threads=config.threads or len(os.sched_getaffinity(0)),
        images=sum(probe.shards.values()),
        probe=len(probe.shown),
        make_seconds=probe.make_seconds,
        forward_seconds=forward,
        kept=tuple(kept),
        student=tuple(steps),
        free_bytes=free,
        disk_rate=rate,
        calibrated_views=calibrated_views(config.calibration_images, config.count * sum(probe.shards.values())),
        count_seconds=counting,
        pixels_a_view=pixel_bytes(probe, codec) if config.keep_views else 0.0,
        pixels_held=held.of_pixels(codec),
    )
    return forecast(config, costs)


def token_counts(config: PlanConfig, teachers: Mapping[str, Teacher]) -> list[int | None]:
    """All tokens, and the sample to compare them with. CacheError where a teacher has not so many."""
    grids = {name: grid for name, t in teachers.items() if (grid := grid_of(t.spec.kinds))}
    if not grids:
        return [None]
    name, least = min(((name, math.prod(grid)) for name, grid in grids.items()), key=lambda pair: pair[1])
    if config.tokens is not None and config.tokens > least:
        raise CacheError(
            f"{name} has {least} patch tokens, and {config.tokens} are to be kept; say fewer with --tokens"
        )
    return [None, config.tokens or max(least // SAMPLE, 1)]


def possible(codec: str, config: PlanConfig, teachers: Mapping[str, Teacher]) -> bool:
    """Whether a codec can keep what every teacher says; CacheError where it cannot and was asked for."""
    try:
        for teacher in teachers.values() if codec != FITTED else ():
            FeatureCodec(kept_features(teacher, codec, config.quality, None))
    except CacheError:
        if codec == config.codec:
            raise
        return False
    return True


def codec_costs(
    config: PlanConfig,
    answers: Answers,
    probe: Probe,
    held: Held,
    codecs: Sequence[str],
    counts: Sequence[int | None],
    pool: ThreadPoolExecutor,
) -> Iterator[KeptCost]:
    """One teacher by each codec, with all tokens and with a sample of them; each in a store of its own that goes."""
    for tokens in counts:
        for codec in codecs:
            features = kept_features(answers.teacher, codec, config.quality, tokens)
            with tempfile.TemporaryDirectory(prefix="unic-cache-plan-") as folder:
                cost = measure_codec(answers, features, probe, config.kind.seed, LocalFolder(folder), pool)
            yield dataclasses.replace(cost, held=held.of_teacher(cost.teacher, features))


def show(found: Forecast) -> None:
    """The forecast for people: each teacher by each codec, all teachers together, and in words."""
    console = results()
    costs = found.costs
    console.print(
        f"{costs.images:,} images, {found.views} views of each, measured on {costs.probe} views, {costs.device}"
    )
    print_table(console, teacher_table(found))
    print_table(console, way_table(found))
    console.print("\n".join(sentences(found)), soft_wrap=True)


def teacher_table(found: Forecast) -> Table:
    """Bytes and fidelity of each teacher by each codec; the cosine is that of patch tokens, or of CLS without any."""
    table = columns("teacher", "tokens", "codec", "bytes a view", "GB in all", "cosine")
    before = ""
    for kept in found.costs.kept:
        in_all = found.costs.images * found.views * kept.bytes_a_view / GB
        cosine = kept.fidelity.get("patch", kept.fidelity.get("cls", math.nan))
        name = kept.teacher if kept.teacher != before else ""
        size = f"{kept.bytes_a_view:,.0f}", f"{in_all:,.3g}"
        table.add_row(name, tokens_text(kept.tokens), kept.codec, *size, f"{cosine:.4f}")
        before = kept.teacher
    return table


def way_table(found: Forecast) -> Table:
    """All teachers together by each codec: what is kept, what the student eats, and from when on it pays."""
    table = columns("all teachers", "tokens", "codec", "GB in all", "MB/s eaten", "images/s fed", "pays after")
    for one in found.ways:
        mark = "* " if one == found.chosen else ""
        size = f"{one.bytes_in_all / GB:,.3g}{'' if one.fits else ' (!)'}"
        pays = "never" if one.pays_after is None else f"{one.pays_after} epochs"
        fed = f"{one.feeds:,.0f}{'' if one.keeps_up else ' (!)'}"
        table.add_row(mark, tokens_text(one.tokens), one.codec, size, f"{one.rate_needed / MB:,.3g}", fed, pays)
    return table


def sentences(found: Forecast) -> list[str]:
    """What the tables do not say."""
    costs, chosen = found.costs, found.chosen
    each = ", ".join(f"{name} {1e3 * seconds:,.2f}" for name, seconds in costs.forward_seconds.items())
    student = ", ".join(
        f"{1 / step.seconds_an_image:,.1f} images/s with {tokens_text(step.tokens)} tokens (batch {step.batch})"
        for step in costs.student
    )
    lacking = chosen.bytes_to_write / chosen.bytes_in_all
    held = [f"the cache holds {1 - lacking:.0%} of it already"] if lacking < 1 else []
    pixels = [f"kept views: {costs.pixels_a_view:,.0f} bytes each, in the sums above"] if costs.pixels_a_view else []
    free = "unknown" if costs.free_bytes is None else f"{costs.free_bytes / GB:,.0f} GB"
    rate = "not measured" if costs.disk_rate is None else f"{costs.disk_rate / MB:,.0f} MB/s"
    making = costs.images * found.views * costs.make_seconds
    first = sum(calibration_seconds(costs, kept) for kept in costs.kept if fits(kept, chosen))
    calibration = [f"of them calibration, on {costs.calibrated_views:,} views: {first:,.0f} s"] if first else []
    return [
        f"teachers: {each} ms a view; extraction takes {chosen.extract_seconds / HOUR:,.3g} device-hours",
        *calibration,
        *held,
        *pixels,
        f"making views: {1 / costs.make_seconds:,.0f} a second and core; {making / HOUR:,.3g} core-hours",
        f"student: {student}",
        f"disk: {free} free, read at {rate}",
        f"{found.epochs:g} epochs: {chosen.online_seconds / HOUR:,.3g} device-hours with live teachers, "
        f"{chosen.cached_seconds / HOUR:,.3g} with a cache, extraction included",
        f"codec {chosen.codec}: {found.reason}",
    ]


def fits(kept: KeptCost, way: Way) -> bool:
    """Whether a teacher's measurement is of the way's codec and tokens."""
    return (kept.codec, kept.tokens) == (way.codec, way.tokens)


def columns(*headings: str) -> Table:
    """A plain table; numbers are to the right."""
    table = Table(box=None, padding=(0, 1))
    for place, heading in enumerate(headings):
        table.add_column(heading, justify="left" if place in {0, 2} else "right", no_wrap=place > 0, overflow="fold")
    return table


def tokens_text(tokens: int | None) -> str:
    """How many patch tokens are kept of a view."""
    return "all" if tokens is None else str(tokens)
