"""What an extraction will cost, measured before it begins on a few views, and the command to run.

    trial views -> each teacher -> each codec, with all tokens and with a sample -> the student's step, the disk
        -> forecast

All that it writes, to the temporary folder and a file where the cache will be, is removed.
"""

import dataclasses
import math
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import torch
from rich.table import Table

from pipelines.command.caches import tell_guests
from pipelines.command.device import device_words, pick_device
from pipelines.command.printing import print_table, results
from pipelines.command.progress import Progress, begins
from pipelines.command.sizes import tell_student
from pipelines.extracting.calibrating import calibrated_views
from pipelines.extracting.defaults import kept_alike, settled
from pipelines.extracting.opening_options import TeacherOptions
from pipelines.extracting.sampling_rules import sampling_rules
from pipelines.extracting.specs import pixel_codec
from pipelines.extracting.students import named_spec
from pipelines.extracting.teacher_weights import announce, check_same_weights, load_teachers
from pipelines.planning.codec_costs import ask, fit, kept_features, measure_codec
from pipelines.planning.forecast import Costs, Forecast, KeptCost, StudentCost, calibration_seconds, forecast, stored_as
from pipelines.planning.held import Held
from pipelines.planning.step_costs import disk, student_cost
from pipelines.planning.trial import make_trial, pixel_bytes
from unic_cache.ahead import thread_pool
from unic_cache.cache import Cache
from unic_cache.config import CODECS, CODERS, FITTED, RANDOM, PlanConfig
from unic_cache.errors import CacheError, ConfigError
from unic_cache.files.schemes import open_location
from unic_cache.store.codecs.codec import FeatureCodec
from unic_cache.store.layout import teacher_folder
from unic_cache.store.member import Member
from unic_cache.teachers.model import Teacher
from unic_cache.token_kinds import grid_of

SAMPLE = 4  # without --tokens, all tokens are compared with one in so many
HOUR = 3600.0
GB, MB = 1e9, 1e6


def run(config: PlanConfig) -> Forecast:
    """Measure, then forecast. ConfigError if no teacher is named, or the student cannot be built."""
    device = pick_device(config.device)
    if not config.teachers:
        raise ConfigError("no teacher: name at least one with --teacher")
    student = named_spec(config.student, config.img_size, config.patch_size, drop_path=0.0)
    cache = Cache(open_location(config.cache))
    tell_guests(config.cache, cache.guests)
    asked = settled(config, cache)
    config = kept_alike(asked, cache)
    begins(
        "plan",
        f"{', '.join(config.teachers)} on {device_words(device)}, {config.dtype}",
        f"a trial of {config.images} views of {config.kind.size} px",
        f"batch {config.batch_size}",
        f"student {config.student}",
    )
    tell_student(config.kind.size, student.img_size)
    with thread_pool(config.threads) as pool:
        return forecast(
            config, measure(config, cache, device, pool), asked.codec is not None or asked.coder is not None
        )


def loaded(config: PlanConfig, cache: Cache, device: torch.device) -> dict[str, Teacher]:
    """The teachers. CacheError if the cache has one with other weights: what it holds is not of these."""
    teachers = load_teachers(TeacherOptions.of(config), device)
    for name, teacher in teachers.items():
        check_same_weights(teacher, Member.open(cache.location, teacher_folder(name)), cache.location.url)
    return teachers


