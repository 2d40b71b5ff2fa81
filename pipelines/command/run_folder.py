"""A run's folder, checked without torch: whether a run may begin there, or resume."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from unic_cache.config import DistillConfig
from unic_cache.config.training import renamed
from unic_cache.errors import ConfigError
from unic_cache.student.run_files import (
    CHECKPOINT,
    CONFIG,
    ENCODER,
    MODEL,
    SNAPSHOT,
    TIMM_KEYS,
    older_checkpoints,
)

FREE_ON_RESUME = frozenset(
    {
        "cache",
        "shards",
        "knn_shards",
        "out",
        "resume",
        "resume_if_any",
        "keep_checkpoints",
        "shard_student",
        "threads",
        "log_every",
        "save_every",
        "tracker",
        "project",
        "skip_broken",
    }
)


OLDER = {"normalize": "imagenet"}  # what runs did before there was a setting for it


def as_begun(config: DistillConfig, out: Path) -> DistillConfig:
    """The config, and what the run in OUT, if any, did before there was a setting for it."""
    if not (out / CONFIG).exists():
        return config
    before = read_settings(out)
    settings: dict[str, Any] = {key: value for key, value in OLDER.items() if key not in before}
    return dataclasses.replace(config, **settings)


def check_run(config: DistillConfig, out: Path) -> bool:
    """Whether OUT holds a run to resume. ConfigError if that and --resume, or the settings, disagree."""
    if not (out / CHECKPOINT).exists() and not older_checkpoints(out):
        if config.resume and not config.resume_if_any and not (out / CONFIG).exists():
            raise ConfigError(f"{out}: there is no run to resume here; leave out --resume to begin one")
        refuse_others(out)
        return False
    if not (config.resume or config.resume_if_any):
        raise ConfigError(f"{out} already holds a run; continue it with --resume, or choose another --out")
    before = read_settings(out)
    now = json.loads(json.dumps(config.to_json()))
    unset = json.loads(json.dumps(DistillConfig().to_json()))
    known = {**unset, **OLDER, **renamed(before)}  # an older run lacks newer settings
    now |= {key: now[key] or value for key, value in OLDER.items() if key not in before}
    recipe = _recipe(out)
    if recipe is not None:
        known["recipe"] = recipe  # left open, it was the cache's
        now["recipe"] = now["recipe"] or recipe
    different = [key for key in now if key not in FREE_ON_RESUME and now[key] != known.get(key)]
    if different:
        key = different[0]
        raise ConfigError(f"{out}: the run began with {key} {known.get(key)!r}, not {now[key]!r}; keep it to resume")
    return True


def read_settings(out: Path) -> dict[str, Any]:
    """OUT/config.json. ConfigError if it is missing, broken, or not of a run of `distill`."""
    try:
        settings = json.loads((out / CONFIG).read_text())
    except (FileNotFoundError, ValueError, RecursionError) as error:
        raise ConfigError(f"{out / CONFIG}: cannot be resumed from ({error}); restore it") from error
    if not isinstance(settings, dict) or settings.get("stage") != DistillConfig.stage:
        raise ConfigError(f"{out / CONFIG} is not of a run of `unic-cache distill`; choose another --out")
    return settings


def run_settings(folder: Path) -> DistillConfig:
    """The settings in a run's config.json. ConfigError if there are none of `distill`."""
    try:
        data: Any = json.loads((folder / CONFIG).read_bytes())
    except OSError as error:
        raise ConfigError(
            f"{folder}: no run of `unic-cache distill` (it has no {CONFIG}); give a run's folder"
        ) from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{folder / CONFIG}: damaged ({error}); restore it") from error
    if not isinstance(data, dict) or data.get("stage") != DistillConfig.stage:
        raise ConfigError(f"{folder / CONFIG} is not of a run of `unic-cache distill`; give a run's folder")
    settings = {key: value for key, value in data.items() if key not in {"pixel_difference", *TIMM_KEYS}}
    try:
        return DistillConfig.from_json({**OLDER, **settings})
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{folder / CONFIG}: another release's, or edited ({error}); use that release") from error


def refuse_others(out: Path) -> None:
    """ConfigError if a new run in OUT would overwrite anything but an unfinished run's files."""
    if (out / CONFIG).exists():
        read_settings(out)
    for name in (ENCODER, MODEL):
        if (out / name).exists():
            raise ConfigError(
                f"{out} holds {name} but no checkpoint: a new run would overwrite it; choose another --out, or move it "
                "away"
            )


def _recipe(out: Path) -> str | None:
    """The recipe of the run's views; None if its snapshot does not say: loading it will tell what is wrong."""
    try:
        recipe = json.loads((out / SNAPSHOT).read_text())["recipe"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    return recipe if isinstance(recipe, str) else None
