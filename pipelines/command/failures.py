"""Failures as one line and an exit code.

| cause | exit code |
|---|---|
| a setting (ConfigError) | 2 |
| data, a disk, a limit of the machine | 1 |
| a signal | 128 and its number: 130 for Ctrl-C, 143 for SIGTERM, 138 for SIGUSR1 |
| a closed pipe (`| head`) | 1, silently |

An error's notes (`add_note`) say what is safe and how to go on; KEPT is the default. Any other error is a bug of ours
and keeps its traceback.
"""

import contextlib
import errno
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Iterator

import click

from unic_cache.errors import ConfigError, UnicCacheError

STOPPED = 128  # and the signal's number
ADVICE_HERE = "{advice}"  # in a note
KEPT = f"All that was committed is kept; {ADVICE_HERE} and run the same command again"
# the remedy for each errno of a disk or a limit
ADVICE = {
    errno.ENOSPC: "free some space there",
    errno.EDQUOT: "free some of your quota there",
    errno.EROFS: "mount it for writing, or choose another folder,",
    errno.EACCES: "check the permissions of the file and of its folder",
    errno.EPERM: "check the owner and the permissions of the file and of its folder",
    errno.EIO: "check the disk, or the connection to it,",
    errno.ESTALE: "mount the network file system again",
    errno.ENAMETOOLONG: "choose a shorter path",
    errno.EMFILE: "raise the limit (`ulimit -n 4096`), or lower --threads,",
    errno.ENFILE: "let other programs close files",
    errno.EFBIG: "raise the limit (`ulimit -f`), or choose a file system for larger files,",
    errno.ENOTDIR: "choose a folder (this is a file)",
    errno.EEXIST: "choose another name (this one is taken)",
    errno.EISDIR: "choose a file (this is a folder)",
    errno.ENOENT: "check the path",
    errno.ELOOP: "fix the links, which form a circle,",
    errno.ENOMEM: "free some memory",
    errno.EAGAIN: "lower --threads, or raise the process limit (`ulimit -u`),",
}
OS_ERROR = re.compile(r"\(os error (\d+)\)")  # the end of a message from a Rust library
MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory|Cannot allocate memory", re.IGNORECASE)


@contextlib.contextmanager
def clear_errors() -> Iterator[None]:
    """Turn an error that is no bug of ours into one line and an exit code."""
    threading.excepthook = _thread_failed
    try:
        yield
    except BrokenPipeError:
        raise  # click ends silently
    except KeyboardInterrupt as error:
        note = f": {error}" if str(error) else "; run the same command again to go on"
        click.echo(f"stopped{note}", err=True)
        sys.exit(STOPPED + getattr(error, "number", signal.SIGINT))
    except Exception as error:
        said = explain(error)
        if said is None:
            raise
        raise (click.UsageError(said) if isinstance(error, ConfigError) else click.ClickException(said)) from error


def explain(error: BaseException) -> str | None:
    """The line for an error; None if it is a bug of ours."""
    if isinstance(error, UnicCacheError):
        return one_line(". ".join([str(error).rstrip("."), *_notes(error, "fix that")]))
    cause: BaseException | None = error
    while cause is not None:
        found = _happened(cause)
        if found is not None:
            happened, advice = found
            notes = _notes(error, advice) or _notes(cause, advice) or [KEPT.replace(ADVICE_HERE, advice)]
            return one_line(". ".join([happened.rstrip("."), *notes]))
        cause = cause.__cause__
    return None


def portable(error: BaseException) -> BaseException:
    """The error to raise in another process, where its cause and its traceback are lost.

    It is the one of its causes that `explain` explains; a bug of ours keeps its traceback as a note.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UnicCacheError | KeyboardInterrupt) or _happened(cause) is not None:
            return cause
        cause = cause.__cause__
    error.add_note("".join(traceback.format_exception(error)))
    return error


def reason(error: BaseException) -> str:
    """One line for an error that does not end the command."""
    found = _happened(error)
    return one_line(f"{type(error).__name__}: {error}" if found is None else found[0])


def one_line(text: str) -> str:
    """The text without the line breaks that libraries put into messages."""
    return " ".join(text.split())


def _happened(error: BaseException) -> tuple[str, str] | None:
    """(what happened, what to do before running the same command again); None if unknown."""
    text = str(error)
    told = OS_ERROR.search(text)
    if isinstance(error, OSError):
        where = f": {_path(error.filename)}" if error.filename else ""
        return f"{error.strerror or text or type(error).__name__}{where}", ADVICE.get(error.errno or 0, "fix this")
    if told is not None:
        return f"{os.strerror(int(told[1]))} ({type(error).__name__})", ADVICE.get(int(told[1]), "fix this")
    if type(error).__name__ == "OutOfMemoryError":
        return f"GPU memory is full ({text.partition('. ')[0]})", "lower --batch-size"
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and MEMORY.search(text)):
        return "memory is full", "lower --batch-size or --threads"
    if isinstance(error, RuntimeError) and "can't start new thread" in text:
        return "no more threads can be started", ADVICE[errno.EAGAIN]
    return None


def _path(name: object) -> str:
    return os.fsdecode(name) if isinstance(name, str | bytes | os.PathLike) else f"file {name}"


def _notes(error: BaseException, advice: str) -> list[str]:
    return [note.replace(ADVICE_HERE, advice) for note in getattr(error, "__notes__", [])]


def _thread_failed(failed: threading.ExceptHookArgs) -> None:
    """Print no traceback for a thread that a disk error ended: whoever waits for it gets the error."""
    if not isinstance(failed.exc_value, OSError):
        threading.__excepthook__(failed)
