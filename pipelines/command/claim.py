"""One run at a time in a folder, by a lock that the kernel drops when its holder dies.

The lock is flock(2) on OUT/.claim. It ends with the process, so the successor of a killed run finds it free, also on
another node if the file system shares locks. The file says who holds it, and is removed at the end.
"""

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipelines.command.progress import say
from unic_cache.errors import ConfigError
from unic_cache.files.temporary import NO_LOCKS

CLAIM = ".claim"


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Hold the folder, made if missing. ConfigError, with nothing changed, if another process holds it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ConfigError(f"{folder} is a file, or is below one; choose a folder") from error
    path = folder / CLAIM
    descriptor = _locked(path)
    try:
        before = _holder(descriptor)
        if before.get("host", socket.gethostname()) != socket.gethostname():
            say(f"{folder}: the run of {_named(before)} did not end, but its lock is gone, so this one goes on")
        os.ftruncate(descriptor, 0)
        since = time.strftime("%Y-%m-%d %H:%M:%S %Z")
        holder = {"host": socket.gethostname(), "process": os.getpid(), "since": since}
        os.pwrite(descriptor, json.dumps(holder).encode(), 0)
        yield
    finally:
        with contextlib.suppress(OSError):  # a claim without its lock blocks nobody
            path.unlink()
        os.close(descriptor)


def _locked(path: Path) -> int:
    """Open and lock the claim; retry if a run that just ended removed the file before it was locked."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), path.stat()):
                    return descriptor
        except OSError as error:
            holder = _holder(descriptor)
            if error.errno in NO_LOCKS and not _alive(holder):
                say(f"{path.parent}: this file system has no locks; make sure that no other run writes there")
                return descriptor
            os.close(descriptor)
            if error.errno not in {errno.EWOULDBLOCK, *NO_LOCKS}:
                raise
            raise ConfigError(
                f"{path.parent}: {_named(holder)} is writing there; wait for it, stop it, or choose another folder "
                f"(if that machine is gone but its lock remains: rm {path})"
            ) from None
        os.close(descriptor)


def _holder(descriptor: int) -> dict[str, Any]:
    """Who holds, or held, the claim, as its file says; empty if it does not (yet)."""
    try:
        found = json.loads(os.pread(descriptor, 4096, 0))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _alive(holder: dict[str, Any]) -> bool:
    """Whether the holder is a running process of this machine, which is all one can check without locks."""
    process = holder.get("process")
    if holder.get("host") != socket.gethostname() or not isinstance(process, int):
        return False
    return Path(f"/proc/{process}").exists()


def _named(holder: dict[str, Any]) -> str:
    if not holder:
        return "another process"
    return f"process {holder.get('process')} on {holder.get('host')} (since {holder.get('since')})"