def measure(config: PlanConfig, cache: Cache, device: torch.device, pool: ThreadPoolExecutor) -> Costs:
    """All that the forecast needs: the disk, views, each teacher under each codec, the student's step."""
    free_bytes, disk_rate = disk(cache.location)
    teachers = loaded(config, cache, device)
    announce(teachers, config.kind.size)
    counts = token_counts(config, teachers)
    rules = {count: rules_of(config, cache, teachers, count) for count in counts}
    variants = [(codec, count) for count in counts for codec in CODECS if possible(codec, config, teachers)]
    trial = make_trial(config, pool)
    held = Held(config, cache, trial.shards)
    forward: dict[str, float] = {}
    counting: dict[str, float] = {}
    kept: list[KeptCost] = []
    steps: list[StudentCost] = []
    with Progress("plan", len(teachers) * (1 + len(variants)) + len(counts), "measurements") as progress:
        for name, teacher in teachers.items():
            answers = ask(config, teacher, trial)
            forward[name], counting[name] = answers.seconds, answers.count_seconds
            progress.advance(1)
            for codec, count in variants:
                features = kept_features(config, teacher, codec, count, rules[count][name])
                fitted = fit(answers, features, trial, config.kind.seed)
                costs = [measure_codec(fitted, coder, trial, pool) for coder in coders_of(codec)]
                kept += [dataclasses.replace(cost, held=held.of_teacher(name, features, cost.coder)) for cost in costs]
                progress.advance(1)
        for count in counts:
            steps.append(student_cost(config, list(teachers.values()), count))
            progress.advance(1)
    pixels_as = pixel_codec(config.pixel_codec, cache.pixels)
    return Costs(
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        threads=config.threads or len(os.sched_getaffinity(0)),
        images=trial.images,
        probe=len(trial.shown),
        make_seconds=trial.make_seconds,
        forward_seconds=forward,
        kept=tuple(kept),
        student=tuple(steps),
        free_bytes=free_bytes,
        disk_rate=disk_rate,
        calibrated_views=calibrated_views(config.calibration_images, config.count * trial.images),
        count_seconds={name: seconds for name, seconds in counting.items() if name not in cache.teachers},
        pixels_a_view=pixel_bytes(trial, pixels_as) if config.keep_views else 0.0,
        pixels_held=held.of_pixels(pixels_as),
    )


