"""One run at a time in a folder: a lock that the kernel drops when its holder dies, and words for who comes second.

The lock is flock(2) on OUT/.claim. It goes with the process, however that ends, so a killed run's successor finds it
free, on another node too where the file system shares locks. The file says who holds it, and is removed at the end.
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

FILE = ".claim"
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Hold the folder, made where there is none. ConfigError, and nothing changed, where another process holds it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ConfigError(f"{folder} is a file, or lies below one; choose a folder") from error
    path = folder / FILE
    descriptor = _locked(path)
    try:
        before = _holder(descriptor)
        if before.get("host", socket.gethostname()) != socket.gethostname():
            say(f"{folder}: the run of {_named(before)} was not ended; its lock is gone, so this one goes on")
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(_self()).encode(), 0)
        yield
    finally:
        with contextlib.suppress(OSError):  # a claim without its lock stands in nobody's way
            path.unlink()
        os.close(descriptor)


def _locked(path: Path) -> int:
    """The claim, open and locked; the one that stands under its name, since a run that ends removes its own."""
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
                say(f"{path.parent}: this file system has no locks; see to it that no other run writes there")
                return descriptor
            os.close(descriptor)
            if error.errno not in {errno.EWOULDBLOCK, *NO_LOCKS}:
                raise
            raise ConfigError(
                f"{path.parent}: {_named(holder)} is writing there; let it end, stop it, or choose another folder "
                f"(where that machine is gone and its lock stays: rm {path})"
            ) from None
        os.close(descriptor)


def _self() -> dict[str, Any]:
    since = time.strftime("%Y-%m-%d %H:%M:%S %Z")
    return {"host": socket.gethostname(), "process": os.getpid(), "since": since}


def _holder(descriptor: int) -> dict[str, Any]:
    """What the claim says of who holds, or held, it; empty where that is not there (yet)."""
    try:
        found = json.loads(os.pread(descriptor, 4096, 0))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _alive(holder: dict[str, Any]) -> bool:
    """Whether a process of this machine that holds the claim is still there: all there is to go by without locks."""
    process = holder.get("process")
    if holder.get("host") != socket.gethostname() or not isinstance(process, int):
        return False
    return Path(f"/proc/{process}").exists()


def _named(holder: dict[str, Any]) -> str:
    if not holder:
        return "another process"
    return f"process {holder.get('process')} on {holder.get('host')} (since {holder.get('since')})"
