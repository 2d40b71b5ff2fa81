"""A `Location` on this machine's file systems, local or network."""

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Collection, Iterator
from pathlib import Path

from unic_cache.buffers import MEMORY
from unic_cache.files.durable import give_name, naming, sync_file, sync_folder, take_name
from unic_cache.files.location import checked
from unic_cache.files.open_file import LocalFile, OpenFile


class LocalFolder:
    """A `Location` on a local or network file system.

    A file appears by link(2) (or rename, to replace) from a temporary file in the same folder that was fsynced before;
    the folder is fsynced after, and once each folder above it, whoever made it: a file is only as durable as the path
    to it. `durable` tells what is done where a file system lacks one of these calls. Temporary names carry the writer's
    index, so that the same worker can remove its own left-overs when it starts again, and nobody else does. A call that
    raises leaves the whole file or nothing.

    When more than `page_cache` bytes of files have been opened, they will not stay in memory until they are read again;
    files opened from then on are read past the page cache. None stands for half of the machine's memory.
    """

    def __init__(self, path: str | Path, worker: int = 0, page_cache: int | None = None) -> None:
        self.path = Path(path)
        self.url = str(path)
        self.worker = worker
        self.page_cache = MEMORY // 2 if page_cache is None else page_cache
        self._opened: set[str] = set()
        self._opened_bytes = 0
        self._durable: set[Path] = set()

    def __repr__(self) -> str:
        return f"LocalFolder({self.url!r})"

    @property
    def waits(self) -> bool:
        """Whether files are read past the page cache."""
        return self._opened_bytes > self.page_cache

    def read(self, name: str) -> bytes | None:
        """One open and read."""
        try:
            return (self.path / checked(name)).read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        """One pread(2)."""
        path = self.path / checked(name)
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except NotADirectoryError as error:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from error
        try:
            return os.pread(descriptor, size, offset)
        finally:
            os.close(descriptor)

    def open(self, name: str) -> OpenFile:
        """One open(2)."""
        path = self.path / checked(name)
        if name not in self._opened:
            self._opened_bytes += self.size(name) or 0
            self._opened.add(name)
        return LocalFile(path, past_cache=self.waits)

    def size(self, name: str) -> int | None:
        """One stat(2)."""
        try:
            status = (self.path / checked(name)).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return status.st_size if stat.S_ISREG(status.st_mode) else None

    def create(self, name: str, data: bytes) -> bool:
        """One link(2) of what is durable already."""
        target = self.path / checked(name)
        while not os.path.lexists(target):
            with self._temporary(target, data) as temporary:
                named = give_name(temporary, target)
            if named:
                sync_folder(target.parent)
                return True
        self._make_durable(target.parent)
        sync_file(target)
        sync_folder(target.parent)
        with naming(target):
            return target.read_bytes() == data

    def replace(self, name: str, data: bytes) -> None:
        """One rename(2) of what is durable already."""
        target = self.path / checked(name)
        while True:
            with self._temporary(target, data) as temporary:
                if take_name(temporary, target):
                    break
        sync_folder(target.parent)

    def delete(self, name: str) -> None:
        """One unlink(2), made durable."""
        target = self.path / checked(name)
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            target.unlink()
            sync_folder(target.parent)

    def names(self, prefix: str = "", without: Collection[str] = ()) -> Iterator[str]:
        """One walk, through links to folders too."""
        found = (name for name in self._walk(prefix, without) if not name.rpartition("/")[2].startswith(".tmp-"))
        yield from sorted(found)

    def folders(self, prefix: str = "") -> list[str]:
        """One listing."""
        root = self.path / checked(prefix) if prefix else self.path
        try:
            with os.scandir(root) as entries:
                return sorted(entry.name for entry in entries if entry.is_dir())
        except (FileNotFoundError, NotADirectoryError):
            return []

    def remove_leftovers(self, without: Collection[str] = ()) -> int:
        """Delete the temporary files that a killed worker with this index left; how many there were.

        The folders named in `without` are somebody else's.
        """
        own = f".tmp-{self.worker}-"
        found = [name for name in self._walk("", without) if name.rpartition("/")[2].startswith(own)]
        for name in found:
            (self.path / name).unlink(missing_ok=True)
        return len(found)

    def _walk(self, prefix: str, without: Collection[str]) -> Iterator[str]:
        """Every file below a folder, by its name; a link to a folder that it lies in is not followed."""
        root = self.path / checked(prefix) if prefix else self.path
        for folder, below, files in os.walk(root, onerror=_raise_unless_missing, followlinks=True):
            left_out = without if Path(folder) == root else ()
            below[:] = [name for name in below if name not in left_out and not _leads_back(folder, name)]
            yield from (os.path.relpath(os.path.join(folder, file), self.path).replace(os.sep, "/") for file in files)

    @contextlib.contextmanager
    def _temporary(self, target: Path, data: bytes) -> Iterator[Path]:
        """`data`, durable in a file beside `target` that nobody looks at; gone afterwards."""
        self._make_durable(target.parent)
        temporary = target.parent / f".tmp-{self.worker}-{secrets.token_hex(8)}"
        try:
            with naming(target), open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)

    def _make_durable(self, folder: Path) -> None:
        if folder in self._durable and folder.is_dir():
            return
        if folder.parent != folder:
            self._make_durable(folder.parent)
            if not folder.is_dir():
                _make(folder)
            sync_folder(folder.parent)
        self._durable.add(folder)


def _make(folder: Path) -> None:
    """mkdir(2); a file of that name is in the way."""
    try:
        folder.mkdir(exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder)) from error


def _leads_back(folder: str, name: str) -> bool:
    """Whether the entry is a link to a folder that it lies in."""
    path = Path(folder, name)
    return path.is_symlink() and Path(folder).resolve().is_relative_to(path.resolve())


def _raise_unless_missing(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error
