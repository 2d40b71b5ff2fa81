"""Failures as one line and an exit code.

| cause | exit code |
|---|---|
| a setting (ConfigError) | 2 |
| data, a disk, a limit of the machine | 1 |
| a signal | 128 and its number: 130 for Ctrl-C, 143 for SIGTERM, 138 for SIGUSR1 |
| a closed pipe (`| head`) | 1, silently |

An error's notes (`add_note`) say what is safe and how to go on, with `advice_on`; by default, that all that was
committed is kept. Any other error is a bug of ours and keeps its traceback.
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
FIX = "fix that"  # the remedy where none is known
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
ALONE = re.compile(r"by peer|Broken pipe|pair closure|ms for (recv|send) operation|ncclRemoteError")  # gloo's, NCCL's
MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory|Cannot allocate memory", re.IGNORECASE)
RUNTIME = {  # text of a RuntimeError -> (what happened, what to do)
    MEMORY: ("memory is full", "lower --batch-size or --threads"),
    re.compile("can't start new thread"): ("no more threads can be started", ADVICE[errno.EAGAIN]),
    ALONE: ("another process of this run has ended or cannot be reached ({})", "fix what it reports"),
}


@contextlib.contextmanager
def clear_errors() -> Iterator[None]:
    """Turn an error that is no bug of ours into one line and an exit code."""
    before, threading.excepthook = threading.excepthook, _thread_failed
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
    finally:
        threading.excepthook = before


def explain(error: BaseException) -> str | None:
    """The line for an error; None if it is a bug of ours."""
    if isinstance(error, UnicCacheError):
        return one_line(". ".join([str(error).rstrip("."), *_notes(error)]))
    found = _first_known(error)
    if found is None:
        return None
    cause, happened, advice = found
    kept = f"All that was committed is kept; {advice} and run the same command again"
    return one_line(". ".join([happened.rstrip("."), *(_notes(error) or _notes(cause) or [kept])]))


def advice_on(error: BaseException) -> str:
    """What to do before going on, for a note on the error."""
    found = None if isinstance(error, UnicCacheError) else _first_known(error)
    return FIX if found is None else found[2]


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


def _first_known(error: BaseException) -> tuple[BaseException, str, str] | None:
    """(the error or the first of its causes that is known, what happened, what to do); None if all are unknown."""
    cause: BaseException | None = error
    while cause is not None:
        found = _happened(cause)
        if found is not None:
            return cause, *found
        cause = cause.__cause__
    return None


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
    if isinstance(error, MemoryError):
        return RUNTIME[MEMORY]
    known = RUNTIME.items() if isinstance(error, RuntimeError) else ()
    found = next((said for pattern, said in known if pattern.search(text)), None)
    return found and (found[0].format(text.partition("\n")[0]), found[1])


def _path(name: object) -> str:
    return os.fsdecode(name) if isinstance(name, str | bytes | os.PathLike) else f"file {name}"


def _notes(error: BaseException) -> list[str]:
    return list(getattr(error, "__notes__", []))


def _thread_failed(failed: threading.ExceptHookArgs) -> None:
    """Print no traceback for a thread that a disk error ended: whoever waits for it gets the error."""
    if not isinstance(failed.exc_value, OSError):
        threading.__excepthook__(failed)
