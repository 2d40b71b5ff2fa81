"""A run's folder in an object store: the run works on a copy in a temporary folder, sent there at each checkpoint.

Files change there only whole, by one PUT each. The log goes before the checkpoint, and the encoder after it, so what a
killed run leaves can be resumed. A store has no locks that end with their holder. So a run writes its name into
OUT/.claim when it begins, and reads it before it sends anything: of two runs the one that began last goes on, and the
other stops without writing. Between reading and writing is a moment in which both could write.
"""

import contextlib
import json
import os
import secrets
import socket
import tempfile
import time
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from pipelines.command.claim import CLAIM
from unic_cache.errors import ConfigError, UnicCacheError
from unic_cache.files.paths import SCHEME
from unic_cache.files.schemes import open_location
from unic_cache.student.run_files import CHECKPOINT, CONFIG, ENCODER, LOG, OLDER, SNAPSHOT

FIRST = (CONFIG, SNAPSHOT)  # sent before anything else
NEEDED = (*FIRST, CHECKPOINT, LOG, ENCODER)  # by every process that resumes
TEMPORARY = ".tmp-"


class RemoteRun:
    """The folder at `url`, and its copy `folder` on this machine."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url, self.folder = url, folder
        self._location = open_location(url)
        self._name = {"host": socket.gethostname(), "process": os.getpid(), "run": secrets.token_hex(8)}
        self._sent: dict[str, tuple[int, int]] = {}  # name -> (nanoseconds of the last change, bytes)

    def fetch(self, everything: bool) -> None:
        """Copy what is there, or only what a process needs that does not write."""
        for name in self._location.names():
            if name != CLAIM and (everything or name in NEEDED or fnmatch(name, OLDER)):
                data = self._location.read(name)
                if data is not None:
                    path = self.folder / name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(data)
                    self._sent[name] = _state(path)

    def take(self) -> None:
        """Make this run the one that writes there."""
        since = time.strftime("%Y-%m-%d %H:%M:%S %Z")
        self._location.replace(CLAIM, json.dumps({**self._name, "since": since}).encode())

    def send(self) -> None:
        """Copy there what has changed since, and delete what has gone. ConfigError if another run has begun there."""
        self._check_claim()
        paths = {str(path.relative_to(self.folder)): path for path in self.folder.rglob("*") if _counts(path)}
        for name in sorted(paths, key=_turn):
            if self._sent.get(name) != (now := _state(paths[name])):
                self._location.replace(name, paths[name].read_bytes())
                self._sent[name] = now
        for name in self._sent.keys() - paths.keys():
            self._location.delete(name)
            del self._sent[name]

    def told(self, text: str) -> str:
        """A message that names the store instead of the copy."""
        return text.replace(str(self.folder), self.url)

    def leave(self) -> None:
        """Take the name away again, if it is still this run's."""
        if self._holder().get("run") == self._name["run"]:
            self._location.delete(CLAIM)

    def _check_claim(self) -> None:
        holder = self._holder()
        if holder.get("run") != self._name["run"]:
            raise ConfigError(
                f"{self.url}: another run has begun there (process {holder.get('process')} on {holder.get('host')}, "
                f"since {holder.get('since')}), so this one stops and sends nothing more; choose another --out"
            )

    def _holder(self) -> dict[str, Any]:
        try:
            found = json.loads(self._location.read(CLAIM) or b"{}")
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}


@contextlib.contextmanager
def folder_of(out: str, main: bool) -> Iterator[tuple[Path, RemoteRun | None]]:
    """The folder that a run works in, and where it is sent if OUT is a URL; `main`: whether this process writes.

    Errors name the URL instead of the temporary folder.
    """
    if not SCHEME.fullmatch(out) or out.startswith("file://"):
        yield Path(out.removeprefix("file://")), None
        return
    with tempfile.TemporaryDirectory(prefix="unic-cache-run-") as temporary:
        name = f"{temporary}/{out.rstrip('/').rpartition('/')[2]}"  # by which trackers know the run
        Path(name).mkdir()
        remote = RemoteRun(out, Path(name))
        try:
            remote.fetch(everything=main)
            yield remote.folder, remote
        except (Exception, KeyboardInterrupt) as error:
            error.args = tuple(remote.told(arg) if isinstance(arg, str) else arg for arg in error.args)
            error.__notes__ = [remote.told(note) for note in getattr(error, "__notes__", [])]
            raise
        finally:
            with contextlib.suppress(UnicCacheError, OSError):  # the next run takes the folder over in any case
                remote.leave()


def _turn(name: str) -> int:
    """When a file is sent: what a checkpoint needs goes before it, what follows from it after."""
    turns = (name in FIRST, not name.endswith(".safetensors"), fnmatch(name, OLDER), name == CHECKPOINT, True)
    return turns.index(True)


def _counts(path: Path) -> bool:
    """Whether a file belongs to the run: no link to another, no claim of the copy, nothing unfinished."""
    return path.is_file() and not path.is_symlink() and path.name != CLAIM and not path.name.startswith(TEMPORARY)


def _state(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_mtime_ns, status.st_size
