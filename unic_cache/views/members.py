"""List a tar's files, and links to them, from its headers alone, up to the true end of the file.

Joined archives (cat a.tar b.tar) are read through, as by `tar -i`. Anything else after an end mark is an error, and so
is a tar that ends early, where WebDataset's reader stops silently.
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
_ZEROS_AT_ONCE = 1 << 20  # bytes read after an end mark
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_MOST_LINKS = 40  # in a chain


@dataclass(frozen=True)
class Member:
    """A file of a tar: its name, and the place of its data, which a link shares with its target."""

    name: str
    header: int  # byte of its (first) header
    offset: int  # byte of its data
    size: int  # bytes
    crc: int  # crc32c of the block before the data


class Members:
    """The files of a seekable tar of `size` bytes; errors call it `path`."""

    def __init__(self, file: BinaryIO, path: str, size: int) -> None:
        self.file, self.path, self.size = file, path, size
        self.left_out = Tally()
        self.held = 0  # members seen, without folders
        self._files: dict[str, Member] = {}  # plain files by path in the archive
        self._links: dict[str, str] = {}  # link -> target
        self.links_forward = False  # whether a link seemed dead because its target comes later

    def again(self) -> Self:
        """The same tar from its start, with the targets of forward links known from the first pass."""
        found = type(self)(self.file, self.path, self.size)
        found._files, found._links = self._files, self._links
        return found

    def __iter__(self) -> Iterator[Member]:
        """Plain files and links to plain files, in order; counts the rest in `left_out`.

        ShardError for a tar that is compressed, damaged, or ends early: within a member or before an end mark.
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
                crc = self._block_crc(found.offset_data - BLOCK)
                member = Member(found.name, found.offset, found.offset_data, found.size, crc)
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
        """The plain file at the end of a chain of links, if any."""
        for _ in range(_MOST_LINKS):
            if place not in self._links:
                break
            place = self._links[place]
        return self._files.get(place)

    def _block_crc(self, at: int) -> int:
        """crc32c of the block at byte `at`; read anew, since releases of tarfile differ in how they hand it over."""
        self.file.seek(at)
        return int(crc32c(self.file.read(BLOCK)))

    def _all(self) -> Iterator[tarfile.TarInfo]:
        """Every member of every archive in the file."""
        start: int | None = 0
        while start is not None:
            with self._opened(start) as tar:
                try:
                    for member in tar:
                        plain = member.isreg() and not member.issparse()  # `size` is that of the data
                        if plain and member.offset_data + member.size > self.size:
                            raise self.error(self.size, f"it ends early, within {member.name!r}", "copy it again")
                        yield member
                except (tarfile.TarError, OverflowError, RecursionError) as error:
                    at = min(tar.offset, self.size)
                    raise self.error(at, f"it ends early or is damaged: {error}", "copy it again") from error
                end = tar.offset
            if start and end == start:
                raise self.error(start, "the data after the archive's end is not a tar", "cut it off, or copy it again")
            start = self._after(end)

    def _after(self, end: int) -> int | None:
        """Where the next archive starts after the end mark at byte `end`; None if only zeros follow."""
        self.file.seek(end)
        mark = self.file.read(BLOCK)
        if len(mark) < BLOCK:
            remedy = "copy it again, or let its writer close it"
            raise self.error(self.size, "it ends early, before the archive's end mark", remedy)
        if mark.strip(b"\0"):
            raise self.error(end, "a damaged header", "copy it again")
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
            raise self.error(start, "it is not a tar but a Git LFS pointer to one", "run `git lfs pull`")
        for magic, name in _COMPRESSED.items():
            if first.startswith(magic):
                remedy = "decompress it to a plain tar, whose members can be read at any offset"
                raise self.error(start, f"it is compressed with {name}", remedy)
        self.file.seek(start)
        try:
            return tarfile.open(fileobj=self.file, mode="r:")
        except (tarfile.TarError, OverflowError, RecursionError) as error:
            raise self.error(start, f"it is not a tar: {error}", "give the path of a plain tar") from error

    def error(self, offset: int, what: str, remedy: str) -> ShardError:
        """The error for byte `offset` of this tar."""
        return shard_error(self.path, offset, what, remedy)


def _leads_to(link: tarfile.TarInfo) -> str:
    """A link's target as a path in the archive: relative to the root for hard links, to its folder for symlinks."""
    base = posixpath.dirname(link.name) if link.issym() else ""
    return posixpath.normpath(posixpath.join(base, link.linkname))


def shard_error(path: str, offset: int, what: str, remedy: str) -> ShardError:
    """The error for byte `offset` of a tar."""
    return ShardError(f"{path}, byte {offset}: {what}; {remedy}")
