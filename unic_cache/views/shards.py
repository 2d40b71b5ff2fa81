"""Where WebDataset shards lie, on disk or behind a URL: patterns to tars, tars to entries, and images by row."""

import glob
import io
import os
import re
import weakref
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from functools import lru_cache, partial
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self, cast

from unic_cache.errors import CacheError, ShardError
from unic_cache.location import Location, open_location
from unic_cache.paths import braced, check_pattern
from unic_cache.views.index import KIND, SHARD_NAME, Segment, ShardEntry
from unic_cache.views.tars import BLOCK, image_header, member_name, scan_tar, shard_error

READ_AHEAD = 1 << 20  # bytes of a remote tar that one request brings while its headers are walked


def expand(pattern: str) -> tuple[str, ...]:
    """The tars that a path or URL, a glob or WebDataset's braces name, in order. ShardError where one is missing.

    In a URL only the last part may be a glob.
    """
    pattern = check_pattern(pattern).removeprefix("file://")
    if not _is_remote(pattern):
        if Path(pattern).is_dir():
            raise ShardError(f"{pattern} is a folder; say '{pattern.rstrip('/')}/*.tar'")
        if Path(pattern).is_file():
            return (pattern,)
    try:
        parts = braced(pattern)
    except ValueError as error:
        raise ShardError(f"{pattern}: the braces cannot be expanded: {error}") from error
    found = [path for part in parts for path in (_globbed(part) if glob.has_magic(part) else [part])]
    missing = [path for path in found if tar_size(path) is None]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ShardError(f"no shard at {missing[0]}{more}, of {len(found)} that {pattern!r} names; check the path")
    if not found:
        hint = "; a '[' in a folder's name must be written '[[]'" if "[" in pattern else ""
        raise ShardError(f"no shard matches {pattern!r}; give a path, a glob such as 'shards/*.tar', or braces{hint}")
    return tuple(found)


def shard_name(path: str) -> str:
    """A tar's name in a cache: the file's, without folder and ".tar". ShardError on characters that are not allowed."""
    name = Path(path).name.removesuffix(".tar")
    if not SHARD_NAME.fullmatch(name):
        raise ShardError(f"{path}: use only letters, digits, '.', '_', '@', '+' and '-' in a shard's name; rename it")
    return name


def describe(paths: Sequence[str]) -> tuple[ShardEntry, ...]:
    """What each tar holds: from the `index.json` beside it where that lists the tar, else by `scan`.

    ShardError where a tar's size is not the one in its index: it was truncated or rewritten.
    """
    indexes = {folder: _index_beside(folder) for folder in {_parent(path) for path in paths}}
    return tuple(_described(path, indexes[_parent(path)]) for path in paths)


def scan(path: str) -> ShardEntry:
    """What a tar holds, by its headers: see `tars.scan_tar` for the rules and the errors."""
    size = tar_size(path)
    if size is None:
        raise ShardError(f"no shard at {path}; check the path")
    with _opened(path, size) as file:
        return scan_tar(file, size, path, shard_name(path))


def tar_size(path: str) -> int | None:
    """The tar's bytes, or None where there is none."""
    if _is_remote(path):
        folder, name = _split(path)
        return folder.size(name)
    return Path(path).stat().st_size if Path(path).is_file() else None


