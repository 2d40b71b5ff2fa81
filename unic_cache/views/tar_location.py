"""Where a tar lies, on disk or behind a URL: its folder, its size, and its bytes."""

import io
import os
import re
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import BinaryIO, cast

from unic_cache.files.location import Location
from unic_cache.files.schemes import open_location
from unic_cache.views.remote_tar import READ_AHEAD, RemoteTar

Ranges = Callable[[int, int], bytes]  # (offset, size) -> bytes, fewer at the tar's end


def is_remote(path: str) -> bool:
    """Whether a path is a URL of another scheme than file://."""
    return re.match(r"[a-z0-9]+://", path) is not None and not path.startswith("file://")


def parent(path: str) -> str:
    """The folder of a path or URL; "" for a bare name."""
    return path[: path.rfind("/")] or "/" if "/" in path else ""


@lru_cache(maxsize=64)
def folder_at(url: str) -> Location:
    """A folder's `Location`, shared by all its tars."""
    return open_location(url)


def beside(path: str, name: str) -> bytes | None:
    """The file `name` in a tar's folder, or None if there is none."""
    return folder_at(parent(path) or ".").read(name)


def tar_size(path: str) -> int | None:
    """A tar's size in bytes, or None if there is none."""
    if is_remote(path):
        folder, name = _split(path)
        return folder.size(name)
    return Path(path).stat().st_size if Path(path).is_file() else None


def opened(path: str, size: int) -> BinaryIO:
    """A tar of `size` bytes as a file, read in order."""
    if not is_remote(path):
        return open(path, "rb")
    folder, name = _split(path)
    return cast("BinaryIO", io.BufferedReader(RemoteTar(folder, name, size), READ_AHEAD))


def ranges_of(path: str) -> tuple[Ranges, int | None]:
    """How to read parts of a tar from many threads, and the descriptor to close afterwards, if there is one."""
    if is_remote(path):
        folder, name = _split(path)
        return partial(folder.read_range, name), None
    descriptor = os.open(path.removeprefix("file://"), os.O_RDONLY)
    return partial(_pread, descriptor), descriptor


def _split(path: str) -> tuple[Location, str]:
    folder, _, name = path.rpartition("/")
    return folder_at(folder), name


def _pread(descriptor: int, offset: int, size: int) -> bytes:
    data = os.pread(descriptor, size, offset)
    while len(data) < size:
        more = os.pread(descriptor, size - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data
