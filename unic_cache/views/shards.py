"""WebDataset shards as they lie on disk: which samples a tar holds, and their images' bytes.

Only headers are walked: nothing is extracted, no member's name becomes a path, and members other than images and
`.cls` labels (JSON, text, pickles) are never looked into. WebDataset's own reader ends silently at a tar that was cut
off; here it is an error.
"""

import glob
import os
import re
import tarfile
import weakref
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from webdataset.shardlists import expand_urls
from webdataset.tariterators import base_plus_ext

from unic_cache.errors import CacheError, ShardError
from unic_cache.views.index import KIND, SHARD_NAME, Segment, ShardEntry

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff")  # the first present is the image

_BLOCK = 512  # bytes
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


def expand(pattern: str) -> tuple[str, ...]:
    """The tars that a path, a glob or WebDataset's braces name, in order. ShardError where one or all are missing."""
    scheme = re.match(r"([a-z0-9]+)://", pattern)
    if scheme is not None and scheme[1] != "file":
        raise ShardError(f"{pattern}: shards are not read from {scheme[1]}:// here; copy them to a local folder")
    pattern = pattern.removeprefix("file://")
    if Path(pattern).is_dir():
        raise ShardError(f"{pattern} is a folder; say '{pattern.rstrip('/')}/*.tar'")
    if Path(pattern).is_file():
        return (pattern,)
    try:
        parts = [str(part) for part in expand_urls(pattern)]
    except ValueError as error:
        raise ShardError(f"{pattern}: the braces cannot be expanded: {error}") from error
    found = [path for part in parts for path in (_globbed(part) if glob.has_magic(part) else [part])]
    missing = [path for path in found if not Path(path).is_file()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ShardError(f"no shard at {missing[0]}{more}, of {len(found)} that {pattern!r} names; check the path")
    if not found:
        raise ShardError(f"no shard matches {pattern!r}; give a path, a glob such as 'shards/*.tar', or braces")
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
    indexes = {folder: _index_beside(folder) for folder in {str(Path(path).parent) for path in paths}}
    return tuple(_described(path, indexes[str(Path(path).parent)]) for path in paths)


def scan(path: str) -> ShardEntry:
    """Index a tar by its headers.

    A sample is a run of members with one key, by WebDataset's rule (the name up to the base name's first dot). Its
    label is its `.cls` member where that is a decimal number, else None. Links, devices and sparse files are left out.
    ShardError, with the byte where it happened, on a repeated key, a sample without image, no sample at all, a
    compressed or damaged tar, and a tar that ends early: in a member or before the archive's end mark.
    """
    name = shard_name(path)
    rows: list[tuple[int, int, int, int | None]] = []
    seen: set[str] = set()
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        for key, members in _samples(file, path, size):
            first = min(member.offset for member in members.values())
            if key in seen:
                raise _error(path, first, f"the key {key!r} comes twice", "give every sample a key of its own")
            seen.add(key)
            image = next((members[one] for one in IMAGE_EXTENSIONS if one in members), None)
            if image is None:
                held = ", ".join(sorted(members))
                raise _error(path, first, f"sample {key!r} has no image, only {held}", "add one or remove the sample")
            crc = zlib.crc32(key.encode("utf-8", "surrogateescape"))
            rows.append((crc, image.offset_data, image.size, _label(file, members.get("cls"))))
    if not rows:
        raise _error(path, 0, "no images", f"an image's name ends in {', '.join(IMAGE_EXTENSIONS)}")
    keys, offsets, sizes, labels = zip(*rows, strict=True)
    return ShardEntry(name, size, keys, offsets, sizes, labels)


class OpenShard:
    """A tar held open to read images by row; `read` may be called from several threads at once."""

    def __init__(self, path: str, entry: ShardEntry) -> None:
        self.path = path
        self.entry = entry
        self._descriptor = os.open(path, os.O_RDONLY)
        self._close = weakref.finalize(self, os.close, self._descriptor)

    def read(self, row: int) -> bytes:
        """The bytes of the image of sample `row`. ShardError where the tar ends before them."""
        return self._read(self.entry.offsets[row], self.entry.sizes[row])

    def close(self) -> None:
        """Close the file; `read` fails afterwards. A tar that nothing refers to any more closes by itself."""
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read(self, offset: int, size: int) -> bytes:
        data = os.pread(self._descriptor, size, offset)
        while len(data) < size:
            more = os.pread(self._descriptor, size - len(data), offset + len(data))
            if not more:
                raise _error(self.path, offset + len(data), "it ends early", "copy it anew")
            data += more
        return data


def _globbed(pattern: str) -> list[str]:
    """Sorted, hidden files left out: a tar that is still being written has a hidden name."""
    return sorted(glob.glob(pattern))  # noqa: PTH207 (Path.glob finds hidden files)


def _described(path: str, index: dict[str, ShardEntry]) -> ShardEntry:
    entry = index.get(shard_name(path))
    if entry is None:
        return scan(path)
    size = Path(path).stat().st_size
    if size != entry.size:
        raise ShardError(
            f"{path} has {size} bytes and its index.json says {entry.size}: truncated or rewritten; copy it anew, "
            "or delete the index.json so that the tar is scanned"
        )
    return entry


def _index_beside(folder: str) -> dict[str, ShardEntry]:
    """The shards that `unic-cache shard` listed in the folder; none where its index.json is someone else's."""
    path = Path(folder) / "index.json"
    if not path.is_file():
        return {}
    data = path.read_bytes()
    if f'"{KIND}"'.encode() not in data:
        return {}
    try:
        return {entry.name: entry for entry in Segment.from_json(data, str(path)).shards}
    except CacheError as error:
        raise ShardError(f"{error}; delete it so that the tars are scanned") from error


def _samples(file: BinaryIO, path: str, size: int) -> Iterator[tuple[str, dict[str, tarfile.TarInfo]]]:
    """Runs of members with one key, as (key, {lower-case extension: member})."""
    current: str | None = None
    members: dict[str, tarfile.TarInfo] = {}
    for member in _members(file, path, size):
        key, extension = base_plus_ext(member.name)
        if key is None or re.match(r"__[^/]*__($|/)", member.name):
            continue
        if key != current and current is not None:
            yield current, members
            members = {}
        current = key
        if extension.lower() in members:
            raise _error(path, member.offset, f"the key {key!r} comes twice", "give every sample a key of its own")
        members[extension.lower()] = member
    if current is not None:
        yield current, members


def _members(file: BinaryIO, path: str, size: int) -> Iterator[tarfile.TarInfo]:
    """The plain files of a tar, by its headers alone; ShardError unless it is whole up to its end mark."""
    with _opened(file, path) as tar:
        try:
            for member in tar:
                if member.offset_data + member.size > size:
                    raise _error(path, size, f"it ends early, within {member.name!r}", "copy it anew")
                if member.isreg() and not member.issparse():
                    yield member
        except (tarfile.TarError, OverflowError, RecursionError) as error:
            at = min(tar.offset, size)
            raise _error(path, at, f"it ends early or is damaged: {error}", "copy it anew") from error
        file.seek(tar.offset)
        mark = file.read(_BLOCK)
    if len(mark) < _BLOCK:
        raise _error(
            path, size, "it ends early, before the archive's end mark", "copy it anew or close it by its writer"
        )
    if mark.strip(b"\0"):
        raise _error(path, tar.offset, "a damaged header", "copy it anew")


def _opened(file: BinaryIO, path: str) -> tarfile.TarFile:
    start = file.read(8)
    for magic, name in _COMPRESSED.items():
        if start.startswith(magic):
            remedy = "unpack it to a plain tar, whose members can be read at any place"
            raise _error(path, 0, f"it is compressed by {name}", remedy)
    file.seek(0)
    try:
        return tarfile.open(fileobj=file, mode="r:")
    except (tarfile.TarError, OverflowError, RecursionError) as error:
        raise _error(path, 0, f"it is no tar: {error}", "give the path of a plain tar") from error


def _label(file: BinaryIO, member: tarfile.TarInfo | None) -> int | None:
    if member is None or member.size > 20:
        return None
    text = os.pread(file.fileno(), member.size, member.offset_data).strip()
    return int(text) if re.fullmatch(rb"[0-9]{1,18}", text) else None


def _error(path: str, offset: int, what: str, remedy: str) -> ShardError:
    return ShardError(f"{path}, byte {offset}: {what}; {remedy}")
