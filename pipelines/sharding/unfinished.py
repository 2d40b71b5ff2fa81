"""OUT of `shard`: claimed while it runs, and cleared by the same command after it was stopped."""

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipelines.command.claim import claimed
from unic_cache.config import ShardConfig
from unic_cache.errors import ConfigError, ShardError
from unic_cache.views.classes import CLASSES_FILE, Names, read_classes
from unic_cache.views.left_out import shown
from unic_cache.views.shards import UNFINISHED

HELD = "val-"  # before the number in a held-out tar's name
_GIVEN = "classes_given"  # in the settings file: whether OUT had a classes.json before


def given_classes(out: Path, config: ShardConfig) -> Names | None:
    """The classes that OUT numbers already, by a classes.json that this command has not written itself."""
    path = out / CLASSES_FILE
    if not path.is_file() or not _unfinished(out, config).get(_GIVEN, True):
        return None
    try:
        return read_classes(path.read_bytes(), str(path))
    except ShardError as error:
        raise ConfigError(str(error)) from error


@contextlib.contextmanager
def packing(out: Path, config: ShardConfig, given: bool) -> Iterator[None]:
    """Hold OUT for this run alone, cleared of what the same command left when stopped; if `given`, classes.json stays.

    Until the run ends well, no stage takes the tars for data. ConfigError if OUT holds other tars, or another run is
    packing into it.
    """
    _refuse_occupied(out, config)
    with claimed(out):
        _refuse_occupied(out, config)  # another run may have filled it just now
        _clear(out, config, given, began=bool(_unfinished(out, config)))
        settings = json.dumps({**config.to_json(), _GIVEN: given}, sort_keys=True)
        (out / UNFINISHED).write_text(settings, encoding="ascii")
        try:
            yield
        except BaseException:
            if not any(_own(config, path.name) for path in out.iterdir()):
                (out / UNFINISHED).unlink()
            raise
        (out / UNFINISHED).unlink()


def _refuse_occupied(out: Path, config: ShardConfig) -> None:
    """ConfigError unless OUT is free, or holds what the same command left when stopped."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file; choose a folder for the shards")
    if _unfinished(out, config):
        return
    names = [path.name for path in sorted(out.iterdir())] if out.exists() else []
    held = [name for name in names if name == "index.json" or (name.endswith(".tar") and not name.startswith("."))]
    others = [name for name in ("index", "checkpoint.safetensors", "config.json") if name in names]
    if others and not held:
        raise ConfigError(f"{shown(str(out))} holds {others[0]}: it is a cache's folder, or a run's; choose another")
    if held:
        stopped = ". A `shard` with other settings was stopped there" if UNFINISHED in names else ""
        raise ConfigError(
            f"{shown(str(out))} already holds {held[0]}; choose another folder, or delete this one{stopped}"
        )


def _unfinished(out: Path, config: ShardConfig) -> dict[str, Any]:
    """The settings of a run with the same config that was stopped in OUT; empty without one."""
    try:
        found = dict(json.loads((out / UNFINISHED).read_text()))
        config_fields = {name: value for name, value in found.items() if name != _GIVEN}
        return found if ShardConfig.from_json(config_fields) == config else {}
    except (FileNotFoundError, NotADirectoryError, ValueError, TypeError):
        return {}


def _clear(out: Path, config: ShardConfig, given: bool, began: bool) -> None:
    """Remove what the same command left: tars and lists if it `began`, and half-written files."""
    for path in sorted(out.iterdir()):
        name = path.name
        own = _own(config, name) or name == "index.json" or (name == CLASSES_FILE and not given)
        half = name.startswith(".tmp-") and (_own(config, name[5:]) or re.fullmatch(r"\.tmp-0-[0-9a-f]{16}", name))
        if (began and own) or half:
            path.unlink()


def _own(config: ShardConfig, name: str) -> bool:
    """Whether the command writes a tar of this name."""
    held = f"({HELD})?" if config.val_fraction else ""
    return re.fullmatch(rf"{re.escape(config.prefix)}{held}[0-9]{{6,}}\.tar", name) is not None
