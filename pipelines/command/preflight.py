"""Checks before torch is imported, of names, paths and folders without which a command could not work anyway.

Importing torch and timm takes seconds; a typing error should not. Each check is the stage's own or agrees with it, and
what is behind a URL is left to the stage.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipelines.command.run_folder import check_run, run_settings
from unic_cache.config import (
    DistillConfig,
    EvaluateConfig,
    ExportConfig,
    ExtractConfig,
    InspectConfig,
    PlanConfig,
    RecodeConfig,
    RepairConfig,
    ReportConfig,
    ShardConfig,
    StatusConfig,
    VerifyConfig,
)
from unic_cache.errors import ConfigError, ShardError, TeacherError
from unic_cache.files.local import LocalFolder
from unic_cache.files.paths import SCHEME
from unic_cache.files.schemes import open_location
from unic_cache.store.layout import teacher_folder
from unic_cache.student.run_files import ENCODER
from unic_cache.teachers.catalog import CATALOG, base_name, no_weights, resolve
from unic_cache.teachers.outside.names import check, is_outside
from unic_cache.views.segments import no_cache, no_teacher, segment_names
from unic_cache.views.shards import expand
from unic_cache.weights.timm_names import close_names

DEFAULT_SHARDS = "shards/*.tar"


def look(config: Any) -> None:
    """UnicCacheError if a command cannot work with its config."""
    if getattr(config, "ray", None) is not None:
        check_ray()
    CHECKS[type(config)](config)


def check_ray() -> None:
    """ConfigError without Ray."""
    if find_spec("ray") is None:
        raise ConfigError("--ray needs Ray: `pip install 'unic-cache[ray]'`, on all nodes")


def check_shard(config: ShardConfig) -> None:
    """ConfigError unless the images exist."""
    path = Path(config.images)
    if not path.exists():
        raise ConfigError(f"no folder, .csv or .json at {config.images}; check the path")


def check_extract(config: ExtractConfig) -> None:
    """Check the teachers' names and weights, and the tars."""
    check_teachers(config.teachers, dict(config.weights))
    check_folders(config.teachers)
    check_tars(config.shards, config.cache)


def check_folders(names: Iterable[str]) -> None:
    """ConfigError if two teachers would have one folder in a cache."""
    taken: dict[str, str] = {}
    for name in names:
        other = taken.setdefault(teacher_folder(name), name)
        if other != name:
            raise ConfigError(
                f"teachers {other} and {name} would share the folder {teacher_folder(name)} of a cache; use two caches"
            )


def check_distill(config: DistillConfig) -> None:
    """Check the run's folder, the student's name and initial weights, and the data to train on.

    A run that is resumed may be finished, and then needs no data: the stage looks at that first.
    """
    resuming = is_here(config.out) and check_run(config, Path(config.out.removeprefix("file://")))
    student = config.student.partition("@")[0]
    close = None if student in CATALOG else close_names(student.removeprefix("timm:"))
    if close is not None:
        hint = f"did you mean {' or '.join(close)}?" if close else "try vit_tiny_patch16_224"
        raise ConfigError(f"timm knows no model {config.student!r}; {hint}")
    if not resuming and config.init is not None and is_outside(config.init):
        check(base_name(config.init))
    elif not resuming and config.init is not None and "/" in config.init and not Path(config.init).is_file():
        if Path(config.init).is_dir():
            raise ConfigError(
                f"--init {config.init} is a folder; give its {ENCODER}, or --from {config.init} to take a run's "
                "projectors too, or --init local-dir:PATH for a model in timm's layout"
            )
        raise ConfigError(f"--init {config.init}: there is no such file")
    if not resuming and config.from_run is not None:
        run_settings(Path(config.from_run))
    if not resuming:
        check_sources(config)
    if config.tracker != "none" and find_spec(config.tracker) is None:
        raise no_tracker(config.tracker)


def check_sources(config: DistillConfig) -> None:
    """Check the cache, or the teachers online, and the tars."""
    if config.online:
        check_teachers(config.teachers, dict(config.weights))
    else:
        check_cache(config.cache, config.teachers)
    check_tars(config.shards, config.out if config.online else config.cache)
    check_tars(config.knn_shards)


def no_tracker(name: str) -> ConfigError:
    """The error for a tracker whose package, which has its name, accelerate does not find."""
    return ConfigError(
        f"--tracker {name}: its package is missing or of a version that accelerate does not take; install it with "
        f"`pip install {name}`, or choose another tracker or none"
    )


def check_evaluate(config: EvaluateConfig) -> None:
    """Check the encoders, the labelled tars and the cache."""
    names = [text for text in config.encoder if not Path(text).exists()]
    for text in names:
        if not (text.startswith("timm:") or is_outside(text)) and base_name(text) not in CATALOG:
            raise ConfigError(
                f"{text}: there is no such file or folder, nor a teacher of that name; `unic-cache distill --out DIR` "
                "makes an encoder, timm:NAME is any timm model, and `unic-cache teachers` lists the others"
            )
    check_teachers(names, dict(config.weights))
    for flag in ("shards", "train", "test"):
        try:
            check_tars(getattr(config, flag))
        except ShardError as error:
            raise ShardError(f"--{flag}: {error}") from error
    if config.cache is not None:
        check_cache(config.cache, config.teachers)


