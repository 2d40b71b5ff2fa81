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
from unic_cache.files.temporary import keep, removed_if_left


class LocalFolder:
    """A `Location` on a local or network file system.

    Writing fsyncs a temporary file in the same folder, links it (or renames it, to replace), then fsyncs the folder
    and, once each, all folders above it, whoever made them: a file is only as durable as its path. `files.durable`
    handles file systems that lack one of these calls. A call that raises leaves the whole file or nothing. Temporary
    names carry the worker's index, so that only the same worker removes its leftovers when it restarts; those of a
    process that is still alive are locked and stay.

    Once more than `page_cache` bytes of files were opened (None: half of the machine's memory), later files are read
    past the page cache: they would be evicted before they are read again.
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
        """Whether newly opened files are read past the page cache."""
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
        """One link(2) of an fsynced file."""
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
        """One rename(2) of an fsynced file."""
        target = self.path / checked(name)
        while True:
            with self._temporary(target, data) as temporary:
                if take_name(temporary, target):
                    break
        sync_folder(target.parent)

    def delete(self, name: str) -> None:
        """One unlink(2), then fsync of the folder."""
        target = self.path / checked(name)
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            target.unlink()
            sync_folder(target.parent)

    def names(self, prefix: str = "", without: Collection[str] = ()) -> Iterator[str]:
        """One walk, which follows links to folders."""
        found = (name for name in self._walk(prefix, without) if not name.rpartition("/")[2].startswith(".tmp-"))
        yield from sorted(found)

    def names_between(self, folder: str, after: str, before: str) -> list[str]:
        """One listing."""
        try:
            with os.scandir(self.path / checked(folder)) as entries:
                found = [entry.name for entry in entries if after < entry.name < before and not entry.is_dir()]
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(f"{folder}/{name}" for name in found if not name.startswith(".tmp-"))

    def times_between(self, folder: str, after: str, before: str) -> dict[str, float | None]:
        """One listing, and a stat(2) of each file; None for one that is gone by then."""
        found: dict[str, float | None] = {}
        with (
            contextlib.suppress(FileNotFoundError, NotADirectoryError),
            os.scandir(self.path / checked(folder)) as all_,
        ):
            for entry in all_:
                if after < entry.name < before and not entry.is_dir():
                    try:
                        found[f"{folder}/{entry.name}"] = entry.stat().st_mtime
                    except FileNotFoundError:
                        found[f"{folder}/{entry.name}"] = None
        return found

    def folders(self, prefix: str = "") -> list[str]:
        """One listing."""
        root = self.path / checked(prefix) if prefix else self.path
        try:
            with os.scandir(root) as entries:
                return sorted(entry.name for entry in entries if entry.is_dir())
        except (FileNotFoundError, NotADirectoryError):
            return []

    def remove_leftovers(self, without: Collection[str] = ()) -> int:
        """Delete the temporary files of a killed worker with this index, outside the folders `without`; their count.

        Those that another process of this index is writing stay.
        """
        own = f".tmp-{self.worker}-"
        found = [name for name in self._walk("", without) if name.rpartition("/")[2].startswith(own)]
        return sum(removed_if_left(self.path / name) for name in found)

    def _walk(self, prefix: str, without: Collection[str]) -> Iterator[str]:
        """The name of every file below a folder; links to a folder that contains them are not followed."""
        root = self.path / checked(prefix) if prefix else self.path
        for folder, below, files in os.walk(root, onerror=_raise_unless_missing, followlinks=True):
            left_out = without if Path(folder) == root else ()
            below[:] = [name for name in below if name not in left_out and not _leads_back(folder, name)]
            yield from (os.path.relpath(os.path.join(folder, file), self.path).replace(os.sep, "/") for file in files)

    @contextlib.contextmanager
    def _temporary(self, target: Path, data: bytes) -> Iterator[Path]:
        """The path of an fsynced temporary file with `data` beside `target`, locked; removed afterwards."""
        self._make_durable(target.parent)
        temporary = target.parent / f".tmp-{self.worker}-{secrets.token_hex(8)}"
        try:
            with naming(target), open(temporary, "xb") as file:
                keep(file.fileno())
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
    """mkdir(2). NotADirectoryError if a file has that name."""
    try:
        folder.mkdir(exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder)) from error


def _leads_back(folder: str, name: str) -> bool:
    """Whether the entry is a link to a folder that contains it."""
    path = Path(folder, name)
    return path.is_symlink() and Path(folder).resolve().is_relative_to(path.resolve())


def _raise_unless_missing(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error
