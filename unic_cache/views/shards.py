"""WebDataset shards on disk or behind a URL: expand patterns, describe tars, read images by row."""

import glob
import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Self

from crc32c import crc32c

from unic_cache.errors import CacheError, EmptyShardError, ShardError
from unic_cache.files.paths import braced, check_pattern
from unic_cache.views.dense_places import Places
from unic_cache.views.index import KIND, NO_LABEL, SHARD_NAME, Segment, ShardEntry
from unic_cache.views.members import BLOCK, shard_error
from unic_cache.views.tar_location import folder_at, is_remote, opened, parent, ranges_of, tar_size
from unic_cache.views.tars import dense_header, image_header, label_before, member_name, scan_tar

UNFINISHED = ".unfinished"  # marks the tars of an unfinished `shard`
CHECKED = 3 * BLOCK  # bytes before an image: its header and, if `shard` packed it, its label's header and text


def expand(pattern: str) -> tuple[str, ...]:
    """The tars named by a path, URL, glob or WebDataset braces, in order. ShardError if one is missing.

    In a URL only the last part may be a glob.
    """
    pattern = check_pattern(pattern).removeprefix("file://")
    if not is_remote(pattern):
        if Path(pattern).is_dir():
            raise ShardError(f"{pattern} is a folder; write '{pattern.rstrip('/')}/*.tar'")
        if Path(pattern).is_file():
            return (pattern,)
    try:
        parts = braced(pattern)
    except ValueError as error:
        raise ShardError(f"{pattern}: the braces cannot be expanded: {error}") from error
    each = {part: list(_globbed(part)) if glob.has_magic(part) else [part] for part in parts}
    found = [path for part in parts for path in each[part]]
    missing = [path for path in found if tar_size(path) is None]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ShardError(f"no shard at {missing[0]}{more}, of {len(found)} that {pattern!r} names; check the path")
    if not found:
        hint = "; write '[' in a folder's name as '[[]'" if "[" in pattern else ""
        raise ShardError(
            f"no shard matches {pattern!r}; give a path, a glob such as 'shards/*.tar', or braces, or pack your images "
            f"with `unic-cache shard IMAGES shards`{hint}"
        )
    if empty := [part for part, own in each.items() if not own]:
        raise ShardError(f"no shard matches {empty[0]!r}, a part of {pattern!r}; correct it, or leave it out")
    return tuple(found)


def shard_name(path: str) -> str:
    """A tar's name in a cache: the file name without ".tar". ShardError for characters that are not allowed."""
    name = Path(path).name.removesuffix(".tar")
    if not SHARD_NAME.fullmatch(name):
        raise ShardError(f"{path}: use only letters, digits, '.', '_', '@', '+' and '-' in a shard's name; rename it")
    return name


def describe(paths: Sequence[str]) -> tuple[ShardEntry, ...]:
    """Each tar's contents, from the `index.json` beside it if that lists the tar, else by `scan`.

    ShardError if a tar does not match its index, or the `shard` that writes it has not finished.
    """
    return tuple(entry for _, entry in _each(paths))


def describe_filled(paths: Sequence[str]) -> tuple[list[tuple[str, ShardEntry]], list[EmptyShardError]]:
    """(path, entry) of every tar with an image, as in `describe`, and the errors of tars without one."""
    empty: list[EmptyShardError] = []
    return list(_each(paths, empty)), empty


def scan(path: str) -> ShardEntry:
    """A tar's contents by its headers; `tars.scan_tar` has the rules and errors."""
    size = tar_size(path)
    if size is None:
        raise ShardError(f"no shard at {path}; check the path")
    with opened(path, size) as file:
        return scan_tar(file, size, path, shard_name(path))


