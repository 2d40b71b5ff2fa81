"""A remote tar as a Python file."""

import io

from unic_cache.files.location import Location

READ_AHEAD = 1 << 20  # bytes per request while walking the headers


class RemoteTar(io.RawIOBase):
    """A raw file of `size` bytes; each read is one range request."""

    def __init__(self, folder: Location, name: str, size: int) -> None:
        self._folder, self._name, self._size, self._at = folder, name, size, 0

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move without a request."""
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        """The offset of the next read."""
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """One request."""
        count = max(min(len(buffer), self._size - self._at), 0)
        data = self._folder.read_range(self._name, self._at, count) if count else b""
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)
