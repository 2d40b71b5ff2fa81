"""The name of a finished file: given once, to one writer, and durable.

| file system | a new name is given by |
|---|---|
| most | link(2): it fails where the name is taken |
| without hard links (exFAT, SMB, some FUSE) | renameat2(2) with RENAME_NOREPLACE, which fails there too |

Both are atomic: a reader sees no file or all of it, and of several writers one succeeds. Where neither exists, nothing
is written: a rename that replaces would let two workers overwrite what the other has vouched for.
"""

import contextlib
import ctypes
import errno
import os
from collections.abc import Iterator
from functools import cache as memoize
from pathlib import Path
from typing import Any

from unic_cache.errors import CacheError

NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EACCES}
NO_FOLDER_SYNC = {errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EACCES, errno.EPERM}
RENAME_NOREPLACE = 1
AT_FDCWD = -100


def give_name(temporary: Path, target: Path) -> bool:
    """Call `temporary` `target`; False where that name is taken, or `temporary` was taken away, by another.

    On NFS the answer to a link that was made can be lost and the repeated request refused: the link count tells.
    CacheError where the file system has no call that gives a name only once.
    """
    try:
        os.link(temporary, target)
    except OSError as error:
        with contextlib.suppress(FileNotFoundError):
            if temporary.stat().st_nlink == 2:
                return True
        if isinstance(error, FileExistsError | FileNotFoundError):
            return False
        if error.errno in NO_LINKS:
            return _renamed(temporary, target, error)
        raise
    return True


def _renamed(temporary: Path, target: Path, refused: OSError) -> bool:
    """Move `temporary` to `target` unless that is taken; `refused` is why no link could be made."""
    call = _renameat2()
    number = errno.ENOSYS
    if call is not None:
        if call(AT_FDCWD, os.fsencode(temporary), AT_FDCWD, os.fsencode(target), RENAME_NOREPLACE) == 0:
            return True
        number = ctypes.get_errno()
    if number in {errno.EEXIST, errno.ENOENT}:
        return False
    if number in {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}:
        raise CacheError(
            f"{target.parent}: this file system makes no hard links ({refused.strerror}) and has no rename that spares "
            "an existing file, so no file can be created only once; put the cache on another one"
        ) from refused
    raise OSError(number, os.strerror(number), str(target))


def take_name(temporary: Path, target: Path) -> bool:
    """Call `temporary` `target`, whatever was there; False where another process removed it as a left-over."""
    try:
        temporary.rename(target)
    except FileNotFoundError:
        if temporary.exists():
            raise
        return False
    return True


@memoize
def _renameat2() -> Any:
    """The C library's function, or None where it has none."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is not None:
        call.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    return call


def sync_file(path: Path) -> None:
    """fsync a file that another wrote; one that may not be opened is taken to be durable."""
    with naming(path):
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except PermissionError:
            return
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sync_folder(path: Path) -> None:
    """fsync the entries of a folder. File systems that have no such call keep their entries by other means."""
    with naming(path):
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except OSError as error:
            if error.errno in NO_FOLDER_SYNC:
                return
            raise
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in NO_FOLDER_SYNC:
                raise
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """An OSError that leaves from here says which file it was: those of write(2) and fsync(2) do not."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise
