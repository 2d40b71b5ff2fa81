"""The contract of a place where files live: what every path argument becomes.

A `Location` is a folder of write-once files. Names are relative, use "/", and cannot leave the folder.
"""

import re
from collections.abc import Collection, Iterator
from typing import Protocol, runtime_checkable

from unic_cache.errors import ConfigError
from unic_cache.files.open_file import OpenFile

NAME = re.compile(r"[A-Za-z0-9._@+-]+(/[A-Za-z0-9._@+-]+)*")


def checked(name: str) -> str:
    """`name` if it is a plain relative path below the folder; ValueError otherwise, so that no data names a path."""
    if not NAME.fullmatch(name) or any(part in {".", ".."} for part in name.split("/")):
        raise ConfigError(
            f"{name!r} is not a name inside a cache: use letters, digits, '.', '_', '@', '+', '-' and '/'"
        )
    return name


@runtime_checkable
class Location(Protocol):
    """A folder of files, each created once. All methods may be called from several threads."""

    url: str

    @property
    def waits(self) -> bool:
        """Whether reading mostly waits, for a disk or a server, so that more threads than cores are of use."""
        ...

    def read(self, name: str) -> bytes | None:
        """The whole file, or None where there is none."""
        ...

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        """Bytes [offset, offset + size), fewer at the file's end. FileNotFoundError where there is no file."""
        ...

    def open(self, name: str) -> OpenFile:
        """The file, to be read again and again. FileNotFoundError here or at its first read where there is none."""
        ...

    def size(self, name: str) -> int | None:
        """The file's size in bytes, or None where there is none."""
        ...

    def create(self, name: str, data: bytes) -> bool:
        """Write `data` durably and all at once as a new file; True where just these bytes now stand under the name.

        False, and nothing changed, where other bytes do. What stands there is durable in both cases.
        """
        ...

    def replace(self, name: str, data: bytes) -> None:
        """Write `data` durably and all at once, whatever was there: only for what no commit record vouches for."""
        ...

    def delete(self, name: str) -> None:
        """Remove a file; no error where there is none."""
        ...

    def names(self, prefix: str = "", without: Collection[str] = ()) -> Iterator[str]:
        """The names below the folder `prefix`, sorted; temporary files are not among them.

        What lies in the folders named in `without`, directly inside `prefix`, is left out, readable or not.
        """
        ...

    def folders(self, prefix: str = "") -> list[str]:
        """The names of the folders directly inside the folder `prefix`, sorted."""
        ...
