"""Give a finished file its name: atomically, durably, and to one writer only.

| file system | call |
|---|---|
| most | link(2), which fails if the name is taken |
| without hard links (exFAT, SMB, some FUSE) | renameat2(2) with RENAME_NOREPLACE, which fails too |

Both are atomic: readers see the whole file or none, and one of several writers wins. If the file system has neither,
we write nothing: a plain rename would let two workers overwrite data that the other has committed.
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
    """Name `temporary` `target`. False if the name is taken or another process removed `temporary`.

    NFS can lose the reply to a successful link and refuse the retry; the link count then shows that it succeeded.
    CacheError if the file system has no atomic create-only call.
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
    """Rename `temporary` to `target` unless the name is taken; `refused` is link(2)'s error."""
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
            f"{target.parent}: this file system has neither hard links ({refused.strerror}) nor a rename that keeps "
            "existing files, so workers could overwrite each other; put the cache on another one"
        ) from refused
    raise OSError(number, os.strerror(number), str(target))


def take_name(temporary: Path, target: Path) -> bool:
    """Rename `temporary` to `target`, replacing it. False if another process removed `temporary` as a leftover."""
    try:
        temporary.rename(target)
    except FileNotFoundError:
        if temporary.exists():
            raise
        return False
    return True


@memoize
def _renameat2() -> Any:
    """The C library's renameat2, or None if it has none."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is not None:
        call.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    return call


def sync_file(path: Path) -> None:
    """fsync a file that another process wrote; assume it durable if we may not open it."""
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
    """fsync a folder's entries; do nothing on file systems that cannot."""
    with naming(path):
        try:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            if error.errno not in NO_FOLDER_SYNC:
                raise


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add `path` to OSErrors that name no file, such as those of write(2) and fsync(2)."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise
