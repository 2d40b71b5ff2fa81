"""`Location`, the interface of every storage backend: a folder of write-once files.

Names are relative, use "/", and cannot leave the folder.
"""

import re
from collections.abc import Collection, Iterator
from typing import Protocol, runtime_checkable

from unic_cache.errors import ConfigError
from unic_cache.files.open_file import OpenFile

NAME = re.compile(r"[A-Za-z0-9._@+-]+(/[A-Za-z0-9._@+-]+)*")


def checked(name: str) -> str:
    """`name`, if it is a plain relative path inside the folder. ConfigError otherwise: names may come from files."""
    if not NAME.fullmatch(name) or any(part in {".", ".."} for part in name.split("/")):
        raise ConfigError(
            f"{name!r} is not a name inside a cache: use letters, digits, '.', '_', '@', '+', '-' and '/'"
        )
    return name


@runtime_checkable
class Location(Protocol):
    """A folder of files, each created once. Thread-safe."""

    url: str

    @property
    def waits(self) -> bool:
        """Whether reads mostly wait for a disk or server, so that more threads than cores help."""
        ...

    def read(self, name: str) -> bytes | None:
        """The whole file, or None if there is none."""
        ...

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        """Bytes [offset, offset + size), fewer at the file's end. FileNotFoundError if there is no file."""
        ...

    def open(self, name: str) -> OpenFile:
        """The file, open for repeated reads. FileNotFoundError, here or at the first read, if there is none."""
        ...

    def size(self, name: str) -> int | None:
        """The file's size in bytes, or None if there is none."""
        ...

    def create(self, name: str, data: bytes) -> bool:
        """Create a file durably and atomically. True if it now holds exactly `data`, whoever wrote it.

        False, with nothing changed, if it holds other bytes. The file is durable in both cases.
        """
        ...

    def replace(self, name: str, data: bytes) -> None:
        """Write a file durably and atomically, replacing any. Only for files that no commit record covers."""
        ...

    def delete(self, name: str) -> None:
        """Remove a file, if it exists."""
        ...

    def names(self, prefix: str = "", without: Collection[str] = ()) -> Iterator[str]:
        """The names of all files below the folder `prefix`, sorted, without temporary files.

        `without` names folders directly inside `prefix` to skip, readable or not.
        """
        ...

    def names_between(self, folder: str, after: str, before: str) -> list[str]:
        """The names of the files directly inside `folder` whose last part lies between the two, sorted.

        Takes requests for what it finds, not for what the folder holds, where the store lists by name.
        """
        ...

    def times_between(self, folder: str, after: str, before: str) -> dict[str, float | None]:
        """The files of `names_between`, temporary ones too, and when each was written: seconds since 1970.

        None if the store does not say when.
        """
        ...

    def folders(self, prefix: str = "") -> list[str]:
        """The names of the folders directly inside the folder `prefix`, sorted."""
        ...
