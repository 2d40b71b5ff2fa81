"""The members of a tar by its headers alone: plain files, and links to them, up to the true end of the file.

Archives that were joined (cat a.tar b.tar) are read on, as `tar -i` does. Whatever else stands behind an end mark is an
error, and so is a tar that ends early, where WebDataset's own reader ends silently.
"""

import posixpath
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Self

from crc32c import crc32c

from unic_cache.errors import ShardError
from unic_cache.views.decode import LFS_POINTER
from unic_cache.views.left_out import DEAD_LINK, GUEST, SPARSE, SPECIAL, Tally, is_guest

BLOCK = 512  # bytes
_ZEROS_AT_ONCE = 1 << 20  # bytes behind an end mark
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_MOST_LINKS = 40  # that lead to one another


@dataclass(frozen=True)
class Member:
    """A file of a tar: its own name, and the place and the header of its data, which a link shares with its target."""

    name: str
    header: int  # byte of its (first) header
    offset: int  # byte of its data
    size: int  # bytes
    crc: int  # crc32c of the block before the data


class _Header(tarfile.TarInfo):
    """A header that keeps the checksum of its block."""

    crc = 0

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """As tarfile makes it."""
        found = super().frombuf(buf, encoding, errors)
        found.crc = crc32c(bytes(buf))
        return found


class Members:
    """The files of a tar of `size` bytes, open for reading at any place; `path` is its name in errors."""

    def __init__(self, file: BinaryIO, path: str, size: int) -> None:
        self.file, self.path, self.size = file, path, size
        self.left_out = Tally()
        self.held = 0  # members seen, folders not counted
        self._files: dict[str, Member] = {}  # plain files by their place in the archive
        self._links: dict[str, str] = {}  # links, and where they lead
        self.links_forward = False  # whether a link led nowhere because its target stands behind it

    def again(self) -> Self:
        """The same tar from its beginning, with what links forward lead to known from the first pass."""
        found = type(self)(self.file, self.path, self.size)
        found._files, found._links = self._files, self._links
        return found

    def __iter__(self) -> Iterator[Member]:
        """Plain files and links to plain files in order; all else is counted in `left_out`.

        ShardError on a compressed or damaged tar and on one that ends early: in a member or before an end mark.
        """
        dead: list[str] = []
        for found in self._all():
            if found.isdir():
                continue
            self.held += 1
            member, place = None, posixpath.normpath(found.name)
            if found.issym() or found.islnk():
                self._links[place] = _leads_to(found)
                member = self._target(place)
                dead += [] if member else [place]
            elif found.isreg() and not found.issparse():
                member = Member(found.name, found.offset, found.offset_data, found.size, found.crc)
                self._files[place] = member
            if is_guest(found.name):
                self.left_out.add(GUEST, found.name)
            elif member is not None:
                yield Member(found.name, found.offset, member.offset, member.size, member.crc)
            elif found.issym() or found.islnk():
                self.left_out.add(DEAD_LINK, found.name)
            else:
                self.left_out.add(SPARSE if found.issparse() else SPECIAL, found.name)
        self.links_forward = any(self._target(place) for place in dead)

    def read(self, member: Member, size: int) -> bytes:
        """The first bytes of a member."""
        self.file.seek(member.offset)
        return self.file.read(min(size, member.size))

    def _target(self, place: str) -> Member | None:
        """The plain file at the end of a chain of links."""
        for _ in range(_MOST_LINKS):
            if place not in self._links:
                break
            place = self._links[place]
        return self._files.get(place)

    def _all(self) -> Iterator[_Header]:
        """Every member of every archive in the file."""
        start: int | None = 0
        while start is not None:
            with self._opened(start) as tar:
                try:
                    for member in tar:
                        whole = member.isreg() and not member.issparse()  # the size is that of the data
                        if whole and member.offset_data + member.size > self.size:
                            raise self.error(self.size, f"it ends early, within {member.name!r}", "copy it anew")
                        assert isinstance(member, _Header)
                        yield member
                except (tarfile.TarError, OverflowError, RecursionError) as error:
                    at = min(tar.offset, self.size)
                    raise self.error(at, f"it ends early or is damaged: {error}", "copy it anew") from error
                end = tar.offset
            if start and end == start:
                raise self.error(start, "what stands behind the archive's end is no tar", "cut it off, or copy it anew")
            start = self._behind(end)

    def _behind(self, end: int) -> int | None:
        """Where another archive begins behind the end mark at byte `end`; None where only zeros follow."""
        self.file.seek(end)
        mark = self.file.read(BLOCK)
        if len(mark) < BLOCK:
            remedy = "copy it anew or close it by its writer"
            raise self.error(self.size, "it ends early, before the archive's end mark", remedy)
        if mark.strip(b"\0"):
            raise self.error(end, "a damaged header", "copy it anew")
        at = end + BLOCK
        while zeros := self.file.read(_ZEROS_AT_ONCE):
            rest = zeros.lstrip(b"\0")
            if rest:
                return at + len(zeros) - len(rest)
            at += len(zeros)
        return None

    def _opened(self, start: int) -> tarfile.TarFile:
        self.file.seek(start)
        first = self.file.read(len(LFS_POINTER))
        if first == LFS_POINTER:
            raise self.error(start, "it is no tar but a pointer of Git LFS to it", "run `git lfs pull`")
        for magic, name in _COMPRESSED.items():
            if first.startswith(magic):
                remedy = "unpack it to a plain tar, whose members can be read at any place"
                raise self.error(start, f"it is compressed by {name}", remedy)
        self.file.seek(start)
        try:
            return tarfile.open(fileobj=self.file, mode="r:", tarinfo=_Header)
        except (tarfile.TarError, OverflowError, RecursionError) as error:
            raise self.error(start, f"it is no tar: {error}", "give the path of a plain tar") from error

    def error(self, offset: int, what: str, remedy: str) -> ShardError:
        """The error of something wrong at a byte of this tar."""
        return shard_error(self.path, offset, what, remedy)


def _leads_to(link: tarfile.TarInfo) -> str:
    """A link's target as a place in the archive: a hard link names it from the root, a symlink from its own folder."""
    base = posixpath.dirname(link.name) if link.issym() else ""
    return posixpath.normpath(posixpath.join(base, link.linkname))


def shard_error(path: str, offset: int, what: str, remedy: str) -> ShardError:
    """The error of something wrong at a byte of a tar."""
    return ShardError(f"{path}, byte {offset}: {what}; {remedy}")