def check_export(config: ExportConfig) -> None:
    """Check what is exported, the packages that it needs, and that OUT is free."""
    check_there(config.run)
    check_free(config.out)
    if config.results is not None and not Path(config.results).is_file():
        raise ConfigError(f"--results {config.results}: there is no such file; `evaluate --out FILE` writes it")
    lacking = [name for name in ("onnx", "onnxscript") if config.format == "onnx" and find_spec(name) is None]
    if lacking:
        raise ConfigError(f"--format onnx needs {' and '.join(lacking)}: `pip install 'unic-cache[onnx]'`")
    if config.format == "heads":
        run_settings(Path(config.run))
    if config.cache is not None:
        check_cache(config.cache)


def check_free(out: str) -> None:
    """ConfigError if OUT is a file, or a folder with anything in it."""
    path = Path(out)
    if path.exists() and not path.is_dir():
        raise ConfigError(f"{out} is a file; choose a folder for the export")
    first = min((entry.name for entry in path.iterdir()), default=None) if path.is_dir() else None
    if first is not None:
        raise ConfigError(f"{out} holds {first}; choose a new folder, or delete this one first")


def check_inspect(config: InspectConfig) -> None:
    """Check the cache's folder, and for pictures the run and the tars."""
    check_folder(config.cache)
    if config.student is not None:
        check_there(config.student)
    check_tars(config.shards)


def check_report(config: ReportConfig) -> None:
    """Check that the inputs exist, and the cache and the tars."""
    for path in config.inputs:
        check_there(path)
    if config.cache is not None:
        check_cache(config.cache)
    check_tars(config.shards)


def check_there(path: str) -> None:
    """ConfigError unless there is such a file or folder."""
    if not Path(path).exists():
        raise ConfigError(f"{path}: there is no such file or folder; check the path")


def check_verify(config: VerifyConfig) -> None:
    """Check the cache's folder, the tars and the weights."""
    check_folder(config.cache)
    check_tars(config.shards)
    check_files(file for _, file in config.weights)


def check_teachers(names: Iterable[str], weights: Mapping[str, str]) -> None:
    """TeacherError if a teacher is unknown or a weights file is missing."""
    for name in names:
        if is_outside(name):
            check(base_name(name))
            continue
        if not name.startswith("timm:"):
            spec = resolve(name)
            if spec.source == "file" and not {name, ""} & set(weights):
                raise no_weights(spec)
            continue
        close = close_names(base_name(name).removeprefix("timm:"))
        if close is not None:
            hint = (
                f"close names: {', '.join(f'timm:{match}' for match in close)}" if close else "see timm.list_models()"
            )
            raise TeacherError(f"timm has no model {name.removeprefix('timm:')!r}; {hint}")
    check_files(weights.values())


def check_files(files: Iterable[str]) -> None:
    """TeacherError if a weights file is missing."""
    missing = next((file for file in files if not Path(file).is_file()), None)
    if missing is not None:
        raise TeacherError(f"weights file {missing}: there is no such file")


def check_tars(pattern: str | None, cache: str | None = None) -> None:
    """ShardError if a pattern of local tars matches none, or names one that does not exist.

    The default pattern is shards/*.tar, unless the cache keeps the views or is not local.
    """
    if pattern is None and cache is not None and is_here(cache):
        pattern = None if Path(cache.removeprefix("file://"), "views").is_dir() else DEFAULT_SHARDS
    if pattern is not None and is_here(pattern):
        expand(pattern)


def check_cache(path: str, teachers: Iterable[str] = ()) -> None:
    """CacheError if a local folder holds no cache, or the cache lacks one of the teachers."""
    location = open_location(path)
    if not isinstance(location, LocalFolder):
        return
    if not segment_names(location):
        raise no_cache(path)
    unknown = [name for name in teachers if location.size(f"{teacher_folder(name)}/spec.json") is None]
    if unknown:
        specs = [json.loads(location.read(f"{name}/spec.json") or b"{}") for name in location.folders()]
        raise no_teacher(path, unknown[0], sorted(spec["teacher"]["name"] for spec in specs if "teacher" in spec))


def check_folder(path: str) -> None:
    """CacheError if nothing is there; what is wrong with its content is for the stage to say."""
    if is_here(path) and not Path(path.removeprefix("file://")).exists():
        raise no_cache(path)


def is_here(path: str) -> bool:
    """Whether a path is local."""
    return path.startswith("file://") or not SCHEME.match(path)


CHECKS: dict[type, Callable[[Any], None]] = {
    ShardConfig: check_shard,
    ExtractConfig: check_extract,
    PlanConfig: check_extract,
    DistillConfig: check_distill,
    EvaluateConfig: check_evaluate,
    ExportConfig: check_export,
    RecodeConfig: lambda config: check_cache(config.source, config.teachers),
    VerifyConfig: check_verify,
    InspectConfig: check_inspect,
    RepairConfig: lambda config: check_folder(config.cache),
    StatusConfig: lambda config: check_cache(config.cache),
    ReportConfig: check_report,
}