def token_counts(config: PlanConfig, teachers: Mapping[str, Teacher]) -> list[int | None]:
    """All tokens (None), and the sample to compare with. CacheError if a teacher has fewer than --tokens."""
    grids = {name: math.prod(grid) for name, t in teachers.items() if (grid := grid_of(t.spec.kinds))}
    if not grids:
        return [None]
    name = min(grids, key=lambda name: grids[name])
    if config.tokens is not None and config.tokens > grids[name]:
        raise CacheError(
            f"{name} has {grids[name]} patch tokens, and {config.tokens} are to be kept; say fewer with --tokens"
        )
    return [None, config.tokens or max(grids[name] // SAMPLE, 1)]


def rules_of(
    config: PlanConfig, cache: Cache, teachers: Mapping[str, Teacher], tokens: int | None
) -> Mapping[str, str]:
    """The rule by which `extract` would sample each teacher's tokens; of no consequence for all tokens (None)."""
    if tokens is None:
        return dict.fromkeys(teachers, RANDOM)
    grids = {name: grid_of(teacher.spec.kinds) for name, teacher in teachers.items()}
    return sampling_rules(tokens, config.sampling, cache.location, grids)


def coders_of(codec: str) -> tuple[str, ...]:
    """The coders to measure under a codec; those without one count as the first."""
    return CODERS if codec == FITTED else CODERS[:1]


def possible(codec: str, config: PlanConfig, teachers: Mapping[str, Teacher]) -> bool:
    """Whether a codec suits every teacher; CacheError if it does not and was asked for."""
    try:
        for teacher in teachers.values() if codec != FITTED else ():
            FeatureCodec(kept_features(config, teacher, codec))
    except CacheError:
        if codec == config.codec:
            raise
        return False
    return True


def show(found: Forecast) -> None:
    """Print the forecast: a table of each teacher under each codec, one of all teachers, and sentences."""
    console = results()
    costs = found.costs
    console.print(
        f"{costs.images:,} images, {found.views} views of each, measured on {costs.probe} views, {costs.device}"
    )
    print_table(console, teacher_table(found))
    print_table(console, way_table(found))
    console.print("\n".join(sentences(found)), soft_wrap=True)


def teacher_table(found: Forecast) -> Table:
    """Bytes and fidelity of each teacher under each codec; the cosine is of patch tokens, or of CLS without them."""
    table = columns("teacher", "tokens", "codec", "bytes/view", "GB", "cosine")
    before = ""
    for kept in found.costs.kept:
        in_all = found.costs.images * found.views * kept.bytes_a_view / GB
        cosine = kept.fidelity.get("patch", kept.fidelity.get("cls", math.nan))
        name = kept.teacher if kept.teacher != before else ""
        size = f"{kept.bytes_a_view:,.0f}", f"{in_all:,.3g}"
        tokens = f"{kept.tokens} {kept.sampling}" if kept.tokens else "all"
        table.add_row(name, tokens, stored_as(kept.codec, kept.coder), *size, f"{cosine:.4f}")
        before = kept.teacher
    return table


def way_table(found: Forecast) -> Table:
    """All teachers under each codec: bytes stored, bytes per second consumed, and the break-even epoch."""
    table = columns("all teachers", "tokens", "codec", "GB in all", "MB/s", "images/s fed", "pays after")
    for one in found.ways:
        mark = "* " if one == found.chosen else ""
        size = f"{one.bytes_in_all / GB:,.3g}{'' if one.fits else ' (!)'}"
        pays = "never" if one.pays_after is None else f"{one.pays_after} epochs"
        fed = f"{one.feeds:,.0f}{'' if one.keeps_up else ' (!)'}"
        table.add_row(mark, str(one.tokens or "all"), one.stored_as, size, f"{one.rate_needed / MB:,.3g}", fed, pays)
    return table


def sentences(found: Forecast) -> list[str]:
    """Times, the disk, whole runs, the recommended codec, and what the study knows of it."""
    costs, chosen = found.costs, found.chosen
    each = ", ".join(f"{name} {1e3 * seconds:,.2f}" for name, seconds in costs.forward_seconds.items())
    student = ", ".join(
        f"{1 / step.seconds_an_image:,.1f} images/s with {step.tokens or 'all'} tokens (batch {step.batch})"
        for step in costs.student
    )
    lacking = chosen.bytes_to_write / chosen.bytes_in_all
    held = [f"the cache already holds {1 - lacking:.0%} of these bytes"] if lacking < 1 else []
    pixels = [f"kept views: {costs.pixels_a_view:,.0f} bytes each, included above"] if costs.pixels_a_view else []
    free = "unknown" if costs.free_bytes is None else f"{costs.free_bytes / GB:,.0f} GB"
    rate = "not measured" if costs.disk_rate is None else f"{costs.disk_rate / MB:,.0f} MB/s"
    making = costs.images * found.views * costs.make_seconds
    first = sum(
        calibration_seconds(costs, kept)
        for kept in costs.kept
        if kept.way == (chosen.codec, chosen.coder, chosen.tokens)
    )
    calibration = [f"of which calibration, on {costs.calibrated_views:,} views: {first:,.0f} s"] if first else []
    return [
        f"teachers: {each} ms per view; extraction takes {chosen.extract_seconds / HOUR:,.3g} device-hours",
        *calibration,
        *held,
        *pixels,
        f"making views: {1 / costs.make_seconds:,.0f} per second and core; {making / HOUR:,.3g} core-hours",
        f"student: {student}",
        f"disk: {free} free, read at {rate}",
        f"{found.epochs:g} epochs: {chosen.online_seconds / HOUR:,.3g} device-hours with live teachers, "
        f"{chosen.cached_seconds / HOUR:,.3g} with a cache, extraction included",
        f"codec {chosen.stored_as}: {found.reason}",
        found.evidence,
    ]


def columns(*headings: str) -> Table:
    """An empty table with these headings; numbers are aligned to the right."""
    table = Table(box=None, padding=(0, 1))
    for place, heading in enumerate(headings):
        table.add_column(heading, justify="left" if place in {0, 2} else "right", no_wrap=place > 0, overflow="fold")
    return table
