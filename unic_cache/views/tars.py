"""Index a WebDataset tar from its headers: its samples, and where their images lie.

Nothing is extracted and no member's name becomes a path. Of members other than images and `.cls` labels (JSON, text,
pickles), at most the first bytes are read, to find the image of a sample without a telling name.
"""

import re
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from unic_cache.errors import EmptyShardError
from unic_cache.views.decode import HEAD, image_kind
from unic_cache.views.dense_places import DENSE_KINDS, DEPTH_KINDS, Places, dense_kind
from unic_cache.views.index import NO_LABEL, ShardEntry
from unic_cache.views.labels import class_number, label_text
from unic_cache.views.left_out import (
    DOCUMENT,
    METADATA,
    NO_IMAGE,
    NO_SAMPLE,
    SEVERAL_DENSE,
    UNREAD_LABEL,
    is_document,
    listed,
)
from unic_cache.views.members import BLOCK, Member, Members

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "jfif", "jpe", "avif", "heic", "heif")

HELD_OUT = "__held_out__"  # member that `shard --val-fraction` adds to held-out tars; WebDataset skips it
LONGEST_LABEL = 64  # bytes
_PHOTOGRAPHS = {"jpg", "jpeg", "jfif", "jpe"}
TWICE = "give every sample a key of its own, and keep its members side by side (tar --sort=name)"
_FIRST_DOT = "a key ends at the name's first dot"
_METADATA = re.compile(r"__[^/]*__($|/)")  # WebDataset's metadata


def scan_tar(file: BinaryIO, size: int, path: str, name: str) -> ShardEntry:
    """Index a seekable tar of `size` bytes as shard `name`; errors call it `path`.

    A sample is a run of members with one key, by WebDataset's rule: the name up to the base name's first dot. Its image
    is the member whose whole extension is one of `IMAGE_EXTENSIONS`, of several a JPEG; else the only one that ends in
    one of them (`input.jpg`); else the only one that starts like an image. Its label is its `.cls` member; members of
    `dense_places` are its dense labels and never its image. A link to a file of the tar counts as that file. Samples
    without image, and members outside of samples, are counted as left out.

    ShardError, with the byte, for a repeated key, several images or kinds of depth map under one key, and a tar that is
    compressed, damaged or ends early: within a member or before an end mark. EmptyShardError if there is no image.
    """
    members = Members(file, path, size)
    found = _Scan(members)
    if members.links_forward:
        found = _Scan(members := members.again())
    left_out = members.left_out.total()
    if not found.rows:
        inside = f"; it holds {listed(left_out)}" if left_out else ""
        named = f"an image's name ends in {', '.join(IMAGE_EXTENSIONS)}, or its first bytes are an image's"
        raise EmptyShardError(f"{path}, byte 0: no images; {named}{inside}", path, members.held)
    keys, offsets, sizes, labels, crcs = zip(*found.rows, strict=True)
    dense = {kind: Places.of(len(keys), found.dense[kind]) for kind in DENSE_KINDS if found.dense[kind]}
    return ShardEntry.of(name, size, keys, offsets, sizes, labels, crcs, left_out, found.held_out, dense)


def key_crc(key: str) -> int:
    """crc32 of a sample's key; the index stores it, and the sample's views depend on it."""
    return zlib.crc32(key.encode("utf-8", "surrogateescape"))


