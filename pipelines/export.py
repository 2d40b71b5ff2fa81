"""A run's student as a folder that other software loads: timm, transformers, ONNX; with or without its projectors.

    RUN -> encoder, spec, provenance -> the format's files + a model card -> OUT, at once -> the hub, if asked

The same run gives the same bytes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipelines.command.caches import opened
from pipelines.command.preflight import check_free
from pipelines.command.progress import begins, say
from pipelines.command.run_folder import run_settings
from pipelines.exporting import hub
from pipelines.exporting.card import Card
from pipelines.exporting.folder import write_folder
from pipelines.exporting.loaded import check_loads
from pipelines.exporting.loading import HUB, ONNX, line
from pipelines.exporting.onnx_file import INSTALL, onnx_bytes
from pipelines.exporting.source import Source, open_source
from pipelines.exporting.teacher_scale import check_learned, facts_of, scales_of
from pipelines.training.finished_run import load_student
from pipelines.training.online import FOLDER
from pipelines.training.training_set import Snapshot, teachers_of
from unic_cache.cache import Cache
from unic_cache.config import DistillConfig, ExportConfig
from unic_cache.errors import CacheError, ConfigError
from unic_cache.evaluate.results import read_evaluation
from unic_cache.student.heads import HEADS, Projector, heads_bytes
from unic_cache.student.run_files import CONFIG, ENCODER, MODEL
from unic_cache.student.timm_layout import TRANSFORMERS, config_bytes, timm_config

README = "README.md"
Files = dict[str, bytes]


@dataclass(frozen=True)
class Exported:
    """The result of an export."""

    out: Path
    line: str  # Python that loads it
    licences: dict[str, str]  # of teachers and first weights, by name, also of the runs that it started from
    address: str | None  # on the hub


def run(config: ExportConfig) -> Exported:
    """Write OUT; with --push publish it. ConfigError if OUT is not free or RUN has no student; see each format."""
    check_free(config.out)
    if config.push is not None:
        hub.check_token(config.push)
    source = open_source(config)
    results = None if config.results is None else read_evaluation(Path(config.results), config.results)
    begins(
        "export",
        f"{source.spec.name} at {source.spec.img_size} px"
        + ("" if source.steps is None else f" after {source.steps:,} steps"),
        f"for {config.format}",
        f"into {config.out}",
    )

    # The format's files, and the card that says how they are loaded
    files, checked = FORMATS[config.format](source, config)
    where = Path(config.out).resolve().name if config.push is None else HUB + config.push
    files[README] = Card(source, config.format, where, results, checked).to_bytes()

    def check(folder: Path) -> None:
        if CONFIG in files:
            check_loads(folder, source.encoder, source.spec.img_size)

    write_folder(config.out, files, check)

    # The hub
    address = None
    if config.push is not None:
        address = hub.push(config.out, config.push, config.private, f"{config.format} export of unic-cache")
    return Exported(Path(config.out), line(config.format, config.out), source.licences, address)


def of_timm(source: Source, config: ExportConfig) -> tuple[Files, bool]:  # noqa: ARG001
    """timm's folder."""
    own = timm_config(source.encoder, source.spec, source.licences.values())
    return {CONFIG: config_bytes(own), MODEL: source.model}, False


def of_transformers(source: Source, config: ExportConfig) -> tuple[Files, bool]:  # noqa: ARG001
    """timm's folder, with what transformers looks for."""
    own = timm_config(source.encoder, source.spec, source.licences.values())
    return {CONFIG: config_bytes({**own, **TRANSFORMERS}), MODEL: source.model}, False


def of_onnx(source: Source, config: ExportConfig) -> tuple[Files, bool]:  # noqa: ARG001
    """One ONNX file, and whether it was checked."""
    data, checked = onnx_bytes(source)
    if not checked:
        say(f"the ONNX file was not compared with torch: onnxruntime is missing; {INSTALL} and export again")
    return {ONNX: data}, checked


def with_heads(source: Source, config: ExportConfig) -> tuple[Files, bool]:
    """timm's folder, and the projectors with the statistics of the run's cache.

    ConfigError without the run's checkpoint; CacheError if its cache is not there, or another one is.
    """
    if source.folder is None:
        raise ConfigError(f"{config.run}: the projectors are in a run's checkpoint, so --format heads needs its folder")
    settings, snapshot = run_settings(source.folder), Snapshot.load(source.folder)
    cache = learned_cache(config, source.folder, settings)
    teachers = teachers_of(cache, snapshot.teachers, settings.kinds)
    shown = None if settings.online else (snapshot.views, snapshot.numbers, snapshot.train)
    check_learned(cache, teachers, source.made, shown, snapshot.records)
    student, _, steps = load_student(source.folder, settings, teachers)
    if steps != source.steps:
        raise ConfigError(
            f"{source.folder}: the checkpoint is of step {steps} and {ENCODER} of step {source.steps}; the run is "
            "going on, or was stopped while it saved: continue it with --resume"
        )
    made = Projector(settings.projector, settings.ladder_widths, settings.shared_projectors)
    own, places = [teacher.name for teacher in teachers], source.places
    tensors = places.projectors(student.ladder.state_dict(), own)
    facts = {places(one.name): (one.kinds, places(facts_of(one))) for one in teachers}
    scales = {(places(name), kind): one for (name, kind), one in scales_of(teachers, settings.standardize).items()}
    files, _ = of_timm(source, config)
    return {**files, HEADS: heads_bytes(tensors, made, scales, facts, source.model)}, False


def learned_cache(config: ExportConfig, folder: Path, settings: DistillConfig) -> Cache:
    """The cache that the run learned from. CacheError if it is not there any more.

    ConfigError if another is named for a run --online: nothing tells whether it has the same statistics.
    """
    if settings.online and config.cache is not None:
        raise ConfigError(
            f"{folder}: its teachers were --online, and the run standardized them by its own statistics, in "
            f"{folder / FOLDER}; leave out --cache"
        )
    if config.cache is not None:
        return opened(config.cache)
    try:
        return opened(str(folder / FOLDER) if settings.online else settings.cache)
    except CacheError as error:
        hint = "" if settings.online else ". If the run's cache is elsewhere now, name it with --cache"
        raise CacheError(f"{error}{hint}") from error


FORMATS: dict[str, Callable[[Source, ExportConfig], tuple[Files, bool]]] = {
    "timm": of_timm,
    "hf": of_transformers,
    "onnx": of_onnx,
    "heads": with_heads,
}
