"""A run's folder by its files, without torch: whether a new run may begin there, or which one can go on."""

import json
from pathlib import Path
from typing import Any

from unic_cache.config import DistillConfig
from unic_cache.errors import ConfigError
from unic_cache.student.run_files import CHECKPOINT, CONFIG, ENCODER, SNAPSHOT

FREE_ON_RESUME = frozenset(
    {"cache", "shards", "out", "resume", "threads", "log_every", "save_every", "tracker", "skip_broken"}
)


def check_run(config: DistillConfig, out: Path) -> bool:
    """Whether there is a run to go on with in OUT. ConfigError where OUT's run and --resume disagree."""
    if not (out / CHECKPOINT).exists():
        if config.resume and not (out / CONFIG).exists():
            raise ConfigError(f"{out}: there is no run to resume here; leave --resume out to begin one")
        refuse_others(out)
        return False
    if not config.resume:
        raise ConfigError(f"{out} holds a run already; go on with --resume, or choose another --out")
    before = read_settings(out)
    now = json.loads(json.dumps(config.to_json()))
    known = {**json.loads(json.dumps(DistillConfig().to_json())), **before}  # an older run lacks newer settings
    recipe = _recipe(out)
    if recipe is not None:
        known["recipe"] = recipe  # left open, it was the cache's
        now["recipe"] = now["recipe"] or recipe
    different = [key for key in now if key not in FREE_ON_RESUME and now[key] != known.get(key)]
    if different:
        key = different[0]
        raise ConfigError(f"{out}: began with {key} {before.get(key)!r}, not {now[key]!r}; keep it to resume")
    return True


def read_settings(out: Path) -> dict[str, Any]:
    """OUT/config.json as a run wrote it. ConfigError where it is missing, broken, or another program's."""
    try:
        settings = json.loads((out / CONFIG).read_text())
    except (FileNotFoundError, ValueError, RecursionError) as error:
        raise ConfigError(f"{out / CONFIG}: cannot be resumed from ({error}); put it back") from error
    if not isinstance(settings, dict) or settings.get("stage") != DistillConfig.stage:
        raise ConfigError(f"{out / CONFIG} is not of a run of `unic-cache distill`; choose another --out")
    return settings


def refuse_others(out: Path) -> None:
    """ConfigError where a new run in OUT would overwrite what no unfinished run of this program has left there."""
    if (out / CONFIG).exists():
        read_settings(out)
    if (out / ENCODER).exists():
        raise ConfigError(
            f"{out} holds {ENCODER} and no checkpoint: a new run would overwrite it; choose another --out, or "
            "move it away"
        )


def _recipe(out: Path) -> str | None:
    """The recipe of the run's views; None where its snapshot does not say, whose reader tells what is wrong."""
    try:
        recipe = json.loads((out / SNAPSHOT).read_text())["recipe"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    return recipe if isinstance(recipe, str) else None
