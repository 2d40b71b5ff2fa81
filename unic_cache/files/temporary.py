"""Temporary files: locked while they are written, so that those of a killed process can be told from a live one's.

The lock is flock(2), which the kernel drops when the process ends. On file systems without locks a file counts as left
behind once it has not changed for an hour.
"""

import contextlib
import errno
import fcntl
import os
import time
from pathlib import Path

NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
LEFT_AFTER = 3600.0  # seconds, without locks


def keep(descriptor: int) -> None:
    """Lock a new temporary file until it is closed.

    If that fails, `removed_if_left` has found the file before it was locked and removes it: its writer has to find out
    when it names the file, and write it again.
    """
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def removed_if_left(path: Path) -> bool:
    """Remove a temporary file, unless a process is writing it; whether it was removed."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:  # gone, or another user's
        return False
    try:
        if _left(descriptor):
            path.unlink(missing_ok=True)
            return True
        return False
    finally:
        os.close(descriptor)


def _left(descriptor: int) -> bool:
    """Whether no process is writing an open file."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in NO_LOCKS and time.time() - os.fstat(descriptor).st_mtime > LEFT_AFTER
    return True
