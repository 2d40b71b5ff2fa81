"""A disk that fails at one call: record the calls a command makes below a folder, and let one of them fail.

Calls are told apart by the function and by the kind of the file (its name without numbers), so that one of each kind
can be tried.
"""

import builtins
import contextlib
import io
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

DESCRIPTORS = ("fsync", "pread", "preadv", "write")
PATHS = ("open", "link", "rename", "replace", "mkdir", "scandir", "unlink", "stat")


@dataclass(frozen=True)
class Site:
    """One kind of call: a function and a kind of file."""

    call: str
    kind: str

    def __str__(self) -> str:
        return f"{self.call} {self.kind}"


class FailingDisk:
    """Everything below `root`. `sites` counts the calls; `fail` lets one of them raise."""

    def __init__(self, root: Path) -> None:
        self.root = str(root)
        self.sites: Counter[Site] = Counter()
        self.failed = False
        self._failing: tuple[Site, int, int] | None = None

    def fail(self, site: Site, number: int, error: int) -> None:
        """Let call `number` of a kind, counted from 0, raise errno `error`."""
        self._failing = (site, number, error)

    def happens(self, call: str, path: str) -> None:
        """A call is about to be made."""
        if not path.startswith(self.root):
            return
        kind = re.sub(
            r"(?<=-plan-)\w{8}|(?<=-features-)\w{8}|(?<=-labels-)\w{8}|[0-9a-f]{16}|\d+",
            "#",
            path.removeprefix(self.root),
        )
        site = Site(call, kind)
        self.sites[site] += 1
        if self._failing and self._failing[:2] == (site, self.sites[site] - 1):
            self.failed = True
            number = self._failing[2]
            raise OSError(number, os.strerror(number), *([path] if call in PATHS else []))

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        """Count, and fail, the calls made inside the block."""
        with pytest.MonkeyPatch.context() as patch:
            for name in (*DESCRIPTORS, *PATHS):
                patch.setattr(os, name, self._watched(name, getattr(os, name)))
            opened = self._opener(builtins.open)
            patch.setattr(builtins, "open", opened)
            patch.setattr(io, "open", opened)
            yield

    def _watched(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            what = arguments[0] if arguments else "."
            self.happens(name, _path(what))
            return original(*arguments, **options)

        return call

    def _opener(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def opened(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
            path = _path(file)
            if not path.startswith(self.root):
                return original(file, mode, *arguments, **options)
            self.happens("open", path)
            raw = _Raw(file, mode.replace("b", "").replace("t", ""), self, path, options.get("opener"))
            one_way = io.BufferedReader if "r" in mode else io.BufferedWriter
            buffered = io.BufferedRandom(raw) if "+" in mode else one_way(raw)
            if "b" in mode:
                return buffered
            return io.TextIOWrapper(buffered, options.get("encoding"), options.get("errors"), options.get("newline"))

        return opened


class _Raw(io.FileIO):
    """A file whose reads and writes are calls too."""

    def __init__(self, file: Any, mode: str, disk: FailingDisk, path: str, opener: Any = None) -> None:
        super().__init__(file, mode, opener=opener)
        self._disk, self._path = disk, path

    def write(self, data: Any) -> int:
        self._disk.happens("write", self._path)
        return super().write(data)

    def readinto(self, buffer: Any) -> int:
        self._disk.happens("read", self._path)
        return super().readinto(buffer)

    def readall(self) -> bytes:
        self._disk.happens("read", self._path)
        return super().readall()


def _path(what: Any) -> str:
    if isinstance(what, int):
        with contextlib.suppress(OSError):
            return os.readlink(f"/proc/self/fd/{what}")
        return ""
    return os.path.abspath(os.fsdecode(what))
