"""A WebDataset tar by its headers alone: which samples it holds, and where their images lie.

Nothing is extracted, no member's name becomes a path, and members other than images and `.cls` labels (JSON, text,
pickles) are never looked into. WebDataset's own reader ends silently at a tar that was cut off; here it is an error.
"""

import re
import tarfile
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from unic_cache.errors import ShardError
from unic_cache.views.index import ShardEntry

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff")  # the first present is the image

BLOCK = 512  # bytes
TWICE = "give every sample a key of its own, and keep its members side by side (tar --sort=name)"
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


def scan_tar(file: BinaryIO, size: int, path: str, name: str) -> ShardEntry:
    """Index a tar of `size` bytes, open for reading at any place; it will be called `name`, and `path` in errors.

    A sample is a run of members with one key, by WebDataset's rule (the name up to the base name's first dot). Its
    label is its `.cls` member where that is a decimal number, else None. Links, devices and sparse files are left out.
    ShardError, with the byte where it happened, on a repeated key, a sample without image, no sample at all, a
    compressed or damaged tar, and a tar that ends early: in a member or before the archive's end mark.
    """
    rows: list[tuple[int, int, int, int | None]] = []
    seen: set[str] = set()
    for key, members in _samples(file, path, size):
        first = min(member.offset for member in members.values())
        if key in seen:
            raise shard_error(path, first, f"the key {key!r} comes twice", TWICE)
        seen.add(key)
        image = next((members[one] for one in IMAGE_EXTENSIONS if one in members), None)
        if image is None:
            held = ", ".join(sorted(members))
            raise shard_error(path, first, f"sample {key!r} has no image, only {held}", "add one or remove the sample")
        rows.append((key_crc(key), image.offset_data, image.size, _label(file, members.get("cls"))))
    if not rows:
        raise shard_error(path, 0, "no images", f"an image's name ends in {', '.join(IMAGE_EXTENSIONS)}")
    keys, offsets, sizes, labels = zip(*rows, strict=True)
    return ShardEntry.of(name, size, keys, offsets, sizes, labels)


def key_crc(key: str) -> int:
    """crc32 of a sample's key: what the index keeps, and what its views hang on."""
    return zlib.crc32(key.encode("utf-8", "surrogateescape"))


def image_header(block: bytes) -> tuple[int, int] | None:
    """(crc32 of the key, bytes) of the member whose tar header the block is; None where it is none."""
    try:
        member = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return None
    key, _ = base_plus_ext(member.name)
    return None if key is None else (key_crc(key), member.size)


def member_name(block: bytes) -> tuple[int, str] | None:
    """(crc32 of the key, name) of the member whose tar header the block is, printable; None where it is none."""
    try:
        name = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape").name
    except tarfile.HeaderError:
        return None
    key, _ = base_plus_ext(name)
    return None if key is None else (key_crc(key), name.encode("utf-8", "backslashreplace").decode())


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
            raise shard_error(path, member.offset, f"the key {key!r} comes twice", TWICE)
        members[extension.lower()] = member
    if current is not None:
        yield current, members


def _members(file: BinaryIO, path: str, size: int) -> Iterator[tarfile.TarInfo]:
    """The plain files of a tar, by its headers alone; ShardError unless it is whole up to its end mark."""
    with _opened(file, path) as tar:
        try:
            for member in tar:
                if member.offset_data + member.size > size:
                    raise shard_error(path, size, f"it ends early, within {member.name!r}", "copy it anew")
                if member.isreg() and not member.issparse():
                    yield member
        except (tarfile.TarError, OverflowError, RecursionError) as error:
            at = min(tar.offset, size)
            raise shard_error(path, at, f"it ends early or is damaged: {error}", "copy it anew") from error
        file.seek(tar.offset)
        mark = file.read(BLOCK)
    if len(mark) < BLOCK:
        raise shard_error(
            path, size, "it ends early, before the archive's end mark", "copy it anew or close it by its writer"
        )
    if mark.strip(b"\0"):
        raise shard_error(path, tar.offset, "a damaged header", "copy it anew")


def _opened(file: BinaryIO, path: str) -> tarfile.TarFile:
    start = file.read(8)
    for magic, name in _COMPRESSED.items():
        if start.startswith(magic):
            remedy = "unpack it to a plain tar, whose members can be read at any place"
            raise shard_error(path, 0, f"it is compressed by {name}", remedy)
    file.seek(0)
    try:
        return tarfile.open(fileobj=file, mode="r:")
    except (tarfile.TarError, OverflowError, RecursionError) as error:
        raise shard_error(path, 0, f"it is no tar: {error}", "give the path of a plain tar") from error


def _label(file: BinaryIO, member: tarfile.TarInfo | None) -> int | None:
    if member is None or member.size > 20:
        return None
    here = file.tell()
    file.seek(member.offset_data)
    text = file.read(member.size).strip()
    file.seek(here)
    return int(text) if re.fullmatch(rb"[0-9]{1,18}", text) else None


def shard_error(path: str, offset: int, what: str, remedy: str) -> ShardError:
    """The error of something wrong at a byte of a tar."""
    return ShardError(f"{path}, byte {offset}: {what}; {remedy}")


def base_plus_ext(name: str) -> tuple[str | None, str]:
    """A member's key and extension: all before and after the first '.' of its last part; (None, "") without one.

    That is WebDataset's rule; its own function comes with torch, whose import takes seconds.
    """
    found = re.fullmatch(r"((?:.*/|)[^.]+)[.]([^/]*)", name)
    return (found[1], found[2]) if found else (None, "")
