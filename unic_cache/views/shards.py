"""Where WebDataset shards lie, on disk or behind a URL: patterns to tars, tars to entries, and images by row."""

import glob
import io
import os
import re
import weakref
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatch
from functools import lru_cache, partial
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self, cast

from crc32c import crc32c

from unic_cache.errors import CacheError, EmptyShardError, ShardError
from unic_cache.files.location import Location
from unic_cache.files.paths import braced, check_pattern
from unic_cache.files.schemes import open_location
from unic_cache.views.index import KIND, NO_LABEL, SHARD_NAME, Segment, ShardEntry
from unic_cache.views.members import BLOCK, shard_error
from unic_cache.views.remote_tar import READ_AHEAD, RemoteTar
from unic_cache.views.tars import image_header, label_before, member_name, scan_tar

UNFINISHED = ".unfinished"  # stands beside the tars of a `shard` that has not ended
CHECKED = 3 * BLOCK  # bytes before an image: its header and, where `shard` packed it, its label's header and text


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
        raise ShardError(
            f"no shard matches {pattern!r}; give a path, a glob such as 'shards/*.tar', or braces, or make tars of "
            f"your images with `unic-cache shard IMAGES shards`{hint}"
        )
    return tuple(found)


def shard_name(path: str) -> str:
    """A tar's name in a cache: the file's, without folder and ".tar". ShardError on characters that are not allowed."""
    name = Path(path).name.removesuffix(".tar")
    if not SHARD_NAME.fullmatch(name):
        raise ShardError(f"{path}: use only letters, digits, '.', '_', '@', '+' and '-' in a shard's name; rename it")
    return name


def describe(paths: Sequence[str]) -> tuple[ShardEntry, ...]:
    """What each tar holds: from the `index.json` beside it where that lists the tar and fits it, else by `scan`.

    ShardError where a tar is not the one that its index describes, or where the `shard` that writes it has not ended.
    """
    return tuple(entry for _, entry in _each(paths, strict=True))


def describe_filled(paths: Sequence[str]) -> tuple[list[tuple[str, ShardEntry]], list[EmptyShardError]]:
    """(path, entry) of every tar with an image in it, as `describe` gives them, and the errors of those without."""
    empty: list[EmptyShardError] = []
    return list(_each(paths, empty=empty)), empty


def scan(path: str) -> ShardEntry:
    """What a tar holds, by its headers: see `tars.scan_tar` for the rules and the errors."""
    size = tar_size(path)
    if size is None:
        raise ShardError(f"no shard at {path}; check the path")
    with _opened(path, size) as file:
        return scan_tar(file, size, path, shard_name(path))


def beside(path: str, name: str) -> bytes | None:
    """The file `name` in a tar's folder, or None where there is none."""
    return _folder(_parent(path) or ".").read(name)


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
        """The bytes of the image of sample `row`.

        ShardError where the tar ends before them, or where the header before them is another image's: one read gives
        both. Where the index beside the tar was believed, the label is compared too.
        """
        offset, size = self.entry.offsets[row], self.entry.sizes[row]
        before = min(offset, CHECKED)
        data = self._range(offset - before, before + size)
        if len(data) < before + size:
            raise shard_error(self.path, offset - before + len(data), "it ends early", "copy it anew")
        self._check(row, data[:before])
        return data[before:]

    def check(self, row: int) -> None:
        """ShardError where the tar does not have the header of the row's image where the entry says."""
        offset = self.entry.offsets[row]
        before = min(offset, CHECKED)
        self._check(row, self._range(offset - before, before))

    def labelled_before(self, row: int) -> bool:
        """Whether the row's label stands before its image, where `read` sees it, or there is none."""
        offset, entry = self.entry.offsets[row], self.entry
        blocks = self._range(offset - CHECKED, CHECKED - BLOCK) if offset >= CHECKED else b""
        return entry.labels[row] in {NO_LABEL, label_before(blocks, entry.keys[row])}

    def ends(self) -> bool:
        """Whether nothing stands behind the last image."""
        end = max(map(sum, zip(self.entry.offsets, self.entry.sizes, strict=True)))
        return not self._range(-(-end // BLOCK) * BLOCK, BLOCK).strip(b"\0")

    def _check(self, row: int, before: bytes) -> None:
        entry, header = self.entry, before[-BLOCK:]
        if entry.headers is not None:
            if crc32c(header) != entry.headers[row]:
                what = f"row {row} is not the image that was there when the tar was scanned"
                raise shard_error(self.path, entry.offsets[row], what, "it was changed since; start again")
            return
        found = image_header(header)
        if found is None or found[1] != entry.sizes[row] or found[0] not in {None, entry.keys[row]}:
            raise _not_indexed(self.path, f"row {row} is not the image that index.json describes")
        label = label_before(before, entry.keys[row]) if len(before) == CHECKED else None
        if label is not None and label != entry.labels[row]:
            said = [str(one) if one != NO_LABEL else "none" for one in (label, entry.labels[row])]
            raise _not_indexed(self.path, f"the label of row {row} is {said[0]}, and {said[1]} in index.json")

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


def _opened(path: str, size: int) -> BinaryIO:
    if not _is_remote(path):
        return open(path, "rb")
    folder, name = _split(path)
    return cast("BinaryIO", io.BufferedReader(RemoteTar(folder, name, size), READ_AHEAD))


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


def _each(
    paths: Sequence[str], strict: bool = False, empty: list[EmptyShardError] | None = None
) -> Iterator[tuple[str, ShardEntry]]:
    folders = {_parent(path) for path in paths}
    for folder in sorted(folders):
        if _folder(folder or ".").size(UNFINISHED) is not None:
            raise ShardError(
                f"{folder or '.'} holds the tars of a `shard` that has not ended; run the same `shard` again, and it "
                f"will, or delete {UNFINISHED} there if these tars are what you want"
            )
    indexes = {folder: _index_beside(folder) for folder in folders}
    for path in paths:
        try:
            yield path, _described(path, indexes[_parent(path)])
        except EmptyShardError as error:
            if strict or empty is None:
                raise
            empty.append(error)


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
    rows = sorted({0, entry.rows // 2, entry.rows - 1})
    with OpenShard(path, entry) as tar:
        for row in rows:
            tar.check(row)
        if tar.ends() and all(tar.labelled_before(row) for row in rows):
            return entry
    found = scan(path)  # not as `shard` packs: what the index says cannot be checked row by row
    if found != entry:
        raise _not_indexed(path, "its samples or labels are not those that index.json describes")
    return found


def _not_indexed(path: str, what: str) -> ShardError:
    return ShardError(
        f"{path}: {what}; the tar was replaced, renamed or edited. Put the right one back, or delete the index.json so "
        "that the tars are scanned"
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
