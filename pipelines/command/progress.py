"""Progress on stderr: what begins, then how much is done, how fast, and how long it will take."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

FIRST_LINE = 5.0  # seconds until a log gets a line, even if nothing is done yet
LOG_EVERY = 30.0  # seconds between lines if stderr is not a terminal

console = Console(stderr=True, soft_wrap=True, emoji=False)
_under_way = threading.Event()  # set once the command has said what it does

# What a worker of several has to say: ("say", text); ("begin", label, total, unit, done); ("advance", label, count);
# ("end", label); ("opened",) once what all workers need is made.
Event = tuple[str | int, ...]
_listeners: list[Callable[[Event], None]] = []  # at most one
_telling = threading.Lock()


def listen(listener: Callable[[Event], None]) -> None:
    """From now on, tell the listener what this process would print; `relay.Relay` prints it elsewhere."""
    _listeners[:] = [listener]


def tell(*event: str | int) -> None:
    """Tell whoever listens; any thread may."""
    with _telling:
        for listener in _listeners:
            listener(event)


def say(text: str) -> None:
    """Print one line on stderr, without markup or wrapping."""
    if _listeners:
        tell("say", text)
    else:
        console.print(text, markup=False, highlight=False, soft_wrap=True)


def begins(command: str, *facts: str) -> None:
    """Say what the command is about to do, and with what."""
    _under_way.set()
    say(f"{command}: {', '.join(fact for fact in facts if fact)}")


def under_way() -> None:
    """Say no more that the command is still loading."""
    _under_way.set()


@contextmanager
def starting(command: str) -> Iterator[None]:
    """Say every now and then that the command is still loading, until `begins` or a `Progress`."""

    def watch() -> None:
        with suppress(OSError, ValueError):  # stderr is closed
            pause = FIRST_LINE
            while not _under_way.wait(pause):
                say(f"{command}: still loading, {time.monotonic() - began:,.0f} s since it began")
                pause = LOG_EVERY

    began = time.monotonic()
    _under_way.clear()
    watcher = threading.Thread(target=watch, name="starting", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        _under_way.set()
        watcher.join()


class Progress:
    """A bar on a terminal; elsewhere, as in a batch job, a line after 5 s and then every half minute."""

    def __init__(self, label: str, total: int, unit: str, done: int = 0, quiet: bool = False) -> None:
        self.label, self.total, self.unit = label, total, unit
        quiet = quiet or bool(_listeners)
        drawn = console.is_terminal and console.file.isatty()  # FORCE_COLOR makes a file a terminal, but no tty
        self._bar = RichProgress(
            TextColumn("{task.description}", style="bold", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=console,
            disable=quiet or not drawn,
        )
        self._task = self._bar.add_task(label, total=total, completed=done, note="", rate="")
        self._note = ""
        self._first, self._done = done, done
        self._began = self._told = time.monotonic()
        self._logs = not quiet and not drawn
        self._silent = True
        self._telling = threading.Lock()
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._keep_watching, name="progress", daemon=True)

    def advance(self, count: int) -> None:
        """Count `count` more units as done."""
        tell("advance", self.label, count)
        self._done += count
        self._bar.advance(self._task, count)
        speed = self._bar.tasks[0].speed
        if speed:
            self._bar.update(self._task, rate=f"{speed:,.1f} {self.unit}/s")
        self._tell_after(LOG_EVERY)

    def expect(self, count: int) -> None:
        """Count `count` more units as to be done."""
        self.total += count
        self._bar.update(self._task, total=self.total)

    def note(self, text: str) -> None:
        """Set the text at the end of the line."""
        self._note = text
        self._bar.update(self._task, note=text)

    def watch(self) -> None:
        """Print a due line although nothing was done: a batch may take long, and the first line comes early."""
        self._tell_after(FIRST_LINE if self._silent else LOG_EVERY)

    def _tell_after(self, seconds: float) -> None:
        """Print a line, unless the last one is younger than `seconds`."""
        with self._telling:
            if self._logs and time.monotonic() - self._told >= seconds:
                self._tell()

    def _tell(self) -> None:
        self._told, self._silent = time.monotonic(), False
        place = f"{self.label} {self._done:,}/{self.total:,} {self.unit}"
        since = self._told - self._began
        if self._done == self._first:
            say(f"{place}, {timedelta(seconds=round(since))} since it began")
            return
        rate = (self._done - self._first) / max(since, 1e-9)
        line = f"{place}, {rate:,.1f}/s, {timedelta(seconds=round((self.total - self._done) / rate))} left"
        say(f"{line}, {self._note}" if self._note else line)

    def _keep_watching(self) -> None:
        with suppress(OSError, ValueError):  # stderr is closed
            while not self._ended.wait(1.0):
                self.watch()

    def __enter__(self) -> Self:
        _under_way.set()
        tell("begin", self.label, self.total, self.unit, self._done)
        self._bar.start()
        if self._logs:
            self._watcher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._logs:
            self._watcher.join()
        self._bar.stop()
        tell("end", self.label)