class OpenShard:
    """An open tar with images by row; `read` is thread-safe."""

    def __init__(self, path: str, entry: ShardEntry) -> None:
        self.path = path
        self.entry = entry
        self._close: Callable[[], object] = lambda: None
        self._range, descriptor = ranges_of(path)
        if descriptor is not None:
            self._close = weakref.finalize(self, os.close, descriptor)

    def read(self, row: int) -> bytes:
        """The image bytes of sample `row`.

        ShardError if the tar ends before them, or the header before them, which the same read gives, is another
        image's. Compares the label too if the entry is from an index.json.
        """
        offset, size = self.entry.offsets[row], self.entry.sizes[row]
        before = min(offset, CHECKED)
        data = self._range(offset - before, before + size)
        if len(data) < before + size:
            raise shard_error(self.path, offset - before + len(data), "it ends early", "copy it again")
        self._check(row, data[:before])
        return data[before:]

    def read_label(self, row: int, kind: str) -> bytes | None:
        """The bytes of the row's dense label of this kind (see `dense_places`); None if it has none.

        ShardError if the tar ends before them, or the header before them is another member's.
        """
        places = self.entry.dense.get(kind)
        if places is None or not places.has(row):
            return None
        offset, size = places.offsets[row], places.sizes[row]
        before = min(offset, BLOCK)
        data = self._range(offset - before, before + size)
        if len(data) < before + size:
            raise shard_error(self.path, offset - before + len(data), "it ends early", "copy it again")
        self._check_label(row, kind, places, data[:before])
        return data[before:]

    def check(self, row: int) -> None:
        """ShardError if the header of the row's image, or of a dense label, is not where the entry says."""
        offset = self.entry.offsets[row]
        before = min(offset, CHECKED)
        self._check(row, self._range(offset - before, before))
        for kind, places in self.entry.dense.items():
            if places.has(row):
                start = max(places.offsets[row] - BLOCK, 0)
                self._check_label(row, kind, places, self._range(start, places.offsets[row] - start))

    def as_packed(self, row: int) -> bool:
        """Whether the row's labels lie right before its image, its class last, and nothing else, as `shard` packs them.

        `read` checks the class there.
        """
        offset, entry = self.entry.offsets[row], self.entry
        blocks = self._range(offset - CHECKED, CHECKED - BLOCK) if offset >= CHECKED else b""
        start = _padded(entry.offsets[row - 1] + entry.sizes[row - 1]) if row else BLOCK * entry.held_out
        sizes = [places.sizes[row] for places in entry.dense.values() if places.has(row)]
        sizes += [1] if entry.labels[row] != NO_LABEL else []
        explained = sum(BLOCK + _padded(size) for size in sizes) + BLOCK
        labelled = entry.labels[row] in {NO_LABEL, label_before(blocks, entry.keys[row])}
        return labelled and offset - start == explained

    def ends(self) -> bool:
        """Whether the tar ends after its last image or dense label."""
        entry, dense = self.entry, self.entry.dense.values()
        columns = [(entry.offsets, entry.sizes), *((places.offsets, places.sizes) for places in dense)]
        end = max(max(map(sum, zip(*pair, strict=True))) for pair in columns)
        return not self._range(_padded(end), BLOCK).strip(b"\0")

    def _check(self, row: int, before: bytes) -> None:
        entry, header = self.entry, before[-BLOCK:]
        if entry.headers is not None:
            if crc32c(header) != entry.headers[row]:
                what = f"row {row} is not the image found when the tar was scanned"
                raise shard_error(self.path, entry.offsets[row], what, "the tar has changed since; start again")
            return
        found = image_header(header)
        if found is None or found[1] != entry.sizes[row] or found[0] not in {None, entry.keys[row]}:
            raise _not_indexed(self.path, f"row {row} is not the image that index.json describes")
        label = label_before(before, entry.keys[row]) if len(before) == CHECKED else None
        if label is not None and label != entry.labels[row]:
            here, indexed = ("none" if one == NO_LABEL else one for one in (label, entry.labels[row]))
            raise _not_indexed(self.path, f"the label of row {row} is {here}, but {indexed} in index.json")

    def _check_label(self, row: int, kind: str, places: Places, header: bytes) -> None:
        if places.headers is not None:
            if crc32c(header) != places.headers[row]:
                what = f"the {kind} of row {row} is not the one found when the tar was scanned"
                raise shard_error(self.path, places.offsets[row], what, "the tar has changed since; start again")
            return
        key, named, size = dense_header(header) or (None, None, -1)
        if size != places.sizes[row] or (key, named) not in {(None, None), (self.entry.keys[row], kind)}:
            raise _not_indexed(self.path, f"the {kind} of row {row} is not the one that index.json describes")

    def name(self, row: int) -> str:
        """The name of a row's image in the tar, or its key's checksum if the header has no room for the name."""
        found = member_name(self._range(self.entry.offsets[row] - BLOCK, BLOCK))
        key = self.entry.keys[row]
        return found[1] if found is not None and found[0] == key else f"key {key:08x}"

    def close(self) -> None:
        """Close the file; `read` fails afterwards. Happens by itself when the last reference goes."""
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _padded(size: int) -> int:
    """Bytes up to the next whole block of a tar."""
    return -(-size // BLOCK) * BLOCK


def _globbed(pattern: str) -> list[str]:
    """Sorted matches without hidden files, since tars being written have hidden names."""
    if not is_remote(pattern):
        return sorted(glob.glob(pattern))  # noqa: PTH207 (Path.glob finds hidden files)
    folder, _, name = pattern.rpartition("/")
    if glob.has_magic(folder):
        raise ShardError(f"{pattern}: in a URL only the last part may be a glob; use braces for folders")
    names = [found for found in folder_at(folder).names() if "/" not in found and not found.startswith(".")]
    return [f"{folder}/{found}" for found in names if fnmatch(found, name)]


def _each(paths: Sequence[str], empty: list[EmptyShardError] | None = None) -> Iterator[tuple[str, ShardEntry]]:
    """(path, entry) of every tar; adds errors of tars without an image to `empty`, or raises them if that is None."""
    folders = {parent(path) for path in paths}
    for folder in sorted(folders):
        if folder_at(folder or ".").size(UNFINISHED) is not None:
            raise ShardError(
                f"{folder or '.'} holds the tars of an unfinished `shard`; run the same `shard` again to finish it, or "
                f"delete {UNFINISHED} there if these tars are what you want"
            )
    indexes = {folder: _index_beside(folder) for folder in folders}
    for path in paths:
        try:
            yield path, _described(path, indexes[parent(path)])
        except EmptyShardError as error:
            if empty is None:
                raise
            empty.append(error)


def _described(path: str, index: dict[str, ShardEntry]) -> ShardEntry:
    entry = index.get(shard_name(path))
    if entry is None:
        return scan(path)
    size = tar_size(path)
    if size != entry.size:
        raise ShardError(
            f"{path} has {size} bytes but {entry.size} in index.json: truncated or rewritten; copy it again, or delete "
            "the index.json so that the tar is scanned"
        )
    rows = sorted({0, entry.rows // 2, entry.rows - 1})
    with OpenShard(path, entry) as tar:
        for row in rows:
            tar.check(row)
        if tar.ends() and all(tar.as_packed(row) for row in rows):
            return entry
    found = scan(path)  # not packed by `shard`, so rows cannot be checked one by one
    if found != entry:
        raise _not_indexed(path, "its samples or labels are not those in index.json")
    return found


def _not_indexed(path: str, what: str) -> ShardError:
    return ShardError(
        f"{path}: {what}; the tar was replaced, renamed or edited. Restore the right one, or delete the index.json so "
        "that the tars are scanned"
    )


def _index_beside(folder: str) -> dict[str, ShardEntry]:
    """The shards in a folder's index.json; none if `unic-cache shard` did not write it."""
    where = f"{folder}/index.json" if folder else "index.json"
    data = folder_at(folder or ".").read("index.json")
    if data is None or f'"{KIND}"'.encode() not in data:
        return {}
    try:
        return {entry.name: entry for entry in Segment.from_json(data, where).shards}
    except CacheError as error:
        raise ShardError(f"{error}; delete it so that the tars are scanned") from error
