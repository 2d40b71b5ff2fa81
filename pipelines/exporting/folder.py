"""OUT: a folder that is there whole and checked, or not at all."""

import secrets
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from pipelines.command.preflight import check_free
from unic_cache.files.durable import sync_folder
from unic_cache.files.local import LocalFolder


def write_folder(out: str, files: Mapping[str, bytes], check: Callable[[Path], None]) -> None:
    """Write a hidden folder beside OUT, durably; `check` it, and rename it. ConfigError unless OUT is free.

    A command that is killed leaves the hidden folder at most.
    """
    check_free(out)
    path = Path(out).resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    hidden = path.parent / f".tmp-{path.name}-{secrets.token_hex(8)}"
    try:
        folder = LocalFolder(hidden)
        for name in sorted(files):
            folder.replace(name, files[name])
        check(hidden)
        hidden.rename(path)  # also over an empty folder
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
    sync_folder(path.parent)
