"""A disk that forgets: what a kill or a power cut leaves of a folder after each call of a writer.

Inside `Disk.watch()` every call that changes the disk is still made, and written down. A model runs beside: a file
survives a power cut with the bytes it had at its last fsync, a folder with the entries it had at its last fsync, and
nothing else does. `Disk.fail` lets one of the calls raise instead.
"""

import contextlib
import io
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from unic_cache.files import local

CALLS = ("open", "fsync", "link", "rename", "replace", "unlink", "mkdir", "rmdir", "truncate")
LOST = b"(bytes that were never synced)"
Files = dict[str, bytes]


@dataclass(frozen=True)
class Instant:
    """The moment after one call: what a SIGKILL would leave, and what a power cut would."""

    killed: Files
    cut: Files


class Disk:
    """The model of everything below `root`, a folder that is itself durable."""

    def __init__(self, root: Path) -> None:
        root.mkdir()
        self.root = root
        self.instants: list[Instant] = []
        self.failed = ""  # the name of the call that raised
        self._count = 0
        self._failing: tuple[int, BaseException] | None = None
        self._contents: dict[int, bytes] = {}  # by inode: a file's bytes at its last fsync
        self._entries: dict[int, dict[str, int]] = {}  # by inode: a folder's entries at its last fsync
        self._held: list[int] = []  # descriptors of all that was synced, so that no inode is used a second time

    def fail(self, number: int, error: BaseException) -> None:
        """Let call `number`, counted from 0, raise `error`."""
        self._failing = (number, error)

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        """Record the calls made inside the block."""
        with pytest.MonkeyPatch.context() as patch:
            for name in CALLS:
                patch.setattr(os, name, self._watched(name, getattr(os, name)))
            patch.setattr(local, "open", self._open, raising=False)
            yield
        for descriptor in self._held:
            os.close(descriptor)
        self._held.clear()

    def _watched(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            self._count += 1
            if self._failing and self._count - 1 == self._failing[0]:
                self.failed = name
                raise self._failing[1]
            answer = original(*arguments, **options)
            if name == "fsync":
                self._remember(arguments[0])
            self.instants.append(Instant(tree(self.root), dict(self._surviving(self.root.stat().st_ino, ""))))
            return answer

        return call

    def _open(self, path: Path, mode: str) -> "_SlowFile":
        file = _SlowFile(self._watched("create", io.FileIO)(path, mode.replace("b", "")))
        file.raw_write = self._watched("write", file.raw_write)
        return file

    def _remember(self, descriptor: int) -> None:
        if not os.readlink(f"/proc/self/fd/{descriptor}").startswith(str(self.root)):
            return
        status = os.fstat(descriptor)
        self._held.append(os.dup(descriptor))
        if stat.S_ISDIR(status.st_mode):
            with os.scandir(descriptor) as entries:
                self._entries[status.st_ino] = {entry.name: entry.inode() for entry in entries}
        else:
            self._contents[status.st_ino] = Path(f"/proc/self/fd/{descriptor}").read_bytes()

    def _surviving(self, folder: int, path: str) -> Iterator[tuple[str, bytes]]:
        for name, inode in self._entries.get(folder, {}).items():
            if inode in self._contents:
                yield f"{path}{name}", self._contents[inode]
            elif inode in self._entries:
                yield from self._surviving(inode, f"{path}{name}/")
            elif not (self.root / path / name).is_dir():
                yield f"{path}{name}", LOST


class _SlowFile:
    """A file whose bytes arrive in two writes, the second of which may fail or never come."""

    def __init__(self, raw: io.FileIO) -> None:
        self._raw = raw
        self.raw_write: Callable[[bytes], object] = raw.write
        self.fileno, self.flush = raw.fileno, raw.flush

    def write(self, data: bytes) -> None:
        for part in (data[: len(data) // 2], data[len(data) // 2 :]):
            self.raw_write(part)

    def __enter__(self) -> "_SlowFile":
        return self

    def __exit__(self, *error: object) -> None:
        self._raw.close()


def tree(root: Path) -> Files:
    """All files below `root`, hidden ones too."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def open_below(root: Path) -> set[str]:
    """This process's descriptors of files below `root`; threads and sockets of other tests may have more."""
    found = set()
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # closed since
            if os.readlink(f"/proc/self/fd/{descriptor}").startswith(f"{root}/"):
                found.add(descriptor)
    return found


def lay_out(files: Files, root: Path) -> None:
    """The inverse of `tree`."""
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