class OpenShard:
    """A tar to read images from by row; `read` may be called from several threads at once."""

    def __init__(self, path: str, entry: ShardEntry) -> None:
        self.path = path
        self.entry = entry
        self._close: Callable[[], object] = _nothing
        self._range: Callable[[int, int], bytes]
        if _is_remote(path):
            folder, name = _split(path)
            self._range = partial(folder.read_range, name)
        else:
            descriptor = os.open(path.removeprefix("file://"), os.O_RDONLY)
            self._close = weakref.finalize(self, os.close, descriptor)
            self._range = partial(_pread, descriptor)

    def read(self, row: int) -> bytes:
        """The bytes of the image of sample `row`. ShardError where the tar ends before them."""
        offset, size = self.entry.offsets[row], self.entry.sizes[row]
        data = self._range(offset, size)
        if len(data) < size:
            raise shard_error(self.path, offset + len(data), "it ends early", "copy it anew")
        return data

    def read_header(self, row: int) -> tuple[int, int] | None:
        """(crc32 of the key, bytes) that the tar itself says of the image; None where there is no header."""
        return image_header(self._range(self.entry.offsets[row] - BLOCK, BLOCK))

    def name(self, row: int) -> str:
        """What the tar calls the image of a row, or its key's checksum where its header is too short for the name."""
        found = member_name(self._range(self.entry.offsets[row] - BLOCK, BLOCK))
        key = self.entry.keys[row]
        return found[1] if found is not None and found[0] == key else f"key {key:08x}"

    def close(self) -> None:
        """Close the file; `read` fails afterwards. A tar that nothing refers to any more closes by itself."""
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _RemoteTar(io.RawIOBase):
    """A tar behind a URL as a file: each read is one range request."""

    def __init__(self, folder: Location, name: str, size: int) -> None:
        self._folder, self._name, self._size, self._at = folder, name, size, 0

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Costs nothing."""
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        """Where the next read begins."""
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """One request."""
        count = max(min(len(buffer), self._size - self._at), 0)
        data = self._folder.read_range(self._name, self._at, count) if count else b""
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def _opened(path: str, size: int) -> BinaryIO:
    if not _is_remote(path):
        return open(path, "rb")
    folder, name = _split(path)
    return cast("BinaryIO", io.BufferedReader(_RemoteTar(folder, name, size), READ_AHEAD))


def _is_remote(path: str) -> bool:
    return re.match(r"[a-z0-9]+://", path) is not None and not path.startswith("file://")


def _split(path: str) -> tuple[Location, str]:
    folder, _, name = path.rpartition("/")
    return _folder(folder), name


@lru_cache(maxsize=64)
def _folder(url: str) -> Location:
    """One connection for all tars of a folder."""
    return open_location(url)


def _globbed(pattern: str) -> list[str]:
    """Sorted, hidden files left out: a tar that is still being written has a hidden name."""
    if not _is_remote(pattern):
        return sorted(glob.glob(pattern))  # noqa: PTH207 (Path.glob finds hidden files)
    folder, _, name = pattern.rpartition("/")
    if glob.has_magic(folder):
        raise ShardError(f"{pattern}: in a URL only the last part may be a glob; use braces for folders")
    names = [found for found in _folder(folder).names() if "/" not in found and not found.startswith(".")]
    return [f"{folder}/{found}" for found in names if fnmatch(found, name)]


def _pread(descriptor: int, offset: int, size: int) -> bytes:
    data = os.pread(descriptor, size, offset)
    while len(data) < size:
        more = os.pread(descriptor, size - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data


def _parent(path: str) -> str:
    """The folder of a path or URL; "" for a bare name."""
    return path[: path.rfind("/")] or "/" if "/" in path else ""


def _nothing() -> None:
    """Nothing to close."""


def _described(path: str, index: dict[str, ShardEntry]) -> ShardEntry:
    entry = index.get(shard_name(path))
    if entry is None:
        return scan(path)
    size = tar_size(path)
    if size != entry.size:
        raise ShardError(
            f"{path} has {size} bytes and its index.json says {entry.size}: truncated or rewritten; copy it anew, "
            "or delete the index.json so that the tar is scanned"
        )
    for row in sorted({0, entry.rows // 2, entry.rows - 1}):
        _check_header(path, entry, row)
    return entry


def _check_header(path: str, entry: ShardEntry, row: int) -> None:
    """ShardError unless the tar has the header of the row's image where the index says: two tars may have one size."""
    with OpenShard(path, entry) as tar:
        header = tar.read_header(row)
    if header != (entry.keys[row], entry.sizes[row]):
        raise ShardError(
            f"{path}: row {row} is not the image that index.json describes; the tar was replaced or renamed. Put the "
            "right one back, or delete the index.json so that the tars are scanned"
        )


def _index_beside(folder: str) -> dict[str, ShardEntry]:
    """The shards that `unic-cache shard` listed in the folder; none where its index.json is someone else's."""
    where = f"{folder}/index.json" if folder else "index.json"
    data = _folder(folder or ".").read("index.json")
    if data is None or f'"{KIND}"'.encode() not in data:
        return {}
    try:
        return {entry.name: entry for entry in Segment.from_json(data, where).shards}
    except CacheError as error:
        raise ShardError(f"{error}; delete it so that the tars are scanned") from error