class _Scan:
    """One pass over a tar's members: `rows` of (key crc32, image offset, image size, label, header crc32c)."""

    def __init__(self, members: Members) -> None:
        self.rows: list[tuple[int, int, int, int | None, int]] = []
        self.dense: dict[str, dict[int, tuple[int, int, int]]] = {kind: {} for kind in DENSE_KINDS}  # row -> the place
        self.held_out = False
        self._members = members
        self._labels: dict[str, bytes] = {}  # of the current sample, by extension
        seen: set[str] = set()
        for key, parts in self._samples():
            first = next(iter(parts.values()))
            if key in seen:
                raise members.error(first.header, f"the key {key!r} appears twice", f"{TWICE}; {_FIRST_DOT}")
            seen.add(key)
            image = self._image(key, parts)
            if image is not None:
                for kind, label in self._dense(key, parts).items():
                    self.dense[kind][len(self.rows)] = label.offset, label.size, label.crc
                self.rows.append((key_crc(key), image.offset, image.size, self._label(key), image.crc))
            elif is_document(key):
                members.left_out.add(DOCUMENT, first.name)
            else:
                members.left_out.add(NO_IMAGE, f"{key}: only {', '.join(sorted(parts))}")

    def _samples(self) -> Iterator[tuple[str, dict[str, Member]]]:
        """Runs of members with one key, as (key, {lower-case extension: member})."""
        current: str | None = None
        parts: dict[str, Member] = {}
        for member in self._members:
            if _METADATA.match(member.name):
                self.held_out |= member.name == HELD_OUT
                if member.name != HELD_OUT:
                    self._members.left_out.add(METADATA, member.name)
                continue
            key, extension = base_plus_ext(member.name)
            if key is None:  # no dot in the name
                if image_kind(self._members.read(member, HEAD)) is None:
                    self._members.left_out.add(NO_SAMPLE, member.name)
                    continue
                key, extension = member.name, ""
            if key != current:
                if current is not None:
                    yield current, parts
                current, parts, self._labels = key, {}, {}
            extension = extension.lower()
            if extension in parts:
                raise self._members.error(member.header, f"the key {key!r} appears twice", f"{TWICE}; {_FIRST_DOT}")
            parts[extension] = member
            if extension.rpartition(".")[2] == "cls":
                self._labels[extension] = self._members.read(member, LONGEST_LABEL + 1)
        if current is not None:
            yield current, parts

    def _image(self, key: str, parts: dict[str, Member]) -> Member | None:
        """The sample's image by name, or else by content. ShardError if several qualify."""
        whole = [extension for extension in IMAGE_EXTENSIONS if extension in parts]
        jpegs = [extension for extension in whole if extension in _PHOTOGRAPHS]
        if jpegs or len(whole) == 1:  # beside a JPEG, a PNG is mostly its mask
            return parts[(jpegs or whole)[0]]
        others = [extension for extension in parts if not dense_kind(extension)]
        found = (
            whole
            or [extension for extension in others if extension.rpartition(".")[2] in IMAGE_EXTENSIONS]
            or [extension for extension in others if image_kind(self._members.read(parts[extension], HEAD))]
        )
        if len(found) > 1:
            more = f" and {len(found) - 2} more" if len(found) > 2 else ""
            raise self._members.error(
                parts[found[0]].header,
                f"the key {key!r} has {len(found)} images, {found[0]}, {found[1]}{more}: {_FIRST_DOT}",
                "give each image a key of its own, keep one image per sample, or name a mask KEY.mask.png",
            )
        return parts[found[0]] if found else None

    def _dense(self, key: str, parts: dict[str, Member]) -> dict[str, Member]:
        """The sample's dense labels by kind; several of one kind are counted. ShardError for two depth maps."""
        found: dict[str, Member] = {}
        for kind in DENSE_KINDS:
            own = [kind] if kind in parts else [extension for extension in parts if dense_kind(extension) == kind]
            if len(own) > 1:
                self._members.left_out.add(SEVERAL_DENSE, f"{key}: {', '.join(own)}", len(own))
            elif own:
                found[kind] = parts[own[0]]
        if all(kind in found for kind in DEPTH_KINDS):
            what = f"the key {key!r} has two depth maps, {' and '.join(DEPTH_KINDS)}"
            raise self._members.error(found[DEPTH_KINDS[0]].header, what, "keep one of them per sample")
        return found

    def _label(self, key: str) -> int | None:
        """The number in the sample's `cls`, or in its only member ending in it; unreadable labels are counted."""
        labels = {"cls": self._labels["cls"]} if "cls" in self._labels else self._labels
        if not labels:
            return None
        texts = [label_text(data) for data in labels.values()]
        try:
            if len(texts) > 1:
                raise ValueError("several labels")
            return class_number(texts[0])
        except ValueError:
            several = f"{' and '.join(labels)}: " if len(texts) > 1 else ""
            self._members.left_out.add(UNREAD_LABEL, f"{key}: {several}{', '.join(map(repr, texts))}")
            return None


def image_header(block: bytes) -> tuple[int | None, int] | None:
    """(crc32 of the key, size in bytes) of the member of a tar header block; None if the block is not one.

    The key is None if the full name may be in a block of its own: if it is too long or not ASCII.
    """
    found = _name_and_size(block)
    if found is None:
        return None
    name, size = found
    return key_crc(base_plus_ext(name)[0] or name) if _is_whole(name, block) else None, size


def dense_header(block: bytes) -> tuple[int | None, str | None, int] | None:
    """(crc32 of the key, kind of dense label, size in bytes), as `image_header`; the kind is None if the key is."""
    found, named = image_header(block), _name_and_size(block)
    if found is None or named is None:
        return None
    key, size = found
    return key, None if key is None else dense_kind(base_plus_ext(named[0])[1].lower()), size


def member_name(block: bytes) -> tuple[int, str] | None:
    """(crc32 of the key, printable name) of the member of a tar header block; None if the block is not one."""
    found = _name_and_size(block)
    if found is None:
        return None
    key, _ = base_plus_ext(found[0])
    return key_crc(found[0] if key is None else key), found[0].encode("utf-8", "backslashreplace").decode()


def label_before(blocks: bytes, key: int) -> int | None:
    """The label in the two blocks before an image's header; None if they are not a `.cls` member with that key.

    NO_LABEL if it means no label or cannot be read.
    """
    found = _name_and_size(blocks[:BLOCK])
    if found is None or found[1] > LONGEST_LABEL:
        return None
    base, extension = base_plus_ext(found[0])
    if base is None or extension.lower().rpartition(".")[2] != "cls" or key_crc(base) != key:
        return None
    try:
        label = class_number(label_text(blocks[BLOCK : BLOCK + found[1]]))
    except ValueError:
        return NO_LABEL
    return NO_LABEL if label is None else label


def _name_and_size(block: bytes) -> tuple[str, int] | None:
    """(name, size) from a header block alone, ten times as fast as tarfile: it runs for every image."""
    name, prefix = (block[start:end].partition(b"\0")[0] for start, end in ((0, 100), (345, 500)))
    try:
        size = int(block[124:136].strip(b" \0"), 8)
    except ValueError:  # no header, or a member of 8 GiB or more
        return None
    if not name or len(block) < BLOCK:
        return None
    return (prefix + b"/" + name if prefix else name).decode("utf-8", "surrogateescape"), size


def _is_whole(name: str, block: bytes) -> bool:
    return b"\0" in block[:100] and "?" not in name


def base_plus_ext(name: str) -> tuple[str | None, str]:
    """A member's key and extension: before and after the first '.' of the base name; (None, "") without one.

    This is WebDataset's rule; its own function imports torch, which takes seconds.
    """
    found = re.fullmatch(r"((?:.*/|)[^.]+)[.]([^/]*)", name)
    return (found[1], found[2]) if found else (None, "")
